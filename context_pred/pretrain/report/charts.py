"""Inline SVG for the report: curves over steps, and 3×3 pictures of the eight positions. Colours are the page's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from context_pred.markup import Markup, element, percent
from context_pred.patches.layout import OFFSETS

WIDTH, HEIGHT = 560, 290
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 62, 46
"""Sides of a chart and its margins, in px."""

MOST_POINTS = 500
"""A longer curve is drawn as the means of stretches."""


@dataclass(frozen=True)
class Series:
    """What a chart shows one of: a curve, or single points with their intervals.

    ``points`` are (x, y); ``intervals`` (low, high) of each, or none; ``labels`` what a pointer over each is told.
    ``color`` is "a" or "b".
    """

    label: str
    points: Sequence[tuple[float, float]]
    color: str = "a"
    dots: bool = False
    intervals: Sequence[tuple[float, float]] = field(default_factory=tuple)
    labels: Sequence[str] = field(default_factory=tuple)


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    show: Callable[[float], str],
    x_label: str = "step",
    mark: tuple[float, str] | None = None,
    from_zero: bool = False,
) -> Markup | None:
    """Draw curves over steps.

    Args:
        title: What is shown, with its unit.
        series: At least one point in all, else there is no chart.
        show: Writes a value at the axis.
        x_label: What runs to the right.
        mark: A value to mark by a dashed line, and its name.
        from_zero: The axis begins at 0.
    """
    series = [_thinned(one) for one in series if one.points]
    if not series:
        return None
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points]
    ys += [y for one in series for ends in one.intervals for y in ends]
    ys += [mark[0]] if mark else []
    ys += [0.0] if from_zero else []
    y_ticks = ticks(min(ys), max(ys))
    x_ticks = [x for x in ticks(0, max(xs), 6) if x <= max(xs) * 1.0001] if max(xs) > 0 else [0.0]
    right, low, high = max(*xs, x_ticks[-1], 1e-9), y_ticks[0], y_ticks[-1]

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + x / right * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM),
        )

    return element(
        "svg",
        element("title", title),
        element("text", title, x=4, y=18, class_="title"),
        _legend(series, mark),
        [_y_tick(at(0, y)[1], show(y)) for y in y_ticks],
        [_x_tick(at(x, low)[0], f"{x:,.0f}" if x == round(x) else f"{x:g}") for x in x_ticks],
        element("text", x_label, x=WIDTH - RIGHT, y=HEIGHT - 8, text_anchor="end"),
        _straight(at(0, mark[0]), at(right, mark[0]), "mark") if mark else None,
        [_dots(one, at) if one.dots else _curve(one, at) for one in series],
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
    )


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round values, evenly spaced, the first at or below ``low`` and the last at or above ``high``."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = 2 - math.floor(math.log10(step))
    return [round(k * step, digits) for k in range(first, last + 1)]


def position_grid(
    cells: Sequence[tuple[str, float | None, str]], *, title: str, frames: Sequence[int] = (), side: int = 108
) -> Markup:
    """Draw the eight positions where they lie around the centre, shaded by a value.

    Args:
        cells: For each position in raster order: its big text, the shade 0…1 or None for none, and the small text.
        title: What a pointer over it is told.
        frames: Positions to frame.
        side: Width and height in px.
    """
    step = side / 3

    def text(what: str, x: float, y: float, size: float, class_: str | None = None) -> Markup:
        return element("text", what, x=x, y=y, text_anchor="middle", class_=class_, style=f"font-size:{size:.1f}px")

    pieces = []
    for k, (big, shade, small) in enumerate(cells):
        y, x = ((offset + 1) * step for offset in OFFSETS[k])
        box = {"x": x + 1, "y": y + 1, "width": step - 2, "height": step - 2, "rx": 2}
        pieces.append(element("rect", **box, class_="cell", fill_opacity=max(0.0, min(shade or 0.0, 1.0))))
        pieces.append(element("rect", **box, class_="truth" if k in frames else "frame"))
        x, y, size = x + step / 2, y + step / 2, step * (0.2 if small else 0.31)
        pieces.append(text(big, x, y + (0 if small else 0.36 * size), size, "strong"))
        if small:
            pieces.append(text(small, x, y + 0.22 * step, 0.11 * step, "strong"))
    pieces.append(text("centre", side / 2, side / 2 + 0.07 * step, step * (0.2 if side < 200 else 0.12)))
    return element("svg", element("title", title), pieces, viewBox=f"0 0 {side} {side}", role="img")


def _thinned(series: Series) -> Series:
    """Average a long curve over equal stretches."""
    if series.dots or len(series.points) <= MOST_POINTS:
        return series
    size = -(-len(series.points) // MOST_POINTS)
    stretches = [series.points[k : k + size] for k in range(0, len(series.points), size)]
    means = [(sum(x for x, _ in s) / len(s), sum(y for _, y in s) / len(s)) for s in stretches]
    return Series(series.label, means, series.color)


def _legend(series: Sequence[Series], mark: tuple[float, str] | None) -> list[Markup]:
    pieces, x = [], 6.0
    names = [(one.label, one.color, one.dots) for one in series] + ([(mark[1], "", False)] if mark else [])
    for label, color, dots in names:
        if dots:
            pieces.append(element("circle", cx=x + 9, cy=38, r=3.5, class_=f"dot {color}"))
        else:
            pieces.append(_straight((x, 38), (x + 18, 38), f"line {color}" if color else "mark"))
        pieces.append(element("text", label, x=x + 24, y=42))
        x += 24 + 6.3 * len(label) + 20
    return pieces


def _straight(start: tuple[float, float], end: tuple[float, float], class_: str) -> Markup:
    return element("line", x1=start[0], y1=start[1], x2=end[0], y2=end[1], class_=class_)


def _y_tick(y: float, text: str) -> list[Markup]:
    return [
        _straight((LEFT, y), (WIDTH - RIGHT, y), "grid"),
        element("text", text, x=LEFT - 8, y=y + 4, text_anchor="end"),
    ]


def _x_tick(x: float, text: str) -> list[Markup]:
    foot = HEIGHT - BOTTOM
    return [
        _straight((x, foot), (x, foot + 5), "axis"),
        element("text", text, x=x, y=foot + 19, text_anchor="middle"),
    ]


Place = Callable[[float, float], tuple[float, float]]


def _curve(series: Series, at: Place) -> Markup:
    places = [at(x, y) for x, y in series.points]
    if len(places) == 1:
        return element("circle", cx=places[0][0], cy=places[0][1], r=3, class_=f"dot {series.color}")
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return element("polyline", points=points, class_=f"line {series.color}")


def _dots(series: Series, at: Place) -> list[Markup]:
    pieces = []
    for k, (x, y) in enumerate(series.points):
        if k < len(series.intervals):
            low, high = series.intervals[k]
            pieces.append(_straight(at(x, low), at(x, high), f"bar {series.color}"))
        left, top = at(x, y)
        label = series.labels[k] if k < len(series.labels) else percent(y)
        pieces.append(element("circle", element("title", label), cx=left, cy=top, r=3.5, class_=f"dot {series.color}"))
    return pieces
