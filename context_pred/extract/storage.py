"""Features on disk: parts while a run goes on, then one safetensors file or numbered shards, and the index.

Beside ``photos.safetensors`` a run keeps the folder ``photos.parts``: ``settings.json`` and one safetensors file a
batch. Every file appears under its name by a rename, so it is whole or not there, and a run that was stopped, however
hard, goes on from the parts it finds. At the end the parts are copied, row by row and never all in memory, into the
output; ``photos.index.jsonl`` says what became of every image.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from context_pred.errors import InvalidInputError, NotCachedError, storing

SUFFIX = ".safetensors"
SETTINGS = "settings.json"

_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_CHUNK = 8 << 20


@dataclass(frozen=True)
class Stored:
    """One tensor of a safetensors file: its dtype's name, its shape, and where its bytes begin in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of the first axis."""
        return math.prod(self.shape[1:]) * _DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Names:
    """The files of one output: ``out`` with its ending, and what lies beside it."""

    out: Path

    @classmethod
    def of(cls, out: str | Path) -> Names:
        """Take a path with or without ``.safetensors``; the ending is added where it is missing."""
        path = Path(out)
        return cls(path if path.suffix == SUFFIX else path.with_name(path.name + SUFFIX))

    @property
    def index(self) -> Path:
        """The index: a line an image."""
        return self.out.with_name(f"{self.out.stem}.index.jsonl")

    @property
    def parts(self) -> Path:
        """The folder of a run that is not finished."""
        return self.out.with_name(f"{self.out.stem}.parts")

    def part(self, number: int) -> Path:
        """The file of one batch."""
        return self.parts / f"part-{number:08d}{SUFFIX}"

    def shard(self, number: int, count: int) -> Path:
        """The file of one of several shards, counted from 1."""
        return self.out.with_name(f"{self.out.stem}-{number:05d}-of-{count:05d}{SUFFIX}")

    def shards(self) -> list[Path]:
        """The shards that are there, in order."""
        if not self.out.parent.is_dir():
            return []
        pattern = re.compile(rf"{re.escape(self.out.stem)}-\d{{5,}}-of-\d{{5,}}{re.escape(SUFFIX)}")
        return sorted(path for path in self.out.parent.iterdir() if pattern.fullmatch(path.name))

    def files(self) -> list[Path]:
        """The safetensors files that are there: the whole one, or the shards; none before a run has finished."""
        return [self.out] if self.out.is_file() else self.shards()

    def own(self, path: Path) -> bool:
        """Tell whether a file is this output's, so that it is not taken for an image of the same folder."""
        if not str(path).endswith((SUFFIX, ".jsonl", SETTINGS)):
            return False
        folder, here = os.path.abspath(path.parent), os.path.abspath(self.out.parent)
        if folder == os.path.join(here, self.parts.name):
            return True
        return folder == here and (path.name in (self.out.name, self.index.name) or path in self.shards())


def read_header(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """Read the tensors' places and the metadata of a safetensors file of ours.

    Raises:
        InvalidInputError: it is no safetensors file, is cut off, or holds other dtypes than extraction writes.
    """
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = os.fstat(file.fileno()).st_size
            if length > size:
                raise ValueError("the header is longer than the file")
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        stored = {
            name: Stored(entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
            for name, entry in header.items()
        }
        ends = [t.begin + t.shape[0] * t.row_bytes for t in stored.values()]
    except FileNotFoundError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OSError) as error:
        raise InvalidInputError(f"{path} is not a file of features: {error!r}.") from error
    if max(ends, default=8 + length) != size:
        raise InvalidInputError(f"{path} is cut off: {size} bytes, and its header promises {max(ends, default=0)}.")
    return stored, metadata


def header_bytes(tensors: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str]) -> bytes:
    """Make the head of a safetensors file whose tensors, {name: (dtype, shape)}, follow in this order."""
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        end = offset + math.prod(shape) * _DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    return len(text).to_bytes(8, "little") + text


