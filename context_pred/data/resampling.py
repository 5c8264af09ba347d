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
        pixels: uint8 (C, H, W), C 1 or 3; fastest with the channels of a pixel side by side in memory.
        size: (height, width) of the whole image after resizing.
        window: (left, top, width, height) in the resized image.
        antialias: True averages over source pixels, as Pillow's ``BILINEAR`` does, False samples at half-pixel
            centres, as OpenCV's ``INTER_LINEAR`` does; both within one grey level.

    Returns:
        uint8 (C, height, width) of the window.
    """
    left, top, width, height = window
    if size == tuple(pixels.shape[1:]):
        return pixels[:, top : top + height, left : left + width]
    if not antialias:
        resized = F.interpolate(pixels[None], size, mode="bilinear")[0]
    elif size[0] * size[1] > max(_LARGE, 4 * width * height):
        return _by_pillow(pixels, size, window)
    else:
        resized = _resize(pixels.permute(1, 2, 0), size, left + width, top, top + height).permute(2, 0, 1)
        top = 0
    return resized[:, top : top + height, left : left + width]


# PyTorch's kernel for bytes is fast with three or four values a pixel, side by side. The pass down the columns treats
# all columns alike, so any four bytes of a row are a pixel to it; the pass along the rows treats all rows alike, so
# that those of a grey image are dealt out to four channels. Either pass starts at the upper left corner, which keeps
# the sampling points where they are, and ends where the window does.


def _resize(pixels: Tensor, size: tuple[int, int], right: int, top: int, bottom: int) -> Tensor:
    """Resize (H, W, C) to ``size``; return rows ``top`` … ``bottom``, at least the first ``right`` pixels of each."""
    height, width, channels = pixels.shape
    scale = height / size[0]
    needed = pixels[: math.ceil((bottom + 0.5) * scale + max(scale, 1.0)) + 1].contiguous()
    if (width * channels) % 4 == 0:
        return _along(_down(needed, height, size[0], bottom)[top:], size[1], right)
    return _down(_along(needed, size[1], right), height, size[0], bottom)[top:]


def _down(pixels: Tensor, source: int, target: int, bottom: int) -> Tensor:
    """Resize the columns of an image (rows, W, C) that was ``source`` pixels high: (bottom, W, C)."""
    if source == target:
        return pixels[:bottom]
    rows, width, channels = pixels.shape
    values = width * channels
    lot = 4 if values % 4 == 0 else channels
    resized = _resized(pixels.view(rows, values // lot, lot), (bottom, values // lot), (target / source, 1.0))
    return resized.view(bottom, width, channels)


def _along(pixels: Tensor, target: int, right: int) -> Tensor:
    """Resize the rows of an image (rows, W, C), their first ``right`` pixels: (rows, at least right, C)."""
    rows, width, channels = pixels.shape
    if width == target:
        return pixels
    # A multiple of four, for the pass down the columns.
    columns = min(target, -(-right // 4) * 4)
    factor = (1.0, target / width)
    if channels != 1:
        return _resized(pixels, (rows, columns), factor)
    quarter = -(-rows // 4)
    if rows % 4:
        pixels = F.pad(pixels, (0, 0, 0, 0, 0, 4 * quarter - rows))
    planes: Tensor = torch.ops.aten._upsample_bilinear2d_aa(
        pixels.view(1, 4, quarter, width), (quarter, columns), False, *factor
    )
    return planes.view(4 * quarter, columns, 1)[:rows]


def _resized(pixels: Tensor, size: tuple[int, int], factor: tuple[float, float]) -> Tensor:
    """Compute the first ``size`` pixels of (H, W, C), contiguous, resized by ``factor`` with antialiasing."""
    height, width, channels = pixels.shape
    # With the batch's stride as it is of many images: else PyTorch may take a single one for channels after the other.
    images = pixels.as_strided((1, channels, height, width), (pixels.numel(), 1, width * channels, channels))
    # F.interpolate takes the size or the factor, the operator below it both.
    resized: Tensor = torch.ops.aten._upsample_bilinear2d_aa(images, size, False, *factor)
    return resized[0].permute(1, 2, 0)


def _by_pillow(pixels: Tensor, size: tuple[int, int], window: tuple[int, int, int, int]) -> Tensor:
    left, top, width, height = window
    down, across = pixels.shape[1] / size[0], pixels.shape[2] / size[1]
    box = (left * across, top * down, (left + width) * across, (top + height) * down)
    whole = pixels.permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(whole[..., 0] if whole.shape[2] == 1 else whole)
    resized = image.resize((width, height), Image.Resampling.BILINEAR, box)
    return torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8).reshape(height, width, -1).permute(2, 0, 1)
