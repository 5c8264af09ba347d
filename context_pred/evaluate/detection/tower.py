"""The paper's tower as detectors are fine-tuned from it: without batch norm.

Source: deepcontext, ``debatchnorm.py`` (METHOD A3): σ = √(variance + ε), W' = W / σ, b' = (b − μ) / σ for conv3–conv5
and fc6; layers without batch norm are copied, fc7–fc9 dropped.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from context_pred.backbones import Backbone, ContextNetBackbone
from context_pred.errors import InvalidInputError

ACCEPTED = ("contextnet", "contextnet-paper")
CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4", "conv5")


def without_batch_norm(layer: nn.Conv2d, norm: nn.BatchNorm2d | None) -> nn.Conv2d:
    """Return a convolution that computes what a convolution and the batch norm after it compute in eval mode.

    Args:
        layer: With a bias or without.
        norm: With running statistics, with scale and shift or without; None: a copy is returned.

    Raises:
        InvalidInputError: a batch norm without running statistics.
    """
    found = copy.deepcopy(layer)
    if norm is None:
        return found
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None:
        raise InvalidInputError("A batch norm without running statistics cannot be removed.")
    with torch.no_grad():
        scale = (var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight
        bias = torch.zeros_like(scale) if layer.bias is None else layer.bias.double()
        shift = (bias - mean) * scale
        if norm.bias is not None:
            shift = shift + norm.bias
        found.weight.copy_(layer.weight * scale[:, None, None, None])
        found.bias = nn.Parameter(shift.to(layer.weight.dtype))
    return found


def tower_of(backbone: Backbone, name: str, variant: str) -> ContextNetBackbone:
    """Return the backbone where it is the paper's tower.

    Raises:
        InvalidInputError: another backbone; the message names those accepted and the variants that take any.
    """
    if isinstance(backbone, ContextNetBackbone):
        return backbone
    raise InvalidInputError(
        f"variant={variant!r} measures the paper's tower, and the model's backbone is {name}; accepted: "
        f"{', '.join(ACCEPTED)} (as random:contextnet). The variant voc0712-c4 takes any ResNet."
    )


class Tower(nn.Module):
    """conv1 … conv5 of the paper's tower without batch norm: (N, 3, H, W) → (N, 256, H / 16, W / 16), after the ReLU.

    Args:
        backbone: Where the weights come from; it is left as it is.
        pool_padding: Of pool1 and pool2: 0 as in pretraining, 1 as in Fast R-CNN's CaffeNet, where it centres the
            map's cell (i, j) on the pixel (16 i, 16 j) that RoI pooling takes it for.
    """

    stride = 16
    channels: int

    def __init__(self, backbone: ContextNetBackbone, pool_padding: int = 0) -> None:
        super().__init__()
        for name in CONVOLUTIONS:
            layer: Any = getattr(backbone, name)
            setattr(self, name, without_batch_norm(layer, getattr(backbone, name.replace("conv", "bn"), None)))
        self.channels = backbone.conv5.out_channels
        self.pool = nn.MaxPool2d(3, 2, pool_padding, ceil_mode=True)
        self.normalize = copy.deepcopy(backbone.normalize)

    @property
    def convolutions(self) -> list[nn.Conv2d]:
        """conv1 … conv5."""
        return [getattr(self, name) for name in CONVOLUTIONS]

    def forward(self, x: Tensor) -> Tensor:
        conv1, conv2, *others = self.convolutions
        x = self.normalize(self.pool(F.relu(conv1(x))))
        x = self.normalize(self.pool(F.relu(conv2(x))))
        for layer in others:
            x = F.relu(layer(x))
        return x


def caffe_groups(model: nn.Module, weight_decay: float, multipliers: dict[str, float]) -> list[dict[str, Any]]:
    """Group the trained parameters as Caffe's models do: biases learn at twice the rate and do not decay.

    Args:
        model: Parameters that need no gradient are left out.
        weight_decay: Of the weights.
        multipliers: Of the rate, by the beginning of a parameter's name; 1 for the others.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            times = next((value for start, value in multipliers.items() if name.startswith(start)), 1.0)
            is_bias = name.endswith("bias")
            groups.setdefault((times * (2 if is_bias else 1), is_bias), []).append(parameter)
    return [
        {"params": params, "multiplier": times, "weight_decay": 0.0 if is_bias else weight_decay}
        for (times, is_bias), params in groups.items()
    ]


def caffe_sgd(
    model: nn.Module,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    multipliers: dict[str, float] | None = None,
) -> torch.optim.Optimizer:
    """Make Caffe's SGD over ``caffe_groups``."""
    groups = caffe_groups(model, weight_decay, multipliers or {})
    return torch.optim.SGD(groups, learning_rate, momentum=momentum)
