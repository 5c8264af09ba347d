"""The settings that the detectors share, with mmdetection's names for what they mean in ordinary words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from context_pred import tables
from context_pred.data.transforms import EvalTransform
from context_pred.errors import InvalidInputError
from context_pred.training.loop import PRECISIONS


@dataclass(frozen=True)
class DetectorSettings:
    """What METHOD C10 and C11 have in common.

    Args:
        version: Whose configuration: mmselfsup "0.x" or "1.x".
        short_sides: The shorter side of training images in px, one drawn for each.
        max_side: The longer side in px at the most.
        test_short_side: The shorter side of test images.
        flip: Probability of a mirror image.
        antialias: Of the bilinear resizing; OpenCV's has none.
        pad_to: Height and width of a batch become multiples of it.
        normalization: "model": its own; "caffe": BGR, mean alone, what 1.x really fed its C4 detector (Q17).
        batch: Images a step, over all devices.
        per_device: Images a micro-batch; 0: the batch shared among the processes.
        learning_rate: Of the batch.
        factor: By which the rate falls at each milestone.
        momentum: Of SGD.
        weight_decay: On every weight.
        warmup_steps: Over which the rate rises.
        warmup_start: Share of the rate at the first step.
        rpn_positive: An anchor belongs to an object from this overlap on.
        rpn_negative: Below it, it is background.
        rpn_least: Each object gets the anchors that overlap it most, where that is at least this.
        rpn_samples: Anchors an image that are trained on.
        rpn_positive_share: Of them on objects, at the most.
        allowed_border: Px by which an anchor that is trained on may pass the border; −1: any number.
        proposals_before: Proposals a map before non-maximum suppression, in training.
        proposals: An image after it.
        test_proposals_before: As above, in testing.
        test_proposals: As above, in testing.
        proposal_nms: Overlap of two proposals of which the weaker goes.
        rois: Proposals an image that the head is trained on.
        roi_positive_share: Of them on objects, at the most.
        roi_overlap: A proposal belongs to an object from this overlap on, and is background below.
        roi_weak: Whether each object gets the proposals that overlap it most, too.
        box_stds: What the head's regression targets are divided by.
        score: A detection needs more than it.
        nms: Overlap of two detections of a class of which the weaker goes.
        detections: An image, at the most.
        test_batch: Images at once in testing.
        precision: "float32", or "bfloat16" for autocast.
        checkpoint_every: Steps between two checkpoints.

    Raises:
        InvalidInputError: a setting out of its range.
    """

    version: Literal["0.x", "1.x"] = "0.x"
    short_sides: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    max_side: int = 1333
    test_short_side: int = 800
    flip: float = 0.5
    antialias: bool = False
    pad_to: int = 32
    normalization: Literal["model", "caffe"] = "model"
    batch: int = 16
    per_device: int = 0
    learning_rate: float = 0.02
    factor: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup_steps: int = 100
    warmup_start: float = 0.001
    rpn_positive: float = 0.7
    rpn_negative: float = 0.3
    rpn_least: float = 0.3
    rpn_samples: int = 256
    rpn_positive_share: float = 0.5
    allowed_border: int = 0
    proposals_before: int = 12_000
    proposals: int = 2000
    test_proposals_before: int = 6000
    test_proposals: int = 1000
    proposal_nms: float = 0.7
    rois: int = 512
    roi_positive_share: float = 0.25
    roi_overlap: float = 0.5
    roi_weak: bool = False
    box_stds: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)
    score: float = 0.05
    nms: float = 0.5
    detections: int = 100
    test_batch: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        """Check the ranges."""
        numbers = [(field.name, getattr(self, field.name)) for field in fields(self)]
        for name, value in numbers:
            lowest = _LOWEST.get(name)
            several = value if isinstance(value, tuple) else (value,)
            if lowest is not None and (not several or min(several) < lowest):
                raise InvalidInputError(f"{name} = {tables.literal(value)}: accepted is {lowest} or more.")
            if name in _SHARES and not 0 <= value <= 1:
                raise InvalidInputError(f"{name} = {value}: accepted is a share from 0 to 1.")
            if name in _POSITIVE and not (several and min(several) > 0):
                raise InvalidInputError(f"{name} = {tables.literal(value)}: accepted is more than 0.")
        if self.rpn_negative > self.rpn_positive:
            raise InvalidInputError(f"rpn_negative = {self.rpn_negative} is above rpn_positive = {self.rpn_positive}.")
        if self.precision not in PRECISIONS:
            raise InvalidInputError(f"precision = {self.precision!r}: accepted is one of {', '.join(PRECISIONS)}.")

    def proposal_options(self) -> dict[str, Any]:
        """Return the options of ``ProposalNetwork``."""
        return {
            "positive": self.rpn_positive,
            "negative": self.rpn_negative,
            "least": self.rpn_least,
            "samples": self.rpn_samples,
            "positive_share": self.rpn_positive_share,
            "before": (self.proposals_before, self.test_proposals_before),
            "after": (self.proposals, self.test_proposals),
            "overlap": self.proposal_nms,
            "allowed_border": self.allowed_border,
            "pad_to": self.pad_to,
        }

    def head_options(self) -> dict[str, Any]:
        """Return the options of ``Heads``."""
        return {
            "overlap": self.roi_overlap,
            "weak": self.roi_weak,
            "rois": self.rois,
            "positive_share": self.roi_positive_share,
            "box_stds": self.box_stds,
            "score": self.score,
            "nms": self.nms,
            "detections": self.detections,
        }

    def transform(self, own: EvalTransform) -> EvalTransform:
        """Return channel order, mean and standard deviation as ``normalization`` says."""
        if self.normalization == "model":
            return own
        mean = tuple(value / 255 for value in (103.530, 116.280, 123.675))
        return EvalTransform(mean=mean, std=(1 / 255,) * 3, channel_order="bgr")


_LOWEST = {
    "short_sides": 16, "max_side": 16, "test_short_side": 16, "pad_to": 1, "batch": 1, "per_device": 0,
    "warmup_steps": 0, "rpn_samples": 1, "allowed_border": -1, "proposals_before": 1, "proposals": 1,
    "test_proposals_before": 1, "test_proposals": 1, "rois": 1, "detections": 1, "test_batch": 1,
    "checkpoint_every": 1, "steps": 1, "epochs": 1, "evaluate_every": 0, "roi_size": 1, "mask_size": 1, "milestones": 1,
}  # fmt: skip
_SHARES = (
    "flip", "factor", "momentum", "warmup_start", "rpn_positive", "rpn_negative", "rpn_least", "rpn_positive_share",
    "proposal_nms", "roi_positive_share", "roi_overlap", "score", "nms", "mask_threshold",
)  # fmt: skip
_POSITIVE = ("learning_rate", "box_stds", "anchor_scales", "anchor_ratios")


def number(given: Mapping[str, Any], name: str, usual: float) -> float:
    """Read a number among settings that may still be texts; what is none is left for the settings to refuse."""
    try:
        return float(given.get(name, usual))
    except (TypeError, ValueError):
        return usual


def follow(given: Mapping[str, Any], batch: int, learning_rate: float) -> dict[str, Any]:
    """Return what follows from the settings given: the test's side from those of training, the rate from the batch.

    The longer side keeps its proportion to the shorter, 1333 to 800; the rate is proportional to the batch.
    """
    found: dict[str, Any] = {}
    sides = given.get("short_sides")
    if sides is not None:
        try:
            texts = sides.strip("[] ").split(",") if isinstance(sides, str) else sides
            largest = max(int(side) for side in texts)
        except (TypeError, ValueError):
            return found  # the settings refuse it, with a better word
        largest = int(number(given, "test_short_side", largest))
        found |= {"test_short_side": largest, "max_side": max(16, round(largest * 1333 / 800))}
    if "batch" in given:
        found["learning_rate"] = learning_rate * max(1.0, number(given, "batch", batch)) / batch
    return found
