"""The measurement of frozen features: sets are read as they are meant, and features that tell classes apart score."""

from __future__ import annotations

import importlib
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("sklearn", reason="the measurement needs the extra [eval]")
from sklearn.neighbors import KNeighborsClassifier

WEIGHTS = Path(__file__).parents[2] / "weights"
sys.path.insert(0, str(WEIGHTS))
evaluate = importlib.import_module("evaluate")
labelled = importlib.import_module("labelled")
sys.path.remove(str(WEIGHTS))

COLORS = {"blue": (20, 20, 200), "green": (20, 200, 20), "red": (200, 20, 20)}


def picture(path: Path, color: tuple[int, int, int], seed: int, size: tuple[int, int] = (40, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-20, 21, (size[1], size[0], 3))
    Image.fromarray((np.array(color) + noise).clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for part, count in (("train", 5), ("val", 1), ("test", 2)):
        for name, color in COLORS.items():
            for i in range(count):
                picture(tmp_path / "set" / part / name / f"{i}.png", color, i, (40, 32) if i % 2 else (32, 40))
    return tmp_path / "set"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the script's command line in this process; returns what it printed."""

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["evaluate", "--size", "32", *map(str, arguments)])
        evaluate.main()
        return capsys.readouterr().out

    return call


def test_from_files_to_table_and_on_where_it_stopped(folders: Path, tmp_path: Path, run: Callable[..., str]) -> None:
    stamps = tmp_path / "stamps"
    for name, color in COLORS.items():
        for i in range(8):
            picture(stamps / name / f"{i}.png", color, i)
    out = tmp_path / "result.json"
    sets = ("--set", f"folders={folders}", "--set", f"stamps={stamps}", "--out", out)
    assert "seed 0" in run("--model", "random:resnet18", "--seeds", 0, *sets)
    again = run("--model", "random:resnet18", "--seeds", 0, 1, *sets)
    report = json.loads(out.read_text())
    assert "seed 0" not in again
    assert "seed 1" in again
    assert report["sets"]["set"] == {"bank": 18, "queries": 6, "classes": {"class": 3}, "note": ""}
    assert report["sets"]["tuxpaint stamps"]["pictures"] == 24
    assert len(report["results"]) == 2 * 2 * 5 * 2  # sets, seeds, layers, methods
    # Three plain colours: even random filters tell them apart.
    assert {r["accuracy"] for r in report["results"] if r["layer"] == "feature1"} == {1.0}
    assert "| set | class | linear | random:resnet18 | 1.000 ± 0.000 |" in again
    with pytest.raises(SystemExit, match="give another --out"):
        run("--model", "random:resnet18", *sets, "--c", 1)


def test_unknown_kind_of_set_is_refused(tmp_path: Path, run: Callable[..., str], capsys: Any) -> None:
    with pytest.raises(SystemExit):
        run("--model", "random:resnet18", "--set", f"cars={tmp_path}", "--out", tmp_path / "out.json")
    assert "grocery, categorization, stamps, folders" in capsys.readouterr().err


def test_neighbors_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(80, 12)).astype(np.float32), rng.normal(size=(30, 12)).astype(np.float32)
    labels = rng.integers(0, 3, 80)
    reference = KNeighborsClassifier(5, metric="cosine", algorithm="brute").fit(bank, labels)
    found = evaluate.nearest(bank, queries)
    assert (found == reference.kneighbors(queries, return_distance=False)).all()
    assert (evaluate.majority(labels[found]) == reference.predict(queries)).all()
    # Leaving one out: the nearest of all, that itself left aside.
    alone = reference.kneighbors(bank, 6, return_distance=False)[:, 1:]
    assert (evaluate.nearest(bank) == alone).all()


def test_linear_probe_in_folds_and_leave_one_out_see_what_is_there_and_no_more() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(4), 15)
    noise = rng.normal(size=(60, 30)).astype(np.float32)
    data = labelled.LabelledSet("x", [], {"class": labels})
    separable = noise + 8 * np.eye(30, dtype=np.float32)[labels]
    assert evaluate.accuracies(separable, data, 0.01) == {"knn": {"class": 1.0}, "linear": {"class": 1.0}}
    chance = evaluate.accuracies(noise, data, 0.01)
    assert all(found["class"] < 0.5 for found in chance.values())  # a picture that saw itself would be near 1


