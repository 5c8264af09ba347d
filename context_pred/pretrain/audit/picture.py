"""The audit's picture: a row a treatment with example patches as the network sees them, and its figure as a bar."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw
from torch import Tensor

from context_pred.patches.layout import OFFSETS
from context_pred.pictures import COLORS, FAINT, INK, PAPER, font
from context_pred.pretext import CHANCE

from .pairs import EXAMPLES, Treatment
from .places import Distance, Places

MARGIN, LABEL, TILE, ROW, BARS, VALUE = 24, 250, 36, 92, 460, 150
"""px: the rim, the labels' width, a patch's side, a row's height, the bars' width, the figures' width."""

GRAY = (110, 110, 110)
SPACE = 18


def sheet(
    text: str,
    treatments: Sequence[Treatment],
    places: Sequence[Places],
    pair_examples: dict[str, list[tuple[Tensor, Tensor, int]]],
    patch_examples: dict[str, list[Tensor]],
) -> Image.Image:
    """Draw the picture.

    Args:
        text: What the audit says: a first line, then findings a line, then the files.
        treatments: The rows above.
        places: The rows below.
        pair_examples: {treatment: [(center, neighbor, position)]}, uint8 (3 or 1, p, p).
        patch_examples: {treatment of places: [patch]}.
    """
    head, *lines = text.splitlines()[:-1]
    strip = EXAMPLES * (2 * TILE + SPACE) + TILE
    width = 2 * MARGIN + LABEL + strip + BARS + VALUE
    wrapped = [part for line in lines for part in _wrapped(line, width - 2 * MARGIN)]
    height = 2 * MARGIN + 40 + ROW * (len(treatments) + len(places)) + 2 * 40 + 19 * len(wrapped) + 20
    page = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, MARGIN), head, fill=INK, font=font(18))
    left = MARGIN + LABEL + strip
    top = MARGIN + 40
    most = max(0.3, *(treatment.result.high for treatment in treatments))
    _heading(pen, top, left, "Pretext accuracy, with its 95 % interval over whole images", CHANCE / most, "chance")
    top += 40
    for treatment in treatments:
        result = treatment.result
        _label(pen, top, treatment.title, f"against {_title(treatments, treatment.against)}")
        _pairs(page, (MARGIN + LABEL, top), pair_examples.get(treatment.name, []))
        bar = (0.0, result.accuracy, result.low, result.high)
        _bar(pen, top, left, [v / most for v in bar], CHANCE / most, COLORS[0])
        change = "" if treatment.change is None else f"{100 * treatment.change:+.1f} points"
        _value(pen, top, left, f"{result.accuracy:.1%}", change)
        top += ROW
    _heading(pen, top, left, "Place of a patch from its features: RMSE below chance", None, "")
    top += 40
    most = max(0.3, *(axis.high for each in places for axis in (each.both, each.x)))
    for each in places:
        _label(pen, top, each.title, "both axes; left to right alone")
        for i, patch in enumerate(patch_examples.get(each.name, [])):
            page.paste(_tile(patch), (MARGIN + LABEL + i * (TILE + 6), top + (ROW - TILE) // 2))
        for k, axis in enumerate((each.both, each.x)):
            bar = (0.0, axis.below, axis.low, axis.high)
            _bar(pen, top, left, [max(v, 0) / most for v in bar], None, COLORS[1 + k], (k, 2))
        _value(pen, top, left, f"{_below(each.both)}, {_below(each.x)}", f"RMSE {each.both.rmse:.3f}")
        top += ROW
    top += 20
    for line in wrapped:
        pen.text((MARGIN, top), line, fill=COLORS[1] if line.startswith("!") else INK, font=font(13))
        top += 19
    return page


def _below(distance: Distance) -> str:
    return f"{distance.below:.1%}" if distance.below >= 0.0005 else "chance"


def _title(treatments: Sequence[Treatment], name: str | None) -> str:
    return next((treatment.title for treatment in treatments if treatment.name == name), "")


def _wrapped(line: str, width: int) -> list[str]:
    mark = "! " if line.startswith("! ") else "  "
    return textwrap.wrap(line[2:], int(width / 6.6), initial_indent=mark, subsequent_indent=mark)


def _heading(pen: ImageDraw.ImageDraw, top: int, left: int, text: str, chance: float | None, word: str) -> None:
    pen.text((MARGIN, top + 10), text, fill=INK, font=font(15))
    if chance is not None:
        pen.text((left + chance * BARS - 18, top + 22), word, fill=GRAY, font=font(11))


def _label(pen: ImageDraw.ImageDraw, top: int, title: str, below: str) -> None:
    pen.line((MARGIN, top, MARGIN + LABEL - 20, top), fill=FAINT)
    pen.text((MARGIN, top + ROW // 2 - 20), title, fill=INK, font=font(14))
    if not below.endswith("against "):
        pen.text((MARGIN, top + ROW // 2 + 2), below, fill=GRAY, font=font(11))


def _pairs(page: Image.Image, at: tuple[int, int], examples: Sequence[tuple[Tensor, Tensor, int]]) -> None:
    """Draw each pair as it lies: the center, and the neighbor in its direction."""
    for i, (center, neighbor, position) in enumerate(examples):
        down, right = OFFSETS[position]
        x = at[0] + i * (2 * TILE + SPACE) + TILE // 2
        y = at[1] + (ROW - TILE) // 2
        step = TILE // 2 + 2
        for tile, sign in ((center, -1), (neighbor, 1)):
            page.paste(_tile(tile), (x + sign * right * step + step - 2, y + sign * down * step))


def _tile(patch: Tensor) -> Image.Image:
    pixels = patch.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels).resize((TILE, TILE), Image.Resampling.LANCZOS)


def _bar(
    pen: ImageDraw.ImageDraw,
    top: int,
    left: int,
    shares: Sequence[float],
    chance: float | None,
    color: tuple[int, int, int],
    part: tuple[int, int] = (0, 1),
) -> None:
    """Draw from, to, low, high as shares of the width; ``part`` is (which, of how many) bars of the row."""
    start, end, low, high = (left + share * BARS for share in shares)
    which, count = part
    tall = 26 // count
    y = top + ROW // 2 - 13 + which * tall
    pen.rectangle((start, y, max(end, start + 1), y + tall - 2), fill=color)
    middle = y + tall // 2 - 1
    pen.line((low, middle, high, middle), fill=INK, width=2)
    for x in (low, high):
        pen.line((x, middle - 4, x, middle + 4), fill=INK, width=2)
    if chance is not None:
        pen.line((left + chance * BARS, top, left + chance * BARS, top + ROW), fill=GRAY)


def _value(pen: ImageDraw.ImageDraw, top: int, left: int, text: str, below: str) -> None:
    pen.text((left + BARS + 14, top + ROW // 2 - 20), text, fill=INK, font=font(15))
    pen.text((left + BARS + 14, top + ROW // 2 + 2), below, fill=GRAY, font=font(12))
