"""Faster R-CNN with a ResNet's fourth map (C4), as mmselfsup measures it on VOC 2007 + 2012.

The ResNet's fifth stage is what looks at each proposal, with one batch norm more after it. Source: METHOD C10;
mmselfsup 0.x ``configs/benchmarks/mmdetection/voc0712/faster_rcnn_r50_c4_mstrain_24k_voc0712.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from context_pred.data.transforms import EvalTransform
from context_pred.errors import InvalidInputError
from context_pred.evaluate.job import Job, Measurement, Result
from context_pred.evaluate.metrics import FORMS
from context_pred.training.rates import StepRates

from . import average_precision
from .average_precision import THRESHOLDS, Detections
from .boxes import BoxedImages
from .options import DetectorSettings, follow, number
from .parts import AlignedPool, Anchors, Detector, Heads, Predictor, ProposalNetwork
from .work import Work, trained_and_tested

STRIDE = 16


@dataclass(frozen=True)
class Settings(DetectorSettings):
    """METHOD C10, and what the detectors share.

    Args:
        steps: Of the whole run.
        milestones: Steps before which the rate falls.
        evaluate_every: Steps between two tests on the way; 0: the end alone.
        anchor_scales: Sides of a square anchor, in strides of 16 px.
        anchor_ratios: Height over width.
        roi_size: Cells a side that each proposal is pooled to.
        form: Of average precision: "11-point", VOC2007's, or "area".
    """

    steps: int = 24_000
    milestones: tuple[int, ...] = (18_000, 22_000)
    evaluate_every: int = 2000
    anchor_scales: tuple[float, ...] = (2.0, 4.0, 8.0, 16.0, 32.0)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    roi_size: int = 14
    form: Literal["11-point", "area"] = "11-point"


def defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what follows from the settings given: milestones and warm-up from the steps, and as ``follow`` says."""
    usual = Settings()
    found = follow(given, usual.batch, usual.learning_rate)
    if "steps" in given:
        part = number(given, "steps", usual.steps) / usual.steps
        if part > 0:
            found["milestones"] = tuple(max(1, round(step * part)) for step in usual.milestones)
            found["warmup_steps"] = min(usual.warmup_steps, round(0.1 * part * usual.steps))
    if given.get("version") == "1.x":
        found["allowed_border"] = -1
    return found


