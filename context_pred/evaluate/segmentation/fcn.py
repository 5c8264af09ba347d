"""The fully convolutional network: a ResNet with dilated stages, and mmsegmentation's two heads.

Sources: METHOD C12 and C13; mmsegmentation 0.x, ``models/backbones/resnet.py``, ``models/decode_heads/fcn_head.py``,
``configs/_base_/models/fcn_r50-d8.py``; Long, Shelhamer, Darrell, CVPR 2015.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from context_pred.backbones import Backbone, RepeatedBatchNorm2d
from context_pred.errors import InvalidInputError

STRIDES = (8, 16, 32)
"""Output strides: 8 dilates stages 3 and 4 (strides 1, 2, 1, 1, dilations 1, 1, 2, 4), 16 stage 4 alone, 32 none."""


class FCNHead(nn.Sequential):
    """3×3 convolutions with batch norm and ReLU, another over their output and the input, dropout, a 1×1 convolution.

    Args:
        inputs: Channels of the map.
        channels: Channels of the convolutions.
        classes: How many.
        convolutions: 3×3 convolutions, each followed by batch norm and ReLU.
        concatenated: Whether one more convolution sees the input too.
        dropout: Probability with which a channel is dropped before the last convolution.
    """

    def __init__(
        self, inputs: int, channels: int, classes: int, convolutions: int, concatenated: bool, dropout: float
    ) -> None:
        before: list[nn.Module] = [_convolution(inputs if k == 0 else channels, channels) for k in range(convolutions)]
        parts: list[nn.Module] = [_WithInput(before)] if concatenated else before
        if concatenated:
            parts.append(_convolution(inputs + channels, channels))
        super().__init__(*parts, nn.Dropout2d(dropout), nn.Conv2d(channels, classes, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        last: Any = self[-1]
        nn.init.normal_(last.weight, std=0.01)
        nn.init.zeros_(last.bias)


class _WithInput(nn.Sequential):
    """Joins what its modules make to what they were given."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__(*modules)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return torch.cat([x, made], 1)


def _convolution(inputs: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(True))


class FCN(nn.Module):
    """A ResNet with a decode head on stage 4 and, for training, an auxiliary head on stage 3.

    Args:
        backbone: A ResNet of the library, or one that gives its maps (``FeatureMaps``); copied, then dilated.
        classes: How many.
        output_stride: Px of the input for each cell of the last map; see ``STRIDES``.
        channels: Of the decode head; 0: a quarter of the stage's (512 of a ResNet-50's 2,048).
        auxiliary_channels: Likewise on stage 3 (256 of 1,024).
        dropout: Of both heads.
        align_corners: How score maps are enlarged.

    Raises:
        InvalidInputError: something else than a ResNet with stages of strides 16 and 32.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        *,
        output_stride: int = 8,
        channels: int = 0,
        auxiliary_channels: int = 0,
        dropout: float = 0.1,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.backbone = copy.deepcopy(backbone).train()
        for module in self.backbone.modules():
            if isinstance(module, RepeatedBatchNorm2d):
                module.repeats = 1.0
        self.names = _last_two(self.backbone)
        third, fourth = dilated(self.backbone, self.names, output_stride)
        self.head = FCNHead(fourth, channels or fourth // 4, classes, 2, True, dropout)
        self.auxiliary = FCNHead(third, auxiliary_channels or third // 4, classes, 1, False, dropout)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Score every pixel.

        Args:
            images: (N, 3, H, W) floating, normalised.

        Returns:
            Logits of decode and auxiliary head, float32 (N, classes, H, W); the latter is without values in eval mode.
        """
        maps = self.backbone(images, self.names)
        scores = self._enlarged(self.head(maps[self.names[1]]), images)
        if not self.training:
            return scores, scores.new_empty(0)
        return scores, self._enlarged(self.auxiliary(maps[self.names[0]]), images)

    def _enlarged(self, scores: Tensor, images: Tensor) -> Tensor:
        return enlarged(scores.float(), (images.shape[-2], images.shape[-1]), self.align_corners)


