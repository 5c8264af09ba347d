"""What the pretext task saw: the pairs lie where they are said to, and the model said what is written."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from context_pred.card import Card
from context_pred.discover.pictures import pretext
from context_pred.errors import ContextPredError, ImageError, InvalidInputError
from context_pred.geometry import scaled
from context_pred.model import ContextPredictionModel
from context_pred.patches.layout import OFFSETS, POSITIONS


def drawn(images: object, out: Path, model: ContextPredictionModel, **options: object):
    options = {"progress": False, "device": "cpu", **options}
    return pretext.run(images, out=out, model=model, **options)  # type: ignore[arg-type]


def middle(box: list[int]) -> np.ndarray:
    return np.array([box[1] + box[3], box[0] + box[2]]) / 2


def test_every_pair_lies_where_it_is_said_to(folder: Path, tmp_path: Path, model: ContextPredictionModel) -> None:
    result = drawn(folder, tmp_path / "out", model, seed=3)
    record = json.loads(result.json.read_text())
    assert len(record["photographs"]) == 6
    for one in record["photographs"]:
        assert [pair["position"] for pair in one["pairs"]] == list(POSITIONS)
        for pair, offset in zip(one["pairs"], OFFSETS, strict=True):
            steps = (middle(pair["box"]) - middle(one["center"])) / 20  # a cell of 60 // 3 px
            assert np.abs(steps - offset).max() < 0.5
            assert pair["right"] == (pair["position"] == pair["predicted"])
            assert pair["probability_of_truth"] <= pair["probability"]
    assert record["result"]["pairs"] == 6 * 40
    with Image.open(result.picture) as sheet:
        assert min(sheet.size) > 900


def test_the_model_said_so(folder: Path, tmp_path: Path, model: ContextPredictionModel) -> None:
    """Cut the boxes that the record names by hand and ask the model itself."""
    result = drawn(folder, tmp_path / "out", model, seed=1)
    sampler = model.patch_sampler
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (sampler.mean, sampler.std))
    for one in result.drawn[:3]:
        pixels = scaled(one.image, one.size[::-1], 3).float() / 255

        def cut(box: tuple[int, ...], pixels: torch.Tensor = pixels) -> torch.Tensor:
            return (pixels[:, box[1] : box[3], box[0] : box[2]] - mean) / std

        neighbors = torch.stack([cut(guess.box) for guess in one.guesses])
        centers = cut(one.center)[None].expand(len(neighbors), -1, -1, -1)
        with torch.no_grad():
            chances = model(neighbors, centers).softmax(1)
        for guess, row in zip(one.guesses, chances, strict=True):
            assert guess.predicted == int(row.argmax())
            assert guess.probability == pytest.approx(float(row.max()), abs=1e-5)
            assert guess.of_truth == pytest.approx(float(row[guess.position]), abs=1e-5)
            seen = np.asarray(guess.patch, float) / 255
            assert np.abs(seen - (cut(guess.box) * std + mean).permute(1, 2, 0).numpy()).max() < 0.003


def test_a_seed_draws_the_same_patches_and_another_one_others(
    folder: Path, tmp_path: Path, model: ContextPredictionModel
) -> None:
    runs = [drawn(folder, tmp_path / str(k), model, seed=seed, at_most=2) for k, seed in enumerate((0, 0, 1))]
    assert runs[0].picture.read_bytes() == runs[1].picture.read_bytes()
    assert runs[0].json.read_bytes() == runs[1].json.read_bytes()
    assert [one.center for one in runs[0].drawn] != [one.center for one in runs[2].drawn]


def test_mistakes_are_listed_the_surest_first() -> None:
    patch = Image.new("RGB", (4, 4))
    guesses = [
        pretext.Guess(0, 3, 0.4, 0.2, (0, 0, 1, 1), patch),
        pretext.Guess(1, 1, 0.9, 0.9, (0, 0, 1, 1), patch),
        pretext.Guess(7, 6, 0.8, 0.1, (0, 0, 1, 1), patch),
    ]
    assert pretext.mistakes(guesses) == [
        "down-right taken for down (80%; the truth 10%)",
        "up-left taken for left (40%; the truth 20%)",
    ]


@pytest.mark.parametrize("preset", ["deepcontext", "paper"])
def test_the_authors_sampler(folder: Path, tmp_path: Path, preset: str) -> None:
    torch.manual_seed(0)
    sampler = {"type": "RandomPairSampler", "preset": preset, "patch": 24, "gap": 8, "jitter": 2}
    model = ContextPredictionModel.from_card(Card("pairs", "resnet18", neck_channels=32, patch_sampler=sampler))
    result = drawn(folder, tmp_path / "out", model, at_most=2)
    for one in result.drawn:
        assert one.guesses
        for guess in one.guesses:
            down, right = middle(list(guess.box)) - middle(list(one.center))
            assert np.abs(np.array([down, right]) / 32 - OFFSETS[guess.position]).max() < 0.4


def test_the_model_is_left_as_it_is(folder: Path, tmp_path: Path, model: ContextPredictionModel) -> None:
    own = copy.deepcopy(model).train()
    before = {key: value.clone() for key, value in own.state_dict().items()}
    trained = drawn(folder, tmp_path / "a", own, at_most=1)
    assert own.training
    assert all(torch.equal(value, before[key]) for key, value in own.state_dict().items())
    assert trained.json.read_bytes() == drawn(folder, tmp_path / "b", model, at_most=1).json.read_bytes()


def test_wrong_arguments_leave_what_is_there(
    folder: Path, bomb: Path, tmp_path: Path, model: ContextPredictionModel, backbone_only: ContextPredictionModel
) -> None:
    out = tmp_path / "out"
    result = drawn([folder, bomb], out, model)
    assert list(result.skipped) == [str(bomb)]
    kept = {path: path.read_bytes() for path in out.iterdir()}
    wrong: list[tuple[object, ContextPredictionModel, dict, type[ContextPredError], str]] = [
        (folder, backbone_only, {}, InvalidInputError, "backbone alone"),
        (folder, model, {"seed": -1}, InvalidInputError, "seed=-1"),
        (folder, model, {"at_most": 0}, InvalidInputError, "at_most=0"),
        (bomb, model, {}, ImageError, "pixels"),
        (tmp_path / "nowhere", model, {}, InvalidInputError, "No images"),
    ]
    for images, asked, options, error, text in wrong:
        with pytest.raises(error, match=text):
            drawn(images, out, asked, **options)
    assert {path: path.read_bytes() for path in out.iterdir()} == kept


def test_of_a_panorama_the_middle(tmp_path: Path, model: ContextPredictionModel) -> None:
    Image.radial_gradient("L").resize((4000, 3)).convert("RGB").save(tmp_path / "long.png")
    result = drawn(tmp_path / "long.png", tmp_path / "out", model)
    assert result.drawn[0].image.size == (48, 3)
    assert max(result.drawn[0].size) < 16 * 100
