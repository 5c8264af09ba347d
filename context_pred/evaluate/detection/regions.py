"""Images with their proposals, for Fast R-CNN: loaded, resized, regions of interest drawn, targets computed.

Source: Girshick, "Fast R-CNN" (ICCV 2015) and its released code (``fast-rcnn``, ``lib/roi_data_layer``). Boxes are
(x1, y1, x2, y2) in px, counted from 0, the last pixel within, as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.transforms.v2 import functional as TF

from context_pred.data.images import open_image
from context_pred.data.transforms import EvalTransform
from context_pred.errors import InvalidInputError

from ..features import opening
from .average_precision import overlaps
from .boxes import BoxedImage
from .proposals import Boxes, ProposalOptions, at_least_one, shares


@dataclass(frozen=True, kw_only=True)
class RegionOptions(ProposalOptions):
    """What the network sees, and which regions it learns from.

    Args:
        short_side: Of the image that the network sees, in px.
        long_side: At the most; the image is made smaller where it would be longer.
        flip: Probability of mirroring a training image.
        images: A step.
        rois: A step, over its images.
        foreground: Share of the RoIs that show an object, at the most.
        foreground_overlap: Intersection over union of such a RoI with its object, at the least.
        background_overlap: Of the others: from the first up to, not including, the second.
        box_std: What the box targets (dx, dy, dw, dh) are divided by; the released code takes each class's own mean
            and standard deviation, its successor py-faster-rcnn these.

    Raises:
        InvalidInputError: an option out of its range.
    """

    short_side: int = 600
    long_side: int = 1000
    flip: float = 0.5
    images: int = 2
    rois: int = 128
    foreground: float = 0.25
    foreground_overlap: float = 0.5
    background_overlap: tuple[float, float] = (0.1, 0.5)
    box_std: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        at_least_one(self, "images", "rois")
        shares(self, "flip", "foreground", "foreground_overlap")
        if not 32 <= self.short_side <= self.long_side:
            raise InvalidInputError(
                f"short_side = {self.short_side}, long_side = {self.long_side}: accepted is 32 px ≤ short_side ≤ "
                "long_side."
            )
        if self.rois % self.images:
            raise InvalidInputError(f"rois = {self.rois}: accepted is a multiple of images, {self.images}.")
        low, high = self.background_overlap
        if not 0 <= low < high <= self.foreground_overlap:
            raise InvalidInputError(
                f"background_overlap = {low}, {high}: accepted are two shares, the second above the first and at most "
                f"foreground_overlap, {self.foreground_overlap}."
            )
        if min(self.box_std) <= 0:
            raise InvalidInputError(f"box_std = {self.box_std}: accepted are numbers above 0.")


@dataclass(frozen=True)
class Loaded:
    """An image for the network and its RoIs.

    Attributes:
        pixels: uint8 (3, h, w), RGB, resized.
        rois: float32 (n, 4), in px of ``pixels``.
        labels: int64 (n,): 0 is the background; empty in a test.
        targets: float32 (n, 4): the box's shift, normalised; 0 of the background; empty in a test.
        scale: Of ``pixels`` to the image as it is stored.
    """

    pixels: Tensor
    rois: Tensor
    labels: Tensor
    targets: Tensor
    scale: float


@dataclass(frozen=True)
class Examples:
    """Images with their proposals.

    Attributes:
        images: Of a split.
        proposals: One array an image.
        settings: The protocol's.
        training: Draw RoIs, and mirror; else all proposals of the image as it is.
    """

    images: Sequence[BoxedImage]
    proposals: Sequence[Boxes]
    settings: RegionOptions
    training: bool

    def __len__(self) -> int:
        return len(self.images)

    def example(self, image: int, generator: torch.Generator) -> Loaded:
        """Load one image."""
        boxed, proposals = self.images[image], self.proposals[image]
        with opening(boxed.path):
            pixels = TF.pil_to_tensor(open_image(boxed.path))
        if not self.training:
            return self._loaded(pixels, proposals, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
        objects = boxed.boxes
        if torch.rand((), generator=generator) < self.settings.flip:
            pixels, objects, proposals = pixels.flip(-1), mirrored(objects, pixels), mirrored(proposals, pixels)
        boxes = np.concatenate([objects, proposals])
        chosen, labels, matched = drawn(boxes, objects, boxed.labels, self.settings, generator)
        rois, own = boxes[chosen], objects[matched] if len(objects) else objects
        return self._loaded(pixels, rois, labels, targets(rois, own, labels, self.settings))

    def _loaded(self, pixels: Tensor, rois: Boxes, labels: Tensor, shifts: Tensor) -> Loaded:
        scale = scale_of(pixels, self.settings)
        height, width = (max(1, round(side * scale)) for side in pixels.shape[1:])
        # OpenCV's bilinear resizing in the released code does not antialias.
        resized = TF.resize(pixels, [height, width], antialias=False)
        return Loaded(resized, torch.from_numpy(rois * np.float32(scale)), labels, shifts, scale)


def mirrored(boxes: Boxes, pixels: Tensor) -> Boxes:
    """Return boxes as they lie in the mirrored image."""
    width = pixels.shape[-1]
    found: Boxes = np.stack([width - 1 - boxes[:, 2], boxes[:, 1], width - 1 - boxes[:, 0], boxes[:, 3]], 1)
    return found


def scale_of(pixels: Tensor, settings: RegionOptions) -> float:
    """Return what an image's sides are multiplied by."""
    short, long = sorted(pixels.shape[-2:])
    scale = settings.short_side / short
    return settings.long_side / long if round(scale * long) > settings.long_side else scale


