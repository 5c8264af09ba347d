"""Shipping: half-precision weights that load, a card made from the run and its measurements, and of nothing else."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

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


def evaluation(digest: str) -> dict[str, Any]:
    rows = [
        {"model": model, "seed": seed, "weights": weights, "set": "shop", "label": "coarse"}
        | {"method": method, "layer": layer, "accuracy": accuracy + 0.1 * (layer == "feature2")}
        for model, seed, weights, accuracy in (
            ("m", None, digest, 0.4),
            ("random:resnet18", 0, None, 0.20),
            ("random:resnet18", 1, None, 0.24),
        )
        for method in ("knn", "linear")
        for layer in ("feature1", "feature2")
    ]
    verdict = {"set": "shop", "label": "coarse", "model": "m", "layer": "feature2", "accuracy": 0.5}
    verdict |= {"random_layer": "feature2", "random_mean": 0.32, "random_spread": 0.0283, "random_seeds": 2}
    return {
        "protocol": {"short_side": 160, "pool": "mean over positions", "knn": "k=5, cosine", "linear": "C = 0.01"},
        "sets": {"shop": {"bank": 20, "queries": 10, "classes": {"coarse": 3}, "note": "The bank is known."}},
        "results": rows,
        "verdicts": [
            {**verdict, "method": "knn", "better_by_two_spreads": True},
            {**verdict, "method": "linear", "better_by_two_spreads": False},
        ],
    }


def pretext(digest: str) -> dict[str, Any]:
    values = {"low": 0.4, "high": 0.45, "images": 500, "accuracy": 0.4249}
    rows = [{"set": "BSDS500", "geometry": g, "color": c, **values} for g, c in script.GEOMETRIES]
    return {"weights": digest, "corpus": "d" * 64, "repeats": 10, "results": rows}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder as `context-pred pretrain` leaves it, the measurements beside it, an older model shipped."""
    torch.manual_seed(0)
    model = ContextPredictionModel("resnet18", neck_channels=8)
    model.card = model.card.replace(name="tiny", recipe="small", notes=("36 images in 2 steps.",), trained="2026-01-02")
    folder = tmp_path / "run"
    model.save_pretrained(folder / "model")
    digest = model.card.sha256 or Card.read(folder / "model" / "card.json").sha256 or ""
    (folder / "recipe.toml").write_text(RECIPE)
    about = {"cpu": "Some CPU", "device": "cpu", "threads": 1, "count": 11744}
    (folder / "run.json").write_text(json.dumps(about))
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "corpus.json").write_text(json.dumps(CORPUS))
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation(digest)))
    (tmp_path / "pretext.json").write_text(json.dumps(pretext(digest)))
    findings = [{"question": "gap", "sign": False, "text": "With wider gaps 40 %."}]
    (tmp_path / "audit.json").write_text(json.dumps({"images": 500, "findings": findings}))
    older = tmp_path / "weights" / "small.20250101"
    older.mkdir(parents=True)
    Card("small.20250101", "resnet18", aliases=("small", "other")).write(older / "card.json")
    return folder


def ship(run: Path, monkeypatch: pytest.MonkeyPatch, name: str = "small.20260102") -> Path:
    root = run.parent
    command = f"ship {run} --corpus {root}/corpus --evaluation {root}/evaluation.json --pretext {root}/pretext.json"
    command += f" --audit {root}/audit.json --name {name} --weights {root}/weights --note More."
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


def test_card_says_what_run_corpus_and_measurements_say(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card.read(ship(run, monkeypatch) / "card.json")
    assert (card.name, card.recipe, card.trained, card.aliases) == ("small.20260102", "small", "2026-01-02", ("small",))
    assert card.dataset.startswith("8,126 photographs without labels: 2,619 of GroceryStoreDataset's")
    assert "dddddddddddddddd" in card.dataset
    notes = " ".join(card.notes)
    for text in ("36 images in 2 steps.", "Some CPU, 1 thread; sgd", "11,744 entries", "105 pictures", "More."):
        assert text in notes
    assert "Audit on 500 photographs: With wider gaps 40 %." in card.notes
    assert "kNN, top-1 %" in notes
    assert "shop coarse 50.0 (feature2) against 32.0 ± 2.8 (feature2)." in notes
    assert "shop coarse 50.0 (feature2) against 32.0 ± 2.8 (feature2), not better by more than two spreads." in notes
    rows = {(m.benchmark, m.layer, m.metric): m.value for m in card.metrics}
    assert rows["Pretext accuracy", "", "%, the paper's geometry, in grey"] == "42.5 (40.0 … 45.0)"
    assert rows["kNN, trained", "feature2", "top-1 %"] == "50.0"
    assert rows["linear SVM, random initialisation (2 seeds)", "feature1", "top-1 %"] == "22.0 ± 2.8"
    assert len(card.metrics) == 3 + 2 * 2 * 2
    assert {m.measured_on for m in card.metrics} == {"small.20260102"}
    assert {m.dataset for m in card.metrics} >= {"shop, 10 test pictures, 3 coarse classes"}


def test_plain_name_moves_from_the_older_model(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ship(run, monkeypatch)
    assert Card.read(run.parent / "weights/small.20250101/card.json").aliases == ("other",)


@pytest.mark.parametrize("name", ["evaluation", "pretext"])
def test_measurements_of_other_weights_are_refused(run: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    other = {"evaluation": evaluation, "pretext": pretext}[name]("0" * 64)
    (run.parent / f"{name}.json").write_text(json.dumps(other))
    with pytest.raises(SystemExit, match="measured weights"):
        ship(run, monkeypatch)
    assert not (run.parent / "weights" / "small.20260102").exists()


def test_random_initialisations_alone_are_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = evaluation("x")
    report["results"] = [r for r in report["results"] if r["model"].startswith("random:")]
    (run.parent / "evaluation.json").write_text(json.dumps(report))
    with pytest.raises(SystemExit, match="no trained model"):
        ship(run, monkeypatch)


def test_pretext_accuracy_on_another_corpus_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run.parent / "corpus/corpus.json").write_text(json.dumps({**CORPUS, "digest": "e" * 64}))
    with pytest.raises(SystemExit, match="of the corpus dddd"):
        ship(run, monkeypatch)
