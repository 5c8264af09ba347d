"""Shipping: half-precision weights that load, and a card made from the run, its corpus and its audit."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from context_pred.card import Card
from context_pred.model import ContextPredictionModel

WEIGHTS = Path(__file__).parents[2] / "weights"
sys.path.insert(0, str(WEIGHTS))
script = importlib.import_module("ship")
sys.path.remove(str(WEIGHTS))

RECIPE = """title = "t"
[model]
backbone = "resnet18"
[images]
mode = "squares"
[sampler]
type = "GridPatchSampler"
crop = 60
patch = 16
[batch]
images = 4
per_device = 4
[optimizer]
kind = "sgd"
learning_rate = 0.1
[schedule]
epochs = 1
"""
CORPUS = {
    "digest": "d" * 64,
    "counts": {"train/grocery": 2619, "heldout/grocery": 317, "train/free": 333, "train/clothing": 5174},
    "evaluation_sets_inside": {
        "GroceryStoreDataset": "all of it",
        "gcompris categorization.rcc": 105,
        "gcompris explore_monuments.rcc": 47,
    },
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder as `context-pred pretrain` leaves it, corpus and audit beside it, an older model shipped."""
    torch.manual_seed(0)
    model = ContextPredictionModel("resnet18", neck_channels=8)
    model.card = model.card.replace(name="tiny", recipe="small", notes=("36 images in 2 steps.",), trained="2026-01-02")
    folder = tmp_path / "run"
    model.save_pretrained(folder / "model")
    (folder / "recipe.toml").write_text(RECIPE)
    about = {"cpu": "Some CPU", "device": "cpu", "threads": 1, "count": 11744}
    (folder / "run.json").write_text(json.dumps(about))
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "corpus.json").write_text(json.dumps(CORPUS))
    findings = [{"question": "gap", "sign": False, "text": "With wider gaps 40 %."}]
    (tmp_path / "audit.json").write_text(json.dumps({"images": 500, "findings": findings}))
    older = tmp_path / "weights" / "small.20250101"
    older.mkdir(parents=True)
    Card("small.20250101", "resnet18", aliases=("small", "other")).write(older / "card.json")
    return folder


def ship(run: Path, monkeypatch: pytest.MonkeyPatch, name: str = "small.20260102") -> Path:
    root = run.parent
    command = f"ship {run} --corpus {root}/corpus --audit {root}/audit.json --name {name} --weights {root}/weights"
    command += " --note More."
    monkeypatch.setattr(sys, "argv", command.split())
    script.main()
    return root / "weights" / name


def test_shipped_folder_loads_and_is_nearly_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ship(run, monkeypatch)
    before = ContextPredictionModel.from_pretrained(run / "model").state_dict()
    shipped = ContextPredictionModel.from_pretrained(folder)
    assert (folder / "model.safetensors").stat().st_size < 0.51 * (run / "model/model.safetensors").stat().st_size
    for name, value in shipped.state_dict().items():
        assert value.dtype == before[name].dtype
        exact = "running_" in name or not value.is_floating_point()
        assert torch.equal(value, before[name]) if exact else torch.allclose(value, before[name], rtol=1e-3, atol=1e-7)


def test_card_says_what_run_corpus_and_audit_say(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card.read(ship(run, monkeypatch) / "card.json")
    assert (card.name, card.recipe, card.trained, card.aliases) == ("small.20260102", "small", "2026-01-02", ("small",))
    assert card.dataset.startswith("8,126 photographs without labels: 2,619 of GroceryStoreDataset's")
    assert "dddddddddddddddd" in card.dataset
    notes = " ".join(card.notes)
    for text in ("36 images in 2 steps.", "Some CPU, 1 thread; sgd", "11,744 entries", "105 pictures", "More."):
        assert text in notes
    assert "Audit on 500 photographs: With wider gaps 40 %." in card.notes
    assert card.metrics == ()  # the run's own are of other weights; `context-pred zoo results` puts new ones there


def test_plain_name_moves_from_the_older_model(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ship(run, monkeypatch)
    assert Card.read(run.parent / "weights/small.20250101/card.json").aliases == ("other",)
