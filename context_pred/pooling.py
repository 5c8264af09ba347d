"""How feature maps are pooled, for users, extraction and the protocols alike."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from .backbones import LAYERS
from .errors import unknown

Pool = Literal["gap", "grid", "none"]
POOLS = ("gap", "grid", "none")

GRID = dict(zip(LAYERS, (12, 6, 4, 3, 2), strict=True))
"""Cells a side of the "grid" pooling, for about 9,000 values a layer of a ResNet-50 (mmselfsup's ``MultiPooling``)."""

GRID_WINDOWS = dict(zip(LAYERS, ((10, 10, 4), (16, 8, 0), (13, 5, 0), (8, 3, 0), (6, 1, 0)), strict=True))
"""(kernel, stride, padding) of mmselfsup's ``MultiPooling``, for a ResNet at 224 px; padding zeros are counted."""

GRID_SIDES = dict(zip(LAYERS, (112, 56, 28, 14, 7), strict=True))


def pool_map(features: Tensor, layer: str, pool: str = "gap", *, windows: bool = True) -> Tensor:
    """Pool the map of one layer.

    Args:
        features: (N, C, H, W).
        layer: The layer's name; it decides the cells of "grid".
        pool: "gap": the mean over positions, (N, C). "grid": (N, C, n, n) with n = 12, 6, 4, 3, 2 for feature1 …
            feature5 (1 for any other layer), through ``MultiPooling``'s windows where the map has the size a ResNet
            gives at 224 px, else adaptively. "none": the map itself.
        windows: False pools adaptively at every size.

    Raises:
        UnknownNameError: no such pooling.
    """
    if pool == "none":
        return features
    if pool == "gap":
        return features.mean((-2, -1))
    if pool != "grid":
        raise unknown("pooling", pool, POOLS)
    if windows and features.shape[-2:] == (GRID_SIDES.get(layer), GRID_SIDES.get(layer)):
        return F.avg_pool2d(features, *GRID_WINDOWS[layer])
    return F.adaptive_avg_pool2d(features, GRID.get(layer, 1))
