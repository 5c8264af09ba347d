"""A model as transformers' ResNet: equal maps, folders that its Auto classes load, the same preprocessing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

from context_pred import ContextPredictionModel
from context_pred.errors import InvalidInputError, UnknownNameError
from context_pred.integrations.transformers import image_processor, resnet_backbone


def images(channels: int = 3) -> torch.Tensor:
    return torch.rand(2, channels, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(shipped, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resnet")
    resnet_backbone(shipped).save_pretrained(folder)
    image_processor(shipped).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
@pytest.mark.parametrize("channels", [3, 1])
def test_maps_are_equal(backbone, channels):
    torch.manual_seed(0)
    model = ContextPredictionModel(backbone, in_channels=channels, pair_layers=False).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # so that no two are alike
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    theirs = resnet_backbone(model, out_features=["stage1", "stage2", "stage3", "stage4"])
    assert theirs.channels == [model.feature_info[f"feature{k}"].channels for k in (2, 3, 4, 5)]
    with torch.no_grad():
        found, expected = theirs(images(channels)).feature_maps, model.features(images(channels))
    for one, layer in zip(found, ("feature2", "feature3", "feature4", "feature5"), strict=True):
        torch.testing.assert_close(one, expected[layer])


def test_the_stem_is_after_pooling(shipped):
    with torch.no_grad():
        (stem,) = resnet_backbone(shipped, ["stem"])(images()).feature_maps
        expected = shipped.backbone.maxpool(shipped.features(images())["feature1"])
    torch.testing.assert_close(stem, expected)


def test_a_bgr_model_takes_rgb(bgr):
    pixels = torch.rand(3, 224, 224)
    processor = image_processor(bgr)
    x = (pixels - torch.tensor(processor.image_mean)[:, None, None]) / torch.tensor(processor.image_std)[:, None, None]
    with torch.no_grad():
        (found,) = resnet_backbone(bgr, ["stage2"])(x[None]).feature_maps
        expected = bgr.features(bgr.transform.normalize(pixels)[None], "feature3")["feature3"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_folders_load_without_this_library(shipped, folder):
    with torch.no_grad():
        backbone = transformers.ResNetBackbone.from_pretrained(folder, out_features=["stage2", "stage4"]).eval()
        found = backbone(images()).feature_maps
        expected = shipped.features(images(), ["feature3", "feature5"])
        for one, layer in zip(found, expected, strict=True):
            torch.testing.assert_close(one, expected[layer])
        pooled = transformers.AutoModel.from_pretrained(folder).eval()(images()).pooler_output.flatten(1)
        torch.testing.assert_close(pooled, shipped.embed(images()))
        classifier = transformers.AutoModelForImageClassification.from_pretrained(folder, num_labels=3).eval()
        assert classifier(images()).logits.shape == (2, 3)
        torch.testing.assert_close(classifier.resnet(images()).pooler_output.flatten(1), shipped.embed(images()))


def test_preprocessing(shipped, folder, photos: Path):
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    for name in ("koala", "arch_paris"):
        with Image.open(photos / f"{name}.jpg") as image:
            found = processor(image, return_tensors="pt")["pixel_values"][0]
            expected = shipped.transform(image)
        torch.testing.assert_close(found, expected, rtol=0, atol=1.5 / 255 / 0.22)


@pytest.mark.parametrize(
    ("stages", "text"),
    [
        (["feature4"], "transformers calls it 'stage3'"),
        (["stage5"], "Did you mean"),
        (["stage2", "stage1"], "in this order"),
        ([], "in this order"),
    ],
)
def test_bad_stages(shipped, stages, text):
    with pytest.raises((InvalidInputError, UnknownNameError), match=text):
        resnet_backbone(shipped, stages)


def test_only_resnets():
    with pytest.raises(InvalidInputError, match="contextnet has no counterpart"):
        resnet_backbone(ContextPredictionModel("contextnet", pair_layers=False))


def test_grey_models_have_no_processor():
    with pytest.raises(InvalidInputError, match="1 input channels"):
        image_processor(ContextPredictionModel("resnet18", in_channels=1, pair_layers=False))
