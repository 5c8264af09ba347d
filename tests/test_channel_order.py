"""A BGR model turned for RGB gives the same features of the same photograph."""

from __future__ import annotations

import torch
from PIL import Image

from context_pred import ContextPredictionModel
from context_pred.channel_order import for_rgb


def test_turned_model_gives_the_same_features() -> None:
    torch.manual_seed(0)
    model = ContextPredictionModel("resnet18").double().eval()  # in float32 the order of the sums is told from 1e-5 on
    model.card = model.card.replace(channel_order="bgr", mean=(0.4, 0.45, 0.48), std=(0.2, 0.25, 0.3))
    pixels = torch.randint(0, 256, (100, 90, 3), dtype=torch.uint8).numpy()
    photograph = Image.fromarray(pixels)
    turned = for_rgb(model)
    assert turned.card.channel_order == "rgb"
    assert turned.card.mean == (0.48, 0.45, 0.4)
    expected = model.features(model.transform(photograph)[None].double())
    found = turned.features(turned.transform(photograph)[None].double())
    wrong = turned.features(model.transform(photograph)[None].double())
    for layer, value in expected.items():
        torch.testing.assert_close(found[layer], value, rtol=1e-9, atol=1e-9)
        assert not torch.allclose(wrong[layer], value, rtol=1e-2, atol=1e-2)


def test_an_rgb_model_stays_as_it_is() -> None:
    model = ContextPredictionModel("resnet18")
    copied = for_rgb(model)
    assert copied is not model
    assert torch.equal(copied.backbone.conv1.weight, model.backbone.conv1.weight)
    assert copied.card == model.card
