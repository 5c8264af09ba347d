"""Labelled images on disk: what they are, and how they are read. The layouts lie in ``layouts``."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from context_pred.errors import InvalidInputError, unknown


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels, in order.

    Attributes:
        files: The images.
        labels: int8 (N, classes): 1 yes, 0 no, −1 VOC's "difficult".
        original: The images before damaged ones were left out; empty: ``files``.
    """

    files: tuple[Path, ...]
    labels: NDArray[np.int8]
    original: tuple[Path, ...] = ()

    @property
    def single(self) -> NDArray[np.int64]:
        """int64 (N,): the index of each image's one class.

        Raises:
            InvalidInputError: an image has no class, or more than one.
        """
        count = (self.labels == 1).sum(1)
        wrong = np.flatnonzero(count != 1)
        if len(wrong):
            raise InvalidInputError(
                f"{self.files[wrong[0]]} has {count[wrong[0]]} classes (so have {len(wrong):,} of "
                f"{len(self.files):,} images not exactly one); this protocol needs one class an image."
            )
        index: NDArray[np.int64] = self.labels.argmax(1).astype(np.int64)
        return index

    def without(self, damaged: Collection[str]) -> Split:
        """Return the split without some files, given as text; ``original`` remembers all.

        Args:
            damaged: Paths as text.
        """
        files, keep = self._kept(damaged)
        return Split(files, self.labels[keep], self.original or self.files)

    def _kept(self, damaged: Collection[str]) -> tuple[tuple[Path, ...], NDArray[np.bool_]]:
        keep = np.array([str(file) not in damaged for file in self.files], bool)
        return tuple(file for file, kept in zip(self.files, keep, strict=True) if kept), keep


class ClassSplit(Split):
    """A split of images with one class each; ``labels`` is made when asked for, since it may be gigabytes.

    Args:
        files: The images.
        index: int64 (N,): the class of each.
        classes: How many classes there are.
        original: As in Split.
    """

    def __init__(
        self, files: Sequence[Path], index: NDArray[np.int64], classes: int, original: tuple[Path, ...] = ()
    ) -> None:
        for name, value in (("files", tuple(files)), ("index", index), ("classes", classes), ("original", original)):
            object.__setattr__(self, name, value)

    index: NDArray[np.int64]
    classes: int

    @property
    def labels(self) -> NDArray[np.int8]:
        """int8 (N, classes), made anew at each call."""
        dense = np.zeros((len(self.index), self.classes), np.int8)
        dense[np.arange(len(self.index)), self.index] = 1
        return dense

    @property
    def single(self) -> NDArray[np.int64]:
        """int64 (N,): the index of each image's one class."""
        return self.index

    def without(self, damaged: Collection[str]) -> ClassSplit:
        """As in Split."""
        files, keep = self._kept(damaged)
        return ClassSplit(files, self.index[keep], self.classes, self.original or self.files)


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """A set for classification: names of classes, and two splits.

    Attributes:
        name: What to call it, as the folder is called.
        kind: Its layout: a name of ``LAYOUTS``.
        classes: Names of the classes, in the order of the labels' columns.
        train: What classifiers learn from (VOC: trainval; kNN: the bank).
        test: What the figures are measured on.
        notes: What was found, in sentences to print.
    """

    name: str
    kind: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    notes: tuple[str, ...] = ()

    def described(self) -> dict[str, Any]:
        """Return what a result says of its data."""
        return {
            "name": self.name,
            "kind": self.kind,
            "train": len(self.train.files),
            "test": len(self.test.files),
            "classes": len(self.classes),
            "notes": list(self.notes),
        }

    def every_file(self) -> tuple[Path, ...]:
        """Return the images of both splits."""
        return (*self.train.files, *self.test.files)

    def without(self, damaged: Collection[str]) -> LabelledImages:
        """Return the set without some files, given as text, and a note that says so.

        Args:
            damaged: Paths as text.
        """
        left = [file for split in (self.train, self.test) for file in split.files if str(file) in damaged]
        note = f"{len(left):,} damaged images were left out: {', '.join(map(str, left[:10]))}"
        note += " …" if len(left) > 10 else "."
        return dataclasses.replace(
            self, train=self.train.without(damaged), test=self.test.without(damaged), notes=(*self.notes, note)
        )


@dataclass(frozen=True)
class DataOptions:
    """How a folder is read; the command's ``--set`` gives them.

    Args:
        layout: A name of ``layouts.LAYOUTS``; empty: what the folder shows.
        lists: Which lists are for training and which ask, as ``train.txt+val.txt,test.txt``; empty: what there is.
        label: Which of a list's labels, counted from 1.
        test_share: Share of each class that asks, of a folder without splits.
        split_seed: Of that draw.
        skip_damaged: Leave damaged images out and say so, in place of an error.

    Raises:
        InvalidInputError: an option out of its range.
    """

    layout: str = ""
    lists: str = ""
    label: int = 1
    test_share: float = 0.3
    split_seed: int = 0
    skip_damaged: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.label < 1:
            raise InvalidInputError(f"label = {self.label}: accepted is 1 (the first after the path) or more.")
        if not 0 < self.test_share < 1:
            raise InvalidInputError(f"test_share = {self.test_share}: accepted is a share between 0 and 1.")
        if self.split_seed < 0:
            raise InvalidInputError(f"split_seed = {self.split_seed}: accepted is 0 or more.")


def read(folder: str | Path, options: DataOptions = DataOptions()) -> LabelledImages:  # it is frozen
    """Read a labelled set; its layout is the one the folder shows, or that of its one subfolder that shows one.

    Raises:
        InvalidInputError: no such folder, a layout that is not known or lacks a piece (which is named, with where it
            is published), lists that contradict the folder.
        UnknownNameError: no such layout in the options.
    """
    from .layouts import LAYOUTS, accepted

    root = Path(folder)
    if not root.is_dir():
        raise InvalidInputError(f"--data {str(folder)!r} is no folder. {accepted()}")
    if options.layout and options.layout not in LAYOUTS:
        raise unknown("layout", options.layout, LAYOUTS)
    layouts = {options.layout: LAYOUTS[options.layout]} if options.layout else LAYOUTS
    beneath = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    shows = {
        place: next((name for name, layout in layouts.items() if layout.shows(place, options)), "")
        for place in (root, *beneath)
    }
    found = [place for place in beneath if shows[place] and shows[place] != "single"]
    if (not shows[root] or shows[root] == "single") and len(found) == 1:
        place = found[0]
    elif shows[root]:
        place = root
    elif not found and (options.layout or options.lists):
        place, shows[root] = root, options.layout or "list"  # its reader names the piece that is missing
    else:
        several = f" (several subfolders show one: {', '.join(p.name for p in found)})" if len(found) > 1 else ""
        names = sorted(path.name for path in root.iterdir())[:12]
        raise InvalidInputError(
            f"{root} shows no layout of labelled images that is known{several}; it holds "
            f"{', '.join(names) or 'nothing'}{' …' if len(names) == 12 else ''}. {accepted()}"
        )
    if options.lists and shows[place] not in ("voc2007", "list"):
        raise InvalidInputError(
            f"lists = {options.lists!r}, but {place} shows the layout {shows[place]}, which has no lists, and none of "
            "these is there. Leave it out, or name lists that are there."
        )
    data = layouts[shows[place]].read(place, options)
    return dataclasses.replace(data, name=root.resolve().name)
