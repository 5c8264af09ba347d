"""Images with boxes on disk: what they are, and how a folder of them is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from context_pred.errors import InvalidInputError, unknown

LAYOUTS = ("voc", "coco")


@dataclass(frozen=True, eq=False)
class BoxedImage:
    """An image and what is marked in it.

    Attributes:
        path: The file.
        size: (width, height) in px, as its annotation says; (0, 0) where it does not.
        boxes: float32 (n, 4): x1, y1, x2, y2 in px, counted from 0 (VOC's own count from 1: 1 is subtracted, as
            mmdetection does, so that x2 and y2 are the last pixel within; COCO's are edges: x + width, y + height).
        labels: int64 (n,): indices of ``BoxedImages.classes``.
        difficult: bool (n,): VOC's mark; neither asked for nor counted as wrong in a test.
        crowd: bool (n,): COCO's ``iscrowd``.
        areas: float64 (n,): COCO's ``area`` in px², of the outline; the box's own of VOC.
        outlines: COCO's ``segmentation`` of each box: polygons, or run lengths; () where there are none.
        source: What it is part of: "VOC2007", "VOC2012", "val2017" …
        number: COCO's image id, which results are written with; else the place in its list.
    """

    path: Path
    size: tuple[int, int]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    difficult: NDArray[np.bool_]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    outlines: tuple[Any, ...] = ()
    source: str = ""
    number: int = 0

    def __len__(self) -> int:
        """Return how many boxes there are, difficult ones and crowds among them."""
        return len(self.boxes)

    def chosen(self, keep: NDArray[np.bool_]) -> BoxedImage:
        """Return the image with some of its boxes: those where ``keep``, bool (n,), is True."""
        outlines = tuple(one for one, kept in zip(self.outlines, keep, strict=True) if kept) if self.outlines else ()
        return dataclasses.replace(
            self, boxes=self.boxes[keep], labels=self.labels[keep], difficult=self.difficult[keep],
            crowd=self.crowd[keep], areas=self.areas[keep], outlines=outlines,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class BoxedImages:
    """A set for detection.

    Attributes:
        name: What to call it, as the folder is called.
        kind: "voc0712" (the devkit's 2007 and 2012), "voc2007" (2007 alone), "voc" (another folder in VOC's layout) or
            "coco".
        classes: Their names, in the order of the labels.
        train: What detectors learn from.
        test: What the figures are measured on.
        notes: What was found, in sentences to print.
        lacks: Of "voc2007": the sentence that names the missing VOC2012; "" where nothing is missing, or where
            ``years`` asked for 2007 alone.
        categories: COCO's category ids in the order of the classes; () elsewhere.
    """

    name: str
    kind: str
    classes: tuple[str, ...]
    train: tuple[BoxedImage, ...]
    test: tuple[BoxedImage, ...]
    notes: tuple[str, ...] = ()
    lacks: str = ""
    categories: tuple[int, ...] = ()

    def described(self) -> dict[str, Any]:
        """Return what a result says of its data."""
        return {
            "name": self.name,
            "kind": self.kind,
            "train": len(self.train),
            "test": len(self.test),
            "classes": len(self.classes),
            "notes": list(self.notes),
        }

    def every_file(self) -> tuple[Path, ...]:
        """Return the images of both splits."""
        return tuple(image.path for image in (*self.train, *self.test))

    def without(self, damaged: Collection[str]) -> BoxedImages:
        """Return the set without some files, given as text, and a note that says so."""
        left = [str(path) for path in self.every_file() if str(path) in damaged]
        note = f"{len(left):,} damaged images were left out: {', '.join(left[:10])}{' …' if len(left) > 10 else '.'}"
        train, test = (
            tuple(image for image in part if str(image.path) not in damaged) for part in (self.train, self.test)
        )
        return dataclasses.replace(self, train=train, test=test, notes=(*self.notes, note))

    def only(self, source: str) -> BoxedImages:
        """Return the images of one source, as VOC2007 of a devkit that has VOC2012 too, and a note that says so.

        Raises:
            InvalidInputError: nothing to learn from, or nothing to test with, is of that source.
        """
        train, test = (tuple(image for image in part if image.source == source) for part in (self.train, self.test))
        if not train or not test:
            there = sorted({image.source for image in (*self.train, *self.test)})
            raise InvalidInputError(f"{self.name} has no {source} to learn from and to test with; it has {there}.")
        if len(train) == len(self.train):
            return self
        note = f"Of these {source} alone was used: {len(train):,} images to learn from, {len(test):,} to test with."
        kind = "voc2007" if source == "VOC2007" else self.kind
        return dataclasses.replace(self, kind=kind, train=train, test=test, notes=(*self.notes, note), lacks="")


@dataclass(frozen=True)
class DataOptions:
    """How a folder is read; the command's ``--set`` gives them.

    Args:
        layout: "voc" or "coco"; empty: what the folder shows.
        lists: VOC layout: which lists of ImageSets/Main are for training and which for testing, as
            ``train+val,test``; empty: trainval (or train and val) and test (or val).
        years: Of a VOCdevkit: "2007" or "2007+2012" to train on (tested is 2007); empty: those that are there.
        first_pixel: VOC layout: what the annotations call the first pixel, 1 in VOC itself.
        skip_damaged: Leave damaged images out and say so, in place of an error.

    Raises:
        InvalidInputError: an option out of its range.
    """

    layout: str = ""
    lists: str = ""
    years: str = ""
    first_pixel: int = 1
    skip_damaged: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.layout and self.layout not in LAYOUTS:
            raise unknown("layout of images with boxes", self.layout, LAYOUTS)
        if self.first_pixel not in (0, 1):
            raise InvalidInputError(f"first_pixel = {self.first_pixel}: accepted is 1, as in VOC, or 0.")
        if self.years not in ("", "2007", "2007+2012"):
            raise InvalidInputError(f"years = {self.years!r}: accepted is 2007 or 2007+2012.")


ACCEPTED = (
    "Accepted: a VOCdevkit with VOC2007 (and VOC2012), or any folder with JPEGImages, Annotations/*.xml and "
    "ImageSets/Main/{trainval,test}.txt; COCO: annotations/instances_train2017.json and instances_val2017.json beside "
    "train2017 and val2017."
)


def read(folder: str | Path, options: DataOptions = DataOptions()) -> BoxedImages:  # it is frozen
    """Read a set of images with boxes; its layout is the one that the folder, or its one subfolder that does, shows.

    Raises:
        InvalidInputError: no such folder, no layout that is known, or a piece is missing; the message names it and
            where it is published.
    """
    from . import coco, voc

    root = Path(folder)
    if not root.is_dir():
        raise InvalidInputError(f"--data {str(folder)!r} is no folder. {ACCEPTED}")
    readers = {"voc": (voc.shows, voc.read), "coco": (coco.shows, coco.read)}
    chosen = {options.layout: readers[options.layout]} if options.layout else readers
    beneath = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    for shows, reader in chosen.values():
        if shows(root):
            return dataclasses.replace(reader(root, options), name=root.resolve().name)
        found = [path for path in beneath if shows(path)]
        if len(found) == 1:
            return dataclasses.replace(reader(found[0], options), name=root.resolve().name)
    if options.layout:
        return chosen[options.layout][1](root, options)  # which names the first piece that is missing
    raise InvalidInputError(
        f"{root} shows no layout of images with boxes that is known; it holds "
        f"{', '.join(path.name for path in sorted(root.iterdir())[:12]) or 'nothing'}. {ACCEPTED}"
    )
