"""Reading safetensors files: the values safetensors itself reads, the digest first, and no malformed file."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from context_pred.errors import DigestError, NotCachedError, StorageError, WeightsError
from context_pred.weights_file import read_weights, write_weights

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    made = {f"t{i}": (torch.randn(3, i + 1) * 50).to(dtype) for i, dtype in enumerate(DTYPES)}
    return {**made, "scalar": torch.tensor(7), "empty": torch.empty(0, 5), "größe": torch.ones(2)}


def raw(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def entry(begin: int, end: int, shape: list[Any] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def test_it_reads_what_safetensors_reads(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(tensors(), path, metadata={"format": "pt"})
    read, expected = read_weights(path), safetensors.torch.load_file(path)
    assert read.keys() == expected.keys()
    for name, value in read.items():
        assert value.dtype == expected[name].dtype
        assert value.shape == expected[name].shape
        assert torch.equal(value, expected[name])


@pytest.mark.parametrize("padding", range(8))
def test_a_header_of_any_length_will_do(tmp_path: Path, padding: int) -> None:
    path = tmp_path / "x.safetensors"
    text = json.dumps({"a": entry(0, 8, [1], "F64"), "b": entry(8, 16)}).encode() + b" " * padding
    body = torch.tensor([1.5], dtype=torch.float64).numpy().tobytes() + torch.tensor([2.0, 3.0]).numpy().tobytes()
    path.write_bytes(raw(text, body))
    read = read_weights(path)
    assert read["a"].tolist() == [1.5]
    assert read["b"].tolist() == [2.0, 3.0]


def test_written_files_come_back_and_are_the_same_every_time(tmp_path: Path) -> None:
    digest = write_weights(tensors(), tmp_path / "one" / "x.safetensors")
    again = write_weights(dict(reversed(tensors().items())), tmp_path / "two.safetensors")
    assert digest == again == hashlib.sha256((tmp_path / "two.safetensors").read_bytes()).hexdigest()
    read = read_weights(tmp_path / "two.safetensors", digest)
    assert all(torch.equal(read[name], value) for name, value in tensors().items())


def test_tensors_have_storages_of_their_own_and_leave_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_weights(tensors(), path)
    before = path.read_bytes()
    read = read_weights(path)
    for value in read.values():
        assert value.untyped_storage().nbytes() == value.nbytes
        value.zero_()
    assert path.read_bytes() == before
    kept = read_weights(path)["t1"]
    path.write_bytes(bytes(len(before)))
    assert torch.equal(kept, tensors()["t1"])


@pytest.mark.parametrize("digits", [8, 64])
def test_the_digest_comes_first(tmp_path: Path, digits: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"no safetensors file")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(WeightsError, match="not a safetensors file") as error:
        read_weights(path, digest[:digits].upper())
    assert not isinstance(error.value, DigestError)
    with pytest.raises(DigestError, match=f"{digest}, but {'0' * digits} was expected.*Delete it"):
        read_weights(path, "0" * digits)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(NotCachedError):
        read_weights(tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="cannot be read"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\x01\x02", "beyond its end"),  # shorter than the length itself
        (raw({}, length=1 << 62), "beyond its end"),
        (raw(b"{", b""), "no JSON"),
        (raw(b"[" * 100_000), "no JSON"),  # deeper than any parser's stack
        (raw(b"\xff\xfe\xfd"), "no JSON"),
        (raw([1]), "no object"),
        (raw({"a": 3}), "describe 'a'"),
        (raw({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)), "describe 'a'"),
        (raw({"a": entry(0, 4, dtype="F8_E4M3")}, bytes(4)), "describe 'a'"),
        (raw({"a": entry(0, 4, [-1])}, bytes(4)), "describe 'a'"),
        (raw({"a": entry(0, 4, [True])}, bytes(4)), "describe 'a'"),
        (raw({"a": entry(0, 4, ["1"])}, bytes(4)), "describe 'a'"),
        (raw({"a": entry(0, 8, [1])}, bytes(8)), "where, or as many"),
        (raw({"a": entry(0, 8)}, bytes(4)), "where, or as many"),
        (raw({"a": entry(4, 0, [0])}, bytes(4)), "where, or as many"),
        (raw({"a": entry(-4, 0, [1])}, bytes(4)), "where, or as many"),
        (raw({"a": entry(0, 4, [1 << 62, 1 << 62])}, bytes(4)), "where, or as many"),
        (raw({"a": entry(0, 4), "b": entry(0, 4)}, bytes(4)), "overlap or leave gaps"),
        (raw({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), "overlap or leave gaps"),
        (raw({"a": entry(0, 4)}, bytes(8)), "overlap or leave gaps"),
        (raw({"a": entry(4, 8)}, bytes(8)), "overlap or leave gaps"),
        (b"PK\x03\x04" + bytes(40), "context-pred zoo convert"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as error:
        read_weights(path)
    assert str(path) in str(error.value)


def test_random_damage_gives_our_error_or_other_values(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_weights(tensors(), path)
    good, generator = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(400):
        data = bytearray(good)
        for _ in range(generator.choice([1, 1, 3])):
            data[generator.randrange(len(data) // 2)] = generator.randrange(256)
        path.write_bytes(data[: generator.choice([len(data), generator.randrange(len(data))])])
        try:
            read_weights(path)
        except WeightsError:
            refused += 1
    assert refused > 200


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="Cannot write"):
        write_weights(tensors(), tmp_path / "file" / "x.safetensors")
