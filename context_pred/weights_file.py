"""Weights on disk: safetensors whose bytes are checked before they are parsed, and written the same every time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from .errors import DigestError, NotCachedError, StorageError, WeightsError

_CHUNK = 1 << 22

# The names that the safetensors format gives to the types weights come in.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_weights(path: str | Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Read a safetensors file; the bytes that are hashed are the bytes that are parsed.

    The file is read once, into memory that the tensors then share: nothing is copied, and a later change of the file
    changes nothing.

    Args:
        path: The file.
        sha256: The digest it must have, 64 hex digits (or a prefix of them); None checks nothing.

    Returns:
        Tensors on the CPU, by name; each has a storage of exactly its own size, and may be written to.

    Raises:
        NotCachedError: no such file.
        DigestError: the bytes have another digest.
        WeightsError: the file is no safetensors file.
    """
    file = Path(path)
    try:
        data, found = _read_hashed(file)
    except FileNotFoundError as error:
        raise NotCachedError(f"No weights at {file}.") from error
    except OSError as error:
        raise WeightsError(f"{file} cannot be read: {error}") from error
    if sha256 is not None and not found.startswith(sha256.lower()):
        raise DigestError(
            f"{file} has SHA-256 {found}, but {sha256} was expected: the file is damaged or another one. "
            f"Delete it and load again."
        )
    try:
        return _parse(data)
    except WeightsError as error:
        raise WeightsError(f"{file} is not a safetensors file ({error}). {_kind(bytes(data[:64]))}".rstrip()) from error


def _read_hashed(file: Path) -> tuple[memoryview, str]:
    """Return the file's bytes and their SHA-256; a second thread hashes what has been read while more is read."""
    with file.open("rb", buffering=0) as handle, ThreadPoolExecutor(1) as hasher:
        # NumPy asks for large pages, which are had three times as fast as a bytearray's.
        data = np.empty(os.fstat(handle.fileno()).st_size, np.uint8).data
        done, digest = 0, hashlib.sha256()
        hashed: list[Future[None]] = []
        while done < len(data):
            count = handle.readinto(data[done : done + _CHUNK])
            if not count:
                raise OSError("it became shorter while it was read")
            hashed.append(hasher.submit(digest.update, data[done : done + count]))
            done += count
        for part in hashed:
            part.result()
    return data, digest.hexdigest()


def _parse(data: memoryview) -> dict[str, Tensor]:
    """Cut tensors out of the bytes of a safetensors file, as its specification lays them out, checking every bound."""
    start = 8 + int.from_bytes(data[:8], "little")
    if len(data) < 8 or start > len(data):
        raise WeightsError("it is empty" if not data else "its header goes beyond its end")
    try:
        header = json.loads(bytes(data[8:start]))
    except (ValueError, RecursionError) as error:
        raise WeightsError("its header is no JSON") from error
    if not isinstance(header, dict):
        raise WeightsError("its header is no object")
    header.pop("__metadata__", None)
    tensors: dict[str, Tensor] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        dtype, shape, (begin, end) = _entry(name, entry)
        if not 0 <= begin <= end <= len(data) - start or end - begin != math.prod(shape) * dtype.itemsize:
            raise WeightsError(f"the bytes of {name[:100]!r} are not where, or as many as, its header says")
        spans.append((begin, end))
        tensors[name] = _tensor(data, start + begin, start + end, dtype).view(shape)
    spans.sort()
    ends = [0, *(end for _, end in spans)]
    if [begin for begin, _ in spans] != ends[:-1] or ends[-1] != len(data) - start:
        raise WeightsError("its tensors overlap or leave gaps")
    return tensors


def _entry(name: str, entry: object) -> tuple[torch.dtype, list[int], tuple[int, int]]:
    """Read one tensor's entry of the header: dtype, shape, first byte and last."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            if dtype in _DTYPES and all(type(size) is int and size >= 0 for size in shape):
                return _DTYPES[dtype], shape, (begin, end)
    raise WeightsError(f"its header does not describe {name[:100]!r} in a way this library reads")


def _tensor(data: memoryview, begin: int, end: int, dtype: torch.dtype) -> Tensor:
    if begin == end:
        return torch.empty(0, dtype=dtype)
    if begin % dtype.itemsize:
        data, begin, end = memoryview(bytearray(data[begin:end])), 0, end - begin
    return torch.frombuffer(data, dtype=dtype, count=(end - begin) // dtype.itemsize, offset=begin)


def _kind(head: bytes) -> str:
    """Say what a file that is no safetensors file seems to be, from its first bytes."""
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return "It looks like a PyTorch checkpoint: `context-pred zoo convert` makes safetensors of it."
    if head.startswith(b"version https://git-lfs"):
        return "It is a Git LFS pointer: fetch the file itself with `git lfs pull`."
    return ""


def write_weights(state: Mapping[str, Tensor], path: str | Path) -> str:
    """Write tensors to a safetensors file, whole or not at all; the same tensors give the same bytes.

    Args:
        state: Tensors by name, on any device.
        path: The file; its folder is made where it is missing. An existing file is replaced.

    Returns:
        The file's SHA-256, 64 hex digits.

    Raises:
        StorageError: the folder cannot be written to, or the disk is full; an existing file stands.
    """
    tensors = {name: state[name].detach().cpu().contiguous() for name in sorted(state)}
    data = safetensors.torch.save(tensors)
    write_bytes(data, path)
    return hashlib.sha256(data).hexdigest()


def write_bytes(data: bytes, path: str | Path) -> None:
    """Write a file, whole or not at all: to a temporary name beside it, then renamed.

    Raises:
        StorageError: the folder cannot be written to, or the disk is full; an existing file stands.
    """
    file = Path(path)
    temporary = None
    with writing(file):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", delete=False) as handle:
                temporary = handle.name
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, file)
        except OSError:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into a StorageError that says what to do."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"Cannot write {path}: {error.strerror or error}. Free some space or choose another folder."
        ) from error