def enlarged(scores: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Resize score maps (N, C, h, w), bilinear, to (height, width); those that fit already are returned as they are."""
    if tuple(scores.shape[-2:]) == size:
        return scores
    return F.interpolate(scores, size, mode="bilinear", align_corners=align_corners)


def dilated(backbone: Backbone, names: tuple[str, str], output_stride: int) -> tuple[int, int]:
    """Trade the strides of a ResNet's last stages for dilation, in place.

    The first 3×3 convolution that was strided keeps the dilation before it (mmsegmentation's ``contract_dilation``),
    those after it get twice that: each then sees its input at the spacing that it was trained with. This holds for
    ResNet-18 and 34 too, whose blocks torchvision refuses to dilate.

    Args:
        backbone: Changed in place.
        names: Its layers of stage 3 and 4.
        output_stride: See ``STRIDES``.

    Returns:
        Channels of stage 3 and stage 4.

    Raises:
        InvalidInputError: no ResNet, or one whose strides lie elsewhere.
    """
    if output_stride not in STRIDES:
        raise InvalidInputError(f"output_stride = {output_stride}; accepted: {', '.join(map(str, STRIDES))}.")
    root = _resnet(backbone)
    if root is None or [stride for stride, _ in _measured(backbone, names)] != [16, 32]:
        raise _no_resnet(backbone)
    if any(isinstance(one, nn.AvgPool2d) for stage in (root.layer3, root.layer4) for one in stage.modules()):
        raise _no_resnet(backbone, " It may not shrink its shortcuts by pooling, as ResNet-D does.")
    dilation = 1
    for stage, stride in ((root.layer3, 16), (root.layer4, 32)):
        if stride > output_stride:
            _dilate(stage, dilation)
            dilation *= 2
    (third, channels3), (fourth, channels4) = _measured(backbone, names)
    if [third, fourth] != [min(16, output_stride), min(32, output_stride)]:
        raise _no_resnet(backbone)
    return channels3, channels4


def _dilate(stage: nn.Module, before: int) -> None:
    """Take the stride out of a stage whose input is dilated by ``before``; what follows it is dilated by twice that."""
    dilation = before
    for module in stage.modules():  # in their order: a block's downsampling comes after its convolutions
        if not isinstance(module, nn.Conv2d):
            continue
        strided = tuple(module.stride) == (2, 2)
        if module.kernel_size == (3, 3):
            module.dilation = module.padding = (dilation, dilation)
        if strided:
            module.stride = (1, 1)
            dilation = 2 * before


def _resnet(backbone: Backbone) -> Any:
    """Return the module that has a ResNet's stages under torchvision's names."""
    for module in backbone.modules():
        if all(isinstance(getattr(module, name, None), nn.Module) for name in ("conv1", "layer1", "layer3", "layer4")):
            return module
    return None


def _last_two(backbone: Backbone) -> tuple[str, str]:
    if len(backbone.layers) < 2 or _resnet(backbone) is None:
        raise _no_resnet(backbone)
    return backbone.layers[-2], backbone.layers[-1]


def _measured(backbone: Backbone, names: Sequence[str]) -> list[tuple[int, int]]:
    """Measure (stride, channels) of two layers, with an image that leaves the weights and statistics as they were."""
    weight = next(backbone.parameters())
    was_training = backbone.training
    with torch.no_grad():
        maps = backbone.eval()(weight.new_zeros(1, backbone.in_channels, 64, 64), list(names))
    backbone.train(was_training)
    return [(64 // maps[name].shape[-1], maps[name].shape[1]) for name in names]


def _no_resnet(backbone: Backbone, more: str = "") -> InvalidInputError:
    return InvalidInputError(
        f"The FCN stands on a ResNet, and this backbone is {type(backbone).__name__} with the layers "
        f"{', '.join(backbone.layers)}; accepted: resnet18 … resnet152, or a FeatureMaps of a ResNet whose last two "
        f"maps are its stages 3 and 4 (strides 16 and 32).{more}"
    )
