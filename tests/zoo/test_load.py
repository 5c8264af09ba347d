"""``load_pretrained`` and ``verify``, end to end: names, paths, Hub ids; right weights, or an error that helps."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from context_pred import load_pretrained
from context_pred.card import Card, HubFile
from context_pred.errors import DigestError, InvalidInputError, NotCachedError, WeightsError
from context_pred.model import ContextPredictionModel
from context_pred.zoo import verify

NAME = "resnet18_tiny.1"
RASTER = [0, 3, 5, 1, 6, 2, 4, 7]  # 1.x label → raster label
REPOSITORY = "someone/tiny"


@pytest.fixture
def by_url(registry_folder: Path, caches: SimpleNamespace, server: Any, tiny: SimpleNamespace) -> Card:
    server.files["/tiny.pth"] = tiny.pth
    card = Card(
        name=NAME,
        backbone="resnet18",
        neck_channels=16,
        channel_order="bgr",
        mean=(0.1, 0.2, 0.3),
        std=(0.5, 0.6, 0.7),
        source_label_order="openmmlab-1.x",
        url=f"{server.url}/tiny.pth",
        url_sha256_prefix=tiny.pth_sha256[:8],
    )
    (registry_folder / NAME).mkdir()
    card.write(registry_folder / NAME / "card.json")
    return card


def same(model: ContextPredictionModel, state: dict[str, Tensor], *, permuted: bool) -> None:
    """Check every tensor; the head's rows are those of ``state``, permuted or not."""
    found = model.state_dict()
    assert list(found) == list(state)
    for key, value in found.items():
        expected = state[key][RASTER] if permuted and key.startswith("head.") else state[key]
        assert torch.equal(value, expected.to(value.dtype)), key
        assert value.dtype in (torch.float32, torch.int64)
        assert value.device.type == "cpu"


def test_by_name_from_its_url_and_then_from_the_cache(by_url: Card, server: Any, tiny: SimpleNamespace) -> None:
    for _ in range(2):
        model = load_pretrained(NAME, progress=False)
        same(model, tiny.state, permuted=True)
        assert not model.training
        assert model.card == by_url
        assert model.head is not None
        assert model.head.fc_cls.bias.tolist() == RASTER
    assert len(server.gets) == 1


def test_the_transform_is_the_file_s_own(by_url: Card) -> None:
    model = load_pretrained(NAME, progress=False)
    image = torch.zeros(3, 256, 256, dtype=torch.uint8)
    image[0] = 255  # red alone
    x = model.transform(image)
    # The file wants B, G, R, each with its own mean and standard deviation.
    expected = torch.tensor([(0 - 0.1) / 0.5, (0 - 0.2) / 0.6, (1 - 0.3) / 0.7])
    torch.testing.assert_close(x.mean((-2, -1)), expected)
    assert x.shape == (3, 224, 224)


def test_the_weights_work_and_can_be_trained(by_url: Card) -> None:
    model = load_pretrained(NAME, progress=False).train()
    patches = torch.randn(4, 3, 64, 64)
    loss = torch.nn.functional.cross_entropy(model(patches, patches.flip(0)), torch.arange(4))
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_loaded_tensors_are_their_own(by_url: Card, caches: SimpleNamespace, tmp_path: Path) -> None:
    model = load_pretrained(NAME, progress=False)
    weights = caches.zoo / NAME / "model.safetensors"
    before = weights.read_bytes()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert weights.read_bytes() == before
    assert not any(p.abs().sum() == 0 for p in load_pretrained(NAME, progress=False).head.parameters())  # type: ignore[union-attr]
    torch.save(model.head.state_dict(), tmp_path / "head.pth")  # type: ignore[union-attr]
    assert (tmp_path / "head.pth").stat().st_size < 10_000  # no tensor drags the rest of the file along


def test_other_input_channels(by_url: Card, tiny: SimpleNamespace) -> None:
    stem = tiny.state["backbone.conv1.weight"].float()
    model = load_pretrained(NAME, progress=False, in_channels=1)
    torch.testing.assert_close(model.backbone.conv1.weight, stem.sum(1, keepdim=True))
    assert model.card.in_channels == 1
    model = load_pretrained(NAME, progress=False, in_channels=4)
    torch.testing.assert_close(model.backbone.conv1.weight[:, 3], stem[:, 0] * 3 / 4)


