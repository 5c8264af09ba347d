"""``model_zoo.md``: made from the cards, complete, and checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from context_pred.zoo import list_models, model_info
from context_pred.zoo.document import main, model_zoo


def test_the_document_is_what_the_cards_say() -> None:
    assert main(["--check"]) == 0


def test_every_fact_of_every_card_is_in_it() -> None:
    text = model_zoo()
    for name in list_models():
        card = model_info(name)
        assert f"## {card.name}\n" in text
        section = text.split(f"## {card.name}\n")[1].split("\n## ")[0]
        for fact in (card.url, card.url_sha256_prefix, card.sha256, card.license, card.recipe, card.paper, *card.notes):
            assert fact is None or fact in section
        for metric in card.metrics:
            assert f"| {metric.value} |" in section
            assert metric.source in section
            assert (f"Measured on: `{metric.measured_on}`" if metric.measured_on else "not stated") in section


def test_a_difference_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model_zoo.md"
    assert main([str(path), "--check"]) == 1
    assert main([str(path)]) == 0
    assert main([str(path), "--check"]) == 0
    path.write_text(path.read_text(encoding="utf-8").replace("39.65", "39.56"), encoding="utf-8")
    assert main([str(path), "--check"]) == 1
    assert "run python -m context_pred.zoo.document" in capsys.readouterr().err
