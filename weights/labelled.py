"""The labelled sets that frozen features are measured on, read from where anyone can fetch them again."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from qres import read_qres

from context_pred.data.images import open_image

GREY = (128, 128, 128)
CATEGORIES = ("fishes", "monuments", "renewable", "tools")
# Drawn rather than photographed, or signs.
LEFT_OUT_STAMPS = {"cartoon", "symbols", "shapes", "alphabets"}


@dataclass(frozen=True)
class LabelledSet:
    """Pictures with one or more kinds of labels.

    `is_test` tells the queries from the bank; None where the set has no test list of its own, so that its pictures
    are asked in turn. `note` says what a reader of a figure should know.
    """

    name: str
    pictures: list[Path | bytes]
    labels: dict[str, np.ndarray]  # kind → int64 (n)
    is_test: np.ndarray | None = None  # bool (n)
    note: str = ""

    def describe(self) -> dict[str, object]:
        """Plain JSON values: the counts and what is to be known."""
        classes = {kind: len(np.unique(labels)) for kind, labels in self.labels.items()}
        counts: dict[str, object] = {"pictures": len(self.pictures)}
        if self.is_test is not None:
            counts = {"bank": int((~self.is_test).sum()), "queries": int(self.is_test.sum())}
        return {**counts, "classes": classes, "note": self.note}


def _named(name: str, items: Iterable[tuple[Path | bytes, str]], note: str) -> LabelledSet:
    pictures, names = zip(*items, strict=True)
    return LabelledSet(name, list(pictures), {"class": np.unique(names, return_inverse=True)[1]}, note=note)


def read_grocery(root: Path) -> LabelledSet:
    """The lists of GroceryStoreDataset: lines of `path, fine label, coarse label`; train and val are the bank."""
    rows = [
        (root / "dataset" / path.strip(), int(fine), int(coarse), name == "test")
        for name in ("train", "val", "test")
        for path, fine, coarse in (
            line.split(",") for line in (root / "dataset" / f"{name}.txt").read_text().splitlines() if line.strip()
        )
    ]
    paths, fine, coarse, is_test = zip(*rows, strict=True)
    labels = {"coarse": np.array(coarse), "fine": np.array(fine)}
    note = "The bank's photographs are in the corpus of weights/corpus.py, without their labels; the queries are not."
    return LabelledSet("GroceryStoreDataset", list(paths), labels, np.array(is_test), note)


def read_categorization(resource: Path) -> LabelledSet:
    """The WebP photographs of gcompris' `categorization.rcc`, labelled by their folder."""
    found = []
    for path, content in read_qres(resource.read_bytes()):
        match = re.search(r"/images/(\w+)/[^/]+\.webp$", path)
        if match and match.group(1) in CATEGORIES:
            found.append((content, match.group(1)))
    if not found:
        raise SystemExit(f"{resource} holds no pictures of {', '.join(CATEGORIES)}")
    note = "Most of these photographs are in the corpus of weights/corpus.py, without their labels."
    return _named("gcompris categorization", found, note)


def read_stamps(root: Path, fewest: int = 8) -> LabelledSet:
    """The PNG cut-outs below a folder of tuxpaint's stamps, labelled by the folder they lie in.

    Left out: `LEFT_OUT_STAMPS` wherever they stand in the path, `*_mirror.png` (the same thing the other way round),
    and folders with fewer than `fewest` stamps left.
    """
    files = [
        path
        for path in sorted(root.rglob("*.png"))
        if not LEFT_OUT_STAMPS & set(path.relative_to(root).parts) and not path.stem.endswith("_mirror")
    ]
    folders = Counter(path.parent for path in files)
    kept = [(path, path.parent.relative_to(root).as_posix()) for path in files if folders[path.parent] >= fewest]
    if not kept:
        raise SystemExit(f"{root} holds no folder of at least {fewest} PNG stamps")
    return _named(
        "tuxpaint stamps", kept, "Cut-outs, laid over plain grey; none is in the corpus of weights/corpus.py."
    )


def read_folders(root: Path) -> LabelledSet:
    """Folders `train/CLASS`, `val/CLASS` (may be absent) and `test/CLASS`."""
    files = [(p, name) for name in ("train", "val", "test") for p in sorted((root / name).glob("*/*")) if p.is_file()]
    if {name for _, name in files} < {"train", "test"}:
        raise SystemExit(f"{root} is not a folder of train/CLASS and test/CLASS")
    labels = {"class": np.unique([path.parent.name for path, _ in files], return_inverse=True)[1]}
    return LabelledSet(root.name, [path for path, _ in files], labels, np.array([name == "test" for _, name in files]))


READERS = {
    "grocery": read_grocery,
    "categorization": read_categorization,
    "stamps": read_stamps,
    "folders": read_folders,
}


def open_whole(picture: Path | bytes, size: int) -> np.ndarray:
    """A whole picture, uint8 (H, W, 3), its short side `size` px (Pillow's antialiased bilinear).

    A cut-out (anything with transparent pixels) is laid over the middle of a grey square first.
    """
    image = open_image(picture, background=GREY)
    with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as raw:
        if raw.has_transparency_data and raw.convert("RGBA").getchannel("A").getextrema()[0] < 255:
            square = Image.new("RGB", (max(image.size), max(image.size)), GREY)
            square.paste(image, ((square.width - image.width) // 2, (square.height - image.height) // 2))
            image = square
    width, height = (max(1, round(side * size / min(image.size))) for side in image.size)
    return np.array(image.resize((width, height), Image.Resampling.BILINEAR))