def row(model: str, layer: str, accuracy: float, seed: int | None = None) -> dict[str, Any]:
    found = {"set": "s", "label": "class", "method": "knn", "model": model, "seed": seed, "weights": None}
    return {**found, "layer": layer, "accuracy": accuracy}


@pytest.mark.parametrize(("accuracy", "better"), [(0.526, True), (0.523, False)])
def test_verdict_at_each_ones_best_layer(accuracy: float, better: bool) -> None:
    rows = [row("m", "feature1", accuracy), row("m", "feature2", 0.2)]
    for seed, value in enumerate((0.40, 0.43, 0.46, 0.49, 0.37)):  # mean .43, standard deviation .0474
        rows += [row("random:r", "feature2", value, seed), row("random:r", "feature1", 0.3, seed)]
    (verdict,) = evaluate.verdicts(rows)
    assert (verdict["layer"], verdict["random_layer"], verdict["random_seeds"]) == ("feature1", "feature2", 5)
    assert verdict["random_mean"] == pytest.approx(0.43)
    assert verdict["random_spread"] == pytest.approx(0.04743, abs=1e-5)
    assert verdict["better_by_two_spreads"] is better  # from .5249 on


def test_one_seed_has_no_spread_and_no_verdict() -> None:
    (verdict,) = evaluate.verdicts([row("m", "feature1", 0.9), row("random:r", "feature1", 0.1, 0)])
    assert not verdict["better_by_two_spreads"]


def test_grocery_lists_give_bank_and_queries(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "train.txt").write_text("train/a.jpg, 4, 1\ntrain/b.jpg, 5, 1\n")
    (folder / "val.txt").write_text("val/c.jpg, 4, 1\n")
    (folder / "test.txt").write_text("test/d.jpg, 6, 2\n")
    data = labelled.read_grocery(tmp_path)
    assert [p.name for p in data.pictures] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert data.labels["fine"].tolist() == [4, 5, 4, 6]
    assert data.labels["coarse"].tolist() == [1, 1, 1, 2]
    assert data.is_test.tolist() == [False, False, False, True]


def test_stamps_are_labelled_by_folder_and_drawings_left_out(tmp_path: Path) -> None:
    for folder, count in (("animals/birds", 9), ("animals/birds/cartoon", 9), ("symbols/math", 9), ("food", 7)):
        for i in range(count):
            picture(tmp_path / folder / f"{i}.png", (9, 9, 9), i)
    shutil.copy(tmp_path / "food" / "0.png", tmp_path / "food" / "0_mirror.png")  # makes no eighth
    for i in range(8):
        picture(tmp_path / "tools" / f"{i}.png", (9, 9, 9), i)
    data = labelled.read_stamps(tmp_path)
    names = [path.parent.relative_to(tmp_path).as_posix() for path in data.pictures]
    assert {name: names.count(name) for name in names} == {"animals/birds": 9, "tools": 8}
    assert np.bincount(data.labels["class"]).tolist() == [9, 8]


def test_cut_outs_lie_in_the_middle_of_a_grey_square() -> None:
    cut_out = Image.new("RGBA", (80, 20), (255, 0, 0, 255))
    cut_out.paste((0, 255, 0, 0), (0, 0, 40, 20))  # the left half shows what lies below
    out = io.BytesIO()
    cut_out.save(out, "PNG")
    pixels = labelled.open_whole(out.getvalue(), 80)
    assert pixels.shape == (80, 80, 3)
    assert (pixels[:28] == 128).all()
    assert (pixels[40, :38] == 128).all()
    assert (pixels[40, 42:] == (255, 0, 0)).all()


def test_opaque_pictures_keep_their_shape(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (9, 9, 9), 0, (60, 40))
    assert labelled.open_whole(tmp_path / "a.png", 20).shape == (20, 30, 3)


def test_unknown_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="train/CLASS"):
        labelled.read_folders(tmp_path)
