"""The folder of a ``NeighborIndex``: ``index.json`` and a folder for each part.

A part is never changed once ``index.json`` names it: ``vectors.npy`` (normalised rows), ``boxes.npy`` where they are of
patches, ``images.jsonl`` (a line a photograph: how many rows, or what was wrong with it) and, beyond a size,
``codes.faiss``. What is added becomes a new part, and ``index.json`` is replaced at once, so that a crash loses
nothing of what was there. Parts that are not much larger than what comes after them are joined with it, so that there
are never many.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from context_pred.errors import InvalidInputError, StorageError, storing

from .patches import normalized
from .search import ANEW, FEWEST_CODED, Codes, Floats, Rows, merged, nearest, write_codes

MANIFEST, LOCK, ADDING = "index.json", ".lock", ".adding-"
FORMAT, VERSION = "context_pred.discover.index", 1
VECTORS, BOXES, IMAGES, CODES = "vectors.npy", "boxes.npy", "images.jsonl", "codes.faiss"

# What settings say of vectors that a model made; of others the kind alone.
_OF_A_MODEL = ("kind", "model", "weights", "transform", "layer", "pool", "patches", "grid")
_BLOCK = 16_384


@dataclass(frozen=True)
class Manifest:
    """What ``index.json`` says.

    Attributes:
        settings: What the vectors were made with.
        parts: {name of its folder: {file: bytes}}, in the order of the rows.
        made: How many parts were ever made; the next one's number.
    """

    settings: dict[str, Any]
    parts: dict[str, dict[str, int]]
    made: int = 0

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read it.

        Raises:
            InvalidInputError: there is none, or it is damaged or another program's.
        """
        path = folder / MANIFEST
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["format"] != FORMAT or found["version"] != VERSION:
                raise InvalidInputError(
                    f"{path} is of {found['format']!r}, version {found['version']!r}; accepted: {FORMAT!r}, {VERSION}. "
                    "Choose another folder, or remove this one if it held an index."
                )
            settings = dict(found["settings"])
            missing = [name for name in (_OF_A_MODEL if "model" in settings else ("kind",)) if name not in settings]
            if missing:
                raise KeyError(*missing)
            return cls(settings, {name: dict(files) for name, files in found["parts"].items()},
                       int(found["made"]))  # fmt: skip
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InvalidInputError(f"{folder} holds no index of neighbours: {MANIFEST} is missing.") from error
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            if isinstance(error, InvalidInputError):
                raise
            raise InvalidInputError(
                f"{path} is damaged, or no index of neighbours: {error!r}. Choose another folder, or remove this one "
                "if it held an index."
            ) from error

    def write(self, folder: Path) -> None:
        """Replace it, whole or not at all."""
        path = folder / MANIFEST
        record = {"format": FORMAT, "version": VERSION, "settings": self.settings, "made": self.made,
                  "parts": self.parts}  # fmt: skip
        with storing(path, " The index is as it was."):
            temporary = path.with_name(f".{MANIFEST}.{os.getpid()}.tmp")
            with open(temporary, "w", encoding="utf-8") as file:
                json.dump(record, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)


@dataclass(frozen=True)
class Source:
    """Rows to add.

    Attributes:
        vectors: (n, …); normalised already where ``ready``.
        boxes: float32 (n, 4) or None.
        images: A record a photograph: {"path", "size", "time", and "rows" or "error"}, in the order of the rows.
        ready: See ``vectors``.
    """

    vectors: Any
    boxes: Floats | None
    images: Sequence[dict[str, Any]]
    ready: bool = False


class Part:
    """One part, opened: its vectors and boxes memory-mapped, its codes in memory.

    Raises:
        InvalidInputError: a file is missing, of another size than ``index.json`` says, or damaged.
    """

    def __init__(self, folder: Path, files: dict[str, int]) -> None:
        self.folder, self.files = folder, files
        for name, size in files.items():
            path = folder / name
            if not path.is_file():
                raise InvalidInputError(f"The index in {folder.parent} is damaged: {path} is missing. {ANEW}")
            now = path.stat().st_size
            if now != size:
                raise InvalidInputError(
                    f"The index in {folder.parent} is damaged: {path} has {now:,} bytes, and had {size:,}. {ANEW}"
                )
        try:
            # Copy-on-write: PyTorch takes no read-only arrays, and nothing here writes.
            self.vectors: Floats = np.load(folder / VECTORS, mmap_mode="c")
            self.boxes: Floats | None = np.load(folder / BOXES, mmap_mode="c") if BOXES in files else None
            self.paths: list[str] = []
            self.errors: dict[str, str] = {}
            counts = [0]
            for record in self.records():
                if "error" in record:
                    self.errors[record["path"]] = record["error"]
                else:
                    self.paths.append(record["path"])
                    counts.append(record["rows"])
            self.starts: Rows = np.cumsum(counts, dtype=np.int64)
            fits = self.vectors.ndim == 2 and self.starts[-1] == len(self.vectors)
            fits &= self.boxes is None or self.boxes.shape == (len(self.vectors), 4)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise InvalidInputError(
                f"The index in {folder.parent} is damaged: {folder.name}: {error!r}. {ANEW}"
            ) from error
        if not fits:
            raise InvalidInputError(
                f"The index in {folder.parent} is damaged: the files of {folder.name} are not of one another. {ANEW}"
            )

    def __len__(self) -> int:
        """Return how many rows."""
        return len(self.vectors)

    @cached_property
    def codes(self) -> Codes | None:
        """The inverted file, read at the first need; None where all rows are compared."""
        return Codes(self.folder / CODES, len(self)) if CODES in self.files else None

    def records(self) -> Iterator[dict[str, Any]]:
        """Read the record of each photograph, as of ``Source``."""
        with open(self.folder / IMAGES, encoding="utf-8") as file:
            yield from map(json.loads, file)

    @property
    def source(self) -> Source:
        """The part as rows to add."""
        return Source(self.vectors, self.boxes, list(self.records()), ready=True)

    def search(self, queries: Floats, k: int, probes: int) -> tuple[Floats, Rows]:
        """Find the k best rows of this part; all are compared where there are no codes, or ``probes`` is 0."""
        if self.codes is None or not probes:
            return nearest(queries, self.vectors, k)
        return self.codes.search(queries, self.vectors, k, probes)


