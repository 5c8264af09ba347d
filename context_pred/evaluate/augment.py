"""Training images of the classification protocols: crops, flips, colour jitter and lighting, drawn from keys.

Sources: METHOD C4–C7, C9; mmselfsup 0.x ``configs/benchmarks/classification`` and its ``Lighting``, after Krizhevsky
et al. (NeurIPS 2012); for "1.x" mmpretrain's ``Lighting``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from context_pred.card import fit_channels
from context_pred.data.images import open_image
from context_pred.data.transforms import EvalTransform
from context_pred.errors import InvalidInputError

from .features import opening
from .job import Job
from .trained import check

Crop = Literal["resized", "window"]
Interpolation = Literal["pillow", "bicubic"]
Lighting = Literal["float", "uint8"]

EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
"""Principal components of ImageNet's colours in [0, 1]; rows are R, G, B, columns the components."""

Batch = tuple[Tensor, Tensor, Tensor]
"""Pixels uint8 (N, C, H, W), RGB; shifts float32 (N, C), in the model's channel order; classes int64 (N,)."""


@dataclass(frozen=True)
class Augmentation:
    """From an open image to the square that a network trains on, and the shift of its colours.

    Everything happens in the channel order that the network sees, as upstream's does on images it decoded that way.

    Args:
        size: Side of the square, in px.
        crop: "resized": a part of random area and shape, resized to the square. "window": the shorter side to
            ``resize``, the centre of that size cut out, from it a square anywhere.
        scale: Shares of the area that a "resized" crop is drawn from.
        ratio: Width over height, likewise, drawn evenly on a logarithmic scale.
        resize: Of "window", in px.
        flip: Probability of left and right changing places.
        jitter: Brightness, contrast, saturation and hue, as torchvision's ``ColorJitter``; in a random order.
        lighting: Standard deviation of the share of each colour component that is added.
        lighting_on: "float": added in [0, 1] without clipping. "uint8": to the bytes, truncated, and values beyond
            0 … 255 wrap around, as a cast back does (mmselfsup 1.x).
        interpolation: Of the "resized" crop, antialiased: "pillow" is bilinear.
        channel_order: "rgb" or "bgr".
        channels: 3, or 1 for networks that see grey.

    Raises:
        InvalidInputError: a number out of its range.
    """

    size: int = 224
    crop: Crop = "resized"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    resize: int = 256
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    lighting: float = 0.0
    lighting_on: Lighting = "float"
    interpolation: Interpolation = "pillow"
    channel_order: str = "rgb"
    channels: int = 3

    def __post_init__(self) -> None:
        """Check the ranges."""
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise InvalidInputError(f"scale = {list(self.scale)}: accepted are shares of the area, 0 < low ≤ high ≤ 1.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise InvalidInputError(f"ratio = {list(self.ratio)}: accepted are two numbers above 0, the lower first.")
        if not 0 <= self.flip <= 1 or self.lighting < 0:
            raise InvalidInputError(
                f"flip = {self.flip}, lighting = {self.lighting}: accepted are a probability, and 0 or more."
            )
        if min(self.jitter) < 0 or self.jitter[3] > 0.5:
            raise InvalidInputError(
                f"jitter = {list(self.jitter)}: accepted are four numbers from 0, the hue up to .5."
            )
        if self.size < 1 or (self.crop == "window" and self.resize < self.size):
            raise InvalidInputError(f"size = {self.size}, resize = {self.resize}: accepted is 1 ≤ size ≤ resize.")
        if self.channels not in (1, 3):
            raise InvalidInputError(f"A network of {self.channels} input channels; files have 3 or, grey, 1.")

    def __call__(self, image: Image.Image, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw one crop.

        Args:
            image: Mode RGB.
            generator: Where every random number comes from.

        Returns:
            uint8 (C, size, size), RGB order, and float32 (C,): what to add in [0, 1], in ``channel_order``.
        """
        key = int(torch.randint(2**62, (), generator=generator))
        if self.channel_order == "bgr":
            image = _swapped(image)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key)  # torchvision draws from there
            pixels: Tensor = self._transform(self._window(image) if self.crop == "window" else image)
            shift = torch.tensor(EIGENVECTORS) @ (torch.randn(3) * self.lighting * torch.tensor(EIGENVALUES))
        if self.lighting and self.lighting_on == "uint8":
            pixels = (pixels.float() + 255 * shift[:, None, None]).to(torch.int16).to(torch.uint8)
            shift = torch.zeros(3)
        if self.channel_order == "bgr":
            pixels = pixels.flip(0)
        if self.channels == 1:
            return v2.functional.rgb_to_grayscale(pixels), shift.mean(0, keepdim=True)
        return pixels, shift

    def _window(self, image: Image.Image) -> Tensor:
        return EvalTransform(self.resize, self.resize).cut(image)

    @cached_property
    def _transform(self) -> v2.Compose:
        mode = v2.InterpolationMode.BICUBIC if self.interpolation == "bicubic" else v2.InterpolationMode.BILINEAR
        crop = (
            v2.RandomCrop(self.size)
            if self.crop == "window"
            else v2.RandomResizedCrop(self.size, self.scale, self.ratio, mode, antialias=True)
        )
        jitter = [v2.ColorJitter(*self.jitter)] if any(self.jitter) else []
        return v2.Compose([crop, v2.RandomHorizontalFlip(self.flip), *jitter, v2.ToImage(), v2.ToPureTensor()])


def _swapped(image: Image.Image) -> Image.Image:
    red, green, blue = image.split()
    return Image.merge("RGB", (blue, green, red))


@dataclass(frozen=True, eq=False)
class TrainImages:
    """Labelled image files to train on, each drawn anew every time; as ``Examples``.

    Attributes:
        files: The images.
        classes: int64 (N,): the class of each.
        augmentation: As above.
    """

    files: Sequence[Path]
    classes: NDArray[np.int64]
    augmentation: Augmentation

    def __len__(self) -> int:
        return len(self.files)

    def example(self, image: int, generator: torch.Generator) -> tuple[Tensor, Tensor, int]:
        """Return the pixels, the shift of their colours, and the class; raises ImageError."""
        with opening(self.files[image]):
            opened = open_image(self.files[image])
        return *self.augmentation(opened, generator), int(self.classes[image])


@dataclass(frozen=True, eq=False)
class TestImages:
    """Labelled image files to measure with: cut as in an evaluation, without a shift; as ``Examples``."""

    files: Sequence[Path]
    classes: NDArray[np.int64]
    transform: EvalTransform

    __test__ = False  # nothing for pytest

    def __len__(self) -> int:
        return len(self.files)

    def example(self, image: int, generator: torch.Generator) -> tuple[Tensor, Tensor, int]:
        """As in ``TrainImages``."""
        pixels = self.transform.cut(open_image(self.files[image]))
        return pixels, torch.zeros(len(pixels)), int(self.classes[image])


def check_tests(job: Job) -> None:
    """Open the test images before the training, which else would end at the first of them that is damaged.

    Raises:
        DamagedImagesError: some cannot be opened; all are named.
    """
    check(job.data.test.files, job.ranks)


def collate(examples: list[Any]) -> Batch:
    """Stack examples to a batch."""
    pixels, shifts, classes = zip(*examples, strict=True)
    return torch.stack(pixels), torch.stack(shifts), torch.tensor(classes)


def prepared(batch: Batch, transform: EvalTransform, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return a batch as a network takes it: float32 (N, C, H, W), normalised, and its classes; on the device."""
    pixels, shifts, classes = (part.to(device, non_blocking=True) for part in batch)
    images = transform.normalize(pixels)
    if bool(batch[1].any()):
        std = torch.tensor(fit_channels(transform.std, transform.in_channels), device=device)
        images += (shifts / std)[:, :, None, None]
    return images, classes
