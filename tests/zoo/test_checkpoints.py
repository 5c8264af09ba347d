"""Reading checkpoints of others: right values, nothing run, no more memory than the file has, only our errors."""

from __future__ import annotations

import collections
import datetime
import io
import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import time
import tracemalloc
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import context_pred
from context_pred.errors import ContextPredError, InvalidInputError, NotCachedError, WeightsError
from context_pred.model import ContextPredictionModel
from context_pred.zoo.checkpoints import RunState, read_checkpoint

FORMATS = ("zip", "stream")


def save(content: Any, path: Path, form: str = "zip", protocol: int = 2) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=form == "zip", pickle_protocol=protocol)
    return path


def stream(pickled: bytes, keys: tuple[str, ...] = (), storages: bytes = b"") -> bytes:
    """A file in torch's older format around any pickle."""
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    return b"".join(pickle.dumps(part, 2) for part in parts) + pickled + pickle.dumps(list(keys), 2) + storages


def zipped(pickled: bytes, path: Path, records: dict[str, bytes] | None = None) -> Path:
    """A file in torch's zip format around any pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, data in (records or {}).items():
            archive.writestr(f"archive/{name}", data)
    return path


def awkward_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 8, generator=generator)
    tensors = {
        "plain": base,
        "transposed": base.T,
        "strided": base[1::2, 2::3],
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 4),
        "parameter": nn.Parameter(torch.randn(3, generator=generator)),
        "frozen": nn.Parameter(torch.arange(3), requires_grad=False),
        "six dimensions": torch.randn(1, 2, 1, 2, 1, 2, generator=generator),
    }
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int16, torch.int8, torch.uint8):
        tensors[str(dtype)] = torch.arange(5).to(dtype)
    return tensors


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_come_back_as_they_were(tmp_path: Path, form: str, protocol: int) -> None:
    tensors = awkward_tensors()
    found = read_checkpoint(save(tensors, tmp_path / "a.pth", form, protocol))
    assert found.form == f"torch {form}"
    assert list(found.tensors) == list(tensors)
    assert found.strays == {}
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype, name
        assert torch.equal(found.tensors[name], tensor), name


@pytest.mark.parametrize("form", FORMATS)
def test_state_dict_meta_and_entries(tmp_path: Path, form: str) -> None:
    state = nn.Linear(3, 2).state_dict()  # an OrderedDict with the attribute _metadata
    content = {
        "meta": {"mmselfsup_version": "0.7.0", "epoch": 70, "time": datetime.datetime(2022, 2, 11), "hook_msgs": {}},
        "state_dict": state,
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(6), "mask": torch.ones(3, dtype=torch.bool)}}},
        "loss": np.float64(1.5),
        "history": np.arange(4),
        "path": Path("work_dirs"),
        "torch": torch.__version__,
        "scheduler": torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.ones(1)], 0.1), 3),
        "names": {"a", "b"},
        ("a", "tuple"): frozenset([1]),
    }
    found = read_checkpoint(save(content, tmp_path / "a.pth", form))
    assert found.meta == {"mmselfsup_version": "0.7.0", "epoch": 70}
    assert found.entries == (
        "meta",
        "state_dict",
        "optimizer",
        "loss",
        "history",
        "path",
        "torch",
        "scheduler",
        "names",
    )
    assert list(found.tensors) == ["weight", "bias"]
    assert all(torch.equal(found.tensors[key], state[key]) for key in state)


@pytest.mark.parametrize("name", ["state_dict", "model", "model_state_dict"])
def test_where_training_codes_put_the_state_dict(tmp_path: Path, name: str) -> None:
    found = read_checkpoint(save({"epoch": 3, name: {"w": torch.ones(2)}}, tmp_path / "a.pth"))
    assert torch.equal(found.tensors["w"], torch.ones(2))


def test_what_is_no_tensor_is_reported(tmp_path: Path) -> None:
    state = {"w": torch.ones(2), "mask": torch.ones(2, dtype=torch.bool), "note": "hello", "when": np.float32(1)}
    found = read_checkpoint(save({"state_dict": state}, tmp_path / "a.pth"))
    assert list(found.tensors) == ["w"]
    assert {key: kind.rpartition(".")[2] for key, kind in found.strays.items()} == {
        "mask": "BoolStorage",
        "note": "str",
        "when": "scalar",
    }


def test_safetensors(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1, dtype=torch.int64)}
    safetensors.torch.save_file(tensors, tmp_path / "a.bin")  # the name is not asked
    found = read_checkpoint(tmp_path / "a.bin")
    assert found.form == "safetensors"
    assert all(torch.equal(found.tensors[key], tensors[key]) for key in tensors)


def test_zip_without_check_sums(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        save({"w": torch.arange(9)}, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_checkpoint(tmp_path / "a.pth").tensors["w"], torch.arange(9))


def test_zip_of_a_big_endian_machine(tmp_path: Path) -> None:
    save({"w": torch.arange(9.0), "h": torch.arange(3).half()}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as source, zipfile.ZipFile(tmp_path / "b.pth", "w") as target:
        for info in source.infolist():
            data = source.read(info)
            if "/data/" in info.filename:
                data = np.frombuffer(data, "<f4" if len(data) == 36 else "<f2").byteswap().tobytes()
            target.writestr(info.filename, b"big" if info.filename.endswith("byteorder") else data)
    found = read_checkpoint(tmp_path / "b.pth").tensors
    assert torch.equal(found["w"], torch.arange(9.0))
    assert torch.equal(found["h"], torch.arange(3).half())


class _OldPickler(pickle.Pickler):
    """Writes storages that are views of another one, as torch before 0.4 did."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, 2)
        self.alive: list[Any] = []  # the pickler knows objects by their address

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, tuple) and obj[:1] == ("view",):
            self.alive.append(("storage", torch.FloatStorage, "17", "cpu", 10, (f"v{obj[1]}", obj[1], 4)))
            return self.alive[-1]
        return None


