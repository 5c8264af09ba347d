"""The evaluation preprocessing: resize, centre crop, channel order, mean and standard deviation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from context_pred.card import IMAGENET_MEAN, IMAGENET_STD, fit_channels
from context_pred.errors import InvalidInputError, unknown

from .images import to_rgb

_VERY_LONG = 16  # longer side over shorter side
_TOLERANCE = 1e-3  # how far a float image may leave [0, 1], as resampling does


@dataclass(frozen=True)
class EvalTransform:
    """Resize the shorter side, crop the centre, put the channels in the weights' order, normalise.

    The resizing is bilinear with antialiasing, the longer side truncated to whole pixels: torchvision's
    ``Resize(resize, antialias=True)`` and ``CenterCrop(crop)``, the evaluation preprocessing of the published
    protocols (mmselfsup 0.x). Instances are immutable, can be pickled, and compare by value.

    Args:
        resize: The shorter side after resizing, in px.
        crop: Side of the square cut from the centre, in px, at most ``resize``.
        mean: One value a channel, for images in [0, 1], in the order that ``channel_order`` names.
        std: As ``mean``.
        channel_order: "rgb", or "bgr" for weights trained on images that OpenCV read.
        in_channels: 3; 1: images become grey first (0.299 R + 0.587 G + 0.114 B), and ``mean`` and ``std`` are
            averaged; any other number: tensors of that many channels, ``mean`` and ``std`` repeated cyclically.

    Raises:
        InvalidInputError: sizes below 1, a crop larger than the resized side, another number of means than of standard
            deviations, a standard deviation that is not positive.
        UnknownNameError: a channel order other than "rgb" and "bgr".
    """

    resize: int = 256
    crop: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channel_order: Literal["rgb", "bgr"] = "rgb"
    in_channels: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(v) for v in self.mean))
        object.__setattr__(self, "std", tuple(float(v) for v in self.std))
        if self.channel_order not in ("rgb", "bgr"):
            raise unknown("channel order", self.channel_order, ("rgb", "bgr"))
        if not 1 <= self.crop <= self.resize:
            raise InvalidInputError(
                f"crop={self.crop}, resize={self.resize}; accepted: 1 ≤ crop ≤ resize (the shorter side in px)."
            )
        if self.in_channels < 1:
            raise InvalidInputError(f"in_channels={self.in_channels}; accepted: a whole number from 1 up.")
        if len(self.mean) != len(self.std) or not self.mean or not all(v > 0 for v in self.std):
            raise InvalidInputError(
                f"mean={self.mean}, std={self.std}; accepted: as many of one as of the other, every std above 0."
            )

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """Prepare one image, or a batch of equal size.

        Args:
            image: A Pillow image of any 8-bit mode (with 1 or 3 ``in_channels``; orientation tags are not looked at:
                ``context_pred.data.open_image`` applies them), or a tensor (C, H, W) or (N, C, H, W), RGB,
                uint8 in 0 … 255 or floating point in [0, 1], C = ``in_channels`` (3 or 1 where that is 1).

        Returns:
            float32 (C, crop, crop) or (N, C, crop, crop), on the tensor's device.

        Raises:
            InvalidInputError: any other type, shape, dtype or range.
        """
        return self.normalize(self.cut(image))

    def cut(self, image: Image.Image | Tensor) -> Tensor:
        """Do the first half: resize, crop, and grey where ``in_channels`` is 1.

        Args:
            image: A PIL image, or a tensor (C, H, W), uint8 or floating in [0, 1].

        Returns:
            (C, crop, crop) or (N, C, crop, crop): uint8 for a Pillow image and for uint8, else float32. The channels
            are still in RGB order.

        Raises:
            InvalidInputError: no image, or one of another number of channels, shape or dtype.
        """
        if isinstance(image, Image.Image):
            pixels: Tensor = F.pil_to_tensor(self._cut_pillow(self._channels(image)))
        else:
            pixels = self._checked(image)
            if self.in_channels == 1 and pixels.shape[-3] == 3:
                pixels = F.rgb_to_grayscale(pixels)
            pixels = F.center_crop(resize(pixels, self.resize), [self.crop, self.crop])
        return pixels

    def _channels(self, image: Image.Image) -> Image.Image:
        if self.in_channels not in (1, 3):
            raise InvalidInputError(
                f"A Pillow image, for a model of {self.in_channels} input channels; "
                f"accepted: a tensor ({self.in_channels}, H, W), uint8 or float in [0, 1]."
            )
        return to_rgb(image) if self.in_channels == 3 else to_rgb(image).convert("L")

    def _cut_pillow(self, image: Image.Image) -> Image.Image:
        if max(image.size) < _VERY_LONG * min(image.size):
            cut: Image.Image = F.center_crop(F.resize(image, [self.resize], antialias=True), [self.crop, self.crop])
            return cut
        # A panorama or line scan would be enlarged to gigabytes: compute the crop alone, within one grey level.
        scale = self.resize / min(image.size)
        sizes = [int(side * scale) for side in image.size]
        starts = [round((side - self.crop) / 2) for side in sizes]
        ends = [start + self.crop for start in starts]
        box = [v * side / new for v, side, new in zip(starts + ends, image.size * 2, sizes * 2, strict=True)]
        return image.resize((self.crop, self.crop), Image.Resampling.BILINEAR, (box[0], box[1], box[2], box[3]))

    def normalize(self, pixels: Tensor) -> Tensor:
        """Do the second half: to [0, 1], channel order, mean and standard deviation.

        Args:
            pixels: (…, C, H, W), RGB, uint8 or floating point in [0, 1].

        Returns:
            float32 of the same shape, on the same device.
        """
        mean, std = self._statistics(pixels.device)
        if self.channel_order == "bgr" and self.in_channels == 3:
            pixels = pixels.flip(-3)
        if pixels.dtype == torch.uint8:
            pixels = pixels.to(torch.float32).div_(255)
            return pixels.sub_(mean).div_(std)
        return (pixels.to(torch.float32) - mean) / std

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """mean and std as (C, 1, 1) float32, fitted to ``in_channels``."""
        fitted = (fit_channels(values, self.in_channels) for values in (self.mean, self.std))
        first, second = (torch.tensor(values, device=device).view(-1, 1, 1) for values in fitted)
        return first, second

    def _checked(self, image: Tensor) -> Tensor:
        channels = (1, 3) if self.in_channels == 1 else (self.in_channels,)
        accepted = (
            f"accepted: a Pillow image, or a tensor (C, H, W) or (N, C, H, W) with C = "
            f"{' or '.join(map(str, channels))}, uint8 or floating point in [0, 1]"
        )
        if not isinstance(image, Tensor):
            raise InvalidInputError(f"An image given as {type(image).__name__}; {accepted}.")
        if image.ndim not in (3, 4) or image.shape[-3] not in channels or 0 in image.shape[-2:]:
            raise InvalidInputError(f"An image tensor of shape {tuple(image.shape)}; {accepted}.")
        if image.dtype == torch.uint8:
            return image
        if not image.is_floating_point():
            raise InvalidInputError(f"An image tensor of dtype {image.dtype}; {accepted}.")
        image = image.to(torch.float32)
        if image.numel():
            low, high = (v.item() for v in image.aminmax())
            if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):  # NaN fails too
                raise InvalidInputError(f"An image tensor with values from {low:.4g} to {high:.4g}; {accepted}.")
        return image


def resize(images: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Resize whole images, bilinear with antialiasing, within one grey level of Pillow's ``BILINEAR``.

    Args:
        images: (…, C, H, W), uint8, or floating point of any range, on any device.
        size: The shorter side (the longer one is truncated to whole pixels, as torchvision does), or (height, width).

    Returns:
        (…, C, h, w) of the same dtype, on the same device.

    Raises:
        InvalidInputError: fewer than three dimensions, an empty side, another dtype, or a size below 1.
    """
    target = [size] if isinstance(size, int) else list(size)
    if len(target) not in (1, 2) or not all(isinstance(v, int) and v >= 1 for v in target):
        raise InvalidInputError(f"size={size!r}; accepted: the shorter side in px, or (height, width).")
    if images.ndim < 3 or 0 in images.shape[-3:]:
        raise InvalidInputError(f"Images of shape {tuple(images.shape)}; accepted: (…, C, H, W), no side empty.")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise InvalidInputError(f"Images of dtype {images.dtype}; accepted: uint8 or floating point.")
    resized: Tensor = F.resize(images, target, antialias=True)
    return resized