@pytest.mark.parametrize("option", [{"channel_order": "rgb"}, {"label_order": "openmmlab-1.x"}])
def test_an_order_that_contradicts_the_card_is_refused(by_url: Card, option: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="leave it out"):
        load_pretrained(NAME, progress=False, **option)
    load_pretrained(NAME, progress=False, channel_order="bgr", label_order="raster")


@pytest.mark.parametrize("how", ["folder", "file", "pathlib"])
def test_a_saved_model_by_its_path(tmp_path: Path, tiny: SimpleNamespace, how: str) -> None:
    model = ContextPredictionModel("resnet18", neck_channels=16)
    model.load_weights(tiny.state)
    model.save_pretrained(tmp_path / "saved")
    path = {"folder": f"{tmp_path}/saved", "file": f"{tmp_path}/saved/model.safetensors", "pathlib": tmp_path / "saved"}
    loaded = load_pretrained(path[how])
    same(loaded, tiny.state, permuted=False)
    assert loaded.card.sha256 is not None


def test_a_damaged_model_folder(tmp_path: Path, tiny: SimpleNamespace) -> None:
    ContextPredictionModel("resnet18", neck_channels=16).save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "model.safetensors").write_bytes(tiny.safetensors)
    with pytest.raises(DigestError, match=r"model\.safetensors has SHA-256"):
        load_pretrained(tmp_path / "saved")


def test_a_published_file_by_its_path_is_known_by_its_digest(
    by_url: Card, tmp_path: Path, tiny: SimpleNamespace, server: Any
) -> None:
    (tmp_path / "renamed.pth").write_bytes(tiny.pth)
    model = load_pretrained(tmp_path / "renamed.pth")
    same(model, tiny.state, permuted=True)
    assert model.card == by_url
    assert not server.log


def test_somebody_s_checkpoint_by_its_path(tmp_path: Path, tiny: SimpleNamespace, registry_folder: Path) -> None:
    (tmp_path / "theirs.pth").write_bytes(tiny.pth)  # its meta says 1.x: RGB, positions by columns
    model = load_pretrained(str(tmp_path / "theirs.pth"))
    same(model, tiny.state, permuted=True)
    assert model.card.name == "theirs.pth"
    assert model.card.channel_order == "rgb"
    model = load_pretrained(tmp_path / "theirs.pth", channel_order="bgr", label_order="raster")
    same(model, tiny.state, permuted=False)
    assert model.card.channel_order == "bgr"


def test_a_bare_safetensors_file_asks_for_what_it_does_not_tell(tmp_path: Path, tiny: SimpleNamespace) -> None:
    (tmp_path / "x.safetensors").write_bytes(tiny.safetensors)
    with pytest.raises(WeightsError, match=r"channel_order=.*label_order="):
        load_pretrained(tmp_path / "x.safetensors")
    model = load_pretrained(tmp_path / "x.safetensors", channel_order="rgb", label_order="openmmlab-1.x")
    same(model, tiny.state, permuted=True)


def test_a_backbone_alone(tmp_path: Path, tiny: SimpleNamespace) -> None:
    state = {k.removeprefix("backbone."): v for k, v in tiny.state.items() if k.startswith("backbone.")}
    torch.save({**state, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}, tmp_path / "tv.pth")
    model = load_pretrained(tmp_path / "tv.pth")
    assert model.neck is None
    assert model.head is None
    assert "no pair layers" in repr(model)
    with pytest.raises(InvalidInputError, match="cannot compare patches"):
        model(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64))


def test_from_the_hub_by_name_and_by_id(
    registry_folder: Path, caches: SimpleNamespace, hub: Any, tiny: SimpleNamespace
) -> None:
    card = Card(name=NAME, backbone="resnet18", neck_channels=16, file="model.safetensors", sha256=tiny.sha256)
    files = {"card.json": card.to_json().encode(), "model.safetensors": tiny.safetensors}
    commit = hub.add(REPOSITORY, files)
    pinned = card.replace(file=None, sha256=None, hub=HubFile(REPOSITORY, commit, tiny.sha256))
    (registry_folder / NAME).mkdir()
    pinned.write(registry_folder / NAME / "card.json")
    for name in (NAME, f"hf-hub:{REPOSITORY}@{commit}", f"hf-hub:{REPOSITORY}@main"):
        same(load_pretrained(name, progress=False), tiny.state, permuted=False)
    requests = len(hub.log)
    same(load_pretrained(NAME), tiny.state, permuted=False)
    same(load_pretrained(f"hf-hub:{REPOSITORY}@{commit}"), tiny.state, permuted=False)
    assert len(hub.log) == requests


