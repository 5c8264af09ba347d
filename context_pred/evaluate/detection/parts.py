"""What the two-stage detectors are made of: torchvision's parts, with mmdetection's rules where the two differ.

mmdetection's anchors are not rounded, weak matches need a least overlap, anchors across the image's border may be left
out, regression losses are L1, and RoIAlign is aligned to pixel centres. Source: mmdetection 2.x.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import box_iou, roi_align

from context_pred.data.transforms import EvalTransform

Targets = list[dict[str, Tensor]]


class Anchors(nn.Module):
    """Boxes of fixed shapes around the top left corner of every cell, as mmdetection's ``AnchorGenerator`` has them.

    Args:
        scales: Sides of a square anchor, in strides.
        ratios: Height over width; the area stays.
        strides: Of each map, in px.
    """

    def __init__(self, scales: Sequence[float], ratios: Sequence[float], strides: Sequence[int]) -> None:
        super().__init__()
        self.scales, self.ratios, self.strides = tuple(scales), tuple(ratios), tuple(strides)

    def num_anchors_per_location(self) -> list[int]:
        """Return the number of shapes, for each map."""
        return [len(self.scales) * len(self.ratios)] * len(self.strides)

    def shapes(self, stride: int) -> Tensor:
        """Return float32 (shapes, 4): x1, y1, x2, y2 around 0; the first ratio in all scales, then the next."""
        root = torch.tensor(self.ratios).sqrt()[:, None]
        sides = stride * torch.tensor(self.scales, dtype=torch.float32)[None]
        half = torch.stack([(sides / root).flatten(), (sides * root).flatten()], 1) / 2
        return torch.cat([-half, half], 1)

    def forward(self, images: ImageList, maps: list[Tensor]) -> list[Tensor]:
        """Return for each image (anchors, 4): map by map, row by row, cell by cell, shape by shape."""
        every = []
        for stride, one in zip(self.strides, maps, strict=True):
            y, x = torch.meshgrid(*(torch.arange(n, device=one.device) * stride for n in one.shape[-2:]), indexing="ij")
            corners = torch.stack([x, y, x, y], -1).reshape(-1, 1, 4)
            every.append((corners + self.shapes(stride).to(one.device)).reshape(-1, 4))
        anchors = torch.cat(every)
        return [anchors for _ in images.image_sizes]


class LeastMatcher(Matcher):  # type: ignore[misc]  # torchvision publishes no types
    """Candidates to objects, as mmdetection's ``MaxIoUAssigner``: a weak match needs an overlap of ``least``.

    Args:
        positive: A candidate belongs to the object that it overlaps most, from this overlap on.
        negative: Below it, a candidate is background; between the two it is left out.
        least: Each object also gets the candidates that overlap it most, where that reaches ``least``, even if they
            belong to another; None: it does not.
    """

    def __init__(self, positive: float, negative: float, least: float | None) -> None:
        super().__init__(positive, negative, allow_low_quality_matches=False)
        self.least = least

    def __call__(self, overlap: Tensor) -> Tensor:
        """Return int64 (candidates,): the object's number, −1 background, −2 neither, from (objects, candidates)."""
        matches: Tensor = super().__call__(overlap)
        if self.least is None:
            return matches
        best = overlap.max(1, keepdim=True).values
        objects, candidates = torch.where((overlap == best) & (best >= self.least))
        weak = torch.full_like(matches, -1).scatter_reduce(0, candidates, objects, "amax")
        return torch.where(weak >= 0, weak, matches)


class _ExactHead(RPNHead):  # type: ignore[misc]
    """torchvision's, in float32 from here on: under autocast pixels would be rounded to a few bits."""

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        scores, deltas = super().forward(maps)
        return [one.float() for one in scores], [one.float() for one in deltas]


