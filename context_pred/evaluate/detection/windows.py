"""Windows of an image, warped to a square with some context, as R-CNN cuts them.

Source: Girshick et al., "Rich feature hierarchies" (CVPR 2014, R-CNN) and its released code (``rcnn``,
``rcnn_im_crop.m``): the box is enlarged so that ``padding`` px of its surroundings lie on each side of the square; what
lies outside of the image is the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF

from context_pred.data.images import open_image

from ..features import opening
from .average_precision import overlaps
from .boxes import BoxedImage
from .proposals import Boxes


def enlarged(boxes: Tensor, size: int, padding: int) -> Tensor:
    """Enlarge boxes by their context.

    Args:
        boxes: (n, 4): x1, y1, x2, y2 in px, counted from 0, the last pixel within.
        size: Side of the square, in px.
        padding: Of its px on each side that are context.

    Returns:
        (n, 4): the edges, x2 and y2 after the last pixel; whole numbers, also outside of the image.
    """
    half = (boxes[:, 2:] - boxes[:, :2] + 1) / 2
    centre = boxes[:, :2] + half
    half = half * (size / (size - 2 * padding))
    return torch.cat([(centre - half + 0.5).floor(), (centre + half + 0.5).floor() + 1], 1)


def warped(image: Tensor, boxes: Tensor, size: int, padding: int, flip: Tensor | None = None) -> Tensor:
    """Cut windows out of an image, bilinear without antialiasing.

    Args:
        image: float32 (3, H, W), normalised, so that 0 is the mean.
        boxes: (n, 4), as in ``enlarged``, on the same device.
        size: Side of the squares, in px.
        padding: Of context, in px of the square.
        flip: bool (n,): which windows to mirror; None: none.

    Returns:
        (n, 3, size, size).
    """
    edges = enlarged(boxes, size, padding)
    steps = (torch.arange(size, device=image.device) + 0.5) / size
    across = edges[:, 0, None] + steps * (edges[:, 2] - edges[:, 0])[:, None]
    down = edges[:, 1, None] + steps * (edges[:, 3] - edges[:, 1])[:, None]
    if flip is not None:
        across = torch.where(flip[:, None], across.flip(1), across)
    height, width = image.shape[1:]
    grid = torch.stack(
        [
            (across * 2 / width - 1)[:, None, :].expand(-1, size, -1),
            (down * 2 / height - 1)[:, :, None].expand(-1, -1, size),
        ],
        dim=3,
    )
    cut = F.grid_sample(image.expand(len(boxes), -1, -1, -1), grid, padding_mode="border", align_corners=False)
    within = ((across >= 0) & (across <= width))[:, None, None, :] & ((down >= 0) & (down <= height))[:, None, :, None]
    return cut * within


@dataclass(frozen=True)
class Cut:
    """An image and windows of it.

    Attributes:
        pixels: uint8 (3, H, W), RGB, as stored.
        boxes: float32 (n, 4), as in ``enlarged``.
        labels: int64 (n,): 0 is the background; empty in a test.
        flip: bool (n,): windows to mirror; empty in a test.
    """

    pixels: Tensor
    boxes: Tensor
    labels: Tensor
    flip: Tensor


def whole(pixels: Tensor, boxes: Boxes) -> Cut:
    """Make a Cut for a test."""
    nothing = torch.zeros(0, dtype=torch.int64)
    return Cut(pixels, torch.from_numpy(boxes), nothing, nothing.bool())


@dataclass(frozen=True)
class WindowExamples:
    """Images with their proposals; in training some windows are drawn, else there are all.

    Attributes:
        images: Of a split.
        proposals: One array an image.
        windows: Drawn of an image; 0: all, not mirrored.
        foreground: Share of them that show an object.
        overlap: Intersection over union of such a window with an object, at the least.
        flip: Probability of mirroring one.
    """

    images: Sequence[BoxedImage]
    proposals: Sequence[Boxes]
    windows: int = 0
    foreground: float = 0.25
    overlap: float = 0.5
    flip: float = 0.5

    def __len__(self) -> int:
        return len(self.images)

    def example(self, image: int, generator: torch.Generator) -> Cut:
        """Load one image."""
        boxed, boxes = self.images[image], self.proposals[image]
        with opening(boxed.path):
            pixels = TF.pil_to_tensor(open_image(boxed.path))
        if not self.windows:
            return Cut(
                pixels, torch.from_numpy(boxes), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool)
            )
        boxes = np.concatenate([boxed.boxes, boxes])
        chosen, labels = self._drawn(boxes, boxed, generator)
        flip = torch.rand(len(chosen), generator=generator) < self.flip
        return Cut(pixels, torch.from_numpy(boxes[chosen]), labels, flip)

    def _drawn(self, boxes: Boxes, boxed: BoxedImage, generator: torch.Generator) -> tuple[NDArray[np.int64], Tensor]:
        """Draw with replacement, as Caffe's window layer does, foreground first."""
        table = overlaps(boxes, boxed.boxes) if len(boxed) else np.zeros((len(boxes), 1))
        best, matched = table.max(1), table.argmax(1)
        front, back = np.flatnonzero(best >= self.overlap), np.flatnonzero(best < self.overlap)
        many = round(self.foreground * self.windows) if len(front) and len(back) else self.windows if len(front) else 0
        picks = [
            places[torch.randint(len(places), (count,), generator=generator).numpy()]
            for places, count in ((front, many), (back, self.windows - many))
            if count and len(places)
        ]
        chosen = np.concatenate([np.zeros(0, np.int64), *picks])
        labels = torch.zeros(len(chosen), dtype=torch.int64)
        if many:
            labels[:many] = torch.from_numpy(boxed.labels[matched[chosen[:many]]] + 1)
        return chosen, labels
