"""Conversion: every layout, every key accounted for, label and channel order, and the same bytes every time."""

from __future__ import annotations

import collections
import json
import re
import shutil
import subprocess
import sys
import types
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor

from context_pred import card as card_module
from context_pred.card import IMAGENET_MEAN, IMAGENET_STD, Card
from context_pred.errors import (
    DigestError,
    InvalidInputError,
    NotCachedError,
    StorageError,
    UnknownNameError,
    WeightsError,
)
from context_pred.model import ContextPredictionModel
from context_pred.zoo._folder import write_model_folder
from context_pred.zoo.convert import RASTER_FROM_1X, convert, convert_checkpoint
from context_pred.zoo.download import file_sha256

GOLDENS = Path(__file__).resolve().parent.parent / "goldens"
NECK = 16


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that is emptied after the test: the checkpoints are tens of megabytes each."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """A whole ResNet-18 state dict in half precision; no two entries of it are alike."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        own = ContextPredictionModel("resnet18", neck_channels=NECK).state_dict()
    return {
        key: torch.randn(value.shape, generator=generator).half() if value.is_floating_point() else torch.tensor(7)
        for key, value in own.items()
    }


def backbone_only(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}


def save(content: Any, path: Path, form: str = "zip") -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    return path


def file_0x(state: dict[str, Tensor], path: Path, version: str = "0.7.0", form: str = "stream") -> Path:
    meta = {"mmselfsup_version": version, "mmcv_version": "1.4.2", "config": "model = dict(…)", "epoch": 70}
    return save({"meta": meta, "state_dict": collections.OrderedDict(state)}, path, form)


def file_1x(state: dict[str, Tensor], path: Path, monkeypatch: pytest.MonkeyPatch, form: str = "zip") -> Path:
    """A file as mmengine writes it, with its own classes; the module is gone afterwards."""

    class HistoryBuffer:
        def __init__(self) -> None:
            self._log_history = np.arange(5.0)

    module = types.ModuleType("mmengine.logging.history_buffer")
    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    content = {
        "meta": {"epoch": 70, "mmengine_version": "0.1.0", "cfg": "…"},
        "state_dict": collections.OrderedDict(state),
        "message_hub": {"log_scalars": {"train/loss": HistoryBuffer()}},
        "param_schedulers": [{"last_step": 3}],
    }
    with monkeypatch.context() as patch:
        for name in ("mmengine", "mmengine.logging", module.__name__):
            patch.setitem(sys.modules, name, module)
        return save(content, path, form)


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return list(found) == list(expected) and all(torch.equal(found[key], expected[key]) for key in expected)


# Layouts


@pytest.mark.parametrize("form", ["zip", "stream"])
def test_whole_0x_file(folder: Path, state: dict[str, Tensor], form: str) -> None:
    found = convert_checkpoint(file_0x(state, folder / "a.pth", form=form))
    assert same(found.state_dict, state)
    assert (found.backbone, found.pair_layers, found.neck_channels, found.in_channels) == ("resnet18", True, NECK, 3)
    assert (found.channel_order, found.label_order, found.version) == ("rgb", "raster", "mmselfsup 0.7.0")
    assert (found.taken, found.ignored, found.filled) == (len(state), (), ())


@pytest.mark.parametrize("form", ["zip", "stream"])
def test_whole_1x_file(folder: Path, state: dict[str, Tensor], form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"data_preprocessor.mean": torch.zeros(3), "data_preprocessor.std": torch.ones(3)}
    found = convert_checkpoint(file_1x(state | extra, folder / "a.pth", monkeypatch, form))
    assert (found.channel_order, found.label_order, found.preset) == ("rgb", "openmmlab-1.x", "openmmlab-1.x")
    assert "mmengine 0.1.0" in found.version
    assert found.ignored == ("data_preprocessor.mean", "data_preprocessor.std")
    rows = list(RASTER_FROM_1X)
    expected = state | {key: state[key][rows] for key in ("head.fc_cls.weight", "head.fc_cls.bias")}
    assert same(found.state_dict, expected)
    assert "2 ignored (data_preprocessor.mean" in found.report


