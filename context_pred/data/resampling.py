"""Resizing of decoded images where only a window of the result is needed."""

from __future__ import annotations

import math

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

_LARGE = 4_000_000
"""Pixels of a resized image that are made for the sake of a window in it, before Pillow makes the window alone."""


def resize_window(
    pixels: Tensor, size: tuple[int, int], window: tuple[int, int, int, int], antialias: bool = True
) -> Tensor:
    """Resize an image, bilinearly, and return a window of the result; what lies beyond it is not computed if it can be.

    Args:
        pixels: uint8 (C, H, W); fastest with the channels of a pixel side by side in memory.
        size: (height, width) of the whole image after resizing.
        window: (left, top, width, height) in the resized image.
        antialias: True averages over source pixels, as Pillow's ``BILINEAR`` does, False samples at half-pixel
            centres, as OpenCV's ``INTER_LINEAR`` does; both within one grey level.

    Returns:
        uint8 (C, height, width) of the window.
    """
    left, top, width, height = window
    rows, columns = pixels.shape[1:]
    if size == (rows, columns):
        return pixels[:, top : top + height, left : left + width]
    if antialias and size[0] * size[1] > max(_LARGE, 4 * width * height):
        return _by_pillow(pixels, size, window)
    # Up to the window's lower right corner: the upper left one must stay, for the sampling to start where it does.
    below, right = _needed(top + height, rows, size[0], antialias), _needed(left + width, columns, size[1], antialias)
    part = pixels[None, :, :below, :right].contiguous(memory_format=torch.channels_last)
    factor = (size[0] / rows, size[1] / columns)
    if below == rows and right == columns:
        resized = F.interpolate(part, size, mode="bilinear", antialias=antialias)
    else:
        resized = F.interpolate(part, scale_factor=factor, mode="bilinear", antialias=antialias)
    return resized[0, :, top : top + height, left : left + width]


def _needed(end: int, source: int, target: int, antialias: bool) -> int:
    """Count the source samples that the first ``end`` of ``target`` resized ones are made of, and yield."""
    scale = source / target
    reach = max(scale, 1.0) if antialias else 1.0
    return min(source, math.ceil((end + 1) * scale + reach) + 1)


def _by_pillow(pixels: Tensor, size: tuple[int, int], window: tuple[int, int, int, int]) -> Tensor:
    left, top, width, height = window
    down, across = pixels.shape[1] / size[0], pixels.shape[2] / size[1]
    box = (left * across, top * down, (left + width) * across, (top + height) * down)
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    resized = image.resize((width, height), Image.Resampling.BILINEAR, box)
    return torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8).reshape(height, width, -1).permute(2, 0, 1)