class ProposalNetwork(RegionProposalNetwork):  # type: ignore[misc]
    """torchvision's region proposal network with mmdetection's anchors, matches, border and loss.

    Args:
        channels: Of the maps.
        anchors: The anchors.
        positive: As in ``LeastMatcher``.
        negative: As in ``LeastMatcher``.
        least: As in ``LeastMatcher``.
        samples: Anchors an image that the loss is computed on.
        positive_share: Of them, at the most, that lie on objects.
        before: Proposals of each map before non-maximum suppression, in training and in testing.
        after: Proposals an image after it.
        overlap: Of two proposals of which the weaker goes.
        allowed_border: Px by which an anchor may pass the image's border and be trained on; below 0: any number, as
            long as its centre lies within the padded image.
        pad_to: What images are padded to a multiple of.
    """

    def __init__(
        self,
        channels: int,
        anchors: Anchors,
        *,
        positive: float,
        negative: float,
        least: float,
        samples: int,
        positive_share: float,
        before: tuple[int, int],
        after: tuple[int, int],
        overlap: float,
        allowed_border: int,
        pad_to: int,
    ) -> None:
        head = _ExactHead(channels, anchors.num_anchors_per_location()[0])
        names = ("training", "testing")
        super().__init__(
            anchors, head, positive, negative, samples, positive_share, dict(zip(names, before, strict=True)),
            dict(zip(names, after, strict=True)), overlap,
        )  # fmt: skip
        self.proposal_matcher = LeastMatcher(positive, negative, least)
        self.allowed_border, self.pad_to = allowed_border, pad_to

    def inside(self, anchors: Tensor, size: Tensor) -> Tensor:
        """Tell which anchors (n, 4) of an image of (height, width) may be trained on."""
        height, width = size.tolist()
        if self.allowed_border < 0:
            x, y = ((anchors[:, :2] + anchors[:, 2:]) / 2).unbind(1)
            right, bottom = (math.ceil(side / self.pad_to) * self.pad_to for side in (width, height))
            within: Tensor = (x < right) & (y < bottom)
            return within
        edge = torch.tensor([width, height], device=anchors.device) + self.allowed_border
        clear: Tensor = (anchors[:, :2] >= -self.allowed_border).all(1) & (anchors[:, 2:] < edge).all(1)
        return clear

    def assign_targets_to_anchors(self, anchors: list[Tensor], targets: Targets) -> tuple[list[Tensor], list[Tensor]]:
        """Return for each image labels (1 object, 0 background, −1 neither) and the boxes that anchors belong to."""
        labels, boxes = [], []
        for mine, target in zip(anchors, targets, strict=True):
            usable = self.inside(mine, target["size"])
            label = torch.full((len(mine),), -1.0, device=mine.device)
            box = torch.zeros_like(mine)
            if len(target["boxes"]) and usable.any():
                matches = self.proposal_matcher(box_iou(target["boxes"], mine[usable]))
                label[usable] = torch.where(matches == Matcher.BELOW_LOW_THRESHOLD, 0.0, -1.0).where(matches < 0, 1.0)
                box[usable] = target["boxes"][matches.clamp(min=0)]
            else:
                label[usable] = 0.0
            labels.append(label)
            boxes.append(box)
        return labels, boxes

    def compute_loss(
        self, objectness: Tensor, deltas: Tensor, labels: list[Tensor], targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return binary cross entropy and L1 over the sampled anchors, both divided by their number."""
        chosen = [torch.where(torch.cat(part))[0] for part in self.fg_bg_sampler(labels)]
        sampled = torch.cat(chosen)
        count = max(1, sampled.numel())
        right, wanted = torch.cat(labels)[sampled], torch.cat(targets)[chosen[0]]
        score_loss = F.binary_cross_entropy_with_logits(objectness.flatten()[sampled], right, reduction="sum")
        box_loss = F.l1_loss(deltas[chosen[0]], wanted, reduction="sum")
        return score_loss / count, box_loss / count


class AlignedPool(nn.Module):
    """RoIAlign with ``aligned=True`` and as many samples a cell as it has pixels, on the map that fits each box.

    Args:
        size: Cells a side.
        strides: Of the maps that are pooled from, in px; further maps are passed over.
        finest: The side in px of boxes up to twice of which the first map serves (mmdetection's ``finest_scale``).
    """

    sampling_ratio = 0
    aligned = True

    def __init__(self, size: int, strides: Sequence[int], finest: int = 56) -> None:
        super().__init__()
        self.size, self.strides, self.finest = size, tuple(strides), finest

    def levels(self, boxes: Tensor) -> Tensor:
        """Return int64 (n,): the number of the map for each box (n, 4)."""
        side = (boxes[:, 2:] - boxes[:, :2]).prod(1).clamp(min=0).sqrt()
        return (side / self.finest + 1e-6).log2().floor().clamp(0, len(self.strides) - 1).long()

    def forward(self, maps: dict[str, Tensor], boxes: list[Tensor], sizes: object) -> Tensor:
        """Return (n, C, size, size) for the n boxes of all images, in order."""
        every = list(maps.values())[: len(self.strides)]
        if len(every) == 1:
            return self._pool(every[0], boxes, self.strides[0])
        rows = torch.cat([F.pad(one, (1, 0), value=float(k)) for k, one in enumerate(boxes)])
        level = self.levels(rows[:, 1:])
        pooled = every[0].new_zeros((len(rows), every[0].shape[1], self.size, self.size))
        for number, (one, stride) in enumerate(zip(every, self.strides, strict=True)):
            mine = torch.where(level == number)[0]
            # Maps without a box take part too, so that every rank's every weight has a gradient.
            pooled = pooled.index_put((mine,), self._pool(one, rows[mine], stride).to(pooled.dtype))
        return pooled

    def _pool(self, one: Tensor, boxes: Any, stride: int) -> Tensor:
        pooled: Tensor = roi_align(
            one, boxes, self.size, 1 / stride, sampling_ratio=self.sampling_ratio, aligned=self.aligned
        )
        return pooled


class Predictor(nn.Module):
    """Two linear layers: a score for each class and for the background, and four numbers for each class.

    Args:
        channels: Of the vectors.
        classes: Without the background.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(channels, classes + 1)
        self.bbox_pred = nn.Linear(channels, 4 * classes)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (n, classes + 1), the background first, and (n, 4 · (classes + 1)), zeros for it; both float32."""
        return self.cls_score(x).float(), F.pad(self.bbox_pred(x).float(), (4, 0))


class Heads(RoIHeads):  # type: ignore[misc]
    """torchvision's RoI heads with an L1 loss and mmdetection's matches.

    Args:
        pool: From maps and boxes to (n, C, size, size).
        head: From those to vectors.
        predictor: From vectors to scores and boxes.
        overlap: With an object from which on a proposal belongs to it; below, it is background.
        weak: Whether each object also gets the proposals that overlap it most, where that is ``overlap`` or more.
        rois: Proposals an image that are trained on, the objects' own boxes among them.
        positive_share: Of them, at the most, that belong to objects.
        box_stds: What regression targets are divided by.
        score: A detection needs more than it.
        nms: Overlap of two detections of a class of which the weaker goes.
        detections: An image, at the most.
    """

    def __init__(
        self,
        pool: nn.Module,
        head: nn.Module,
        predictor: nn.Module,
        *,
        overlap: float,
        weak: bool,
        rois: int,
        positive_share: float,
        box_stds: Sequence[float],
        score: float,
        nms: float,
        detections: int,
    ) -> None:
        weights = tuple(1 / std for std in box_stds)
        super().__init__(
            pool, head, predictor, overlap, overlap, rois, positive_share, weights, score, nms, detections
        )  # fmt: skip
        self.proposal_matcher = LeastMatcher(overlap, overlap, overlap if weak else None)

    def assign_targets_to_proposals(
        self, proposals: list[Tensor], objects: list[Tensor], kinds: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return for each image the objects that proposals belong to, and labels, 0 the background.

        The objects' own boxes, which come last, each belong to themselves; the others are matched as if these were not
        there, so that an object's best proposal is not its own box. Source: mmdetection 2.x ``BaseSampler.sample``,
        which adds the objects after the assignment.
        """
        matched, labels = [], []
        for boxes, mine, kind in zip(proposals, objects, kinds, strict=True):
            others = boxes[: len(boxes) - len(mine)]
            match = torch.full((len(others),), Matcher.BELOW_LOW_THRESHOLD, device=boxes.device)
            if len(mine) and len(others):
                match = self.proposal_matcher(box_iou(mine, others))
            match = torch.cat([match, torch.arange(len(mine), device=boxes.device)])
            found = match.clamp(min=0)
            label = kind[found] if len(mine) else torch.zeros_like(found)
            labels.append(label.where(match >= 0, (match == Matcher.BELOW_LOW_THRESHOLD).long() - 1))
            matched.append(found)
        return matched, labels

    def forward(
        self,
        maps: dict[str, Tensor],
        proposals: list[Tensor],
        sizes: list[tuple[int, int]],
        targets: Targets | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return detections (testing) and losses (training); boxes in px of the resized image, labels from 1."""
        if self.training:
            proposals, matched, labels, wanted = self.select_training_samples(proposals, targets)
            scores, boxes = self.box_predictor(self.box_head(self.box_roi_pool(maps, proposals, sizes)))
            losses = box_losses(scores, boxes, torch.cat(labels), torch.cat(wanted))
            return [], {**losses, **self.mask_losses(maps, proposals, matched, labels, sizes, targets or [])}
        scores, boxes = self.box_predictor(self.box_head(self.box_roi_pool(maps, proposals, sizes)))
        found = self.postprocess_detections(scores, boxes, proposals, sizes)
        result = [dict(zip(("boxes", "scores", "labels"), one, strict=True)) for one in zip(*found, strict=True)]
        return self.with_masks(maps, result, sizes), {}

    def mask_losses(
        self,
        maps: dict[str, Tensor],
        proposals: list[Tensor],
        matched: list[Tensor],
        labels: list[Tensor],
        sizes: list[tuple[int, int]],
        targets: Targets,
    ) -> dict[str, Tensor]:
        """Return the loss of the masks; none here."""
        return {}

    def with_masks(
        self, maps: dict[str, Tensor], found: list[dict[str, Tensor]], sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Return the detections with masks; here as they are."""
        return found


def box_losses(scores: Tensor, boxes: Tensor, labels: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Cross entropy and L1, both divided by the number of proposals.

    Args:
        scores: (n, classes + 1).
        boxes: (n, 4 · (classes + 1)).
        labels: int64 (n,): 0 the background.
        targets: (n, 4).
    """
    positive = torch.where(labels > 0)[0]
    mine = boxes.reshape(len(labels), -1, 4)[positive, labels[positive]]
    return {
        "loss_classifier": F.cross_entropy(scores, labels),
        "loss_box": F.l1_loss(mine, targets[positive], reduction="sum") / max(1, len(labels)),
    }


class Detector(nn.Module):
    """A two-stage detector: normalise and pad, maps, proposals, heads.

    Args:
        body: From (N, 3, H, W) to named maps.
        proposals: The region proposal network.
        heads: What looks at each proposal.
        transform: Channel order, mean and standard deviation.
        pad_to: The batch's height and width become multiples of it.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, body: nn.Module, proposals: ProposalNetwork, heads: Heads, transform: EvalTransform, pad_to: int
    ) -> None:
        super().__init__()
        self.body, self.rpn, self.roi_heads, self.pad_to = body, proposals, heads, pad_to
        self.flipped = transform.channel_order == "bgr"
        for name, values in (("mean", transform.mean), ("std", transform.std)):
            self.register_buffer(name, 255 * torch.tensor(values).view(-1, 1, 1), persistent=False)

    def batched(self, images: list[Tensor]) -> ImageList:
        """Normalise uint8 images (3, H, W) on the device, and pad them with zeros to one size."""
        height, width = (math.ceil(max(image.shape[k] for image in images) / self.pad_to) * self.pad_to for k in (1, 2))
        batch = torch.zeros((len(images), 3, height, width), device=self.mean.device)
        for row, image in zip(batch, images, strict=True):
            pixels = image.to(batch.device, non_blocking=True)
            pixels = pixels.flip(0) if self.flipped else pixels
            row[:, : image.shape[1], : image.shape[2]] = (pixels - self.mean) / self.std
        return ImageList(batch, [(image.shape[1], image.shape[2]) for image in images])

    def forward(self, images: list[Tensor], targets: Targets | None = None) -> Any:
        """Return the losses by name (training), or for each image its "boxes", "scores" and "labels" (testing)."""
        batch = self.batched(images)
        if targets is not None:
            targets = [{name: one.to(self.mean.device) for name, one in target.items()} for target in targets]
        maps = OrderedDict(self.body(batch.tensors))
        proposals, losses = self.rpn(batch, maps, targets)
        found, more = self.roi_heads(maps, proposals, batch.image_sizes, targets)
        return {**losses, **more} if self.training else found


def objective(model: nn.Module, batch: Any, noise: torch.Generator) -> tuple[Tensor, Tensor, int]:
    """Return the sum of a batch's losses; there is nothing to be right about."""
    loss = torch.stack(list(model(*batch).values())).sum()
    return loss, loss.new_zeros(()), 0