def test_extract_backbone_output(folder: Path, state: dict[str, Tensor]) -> None:
    path = save({"state_dict": backbone_only(state), "author": "MMSelfSup"}, folder / "a.pth", "stream")
    with pytest.raises(WeightsError, match=r"channel order.*channel_order='rgb' or 'bgr' \(--channel-order\)"):
        convert_checkpoint(path)
    found = convert_checkpoint(path, channel_order="bgr")
    assert (found.pair_layers, found.neck_channels, found.channel_order) == (False, None, "bgr")
    assert same({key.removeprefix("backbone."): value for key, value in found.state_dict.items()}, backbone_only(state))


@pytest.mark.parametrize("entry", [None, "model", "state_dict"])
def test_torchvision_state_dict(folder: Path, entry: str | None) -> None:
    theirs = torchvision.models.resnet18().half().state_dict()
    found = convert_checkpoint(save(theirs if entry is None else {entry: theirs, "epoch": 3}, folder / "a.pth"))
    assert (found.version, found.channel_order, found.pair_layers) == ("torchvision", "rgb", False)
    assert found.ignored == ("fc.weight", "fc.bias")
    kept = {f"backbone.{key}": value for key, value in theirs.items() if not key.startswith("fc.")}
    assert same(found.state_dict, kept)


def test_torchvision_state_dict_without_classifier(folder: Path, state: dict[str, Tensor]) -> None:
    found = convert_checkpoint(save(backbone_only(state), folder / "a.pth"))
    assert (found.channel_order, found.ignored) == ("rgb", ())


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers(folder: Path, state: dict[str, Tensor], wrapper: str) -> None:
    wrapped = {wrapper + key: value for key, value in state.items()}
    assert same(convert_checkpoint(file_0x(wrapped, folder / "a.pth")).state_dict, state)


def test_own_safetensors_with_and_without_its_card(folder: Path, state: dict[str, Tensor]) -> None:
    card = Card("mine", "resnet18", neck_channels=NECK, channel_order="bgr", source_label_order="openmmlab-1.x")
    write_model_folder(folder / "mine", state, card)
    found = convert_checkpoint(folder / "mine" / "model.safetensors")
    # The rows were put in order when the file was made; doing it again would undo it.
    assert (found.channel_order, found.label_order) == ("bgr", "raster")
    assert same(found.state_dict, state)
    alone = shutil.copy(folder / "mine" / "model.safetensors", folder / "alone.safetensors")
    with pytest.raises(WeightsError, match=r"channel order.* and .*label_order='raster' or 'openmmlab-1.x'"):
        convert_checkpoint(alone)
    assert same(convert_checkpoint(alone, channel_order="rgb", label_order="raster").state_dict, state)


