"""Figures on a card: from the command's folders, of these weights alone, once each."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from context_pred.card import Card, Metric
from context_pred.cli import main
from context_pred.errors import InvalidInputError, NotCachedError
from context_pred.evaluate import card_figures
from context_pred.evaluate import run as run_protocol
from context_pred.model import ContextPredictionModel

SMALL = {"size": 32, "k": (1, 3)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    made = ContextPredictionModel("resnet18", pair_layers=False)
    made.card = made.card.replace(name="mine", metrics=(Metric("told", "before", "", "%", "1"),))
    made.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def data(mini: Any) -> Path:
    folder: Path = mini.folders("train", "test", each=3)
    return folder


def knn(model: Any, data: Path, out: Path, **options: Any) -> Any:
    layers = ["feature1", "feature5"]
    return run_protocol(
        "knn", model, data, out=out, layers=layers, settings=SMALL, device="cpu", workers=1, progress=False, **options
    )


def test_figures_go_on_the_card_and_are_replaced(model: Path, data: Path, tmp_path: Path) -> None:
    own = knn(model, data, tmp_path / "own")
    random = knn("random:resnet18", data, tmp_path / "random", seeds=(0, 1))
    outcome = CliRunner().invoke(
        main, ["zoo", "results", str(model), str(tmp_path / "own"), str(tmp_path / "random")], catch_exceptions=False
    )
    assert outcome.exit_code == 0, outcome.output
    metrics = Card.read(model / "card.json").metrics
    assert metrics[0].benchmark == "told"  # what stood there stays
    best = own.best
    found = {(m.measured_on, m.benchmark, m.layer, m.metric): m.value for m in metrics[1:]}
    for one in own.measured:
        here = f"{100 * one.value:.2f}"
        if one.metric == "top-1" and one.at == best.at:
            assert found["mine", f"knn, k = {best.at['k']}", one.layer, "top-1 %"] == here
        if one.metric == "top-1" and one.layer == best.layer:
            assert found["mine", "knn", one.layer, f"top-1 % (k = {one.at['k']})"] == here
    assert len(found) == 2 * (2 + 2) == len(metrics) - 1
    spread = next(m for m in metrics if m.measured_on == "random:resnet18")
    assert "±" in spread.value
    assert spread.note == "± the standard deviation over 2 seeds."
    assert spread.source == f"`{random.ran_on['command']}`"
    assert str(tmp_path) not in (model / "card.json").read_text()
    assert [line.rpartition(": ")[2] for line in outcome.output.splitlines()] == [m.value for m in metrics[1:]]
    card_figures.add(model, [tmp_path / "random", tmp_path / "own"])
    again = Card.read(model / "card.json").metrics
    assert set(again) == set(metrics)
    assert len(again) == len(metrics)
    assert ContextPredictionModel.from_pretrained(model).card.metrics == again


def test_the_command_said_makes_the_same_result(model: Path, data: Path, tmp_path: Path) -> None:
    first = knn("random:resnet18", data, tmp_path / "first", seeds=(0, 1))
    words = shlex.split(first.ran_on["command"])
    assert words[:2] == ["context-pred", "evaluate"]
    words[words.index("--data") + 1] = str(data)
    more = ["--out", str(tmp_path / "second"), "--device", "cpu", "--workers", "1", "--no-progress"]
    outcome = CliRunner().invoke(main, [*words[1:], *more], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    second = json.loads((tmp_path / "second" / "result.json").read_text())
    assert [m["value"] for m in second["measured"]] == [m.value for m in first.measured]
    assert second["ran_on"]["command"] == first.ran_on["command"]
    assert first.ran_on["command"] in (tmp_path / "second" / "result.md").read_text()


def test_other_weights_and_no_results_are_refused(model: Path, data: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    ContextPredictionModel("resnet18", pair_layers=False).save_pretrained(tmp_path / "other")
    knn(tmp_path / "other", data, tmp_path / "others")
    before = (model / "card.json").read_bytes()
    with pytest.raises(InvalidInputError, match=r"others measured .*accepted are results of these weights, of random:"):
        card_figures.add(model, [tmp_path / "others"])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "result.json").write_text("{}")
    for out in ("broken", "nothing"):
        with pytest.raises(InvalidInputError, match=f"{out}.result.json is no result of context-pred evaluate"):
            card_figures.add(model, [tmp_path / out])
    assert (model / "card.json").read_bytes() == before
    with pytest.raises(NotCachedError):
        card_figures.add(data, [tmp_path / "others"])


def test_figures_of_classes_and_positions_stay_off_the_card() -> None:
    data = {"name": "cells", "train": 0, "test": 5}
    ran = {"data": data, "command": "context-pred evaluate pretext --model m", "seeds": [0]}
    rows: list[tuple[str, dict[str, Any]]] = [("accuracy", {}), ("accuracy", {"position": "left"}), ("AP", {})]
    measured = [{"metric": name, "value": 0.25, "layer": None, "at": at, "spread": None} for name, at in rows]
    result = {"protocol": "pretext", "variant": "paper", "measured": measured, "best": None, "ran_on": ran}
    assert card_figures.of_result(result, "mine") == [
        Metric(
            "pretext, row paper", "cells (5 to test on)", "", f"{name} %", "25.00", "mine",
            "`context-pred evaluate pretext --model mine`",
        )
        for name in ("accuracy", "AP")
    ]  # fmt: skip