def open_parts(folder: Path, manifest: Manifest) -> list[Part]:
    """Open all parts; raises InvalidInputError where one is damaged."""
    return [Part(folder / name, files) for name, files in manifest.parts.items()]


def search_parts(parts: Sequence[Part], queries: Floats, k: int, probes: int) -> tuple[Floats, Rows]:
    """Find the k best rows of all parts, numbered through."""
    found, first = [], 0
    for part in parts:
        scores, rows = part.search(queries, k, probes)
        found.append((scores, np.where(rows < 0, -1, rows + first)))
        first += len(part)
    return merged(found, k)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder against other processes that would add to it.

    Raises:
        StorageError: another process adds to it, or it cannot be written to.
    """
    from filelock import FileLock, Timeout

    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        held = FileLock(folder / LOCK)
        try:
            held.acquire(timeout=0)
        except Timeout as error:
            raise StorageError(f"Another process is adding to the index in {folder}.") from error
    try:
        yield
    finally:
        held.release()


def begin(folder: Path, settings: dict[str, Any]) -> Manifest:
    """Return a new index' manifest for a folder that is missing or empty.

    Raises:
        InvalidInputError: the folder is a file, has an index already, or other files.
    """
    if folder.exists() and not folder.is_dir():
        raise InvalidInputError(f"{folder} is a file; accepted: a folder for the index.")
    if (folder / MANIFEST).exists():
        raise InvalidInputError(
            f"{folder} has an index already, or {MANIFEST} of another program; choose another folder."
        )
    others = [path for path in folder.iterdir() if not _own(path)] if folder.is_dir() else []
    if others:
        raise InvalidInputError(
            f"{folder} holds no index of neighbours but other files ({others[0].name}); accepted: an index, an empty "
            "folder, or none."
        )
    return Manifest(settings, {})


def _own(path: Path) -> bool:
    return path.name == LOCK or path.name.startswith((ADDING, "part-", f".{MANIFEST}."))


def commit(folder: Path, manifest: Manifest, parts: Sequence[Part], new: Source, coded_from: int | None) -> Manifest:
    """Add rows as a part, joined with the last parts where these are not much larger, and name it in ``index.json``.

    Args:
        folder: The index' folder, held by ``locked``.
        manifest: What it has.
        parts: The same, opened; fewer: those left out are dropped.
        new: What to add.
        coded_from: A part of so many rows gets an inverted file; None: none does.

    Returns:
        The new manifest. What it no longer names is removed.

    Raises:
        StorageError: the disk is full or cannot be written to. The index is as it was.
    """
    kept = list(parts)
    joined = [new]
    rows = len(new.vectors)
    while kept and len(kept[-1]) < 2 * rows:
        joined.insert(0, kept[-1].source)
        rows += len(kept.pop())
    name = f"part-{manifest.made:06d}"
    remove_leftovers(folder, _there(folder) or manifest)
    target = folder / name
    with storing(target, " The index is as it was."):
        target.mkdir(parents=True)
        _write_part(target, joined, rows)
        if coded_from is not None and rows >= max(coded_from, FEWEST_CODED):
            write_codes(np.load(target / VECTORS, mmap_mode="r"), target / CODES)
        for path in target.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    files = {path.name: path.stat().st_size for path in sorted(target.iterdir())}
    named = {part.folder.name: part.files for part in kept} | {name: files}
    after = replace(manifest, parts=named, made=manifest.made + 1)
    after.write(folder)
    remove_leftovers(folder, after)
    return after


def _there(folder: Path) -> Manifest | None:
    """What the folder's ``index.json`` names; it stands until another is written, also where that replaces it."""
    return Manifest.read(folder) if (folder / MANIFEST).exists() else None


def _write_part(target: Path, sources: Sequence[Source], rows: int) -> None:
    width = int(np.prod(sources[-1].vectors.shape[1:], dtype=np.int64))
    vectors = np.lib.format.open_memmap(target / VECTORS, "w+", np.float32, (rows, width))
    at = 0
    for source in sources:
        for block in _blocks(source.vectors):
            vectors[at : at + len(block)] = block if source.ready else _finite(normalized(block))
            at += len(block)
    vectors.flush()
    if sources[-1].boxes is not None:
        boxes = [source.boxes for source in sources if source.boxes is not None]
        np.save(target / BOXES, np.concatenate(boxes).astype(np.float32))
    with open(target / IMAGES, "w", encoding="utf-8") as file:
        for source in sources:
            file.writelines(json.dumps(record) + "\n" for record in source.images)


def _finite(block: Floats) -> Floats:
    if not np.isfinite(block).all():
        raise InvalidInputError("Vectors with values that are no finite numbers cannot be indexed.")
    return block


def _blocks(vectors: Any) -> Iterable[Any]:
    return (vectors[first : first + _BLOCK] for first in range(0, len(vectors), _BLOCK))


def remove_leftovers(folder: Path, manifest: Manifest) -> None:
    """Remove the parts that ``index.json`` does not name: what a crash left, or what has been joined."""
    for path in folder.glob("part-*"):
        if path.name not in manifest.parts:
            shutil.rmtree(path, ignore_errors=True)
