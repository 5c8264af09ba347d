"""The pretext accuracy script: real photographs in, a row a set and geometry out; an image counts once."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from context_pred.model import ContextPredictionModel
from context_pred.patches import GridPatchSampler
from context_pred.pretext import PretextResult
from context_pred.pretrain.prepare import ImageOptions

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "weights"))
script = importlib.import_module("pretext_accuracy")
sys.path.remove(str(ROOT / "weights"))
PHOTOS = sorted((ROOT / "docs" / "photos").glob("*.jpg"))[:6]


@pytest.fixture
def model() -> ContextPredictionModel:
    torch.manual_seed(0)
    made = ContextPredictionModel("resnet18", neck_channels=8)
    sampler = GridPatchSampler(crop=60, patch=16, gap=(0, 6), pairs="adjacent", grayscale=0.5)
    made.card = made.card.replace(name="tiny", patch_sampler=sampler.to_config())
    return made.eval()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for kind, files in (("free", PHOTOS[:2]), ("grocery", PHOTOS[2:5])):
        folder = tmp_path / "corpus" / "heldout" / kind
        folder.mkdir(parents=True)
        for file in files:
            shutil.copy(file, folder)
    (tmp_path / "corpus" / "corpus.json").write_text('{"digest": "abc"}')
    return tmp_path / "corpus"


def test_rows_of_a_saved_model(
    model: ContextPredictionModel, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save_pretrained(tmp_path / "run" / "model")
    (tmp_path / "run" / "recipe.toml").write_text(
        'title = "t"\n[model]\nbackbone = "resnet18"\n[images]\nmode = "squares"\n'
        '[sampler]\ntype = "GridPatchSampler"\ncrop = 60\npatch = 16\n[batch]\nimages = 4\nper_device = 4\n'
        '[optimizer]\nkind = "sgd"\nlearning_rate = 0.1\n[schedule]\nepochs = 1\n'
    )
    (tmp_path / "bsds").mkdir()
    shutil.copy(PHOTOS[5], tmp_path / "bsds" / "100007.jpg")
    shutil.copy(PHOTOS[5], tmp_path / "bsds" / "test_color.jpg")  # in the repository, not in the data set
    out = tmp_path / "out.json"
    command = f"x {tmp_path}/run/model --corpus {corpus} --bsds {tmp_path}/bsds --repeats 2 --out {out}"
    monkeypatch.setattr(sys, "argv", command.split())
    script.main()
    report = json.loads(out.read_text())
    assert report["corpus"] == "abc"
    assert len(report["weights"]) == 64
    found = {(r["set"], r["geometry"], r["color"]): (r["images"], r["pairs"]) for r in report["results"]}
    assert {key: value for key, value in found.items() if key[1] == "recipe"} == {
        ("held out, free", "recipe", "as trained"): (2, 2 * 2 * 40),
        ("held out, grocery", "recipe", "as trained"): (3, 3 * 2 * 40),
        ("held out, all", "recipe", "as trained"): (5, 5 * 2 * 40),
        ("BSDS500", "recipe", "as trained"): (1, 2 * 40),
    }
    for name, images in (("held out, all", 5), ("BSDS500", 1)):
        color, gray = found[name, "paper", "color"], found[name, "paper", "gray"]
        assert color == gray  # the same boxes
        assert color[0] == images
        assert color[1] > 0
    parts = [PretextResult.from_dict(script.values_of(r)) for r in report["results"][:3]]
    for row in range(8):
        for column in range(8):
            counts = [part.confusion[row][column] for part in parts]
            assert counts[2] == counts[0] + counts[1]


def test_same_figures_again_and_other_ones_in_grey(model: ContextPredictionModel) -> None:
    options = ImageOptions(mode="squares")
    first = script.as_in_training(model, PHOTOS, options, 2).state()
    assert torch.equal(script.as_in_training(model, PHOTOS, options, 2).state(), first)
    color = script.in_papers_geometry(model, PHOTOS, 2, gray=False)
    gray = script.in_papers_geometry(model, PHOTOS, 2, gray=True)
    assert torch.equal(script.in_papers_geometry(model, PHOTOS, 2, gray=True).state(), gray.state())
    assert not torch.equal(color.state(), gray.state())


def test_a_photograph_asked_ten_times_counts_once(model: ContextPredictionModel) -> None:
    for repeats in (1, 5):
        tally = script.as_in_training(model, PHOTOS, ImageOptions(mode="squares"), repeats)
        result = tally.result()
        assert (result.images, result.pairs) == (len(PHOTOS), len(PHOTOS) * repeats * 40)
        # Photographs are few, so the interval stays wide however often each is asked.
        assert result.high - result.low > 0.02


def test_bsds_is_taken_once_and_without_the_programs_pictures(tmp_path: Path) -> None:
    for name in ("data/test/100.jpg", "data/train/7.jpg", "bench/100.jpg", "gpb/test_color.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in script.bsds_files(tmp_path)]
    assert found == ["bench/100.jpg", "data/train/7.jpg"]
