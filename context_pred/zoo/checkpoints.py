"""Checkpoint files, read without running anything that is in them: those of others, and of our own runs.

``read_checkpoint`` takes torch's zip format, its older stream (``_use_new_zipfile_serialization=False``; what
OpenMMLab publishes) and safetensors. Layouts, sizes and offsets are checked against the bytes that are really there
before any memory is taken, so that a hostile file costs no more than its own length.
"""

from __future__ import annotations

import io
import math
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import ContextPredError, InvalidInputError, NotCachedError, StorageError, WeightsError
from ._pickles import Opaque, Reader, StorageRef, TensorRef

# Torch's stream begins with two pickled integers (torch/serialization.py, MAGIC_NUMBER and PROTOCOL_VERSION).
MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001

# Where training codes put the state dict, most telling first: OpenMMLab and Lightning, torchvision, tutorials.
STATE_DICT_NAMES = ("state_dict", "model", "model_state_dict")

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
}

# Storages that are no weights of ours but may lie between them: bytes an element.
OTHER_STORAGES = {
    "BoolStorage": 1,
    "UntypedStorage": 1,
    "QInt8Storage": 1,
    "QUInt8Storage": 1,
    "QInt32Storage": 4,
    "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
}


@dataclass(frozen=True)
class RunState:
    """What a checkpoint of this library's own pretraining says beside its weights: the recipe (TOML) and the step."""

    recipe: str
    step: int


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        form: "torch zip", "torch stream" or "safetensors".
        tensors: the state dict under its own keys, on the CPU. Tensors may share memory, as they did in the file.
        strays: entries of the state dict that are no tensors, as {key: what they are}.
        meta: the plain values (numbers, texts) of the file's ``meta``, such as ``mmselfsup_version``.
        entries: the names at the top of the file; empty where the state dict is all there is.
        run: of a checkpoint in ``RUN/checkpoints`` of this library; None for those of others.
    """

    form: str
    tensors: dict[str, Tensor]
    strays: dict[str, str]
    meta: dict[str, str | int | float]
    entries: tuple[str, ...]
    run: RunState | None = None


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint file without running any code that it may hold.

    Args:
        path: A file of torch (zip, or the older stream) or safetensors.

    Raises:
        NotCachedError: there is no such file.
        InvalidInputError: a folder.
        StorageError: the file cannot be read.
        WeightsError: damaged, of another kind, without a state dict, or a pickle that would run code.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            form = _form(file)
            return _READERS[form](file, path)
    except FileNotFoundError as error:
        raise NotCachedError(f"No file at {path}.") from error
    except IsADirectoryError as error:
        raise InvalidInputError(
            f"{path} is a folder; accepted: a checkpoint file (.pth, .pt, .safetensors)."
        ) from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}.") from error
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error


def _form(file: IO[bytes]) -> str:
    """Tell the kind of file from its first bytes; the name is not asked."""
    start = file.read(512)
    file.seek(0)
    if start.startswith(b"PK\x03\x04"):
        return "torch zip"
    # A stream begins with a pickled long: protocol 2 to 4 (with or without a frame), or digits in the older ones.
    if start[:1] == b"\x80" or start.startswith(f"L{MAGIC_NUMBER}".encode()):
        return "torch stream"
    if len(start) > 8 and start[8:9] == b"{":
        return "safetensors"
    if start[257:262] == b"ustar":
        raise WeightsError(
            "it is a .tar of torch 0.1; accepted: torch's later formats and safetensors. Open it once with an old "
            "torch and save its state dict again"
        )
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError("it is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`")
    what = "empty" if not start else f"neither torch's nor safetensors; it begins with {start[:24]!r}"
    raise WeightsError(f"it is {what}. Accepted: files of torch.save (.pth, .pt) and .safetensors")


@contextmanager
def _as_damage() -> Iterator[None]:
    """Report whatever goes wrong inside as a damaged file: the bytes are anybody's, and so are their mistakes."""
    try:
        yield
    except (ContextPredError, OSError):
        raise
    except Exception as error:
        raise WeightsError(f"damaged or incomplete file ({type(error).__name__}: {str(error)[:100]})") from error


# torch's zip: NAME/data.pkl, and a record NAME/data/KEY for each storage, all of it stored without compression


