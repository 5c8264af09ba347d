"""The sheet of a similarity map: the query with its point, and the others, the most alike first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from context_pred.pictures import COLORS, INK, font

from .colors import WARM
from .sheets import GRAY, HEADING, MARGIN, SPACE, fitted, ring, sheet, small, within
from .similarity import Asked, heat, scale_of

QUERY, TILE, CAPTION = 360, 210, 24
"""px: the query's largest side, another photograph's, the line under it."""

COLUMNS = 4


def sheet_of(asked: Asked, maps: Sequence[NDArray[np.float32]], order: Sequence[int]) -> Image.Image:
    """Draw the sheet.

    Args:
        asked: The query and the others.
        maps: The others' maps.
        order: Their numbers, the most alike first.
    """
    high = scale_of(maps)
    columns = min(COLUMNS, len(order))
    images = asked.photographs.images
    sizes = [within(images[k].size, (TILE, TILE)) for k in order]
    rows = [range(start, min(start + columns, len(order))) for start in range(0, len(order), columns)]
    tall = [2 * max(sizes[i][1] for i in row) + 4 + CAPTION + SPACE for row in rows]
    query = within(asked.image.size, (QUERY, QUERY))
    left = 2 * MARGIN + query[0]
    height = HEADING + 20 + max(sum(tall), 2 * query[1] + 2 * CAPTION + 60) + MARGIN
    width = left + columns * (TILE + SPACE) - SPACE + MARGIN
    page, pen = sheet(width, height, f"Where the like of a point in {Path(asked.name).stem} lies", asked.line)
    _query(page, pen, asked, query, high)
    y = HEADING
    for row, step in zip(rows, tall, strict=True):
        for i in row:
            at = (left + (i - row.start) * (TILE + SPACE), y)
            k = order[i]
            _other(page, pen, at, images[k], sizes[i], maps[k], high, asked.photographs.paths[k])
        y += step
    return page


def _query(page: Image.Image, pen: ImageDraw.ImageDraw, asked: Asked, size: tuple[int, int], high: float) -> None:
    at = (asked.point[0] * size[0] / asked.image.width, asked.point[1] * size[1] / asked.image.height)
    photograph = small(asked.image, size)
    own = heat(photograph, asked.compared.own(asked.point), high=high)
    y = HEADING
    for picture, text in ((photograph, "the point"), (own, "its like in the photograph itself")):
        ring(ImageDraw.Draw(picture), at, 13, COLORS[4])
        page.paste(picture, (MARGIN, y))
        pen.text((MARGIN, y + size[1] + 4), text, fill=INK, font=font(14))
        y += size[1] + CAPTION + 6
    bar = np.repeat(WARM[None].astype(np.uint8), 14, 0)
    page.paste(Image.fromarray(bar).resize((size[0], 14)), (MARGIN, y + 6))
    pen.text((MARGIN, y + 24), "0", fill=GRAY, font=font(13))
    pen.text((MARGIN + size[0], y + 24), f"{high:.2f} or more", fill=GRAY, font=font(13), anchor="ra")
    pen.text((MARGIN + size[0] / 2, y + 24), "similarity", fill=GRAY, font=font(13), anchor="ma")


def _other(
    page: Image.Image,
    pen: ImageDraw.ImageDraw,
    at: tuple[int, int],
    image: Image.Image,
    size: tuple[int, int],
    similarity: NDArray[np.float32],
    high: float,
    path: str,
) -> None:
    photograph = small(image, size)
    colored = heat(photograph, similarity, high=high)
    row, column = np.unravel_index(int(similarity.argmax()), similarity.shape)
    best = ((column + 0.5) * size[0] / similarity.shape[1], (row + 0.5) * size[1] / similarity.shape[0])
    page.paste(photograph, at)
    ring(ImageDraw.Draw(colored), best, 9, COLORS[5])
    page.paste(colored, (at[0], at[1] + size[1] + 4))
    below = at[1] + 2 * size[1] + 8
    value = f"{similarity.max():.2f}"
    pen.text((at[0], below), value, fill=INK, font=font(14))
    used = pen.textlength(value + "  ", font=font(14))
    pen.text((at[0] + used, below + 1), fitted(Path(path).stem, TILE - used, 12), fill=GRAY, font=font(12))
