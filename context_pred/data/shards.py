"""Images in tar shards, as webdataset writes them: indexed once, then read where they lie, without unpacking.

A shard is a plain tar file; its samples are files of one name and several endings (``000123.jpg``, ``000123.json``).
Any tar file of images will do. Compressed ones cannot be read in a random order.
"""

from __future__ import annotations

import itertools
import os
import re
import tarfile
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from context_pred.errors import InvalidInputError

SUFFIX = ".tar"

_COMPRESSED_NAME = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_BLOCK = 512
_NO_PICTURES = frozenset({"BUFR", "GRIB", "HDF5", "MPEG"})  # Pillow knows their names, not their contents
_HEIF = frozenset({".heic", ".heif", ".hif"})
_OPEN_AT_ONCE = 128


def is_shard(path: str | Path) -> bool:
    """Whether a path is a tar file's by its name, a compressed one included, which ``members`` refuses."""
    return str(path).lower().endswith(SUFFIX) or _COMPRESSED_NAME.search(str(path)) is not None


@lru_cache(1)
def image_suffixes() -> frozenset[str]:
    """Return the endings of image files that Pillow reads, lower case, with HEIC's."""
    known = Image.registered_extensions().items()
    return _HEIF | {ending for ending, kind in known if kind in Image.OPEN and kind not in _NO_PICTURES}


def expand(pattern: str) -> list[Path] | None:
    """Expand webdataset's ranges in braces, ``data-{000..012}.tar``; None where there are none.

    Numbers are padded with zeros to the width of the first; several ranges make every combination.

    Raises:
        InvalidInputError: the pattern is not one of tar files, a range runs backwards, or shards are missing.
    """
    ranges = _RANGE.findall(pattern)
    if not ranges or os.path.exists(pattern):
        return None
    if not is_shard(pattern):
        raise InvalidInputError(f"{pattern!r}: ranges in braces are for shards, whose names end in .tar.")
    for first, last in ranges:
        if int(first) > int(last):
            raise InvalidInputError(f"{pattern!r}: the range {{{first}..{last}}} runs backwards.")
    numbers = [[f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)] for first, last in ranges]
    texts = _RANGE.split(pattern)[::3]
    paths = [
        Path("".join(itertools.chain(*itertools.zip_longest(texts, chosen, fillvalue=""))))
        for chosen in itertools.product(*numbers)
    ]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InvalidInputError(
            f"{pattern!r} stands for {len(paths)} shards, and {len(missing)} of them are not there: "
            f"{', '.join(missing[:3])}{more}."
        )
    return paths


class _Handle:
    """A file open for reading at any place, closed when nobody reads it any more."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115

    def read(self, offset: int, size: int) -> bytes:
        # No common position that threads, or processes forked since, would move for one another.
        if not hasattr(os, "pread"):
            with open(self._file.name, "rb") as file:
                file.seek(offset)
                return file.read(size)
        parts = []
        while size > 0 and (part := os.pread(self._file.fileno(), size, offset)):
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def __del__(self) -> None:
        file = getattr(self, "_file", None)
        if file is not None:
            file.close()


class Handles:
    """Shards open at the moment; sent to another process, it opens its own."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths
        self._open: OrderedDict[int, _Handle] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, shard: int, offset: int, size: int) -> bytes:
        with self._lock:
            handle = self._open.get(shard)
            if handle is None:
                handle = self._open[shard] = _Handle(self._paths[shard])
                if len(self._open) > _OPEN_AT_ONCE:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(shard)
        return handle.read(offset, size)

    def __getstate__(self) -> dict[str, Any]:
        return {"_paths": self._paths}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_paths"])  # type: ignore[misc]


def members(path: str) -> list[tuple[str, int, int]]:
    """List the images of a shard: (name, offset of the bytes, size).

    Images are known by their ending; all else that a sample holds (``.json``, ``.txt``, ``.cls`` …), links and hidden
    files (``._x``) are passed over. Where ``a.jpg`` is there, ``a.mask.png`` belongs to it and is passed over too.

    Raises:
        InvalidInputError: the shard is missing, damaged, cut off, compressed, or holds no images.
    """
    found, endings = [], Counter[str]()
    for member in _walk(path):
        name = member.name.removeprefix("./")
        parts = PurePosixPath(name).parts
        if not member.isreg() or member.issparse() or any(part.startswith(".") for part in parts):
            continue
        ending = os.path.splitext(name)[1].lower()
        endings[ending or "no ending"] += 1
        if ending in image_suffixes():
            found.append((name, member.offset_data, member.size))
    if not found:
        held = ", ".join(f"{ending} ({number:,})" for ending, number in endings.most_common(5)) or "no files at all"
        raise InvalidInputError(f"No images in the shard {path!r}: it holds {held}. Images are known by their ending.")
    plain = {_key(name) for name, *_ in found if _key(name) == os.path.splitext(name)[0]}
    return [place for place in found if _key(place[0]) == os.path.splitext(place[0])[0] or _key(place[0]) not in plain]


def _key(name: str) -> str:
    """Return what the files of a webdataset sample share: all before the first dot of the last part."""
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.split('.', 1)[0]}" if folder else base.split(".", 1)[0]


def _walk(path: str) -> Iterator[tarfile.TarInfo]:
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            kind = next((kind for magic, kind in _COMPRESSED.items() if start.startswith(magic)), None)
            if kind is not None:
                raise InvalidInputError(
                    f"The shard {path!r} is compressed ({kind}), so that its images cannot be read in a random order; "
                    f"unpack it to a plain .tar (image files hardly shrink)."
                )
            length = file.seek(0, os.SEEK_END)
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    yield member
                    tar.members.clear()  # type: ignore[attr-defined]  # of millions it would keep every one
                file.seek(tar.offset)
                rest = file.read(_BLOCK)
                # tarfile takes a header that is cut off or damaged for the end.
                if tar.offset < length and (len(rest) < _BLOCK or any(rest)):
                    raise tarfile.ReadError(f"no header of a file after {tar.offset:,} of {length:,} bytes")
    except tarfile.ReadError as error:
        raise InvalidInputError(f"The shard {path!r} is damaged, cut off, or no tar file: {error}.") from error
    except OSError as error:
        raise InvalidInputError(f"The shard {path!r} cannot be read: {error.strerror or error}.") from error
