"""The sheet of the pretext task: photographs with their patches, what was said of each, and the confusion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from context_pred.patches.layout import OFFSETS, POSITIONS
from context_pred.pictures import COLORS, FAINT, INK, PAPER, font
from context_pred.pretext import PretextResult

from .pretext import Box, Drawn, Guess, mistakes
from .sheets import GRAY, HEADING, MARGIN, SPACE, Color, dashed, fitted, sheet, small, within

RIGHT, WRONG, CENTER = (0, 122, 88), COLORS[1], COLORS[0]
"""Right is a solid frame with a tick, wrong a dashed one with a cross; the colours only add to that."""

PHOTO, CELL, CAPTION, LIST = 400, 96, 34, 250
"""px: the photograph's largest side, a patch's, the two lines under it, the width of the list of mistakes."""

PANEL = 3 * (CELL + 2 * SPACE)
BLOCK = 3 * (CELL + CAPTION + 6)
TABLE = 46  # px of a cell of the confusion


def sheet_of(drawn: Sequence[Drawn], result: PretextResult, line: str) -> Image.Image:
    """Draw the sheet: a block a photograph, then the confusion of all pairs."""
    photographs = [within(one.image.size, (PHOTO, BLOCK - CAPTION)) for one in drawn]
    width = 4 * MARGIN + PHOTO + PANEL + LIST
    tall = BLOCK + 3 * SPACE
    height = HEADING + 28 + len(drawn) * tall + 9 * TABLE + 70 + MARGIN
    page, pen = sheet(width, height, "What the pretext task saw", line)
    _legend(pen, (MARGIN, HEADING))
    y = HEADING + 34
    for one, size in zip(drawn, photographs, strict=True):
        pen.line((MARGIN, y - SPACE, width - MARGIN, y - SPACE), fill=FAINT)
        page.paste(_boxed(one, size), (MARGIN, y))
        pen.text((MARGIN, y + size[1] + 5), fitted(Path(one.path).stem, PHOTO, 13), fill=GRAY, font=font(13))
        page.paste(_panel(one), (2 * MARGIN + PHOTO, y))
        _mistakes(pen, (3 * MARGIN + PHOTO + PANEL, y), one.guesses)
        y += tall
    _confusion(pen, (MARGIN, y), result, width)
    return page


def _legend(pen: ImageDraw.ImageDraw, at: tuple[int, int]) -> None:
    x, y = at
    pen.rectangle((x, y, x + 17, y + 17), outline=CENTER, width=4)
    pen.text((x + 26, y + 1), "the centre", fill=INK, font=font(14))
    pen.rectangle((x + 130, y, x + 147, y + 17), outline=RIGHT, width=3)
    _tick(pen, (x + 156, y + 2), 13, RIGHT)
    pen.text((x + 176, y + 1), "position told", fill=INK, font=font(14))
    dashed(pen, (x + 300, y, x + 317, y + 17), WRONG, 3, 4)
    _cross(pen, (x + 326, y + 2), 13, WRONG)
    pen.text(
        (x + 346, y + 1), "mistaken; the arrow points where the model thinks the patch lies", fill=INK, font=font(14)
    )


def _boxed(one: Drawn, size: tuple[int, int]) -> Image.Image:
    """Draw the photograph with its patches in place."""
    picture = small(one.image, size)
    pen = ImageDraw.Draw(picture)
    scale = (size[0] / one.size[0], size[1] / one.size[1])
    for guess in one.guesses:
        box = _scaled(guess.box, scale)
        pen.rectangle(box, outline=PAPER, width=5)
        _frame(pen, box, guess)
        _mark(pen, (box[0] + 5, box[1] + 5), guess.right, 13)
    box = _scaled(one.center, scale)
    pen.rectangle(box, outline=PAPER, width=6)
    pen.rectangle((box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1), outline=CENTER, width=4)
    return picture


def _scaled(box: Box, scale: tuple[float, float]) -> Box:
    x1, y1, x2, y2 = box
    return round(x1 * scale[0]), round(y1 * scale[1]), round(x2 * scale[0]) - 1, round(y2 * scale[1]) - 1


def _frame(pen: ImageDraw.ImageDraw, box: Box, guess: Guess) -> None:
    inner = (box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1)
    if guess.right:
        pen.rectangle(inner, outline=RIGHT, width=3)
    else:
        dashed(pen, inner, WRONG, 3, 6)


def _panel(one: Drawn) -> Image.Image:
    """Draw the patches as the network saw them, the neighbours around the centre, with what was said."""
    panel = Image.new("RGB", (PANEL, BLOCK), PAPER)
    pen = ImageDraw.Draw(panel)
    cells: dict[int, Guess] = {guess.position: guess for guess in one.guesses}
    x, y = _cell(1, 1)
    panel.paste(one.patch.resize((CELL, CELL), Image.Resampling.BICUBIC), (x, y))
    pen.rectangle((x, y, x + CELL - 1, y + CELL - 1), outline=CENTER, width=4)
    pen.text((x + CELL / 2, y + CELL + 3), "centre", fill=CENTER, font=font(13), anchor="ma")
    for position, (down, right) in enumerate(OFFSETS):
        x, y = _cell(right + 1, down + 1)
        frame = (x, y, x + CELL - 1, y + CELL - 1)
        guess = cells.get(position)
        if guess is None:
            pen.rectangle(frame, outline=FAINT)
            continue
        panel.paste(guess.patch.resize((CELL, CELL), Image.Resampling.BICUBIC), (x, y))
        pen.rectangle(frame, outline=PAPER, width=5)
        _frame(pen, frame, guess)
        _mark(pen, (x + 5, y + 5), guess.right, 15)
        if not guess.right:
            _arrow(pen, (x + CELL / 2, y + CELL / 2), OFFSETS[guess.predicted], CELL / 3)
        middle = x + CELL / 2
        color = RIGHT if guess.right else WRONG
        pen.text((middle, y + CELL + 2), POSITIONS[position], fill=INK, font=font(13), anchor="ma")
        said = (
            f"{guess.probability:.0%}" if guess.right else f"said {POSITIONS[guess.predicted]} {guess.probability:.0%}"
        )
        pen.text((middle, y + CELL + 17), fitted(said, CELL + 2 * SPACE, 12), fill=color, font=font(12), anchor="ma")
    return panel


def _cell(column: int, row: int) -> tuple[int, int]:
    return column * (CELL + 2 * SPACE) + SPACE, row * (CELL + CAPTION + 6)


def _mark(pen: ImageDraw.ImageDraw, at: tuple[int, int], right: bool, side: int) -> None:
    """Draw a tick or a cross on a white ground."""
    pen.rectangle((at[0] - 1, at[1] - 1, at[0] + side + 1, at[1] + side + 1), fill=PAPER)
    (_tick if right else _cross)(pen, at, side, RIGHT if right else WRONG)


def _tick(pen: ImageDraw.ImageDraw, at: tuple[int, int], side: int, color: Color) -> None:
    x, y = at
    points = [(x + 0.1 * side, y + 0.55 * side), (x + 0.4 * side, y + 0.85 * side), (x + 0.92 * side, y + 0.15 * side)]
    pen.line(points, fill=color, width=3, joint="curve")


def _cross(pen: ImageDraw.ImageDraw, at: tuple[int, int], side: int, color: Color) -> None:
    x, y = at
    near, far = 0.15 * side, 0.85 * side
    pen.line((x + near, y + near, x + far, y + far), fill=color, width=3)
    pen.line((x + near, y + far, x + far, y + near), fill=color, width=3)


def _arrow(pen: ImageDraw.ImageDraw, at: tuple[float, float], offset: tuple[int, int], length: float) -> None:
    """Draw an arrow through a place, towards (rows down, columns right)."""
    down, right = offset
    norm = (down * down + right * right) ** 0.5
    dx, dy = right / norm, down / norm
    tip = (at[0] + dx * length, at[1] + dy * length)
    tail = (at[0] - dx * length * 0.8, at[1] - dy * length * 0.8)
    for color, width, head in ((PAPER, 9, 19.0), (WRONG, 4, 13.0)):
        neck = (tip[0] - dx * head, tip[1] - dy * head)
        pen.line((*tail, *neck), fill=color, width=width)
        reach = 4 if color == PAPER else 0
        pen.polygon(
            [
                (tip[0] + dx * reach, tip[1] + dy * reach),
                (neck[0] - dy * head * 0.6, neck[1] + dx * head * 0.6),
                (neck[0] + dy * head * 0.6, neck[1] - dx * head * 0.6),
            ],
            fill=color,
        )


def _mistakes(pen: ImageDraw.ImageDraw, at: tuple[int, int], guesses: Sequence[Guess]) -> None:
    x, y = at
    right = sum(guess.right for guess in guesses)
    pen.text((x, y), f"{right} of {len(guesses)} told", fill=INK, font=font(17))
    y += 30
    for text in mistakes(guesses):
        said, _, shares = text.partition(" (")
        _cross(pen, (x, y + 2), 12, WRONG)
        pen.text((x + 20, y), fitted(said, LIST - 20, 13), fill=INK, font=font(13))
        pen.text((x + 20, y + 16), f"({shares}", fill=GRAY, font=font(12))
        y += 40


def _confusion(pen: ImageDraw.ImageDraw, at: tuple[int, int], result: PretextResult, width: int) -> None:
    """Draw the table of all pairs: a row a true position, a column a predicted one."""
    x, y = at
    pen.line((x, y - SPACE, width - MARGIN, y - SPACE), fill=FAINT)
    text = f"{result} told, 95% interval over whole images; chance is 12.5%"
    pen.text((x, y), "Every pair drawn in these photographs", fill=INK, font=font(17))
    pen.text((x, y + 24), fitted(text, width - 2 * MARGIN, 13), fill=GRAY, font=font(13))
    y += 54
    left = x + 110
    pen.text((x, y + 14), "truth / said", fill=GRAY, font=font(12))
    most = max(max(row) for row in result.confusion)
    for k, name in enumerate(POSITIONS):
        side, _, end = name.partition("-")
        middle = left + (k + 0.5) * TABLE
        pen.text((middle, y + 4), side, fill=INK, font=font(12), anchor="ma")
        pen.text((middle, y + 19), end, fill=INK, font=font(12), anchor="ma")
        pen.text((left - 10, y + (k + 1.5) * TABLE), name, fill=INK, font=font(13), anchor="rm")
        for j, number in enumerate(result.confusion[k]):
            _number(pen, (left + j * TABLE, y + (k + 1) * TABLE), number, number / most if most else 0.0, j == k)
    accuracy = left + 8 * TABLE + 3 * SPACE
    pen.text((accuracy, y + 14), "told", fill=INK, font=font(12))
    for k, share in enumerate(result.by_position):
        told = f"{share:.0%}" if share == share else "none"
        pen.text((accuracy, y + (k + 1.5) * TABLE), told, fill=INK, font=font(13), anchor="lm")


def _number(pen: ImageDraw.ImageDraw, at: tuple[int, int], number: int, share: float, right: bool) -> None:
    x, y = at
    color = tuple(round(255 + (part - 255) * share) for part in COLORS[0])
    pen.rectangle(
        (x, y, x + TABLE - 2, y + TABLE - 2), fill=color, outline=INK if right else FAINT, width=2 if right else 1
    )
    ink = PAPER if share > 0.55 else INK
    pen.text((x + TABLE / 2 - 1, y + TABLE / 2 - 1), str(number), fill=ink, font=font(14), anchor="mm")