def test_a_backbone_in_timm_s_layout_on_the_hub(caches: SimpleNamespace, hub: Any, tiny: SimpleNamespace) -> None:
    state = {k.removeprefix("backbone."): v for k, v in tiny.state.items() if k.startswith("backbone.")}
    files = {"model.safetensors": safetensors.torch.save(state), "config.json": b'{"architecture": "resnet18"}'}
    commit = hub.add("someone/backbone", files)
    name = f"hf-hub:someone/backbone@{commit}"
    for local in (False, True):
        model = load_pretrained(name, channel_order="rgb", local_files_only=local, progress=False)
        assert model.neck is None
        assert torch.equal(model.backbone.conv1.weight, state["conv1.weight"].float())
        assert model.card.name == name


def test_what_ships_loads_offline(
    registry_folder: Path, caches: SimpleNamespace, offline: None, tiny: SimpleNamespace
) -> None:
    (registry_folder / NAME).mkdir()
    Card(name=NAME, backbone="resnet18", neck_channels=16, file="model.safetensors", sha256=tiny.sha256).write(
        registry_folder / NAME / "card.json"
    )
    (registry_folder / NAME / "model.safetensors").write_bytes(tiny.safetensors)
    same(load_pretrained(NAME), tiny.state, permuted=False)


# What is no model


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("Dear reader, these are not weights at all.")
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"state_dict": Evil(tmp_path / "touched")}))
    torch.save({"state_dict": {"backbone.conv1.weight": Evil(tmp_path / "touched")}}, tmp_path / "evil-too.pth")
    for name in ("text.safetensors", "empty.safetensors", "evil.pth", "evil-too.pth"):
        with pytest.raises(WeightsError, match=name):
            load_pretrained(tmp_path / name)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("content", [b"Dear reader, these are not weights.", b"", b"\x08\0\0\0\0\0\0\0[1, 2, 3]"])
def test_a_model_folder_whose_weights_are_none(tmp_path: Path, content: bytes) -> None:
    Card(name="x", backbone="resnet18").write(tmp_path / "card.json")
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match="is not a safetensors file"):
        load_pretrained(tmp_path)


def test_weights_of_another_network_are_named(tmp_path: Path, tiny: SimpleNamespace) -> None:
    Card(name="x", backbone="resnet18", neck_channels=32).write(tmp_path / "card.json")
    (tmp_path / "model.safetensors").write_bytes(tiny.safetensors)
    with pytest.raises(WeightsError, match=r"mis-shaped: .*neck\.fc\.weight is \(16, 1024\), not \(32, 1024\)"):
        load_pretrained(tmp_path)


# verify


def test_verify_reports_what_is_there(by_url: Card, caches: SimpleNamespace, server: Any) -> None:
    with pytest.raises(NotCachedError):
        verify(NAME)
    load_pretrained(NAME, progress=False)
    report = verify(NAME)
    weights = caches.zoo / NAME / "model.safetensors"
    assert report.ok
    assert report.path == weights
    assert report.sha256 == report.expected
    assert report.tensors == 129
    assert report.parameters == 11_176_512 + 16 * 1024 + 16 + 32 + 16 * 8 + 8
    assert NAME in str(report)
    assert str(weights) in str(report)
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    report = verify(NAME)
    assert not report.ok
    assert "delete" in str(report)
    assert len(server.gets) == 1


def test_verify_takes_paths(tmp_path: Path, tiny: SimpleNamespace) -> None:
    (tmp_path / "x.pth").write_bytes(tiny.pth)
    assert verify(tmp_path / "x.pth").ok
    (tmp_path / "x.pth").write_bytes(tiny.pth[: len(tiny.pth) // 2])
    report = verify(tmp_path / "x.pth")
    assert not report.ok
    assert "incomplete" in str(report)
