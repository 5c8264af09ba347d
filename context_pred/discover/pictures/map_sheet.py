"""The map of a collection as one large picture."""

from __future__ import annotations

from collections import Counter

from PIL import Image, ImageDraw, ImageOps

from context_pred.pictures import COLORS, INK, PAPER, font

from .map import Collection
from .photographs import count
from .sheets import GRAY, HEADING, MARGIN, Color, fitted, sheet

LARGEST, SMALLEST, WIDEST = 150, 40, 4800
"""px: a cell's side at most and at least, and the map's width that the side is chosen for."""

OTHER = (150, 150, 150)
"""The frame of folders beyond the palette."""


def sheet_of(collection: Collection, line: str) -> Image.Image:
    """Draw the map: every photograph's middle square in its cell."""
    layout = collection.layout
    side = max(SMALLEST, min(LARGEST, WIDEST // layout.columns))
    tile = round(side * layout.share)
    width, height = layout.columns * side, layout.rows * side
    legend = 30 if collection.labels else 0
    page, pen = sheet(
        max(width, 420) + 2 * MARGIN,
        height + HEADING + legend + MARGIN,
        f"A map of {count(len(collection.placed), 'photograph')}",
        line,
    )
    colors = colors_of(collection.labels)
    if collection.labels:
        _legend(pen, collection, colors, page.width)
    for one in collection.placed:
        thumbnail = ImageOps.fit(one.image, (tile, tile), Image.Resampling.LANCZOS)
        if one.label:
            _framed(thumbnail, collection.labels.index(one.label), colors[one.label])
        elif not layout.grid:
            ImageDraw.Draw(thumbnail).rectangle((0, 0, tile - 1, tile - 1), outline=PAPER)
        page.paste(
            thumbnail,
            (
                MARGIN + round(one.x * width - tile / 2),
                HEADING + legend + round(one.y * height - tile / 2),
            ),
        )
    return page


def colors_of(labels: tuple[str, ...]) -> dict[str, Color]:
    """Return a colour a folder: the palette's for those with most photographs, grey for the others."""
    return {label: COLORS[k] if k < len(COLORS) else OTHER for k, label in enumerate(labels)}


def letter(number: int) -> str:
    """Return the letter that stands for a folder beside its colour; none for folders beyond the palette."""
    return "ABCDEF"[number] if number < len(COLORS) else ""


def _framed(thumbnail: Image.Image, number: int, color: Color) -> None:
    pen = ImageDraw.Draw(thumbnail)
    side = thumbnail.width
    pen.rectangle((0, 0, side - 1, side - 1), outline=color, width=max(2, side // 24))
    if letter(number) and side >= 36:
        size = max(10, side // 8)
        pen.rectangle((0, 0, size + 3, size + 4), fill=color)
        pen.text((size / 2 + 1, 2), letter(number), fill=PAPER, font=font(size), anchor="ma")


def _legend(pen: ImageDraw.ImageDraw, collection: Collection, colors: dict[str, Color], width: int) -> None:
    numbers = Counter(one.label for one in collection.placed)
    x = float(MARGIN)
    shown = collection.labels[: len(COLORS)]
    rest = len(collection.labels) - len(shown)
    for k, label in enumerate([*shown, *([f"{rest} other folders"] if rest else [])]):
        if x > width - 160:
            break
        pen.rectangle((x, HEADING, x + 18, HEADING + 18), fill=colors.get(label, OTHER))
        pen.text((x + 9, HEADING + 2), letter(k), fill=PAPER, font=font(13), anchor="ma")
        text = fitted(label, 170, 13)
        pen.text((x + 25, HEADING + 2), text, fill=INK, font=font(13))
        x += 25 + pen.textlength(text, font=font(13)) + 8
        if label in numbers:
            pen.text((x, HEADING + 3), str(numbers[label]), fill=GRAY, font=font(12))
            x += pen.textlength(str(numbers[label]), font=font(12))
        x += 24
