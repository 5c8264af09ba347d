"""A photograph, its label map and the predicted one, side by side, with the names of the classes."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from context_pred.pictures import COLORS, INK, PAPER, font

from .label_maps import IGNORED

_LINE = 18


def palette(classes: int) -> NDArray[np.uint8]:
    """Return a colour for each value of a label map, (256, 3): the library's six first, then hues; black for none."""
    found = np.zeros((256, 3), np.uint8)
    for k in range(classes):
        hue = colorsys.hsv_to_rgb(k * 0.618 % 1, 0.35 + 0.3 * (k % 3), 0.95 - 0.2 * (k % 2))
        found[k] = COLORS[k] if k < len(COLORS) else [round(255 * part) for part in hue]
    found[IGNORED] = 0
    return found


def beside(
    pixels: NDArray[np.uint8], truth: NDArray[Any], predicted: NDArray[Any], classes: Sequence[str]
) -> Image.Image:
    """Draw one row: the photograph (H, W, 3), the truth (H, W) and the prediction (H, W); below, the classes in them.

    The prediction is drawn where the truth has a class, too, and where it has none.
    """
    colors = palette(len(classes))
    parts = [pixels, colors[truth.astype(np.uint8)], colors[predicted.astype(np.uint8)]]
    height, width = truth.shape
    there = [k for k in range(len(classes)) if (truth == k).any() or (predicted == k).any()]
    across = max(1, 3 * width // 150)
    picture = Image.new("RGB", (3 * width, height + _LINE * (-(-len(there) // across))), PAPER)
    for k, part in enumerate(parts):
        picture.paste(Image.fromarray(np.ascontiguousarray(part)), (k * width, 0))
    draw = ImageDraw.Draw(picture)
    for place, k in enumerate(there):
        left, top = place % across * 150 + 4, height + place // across * _LINE + 3
        draw.rectangle((left, top, left + 12, top + 12), fill=tuple(colors[k].tolist()))
        draw.text((left + 18, top), classes[k], fill=INK, font=font(11))
    return picture