class _OldTensor:
    def __init__(self, offset: int) -> None:
        self.offset = offset

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor, (("view", self.offset), 1, (3,), (1,))


def test_stream_with_storages_inside_storages(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    _OldPickler(buffer).dump({"a": _OldTensor(0), "b": _OldTensor(5)})
    numbers = np.arange(10, dtype="<f4")
    data = stream(buffer.getvalue(), ("17",), struct.pack("<q", 10) + numbers.tobytes())
    (tmp_path / "a.pth").write_bytes(data)
    expected = torch.load(tmp_path / "a.pth", weights_only=False)
    found = read_checkpoint(tmp_path / "a.pth").tensors
    assert found["b"].tolist() == [6, 7, 8]
    assert all(torch.equal(found[key], expected[key]) for key in expected)


class _Python2Dict:
    def __init__(self, pairs: list[list[Any]]) -> None:
        self.pairs = pairs

    def __reduce__(self) -> Any:
        return collections.OrderedDict, (self.pairs,)


def test_ordered_dict_as_python_2_wrote_it(tmp_path: Path) -> None:
    save(_Python2Dict([["a", torch.ones(2)], ["b", torch.zeros(3)]]), tmp_path / "a.pth", "stream")
    assert list(read_checkpoint(tmp_path / "a.pth").tensors) == ["a", "b"]


# Foreign classes


def fake_mmengine() -> types.ModuleType:
    """A module with a class that pickles as mmengine's HistoryBuffer does (its own methods included)."""

    class HistoryBuffer:
        def __init__(self) -> None:
            self._log_history = np.arange(5.0)
            self.methods = {"mean": HistoryBuffer.mean}

        def mean(self) -> float:
            return float(self._log_history.mean())

    module = types.ModuleType("mmengine.logging.history_buffer")
    HistoryBuffer.__module__ = module.__name__
    HistoryBuffer.__qualname__ = "HistoryBuffer"
    HistoryBuffer.mean.__module__ = module.__name__
    HistoryBuffer.mean.__qualname__ = "HistoryBuffer.mean"
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    return module


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_objects_of_mmengine_without_mmengine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, protocol: int
) -> None:
    module = fake_mmengine()
    content = {
        "meta": {"epoch": 70},
        "state_dict": {"w": torch.ones(2)},
        "message_hub": {"log_scalars": collections.OrderedDict(loss=module.HistoryBuffer())},
    }
    with monkeypatch.context() as patch:
        for name in ("mmengine", "mmengine.logging", module.__name__):
            patch.setitem(sys.modules, name, module)
        save(content, tmp_path / "a.pth", form, protocol)
    with pytest.raises(pickle.UnpicklingError):  # so torch itself does not read such a file
        torch.load(tmp_path / "a.pth", weights_only=True)
    found = read_checkpoint(tmp_path / "a.pth")
    assert torch.equal(found.tensors["w"], torch.ones(2))
    assert "message_hub" in found.entries
    assert not any(name.startswith("mmengine") for name in sys.modules)


# Pickles that would run code


class _Calls:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.what = function, arguments

    def __reduce__(self) -> Any:
        return self.what

    def __call__(self, *arguments: Any) -> None:
        """So that the result of a call can be called in turn."""


