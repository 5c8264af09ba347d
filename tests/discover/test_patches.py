"""The patches of photographs: where they lie, what is computed of them, what is kept on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from context_pred.card import Card
from context_pred.discover import patches as module
from context_pred.discover.grid import PatchGrid, usual_grid
from context_pred.discover.patches import extract_patches, load_patches, network_of, normalized, patch_features
from context_pred.errors import ImageError, InvalidInputError, UnknownNameError
from context_pred.geometry import scaled
from context_pred.model import ContextPredictionModel

GRID = PatchGrid(16, sides=(2.0, 3.5))
QUIET = {"progress": False, "workers": 1, "device": "cpu", "grid": GRID, "layer": "feature2", "pool": "gap"}


@pytest.fixture(scope="module")
def model() -> ContextPredictionModel:
    torch.manual_seed(0)
    card = Card("tiny-input", "resnet18", pair_layers=False, resize=64, crop=56)
    return ContextPredictionModel.from_card(card).eval()


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for name, size in (("koala", (60, 50)), ("panda", (50, 80)), ("moose", (64, 64)), ("flower_red", (90, 50))):
        with Image.open(photos / f"{name}.jpg") as image:
            image.convert("RGB").resize(size).save(tmp_path / "photos" / f"{name}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("step", [1.0, 0.5, 0.25])
def test_boxes_are_whole_patches_in_rows_at_every_scale(step: float) -> None:
    grid = PatchGrid(16, sides=(2.0, 3.5), step=step)
    height, width, found = 50, 80, []
    for side in (2.0, 3.5):
        scale = round(side * 16) / 50
        tall, wide = round(height * scale), round(width * scale)
        x, y = scale_of(wide, width), scale_of(tall, height)
        for top in range(0, tall - 16 + 1, grid.stride):
            lefts = range(0, wide - 16 + 1, grid.stride)
            found += [(left * x, top * y, (left + 16) * x, (top + 16) * y) for left in lefts]
    np.testing.assert_allclose(grid.boxes(height, width), found, rtol=1e-6)
    assert sum(rows * columns for rows, columns in grid.cells(height, width)) == len(found)
    assert grid.boxes(height, width)[:, 2].max() <= width + 1e-4


def scale_of(new: int, old: int) -> float:
    return old / new


@pytest.mark.parametrize(
    "wrong",
    [
        {"patch": 1}, {"sides": ()}, {"sides": (0.5,)}, {"sides": (4, np.nan)}, {"sides": (np.inf,)}, {"sides": (65,)},
        {"step": 0.0}, {"step": 0.4}, {"step": 1 / 3},
    ],
)  # fmt: skip
def test_grids_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        PatchGrid(**{"patch": 16, **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("pool", ["gap", "quarters", "none"])
def test_features_are_those_of_each_patch_cut_alone(model: ContextPredictionModel, photos: Path, pool: str) -> None:
    with Image.open(photos / "koala.jpg") as opened:
        image = opened.convert("RGB").resize((60, 50))
    features, boxes = patch_features(model, image, GRID, layer="feature2", pool=pool, device="cpu")
    place = 0
    for tall, wide in GRID.sizes(50, 60):
        pixels = scaled(image, (tall, wide), 3)
        for top in range(0, tall - 15, 8):
            for left in range(0, wide - 15, 8):
                patch = model.transform.normalize(pixels[None, :, top : top + 16, left : left + 16])
                maps = model.backbone(patch, ("feature2",))["feature2"]
                wanted = {
                    "gap": maps.mean((2, 3)),
                    "quarters": maps.unflatten(2, (2, -1)).unflatten(4, (2, -1)).mean((3, 5)),
                    "none": maps,
                }[pool]
                np.testing.assert_allclose(features[place], wanted.flatten().detach().numpy(), atol=2e-4)
                place += 1
    assert place == len(features) == len(boxes)


def test_normalised_rows_correlate() -> None:
    rows = np.random.default_rng(0).normal(3, 2, (5, 4, 2))
    np.testing.assert_allclose(normalized(rows) @ normalized(rows).T, np.corrcoef(rows.reshape(5, 8)), atol=1e-6)
    for value in (0, 0.1, -7.3, 1e-30, 1e30):  # .1 has no exact sum in float32
        assert not normalized(np.full((1, 257), value)).any()
    for scale in (1e-30, 1e30):
        np.testing.assert_allclose(normalized(scale * rows), normalized(rows), atol=1e-6)


def test_what_is_kept_is_what_each_photograph_gives(
    model: ContextPredictionModel, folder: Path, tmp_path: Path
) -> None:
    (folder / "notes.txt").write_text("no image")
    kept = extract_patches(folder, model, out=tmp_path / "out", batch_size=3, **QUIET)
    assert [Path(path).stem for path in kept.paths] == ["flower_red", "koala", "moose", "panda"]
    assert list(kept.errors) == [str(folder / "notes.txt")]
    network = network_of(model, "feature2", "gap", "cpu")
    for number, path in enumerate(kept.paths):
        rows = slice(kept.starts[number], kept.starts[number + 1])
        with Image.open(path) as image:
            features, boxes = patch_features(model, image.convert("RGB"), GRID, network=network)
        np.testing.assert_allclose(kept.features[rows], features, atol=1e-5)
        np.testing.assert_array_equal(kept.boxes[rows], boxes)
        assert (kept.image_of(range(rows.start, rows.stop)) == number).all()
        first = [scale[0] for scale in kept.scales[number]]
        assert first[0] == rows.start
        assert kept.scales[number][1][0] == first[0] + np.prod(kept.scales[number][0][1:])
    again = load_patches(tmp_path / "out")
    np.testing.assert_array_equal(again.features, kept.features)
    assert (again.paths, again.grid, again.errors) == (kept.paths, kept.grid, kept.errors)


def test_a_stopped_call_goes_on(
    model: ContextPredictionModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = extract_patches(folder, model, out=tmp_path / "whole", batch_size=1, **QUIET)
    calls, real = 0, module.features_of

    def failing(*given: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "features_of", failing)
    with pytest.raises(KeyboardInterrupt):
        extract_patches(folder, model, out=tmp_path / "out", batch_size=1, **QUIET)
    with pytest.raises(InvalidInputError, match="pool was 'gap' and is 'none'"):
        extract_patches(folder, model, out=tmp_path / "out", batch_size=1, **{**QUIET, "pool": "none"})
    on = extract_patches(folder, model, out=tmp_path / "out", batch_size=1, **QUIET)
    assert calls == 5, "two photographs were done, two were left"
    np.testing.assert_array_equal(on.features, whole.features)
    extract_patches(folder, model, out=tmp_path / "out", batch_size=1, **QUIET)
    assert calls == 5
    extract_patches(folder, model, out=tmp_path / "out", batch_size=1, overwrite=True, **{**QUIET, "pool": "none"})
    assert calls == 9


def test_bad_input_is_named(model: ContextPredictionModel, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="quarter"):
        extract_patches(folder, model, out=tmp_path / "out", **{**QUIET, "pool": "quarter"})
    with pytest.raises(UnknownNameError, match="feature9"):
        extract_patches(folder, model, out=tmp_path / "out", **{**QUIET, "layer": "feature9"})
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.jpg").write_text("no image")
    with pytest.raises(ImageError, match=r"None of 1 files.*a\.jpg"):
        extract_patches(tmp_path / "none", model, out=tmp_path / "out", **QUIET)
    with pytest.raises(InvalidInputError, match="no patches"):
        load_patches(tmp_path)
    Image.new("RGB", (17, 1)).save(tmp_path / "none" / "a.jpg")
    with pytest.raises(
        ImageError, match="has 17 × 1 px; for patches the longer side may be at most 16 times the shorter"
    ):
        extract_patches(tmp_path / "none", model, out=tmp_path / "out", **QUIET)
    extract_patches(folder, model, out=tmp_path / "out", **QUIET)
    file = tmp_path / "out" / "patches.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InvalidInputError, match="cut off"):
        load_patches(tmp_path / "out")


def test_the_usual_grid_has_the_models_patch(model: ContextPredictionModel) -> None:
    assert usual_grid(model).patch == model.patch_sampler.patch