def test_card_beside_that_promises_other_bytes(folder: Path, state: dict[str, Tensor]) -> None:
    write_model_folder(folder / "mine", state, Card("mine", "resnet18", neck_channels=NECK))
    safetensors.torch.save_file(
        state | {"head.fc_cls.bias": torch.zeros(8)}, folder / "mine" / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(DigestError, match="promises"):
        convert_checkpoint(folder / "mine" / "model.safetensors")


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_every_resnet_of_torchvision_is_known(name: str) -> None:
    from context_pred.zoo.convert import _backbone

    with torch.device("meta"):
        keys = getattr(torchvision.models, name)().state_dict()
    assert _backbone({f"backbone.{key}": value for key, value in keys.items() if not key.startswith("fc.")}) == name


@pytest.mark.parametrize("name", ["contextnet", "contextnet-paper"])
def test_contextnet_is_known(name: str) -> None:
    from context_pred.zoo.convert import _backbone

    with torch.device("meta"):
        keys = ContextPredictionModel(name).state_dict()
    assert _backbone(keys) == name


# Orders


@pytest.mark.parametrize(
    ("meta", "channels", "labels"),
    [
        ({"mmselfsup_version": "0.5.0"}, "bgr", "raster"),
        ({"mmselfsup_version": "0.6.0+3b1f2e4"}, "bgr", "raster"),
        ({"mmselfsup_version": "0.7.0"}, "rgb", "raster"),
        ({"mmselfsup_version": "0.7.1"}, "rgb", "raster"),
        ({"mmselfsup_version": "0.10.1"}, "rgb", "raster"),
        ({"mmselfsup_version": "0.11.0"}, "rgb", "raster"),
        ({"mmselfsup_version": "1.0.0rc1"}, "rgb", "openmmlab-1.x"),
        ({"mmengine_version": "0.1.0+ab12"}, "rgb", "openmmlab-1.x"),
        ({"openselfsup_version": "0.2.0+c4e8c9e"}, "rgb", "raster"),
        ({"mmselfsup_version": "0.1.0"}, None, None),  # before the public code: nobody knows
        ({"mmcv_version": "1.3.0"}, None, None),
        ({"mmselfsup_version": "unknown"}, None, None),
    ],
)
def test_orders_by_version(
    folder: Path, state: dict[str, Tensor], meta: dict[str, str], channels: str | None, labels: str | None
) -> None:
    path = save({"meta": meta, "state_dict": state}, folder / "a.pth")
    if channels is None:
        with pytest.raises(WeightsError, match=r"channel order.*label_order="):
            convert_checkpoint(path)
        with pytest.raises(WeightsError, match="does not tell in which order its head counts"):
            convert_checkpoint(path, channel_order="rgb")
        channels, labels = "bgr", "openmmlab-1.x"
        found = convert_checkpoint(path, channel_order=channels, label_order=labels)
    else:
        found = convert_checkpoint(path)
    assert (found.channel_order, found.label_order) == (channels, labels)
    card = found.card("x")
    assert (card.channel_order, card.source_label_order, card.neck_channels) == (channels, labels, NECK)
    assert card.patch_sampler.get("channel_order", "rgb") == channels
    if labels == "raster":
        assert (card.mean, card.std, card.patch_sampler["preset"]) == (IMAGENET_MEAN, IMAGENET_STD, "openmmlab-0.x")
    else:
        assert card.mean == pytest.approx((124 / 255, 117 / 255, 104 / 255))
        assert card.std == pytest.approx((59 / 255, 58 / 255, 58 / 255))
        assert card.patch_sampler["preset"] == "openmmlab-1.x"


def test_labels_by_hand(folder: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """The label maps of 0.x and 1.x, written out: each row of the classifier must end at its raster place."""
    theirs, raster = "UL L DL U D UR R DR".split(), "UL U UR L R DL D DR".split()  # noqa: SIM905
    weights = {place: torch.full((NECK,), float(index)).half() for index, place in enumerate(theirs)}
    changed = state | {
        "head.fc_cls.weight": torch.stack([weights[place] for place in theirs]),
        "head.fc_cls.bias": torch.tensor([float(len(place) * 10 + ord(place[-1])) for place in theirs]).half(),
    }
    found = convert_checkpoint(file_1x(changed, folder / "a.pth", monkeypatch)).state_dict
    assert torch.equal(found["head.fc_cls.weight"], torch.stack([weights[place] for place in raster]))
    assert found["head.fc_cls.bias"].tolist() == [len(place) * 10 + ord(place[-1]) for place in raster]


def test_arguments_override_the_file(folder: Path, state: dict[str, Tensor]) -> None:
    path = file_0x(state, folder / "a.pth", "0.5.0")
    found = convert_checkpoint(path, channel_order="rgb", label_order="openmmlab-1.x")
    assert (found.channel_order, found.label_order) == ("rgb", "openmmlab-1.x")
    assert torch.equal(found.state_dict["head.fc_cls.bias"], state["head.fc_cls.bias"][list(RASTER_FROM_1X)])
    with pytest.raises(UnknownNameError, match="Did you mean 'bgr'"):
        convert_checkpoint(path, channel_order="bgrr")
    with pytest.raises(UnknownNameError, match=r"Did you mean 'openmmlab-1\.x'"):
        convert_checkpoint(path, label_order="openmmlab")


def test_a_card_overrides_the_file(folder: Path, state: dict[str, Tensor]) -> None:
    path = file_0x(state, folder / "a.pth", "0.7.0")
    card = Card("x", "resnet18", neck_channels=NECK, channel_order="bgr", source_label_order="openmmlab-1.x")
    found = convert_checkpoint(path, card=card)
    assert (found.channel_order, found.label_order) == ("bgr", "openmmlab-1.x")
    assert convert_checkpoint(path, card=card, channel_order="rgb").channel_order == "rgb"
    with pytest.raises(WeightsError, match="resnet18 with pair layers, but the card 'x' describes a resnet50 with"):
        convert_checkpoint(path, card=card.replace(backbone="resnet50"))
    with pytest.raises(WeightsError, match="describes a resnet18 without"):
        convert_checkpoint(path, card=card.replace(pair_layers=False))


def test_a_file_of_the_zoo_is_known_by_its_digest(
    folder: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save({"state_dict": state}, folder / "renamed.pth")
    with pytest.raises(WeightsError, match="does not tell"):
        convert_checkpoint(path)
    card = Card("of-the-zoo", "resnet18", neck_channels=NECK, channel_order="bgr", aliases=("plain",))
    card = card.replace(url="https://host/file.pth", url_sha256_prefix=file_sha256(path)[:8])
    (folder / "weights" / "of-the-zoo").mkdir(parents=True)
    card.write(folder / "weights" / "of-the-zoo" / "card.json")
    monkeypatch.setattr(card_module, "weights_folder", lambda: folder / "weights")
    assert convert_checkpoint(path).channel_order == "bgr"
    written = Card.read(convert(path, folder / "out") / "card.json")
    assert (written.name, written.url, written.aliases) == ("of-the-zoo", card.url, ())
    turned = Card.read(convert(path, folder / "turned", channel_order="rgb") / "card.json")
    assert (turned.channel_order, turned.patch_sampler["channel_order"]) == ("rgb", "rgb")


# Strictness


def test_missing_extra_and_misshaped_keys_are_named(folder: Path, state: dict[str, Tensor]) -> None:
    broken = dict(state)
    del broken["backbone.layer2.1.bn2.running_var"], broken["head.fc_cls.bias"]
    broken["neck.fc3.weight"] = torch.ones(2)
    broken["backbone.layer1.0.conv1.weight"] = torch.ones(64, 64, 5, 5)
    with pytest.raises(WeightsError) as caught:
        convert_checkpoint(file_0x(broken, folder / "a.pth"))
    message = str(caught.value)
    assert "2 missing: backbone.layer2.1.bn2.running_var, head.fc_cls.bias" in message
    assert "1 extra: neck.fc3.weight" in message
    assert "backbone.layer1.0.conv1.weight is (64, 64, 5, 5), not (64, 64, 3, 3)" in message
    assert str(folder / "a.pth") in message


@pytest.mark.parametrize("key", ["fc.weight", "backbone.fc.weight", "queue", "head.fc_cls.scale"])
def test_only_listed_keys_are_ignored(folder: Path, state: dict[str, Tensor], key: str) -> None:
    with pytest.raises(WeightsError, match=f"1 extra: {re.escape(key)}"):
        convert_checkpoint(file_0x(state | {key: torch.ones(1)}, folder / "a.pth"))


def test_a_whole_block_missing(folder: Path, state: dict[str, Tensor]) -> None:
    broken = {key: value for key, value in state.items() if not key.startswith("backbone.layer3.1.")}
    with pytest.raises(WeightsError, match=r"resnet18\. 12 missing: backbone\.layer3\.1\.conv1\.weight"):
        convert_checkpoint(file_0x(broken, folder / "a.pth"))


def test_other_networks_are_no_backbone(folder: Path) -> None:
    path = save(torchvision.models.mobilenet_v3_small().state_dict(), folder / "a.pth")
    with pytest.raises(WeightsError, match=r"no backbone of this library \(backbone.features.0.0.weight"):
        convert_checkpoint(path)
    with pytest.raises(WeightsError, match="no backbone of this library"):
        convert_checkpoint(save({"a": torch.ones(1)}, folder / "b.pth"))


def test_two_keys_that_mean_one(folder: Path, state: dict[str, Tensor]) -> None:
    twice = state | {"module.head.fc_cls.bias": torch.ones(8)}
    with pytest.raises(WeightsError, match=r"two entries mean 'head\.fc_cls\.bias'"):
        convert_checkpoint(file_0x(twice, folder / "a.pth"))


def test_entries_that_are_no_weights(folder: Path, state: dict[str, Tensor]) -> None:
    with pytest.raises(WeightsError, match=r"not tensors: head.extra \(str\)"):
        convert_checkpoint(file_0x(state | {"head.extra": "text"}, folder / "a.pth"))  # type: ignore[dict-item]
    whole = state | {"backbone.conv1.weight": torch.ones(64, 3, 7, 7, dtype=torch.int64)}
    with pytest.raises(WeightsError, match=r"wrong type: backbone\.conv1\.weight is int64"):
        convert_checkpoint(file_0x(whole, folder / "a.pth"))


def test_counts_that_old_files_lack(folder: Path, state: dict[str, Tensor]) -> None:
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    found = convert_checkpoint(file_0x(old, folder / "a.pth"))
    assert len(found.filled) == len(state) - len(old) == 21
    assert all(found.state_dict[key] == 0 for key in found.filled)
    assert found.taken == len(old)
    assert "21 missing num_batches_tracked set to 0" in found.report
    one = {key: value for key, value in state.items() if key != "backbone.bn1.num_batches_tracked"}
    with pytest.raises(WeightsError, match=r"1 missing: backbone\.bn1\.num_batches_tracked"):
        convert_checkpoint(file_0x(one, folder / "a.pth"))


def test_other_numbers_of_input_channels_need_a_card(folder: Path, state: dict[str, Tensor]) -> None:
    path = file_0x(state | {"backbone.conv1.weight": torch.ones(64, 5, 7, 7)}, folder / "a.pth")
    assert convert_checkpoint(path).in_channels == 5
    with pytest.raises(WeightsError, match="takes 5 channels"):
        convert(path, folder / "out")


def test_precision(folder: Path, state: dict[str, Tensor]) -> None:
    shared = torch.arange(128.0, dtype=torch.float64)
    mixed = state | {"backbone.bn1.weight": shared[:64], "backbone.bn1.bias": shared[64:]}
    found = convert_checkpoint(file_0x(mixed, folder / "a.pth")).state_dict
    assert found["backbone.bn1.bias"].dtype == torch.float32
    assert found["backbone.bn1.bias"].tolist() == list(range(64, 128))
    assert found["backbone.conv1.weight"].dtype == torch.float16
    assert found["backbone.bn1.num_batches_tracked"].dtype == torch.int64


# Writing


def files(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in path.iterdir()}


def test_converting_twice_gives_the_same_bytes(folder: Path, state: dict[str, Tensor]) -> None:
    path = file_0x(state, folder / "a.pth")
    first = files(convert(path, folder / "one", name="x"))
    # Another process has another hash seed, and another time of day.
    code = f"from context_pred.zoo.convert import convert; convert({str(path)!r}, {str(folder / 'two')!r}, name='x')"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[2])
    assert files(folder / "two") == first
    assert sorted(first) == ["card.json", "model.safetensors", "source.json"]
    backwards = file_0x(dict(reversed(state.items())), folder / "b.pth")
    convert(backwards, folder / "three")
    assert (folder / "three" / "model.safetensors").read_bytes() == first["model.safetensors"]


def test_what_is_written(folder: Path, state: dict[str, Tensor]) -> None:
    path = file_0x(state, folder / "some model.pth", "0.5.0")
    out = convert(path, folder / "deep" / "out")
    card = Card.read(out / "card.json")
    assert card.name == "some model"
    assert card.channel_order == "bgr"
    assert card.file == "model.safetensors"
    assert card.sha256 == file_sha256(out / "model.safetensors")
    assert card.file_size == (out / "model.safetensors").stat().st_size
    model = ContextPredictionModel("resnet18", neck_channels=NECK)
    assert card.num_params == sum(p.numel() for p in model.parameters())
    source = json.loads((out / "source.json").read_text())
    assert source == {"file": "some model.pth", "source_sha256": file_sha256(path), "sha256": card.sha256}
    assert file_sha256(path) in card.notes[0]
    assert "mmselfsup 0.5.0" in card.notes[0]
    assert str(folder) not in "".join(text.decode() for name, text in files(out).items() if name.endswith("json"))
    loaded = ContextPredictionModel.from_pretrained(out)
    assert all(torch.equal(value, state[key].to(value.dtype)) for key, value in loaded.state_dict().items())


def test_a_model_folder_converts_to_itself(folder: Path, state: dict[str, Tensor]) -> None:
    card = Card("mine", "resnet18", neck_channels=NECK, source_label_order="openmmlab-1.x", title="A title")
    card = write_model_folder(folder / "mine", state, card)
    out = convert(folder / "mine", folder / "copy")
    assert Card.read(out / "card.json") == card
    assert (out / "model.safetensors").read_bytes() == (folder / "mine" / "model.safetensors").read_bytes()


def test_existing_folders(folder: Path, state: dict[str, Tensor]) -> None:
    path = file_0x(state, folder / "a.pth")
    convert(path, folder / "out")
    with pytest.raises(InvalidInputError, match=r"is there already.*overwrite=True"):
        convert(path, folder / "out", name="new")
    convert(path, folder / "out", name="new", overwrite=True)
    assert Card.read(folder / "out" / "card.json").name == "new"
    (folder / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(StorageError, match=r"other files in it \(thesis.tex\)"):
        convert(path, folder / "out", overwrite=True)
    assert (folder / "out" / "thesis.tex").read_text() == "years of work"
    with pytest.raises(StorageError, match="Cannot write"):
        convert(path, folder / "a.pth" / "below a file")
    assert not [entry.name for entry in folder.iterdir() if entry.name.startswith(".")]


def test_bad_sources_write_nothing(folder: Path, state: dict[str, Tensor]) -> None:
    with pytest.raises(NotCachedError, match=r"nowhere\.pth"):
        convert(folder / "nowhere.pth", folder / "out")
    (folder / "empty").mkdir()
    with pytest.raises(InvalidInputError, match="is a folder"):
        convert(folder / "empty", folder / "out")
    (folder / "a.pth").write_text("not weights")
    with pytest.raises(WeightsError, match="neither torch's nor safetensors"):
        convert(folder / "a.pth", folder / "out")
    assert not (folder / "out").exists()


def test_many_writers_at_once(folder: Path) -> None:
    """Whatever the order, the folder is whole at the end and nothing else is left."""

    def write(writer: int) -> None:
        for i in range(20):
            value = (writer + i) % 3
            source = {"url": "https://host/x", "sha256": "ab"}
            write_model_folder(folder / "out", {"w": torch.full((9,), value)}, Card(f"{value}", "resnet18"), source)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    card = Card.read(folder / "out" / "card.json")
    assert card.sha256 == file_sha256(folder / "out" / "model.safetensors")
    assert json.loads((folder / "out" / "source.json").read_text())["sha256"] == card.sha256
    assert [entry.name for entry in folder.iterdir()] == ["out"]


def test_the_same_folder_again_is_left_alone(folder: Path) -> None:
    card = Card("x", "resnet18")
    write_model_folder(folder / "out", {"w": torch.ones(9)}, card)
    before = (folder / "out").stat().st_ino
    write_model_folder(folder / "out", {"w": torch.ones(9)}, card)
    assert (folder / "out").stat().st_ino == before
    damaged = (folder / "out" / "model.safetensors").read_bytes()[:-1] + b"!"
    (folder / "out" / "model.safetensors").write_bytes(damaged)
    write_model_folder(folder / "out", {"w": torch.ones(9)}, card)
    assert (folder / "out" / "model.safetensors").read_bytes() != damaged


# The published layout, whole


def fill(key: str, shape: tuple[int, ...]) -> Tensor:
    """The goldens' weights (tests/goldens/README.md)."""
    dice = np.random.RandomState(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    if key.endswith("running_mean"):
        values = 0.1 * dice.randn(*shape)
    elif key.endswith("running_var"):
        values = 1 + 0.1 * dice.rand(*shape)
    elif len(shape) > 1:
        values = dice.randn(*shape) * np.sqrt(2 / np.prod(shape[1:]))
    else:
        values = 1 + 0.1 * dice.randn(*shape) if key.endswith("weight") else 0.1 * dice.randn(*shape)
    return torch.from_numpy(np.asarray(values, np.float32))


def test_a_1x_file_gives_upstream_s_logits_in_raster_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = json.loads((GOLDENS / "state_dict_keys.json").read_text())
    assert len(keys) == 327
    theirs = {key: fill(key, tuple(shape)) for key, shape, _ in keys}
    path = file_1x(theirs, folder / "a.pth", monkeypatch, "stream")
    converted = convert_checkpoint(path)
    assert (converted.backbone, converted.taken, converted.ignored) == ("resnet50", 327, ())
    assert set(converted.state_dict) == {key for key, _, _ in keys}
    card = converted.card("x")
    assert card.patch_sampler == {"type": "GridPatchSampler", "preset": "openmmlab-1.x"}
    model = ContextPredictionModel.from_card(card, converted.state_dict)
    assert sum(p.numel() for p in model.parameters()) == 40_330_312
    patches = torch.from_numpy(np.random.RandomState(1).randn(2, 9, 3, 64, 64).astype(np.float32))
    with torch.inference_mode():
        logits = model(patches[:, 1:].flatten(0, 1), patches[:, 0], torch.arange(2).repeat_interleave(8))
    expected = torch.from_numpy(np.load(GOLDENS / "relative_loc_1x.npz")["eval/logits_eval"])[:, list(RASTER_FROM_1X)]
    assert (logits - expected).abs().max() < 1e-4 * expected.std()
