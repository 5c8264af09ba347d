"""A corpus as one numbered sequence of images, cheap to hand to a worker process."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeGuard, overload

import numpy as np

from context_pred.errors import ImageError, InvalidInputError

from . import shards
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


class Shards(Collection):
    """The images of tar shards, shard by shard, in the order in which they lie there.

    Args:
        paths: The shards. They must stay as they are while the collection is used.

    Raises:
        InvalidInputError: as ``shards.members``.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = [os.fspath(path) for path in paths]
        names: list[str] = []
        places: list[tuple[int, int, int]] = []
        for number, path in enumerate(self._paths):
            for name, offset, size in shards.members(path):
                names.append(f"{path}/{name}")
                places.append((number, offset, size))
        self.names = Texts(names)
        self._places = np.array(places, dtype=np.int64).reshape(-1, 3)
        self._handles = shards.Handles(self._paths)

    def read(self, i: int) -> bytes:
        """Return the bytes of image ``i``.

        Raises:
            ImageError: the shard is gone or has become shorter.
        """
        shard, offset, size = self._places[i].tolist()
        try:
            data = self._handles.read(shard, offset, size)
        except OSError as error:
            raise ImageError(f"{self.names[i]}: {error.strerror or error}") from error
        if len(data) < size:
            raise ImageError(f"{self.names[i]}: the shard has become shorter since it was indexed")
        return data


class _Joined(Collection):
    """Several collections, one after the other."""

    def __init__(self, parts: Sequence[Collection]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])
        self.names = Texts(name for part in parts for name in part.names)

    def read(self, i: int) -> Path | bytes:
        part = int(np.searchsorted(self._ends, i, side="right"))
        return self._parts[part].read(i - int(self._ends[part]) + len(self._parts[part]))


def collect(source: str | Path | Sequence[str | Path]) -> Collection:
    """Number the images that ``source`` names.

    Args:
        source: What ``context_pred.data.find_images`` takes (a folder, a glob pattern, a list file, an image, or a
            sequence of paths), and tar shards in webdataset's format wherever a file is named: one ``.tar`` file, a
            list or a pattern of them, ``data-{000..012}.tar``, or a folder of them. In a folder that holds shards
            other files count only if their ending is an image's: statistics and indices lie beside shards.

    Returns:
        The collection: files in ``find_images``' order, the images of a shard in its place among them. Names are
        paths, or ``shard.tar/000123.jpg``.

    Raises:
        InvalidInputError: nothing was found; the message says what was looked for and where. A shard is missing,
            damaged, cut off, compressed, or holds no images.
    """
    paths = _paths(source)
    parts: list[Collection] = [
        Shards(group) if packed else Files(group) for packed, group in itertools.groupby(paths, shards.is_shard)
    ]
    return parts[0] if len(parts) == 1 else _Joined(parts)


def _paths(source: str | Path | Sequence[str | Path]) -> list[Path]:
    if isinstance(source, Sequence) and not isinstance(source, str) and source:
        return [path for item in source for path in (_named(item, True) if _is_path(item) else find_images([item]))]
    if _is_path(source):
        return _named(source, False)
    return find_images(source)


def _is_path(item: object) -> TypeGuard[str | Path]:
    return isinstance(item, (str, os.PathLike))


def _named(item: str | Path, listed: bool) -> list[Path]:
    """Return the files that one path or pattern stands for."""
    expanded = shards.expand(str(item))
    if expanded is not None:
        return expanded
    paths = find_images([item]) if listed else find_images(item)
    if os.path.isdir(item) and any(map(shards.is_shard, paths)):
        return [path for path in paths if shards.is_shard(path) or path.suffix.lower() in shards.image_suffixes()]
    return paths