def _read_zip(file: IO[bytes], path: Path) -> Checkpoint:
    with _as_damage(), zipfile.ZipFile(file) as archive:
        records = _zip_records(archive, path.stat().st_size)
        pickles = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise WeightsError("it is a zip archive, but not one of torch.save (no data.pkl in it)")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in records or f"{folder}code/" in records:
            raise WeightsError("it is a TorchScript archive; accepted: a state dict, saved with torch.save")
        byteorder = (
            bytes(_record(file, records[f"{folder}byteorder"])) if f"{folder}byteorder" in records else b"little"
        )
        if byteorder not in (b"little", b"big"):
            raise WeightsError(f"damaged file (byte order {byteorder[:20]!r})")
        reader = Reader()
        content = reader.read(io.BytesIO(_record(file, records[pickles[0]])))

        def storage(ref: StorageRef) -> bytearray:
            record = records.get(f"{folder}data/{ref.key}")
            if record is None:
                raise WeightsError(f"damaged file (no record for storage {ref.key[:80]})")
            return _record(file, record)

        return _checkpoint("torch zip", content, _Storages(reader, storage, swap=byteorder != sys.byteorder.encode()))


def _zip_records(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    records: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
            raise WeightsError("it is a compressed or encrypted zip archive, which torch.save does not write")
        if info.filename in records:
            raise WeightsError(f"damaged file (two records named {info.filename[:80]})")
        records[info.filename] = info
    if sum(info.file_size for info in records.values()) > size:
        raise WeightsError("damaged file (its records claim more bytes than it has)")
    return records


def _record(file: IO[bytes], info: zipfile.ZipInfo) -> bytearray:
    """Read the bytes of a stored record. zipfile itself would copy them twice, and insist on check sums."""
    file.seek(info.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise WeightsError(f"damaged file (no record where {info.filename[:80]} should be)")
    file.seek(sum(struct.unpack("<HH", header[26:30])), io.SEEK_CUR)
    data = bytearray(info.file_size)
    _fill(file, data)
    # torch can be told not to compute check sums (torch.serialization.set_crc32_options) and then writes zeros.
    if info.CRC not in (0, zlib.crc32(data)):
        raise WeightsError(f"damaged file (wrong check sum of {info.filename[:80]})")
    return data


# torch's stream: magic number, protocol, system, the object, the storages' keys, then each storage's length and bytes


class _Bounded:
    """A file that never takes memory for more bytes than it has, whatever length a pickle claims."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file, self.size = file, size

    def read(self, count: int) -> bytes:
        return self.file.read(min(count, self.size - self.file.tell()))

    def readline(self) -> bytes:
        return self.file.readline()

    def tell(self) -> int:
        return self.file.tell()


def _read_stream(file: IO[bytes], path: Path) -> Checkpoint:
    with _as_damage():
        size = path.stat().st_size
        stream: Any = _Bounded(file, size)
        if Reader().read(stream) != MAGIC_NUMBER:
            raise WeightsError("it is a pickle, but not one of torch.save; accepted: torch.save and safetensors")
        if Reader().read(stream) != PROTOCOL_VERSION:
            raise WeightsError("damaged file (an unknown version of torch's stream)")
        Reader().read(stream)  # byte order and sizes of the writing system; the storages are little-endian on all
        reader = Reader()
        content = reader.read(stream)
        places = _stream_places(file, size, Reader().read(stream), reader.storages)

        def storage(ref: StorageRef) -> bytearray:
            if ref.key not in places:
                raise WeightsError(f"damaged file (no bytes for storage {ref.key[:80]})")
            offset, length = places[ref.key]
            data = bytearray(length)
            file.seek(offset)
            _fill(file, data)
            return data

        return _checkpoint("torch stream", content, _Storages(reader, storage, swap=sys.byteorder == "big"))


def _stream_places(
    file: IO[bytes], size: int, keys: Any, storages: dict[str, StorageRef]
) -> dict[str, tuple[int, int]]:
    """Walk over the storages at the end of the stream; return {key: (offset, bytes)}."""
    if not isinstance(keys, list):
        raise WeightsError("damaged file (no list of storages)")
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        ref = storages.get(str(key)) if isinstance(key, (str, int)) else None
        width = None if ref is None else _itemsize(ref.dtype)
        if ref is None or width is None:
            # Without its type the length in bytes is unknown, and so is where the next one begins.
            raise WeightsError(f"it has a storage of an unknown kind ({ref.dtype[:80] if ref else 'not announced'})")
        (numel,) = struct.unpack("<q", file.read(8))
        length = numel * width
        if numel < 0 or file.tell() + length > size:
            raise WeightsError("incomplete file (a storage goes beyond its end)")
        places[ref.key] = (file.tell(), length)
        file.seek(length, io.SEEK_CUR)
    return places


def _itemsize(dtype: str) -> int | None:
    return DTYPES[dtype].itemsize if dtype in DTYPES else OTHER_STORAGES.get(dtype)


def _fill(source: IO[bytes], data: bytearray) -> None:
    view, done = memoryview(data), 0
    while done < len(view):
        count = source.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise WeightsError("incomplete file (a storage is cut off)")
        done += count


# from storages to tensors


class _Storages:
    """The storages of a file, each read once, when the first tensor needs it."""

    def __init__(self, reader: Reader, load: Callable[[StorageRef], bytearray], *, swap: bool = False) -> None:
        self.reader, self.load, self.swap = reader, load, swap
        self.cache: dict[str, Tensor] = {}

    def tensor(self, ref: TensorRef) -> Tensor | Opaque:
        """Cut a tensor out of its storage, inside the storage's real bounds."""
        if ref.storage.dtype not in DTYPES:
            return Opaque(f"torch.{ref.storage.dtype}")
        numel = math.prod(ref.size)
        if numel == 0:
            return torch.empty(ref.size, dtype=DTYPES[ref.storage.dtype])
        storage = self._elements(ref.storage)
        last = ref.offset + sum((size - 1) * stride for size, stride in zip(ref.size, ref.stride, strict=True))
        if last >= storage.numel() or numel > storage.numel():
            raise WeightsError("damaged file (a tensor goes beyond its storage)")
        return storage.as_strided(ref.size, ref.stride, storage.storage_offset() + ref.offset)

    def _elements(self, ref: StorageRef) -> Tensor:
        view = self.reader.views.get(ref.key)
        if view is not None:
            root = self._elements(self.reader.storages[view.root])
            if view.offset + view.numel > root.numel():
                raise WeightsError("damaged file (a view goes beyond its storage)")
            return root[view.offset : view.offset + view.numel]
        if ref.key not in self.cache:
            dtype = DTYPES[ref.dtype]
            data = self.load(ref)
            if len(data) != ref.numel * dtype.itemsize:
                raise WeightsError(f"damaged file (storage {ref.key[:80]} is not as long as it says)")
            if self.swap:
                data = bytearray(
                    bytes(
                        torch.frombuffer(data, dtype=torch.uint8).view(-1, dtype.itemsize).flip(1).contiguous().numpy()
                    )
                )
            self.cache[ref.key] = torch.frombuffer(data, dtype=dtype)
        return self.cache[ref.key]


def _checkpoint(form: str, content: Any, storages: _Storages) -> Checkpoint:
    """Find the state dict in what the pickle described, and read its tensors."""
    if not isinstance(content, dict):
        what = content.name if isinstance(content, Opaque) else type(content).__name__
        raise WeightsError(f"it holds a {what[:100]}, not a state dict; accepted: a dictionary of named tensors")
    state, entries = _state_dict(content)
    tensors: dict[str, Tensor] = {}
    strays: dict[str, str] = {}
    for key, value in state.items():
        found = storages.tensor(value) if isinstance(value, TensorRef) else value
        if isinstance(found, Tensor) and isinstance(key, str):
            tensors[key] = found
        else:
            strays[str(key)[:200]] = found.name[:100] if isinstance(found, Opaque) else type(found).__name__
    if not tensors:
        raise WeightsError("there are no tensors in its state dict")
    meta = content.get("meta") if entries else None
    plain = {
        key: value
        for key, value in (meta.items() if isinstance(meta, dict) else ())
        if isinstance(key, str) and isinstance(value, (str, int, float))
    }
    return Checkpoint(form, tensors, strays, plain, entries, _run_state(content) if entries else None)


def _run_state(content: dict[Any, Any]) -> RunState | None:
    """Recognise a checkpoint of this library (``training/checkpoints.py``) by what it has beside its weights."""
    match content:
        case {"format": int(), "recipe": str(recipe), "step": int(step), "model": dict()}:
            return RunState(recipe, step)
    return None


def _state_dict(content: dict[Any, Any]) -> tuple[dict[Any, Any], tuple[str, ...]]:
    entries = tuple(key for key in content if isinstance(key, str))
    for name in STATE_DICT_NAMES:
        if isinstance(content.get(name), dict):
            return content[name], entries
    if any(isinstance(value, TensorRef) for value in content.values()):
        return content, ()
    shown = ", ".join(entry[:40] for entry in entries[:10]) or "nothing"
    raise WeightsError(
        f"it has no state dict; accepted: {', '.join(STATE_DICT_NAMES)}, or tensors at the top. It has: {shown}"
    )


def _read_safetensors(file: IO[bytes], path: Path) -> Checkpoint:
    file.close()
    try:
        with safe_open(path, framework="pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a dictionary)
    except SafetensorError as error:
        raise WeightsError(f"damaged or incomplete safetensors file ({error})") from error
    if not tensors:
        raise WeightsError("there are no tensors in it")
    return Checkpoint("safetensors", tensors, {}, {}, ())


_READERS: dict[str, Callable[[IO[bytes], Path], Checkpoint]] = {
    "torch zip": _read_zip,
    "torch stream": _read_stream,
    "safetensors": _read_safetensors,
}
