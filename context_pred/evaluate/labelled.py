"""Labelled images on disk, in the layouts that archives really have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from context_pred.errors import InvalidInputError


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels, in order.

    Attributes:
        files: The images.
        labels: int8 (N, classes): 1 yes, 0 no, −1 VOC's "difficult".
    """

    files: tuple[Path, ...]
    labels: NDArray[np.int8]

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
        return self.labels.argmax(1).astype(np.int64)


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """A set for classification: names of classes, and two splits.

    Attributes:
        name: What to call it, as the folder is called.
        kind: Its layout: "voc2007", "imagenet", "places205", "inat18", "folder", "single" or "list".
        classes: Names of the classes, in the order of the labels' columns.
        train: What classifiers learn from (VOC: trainval; kNN: the bank).
        test: What the figures are measured on.
    """

    name: str
    kind: str
    classes: tuple[str, ...]
    train: Split
    test: Split
