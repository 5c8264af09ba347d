"""``context-pred picture``: every command from its words to its files, and errors in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from context_pred.cli import main
from context_pred.model import ContextPredictionModel


@pytest.fixture(scope="module")
def saved(model: ContextPredictionModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model") / "tiny"
    model.save_pretrained(place)
    return place


def call(*arguments: object) -> Result:
    words = ["picture", *(str(argument) for argument in arguments), "--device", "cpu", "--no-progress"]
    return CliRunner().invoke(main, words, prog_name="context-pred")


@pytest.mark.parametrize(
    ("command", "options", "files"),
    [
        ("features", ("--layer", "feature2", "--side", "2", "--at-most", "2"), {"features.png"}),
        ("pretext", ("--seed", "1", "--at-most", "1"), {"pretext.png", "pretext.json"}),
        ("map", ("--labels", "--no-grid", "--layer", "feature3"), {"map.png", "map.html", "map.json"}),
    ],
)
def test_of_a_folder(
    folder: Path, tmp_path: Path, saved: Path, command: str, options: tuple[str, ...], files: set[str]
) -> None:
    result = call(command, folder, "--model", saved, "--out", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == files
    assert str(tmp_path / "out") in result.output
    assert "photograph" in result.output


def test_similarity_of_several_paths(folder: Path, tmp_path: Path, saved: Path) -> None:
    query, *others = sorted(folder.rglob("*.png"))
    given = ("similarity", query, *others[:2], "--model", saved, "--layer", "feature3", "--side", "2")
    result = call(*given, "--at", "20,30.5", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "(20, 30) of" in result.output
    assert "2 photographs" in result.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"similarity.png", "similarity.html"}
    for at, text in (("999,1", "outside of the photograph"), ("here", "Unknown point 'here'")):
        wrong = call(*given, "--at", at, "--out", tmp_path / "other")
        assert wrong.exit_code == 2
        assert text in wrong.output
        assert "Traceback" not in wrong.output
        assert not (tmp_path / "other").exists()
