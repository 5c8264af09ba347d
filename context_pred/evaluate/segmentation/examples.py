"""From a photograph and its label map to what the network sees: mmsegmentation's augmentation, and the whole image.

Sources: METHOD C12 and C13; mmsegmentation 0.x, ``configs/_base_/datasets/pascal_voc12.py``,
``datasets/pipelines/transforms.py``; mmcv 1.x ``imrescale``. OpenCV resizes and turns colours there and here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from context_pred.data.images import open_image
from context_pred.data.transforms import EvalTransform
from context_pred.errors import ImageError
from context_pred.evaluate.features import opening
from context_pred.extras import need

from .label_maps import IGNORED, Coding, Pair

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training image; every number of METHOD C12. The arguments are those of ``Settings``."""

    scale: tuple[int, int]
    ratio: tuple[float, float]
    crop: int
    largest_share: float
    crop_tries: int
    flip: float
    distortion: float
    brightness: float
    contrast: tuple[float, float]
    saturation: tuple[float, float]
    hue: int


@dataclass(frozen=True)
class TrainingExamples:
    """Augmented crops; see ``example``.

    Attributes:
        pairs: The images.
        coding: Of their label maps.
        augmentation: What is done to them.
        transform: Channel order, mean and standard deviation.
    """

    pairs: tuple[Pair, ...]
    coding: Coding
    augmentation: Augmentation
    transform: EvalTransform

    def __len__(self) -> int:
        """Return how many images there are."""
        return len(self.pairs)

    def example(self, image: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Load an image, resize, crop, flip, distort and normalise it; pad what is smaller than the crop.

        Returns:
            float32 (3, crop, crop), and uint8 (crop, crop) with 255 where no class is or nothing was.

        Raises:
            ImageError: the photograph or its label map cannot be read, or their sizes differ.
        """
        pixels, labels = load(self.pairs[image], self.coding)
        options, draw = self.augmentation, Draws(generator)
        ratio = draw.between(*options.ratio)
        size = fitted(pixels.shape[:2], tuple(int(side * ratio) for side in options.scale))
        pixels, labels = resized(pixels, size), resized_labels(labels, size)
        top, left = _crop(labels, options, draw)
        pixels = pixels[top : top + options.crop, left : left + options.crop]
        labels = labels[top : top + options.crop, left : left + options.crop]
        if draw.chance(options.flip):
            pixels, labels = pixels[:, ::-1], labels[:, ::-1]
        pixels = distorted(np.ascontiguousarray(pixels), options, draw)
        return self._padded(pixels, labels)

    def _padded(self, pixels: Pixels, labels: Pixels) -> tuple[Tensor, Tensor]:
        side, (height, width) = self.augmentation.crop, labels.shape
        image = torch.zeros(3, side, side)
        image[:, :height, :width] = self.transform.normalize(torch.from_numpy(pixels).permute(2, 0, 1))
        truth = torch.full((side, side), IGNORED, dtype=torch.uint8)
        truth[:height, :width] = torch.from_numpy(np.ascontiguousarray(labels))
        return image, truth


@dataclass(frozen=True)
class WholeExamples:
    """Whole images, resized to fit ``scale``; label maps as they are."""

    pairs: tuple[Pair, ...]
    coding: Coding
    scale: tuple[int, int]
    transform: EvalTransform

    def __len__(self) -> int:
        """Return how many images there are."""
        return len(self.pairs)

    def example(self, image: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Load an image: float32 (3, h, w), and its label map, uint8 (H, W); nothing is drawn."""
        pixels, labels = load(self.pairs[image], self.coding)
        pixels = resized(pixels, fitted(pixels.shape[:2], self.scale))
        return self.transform.normalize(torch.from_numpy(pixels).permute(2, 0, 1)), torch.from_numpy(labels)


def stacked(examples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Collate crops to (N, 3, crop, crop) and (N, crop, crop)."""
    images, labels = zip(*examples, strict=True)
    return torch.stack(images), torch.stack(labels)


def single(examples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Collate one example."""
    return examples[0]


class Draws:
    """Random numbers of one image, all from its generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def between(self, low: float, high: float) -> float:
        """Draw uniformly."""
        return low + (high - low) * float(torch.rand((), generator=self.generator, dtype=torch.float64))

    def below(self, count: int) -> int:
        """Draw a whole number 0 … count − 1."""
        return int(torch.randint(count, (), generator=self.generator))

    def chance(self, probability: float) -> bool:
        """Tell whether something of this probability happens."""
        return self.between(0.0, 1.0) < probability


def load(pair: Pair, coding: Coding) -> tuple[Pixels, Pixels]:
    """Load a photograph, RGB (H, W, 3), and its label map as class indices, (H, W), both uint8.

    Raises:
        ImageError: one cannot be read, or their sizes differ.
    """
    with opening(pair.image):
        pixels = np.array(open_image(pair.image))
    labels = coding.read(pair.labels)
    if labels.shape != pixels.shape[:2]:
        raise ImageError(
            f"{pair.labels}: a label map of {labels.shape[1]}×{labels.shape[0]} px for an image of "
            f"{pixels.shape[1]}×{pixels.shape[0]} px; accepted is one label for each pixel of {pair.image}."
        )
    return pixels, labels


def fitted(size: Sequence[int], scale: Sequence[int]) -> tuple[int, int]:
    """Return the (height, width) of an image that just fits into ``scale``, sides in either order, its shape kept."""
    height, width = size
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize (H, W, 3) to (height, width), bilinear without antialiasing."""
    if pixels.shape[:2] == size:
        return pixels
    cv2 = need("cv2", "segmentation")
    found: Pixels = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR)
    return found


def resized_labels(labels: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize (H, W) to (height, width) by the nearest pixel."""
    if labels.shape == size:
        return labels
    cv2 = need("cv2", "segmentation")
    found: Pixels = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)
    return found


def _crop(labels: Pixels, options: Augmentation, draw: Draws) -> tuple[int, int]:
    """Draw a crop's corner, again as long as one class fills more of its labelled pixels than may be."""
    room = [max(0, side - options.crop) + 1 for side in labels.shape]
    top, left = (draw.below(count) for count in room)
    for _ in range(options.crop_tries if options.largest_share < 1 else 0):
        counts = np.bincount(labels[top : top + options.crop, left : left + options.crop].ravel(), minlength=256)
        counts = counts[:IGNORED]
        if (counts > 0).sum() > 1 and counts.max() < options.largest_share * counts.sum():
            break
        top, left = (draw.below(count) for count in room)
    return top, left


def distorted(pixels: Pixels, options: Augmentation, draw: Draws) -> Pixels:
    """Change brightness, contrast, saturation and hue, each with its probability, contrast first or last.

    Args:
        pixels: RGB (H, W, 3) uint8; hue counts to 180, as OpenCV's.
        options: How much.
        draw: Random numbers.
    """
    if draw.chance(options.distortion):
        pixels = _linear(pixels, 1.0, draw.between(-options.brightness, options.brightness))
    contrast_first = draw.below(2) == 1
    if contrast_first and draw.chance(options.distortion):
        pixels = _linear(pixels, draw.between(*options.contrast), 0.0)
    saturated, turned = draw.chance(options.distortion), draw.chance(options.distortion)
    factor, angle = draw.between(*options.saturation), draw.below(2 * options.hue) - options.hue if options.hue else 0
    if saturated or turned:
        cv2: Any = need("cv2", "segmentation")
        colors = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
        if saturated:
            colors[..., 1] = _linear(colors[..., 1], factor, 0.0)
        if turned:
            colors[..., 0] = (colors[..., 0].astype(np.int16) + angle) % 180
        pixels = cv2.cvtColor(colors, cv2.COLOR_HSV2RGB)
    if not contrast_first and draw.chance(options.distortion):
        pixels = _linear(pixels, draw.between(*options.contrast), 0.0)
    return pixels


def _linear(values: Pixels, factor: float, offset: float) -> Pixels:
    table = np.clip(np.arange(256, dtype=np.float32) * factor + offset, 0, 255).astype(np.uint8)
    found: Pixels = table[values]
    return found
