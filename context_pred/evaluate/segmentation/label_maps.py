"""Photographs with label maps: what the maps' values mean, and how they are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from context_pred.errors import ImageError, InvalidInputError
from context_pred.extras import need

IGNORED = 255
"""Pixels without a class, in what ``Coding.read`` returns."""


@dataclass(frozen=True)
class Coding:
    """What the values of a label map mean.

    Attributes:
        values: values[k] is the value of class k.
        ignored: Values of pixels without a class; 255 always is one.
    """

    values: tuple[int, ...]
    ignored: tuple[int, ...] = ()

    def read(self, path: Path) -> NDArray[np.uint8]:
        """Read a label map as class indices, (H, W) uint8, 255 where a pixel has none.

        Raises:
            ImageError: it cannot be read, holds colours in place of numbers, or a value that is no class.
        """
        found = raw_values(path)
        if found.min(initial=0) < 0 or found.max(initial=0) > 255 or not self._known[found].all():
            strange = sorted(set(np.unique(found).tolist()) - set(self.values) - set(self.ignored) - {IGNORED})
            raise ImageError(
                f"{path}: a label map with the value{'s' * (len(strange) > 1)} {', '.join(map(str, strange[:5]))}; "
                f"accepted are {_ranges(self.values)}, and {', '.join(map(str, {*self.ignored, IGNORED}))} for pixels "
                "without a class."
            )
        labels: NDArray[np.uint8] = self._table[found]
        return labels

    @property
    def _table(self) -> NDArray[np.uint8]:
        table = np.full(256, IGNORED, np.uint8)
        table[list(self.values)] = np.arange(len(self.values), dtype=np.uint8)
        return table

    @property
    def _known(self) -> NDArray[np.bool_]:
        known = np.zeros(256, bool)
        known[[*self.values, *self.ignored, IGNORED]] = True
        return known


@dataclass(frozen=True)
class Pair:
    """A photograph and its label map."""

    image: Path
    labels: Path


@dataclass(frozen=True)
class LabelMaps:
    """A set for segmentation.

    Attributes:
        name: What to call it, as the folder is called.
        kind: Its layout: "voc12aug", "cityscapes" or "folder".
        classes: Names of the classes, in the order of their indices.
        coding: From the values of the label maps to these indices.
        train: What is learned from.
        test: What the figures are measured on.
        notes: What was found, in sentences to print.
    """

    name: str
    kind: str
    classes: tuple[str, ...]
    coding: Coding
    train: tuple[Pair, ...]
    test: tuple[Pair, ...]
    notes: tuple[str, ...] = ()

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
        """Return photographs and label maps that are images (SBD's are not)."""
        files = [path for pair in (*self.train, *self.test) for path in (pair.image, pair.labels)]
        return tuple(path for path in files if path.suffix != ".mat")

    def without(self, damaged: Collection[str]) -> LabelMaps:
        """Return the set without the pairs of some files, given as text, and a note that says so."""
        train, test = (
            tuple(pair for pair in pairs if not {str(pair.image), str(pair.labels)} & set(damaged))
            for pairs in (self.train, self.test)
        )
        if not train or not test:
            raise InvalidInputError(f"{self.name}: all images to {'test' if train else 'learn from'} are damaged.")
        note = f"{len(damaged):,} damaged files were left out with their partners: {', '.join(sorted(damaged)[:10])}"
        note += " …" if len(damaged) > 10 else "."
        return dataclasses.replace(self, train=train, test=test, notes=(*self.notes, note))


@dataclass(frozen=True)
class DataOptions:
    """How a folder is read; the command's ``--set`` gives them.

    Args:
        layout: "voc12aug", "cityscapes" or "folder"; empty: what the folder shows.
        augmented: False trains on VOC's own 1,464 images, without SBD.
        splits: Of layout "folder": which to learn from and which to test, as ``train,val`` or ``train+val,test``;
            empty: all there are, the last one tests.
        ignore: Of layout "folder": values of the label maps that are no class, as 11; 255 never is one. The other
            values are the classes, in their order.
        classes: Of layout "folder": names of the classes, ``sky,building,…``, or a file with a name a line; empty:
            ``classes.txt`` of the folder where there is one, else class0, class1 … up to the highest value found.
        skip_damaged: Leave damaged files out and say so, in place of an error.
    """

    layout: str = ""
    augmented: bool = True
    splits: str = ""
    ignore: tuple[int, ...] = ()
    classes: str = ""
    skip_damaged: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not all(0 <= value <= 255 for value in self.ignore):
            raise InvalidInputError(f"ignore = {list(self.ignore)}: accepted are values of label maps, 0 … 255.")


def raw_values(path: Path) -> NDArray[Any]:
    """Read the numbers of a label map, (H, W), as they are in the file: an image's indices, or SBD's .mat.

    Raises:
        ImageError: it cannot be read, or holds colours in place of numbers.
    """
    if path.suffix == ".mat":
        return _sbd_values(path)
    try:
        with Image.open(path) as image:
            mode = image.mode
            found: NDArray[Any] = np.asarray(image)
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file") from error
    except Exception as error:  # Pillow's decoders raise almost anything
        raise ImageError(f"{path}: {' '.join(str(error).split())[:200] or type(error).__name__}") from error
    if found.ndim != 2 or mode == "F":
        raise ImageError(
            f"{path}: a label map with colours in place of numbers (Pillow's mode {mode}); accepted is one channel, or "
            "a palette, whose values are the classes."
        )
    return found.astype(np.uint8) if mode == "1" else found


def _sbd_values(path: Path) -> NDArray[Any]:
    """Read a label map of SBD: ``GTcls.Segmentation`` of a .mat file."""
    loadmat = need("scipy.io", "Reading SBD").loadmat
    try:
        found: NDArray[Any] = loadmat(path)["GTcls"][0]["Segmentation"][0]
        return found.astype(np.uint8)
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file") from error
    except Exception as error:  # a damaged file makes scipy raise almost anything
        raise ImageError(f"{path}: no label map of SBD ({type(error).__name__}: {str(error)[:100]})") from error


def _ranges(values: Sequence[int]) -> str:
    whole = list(values) == list(range(values[0], values[-1] + 1))
    return f"{values[0]} … {values[-1]}" if whole and len(values) > 2 else ", ".join(map(str, values))
