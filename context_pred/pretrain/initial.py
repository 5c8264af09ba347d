"""The first weights of a run: drawn as upstream draws them, or taken from another model (``--init``)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from context_pred.backbones import ContextNetBackbone, adapt_stem, xavier_caffe
from context_pred.card import CARD_FILE, ChannelOrder
from context_pred.errors import InvalidInputError, WeightsError, unknown
from context_pred.training.checkpoints import Checkpoints
from context_pred.zoo import load_pretrained
from context_pred.zoo.sources import resolve

from .recipe import RECIPE_FILE

if TYPE_CHECKING:
    from context_pred.model import ContextPredictionModel

    from .recipe import Initialization, Recipe

_STEM = "backbone.conv1.weight"
_FAN: dict[str, Literal["fan_in", "fan_out"]] = {"openmmlab": "fan_out", "openselfsup": "fan_in"}


@torch.no_grad()
def initialize(model: ContextPredictionModel, kind: Initialization, seed: int | None = None) -> None:
    """Draw every weight of a model anew.

    =========== ============================== ======================== =======================
    kind        backbone's convolutions        neck's fc                head's fc_cls
    =========== ============================== ======================== =======================
    openmmlab   Kaiming normal, fan out        normal(0, .01), bias 0   normal(0, .005), bias 0
    openselfsup Kaiming normal, fan in         normal(0, .005), bias .1 normal(0, .005), bias 0
    caffe       uniform ±√(3 / fan in), bias 0 the same                 the same
    =========== ============================== ======================== =======================

    Batch norms start at weight 1 and bias 0, the last of a block too, and with fresh running statistics.
    Sources: mmselfsup 0.x and 1.x, ``RelativeLocNeck`` and ``ClsHead``; OpenSelfSup, ``relative_loc.py``;
    deepcontext, ``train.py`` ("xavier").

    Args:
        model: A model with neck and head.
        kind: "openmmlab" or "openselfsup" for a ResNet, "caffe" for ``contextnet``.
        seed: Of the draws, which then leave torch's own generator as it was; None draws from that.

    Raises:
        UnknownNameError: no such kind.
        InvalidInputError: the kind of another network, or a model without neck and head.
    """
    kinds = ("openmmlab", "openselfsup", "caffe")
    if kind not in kinds:
        raise unknown("initialisation", kind, kinds)
    if model.neck is None or model.head is None:
        raise InvalidInputError(f"{model.card.name} has no neck and head to initialise; pretraining needs both.")
    if (kind == "caffe") != isinstance(model.backbone, ContextNetBackbone):
        raise InvalidInputError(f"The initialisation {kind!r} is not one of {model.card.backbone}.")
    if seed is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return initialize(model, kind)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.reset_parameters()
        elif kind == "caffe":
            xavier_caffe(module)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=_FAN[kind], nonlinearity="relu")
    if kind != "caffe":
        _draw_pair_layers(model, neck_std=0.005 if kind == "openselfsup" else 0.01)
        if kind == "openselfsup":
            nn.init.constant_(model.neck.get_parameter("fc.bias"), 0.1)
    return None


def _draw_pair_layers(model: ContextPredictionModel, neck_std: float) -> None:
    for name, std in (("neck.fc", neck_std), ("head.fc_cls", 0.005)):
        nn.init.normal_(model.get_parameter(f"{name}.weight"), std=std)
        nn.init.zeros_(model.get_parameter(f"{name}.bias"))


@dataclass(frozen=True)
class StartedFrom:
    """What a run took from another model.

    Attributes:
        source: The model's name on its card.
        sha256: The digest of its weights file, where the card tells.
        taken: The parts taken whole: "backbone", "neck", "head".
        tensors: How many tensors these are, running statistics included.
        left_out: (part, why) of the parts that keep their fresh weights.
        channel_order: The order that the run's sampler has to give the channels in.
        notes: What else was adapted or differs, a sentence each.
    """

    source: str
    sha256: str | None
    taken: tuple[str, ...]
    tensors: int
    left_out: tuple[tuple[str, str], ...]
    channel_order: ChannelOrder
    notes: tuple[str, ...]

    def applied_to(self, recipe: Recipe) -> Recipe:
        """Return the recipe with its sampler in the model's channel order."""
        if recipe.sampler.get("channel_order", "rgb") == self.channel_order:
            return recipe
        return dataclasses.replace(recipe, sampler={**recipe.sampler, "channel_order": self.channel_order})

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """Say it in a few lines, for the log."""
        lines = [f"Started from {self.source}: {', '.join(self.taken)} ({self.tensors} tensors); a fresh optimiser."]
        lines += [f"Not taken: {part}, since {why}." for part, why in self.left_out]
        return "\n".join([*lines, *self.notes])


