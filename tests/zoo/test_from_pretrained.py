"""``from_pretrained`` against a server with the Hub's routes: pinned and unpinned, cached, offline, incomplete."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from context_pred.errors import DigestError, DownloadError, InvalidInputError, NotCachedError
from context_pred.model import ContextPredictionModel

REPOSITORY = "someone/model"


@pytest.fixture
def saved(tmp_path: Path) -> dict[str, bytes]:
    """The files of a small model, as ``save_pretrained`` wrote them."""
    torch.manual_seed(0)
    ContextPredictionModel("resnet18", neck_channels=8, dropout=0.25).save_pretrained(tmp_path / "saved")
    return {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}


def test_pinned_it_loads_in_silence_and_asks_nobody_again(
    caches: SimpleNamespace, hub: Any, saved: dict[str, bytes]
) -> None:
    commit = hub.add(REPOSITORY, saved)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = ContextPredictionModel.from_pretrained(REPOSITORY, revision=commit)
        requests = len(hub.log)
        again = ContextPredictionModel.from_pretrained(REPOSITORY, revision=commit)
    assert len(hub.log) == requests
    assert model.neck.drop.p == 0.25
    assert not model.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])


@pytest.mark.parametrize("revision", [None, "main"])
def test_unpinned_it_warns(caches: SimpleNamespace, hub: Any, saved: dict[str, bytes], revision: str | None) -> None:
    hub.add(REPOSITORY, saved)
    with pytest.warns(UserWarning, match="without a pinned revision") as caught:
        ContextPredictionModel.from_pretrained(REPOSITORY, revision=revision)
    assert caught[0].filename == __file__


def test_without_config_json_the_card_is_enough(caches: SimpleNamespace, hub: Any, saved: dict[str, bytes]) -> None:
    del saved["config.json"]
    model = ContextPredictionModel.from_pretrained(REPOSITORY, revision=hub.add(REPOSITORY, saved), in_channels=1)
    assert model.backbone.in_channels == 1


def test_other_weights_than_the_card_promises(caches: SimpleNamespace, hub: Any, saved: dict[str, bytes]) -> None:
    saved["model.safetensors"] = saved["model.safetensors"][:-1] + b"\x01"
    commit = hub.add(REPOSITORY, saved)
    with pytest.raises(DigestError, match="SHA-256"):
        ContextPredictionModel.from_pretrained(REPOSITORY, revision=commit)


@pytest.mark.usefixtures("offline")
def test_offline_and_not_cached(hub: Any) -> None:
    with pytest.raises(NotCachedError, match=REPOSITORY):
        ContextPredictionModel.from_pretrained(REPOSITORY, revision="0" * 40)
    assert hub.log == []


def test_a_repository_that_is_not_there(caches: SimpleNamespace, hub: Any) -> None:
    with pytest.raises(DownloadError, match="no such repository"):
        ContextPredictionModel.from_pretrained("someone/nothing", revision="0" * 40)


@pytest.mark.parametrize("name", ["no-such-folder", "a/b/c", "./gone", "resnet50_8xb64-steplr-70e"])
def test_neither_a_folder_nor_a_hub_id(caches: SimpleNamespace, hub: Any, name: str) -> None:
    with pytest.raises(NotCachedError, match="no folder"):
        ContextPredictionModel.from_pretrained(name)
    assert hub.log == []


def test_a_file_is_pointed_to_load_pretrained(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(NotCachedError, match="load_pretrained"):
        ContextPredictionModel.from_pretrained(tmp_path / "model.safetensors")


def test_an_argument_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="in_chans"):
        ContextPredictionModel.from_pretrained(tmp_path, in_chans=1)
