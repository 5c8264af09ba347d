"""A corpus as one numbered sequence of images, cheap to hand to a worker process."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from context_pred.errors import InvalidInputError

from .files import find_images


class Texts(Sequence[str]):
    """Many texts in one block of bytes: a process that is forked or sent it neither touches nor copies each.

    Args:
        texts: The texts; bytes that are no UTF-8, as file names may hold, are kept (Python's surrogateescape).
    """

    def __init__(self, texts: Iterable[str]) -> None:
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        self._ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        self._block = b"".join(encoded)

    def __len__(self) -> int:
        """Return how many."""
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Return one text, or a list of some."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"number {index} of {len(self)}")
        index %= len(self)
        start = self._ends[index - 1] if index else 0
        return self._block[start : self._ends[index]].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        """Go through them in order."""
        return (self[i] for i in range(len(self)))


class Collection:
    """Images in a fixed order, each with a name.

    Attributes:
        names: What reports call each image: its path, or ``shard.tar/member.jpg``.
    """

    names: Sequence[str]

    def __len__(self) -> int:
        """Return how many images."""
        return len(self.names)

    def read(self, i: int) -> Path | bytes:
        """Return image ``i``: the path of its file, or the file's bytes.

        Raises:
            ImageError: the bytes are no longer where they were.
        """
        raise NotImplementedError

    def subset(self, indices: Sequence[int]) -> Collection:
        """Return the images of these numbers, numbered anew from 0."""
        return _Subset(self, indices)


class _Subset(Collection):
    def __init__(self, whole: Collection, indices: Sequence[int]) -> None:
        self._whole = whole
        self._indices = np.asarray(indices, dtype=np.int64)
        if len(self._indices) and not (self._indices.min() >= 0 and self._indices.max() < len(whole)):
            raise InvalidInputError(f"A part of {len(whole)} images; accepted: numbers 0 … {len(whole) - 1}.")
        self.names = Texts(whole.names[i] for i in self._indices.tolist())

    def read(self, i: int) -> Path | bytes:
        return self._whole.read(int(self._indices[i]))


class Files(Collection):
    """Images that are files of their own."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.names = Texts(os.fspath(path) for path in paths)

    def read(self, i: int) -> Path:
        """Return the path of image ``i``."""
        return Path(self.names[i])


def collect(source: str | Path | Sequence[str | Path]) -> Collection:
    """Number the images that ``source`` names.

    Args:
        source: What ``context_pred.data.find_images`` takes: a folder, a glob pattern, a list file, an image, or a
            sequence of paths.

    Raises:
        InvalidInputError: nothing was found; the message says what was looked for and where.
    """
    return Files(find_images(source))
