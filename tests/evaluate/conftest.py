"""Miniature labelled sets in the formats that archives really have, made of the repository's photographs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

CLASSES = ("bird", "cat", "dog")
WNIDS = ("n01440764", "n01443537", "n02102040")


class Mini:
    """Builds the sets: small copies of photographs, taken in turn."""

    def __init__(self, root: Path, photos: Path) -> None:
        self.root = root
        self.photos = sorted(photos.glob("*.jpg"))
        self.count = 0

    def photo(self, *parts: str) -> Path:
        path = self.root.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(self.photos[self.count % len(self.photos)]) as image:
            image.reduce(4).save(path, "JPEG")
        self.count += 1
        return path

    def lines(self, where: str, lines: Sequence[str]) -> Path:
        path = self.root / where
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
        return path

    def voc(self, test: bool = True) -> Path:
        """VOCdevkit 2007: four images of trainval and four of test; the first of each shows two classes."""
        main = "VOCdevkit/VOC2007/ImageSets/Main"
        for name, ids in (("trainval", range(1, 5)), *((("test", range(5, 9)),) if test else ())):
            for number in ids:
                self.photo("VOCdevkit/VOC2007/JPEGImages", f"{number:06}.jpg")
            self.lines(f"{main}/{name}.txt", [f"{number:06}" for number in ids])
            for column, kind in enumerate(CLASSES):
                values = [1 if k % 3 == column else -1 for k in range(4)]
                values[0] = 1 if column < 2 else 0
                rows = [f"{number:06} {value:2d}" for number, value in zip(ids, values, strict=True)]
                self.lines(f"{main}/{kind}_{name}.txt", rows)
        return self.root / "VOCdevkit"

    def folders(self, *splits: str, classes: Sequence[str] = CLASSES, each: int = 2) -> Path:
        for split in splits:
            for kind in classes:
                for number in range(each):
                    self.photo(split, kind, f"{number}.jpg")
        return self.root

    def imagenet_flat(self) -> Path:
        """ImageNet with val/ flat and mmselfsup's meta/val.txt."""
        self.folders("train", classes=WNIDS)
        names = [self.photo("val", f"ILSVRC2012_val_{number:08}.JPEG").name for number in range(1, 4)]
        self.lines("meta/val.txt", [f"{name} {label}" for name, label in zip(names, (2, 0, 1), strict=True)])
        return self.root

    def places(self, within: str = "data/vision/torralba/deeplearning/images256") -> Path:
        for name, numbers in (("train", range(4)), ("val", range(4, 6))):
            files = [f"a/abbey/gsun_{number}.jpg" for number in numbers]
            for file in files:
                self.photo(within, file)
            rows = [f"{file} {number % 2}" for file, number in zip(files, numbers, strict=True)]
            self.lines(f"trainvalsplit_places205/{name}_places205.csv", rows)
        return self.root

    def inat(self) -> Path:
        for name, numbers in (("train", range(4)), ("val", range(4, 6))):
            files = [f"train_val2018/Aves/{number}.jpg" for number in numbers]
            for file in files:
                self.photo(file)
            record = {
                "images": [{"id": 10 + k, "file_name": file} for k, file in zip(numbers, files, strict=True)],
                "annotations": [{"id": k, "image_id": 10 + k, "category_id": 2 + k % 2} for k in numbers],
                "categories": [{"id": 2, "name": "Parus major"}, {"id": 3, "name": "Parus ater"}],
            }
            self.lines(f"{name}2018.json", [json.dumps(record)])
        return self.root

    def lists(self, within: str = "dataset") -> Path:
        """GroceryStoreDataset: dataset/{train,val,test}.txt of path, fine label, coarse label; and classes.csv."""
        for name, count in (("train", 4), ("val", 2), ("test", 3)):
            rows = []
            for k in range(count):
                path = self.photo(within, name, "Fruit", f"{k} ripe.jpg")
                rows.append(f"{path.relative_to(self.root / within).as_posix()}, {k % 3}, {k % 3 // 2}")
            self.lines(f"{within}/{name}.txt", rows)
        head = "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int)"
        self.lines(f"{within}/classes.csv", [head, "Gala,0,Apple,0", "Fuji,1,Apple,0", "Anjou,2,Pear,1"])
        return self.root


@pytest.fixture
def mini(tmp_path: Path, photos: Path) -> Mini:
    return Mini(tmp_path / "mini", photos)


@pytest.fixture
def another(tmp_path: Path, photos: Path) -> Callable[[str], Mini]:
    return lambda name: Mini(tmp_path / name, photos)
