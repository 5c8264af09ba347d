"""Feature maps of whole photographs: each position answers to its place, and the rims do not stand out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from context_pred.card import Card
from context_pred.discover.pictures.dense import LONGEST, FeatureMaps
from context_pred.errors import InvalidInputError, UnknownNameError
from context_pred.model import ContextPredictionModel


@pytest.fixture(scope="module")
def contextnet() -> ContextPredictionModel:
    torch.manual_seed(0)
    card = Card("tower", "contextnet", pair_layers=False, patch_sampler={"type": "RandomPairSampler"})
    return ContextPredictionModel.from_card(card)


def answered(make: FeatureMaps, row: float, column: float, size: tuple[int, int]) -> tuple[float, float]:
    """Where the map changes when a small bright square appears at (row, column), in cells: the energy's middle."""
    height, width = make.size(*size)
    plain = np.full((height, width, 3), 90, np.uint8)
    dotted = plain.copy()
    y, x = round(row * make.stride), round(column * make.stride)
    dotted[y - 2 : y + 2, x - 2 : x + 2] = 255
    change = make(Image.fromarray(dotted)) - make(Image.fromarray(plain))
    energy = (change.astype(np.float64) ** 2).sum(2)
    rows, columns = np.mgrid[: energy.shape[0], : energy.shape[1]] + 0.5
    return (
        float((rows * energy).sum() / energy.sum()) / make.finer,
        float((columns * energy).sum() / energy.sum()) / make.finer,
    )


@pytest.mark.parametrize("finer", [1, 2])
@pytest.mark.parametrize("layer", ["feature1", "feature3", "feature4"])
def test_a_position_answers_to_its_place_in_a_resnet(model: ContextPredictionModel, layer: str, finer: int) -> None:
    make = FeatureMaps.of(model, layer, side=8, finer=finer, device="cpu")
    rows, columns = (side // make.stride for side in make.size(128, 160))
    at = (rows // 2 - 0.5, columns // 2 + 0.5)
    assert np.allclose(answered(make, *at, (128, 160)), at, atol=0.25)


@pytest.mark.parametrize("layer", ["feature2", "feature4"])
def test_a_position_answers_to_its_place_in_contextnet(contextnet: ContextPredictionModel, layer: str) -> None:
    make = FeatureMaps.of(contextnet, layer, side=2, device="cpu")
    at = (6.5, 6.5)
    assert np.allclose(answered(make, *at, (192, 192)), at, atol=0.25)


def test_fc6_has_a_whole_map_too(contextnet: ContextPredictionModel) -> None:
    make = FeatureMaps.of(contextnet, "fc6", side=2, device="cpu")
    assert make(Image.new("RGB", (192, 192), (40, 90, 10))).shape == (6, 6, 4096)


def test_finer_interleaves_the_same_positions(model: ContextPredictionModel, photos) -> None:
    with Image.open(photos / "panda.jpg") as image:
        twice = FeatureMaps.of(model, "feature3", side=6, finer=2, device="cpu")(image)
        once = FeatureMaps.of(model, "feature3", side=6, device="cpu")(image)
    assert twice.shape[:2] == (2 * once.shape[0], 2 * once.shape[1])
    # A coarse cell's middle is the corner of its four fine cells: their mean is nearer to it than another cell is.
    mean = twice.reshape(once.shape[0], 2, once.shape[1], 2, -1).mean((1, 3))
    assert np.abs(mean - once).mean() < 0.6 * np.abs(np.roll(mean, 1, 1) - once).mean()


def test_the_rims_of_an_even_photograph_do_not_stand_out(model: ContextPredictionModel) -> None:
    even = Image.new("RGB", (160, 128), (120, 60, 200))
    found = FeatureMaps.of(model, "feature4", side=8, device="cpu")(even)
    with torch.no_grad():
        plain = model.transform.normalize(torch.tensor(np.array(even)).permute(2, 0, 1))[None]
        padded = model.features(plain, "feature4")["feature4"][0].permute(1, 2, 0).numpy()

    def spread(one: np.ndarray) -> float:
        return float(np.abs(one - one[one.shape[0] // 2, one.shape[1] // 2]).max())

    assert spread(found) < 0.5 * spread(padded)


@pytest.mark.parametrize("size", [(20, 5000), (5000, 20), (1, 1), (1, 900)])
def test_any_shape_has_a_map_of_bounded_size(model: ContextPredictionModel, size: tuple[int, int]) -> None:
    make = FeatureMaps.of(model, "feature3", side=3, device="cpu")
    height, width = make.size(*size)
    assert max(height, width) <= LONGEST * 3 * 16
    assert make(Image.new("RGB", size[::-1])).shape[:2] == (height // 8, width // 8)


def test_modes_and_channels(model: ContextPredictionModel) -> None:
    make = FeatureMaps.of(model, "feature2", side=2, device="cpu")
    grey = Image.linear_gradient("L").resize((60, 50))
    assert np.array_equal(make(grey), make(grey.convert("RGB")))
    single = ContextPredictionModel("resnet18", in_channels=1, pair_layers=False).eval()
    assert np.isfinite(FeatureMaps.of(single, "feature2", side=1, device="cpu")(grey)).all()
    with pytest.raises(InvalidInputError, match="takes 4 channels"):
        FeatureMaps.of(ContextPredictionModel("resnet18", in_channels=4, pair_layers=False), "feature2")


@pytest.mark.parametrize("side", [0, -1, 65, True, "many"])
def test_a_side_out_of_range(model: ContextPredictionModel, side: object) -> None:
    with pytest.raises(InvalidInputError, match="accepted: the photograph's shorter side"):
        FeatureMaps.of(model, "feature2", side=side)  # type: ignore[arg-type]


def test_an_unknown_layer(model: ContextPredictionModel) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'feature4'"):
        FeatureMaps.of(model, "layer3")