def hostile(proof: Path) -> dict[str, tuple[Any, str]]:
    """Objects that create the file ``proof`` when they are unpickled in the ordinary way, and what is named."""
    code = f"open({str(proof)!r}, 'w').close()"
    return {
        "shell": (_Calls(os.system, f"touch {proof}"), "posix.system"),
        "eval": (_Calls(eval, code), "builtins.eval"),
        "exec": (_Calls(exec, code), "builtins.exec"),
        "process": (_Calls(subprocess.call, ["touch", str(proof)]), "(subprocess|commands).call"),
        "method of a class": (_Calls(getattr, Path, "touch"), "builtins.getattr"),
        "open": (_Calls(open, str(proof), "w"), "open"),
        "chain": (_Calls(_Calls(getattr, _Calls(__import__, "os"), "system"), f"touch {proof}"), "__import__"),
        "torch's own": (_Calls(torch.save, 1, str(proof)), "torch.serialization.save"),
        "numpy's own": (_Calls(_Calls(getattr, np.ndarray, "tofile"), np.zeros(1), str(proof)), "result of a call"),
    }


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", list(hostile(Path("proof"))))
def test_hostile_pickles_run_nothing_and_are_named(tmp_path: Path, form: str, protocol: int, name: str) -> None:
    proof = tmp_path / "proof"
    bait, named = hostile(proof)[name]
    path = save({"state_dict": {"w": torch.ones(2)}, "optimizer": [bait]}, tmp_path / "a.pth", form, protocol)
    with pytest.raises(WeightsError, match=named) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    assert not proof.exists()
    if name not in ("method of a class",):  # which only fetches what another call would use
        torch.load(path, weights_only=False)
        assert proof.exists(), "the bait does not bite, so this test shows nothing"


@pytest.mark.parametrize(
    "pickled",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"(cos\nsystem\nS'true'\no.",
        b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93\x94\x8c\x04true\x94\x85\x94R\x94.",
        b"\x80\x02cos\nsystem\nq\x000}q\x01h\x00b.",
    ],
    ids=["GLOBAL", "INST", "OBJ", "STACK_GLOBAL", "BUILD"],
)
def test_every_opcode_that_names_something_is_refused(tmp_path: Path, pickled: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(stream(pickled))
    for path in (tmp_path / "a.pth", zipped(pickled, tmp_path / "b.pth")):
        with pytest.raises(WeightsError, match=r"would run os\.system"):
            read_checkpoint(path)


# Bombs: small files that ask for much memory or time


TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu%btQ%b%b%b\x89}tR"
)


def tensor(numel: int, offset: int, size: int, stride: int) -> bytes:
    """The pickle of {"w": a tensor} with any numbers in it."""
    numbers = [b"\x8a\x08" + struct.pack("<q", value) for value in (numel, offset, size, stride)]
    parts = (numbers[0], numbers[1], numbers[2] + b"\x85", numbers[3] + b"\x85")
    return b"\x80\x02}X\x01\x00\x00\x00w" + TENSOR % parts + b"s."


BOMBS = {
    "memo index": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "text length": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"a.",
    "bytes length": b"\x80\x04\x8e" + struct.pack("<Q", (1 << 62)) + b"a.",
    "frame length": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N.",
    "integer": b"\x80\x02\x8b" + struct.pack("<i", 0x7FFFFFFF) + b"\x01.",
    "digits": b"I" + b"9" * 100_000 + b"\n.",
    "doubling tuples": b"\x80\x02)" + b"2\x86" * 64 + b".",
    "doubling tuples as a type": b"\x80\x02(X\x07\x00\x00\x00storage)" + b"2\x86" * 64 + b"NNNtQ.",
    "doubling tuples as an id": b"\x80\x02)" + b"2\x86" * 64 + b"Q.",
    "deep tuple as a key": b"\x80\x02}N" + b"\x85" * 150_000 + b"Ns.",
    "deep marks": b"\x80\x02" + b"(" * 20_000 + b".",
    "storage without bytes": tensor(1 << 40, 0, 1 << 40, 1),
    "expanded": tensor(1, 0, 1 << 40, 0),
    "offset": tensor(4, 1 << 61, 4, 1),
    "stride": tensor(4, 0, 4, 1 << 61),
    "negative": tensor(4, -4, 4, 1),
    "negative size": tensor(4, 0, -1, 1),
    "copied again and again": (
        b"\x80\x02("
        + b"("
        + b"(X\x01\x00\x00\x00aNl" * 2000
        + b"lq\x00"
        + b"ccollections\nOrderedDict\nh\x00\x85R" * 2000
        + b"l."
    ),
}


