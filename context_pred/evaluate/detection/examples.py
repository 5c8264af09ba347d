"""From an image file and its boxes to what a detector is trained on or tested with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.transforms.v2.functional import InterpolationMode

from context_pred.data.decode import Photo
from context_pred.errors import InvalidInputError
from context_pred.evaluate.features import opening
from context_pred.extras import need

from .boxes import BoxedImage

Example = tuple[Tensor, dict[str, Tensor]]
Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


def scaled_size(height: int, width: int, short: int, longest: int) -> tuple[int, int]:
    """Return (height, width) with the shorter side ``short`` px, or less where the longer would pass ``longest``.

    Source: mmcv 1.x ``rescale_size``.
    """
    scale = min(longest / max(height, width), short / min(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


@dataclass(frozen=True, eq=False)
class DetectionExamples:
    """Images, resized and perhaps mirrored, with their boxes; every draw comes from the generator.

    Attributes:
        images: In order.
        short_sides: The shorter side in px; one is drawn for each image.
        max_side: The longer side in px at the most.
        flip: Probability of a mirror image.
        antialias: Of the bilinear resizing; OpenCV's, which mmdetection resizes with, has none.
        train: Leave out the boxes that nothing is learned from: difficult ones and crowds.
        masks: Give each object's mask, too.
    """

    images: tuple[BoxedImage, ...]
    short_sides: tuple[int, ...]
    max_side: int
    flip: float = 0.0
    antialias: bool = False
    train: bool = True
    masks: bool = False

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def example(self, image: int, generator: torch.Generator) -> Example:
        """Load one.

        Returns:
            uint8 (3, H, W), RGB; and a dict: "boxes" float32 (n, 4), x1, y1, x2, y2 in px of it; "labels" int64 (n,),
            1 … classes; "size" and "original", int64 (2,): height and width, of it and of the file; with ``masks``
            "masks", uint8 (n, H, W), 0 or 1.
        """
        one = self.images[image]
        with opening(one.path):
            pixels = Photo(one.path).pixels()
        height, width = pixels.shape[1:]
        short = self.short_sides[int(torch.randint(len(self.short_sides), (), generator=generator))]
        mirrored = bool(torch.rand((), generator=generator) < self.flip)
        size = scaled_size(height, width, short, self.max_side)
        pixels = F.resize(pixels, list(size), antialias=self.antialias)
        boxes = torch.from_numpy(one.boxes) * torch.tensor([size[1] / width, size[0] / height] * 2)
        boxes = boxes.clamp(min=0).minimum(torch.tensor([size[1], size[0]] * 2, dtype=boxes.dtype))
        kept = ((boxes[:, 2:] > boxes[:, :2]).all(1) & ~torch.from_numpy(one.crowd | one.difficult)).nonzero()[:, 0]
        if not self.train:
            kept = torch.arange(len(boxes))
        boxes = boxes[kept]
        target = {
            "labels": torch.from_numpy(one.labels)[kept] + 1,
            "size": torch.tensor(size),
            "original": torch.tensor([height, width]),
        }
        if self.masks and self.train:
            masks = _masks(one, kept.tolist(), height, width)
            masks = F.resize(masks, list(size), interpolation=InterpolationMode.NEAREST) if len(masks) else masks
            target["masks"] = (masks.flip(2) if mirrored else masks).reshape(-1, *size)
        if mirrored:
            pixels = pixels.flip(2)
            boxes = torch.stack([size[1] - boxes[:, 2], boxes[:, 1], size[1] - boxes[:, 0], boxes[:, 3]], 1)
        return pixels.contiguous(), {"boxes": boxes, **target}


def _masks(one: BoxedImage, kept: Sequence[int], height: int, width: int) -> Tensor:
    """Rasterise outlines: uint8 (n, height, width)."""
    if not one.outlines:
        raise InvalidInputError(f"{one.path} has boxes without outlines; masks cannot be learned from it.")
    coder = need("faster_coco_eval.core.mask", "Masks")
    made = [coder.decode(run_lengths(one.outlines[k], height, width)) for k in kept]
    stacked = np.stack(made) if made else np.zeros((0, height, width), np.uint8)
    return torch.from_numpy(np.ascontiguousarray(stacked))


def run_lengths(outline: Any, height: int, width: int) -> dict[str, Any]:
    """Return COCO's compressed run lengths of polygons, of plain run lengths, or of compressed ones.

    Raises:
        InvalidInputError: something else.
    """
    coder = need("faster_coco_eval.core.mask", "Masks")
    if isinstance(outline, (tuple, list)) and outline:
        parts = coder.frPyObjects([np.asarray(part, np.float64).tolist() for part in outline], height, width)
        merged: dict[str, Any] = coder.merge(parts)
        return merged
    if isinstance(outline, dict) and "counts" in outline:
        counts = outline["counts"]
        if isinstance(counts, list):
            plain: dict[str, Any] = coder.frPyObjects(outline, height, width)
            return plain
        return outline
    raise InvalidInputError(f"An outline {str(outline)[:60]!r}; accepted are COCO's polygons and run lengths.")


def collate(examples: list[Example]) -> Batch:
    """Make a batch of images of different sizes: a list of images and a list of their targets."""
    return [image for image, _ in examples], [target for _, target in examples]
