"""The feature map of a whole photograph: each position with the place in the photograph that it describes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from context_pred.backbones import ResNetBackbone
from context_pred.data.images import to_rgb
from context_pred.errors import InvalidInputError
from context_pred.extract.network import Network, find_device

if TYPE_CHECKING:
    from context_pred.backbones import Backbone
    from context_pred.model import ContextPredictionModel

SIDE = 5.0
"""The shorter side of a photograph in patches of the model's training, unless another is asked for."""

LONGEST = 16
"""Longer side over shorter side beyond which a photograph is scaled by its longer side."""

_CONTEXTNET_FIRST = {"feature1": 0, "feature2": 4, "feature3": 12, "feature4": 12, "feature5": 12, "fc6": 60}


@dataclass(frozen=True)
class FeatureMaps:
    """Makes the feature maps of photographs, of one layer.

    A photograph is scaled so that its shorter side is ``side`` patches of the model's training. It is continued by
    reflection beyond its rims, where a network otherwise answers to the zeros it pads with, and the map's positions
    are the centres of equal cells that tile the photograph.

    Attributes:
        network: The backbone up to the layer.
        layer: Its name.
        patch: px of a patch.
        side: The shorter side in patches.
        stride: px from one position of the layer to the next.
        first: px of the input at which the layer's first position is centred.
        finer: Positions a stride: 2 computes the map four times, shifted by half a stride, and interleaves.
    """

    network: Network
    layer: str
    patch: int
    side: float
    stride: int
    first: int
    finer: int

    @classmethod
    def of(
        cls,
        model: ContextPredictionModel,
        layer: str,
        *,
        side: float = SIDE,
        finer: int = 1,
        device: str | torch.device = "auto",
    ) -> FeatureMaps:
        """Prepare a model, which is left as it is.

        Raises:
            UnknownNameError: no such layer.
            InvalidInputError: ``side`` out of its range, a device that is not there, or a model of other than 1 or 3
                channels.
        """
        if isinstance(side, bool) or not isinstance(side, int | float) or not 1 <= side <= 64:
            raise InvalidInputError(f"side={side!r}; accepted: the photograph's shorter side in patches, 1 … 64.")
        if model.card.in_channels not in (1, 3):
            raise InvalidInputError(
                f"{model.card.name} takes {model.card.in_channels} channels; pictures are made of photographs, 3 or 1."
            )
        (chosen,) = model.backbone.chosen((layer,))
        network = Network(model.backbone, model.transform, (chosen,), "none", find_device(device), "float32")
        stride = model.feature_info[chosen].stride
        patch = model.patch_sampler.patch
        return cls(network, chosen, patch, float(side), stride, _first(model.backbone, chosen), finer)

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """Return the map of one photograph of any 8-bit mode and any size, float32 (h, w, channels).

        Position (row, column) describes the photograph around x = (column + ½) · width / w, y = (row + ½) · height / h.
        """
        height, width = self.size(image.height, image.width)
        pixels = self._pixels(image, (height, width))
        rows, columns = height // self.stride, width // self.stride
        found: NDArray[np.float32] | None = None
        for down in range(self.finer):
            for right in range(self.finer):
                (above, top), (before, left) = self._rim(down), self._rim(right)
                # One stride more than the same behind: where the padding is none, the map ends before the input does.
                rims = ((above, above + 2 * self.stride), (before, before + 2 * self.stride), (0, 0))
                padded = torch.from_numpy(np.pad(pixels, rims, mode="reflect")).permute(2, 0, 1)[None]
                part = self.network(padded)[self.layer][0].transpose(1, 2, 0)
                if found is None:
                    found = np.empty((rows * self.finer, columns * self.finer, part.shape[2]), np.float32)
                found[down :: self.finer, right :: self.finer] = part[top : top + rows, left : left + columns]
        if found is None:
            raise InvalidInputError(f"finer={self.finer}; accepted: a whole number from 1 up.")
        return found

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) in px that a photograph is scaled to: whole positions."""
        scale = self.side * self.patch / max(min(height, width), max(height, width) / LONGEST)
        rows, columns = (max(1, round(side * scale / self.stride)) for side in (height, width))
        return rows * self.stride, columns * self.stride

    def _rim(self, part: int) -> tuple[int, int]:
        """Return the px to put before the photograph, and which position then lies in the first cell's such part."""
        offset = round(self.first + 0.5 - (part + 0.5) * self.stride / self.finer)
        position = math.ceil((max(self.patch, self.stride) - offset) / self.stride)
        return offset + position * self.stride, position

    def _pixels(self, image: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
        image = to_rgb(image)
        if self.network.transform.in_channels == 1:
            image = image.convert("L")
        return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR)).reshape(*size, -1)


def _first(backbone: Backbone, layer: str) -> int:
    """Return where the first position is centred: 0 px in a ResNet, whose convolutions are all padded by half."""
    return 0 if isinstance(backbone, ResNetBackbone) else _CONTEXTNET_FIRST[layer]
