"""Weights on disk: safetensors files whose bytes are checked before they are parsed, and written the same every time."""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from .errors import DigestError, NotCachedError, StorageError, WeightsError


def read_weights(path: str | Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Read a safetensors file; the bytes that are hashed are the bytes that are parsed.

    Args:
        path: The file.
        sha256: The digest it must have, 64 hex digits (or a prefix of them); None checks nothing.

    Returns:
        Tensors on the CPU, by name, in memory of their own.

    Raises:
        NotCachedError: no such file.
        DigestError: the bytes have another digest.
        WeightsError: the file is no safetensors file.
    """
    file = Path(path)
    try:
        with file.open("rb") as handle:
            if os.fstat(handle.fileno()).st_size == 0:
                raise WeightsError(f"{file} is empty; a safetensors file was expected.")
            with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as view:
                check_digest(file, view, sha256)
                return safetensors.torch.load(bytes(view))
    except FileNotFoundError as error:
        raise NotCachedError(f"No weights at {file}.") from error
    except SafetensorError as error:
        raise WeightsError(f"{file} is not a safetensors file ({error}). {_kind(file)}".rstrip()) from error
    except OSError as error:
        if isinstance(error, (WeightsError, NotCachedError)):
            raise
        raise WeightsError(f"{file} cannot be read: {error}") from error


def check_digest(file: Path, data: bytes | mmap.mmap, sha256: str | None) -> None:
    """Raise DigestError unless ``data`` has the digest (a prefix of it will do)."""
    if sha256 is None:
        return
    found = hashlib.sha256(data).hexdigest()
    if not found.startswith(sha256.lower()):
        raise DigestError(
            f"{file} has SHA-256 {found}, but {sha256} was expected: the file is damaged or another one. "
            f"Delete it and load again."
        )


def _kind(file: Path) -> str:
    """Say what a file that is no safetensors file seems to be."""
    with file.open("rb") as handle:
        head = handle.read(64)
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
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", delete=False) as handle:
            temporary = handle.name
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, file)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise StorageError(f"Cannot write {file}: {error.strerror or error}. Free some space or choose another folder.") from error
