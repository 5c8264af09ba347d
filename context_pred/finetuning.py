"""Fine-tuning: parameters grouped by stage for any optimiser of PyTorch, and a classifier on any layer.

model = context_pred.load_pretrained("resnet18_1xb64-coslr-300k").freeze(1)
classifier = model.classifier(num_classes=10, layer="feature4")
optimizer = torch.optim.AdamW(classifier.parameter_groups(1e-3, layer_decay=0.7, weight_decay=0.05))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backbones import Backbone
from .errors import InvalidInputError, check_whole_number, unknown
from .pooling import GRID, pool_map

if TYPE_CHECKING:
    from .model import ContextPredictionModel

__all__ = ["Classifier", "LinearHead", "parameter_groups"]

_POOLS = ("gap", "grid")


class LinearHead(nn.Module):
    """Batch norm without scale and shift on the pooled map, flattened, then one linear layer.

    Source: mmselfsup's ``MultiClsHead`` and ``LinearClsHead``, after Zhang et al. (CVPR 2017).

    Args:
        shape: Of the pooled map of one image: (C,) or (C, h, w).
        classes: How many there are.
        norm_momentum: Of the batch norm; None: there is none.
        init_std: Standard deviation of the random weights; biases begin at 0.
    """

    def __init__(self, shape: Sequence[int], classes: int, norm_momentum: float | None, init_std: float) -> None:
        super().__init__()
        channels, values = shape[0], int(torch.Size(shape).numel())
        self.norm = None if norm_momentum is None else nn.BatchNorm2d(channels, momentum=norm_momentum, affine=False)
        self.fc = nn.Linear(values, classes)
        nn.init.normal_(self.fc.weight, std=init_std)
        nn.init.zeros_(self.fc.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """Classify pooled maps.

        Args:
            pooled: (N, C) or (N, C, h, w), floating.

        Returns:
            Logits (N, classes).
        """
        if self.norm is not None:
            maps = pooled if pooled.ndim == 4 else pooled[..., None, None]
            if self.norm.training and isinstance(self.norm, nn.BatchNorm2d) and maps.numel() == maps.shape[1]:
                # One value a channel has no variance.
                maps = F.batch_norm(maps, self.norm.running_mean, self.norm.running_var, eps=self.norm.eps)
            else:
                maps = self.norm(maps)
            pooled = maps
        logits: Tensor = self.fc(pooled.flatten(1))
        return logits


class Classifier(nn.Module):
    """A backbone up to a layer, that layer pooled, and a linear head: images to logits.

    The backbone is a copy, so the model stays as it is; stages beyond the layer are left out of it. What the model has
    frozen is frozen here. State-dict keys are ``backbone.`` + torchvision's names, ``head.fc.…`` and ``head.norm.…``.

    Args:
        model: Where the backbone and the preprocessing come from.
        num_classes: How many classes there are, 1 or more.
        layer: "feature1" … "feature5" ("fc6" too for contextnet).
        pool: "gap": the mean over positions; "grid": a grid of cells, flattened (METHOD's linear classification).
        batch_norm: Normalise the pooled map first, as the published linear classifiers do: without scale and shift.

    Attributes:
        transform: The evaluation preprocessing: a PIL image or a tensor to a float32 (C, H, W) tensor.
        classes: The names of the classes, where they are known; else ().

    Raises:
        UnknownNameError: no such layer or pooling.
        InvalidInputError: ``num_classes`` is no whole number from 1 up.
    """

    classes: tuple[str, ...] = ()

    def __init__(
        self,
        model: ContextPredictionModel,
        num_classes: int,
        layer: str = "feature5",
        *,
        pool: str = "gap",
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        check_whole_number("num_classes", num_classes)
        if pool not in _POOLS:
            raise unknown("pooling", pool, _POOLS)
        if not isinstance(layer, str):
            raise InvalidInputError(f"layer={layer!r}; accepted: one of {', '.join(model.backbone.layers)}.")
        self.backbone = model.backbone.upto(layer)
        self.layer, self.pool, self.transform = layer, pool, model.transform
        cells = (GRID.get(layer, 1),) * 2 if pool == "grid" else ()
        shape = (self.backbone.feature_info[layer].channels, *cells)
        self.head = LinearHead(shape, num_classes, 0.1 if batch_norm else None, 0.01)
        weight = self.backbone.conv1.weight
        self.head.to(weight.device, weight.dtype)
        self.train()  # a new module is in train mode; the copied backbone was in the model's

    def forward(self, images: Tensor) -> Tensor:
        """Classify images.

        Args:
            images: (N, C, H, W), floating, as ``transform`` makes them.

        Returns:
            Logits (N, num_classes).

        Raises:
            InvalidInputError: the images have another shape or dtype.
        """
        self.backbone.check(images, "images")
        maps = self.backbone(images, self.layer)[self.layer]
        logits: Tensor = self.head(pool_map(maps, self.layer, self.pool, windows=self.backbone.grid_windows))
        return logits

    def freeze(self, stages: int, *, norms: bool = False) -> Self:
        """Freeze the first stages; see ``ContextPredictionModel.freeze``. All of them leave a linear probe.

        Args:
            stages: 0: the stem alone; −1: nothing (thaws).
            norms: Freeze the batch norms of all other stages too.

        Returns:
            The module itself.

        Raises:
            InvalidInputError: the backbone has no such stage.
        """
        self.backbone.freeze(stages, norms=norms)
        return self

    def parameter_groups(
        self, lr: float, *, layer_decay: float = 1.0, weight_decay: float = 0.0
    ) -> list[dict[str, Any]]:
        """Group the parameters by stage for an optimiser.

        Args:
            lr: Learning rate of the head, above 0.
            layer_decay: Factor from one stage to the one before it, above 0, at most 1.
            weight_decay: Of weight matrices and kernels, 0 or more.

        Returns:
            Groups with "name", "lr", "weight_decay" and "params"; see ``parameter_groups``.

        Raises:
            InvalidInputError: a number out of its range, or nothing that is not frozen.
        """
        return parameter_groups(self, lr, layer_decay=layer_decay, weight_decay=weight_decay)


def parameter_groups(
    module: nn.Module, lr: float, *, layer_decay: float = 1.0, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Group parameters by stage, for any optimiser of PyTorch: deeper ones learn faster, norms and biases decay not.

    What stands on the backbone learns at ``lr``, the deepest stage at ``lr · layer_decay``, the one before it at
    ``lr · layer_decay²``, and so on down to the stem. Frozen parameters are left out: freeze first.

    Args:
        module: A model, a classifier, a detector, a segmenter: anything that has one of the library's backbones in it.
        lr: Learning rate of the head, above 0.
        layer_decay: Factor from one stage to the one before it, above 0, at most 1 (which gives every stage ``lr``).
        weight_decay: Of weight matrices and kernels, 0 or more; batch norms and biases have none.

    Returns:
        Groups with "name", "lr", "weight_decay" and "params", the stem's first: "feature1" … "feature5", then "head",
        and for the norms and biases of each the same name + ": norms and biases".

    Raises:
        InvalidInputError: a number out of its range, no backbone in the module, or nothing that is not frozen.
    """
    numbers = all(isinstance(value, (Real, Tensor)) for value in (lr, layer_decay, weight_decay))
    if not numbers or not 0 < lr < math.inf or not 0 < layer_decay <= 1 or not 0 <= weight_decay < math.inf:
        raise InvalidInputError(
            f"lr={lr!r}, layer_decay={layer_decay!r}, weight_decay={weight_decay!r}; accepted: lr above 0, layer_decay "
            "above 0 and at most 1, weight_decay 0 or more; finite numbers."
        )
    parts = module.modules() if isinstance(module, nn.Module) else ()
    backbones = [part for part in parts if isinstance(part, Backbone)]
    if not backbones:
        raise InvalidInputError(
            f"{type(module).__name__} has no backbone of this library in it; accepted: a ContextPredictionModel, its "
            "classifier, or what context_pred.integrations makes of it."
        )
    stage_of: dict[int, str] = {}
    scales = {"head": 1.0}
    for backbone in backbones:
        count = len(backbone.stages)
        for number, (layer, names) in enumerate(zip(backbone.layers, backbone.stages, strict=False)):
            scales[layer] = layer_decay ** (count - number)
            parts = (backbone.get_submodule(name) for name in names)
            stage_of |= {id(parameter): layer for part in parts for parameter in part.parameters()}
    groups: dict[str, dict[str, Any]] = {}
    for layer in [*(name for name in scales if name != "head"), "head"]:
        for end, decay in (("", weight_decay), (": norms and biases", 0.0)):
            name = layer + end
            groups[name] = {"name": name, "lr": lr * scales[layer], "weight_decay": decay, "params": []}
    for parameter in module.parameters():
        if parameter.requires_grad:
            end = "" if parameter.ndim > 1 else ": norms and biases"
            groups[stage_of.get(id(parameter), "head") + end]["params"].append(parameter)
    found = [group for group in groups.values() if group["params"]]
    if not found:
        raise InvalidInputError("Every parameter is frozen, so there is nothing to learn; freeze(-1) thaws.")
    return found