def write_part(path: Path, arrays: dict[str, NDArray[Any]], records: list[dict[str, Any]]) -> None:
    """Write the rows of one batch, and the record of each of its images."""
    tensors = {name: (_NAMES[array.dtype], array.shape) for name, array in arrays.items()}
    with storing(path, " The batches before it are kept: make room, and the same command goes on from there."):
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(header_bytes(tensors, {"records": json.dumps(records)}))
                for array in arrays.values():
                    file.write(np.ascontiguousarray(array).data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def part_is_there(path: Path) -> bool:
    """Tell whether a batch is done; a file that a power failure cut off is not."""
    try:
        read_header(path)
    except (InvalidInputError, FileNotFoundError):
        return False
    return True


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read the records of a part."""
    records: list[dict[str, Any]] = json.loads(read_header(path)[1]["records"])
    return records


def write_settings(names: Names, settings: dict[str, Any]) -> None:
    """Begin a run: make the folder of parts and note its settings."""
    with storing(names.parts):
        names.parts.mkdir(parents=True, exist_ok=True)
        temporary = names.parts / f"{SETTINGS}.{os.getpid()}.tmp"
        temporary.write_text(json.dumps(settings, indent=1), encoding="utf-8")
        os.replace(temporary, names.parts / SETTINGS)


def read_settings(names: Names) -> dict[str, Any] | None:
    """Return the settings of an unfinished run, or None."""
    try:
        settings: dict[str, Any] = json.loads((names.parts / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return settings


def finished(names: Names) -> dict[str, str] | None:
    """Return the metadata of a finished output, or None where it is incomplete or another program's."""
    try:
        load(names.out)
        metadata = read_header(names.files()[0])[1]
    except (InvalidInputError, NotCachedError):
        return None
    return metadata if "context_pred" in metadata else None


def remove_parts(names: Names) -> None:
    """Remove the files of an unfinished run, and the folder if nothing else lies in it."""
    if not names.parts.is_dir():
        return
    with storing(names.parts):
        # The settings go last: while they are there, what is left is known for what it is.
        for path in sorted(names.parts.iterdir(), key=lambda path: path.name == SETTINGS):
            if path.name.startswith(("part-", "whole-", SETTINGS)):
                path.unlink()
        if not any(names.parts.iterdir()):
            names.parts.rmdir()


def assemble(
    names: Names,
    count: int,
    lines: Iterable[dict[str, Any]],
    layers: Sequence[str],
    shard_rows: int | None,
    metadata: dict[str, str],
) -> None:
    """Copy the ``count`` parts into the output and its index, and remove the parts.

    Args:
        names: The files.
        count: How many parts there are.
        lines: The lines of the index.
        layers: The tensors, in the order in which the file has them.
        shard_rows: Rows a shard, or None for one file.
        metadata: Kept in the head of each file.
    """
    parts = [(names.part(k), read_header(names.part(k))[0]) for k in range(count)]
    parts = [(path, stored) for path, stored in parts if stored]
    starts = np.cumsum([0] + [stored[layers[0]].shape[0] for _, stored in parts]).tolist()
    step = shard_rows or max(starts[-1], 1)
    spans = [(first, min(first + step, starts[-1])) for first in range(0, starts[-1], step)]
    whole = [names.parts / f"whole-{k:05d}.tmp" for k in range(len(spans))]
    with storing(names.out, " What was computed is kept: make room, and the same command finishes."):
        try:
            for path, span in zip(whole, spans, strict=True):
                _write_rows(path, parts, starts, span, layers, metadata)
            index = names.parts / "whole-index.tmp"
            with open(index, "w", encoding="utf-8") as file:
                file.writelines(_json_line(line) for line in lines)
        except OSError:
            for path in whole:
                path.unlink(missing_ok=True)
            raise
        for path in names.files():
            path.unlink()
        os.replace(index, names.index)
        for k, path in enumerate(whole):
            os.replace(path, names.out if shard_rows is None else names.shard(k + 1, len(spans)))
    remove_parts(names)


def _json_line(line: dict[str, Any]) -> str:
    text = json.dumps(line, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a file name that is not UTF-8: Python's escapes keep it
        text = json.dumps(line)
    return text + "\n"


def _write_rows(
    path: Path,
    parts: list[tuple[Path, dict[str, Stored]]],
    starts: list[int],
    span: tuple[int, int],
    layers: Sequence[str],
    metadata: dict[str, str],
) -> None:
    """Write the rows ``span`` of all parts, of which part k holds the rows from ``starts[k]`` on."""
    first, last = span
    shapes = {name: (parts[0][1][name].dtype, (last - first, *parts[0][1][name].shape[1:])) for name in layers}
    inside = [k for k in range(len(parts)) if starts[k] < last and starts[k + 1] > first]
    with open(path, "wb") as out:
        out.write(header_bytes(shapes, metadata))
        for name in layers:
            for k in inside:
                source, stored = parts[k][0], parts[k][1][name]
                skip = max(first - starts[k], 0)
                rows = min(last, starts[k + 1]) - starts[k] - skip
                with open(source, "rb") as file:
                    file.seek(stored.begin + skip * stored.row_bytes)
                    _copy(file, out, rows * stored.row_bytes)
        out.flush()
        os.fsync(out.fileno())


def _copy(source: BinaryIO, target: BinaryIO, count: int) -> None:
    while count:
        data = source.read(min(count, _CHUNK))
        if not data:
            raise OSError(f"{source.name} is shorter than its header says")
        target.write(data)
        count -= len(data)


class Rows:
    """The rows of one layer over several shards, memory-mapped, with the indexing that readers of features need.

    ``rows[5]``, ``rows[10:20]``, ``rows[[3, 1, 4]]`` and ``rows[mask]`` read just these rows, as NumPy arrays;
    ``np.asarray(rows)`` reads all.

    Args:
        shards: The rows of each file, (n, …) each, in order.
    """

    def __init__(self, shards: Sequence[NDArray[Any]]) -> None:
        self.shards = tuple(shards)
        self.starts = np.cumsum([0] + [len(shard) for shard in shards])
        self.shape: tuple[int, ...] = (int(self.starts[-1]), *shards[0].shape[1:])
        self.dtype = shards[0].dtype
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        for shard in self.shards:
            yield from shard

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """Read rows by a number, a slice, a list or array of numbers, or a mask; further axes after a comma."""
        rows, *rest = key if isinstance(key, tuple) else (key,)
        wanted = np.arange(len(self))[rows]  # NumPy's own rules for what an index may be
        found: NDArray[Any] = self._rows(np.atleast_1d(wanted))
        found = found[0] if wanted.ndim == 0 else found.reshape(*wanted.shape, *self.shape[1:])
        return found[(*[slice(None)] * wanted.ndim, *rest)] if rest else found

    def _rows(self, wanted: NDArray[np.int64]) -> NDArray[Any]:
        flat = wanted.ravel()
        found = np.empty((len(flat), *self.shape[1:]), self.dtype)
        of = np.searchsorted(self.starts, flat, side="right") - 1
        for k in np.unique(of):
            here = of == k
            found[here] = self.shards[k][flat[here] - self.starts[k]]
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Read all rows (NumPy calls this)."""
        if copy is False:
            raise ValueError("Rows of several files cannot become one array without a copy.")
        return np.concatenate(self.shards).astype(dtype or self.dtype, copy=False)

    def __repr__(self) -> str:
        return f"Rows(shape={self.shape}, dtype={self.dtype}, {len(self.shards)} files)"


def load(out: str | Path) -> tuple[list[str], dict[str, NDArray[Any] | Rows]]:
    """Open what a run wrote, without reading it.

    Args:
        out: As given to ``run``, with or without ``.safetensors``; one file or shards.

    Returns:
        The paths of the images that have a row, in the order of the rows, and {layer: array}: a read-only, memory-
        mapped NumPy array (rows, …), float32 or float16; of several shards a ``Rows``, which is indexed alike.

    Raises:
        NotCachedError: no such file; or the run that was to write it has not finished.
        InvalidInputError: the files are no features, are cut off, or do not belong together.
    """
    names = Names.of(out)
    files = names.files()
    if not files or not names.index.is_file():
        missing = names.index if files else names.out
        hint = " Its run has not finished: the same command goes on." if read_settings(names) is not None else ""
        raise NotCachedError(f"No features: {missing} is not there.{hint}")
    if files[0] != names.out and files != [names.shard(k + 1, len(files)) for k in range(len(files))]:
        raise InvalidInputError(f"Shards are missing, or of several runs: {', '.join(path.name for path in files)}.")
    paths = [line["path"] for line in read_index(names) if "row" in line]
    arrays: dict[str, list[NDArray[Any]]] = {}
    for path in files:
        for layer, stored in read_header(path)[0].items():
            arrays.setdefault(layer, []).append(_mapped(path, stored))
    found = {layer: shards[0] if len(shards) == 1 else Rows(shards) for layer, shards in arrays.items()}
    for layer, array in found.items():
        if len(array) != len(paths):
            raise InvalidInputError(f"{layer} has {len(array)} rows, and the index {names.index} names {len(paths)}.")
    return paths, found


def read_index(names: Names) -> Iterator[dict[str, Any]]:
    """Read the index, line by line."""
    with open(names.index, encoding="utf-8") as file:
        for line in file:
            try:
                record = json.loads(line)
                yield {"path": record["path"], **record}
            except (ValueError, KeyError, TypeError) as error:
                raise InvalidInputError(f"{names.index} is not the index of features: {line[:80]!r}.") from error


def _mapped(path: Path, stored: Stored) -> NDArray[Any]:
    if stored.dtype not in _DTYPES:
        raise InvalidInputError(f"{path} is not a file of features: it holds {stored.dtype}.")
    return np.memmap(path, _DTYPES[stored.dtype], "r", stored.begin, stored.shape)