def start_from(
    model: ContextPredictionModel, name_or_path: str | os.PathLike[str], sampler: Mapping[str, Any] | None = None
) -> StartedFrom:
    """Copy backbone, neck and head of another model into this one, each part whole where it fits.

    Another number of input channels is no hindrance: the stem is adapted (``adapt_stem``). The weights keep their
    channel order, and the run takes it over (``StartedFrom.applied_to``); only where its sampler cannot, or the
    images have not three channels, a BGR stem is turned to RGB. Mean and standard deviation stay the run's own.

    Args:
        model: The run's model, with fresh weights.
        name_or_path: What ``context_pred.load_pretrained`` takes, or a run's folder: its model or, where it has none
            yet, its newest checkpoint that can be read.
        sampler: The recipe's sampler; None: a ``GridPatchSampler`` with the model's mean and std.

    Returns:
        What was taken and what was not; the optimiser is not among it.

    Raises:
        WeightsError: the model has another backbone; nothing was copied. Or no checkpoint of a run can be read.
        InvalidInputError: a run's folder with neither model nor checkpoint.
        ContextPredError: whatever ``load_pretrained`` raises.
    """
    source, notes = _source(name_or_path)
    card, own_card = source.card, model.card
    if card.backbone != own_card.backbone:
        raise WeightsError(
            f"{card.name} has the backbone {card.backbone}, the run {own_card.backbone}: none of it fits. Take another "
            f"model, or a recipe of that backbone (--set model.backbone={card.backbone})."
        )
    state, own = source.state_dict(), model.state_dict()
    channels = model.backbone.in_channels
    order = card.channel_order
    if order == "bgr" and (channels != 3 or (sampler or {}).get("type", "GridPatchSampler") != "GridPatchSampler"):
        state[_STEM] = state[_STEM].flip(1)
        order = "rgb"
        notes.append("Its stem expected BGR and was turned to RGB, which the run's images are in.")
    if order != (sampler or {}).get("channel_order", "rgb"):
        notes.append(f"It expects {order.upper()}, and so the run's sampler gives {order.upper()}.")
    if channels != card.in_channels:
        state[_STEM] = adapt_stem(state[_STEM], channels)
        notes.append(f"Its stem was adapted from {card.in_channels} input channels to {channels}.")
    else:
        notes += _other_normalization(source, sampler)
    left_out = _left_out(source, own, state)
    taken = tuple(part for part in ("backbone", "neck", "head") if part not in dict(left_out))
    chosen = {key: value for key, value in state.items() if key.split(".")[0] in taken}
    model.load_weights({**own, **chosen})
    return StartedFrom(card.name, card.sha256, taken, len(chosen), left_out, order, tuple(notes))


def _source(name_or_path: str | os.PathLike[str]) -> tuple[ContextPredictionModel, list[str]]:
    """Load the model to start from; of a run's folder say what in it was taken."""
    run = resolve(name_or_path)
    if not isinstance(run, Path) or not (run / RECIPE_FILE).is_file() or (run / CARD_FILE).is_file():
        return load_pretrained(name_or_path), []
    if (run / "model" / CARD_FILE).is_file():
        return load_pretrained(run / "model"), [f"It is the model of the run in {run}."]
    checkpoints = Checkpoints(run / "checkpoints")
    paths = [*reversed(checkpoints.numbered()), *([checkpoints.best] if checkpoints.best.is_file() else [])]
    damaged: list[str] = []
    for path in paths:
        try:
            return load_pretrained(path), [*damaged, f"The run in {run} has not ended; this is its checkpoint {path}."]
        except WeightsError as error:
            damaged.append(f"Passed over: {error}")
    if damaged:
        raise WeightsError(f"The run in {run} has no model, and no checkpoint that can be read. {' '.join(damaged)}")
    raise InvalidInputError(f"The run in {run} has neither a model nor a checkpoint yet: nothing to start from.")


def _left_out(
    source: ContextPredictionModel, own: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> tuple[tuple[str, str], ...]:
    """Return the parts of ``own`` that the other model's state cannot fill, and why."""
    if source.neck is None:
        return tuple((part, f"{source.card.name} has none") for part in ("neck", "head"))
    found: dict[str, str] = {}
    for key, value in own.items():
        if key not in state or state[key].shape != value.shape:
            theirs = tuple(state[key].shape) if key in state else "not there"
            found.setdefault(key.split(".")[0], f"its {key} is {theirs}, the run's {tuple(value.shape)}")
    return tuple(found.items())


def _other_normalization(source: ContextPredictionModel, sampler: Mapping[str, Any] | None) -> list[str]:
    """Say where the run's patches are normalised otherwise than those the model was trained on."""
    if sampler is None:
        return []
    trained = source.patch_sampler.to_config()
    if trained["type"] != sampler["type"]:
        return [f"It was trained on patches of {trained['type']}, the run has {sampler['type']}."]
    differing = [
        f"{name} {[round(v, 4) for v in sampler[name]]} (there {[round(v, 4) for v in trained[name]]})"
        for name in ("mean", "std")
        if name in trained and list(sampler[name]) != list(trained[name])
    ]
    return [f"The run normalises its patches with its own {' and '.join(differing)}."] if differing else []
