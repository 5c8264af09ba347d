"""Mask R-CNN with a feature pyramid (FPN), as mmselfsup measures it on COCO 2017 for 12 epochs ("1x").

Source: METHOD C11; mmselfsup 0.x ``configs/benchmarks/mmdetection/coco/mask_rcnn_r50_fpn_mstrain_1x_coco.py``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, roi_align
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from context_pred.backbones import Backbone
from context_pred.data.transforms import EvalTransform
from context_pred.errors import InvalidInputError
from context_pred.evaluate.job import Job, Measurement, Result
from context_pred.extras import need
from context_pred.training.rates import StepRates

from . import coco_average_precision
from .average_precision import Detections
from .boxes import BoxedImages
from .options import DetectorSettings, follow, number
from .parts import AlignedPool, Anchors, Detector, Heads, Predictor, ProposalNetwork, Targets
from .work import Work, trained_and_tested

STRIDES = (4, 8, 16, 32)
"""Of the maps that the pyramid is built on, in px; a fifth level, of stride 64, is for proposals alone."""


@dataclass(frozen=True)
class Settings(DetectorSettings):
    """METHOD C11, and what the detectors share.

    Args:
        epochs: Of the whole run.
        milestones: Epochs after which the rate falls.
        evaluate_every: Steps between two tests on the way; 0: the end alone.
        anchor_scales: Sides of a square anchor, in strides of its level.
        anchor_ratios: Height over width.
        channels: Of the pyramid and of the heads' convolutions.
        box_convs: Convolutions of the box head.
        box_features: Of its linear layer.
        roi_size: Cells a side that the box head sees.
        mask_convs: Convolutions of the mask head.
        mask_size: Cells a side that the mask head sees; masks have twice as many.
        mask_threshold: A pixel belongs to the object from this value on.
    """

    short_sides: tuple[int, ...] = (640, 672, 704, 736, 768, 800)
    warmup_steps: int = 1000
    allowed_border: int = -1
    proposals_before: int = 2000
    proposals: int = 1000
    test_proposals_before: int = 1000
    roi_weak: bool = True
    epochs: int = 12
    milestones: tuple[int, ...] = (8, 11)
    evaluate_every: int = 0
    anchor_scales: tuple[float, ...] = (8.0,)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    channels: int = 256
    box_convs: int = 4
    box_features: int = 1024
    roi_size: int = 7
    mask_convs: int = 4
    mask_size: int = 14
    mask_threshold: float = 0.5


def defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what follows from the settings given: milestones from the epochs, and as ``follow`` says."""
    usual = Settings()
    found = follow(given, usual.batch, usual.learning_rate)
    if "epochs" in given:
        part = number(given, "epochs", usual.epochs) / usual.epochs
        if part > 0:
            found["milestones"] = tuple(max(1, round(epoch * part)) for epoch in usual.milestones)
    if given.get("version") == "1.x":
        found["warmup_steps"] = 500
    return found


