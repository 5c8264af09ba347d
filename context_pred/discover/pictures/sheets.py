"""What the sheets share: a page with a heading, captions that fit, JPEG as bytes."""

from __future__ import annotations

import base64
import io
import unicodedata

from PIL import Image, ImageDraw

from context_pred.pictures import INK, PAPER, font

MARGIN, SPACE, HEADING = 24, 10, 68
GRAY = (95, 95, 95)

Color = tuple[int, int, int]


def sheet(width: int, height: int, title: str, line: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Return an empty page with a heading of ``HEADING`` px and a pen for it; the rims are the caller's."""
    page = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, 14), fitted(title, width - 2 * MARGIN, 20), fill=INK, font=font(20))
    pen.text((MARGIN, 41), fitted(line, width - 2 * MARGIN, 13), fill=GRAY, font=font(13))
    return page, pen


def drawable(text: str) -> str:
    """Write a text in a line of what the font has, "ü" as "u"; a name of a file may hold anything, bytes too."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in plain)


def fitted(text: str, width: float, size: int) -> str:
    """Cut a text off, as ``drawable`` gives it, where it would be wider than ``width`` px."""
    text = drawable(text)
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def within(size: tuple[int, int], box: tuple[int, int]) -> tuple[int, int]:
    """Return the largest (width, height) of a photograph's shape that fits into a box."""
    scale = min(box[0] / size[0], box[1] / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def small(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return a photograph at another size, for looking."""
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def jpeg_uri(image: Image.Image, quality: int = 80) -> str:
    """Return a photograph as a data: address for a page."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def dashed(pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], color: Color, width: int, dash: int = 9) -> None:
    """Draw a dashed rectangle."""
    x1, y1, x2, y2 = box
    for start in range(x1, x2 + 1, 2 * dash):
        end = min(start + dash - 1, x2)
        pen.rectangle((start, y1, end, y1 + width - 1), fill=color)
        pen.rectangle((start, y2 - width + 1, end, y2), fill=color)
    for start in range(y1, y2 + 1, 2 * dash):
        end = min(start + dash - 1, y2)
        pen.rectangle((x1, start, x1 + width - 1, end), fill=color)
        pen.rectangle((x2 - width + 1, start, x2, end), fill=color)


def ring(pen: ImageDraw.ImageDraw, at: tuple[float, float], radius: float, color: Color) -> None:
    """Draw a ring with a dark and a light rim, seen on any ground."""
    for grown, ink, width in ((2, INK, 6), (1, PAPER, 4), (0, color, 2)):
        r = radius + grown
        pen.ellipse((at[0] - r, at[1] - r, at[0] + r, at[1] + r), outline=ink, width=width)
