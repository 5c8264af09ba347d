"""The measurement of frozen features: sets are read as they are meant, and features that tell classes apart score."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("sklearn", reason="the measurement needs the extra [eval]")
SCRIPT = Path(__file__).parents[2] / "weights" / "evaluate.py"
spec = importlib.util.spec_from_file_location("evaluate", SCRIPT)
assert spec is not None
assert spec.loader is not None
evaluate = importlib.util.module_from_spec(spec)
sys.modules["evaluate"] = evaluate
spec.loader.exec_module(evaluate)


def picture(path: Path, color: tuple[int, int, int], seed: int, size: tuple[int, int] = (40, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-20, 21, (size[1], size[0], 3))
    Image.fromarray((np.array(color) + noise).clip(0, 255).astype(np.uint8)).save(path)


COLORS = {"blue": (20, 20, 200), "green": (20, 200, 20), "red": (200, 20, 20)}


def test_folders_from_files_to_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part, count in (("train", 5), ("val", 1), ("test", 2)):
        for name, color in COLORS.items():
            for i in range(count):
                picture(tmp_path / "set" / part / name / f"{i}.png", color, i, (40, 32) if i % 2 else (32, 40))
    out = tmp_path / "result.json"
    command = (
        f"evaluate --data {tmp_path / 'set'} --model random:resnet18 --size 32 --seeds 0 1 --workers 0 --out {out}"
    )
    monkeypatch.setattr(sys, "argv", command.split())
    evaluate.main()
    report = json.loads(out.read_text())
    assert (report["bank"], report["queries"], report["classes"]) == (18, 6, {"class": 3})
    assert len(report["results"]) == 2 * 5 * 2  # seeds, layers, methods
    first = [r["accuracy"] for r in report["results"] if r["layer"] == "feature1"]
    assert first == [1.0] * 4  # three plain colours: even random filters tell them apart
    assert "| class | linear | random:resnet18 | 1.000 |" in capsys.readouterr().out


def test_grocery_lists_give_bank_and_queries(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "train.txt").write_text("train/a.jpg, 4, 1\ntrain/b.jpg, 5, 1\n")
    (folder / "val.txt").write_text("val/c.jpg, 4, 1\n")
    (folder / "test.txt").write_text("test/d.jpg, 6, 2\n")
    data = evaluate.read_grocery(tmp_path)
    assert [p.name for p in data.paths] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert data.labels["fine"].tolist() == [4, 5, 4, 6]
    assert data.labels["coarse"].tolist() == [1, 1, 1, 2]
    assert data.is_test.tolist() == [False, False, False, True]


def test_unknown_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="train/CLASS"):
        evaluate.read_folders(tmp_path)
