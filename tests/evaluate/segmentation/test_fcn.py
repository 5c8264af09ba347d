"""The FCN actually built, against METHOD C12, torchvision's dilation, and the network before it was dilated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models.feature_extraction import create_feature_extractor

from context_pred.backbones import build_backbone
from context_pred.errors import InvalidInputError
from context_pred.evaluate import FeatureMaps
from context_pred.evaluate.segmentation.fcn import FCN, dilated

NAMES = ("feature4", "feature5")


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]


def test_resnet50_d8_as_method_c12_has_it() -> None:
    model: Any = FCN(build_backbone("resnet50"), 21)
    net = model.backbone
    assert (net.conv1.kernel_size, net.conv1.stride) == ((7, 7), (2, 2))
    strides = [
        max(c.stride[0] for c in convolutions(stage)) for stage in (net.layer1, net.layer2, net.layer3, net.layer4)
    ]
    assert strides == [1, 2, 1, 1]
    for stage, first, others in ((net.layer1, 1, 1), (net.layer2, 1, 1), (net.layer3, 1, 2), (net.layer4, 2, 4)):
        found = [block.conv2.dilation[0] for block in stage]
        assert found == [first] + [others] * (len(stage) - 1)  # contract_dilation
        assert [block.conv2.padding[0] for block in stage] == found
    head = model.head
    assert [(c.in_channels, c.out_channels, c.kernel_size[0], c.bias is None) for c in convolutions(head)] == [
        (2048, 512, 3, True), (512, 512, 3, True), (2048 + 512, 512, 3, True), (512, 21, 1, False)
    ]  # fmt: skip
    assert [type(m).__name__ for m in head.modules() if not list(m.children())] == [
        *["Conv2d", "BatchNorm2d", "ReLU"] * 3, "Dropout2d", "Conv2d"
    ]  # fmt: skip
    assert [(c.in_channels, c.out_channels, c.kernel_size[0]) for c in convolutions(model.auxiliary)] == [
        (1024, 256, 3), (256, 21, 1)
    ]  # fmt: skip
    assert (head[-2].p, model.auxiliary[-2].p) == (0.1, 0.1)
    assert all(p.requires_grad for p in model.parameters())
    assert all(m.training for m in model.modules())
    for part in (head, model.auxiliary):
        assert part[-1].weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert part[-1].bias.abs().max() == 0
        first = convolutions(part)[0].weight
        assert first.std().item() == pytest.approx((2 / (first.shape[0] * 9)) ** 0.5, rel=0.02)  # kaiming, fan out


def test_small_resnets_keep_a_quarter_of_the_channels() -> None:
    model = FCN(build_backbone("resnet18"), 11)
    assert [c.out_channels for c in convolutions(model.head)] == [128, 128, 128, 11]
    assert [c.out_channels for c in convolutions(model.auxiliary)] == [64, 11]
    wide = FCN(build_backbone("resnet18"), 11, channels=40, auxiliary_channels=24)
    assert (convolutions(wide.head)[0].out_channels, convolutions(wide.auxiliary)[0].out_channels) == (40, 24)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
@pytest.mark.parametrize("stride", [8, 16])
def test_dilated_maps_hold_the_undilated_ones(name: str, stride: int) -> None:
    """Every convolution sees its input at the spacing it had, so the old map lies within the new one, exactly."""
    torch.manual_seed(0)
    backbone = build_backbone(name).eval().double()
    images = torch.randn(1, 3, 96, 64, dtype=torch.float64)
    with torch.no_grad():
        before = backbone(images, NAMES)
        channels = dilated(backbone, NAMES, stride)
        after = backbone(images, NAMES)
    assert channels == (before["feature4"].shape[1], before["feature5"].shape[1])
    for layer, own in (("feature4", 16), ("feature5", 32)):
        step = own // min(own, stride)
        assert after[layer].shape[-2:] == (96 // min(own, stride), 64 // min(own, stride))
        torch.testing.assert_close(after[layer][..., ::step, ::step], before[layer])


def test_resnet50_is_dilated_as_torchvision_dilates_it() -> None:
    torch.manual_seed(0)
    theirs: Any = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True]).eval()
    ours: Any = build_backbone("resnet50").eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    dilated(ours, NAMES, 8)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = create_feature_extractor(theirs, {"layer3": "a", "layer4": "b"})(images)
        own = ours(images, NAMES)
    torch.testing.assert_close(own["feature4"], maps["a"])
    torch.testing.assert_close(own["feature5"], maps["b"])


def test_stride_32_and_the_copy_leave_the_backbone_alone() -> None:
    backbone = build_backbone("resnet18").eval()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    model = FCN(backbone, 3, output_stride=32)
    assert [c.dilation for c in convolutions(model.backbone)] == [(1, 1)] * 20
    FCN(backbone, 3)(torch.randn(2, 3, 32, 32))
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert [c.stride for c in convolutions(backbone)].count((2, 2)) == 7
    assert not backbone.training


@pytest.mark.parametrize("align", [False, True])
def test_scores_have_the_images_size_and_the_auxiliary_head_trains_only(align: bool) -> None:
    torch.manual_seed(0)
    model = FCN(build_backbone("resnet18"), 5, align_corners=align)
    images = torch.randn(2, 3, 40, 56)
    scores, auxiliary = model(images)
    assert scores.shape == auxiliary.shape == (2, 5, 40, 56)
    scores, auxiliary = model.eval()(images)
    assert (scores.shape, auxiliary.numel()) == ((2, 5, 40, 56), 0)
    small = model.head(model.backbone(images, NAMES)["feature5"])
    own = F.interpolate(small, (40, 56), mode="bilinear", align_corners=align)
    other = F.interpolate(small, (40, 56), mode="bilinear", align_corners=not align)
    torch.testing.assert_close(scores, own)
    assert not torch.allclose(scores, other)


def test_networks_of_others_and_what_is_no_resnet() -> None:
    resnet = torchvision.models.resnet18(weights=None)
    maps = create_feature_extractor(resnet, {"layer2": "feature3", "layer3": "feature4", "layer4": "feature5"})
    model = FCN(FeatureMaps(maps, "torchvision resnet18").backbone, 3)
    assert model(torch.randn(2, 3, 64, 64))[0].shape == (2, 3, 64, 64)
    assert model.eval().backbone(torch.randn(1, 3, 64, 64))["feature5"].shape[-1] == 8
    timm = pytest.importorskip("timm")
    network = timm.create_model("resnet18", pretrained=False, features_only=True)
    assert (
        FCN(FeatureMaps(network, "timm").backbone, 3).eval().backbone(torch.randn(1, 3, 64, 64))["feature5"].shape[-1]
        == 8
    )
    with pytest.raises(InvalidInputError, match=r"stands on a ResNet.*ContextNetBackbone"):
        FCN(build_backbone("contextnet"), 3)
    shallow = create_feature_extractor(resnet, {"layer1": "a", "layer3": "b"})
    with pytest.raises(InvalidInputError, match="strides 16 and 32"):
        FCN(FeatureMaps(shallow, "shallow").backbone, 3)
    pooled = timm.create_model("resnet10t", pretrained=False, features_only=True)
    with pytest.raises(InvalidInputError, match="shrink its shortcuts by pooling"):
        FCN(FeatureMaps(pooled, "timm").backbone, 3)
    with pytest.raises(InvalidInputError, match="output_stride = 4"):
        FCN(build_backbone("resnet18"), 3, output_stride=4)
