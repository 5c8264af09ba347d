"""What --model names, and how their images are prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.transforms.v2 import functional as F

import context_pred
from context_pred import extract, extras
from context_pred.data.transforms import EvalTransform
from context_pred.errors import InvalidInputError, UnknownNameError
from context_pred.evaluate import FeatureMaps
from context_pred.evaluate.features import Preprocessing
from context_pred.evaluate.sources import find
from context_pred.model import ContextPredictionModel

STAGES = {"relu": "feature1", "layer1": "feature2", "layer2": "feature3", "layer3": "feature4", "layer4": "feature5"}


def features(source: Any, photos: Path, out: Path, layers: tuple[str, ...], pool: str) -> dict[str, np.ndarray]:
    files = sorted(photos.glob("*.jpg"))[:2]
    extract.run(files, source.model, out=out, layers=layers, pool=pool, device="cpu", progress=False)
    return {name: np.array(rows) for name, rows in extract.load(out)[1].items()}


def test_random_weights_follow_the_seed_and_leave_the_generator_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = find("random:resnet18", 3), find("random:resnet18", 3), find("random:resnet18", 4)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.digest == again.digest != other.digest
    assert first.layers == tuple(f"feature{k}" for k in range(1, 6))
    assert not first.model.backbone.training


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("random:resnet8", "'resnet18'"),
        ("hgo", "'hog'"),
        ("pixel", "'pixels'"),
        ("resnt18_1xb64-coslr-300k", "'resnet18_1xb64-coslr-300k'"),
        ("random-resnet18", "'random:resnet18'"),
    ],
)
def test_wrong_names_give_the_nearest_meant(name: str, meant: str) -> None:
    with pytest.raises(UnknownNameError, match=f"Did you mean .*{meant}"):
        find(name)


def test_something_else_than_a_model() -> None:
    with pytest.raises(InvalidInputError, match=r"given as Linear; accepted: .*FeatureMaps"):
        find(nn.Linear(2, 2))


def test_a_shipped_model_is_known_by_file_and_digest() -> None:
    card = context_pred.model_info("resnet18_1xb64-coslr-300k")
    source = find("resnet18_1xb64-coslr-300k")
    assert (source.file, source.sha256) == (card.name, card.sha256)


def test_torchvision_and_timm_give_the_features_of_our_own_backbone(photos: Path, tmp_path: Path) -> None:
    theirs = resnet18(weights=None).eval()
    ours = ContextPredictionModel("resnet18", pair_layers=False).eval()
    ours.backbone.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    layers = ("feature2", "feature5")
    expected = features(find(ours), photos, tmp_path / "ours", layers, "grid")
    wrapped = find(FeatureMaps(create_feature_extractor(theirs, STAGES), "theirs"))
    assert wrapped.layers == tuple(STAGES.values())
    found = features(wrapped, photos, tmp_path / "theirs", layers, "grid")
    for layer in layers:  # through the same windows: rows compare
        np.testing.assert_allclose(found[layer], expected[layer], atol=2e-4)
    timm = pytest.importorskip("timm")
    network = timm.create_model("resnet18", pretrained=False, features_only=True)
    network.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    wrapped = find(FeatureMaps(network, "timm"))
    assert wrapped.layers == tuple(STAGES.values())
    np.testing.assert_allclose(
        features(wrapped, photos, tmp_path / "timm", ("feature5",), "gap")["feature5"],
        features(find(ours), photos, tmp_path / "gap", ("feature5",), "gap")["feature5"],
        atol=2e-4,
    )


def test_a_network_without_maps_or_with_other_names_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="gives no feature maps"):
        FeatureMaps(resnet18(weights=None), "vectors")
    maps = create_feature_extractor(resnet18(weights=None), {"layer4": "feature5"})
    with pytest.raises(InvalidInputError, match="accepted are 1 different names"):
        FeatureMaps(maps, "two", layers=["a", "b"])
    assert find(FeatureMaps(maps, "named", layers=["top"])).layers == ("top",)


def test_channel_order_and_statistics_of_a_wrapped_network_reach_its_pixels(photos: Path, tmp_path: Path) -> None:
    class Itself(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"x": x}

    found = {}
    for order in ("rgb", "bgr"):
        maps = FeatureMaps(Itself(), order, mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5), channel_order=order)
        found[order] = features(find(maps), photos, tmp_path / order, ("x",), "gap")["x"] * 0.5 + (0.1, 0.2, 0.3)
    np.testing.assert_allclose(found["bgr"], found["rgb"][:, ::-1], atol=1e-5)


def test_the_first_published_file_is_fed_bgr() -> None:
    card = context_pred.model_info("resnet50_8xb64-steplr-70e.20211213")
    own = EvalTransform(mean=card.mean, std=card.std, channel_order=card.channel_order)
    assert Preprocessing(squash=True).transform(own).channel_order == "bgr"


def test_pixels_are_a_thumbnail_and_hog_is_scikit_images(photos: Path, tmp_path: Path) -> None:
    from skimage.feature import hog

    file = sorted(photos.glob("*.jpg"))[0]
    with Image.open(file) as image:
        cut = EvalTransform().cut(image)
    pixels = features(find("pixels"), photos, tmp_path / "pixels", ("pixels",), "none")["pixels"][0]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    blocks = ((cut / 255 - mean) / std).reshape(3, 32, 7, 32, 7).mean((2, 4))
    np.testing.assert_allclose(pixels, blocks, atol=1e-5)
    found = features(find("hog"), photos, tmp_path / "hog", ("hog",), "none")["hog"][0].ravel()
    expected = hog(cut.permute(1, 2, 0).numpy(), 9, (16, 16), (2, 2), channel_axis=-1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_missing_package_names_the_extra() -> None:
    with pytest.raises(InvalidInputError, match=r'The plot needs nonesuch.*pip install "context-pred\[eval\]"'):
        extras.need("nonesuch.part", "The plot")


# Preprocessing


def picture() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (90, 150, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_svm_preprocessing_is_pillows_two_resizes() -> None:
    image = picture()
    cut = Preprocessing(squash=True).transform(EvalTransform()).cut(image)
    step = image.resize((int(256 * 150 / 90), 256), Image.Resampling.BILINEAR)
    expected = step.resize((224, 224), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(cut.permute(1, 2, 0), np.asarray(expected))


def test_knn_preprocessing_is_the_models_own_at_the_usual_size() -> None:
    image = picture()
    assert torch.equal(Preprocessing().transform(EvalTransform()).cut(image), EvalTransform().cut(image))
    small = Preprocessing(size=56).transform(EvalTransform())
    assert (small.resize, small.crop) == (64, 56)


def test_opencv_resampling_is_bilinear_between_pixels() -> None:
    image = picture()
    cut = Preprocessing(size=20, resize=30, resampling="opencv").transform(EvalTransform()).cut(image)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    expected = nn.functional.interpolate(pixels, (30, 50), mode="bilinear", align_corners=False, antialias=False)
    np.testing.assert_allclose(cut, F.center_crop(expected[0], [20, 20]), atol=1)


def test_a_panorama_is_squashed_without_gigabytes() -> None:
    cut = Preprocessing(squash=True, size=32).transform(EvalTransform()).cut(Image.new("RGB", (60_000, 2), "red"))
    assert cut.shape == (3, 32, 32)
    assert cut[0].min() == 255


class _Grid(nn.Module):
    """Maps of five channels, the channels first or last."""

    def __init__(self, last: bool, channels: int = 3) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(channels, 5, 3, stride=32, padding=1), last

    def forward(self, x: Tensor) -> list[Tensor]:
        found = self.conv(x)
        return [found.permute(0, 2, 3, 1) if self.last else found]


def test_maps_with_the_channels_last_are_turned() -> None:
    first, last = _Grid(last=False), _Grid(last=True)
    last.load_state_dict(first.state_dict())
    x = torch.randn(2, 3, 224, 160)
    maps = [FeatureMaps(one, "grid").backbone(x)["feature1"] for one in (first, last)]
    assert maps[0].shape == (2, 5, 7, 5)
    torch.testing.assert_close(maps[1], maps[0])


def test_a_network_of_one_channel() -> None:
    grey = FeatureMaps(_Grid(last=False, channels=1), "grid", mean=[0.5], std=[0.25])
    assert grey.backbone.in_channels == 1
    pixels = grey.transform(Image.new("RGB", (300, 260), (200, 30, 30)))
    assert grey.backbone(pixels[None])["feature1"].shape == (1, 5, 7, 7)
    with pytest.raises(InvalidInputError, match="does not take an image of 3 × 224 × 224"):
        FeatureMaps(_Grid(last=False, channels=1), "grid")
