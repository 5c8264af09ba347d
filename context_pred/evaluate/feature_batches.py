"""Batches of stored features, read from their file row by row in any order: memory holds one batch, no more."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from context_pred.errors import InvalidInputError, StorageError

FeatureBatch = tuple[dict[str, Tensor], Tensor]
"""{layer: float32 (N, …)} and classes int64 (N,)."""

_COPIES = 3
"""A batch as it was read, normalised, and a copy in between."""


class FeatureRows:
    """The stored features of some layers of one split, and its labels; as ``Examples``, each a row's number.

    Args:
        features: {layer: (n, …) float32}, memory-mapped or in memory; a mapped file is read without its mapping, since
            pages once touched would stay in memory.
        classes: int64 (n,): the class of each row.
    """

    def __init__(self, features: Mapping[str, NDArray[np.float32]], classes: NDArray[np.int64]) -> None:
        self.features, self.classes = dict(features), classes

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of one row of each layer."""
        return {layer: tuple(array.shape[1:]) for layer, array in self.features.items()}

    def example(self, image: int, generator: torch.Generator) -> int:
        """Return the row's number; ``collate`` reads the batch in one go."""
        return image

    def collate(self, rows: list[Any]) -> FeatureBatch:
        """Read a batch.

        Raises:
            StorageError: the file cannot be read, or has become shorter.
        """
        wanted = np.asarray(rows, np.int64)
        found = {layer: torch.from_numpy(read(array, wanted)) for layer, array in self.features.items()}
        return found, torch.from_numpy(self.classes[wanted])


def rows_within(shapes: Mapping[str, Sequence[int]], memory: int) -> int:
    """Return how many rows of all layers together fit into so many bytes, with the copies that training makes."""
    return memory // (_COPIES * 4 * _values(shapes))


def check(shapes: Mapping[str, Sequence[int]], images: int, memory: int) -> None:
    """Raise InvalidInputError where a batch of so many rows of these shapes does not fit into ``memory`` bytes."""
    if rows_within(shapes, memory) < images:
        raise InvalidInputError(
            f"memory = {memory:,} bytes: a batch of {images} images with {len(shapes)} layers needs "
            f"{_COPIES * 4 * _values(shapes) * images:,}. Give it more, or a smaller batch, or one layer at a time "
            "(--layer)."
        )


def _values(shapes: Mapping[str, Sequence[int]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def read(array: Any, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Read some rows into memory, (len(rows), …) float32; of a mapped file with a read of its own for each."""
    # A part of a mapped array keeps the whole one's offset.
    base: Any = getattr(array, "base", None)
    if not isinstance(base, mmap.mmap) or array.dtype != np.float32 or not hasattr(os, "preadv"):
        return np.ascontiguousarray(array[rows], np.float32)
    found = np.empty((len(rows), *array.shape[1:]), np.float32)
    size = found.nbytes // max(1, len(rows))
    path, begin = Path(str(array.filename)), int(array.offset)
    try:
        with ExitStack() as stack:
            file = os.open(path, os.O_RDONLY)
            stack.callback(os.close, file)
            for place, row in enumerate(rows.tolist()):
                target = memoryview(found[place]).cast("B") if size else memoryview(b"")
                done = 0
                while done < size:
                    part = os.preadv(file, [target[done:]], begin + row * size + done)
                    if not part:
                        raise StorageError(f"{path} has become shorter than its features are.")
                    done += part
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{path} cannot be read: {error.strerror or error}.") from error
    return found