def drawn(
    boxes: Boxes, objects: Boxes, labels: NDArray[np.int64], settings: RegionOptions, generator: torch.Generator
) -> tuple[NDArray[np.int64], Tensor, NDArray[np.int64]]:
    """Draw an image's share of a step's RoIs.

    Args:
        boxes: (n, 4) to draw from.
        objects: (m, 4).
        labels: (m,), from 0.
        settings: How many, and of what overlaps.
        generator: Of the draw.

    Returns:
        Which boxes; their labels, the background 0; the object that each overlaps most. Foreground first.
    """
    each = settings.rois // settings.images
    table = overlaps(boxes, objects) if len(objects) else np.zeros((len(boxes), 1))
    best, matched = table.max(1), table.argmax(1)
    low, high = settings.background_overlap
    front = _draw(np.flatnonzero(best >= settings.foreground_overlap), round(settings.foreground * each), generator)
    back = _draw(np.flatnonzero((best < high) & (best >= low)), each - len(front), generator)
    if not len(front) and not len(back):  # the released code never meets an image without objects
        back = _draw(np.flatnonzero(best < high), each, generator)
    chosen = np.concatenate([front, back])
    found = torch.zeros(len(chosen), dtype=torch.int64)
    if len(front):
        found[: len(front)] = torch.from_numpy(labels[matched[front]] + 1)
    return chosen, found, matched[chosen]


def _draw(places: NDArray[np.int64], most: int, generator: torch.Generator) -> NDArray[np.int64]:
    order = torch.randperm(len(places), generator=generator)[:most].numpy()
    chosen: NDArray[np.int64] = places[order]
    return chosen


def coder_of(settings: RegionOptions) -> BoxCoder:
    """Make torchvision's coder: shifts of the centre by the box's sides, logarithms of the sides' ratios."""
    return BoxCoder(tuple(1 / std for std in settings.box_std))


def targets(rois: Boxes, objects: Boxes, labels: Tensor, settings: RegionOptions) -> Tensor:
    """Return each RoI's normalised shift to its object; 0 of the background."""
    if not len(objects):
        return torch.zeros(len(rois), 4)
    shifts: Tensor = coder_of(settings).encode_single(edges(torch.from_numpy(objects)), edges(torch.from_numpy(rois)))
    return shifts * (labels > 0)[:, None]


def edges(boxes: Tensor) -> Tensor:
    """From the last pixel within to the edge after it."""
    return boxes + torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=boxes.dtype, device=boxes.device)


def packed(loaded: Sequence[Loaded], transform: EvalTransform, device: torch.device) -> tuple[Tensor, Tensor]:
    """Normalise images, pad them with 0 (the mean) to one size: images (N, 3, H, W) and RoIs (R, 5)."""
    height, width = (max(one.pixels.shape[k] for one in loaded) for k in (1, 2))
    images = torch.zeros(len(loaded), 3, height, width, device=device)
    for number, one in enumerate(loaded):
        found = transform.normalize(one.pixels.to(device, non_blocking=True))
        images[number, :, : found.shape[1], : found.shape[2]] = found
    numbers = torch.cat([torch.full((len(one.rois), 1), float(k)) for k, one in enumerate(loaded)])
    rois = torch.cat([numbers, torch.cat([one.rois for one in loaded])], 1)
    return images, rois.to(device)


def stored_size(loaded: Loaded) -> tuple[int, int]:
    """(height, width) of the image as it is stored."""
    height, width = (round(side / loaded.scale) for side in loaded.pixels.shape[1:])
    return height, width