class Pyramid(nn.Module):
    """A backbone's maps of strides 4 … 32 as a pyramid of five levels, with batch norm and without bias.

    Args:
        backbone: Gives named maps.
        channels: Of every level.
        what: The backbone's name, for the error.

    Raises:
        InvalidInputError: the backbone has no maps of these strides.
    """

    def __init__(self, backbone: Backbone, channels: int, what: str) -> None:
        super().__init__()
        self.backbone = backbone
        side = 4 * STRIDES[-1]
        was_training = backbone.training
        with torch.no_grad():
            x = torch.zeros(1, 3, side, side, device=next(backbone.parameters()).device)
            maps: dict[str, Tensor] = backbone.eval()(x)
        backbone.train(was_training)
        deepest = {side // one.shape[2]: name for name, one in maps.items()}
        if not set(STRIDES) <= set(deepest):
            raise InvalidInputError(
                f"{what} has maps of strides {', '.join(map(str, sorted(deepest)))} px; the pyramid needs "
                f"{', '.join(map(str, STRIDES))}. Accepted: resnet18 … resnet152, or another network with such maps."
            )
        self.layers = [deepest[stride] for stride in STRIDES]
        widths = [maps[name].shape[1] for name in self.layers]
        self.pyramid = FeaturePyramidNetwork(widths, channels, LastLevelMaxPool(), norm_layer=nn.BatchNorm2d)
        for module in self.pyramid.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return "0" … "3" and "pool": (N, channels, H / 4, W / 4) … (N, channels, H / 64, W / 64)."""
        maps = self.backbone(x, self.layers)
        levels: dict[str, Tensor] = self.pyramid(OrderedDict((str(k), maps[n]) for k, n in enumerate(self.layers)))
        return levels


class MaskHeads(Heads):
    """RoI heads that also draw each object's mask; see ``Heads`` for the arguments.

    Args:
        masks: From (n, C, 14, 14) to (n, classes, 28, 28).
        mask_pool: From maps and boxes to (n, C, 14, 14).
    """

    def __init__(self, *parts: nn.Module, masks: nn.Module, mask_pool: nn.Module, **options: Any) -> None:
        super().__init__(*parts, **options)
        self.draw, self.draw_pool = masks, mask_pool

    def mask_losses(
        self,
        maps: dict[str, Tensor],
        proposals: list[Tensor],
        matched: list[Tensor],
        labels: list[Tensor],
        sizes: list[tuple[int, int]],
        targets: Targets,
    ) -> dict[str, Tensor]:
        """Return binary cross entropy of the masks of the proposals that belong to objects, their own class's alone."""
        positive = [label > 0 for label in labels]
        boxes = [one[mine] for one, mine in zip(proposals, positive, strict=True)]
        logits = self.draw(self.draw_pool(maps, boxes, sizes)).float()
        wanted = torch.cat(
            [
                mask_targets(target["masks"], match[mine], box, logits.shape[-1])
                for target, match, mine, box in zip(targets, matched, positive, boxes, strict=True)
            ]
        )
        kinds = torch.cat(labels)[torch.cat(positive)] - 1
        mine = logits[torch.arange(len(kinds), device=kinds.device), kinds]
        loss = F.binary_cross_entropy_with_logits(mine, wanted, reduction="sum") / max(1, wanted.numel())
        return {"loss_mask": loss}

    def with_masks(
        self, maps: dict[str, Tensor], found: list[dict[str, Tensor]], sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Add "masks", (n, 28, 28), 0 … 1, to each image's detections."""
        logits = self.draw(self.draw_pool(maps, [one["boxes"] for one in found], sizes)).float()
        kinds = torch.cat([one["labels"] for one in found]) - 1
        masks = logits[torch.arange(len(kinds), device=kinds.device), kinds].sigmoid()
        parts = masks.split([len(one["labels"]) for one in found])
        return [{**one, "masks": part} for one, part in zip(found, parts, strict=True)]


def mask_targets(masks: Tensor, objects: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut objects' masks out by boxes: float32 (n, size, size), 0 or 1.

    Args:
        masks: uint8 (objects, H, W).
        objects: int64 (n,): whose mask each box is to see.
        boxes: (n, 4).
        size: Cells a side.
    """
    if not len(boxes):
        return boxes.new_zeros((0, size, size))
    rows = torch.cat([objects[:, None].to(boxes), boxes], 1)
    cut: Tensor = roi_align(masks[:, None].to(boxes), rows, size, 1.0, sampling_ratio=0, aligned=True)
    return (cut[:, 0] >= 0.5).to(boxes)


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """Draw masks into an image: bool (n, height, width), on the CPU.

    Args:
        masks: (n, m, m), 0 … 1: the whole of each box.
        boxes: (n, 4): x1, y1, x2, y2 in px of the image.
        size: (height, width) of the image.
        threshold: A pixel belongs to the object from this value on; its centre is asked.
    """
    masks, boxes = masks.float().cpu(), boxes.float().cpu()
    drawn = torch.zeros((len(masks), *size), dtype=torch.bool)
    for one, mask, (x1, y1, x2, y2) in zip(drawn, masks, boxes.tolist(), strict=True):
        left, right = max(0, int(x1) - 1), min(size[1], int(x2) + 2)
        top, bottom = max(0, int(y1) - 1), min(size[0], int(y2) + 2)
        if x2 <= x1 or y2 <= y1 or left >= right or top >= bottom:
            continue
        x = (torch.arange(left, right) + 0.5 - x1) / (x2 - x1) * 2 - 1
        y = (torch.arange(top, bottom) + 0.5 - y1) / (y2 - y1) * 2 - 1
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None]
        one[top:bottom, left:right] = F.grid_sample(mask[None, None], grid, align_corners=False)[0, 0] >= threshold
    return drawn


def run_lengths_of(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float) -> list[dict[str, Any]]:
    """Return COCO's run lengths of masks drawn into an image; arguments as in ``paste``."""
    coder = need("faster_coco_eval.core.mask", "Masks")
    return [coder.encode(np.asfortranarray(one.numpy(), np.uint8)) for one in paste(masks, boxes, size, threshold)]


def _initialize(box_head: nn.Module, mask_head: nn.Module) -> None:
    """Give linear layers Xavier's uniform weights, and them and the masks' last layers no bias.

    torchvision leaves these as PyTorch makes them. Source: mmdetection 2.x ``ConvFCBBoxHead``, ``FCNMaskHead``.
    """
    for module in (*box_head.modules(), *mask_head.modules()):
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)) and module.bias is not None:
            nn.init.zeros_(module.bias)


def build(backbone: Backbone, classes: int, settings: Settings, transform: EvalTransform, what: str) -> Detector:
    """Make the detector of a backbone, which becomes part of it; the rest is random.

    Raises:
        InvalidInputError: the backbone has no maps of strides 4 … 32.
    """
    channels = settings.channels
    body = Pyramid(backbone, channels, what)
    proposals = ProposalNetwork(
        channels,
        Anchors(settings.anchor_scales, settings.anchor_ratios, (*STRIDES, 2 * STRIDES[-1])),
        **settings.proposal_options(),
    )
    box_head = FastRCNNConvFCHead(
        (channels, settings.roi_size, settings.roi_size),
        [channels] * settings.box_convs,
        [settings.box_features],
        norm_layer=nn.BatchNorm2d,
    )
    mask_head = nn.Sequential(
        MaskRCNNHeads(channels, [channels] * settings.mask_convs, dilation=1, norm_layer=nn.BatchNorm2d),
        MaskRCNNPredictor(channels, channels, classes),
    )
    _initialize(box_head, mask_head)
    heads = MaskHeads(
        AlignedPool(settings.roi_size, STRIDES),
        box_head,
        Predictor(settings.box_features, classes),
        masks=mask_head,
        mask_pool=AlignedPool(settings.mask_size, STRIDES),
        **settings.head_options(),
    )
    return Detector(body, proposals, heads, transform, settings.pad_to)


def rates(settings: Settings, per_epoch: int) -> StepRates:
    """Make the schedule for a number of steps an epoch; the warm-up is a tenth of the run at the most."""
    steps = settings.epochs * per_epoch
    return StepRates(
        settings.learning_rate,
        steps,
        tuple(epoch * per_epoch for epoch in settings.milestones),
        settings.factor,
        min(settings.warmup_steps, steps // 10),
        settings.warmup_start,
    )


def run(job: Job) -> Result:
    """Train and test the detector.

    Raises:
        InvalidInputError: a backbone without the maps, data without outlines, nothing to learn from.
    """
    settings: Settings = job.settings
    data: BoxedImages = job.data
    bare = [one for one in (*data.train, *data.test) if len(one) and not (one.outlines and all(one.outlines))]
    if bare:
        raise InvalidInputError(
            f"{data.name} ({data.kind} layout) has boxes without outlines (segmentation), the first of them of "
            f"{bare[0].path}, and {job.variant} learns masks. Accepted: data in COCO's layout with an outline for each "
            "box; for boxes alone --variant voc0712-c4."
        )
    transform = settings.transform(job.preprocessing)
    backbone = job.source.model.backbone.thawed()
    work = Work(
        build=lambda: build(backbone, len(data.classes), settings, transform, job.source.name),
        rates=lambda per_epoch: rates(settings, per_epoch),
        score=lambda found: figures(data, found),
        evaluate_every=settings.evaluate_every,
        masks=lambda masks, boxes, size: run_lengths_of(masks, boxes, size, settings.mask_threshold),
    )
    scores, notes = trained_and_tested(job, work)
    names = [f"{kind} {metric}" for kind in ("box", "mask") for metric in ("AP", "AP50", "AP75")]
    measured = tuple(Measurement(name, scores[name]) for name in names)
    rounded = {f"{name}, rounded as mmdetection logs it": round(scores[name], 3) for name in names}
    return Result("detection", job.variant, measured, details={"notes": notes, **rounded, **scores})


def figures(data: BoxedImages, found: list[Detections]) -> dict[str, Any]:
    """Return COCO's AP, AP50 and AP75 of boxes and of masks, 0 … 1."""
    scores: dict[str, Any] = {}
    kinds: tuple[tuple[coco_average_precision.Kind, str], ...] = (("bbox", "box"), ("segm", "mask"))
    for kind, name in kinds:
        values = coco_average_precision.coco(data.test, found, data.classes, kind)
        scores |= {f"{name} {metric}": value for metric, value in values.items()}
    return scores