@pytest.mark.parametrize("name", list(BOMBS))
@pytest.mark.parametrize("form", FORMATS)
def test_bombs_cost_little_and_are_errors(tmp_path: Path, name: str, form: str) -> None:
    pickled, numbers = BOMBS[name], np.zeros(4, "<f4").tobytes()
    if form == "zip":
        path = zipped(pickled, tmp_path / "a.pth", {"data/0": numbers})
    else:
        path = tmp_path / "a.pth"
        path.write_bytes(stream(pickled, ("0",), struct.pack("<q", 4) + numbers))
    tracemalloc.start()
    start = time.monotonic()
    try:
        with pytest.raises(WeightsError):
            read_checkpoint(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50e6
    assert time.monotonic() - start < 30


def test_zip_bombs(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"w": 1}, 2))
        archive.writestr("archive/data/0", bytes(50_000_000))
    with pytest.raises(WeightsError, match="compressed"):
        read_checkpoint(tmp_path / "a.pth")
    # One record announced as longer than the file; and a thousand that are the same bytes.
    save({"w": torch.zeros(1000)}, tmp_path / "b.pth")
    data = (tmp_path / "b.pth").read_bytes()
    length = struct.pack("<I", 4000)
    (tmp_path / "c.pth").write_bytes(data.replace(length, struct.pack("<I", 2_000_000_000)))
    with pytest.raises(WeightsError, match="more bytes than it has"):
        read_checkpoint(tmp_path / "c.pth")


# Damage


def small_files(folder: Path) -> dict[str, bytes]:
    content = {
        "meta": {"mmselfsup_version": "0.7.0"},
        "state_dict": nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).state_dict(),
    }
    files = {form: save(content, folder / form, form).read_bytes() for form in FORMATS}
    return files | {"safetensors": safetensors.torch.save(content["state_dict"])}


