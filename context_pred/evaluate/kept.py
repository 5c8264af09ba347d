"""Scores kept on disk one by one, so that an interrupted run goes on."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from context_pred.errors import InvalidInputError, storing

_CHUNK = 64 << 20


def digest(*parts: Any) -> str:
    """Digest of arrays (dtype, shape, bytes) and of anything else by its ``repr``: 32 hexadecimal digits."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            _add(found, part)
        else:
            found.update(repr(part).encode())
        found.update(b"\0")
    return found.hexdigest()


def _add(found: hashlib.blake2b, array: NDArray[Any]) -> None:
    found.update(f"{array.dtype.str}{array.shape}".encode())
    rows = max(1, _CHUNK // max(1, array.nbytes // max(1, len(array))))
    for start in range(0, len(array), rows):
        found.update(np.ascontiguousarray(array[start : start + rows]).view(np.uint8).data)


def arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read every array of an .npz file.

    Raises:
        InvalidInputError: it is damaged.
    """
    try:
        with np.load(path) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidInputError(
            f"{path} is damaged ({error}). Remove it; the same command then computes it again."
        ) from error


def whole(path: Path) -> bool:
    """Tell whether an .npz file is there and can be read."""
    try:
        return path.is_file() and bool(arrays(path))
    except InvalidInputError:
        return False


class Kept:
    """A file of JSON lines ``{"of": digest, "what": […], "is": value}``, each appended whole as soon as it is known.

    What another run of other features or settings left in the file stays there unseen. A line that a killed run left
    half written is passed over.

    Args:
        path: The file; made with its folder at the first entry.
        of: What the entries belong to, from ``digest``.

    Raises:
        StorageError: the file cannot be written to.
    """

    def __init__(self, path: Path, of: str) -> None:
        self.path, self.of = path, of
        self._found: dict[tuple[Any, ...], Any] = {}
        for line in path.read_bytes().splitlines() if path.is_file() else ():
            try:
                entry = json.loads(line)
                if entry["of"] == of:
                    self._found[tuple(entry["what"])] = entry["is"]
            except (ValueError, KeyError, TypeError):
                continue

    def __contains__(self, what: tuple[Any, ...]) -> bool:
        return what in self._found

    def __getitem__(self, what: tuple[Any, ...]) -> Any:
        return self._found[what]

    def keep(self, what: tuple[Any, ...], value: Any) -> None:
        """Add an entry; ``what`` and ``value`` are JSON values."""
        self._found[what] = value
        line = json.dumps({"of": self.of, "what": what, "is": value}).encode() + b"\n"
        with storing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab+", buffering=0) as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":
                        line = b"\n" + line
                file.write(line)
