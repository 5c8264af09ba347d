"""What the library's drawings share: a font without a file, colours, and writing PNG."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

from PIL import Image, ImageFont

from context_pred.weights_file import write_bytes

PAPER, INK, FAINT = (255, 255, 255), (32, 32, 32), (214, 214, 214)
COLORS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233))
"""The palette of Okabe and Ito, told apart by colour-blind readers too."""


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own font, which needs no file."""
    return ImageFont.load_default(size)


def save_png(picture: Image.Image, path: str | Path) -> None:
    """Write a picture as PNG, whole or not at all; raises StorageError, and an older file stands."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    write_bytes(buffer.getvalue(), path)