@pytest.mark.parametrize("form", [*FORMATS, "safetensors"])
def test_a_file_cut_off_anywhere_is_an_error(tmp_path: Path, form: str) -> None:
    data = small_files(tmp_path)[form]
    path = tmp_path / "cut.pth"
    for length in range(0, len(data), max(1, len(data) // 200)):
        path.write_bytes(data[:length])
        with pytest.raises(WeightsError):
            read_checkpoint(path)


@pytest.mark.parametrize("form", [*FORMATS, "safetensors"])
def test_damaged_bytes_give_our_errors_only(tmp_path: Path, form: str) -> None:
    data = small_files(tmp_path)[form]
    path = tmp_path / "damaged.pth"
    dice = random.Random(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(dice.choice((1, 1, 2, 8))):
            damaged[dice.randrange(len(damaged))] = dice.choice((0, 1, 0x2E, 0x7F, 0x80, 0xFF, dice.randrange(256)))
        path.write_bytes(damaged)
        try:
            read_checkpoint(path)
        except ContextPredError:
            refused += 1
    assert refused > 50


def test_a_flipped_bit_in_a_zip_is_found(tmp_path: Path) -> None:
    path = save({"w": torch.zeros(1000)}, tmp_path / "a.pth")
    data = bytearray(path.read_bytes())
    data[data.index(bytes(2000)) + 1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="check sum"):
        read_checkpoint(path)


# Files of other kinds


def tar_of_torch_01(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name))


OTHERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda p: p.write_bytes(b""), "it is empty"),
    "text": (lambda p: p.write_text("weights, please\n"), "begins with b'weights, please"),
    "web page": (lambda p: p.write_text("<!DOCTYPE html><html>"), "begins with b'<!DOCTYPE html>"),
    "text like safetensors": (lambda p: p.write_text("01234567{ not a header"), "safetensors"),
    "lfs": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1"), "git lfs pull"),
    "plain pickle": (lambda p: p.write_bytes(pickle.dumps({"w": [1.0]}, 2)), "not one of torch.save"),
    "tar": (tar_of_torch_01, r"torch 0\.1"),
    "other zip": (lambda p: zipfile.ZipFile(p, "w").writestr("photo.txt", "x"), "no data.pkl"),
    "whole model": (
        lambda p: torch.save(nn.Linear(2, 2), p),
        r"whole pickled model \(torch.nn.modules.linear.Linear\)",
    ),
    "own class": (lambda p: torch.save({"a": _OldTensor}, p), "_OldTensor"),
    "list": (lambda p: torch.save([torch.ones(2)], p), "holds a list, not a state dict"),
    "no tensors": (lambda p: torch.save({"epoch": 1, "loss": 2.0}, p), "no state dict.*epoch, loss"),
    "empty state dict": (lambda p: torch.save({"state_dict": {}}, p), "no tensors"),
    "TorchScript": (
        lambda p: torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(str(p)),
        "TorchScript|compressed",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", list(OTHERS))
def test_other_files_are_told_apart(tmp_path: Path, kind: str) -> None:
    make, message = OTHERS[kind]
    path = tmp_path / "model.safetensors"
    make(path)
    with pytest.raises(WeightsError, match=message) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(NotCachedError, match="nowhere"):
        read_checkpoint(tmp_path / "nowhere.pth")
    with pytest.raises(InvalidInputError, match="is a folder"):
        read_checkpoint(tmp_path)


# checkpoints of this library's own runs


RECIPE = """
name = "mine"
title = "Mine"
[model]
backbone = "resnet18"
in_channels = 3
neck_channels = 16
[sampler]
type = "GridPatchSampler"
preset = "openmmlab-1.x"
crop = 135
patch = 32
mean = [0.1, 0.2, 0.3]
std = [0.2, 0.2, 0.2]
channel_order = "bgr"
"""


def run_state(recipe: str = RECIPE, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """What ``RUN/checkpoints/best.pt`` holds."""
    model = ContextPredictionModel("resnet18", neck_channels=16).to(dtype).to(memory_format=torch.channels_last)
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
    own = {"optimizer": optimizer, "scaler": {}, "recipe": recipe, "files": "ab12", "best": 0.25}
    return {"format": 1, "step": 1500, "model": model.state_dict(), **own}


def test_a_runs_checkpoint_is_a_model(tmp_path: Path) -> None:
    """Its recipe tells all that the card needs; nothing has to be said by hand."""
    state = run_state(dtype=torch.float64)
    path = save(state, tmp_path / "best.pt")
    assert read_checkpoint(path).run == RunState(RECIPE, 1500)
    model = context_pred.load_pretrained(path)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state["model"][key].to(value.dtype)), key
    card = model.card
    assert (card.name, card.recipe, card.backbone, card.neck_channels) == ("best.pt", "mine", "resnet18", 16)
    assert (card.mean, card.std, card.channel_order) == ((0.1, 0.2, 0.3), (0.2, 0.2, 0.2), "bgr")
    assert "after 1,500 steps" in card.description
    sampler = model.patch_sampler
    assert (sampler.preset, sampler.patch, sampler.channel_order) == ("openmmlab-1.x", 32, "bgr")
    # The label order of the preset's upstream is no business of ours.
    assert torch.equal(model.head.fc_cls.weight, state["model"]["head.fc_cls.weight"].float())


def test_a_runs_checkpoint_converts_to_a_model_folder(tmp_path: Path) -> None:
    from context_pred.zoo import convert

    folder = convert.convert(save(run_state(), tmp_path / "best.pt"), tmp_path / "model", name="mine")
    card = context_pred.load_pretrained(folder).card
    assert (card.name, card.recipe, card.channel_order, card.mean) == ("mine", "mine", "bgr", (0.1, 0.2, 0.3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[sampler]", "[other]"), "its recipe does not tell the network .KeyError: 'sampler'"),
        (('"resnet18"', '"resnet1000"'), "Unknown backbone 'resnet1000'"),
        (('"resnet18"', '"resnet34"'), "holds a resnet18 with pair layers, but the card .* resnet34"),
        (("[model]", "[model"), "TOMLDecodeError"),
        (("in_channels = 3", 'in_channels = "3"'), "its recipe does not tell"),
        (("crop = 135", "corp = 135"), "corp"),
    ],
)
def test_a_runs_checkpoint_with_a_recipe_that_is_none(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in RECIPE
    path = save(run_state(RECIPE.replace(*change)), tmp_path / "best.pt")
    with pytest.raises(WeightsError, match=rf"best\.pt.*{message}"):
        context_pred.load_pretrained(path)


def test_others_checkpoints_are_no_runs(tmp_path: Path) -> None:
    """A few of the names are not enough."""
    state = {"format": 1, "step": 2, "recipe": RECIPE, "model": {"w": torch.ones(2)}}
    assert read_checkpoint(save(state, tmp_path / "a.pt")).run == RunState(RECIPE, 2)
    for missing in ("format", "recipe", "step"):
        part = {key: value for key, value in state.items() if key != missing}
        assert read_checkpoint(save(part, tmp_path / "a.pt")).run is None
    assert read_checkpoint(save({**state, "recipe": ["a", "list"]}, tmp_path / "a.pt")).run is None
