"""The zoo's models by timm's own functions: names, features, heads, channels, preprocessing."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

import context_pred
from context_pred import ContextPredictionModel
from context_pred.integrations import timm as registered

NAME = "resnet18_1xb64-coslr-300k"

TAGGED = f"{NAME}.20261123"


def images(channels: int = 3) -> torch.Tensor:
    return torch.rand(2, channels, 64, 64, generator=torch.Generator().manual_seed(0))


def test_names():
    names = timm.list_models("*")
    assert {name.partition(".")[0] for name in context_pred.list_models("resnet*")} <= set(names)
    assert timm.list_models(f"{NAME}*", pretrained=True) == [TAGGED]
    assert set(timm.list_models("resnet50_8xb64*", pretrained=True)) == set(
        context_pred.list_models("resnet50_8xb64*.*")
    )
    assert timm.is_model_pretrained(NAME)


def test_a_name_without_a_tag_is_the_recommended_file():
    card = context_pred.model_info("resnet50_8xb64-steplr-70e")
    cfg = timm.get_pretrained_cfg("resnet50_8xb64-steplr-70e")
    assert cfg.url == card.url == timm.get_pretrained_cfg(card.name).url


def test_features_are_equal(shipped):
    network = timm.create_model(NAME, pretrained=True, features_only=True).eval()
    assert network.feature_info.channels() == [info.channels for info in shipped.feature_info.values()]
    assert network.feature_info.reduction() == [info.stride for info in shipped.feature_info.values()]
    with torch.no_grad():
        for found, expected in zip(network(images()), shipped.features(images()).values(), strict=True):
            torch.testing.assert_close(found, expected)


def test_some_features(shipped):
    network = timm.create_model(TAGGED, pretrained=True, features_only=True, out_indices=(1, 3)).eval()
    with torch.no_grad():
        first, second = network(images())
        expected = shipped.features(images(), ["feature2", "feature4"])
    torch.testing.assert_close(first, expected["feature2"])
    torch.testing.assert_close(second, expected["feature4"])


def test_vectors_and_a_new_classifier(shipped):
    with torch.no_grad():
        pooled = timm.create_model(NAME, pretrained=True).eval()(images())
        torch.testing.assert_close(pooled, shipped.embed(images()))
        network = timm.create_model(NAME, pretrained=True, num_classes=10).eval()
        assert network(images()).shape == (2, 10)
        torch.testing.assert_close(network.forward_features(images()), shipped.features(images())["feature5"])


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels(channels):
    network = timm.create_model(NAME, pretrained=True, in_chans=channels).eval()
    ours = context_pred.load_pretrained(NAME, in_channels=channels)
    with torch.no_grad():
        torch.testing.assert_close(network(images(channels)), ours.embed(images(channels)))


def test_preprocessing(shipped, photos: Path):
    config = timm.data.resolve_model_data_config(timm.create_model(NAME, pretrained=True, features_only=True))
    transform = timm.data.create_transform(**config, is_training=False)
    with Image.open(photos / "koala.jpg") as image:
        torch.testing.assert_close(transform(image), shipped.transform(image), rtol=0, atol=1e-5)


def test_random_weights():
    network = timm.create_model(NAME)
    again = timm.create_model(NAME, pretrained=True)
    assert not torch.equal(network.conv1.weight, again.conv1.weight)


def test_what_timm_saves_loads_without_this_library(shipped, tmp_path: Path):
    network = timm.create_model(NAME, pretrained=True)
    assert network.pretrained_cfg["architecture"] == "resnet18"
    assert "state_dict" not in network.pretrained_cfg
    timm.models.save_for_hf(network, tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(images()), shipped.embed(images()))


def test_a_bgr_model_takes_rgb(bgr, monkeypatch: pytest.MonkeyPatch):
    """OpenMMLab's file of 2021 is BGR; its weights are not here, so a stand-in is loaded in their place."""
    torch.manual_seed(0)
    model = ContextPredictionModel("resnet50", pair_layers=False).eval()
    name = "resnet50_8xb64-steplr-70e.20211213"
    model.card = context_pred.model_info(name)
    assert model.card.channel_order == "bgr"
    asked = []
    monkeypatch.setattr(registered, "load_pretrained", lambda name, **options: asked.append(name) or model)
    network = timm.create_model(name, pretrained=True).eval()
    assert asked == [name]
    config = timm.data.resolve_model_data_config(network)
    assert config["mean"] == model.card.mean[::-1]
    photograph = Image.fromarray(torch.randint(0, 256, (80, 96, 3), dtype=torch.uint8).numpy())
    x = timm.data.create_transform(**config, is_training=False)(photograph)[None]
    with torch.no_grad():
        expected = model.embed(model.transform(photograph)[None])
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)


def test_weights_of_ones_own_go_before_the_zoos(tmp_path: Path):
    network = timm.create_model("resnet18")
    torch.save(network.state_dict(), tmp_path / "own.pt")
    overlay = {"file": str(tmp_path / "own.pt"), "num_classes": 1000}
    again = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay)
    assert torch.equal(again.conv1.weight, network.conv1.weight)


def test_registering_again_changes_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = timm.list_models()
        registered.register()
        assert timm.list_models() == before


def test_unknown_tag():
    with pytest.raises(RuntimeError, match="Invalid pretrained tag"):
        timm.create_model(f"{NAME}.20200101", pretrained=True)