class Stages(nn.Module):
    """A ResNet's stem and first three stages: (N, 3, H, W) to its fourth map, named "0"."""

    def __init__(self, stem: nn.Module, layer1: nn.Module, layer2: nn.Module, layer3: nn.Module) -> None:
        super().__init__()
        self.stem, self.layer1, self.layer2, self.layer3 = stem, layer1, layer2, layer3

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return {"0": (N, C, H / 16, W / 16)}."""
        return {"0": self.layer3(self.layer2(self.layer1(self.stem(x))))}


class SharedHead(nn.Module):
    """A ResNet's fifth stage with one batch norm more: (n, C, 14, 14) to (n, 2 C), the mean of 7 × 7 cells."""

    def __init__(self, layer4: nn.Module, channels: int) -> None:
        super().__init__()
        self.layer4, self.norm = layer4, nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, channels)."""
        mean: Tensor = self.norm(self.layer4(x)).mean((2, 3))
        return mean


def split(backbone: nn.Module, what: str) -> tuple[nn.Sequential, list[nn.Module], list[int]]:
    """Take a ResNet apart: stem, four stages, and the stages' channels.

    Raises:
        InvalidInputError: it is no ResNet.
    """
    whole = getattr(backbone, "module", backbone)  # that of FeatureMaps
    stages = [getattr(whole, f"layer{k}", None) for k in range(1, 5)]
    activation = getattr(whole, "relu", None) or getattr(whole, "act1", None)
    stem = [getattr(whole, "conv1", None), getattr(whole, "bn1", None), activation, getattr(whole, "maxpool", None)]
    parts = [one for one in (*stem, *stages) if isinstance(one, nn.Module)]
    if len(parts) != 8 or not all(isinstance(stage, nn.Sequential) for stage in stages):
        raise InvalidInputError(
            f"{what} is no ResNet that can be taken apart: the C4 detector needs conv1, bn1, relu, maxpool and "
            "stages layer1 … layer4. Accepted: resnet18 … resnet152, of the zoo, random:, timm's features_only, or "
            "torchvision's in an IntermediateLayerGetter (torchvision.models._utils) up to layer4."
        )
    channels, x = [], torch.zeros(1, 3, 64, 64, device=next(whole.parameters()).device)
    was_training = whole.training
    with torch.no_grad():
        x = nn.Sequential(*parts[:4]).eval()(x)
        for stage in parts[4:]:
            x = stage.eval()(x)
            channels.append(x.shape[1])
    for part in parts:
        part.train(was_training)
    return nn.Sequential(*parts[:4]), parts[4:], channels


def build(backbone: nn.Module, classes: int, settings: Settings, transform: EvalTransform, what: str) -> Detector:
    """Make the detector of a backbone, which becomes part of it; the rest is random.

    Raises:
        InvalidInputError: the backbone is no ResNet.
    """
    stem, stages, channels = split(backbone, what)
    proposals = ProposalNetwork(
        channels[2],
        Anchors(settings.anchor_scales, settings.anchor_ratios, (STRIDE,)),
        **settings.proposal_options(),
    )
    heads = Heads(
        AlignedPool(settings.roi_size, (STRIDE,)),
        SharedHead(stages[3], channels[3]),
        Predictor(channels[3], classes),
        **settings.head_options(),
    )
    return Detector(Stages(stem, *stages[:3]), proposals, heads, transform, settings.pad_to)


def rates(settings: Settings) -> StepRates:
    """Make the schedule."""
    return StepRates(
        settings.learning_rate, settings.steps, settings.milestones, settings.factor, settings.warmup_steps,
        settings.warmup_start,
    )  # fmt: skip


def run(job: Job) -> Result:
    """Train and test the detector.

    Raises:
        InvalidInputError: no ResNet, VOC2012 missing, nothing to learn from.
    """
    settings: Settings = job.settings
    data: BoxedImages = job.data
    if data.lacks:
        raise InvalidInputError(data.lacks)
    transform = settings.transform(job.preprocessing)
    backbone = job.source.model.backbone.thawed()

    def score(found: list[Detections]) -> dict[str, Any]:
        return figures(data, found, settings.form)

    work = Work(
        build=lambda: build(backbone, len(data.classes), settings, transform, job.source.name),
        rates=lambda per_epoch: rates(settings),
        score=score,
        evaluate_every=settings.evaluate_every,
    )
    scores, notes = trained_and_tested(job, work)
    measured = [Measurement(name, scores[name]) for name in ("AP50", "AP", "AP75", f"AP50 ({_other(settings.form)})")]
    measured += [Measurement("AP50", value, at={"class": name}) for name, value in scores["by class"].items()]
    details = {"notes": notes, "AP50, rounded as mmdetection logs it": round(scores["AP50"], 3), **scores}
    return Result("detection", job.variant, tuple(measured), details=details)


def _other(form: str) -> str:
    return next(one for one in FORMS if one != form)


def figures(data: BoxedImages, found: list[Detections], form: str) -> dict[str, Any]:
    """Return AP50, AP (the mean over overlaps .5 … .95), AP75, AP50 in the other form, and AP50 by class."""
    count = len(data.classes)
    table = average_precision.voc(data.test, found, count, thresholds=THRESHOLDS, form=form)
    other = average_precision.voc(data.test, found, count, form=_other(form))
    means = [average_precision.mean(row) for row in table]
    return {
        "AP50": means[0],
        "AP": float(np.mean(means)),
        "AP75": means[THRESHOLDS.index(0.75)],
        f"AP50 ({_other(form)})": average_precision.mean(other[0]),
        "by class": {
            name: float(value) for name, value in zip(data.classes, table[0], strict=True) if not np.isnan(value)
        },
    }
