"""The optimiser of a recipe, with upstream's parameter groups."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from context_pred.errors import InvalidInputError

if TYPE_CHECKING:
    from context_pred.model import ContextPredictionModel


@dataclass(frozen=True)
class OptimizerOptions:
    """How the weights move: a recipe's ``[optimizer]``.

    Args:
        kind: "sgd" or "adamw".
        learning_rate: Of the global batch, before the schedule.
        momentum: Of "sgd", without Nesterov.
        betas: Of "adamw".
        weight_decay: Of "sgd": added to the gradient; of "adamw": decoupled.
        pair_layers_weight_decay: Of neck and head; None: ``weight_decay``.
        decay_norms_and_biases: False leaves every parameter of one dimension (batch norms, biases) undecayed.
        reduction: Of the loss: "mean" over the pairs of the global batch, or "sum" (the authors' released code).

    Raises:
        InvalidInputError: an option out of its range.
    """

    kind: Literal["sgd", "adamw"]
    learning_rate: float
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-4
    pair_layers_weight_decay: float | None = dataclasses.field(
        default=None, metadata={"unset": "weight_decay holds for neck and head too"}
    )
    decay_norms_and_biases: bool = True
    reduction: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.learning_rate < math.inf:
            raise InvalidInputError(f"learning_rate = {self.learning_rate}: accepted is a number above 0.")
        if not 0 <= self.momentum < 1:
            raise InvalidInputError(f"momentum = {self.momentum}: accepted is 0 up to, not including, 1.")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise InvalidInputError(
                f"betas = {list(self.betas)}: accepted are two numbers from 0 up to, not including, 1."
            )
        for name in ("weight_decay", "pair_layers_weight_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise InvalidInputError(f"{name} = {value}: accepted is 0 or more.")


def make_optimizer(model: ContextPredictionModel, options: OptimizerOptions) -> torch.optim.Optimizer:
    """Make the optimiser over every parameter of a model, each in exactly one group.

    Upstream's groups: the backbone, and neck and head with a weight decay of their own, batch norms and biases
    decayed like the rest (mmselfsup, ``relative-loc_resnet50_8xb64-steplr-70e_in1k.py``: ``paramwise_options`` of
    0.x, its patterns anchored at the name's start, and ``decay_mult`` 5 of 1.x). With ``decay_norms_and_biases=False``
    each of the two is divided once more. Each group has a ``name``.

    Which implementation (fused, for-each, loop) runs is torch's choice for the device.

    Args:
        model: The model itself, not its ``DistributedDataParallel`` or compiled wrapper.
        options: The recipe's optimiser.
    """
    decays = {"backbone": options.weight_decay, "pair layers": options.weight_decay}
    if options.pair_layers_weight_decay is not None:
        decays["pair layers"] = options.pair_layers_weight_decay
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        part = "backbone" if name.startswith("backbone.") else "pair layers"
        plain = parameter.ndim < 2 and not options.decay_norms_and_biases
        label = f"{part}: norms and biases" if plain else part
        group = groups.setdefault(label, {"name": label, "params": [], "weight_decay": 0.0 if plain else decays[part]})
        group["params"].append(parameter)
    if options.kind == "sgd":
        return torch.optim.SGD(groups.values(), lr=options.learning_rate, momentum=options.momentum)
    return torch.optim.AdamW(groups.values(), lr=options.learning_rate, betas=options.betas)
