"""Linear classifiers on frozen feature maps, all layers at once (mmselfsup's ``MultiClsHead``), and their accuracy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from context_pred.backbones import Backbone, ResNetBackbone
from context_pred.errors import TrainingDivergedError
from context_pred.extract.network import fold_batch_norms
from context_pred.finetuning import LinearHead
from context_pred.pooling import pool_map
from context_pred.ranks import Ranks

from .trained import seeded

_HEADS = 11
"""Of the key that the heads' random weights are drawn from."""


class Heads(nn.Module):
    """A head a layer; they share nothing, so training them together is training each alone.

    Args:
        shapes: {layer: shape of its pooled map of one image}.
        classes: As in ``LinearHead``.
        norm_momentum: As in ``LinearHead``.
        init_std: As in ``LinearHead``.
        seed: A layer's weights depend on it and on the layer, not on which others there are.
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        classes: int,
        *,
        norm_momentum: float | None,
        init_std: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.layers = tuple(shapes)
        heads = []
        for layer, shape in shapes.items():
            with seeded(seed, _HEADS, *layer.encode()):
                heads.append(LinearHead(shape, classes, norm_momentum, init_std))
        self.heads = nn.ModuleList(heads)

    def forward(self, pooled: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{layer: pooled maps} → {layer: (N, classes)}."""
        return {layer: head(pooled[layer]) for layer, head in zip(self.layers, self.heads, strict=True)}


class Frozen:
    """A backbone that gives pooled maps and learns nothing: a private copy in eval mode, its batch norms folded in.

    Args:
        backbone: It is left as it is.
        layers: In the backbone's order.
        pool: As in ``pool_map``.
        device: Where to compute.
    """

    def __init__(self, backbone: Backbone, layers: tuple[str, ...], pool: str, device: torch.device) -> None:
        own: nn.Module = copy.deepcopy(backbone).eval().requires_grad_(False)
        if isinstance(backbone, ResNetBackbone):
            own = fold_batch_norms(own).to(memory_format=torch.channels_last)
        self.backbone = own.to(device)
        self.layers, self.pool, self.device, self.windows = layers, pool, device, backbone.grid_windows

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) float32, normalised → {layer: (N, C) or (N, C, h, w)}, float32, without gradients."""
        with torch.no_grad():
            maps = self.backbone(images, self.layers)
            return {
                layer: pool_map(maps[layer].float(), layer, self.pool, windows=self.windows) for layer in self.layers
            }

    def shapes(self, channels: int, size: int) -> dict[str, tuple[int, ...]]:
        """Return {layer: shape of one image's pooled map} for images of ``channels`` and ``size`` px a side."""
        found = self(torch.zeros(1, channels, size, size, device=self.device))
        return {layer: tuple(one.shape[1:]) for layer, one in found.items()}


Pooled = Callable[[Any], tuple[dict[str, Tensor], Tensor]]
"""From a batch to the pooled maps of each layer and the classes, on the device."""


class SumOfLosses:
    """The objective: the cross entropies of all layers, added up; hits are counted over all layers."""

    def __init__(self, pooled: Pooled) -> None:
        self.pooled = pooled

    def __call__(self, model: nn.Module, batch: Any, noise: torch.Generator) -> tuple[Tensor, Tensor, int]:
        """Return (loss, hits, number asked)."""
        maps, classes = self.pooled(batch)
        logits = list(model(maps).values())
        loss = torch.stack([F.cross_entropy(one.float(), classes) for one in logits]).sum()
        hits = torch.stack([(one.argmax(1) == classes).sum() for one in logits]).sum()
        return loss, hits, len(logits) * len(classes)


def ahead(logits: Tensor, classes: Tensor) -> Tensor:
    """Return how many classes stand before the right one, (N,); of equal logits the lower class stands first.

    Raises:
        TrainingDivergedError: logits that are no numbers.
    """
    if not bool(torch.isfinite(logits).all()):
        raise TrainingDivergedError("The classifier's outputs are no numbers; try a lower learning rate.")
    own = logits.gather(1, classes[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device) < classes[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(1)


def accuracies(
    outputs: Iterator[tuple[dict[str, Tensor], Tensor]], names: Sequence[str], ranks: Ranks
) -> dict[str, tuple[float, float]]:
    """Measure top-1 and top-5 accuracy over the ranks' shares of a test set.

    Args:
        outputs: This rank's batches: {name: logits (N, classes)} and the classes (N,).
        names: What is measured, as layers.
        ranks: Of the run.
    """
    hits = torch.zeros(len(names), 2, dtype=torch.float64)
    count = 0
    for logits, classes in outputs:
        count += len(classes)
        for row, name in enumerate(names):
            before = ahead(logits[name].float(), classes)
            hits[row] += torch.stack([(before < 1).sum(), (before < 5).sum()]).cpu()
    sums = ranks.total(torch.cat([hits.flatten(), torch.tensor([float(count)], dtype=torch.float64)]))
    shares = (sums[:-1] / sums[-1]).view(-1, 2).tolist()
    return {name: (first, fifth) for name, (first, fifth) in zip(names, shares, strict=True)}
