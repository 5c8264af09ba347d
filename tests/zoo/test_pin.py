"""``zoo pin``: what the Hub holds is held against the card and the weights here, and noted on the card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from context_pred import load_pretrained, model_info
from context_pred.card import Card, HubFile
from context_pred.cli import main
from context_pred.errors import (
    DigestError,
    DownloadError,
    InvalidInputError,
    NotCachedError,
    UnknownNameError,
    WeightsError,
)
from context_pred.model import ContextPredictionModel
from context_pred.zoo.pin import pin
from context_pred.zoo.publish import publish

NAME = "tiny.20261124"
REPOSITORY = f"lab/{NAME}"


@pytest.fixture
def clone(caches: SimpleNamespace, registry_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone whose one model ships with it; the folder of its cards."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    torch.manual_seed(0)
    model = ContextPredictionModel("resnet18", neck_channels=8)
    model.card = model.card.replace(name=NAME, license="MIT", aliases=("tiny",))
    model.save_pretrained(registry_folder / NAME)
    return registry_folder


def published() -> str:
    (one,) = publish(NAME, "lab", token="hf_writer", layout="full")
    return f"{one.repository}@{one.revision}"


def changed(hub: Any, **files: bytes) -> str:
    """Put other files beside those published; return where they lie."""
    return f"{REPOSITORY}@{hub.commit(REPOSITORY, {name.replace('_', '.'): data for name, data in files.items()})}"


def test_the_card_and_the_zoo_page_say_where_the_hub_has_it(clone: Path, hub: Any) -> None:
    at = published()
    before = Card.read(clone / NAME / "card.json")
    result = CliRunner().invoke(main, ["zoo", "pin", "tiny", at], prog_name="context-pred")
    assert result.exit_code == 0, result.output
    assert result.output.split() == [str(clone / NAME / "card.json"), str(clone.parent / "model_zoo.md")]
    card = model_info(NAME)
    revision = at.partition("@")[2]
    assert card.hub == HubFile(REPOSITORY, revision, before.sha256 or "", "model.safetensors")
    assert card == before.replace(hub=card.hub)
    assert f"`{REPOSITORY}` at `{revision}`" in (clone.parent / "model_zoo.md").read_text()


def test_from_then_on_it_comes_from_the_hub(clone: Path, hub: Any) -> None:
    expected = load_pretrained("tiny").state_dict()
    pinned = pin("tiny", published()).card
    # What every published file of the zoo is: a card without its weights.
    pinned.replace(file=None).write(clone / NAME / "card.json")
    (clone / NAME / "model.safetensors").unlink()
    model = load_pretrained("tiny")
    assert model.card.hub == pinned.hub
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def test_publishing_again_after_the_pin_sends_nothing(clone: Path, hub: Any) -> None:
    at = published()
    pin("tiny", at)
    assert published() == at
    assert len(hub.commits) == 1


def test_the_command_after_publishing_is_printed(clone: Path, hub: Any) -> None:
    arguments = ["zoo", "publish", "tiny", "--namespace", "lab", "--token", "hf_writer", "--layout", "full"]
    result = CliRunner().invoke(main, arguments, prog_name="context-pred")
    assert f"context-pred zoo pin {NAME} {REPOSITORY}@{hub.head(REPOSITORY)[0]}" in result.output


def test_other_weights(clone: Path, hub: Any, tmp_path: Path) -> None:
    published()
    torch.manual_seed(1)
    other = ContextPredictionModel("resnet18", neck_channels=8)
    other.card = model_info(NAME)
    other.save_pretrained(tmp_path / "other")
    files = {path.name.replace(".", "_"): path.read_bytes() for path in (tmp_path / "other").iterdir()}
    text = (clone / NAME / "card.json").read_text()
    with pytest.raises(WeightsError, match=r"does not hold the weights of tiny.*tensors differ"):
        pin("tiny", changed(hub, **files))
    assert (clone / NAME / "card.json").read_text() == text
    assert not (clone.parent / "model_zoo.md").exists()


def test_weights_the_card_beside_them_does_not_promise(clone: Path, hub: Any) -> None:
    published()
    data = bytearray((clone / NAME / "model.safetensors").read_bytes())
    data[-1] ^= 1
    with pytest.raises(DigestError, match="publish it again"):
        pin("tiny", changed(hub, model_safetensors=bytes(data)))


def test_another_preprocessing(clone: Path, hub: Any) -> None:
    published()
    card = Card.read(clone / NAME / "card.json").replace(channel_order="bgr")
    with pytest.raises(WeightsError, match="channel_order is 'bgr', not 'rgb'"):
        pin("tiny", changed(hub, card_json=card.to_json().encode()))


def test_the_timm_layout_is_not_pinned(clone: Path, hub: Any) -> None:
    pytest.importorskip("timm")
    _, backbone = publish(NAME, "lab", token="hf_writer")
    with pytest.raises(WeightsError, match="whose name ends with -timm"):
        pin("tiny", f"{backbone.repository}@{backbone.revision}")


@pytest.mark.parametrize(
    ("at", "said"),
    [
        (f"{REPOSITORY}@main", "is no commit"),
        (f"{REPOSITORY}@{'0' * 39}", "is no commit"),
        (REPOSITORY, "OWNER/NAME@REVISION"),
        (f"{NAME}@{'0' * 40}", "OWNER/NAME@REVISION"),
    ],
)
def test_what_can_change_is_not_pinned(clone: Path, hub: Any, at: str, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        pin("tiny", at)
    assert hub.log == []


def test_a_misspelt_name(clone: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'tiny'"):
        pin("tny", f"{REPOSITORY}@{'0' * 40}")


def test_nothing_there(clone: Path, hub: Any) -> None:
    with pytest.raises(DownloadError, match="no such repository"):
        pin("tiny", f"{REPOSITORY}@{'0' * 40}")


def test_nothing_here_to_compare_with(clone: Path, hub: Any) -> None:
    at = published()
    Card.read(clone / NAME / "card.json").replace(file=None).write(clone / NAME / "card.json")
    with pytest.raises(NotCachedError, match="not on this machine"):
        pin("tiny", at)


def test_an_installation_has_no_cards_to_write(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from context_pred import card

    monkeypatch.setattr(card, "__file__", str(clone.parent / "card.py"))  # as in a wheel, whose cards lie beside it
    with pytest.raises(InvalidInputError, match="in a clone of the repository"):
        pin("tiny", f"{REPOSITORY}@{'0' * 40}")


def test_pinning_changes_no_other_line_of_the_cards_that_are_there(root: Path, tmp_path: Path) -> None:
    for path in sorted((root / "weights").glob("*/card.json")):
        copy = shutil.copy(path, tmp_path)
        Card.read(copy).write(copy)
        assert json.loads(Path(copy).read_text()) == json.loads(path.read_text())
        assert Path(copy).read_bytes() == path.read_bytes(), path
