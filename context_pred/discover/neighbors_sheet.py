"""What ``neighbors`` draws: tiles of photographs and patches, the contact sheet, and the page."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from PIL import Image, ImageDraw, ImageOps

from context_pred.data.images import open_image
from context_pred.errors import ImageError
from context_pred.markup import Markup, element, joined, page
from context_pred.pictures import COLORS, FAINT, INK, PAPER, font

from .index import Match
from .pictures.photographs import count
from .pictures.sheets import fitted, jpeg_uri

if TYPE_CHECKING:
    from .neighbors import Neighbors

TILE, SPACE, MARGIN, CAPTION = 160, 10, 24, 30
"""Sides in px: a photograph, the space between two, the rim, the line under a photograph."""

GREY, HEADING = (110, 110, 110), 64

Color = tuple[int, int, int]


def tile(match: Match, side: int, color: Color) -> Image.Image:
    """Draw a photograph's middle square; or the whole photograph with the box of a patch and the patch enlarged.

    Of a photograph that cannot be opened any more, draw a grey square that says so.
    """
    try:
        photo = open_image(match.path)
    except ImageError:
        gone = Image.new("RGB", (side, side), FAINT)
        ImageDraw.Draw(gone).text((side / 2, side / 2), "cannot be opened", GREY, font(13), anchor="mm")
        return gone
    if match.box is None:
        return ImageOps.fit(photo, (side, side), Image.Resampling.LANCZOS)
    scale = side / max(photo.size)
    small = photo.resize([max(1, round(v * scale)) for v in photo.size], Image.Resampling.LANCZOS)
    square = Image.new("RGB", (side, side), (244, 244, 244))
    left, top = (side - small.width) // 2, (side - small.height) // 2
    square.paste(small, (left, top))
    pen = ImageDraw.Draw(square)
    line = max(1, round(side / TILE * 2))
    x1, y1, x2, y2 = (round(v * scale) for v in match.box)
    _frame(pen, (left + x1, top + y1, left + x2, top + y2), color, line)
    inset = round(0.4 * side)
    patch = photo.resize((inset, inset), Image.Resampling.BICUBIC, match.box)
    # In the corner farthest from the box, so that it hides the rest of the photograph instead.
    x = line if x1 + x2 > small.width else side - inset - line
    y = line if y1 + y2 > small.height else side - inset - line
    square.paste(patch, (x, y))
    _frame(pen, (x, y, x + inset, y + inset), color, line)
    return square


def _frame(pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], color: Color, line: int) -> None:
    """Draw a frame just outside a box, white around the colour, so that it is seen on any ground."""
    x1, y1, x2, y2 = box
    pen.rectangle((x1 - line - 1, y1 - line - 1, x2 + line, y2 + line), outline=PAPER, width=line + 2)
    pen.rectangle((x1 - line, y1 - line, x2 + line - 1, y2 + line - 1), outline=color, width=line)


def sheet(result: Neighbors, most: int) -> Image.Image:
    """Draw a row a query: the query framed, then its neighbours, at most so many, with their scores."""
    columns = min(most, max(map(len, result.matches)))
    step, left = TILE + SPACE, MARGIN + TILE + 3 * SPACE
    size = (left + columns * step - SPACE + MARGIN, HEADING + result.shown * (TILE + CAPTION) + MARGIN)
    picture = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(picture)
    pen.text((MARGIN, 12), fitted(title(result), size[0] - 2 * MARGIN, 18), fill=INK, font=font(18))
    line = f"{result.what}; score: normalised correlation"
    pen.text((MARGIN, 34), fitted(line, size[0] - 2 * MARGIN, 13), fill=GREY, font=font(13))
    draw = lru_cache(maxsize=512)(lambda path, box, color: tile(Match(path, box, 0), TILE, color))
    for i, query in enumerate(result.asked[: result.shown]):
        y = HEADING + i * (TILE + CAPTION)
        picture.paste(draw(query.path, query.box, COLORS[0]), (MARGIN, y))
        pen.rectangle((MARGIN - 4, y - 4, MARGIN + TILE + 3, y + TILE + 3), outline=COLORS[0], width=4)
        _caption(pen, (MARGIN, y), "query", query.path, COLORS[0])
        pen.line((left - 1.5 * SPACE, y, left - 1.5 * SPACE, y + TILE), fill=FAINT, width=1)
        for j, match in enumerate(result.matches[i][:columns]):
            picture.paste(draw(match.path, match.box, COLORS[1]), (left + j * step, y))
            _caption(pen, (left + j * step, y), f"{match.score:.3f}", match.path, INK)
    return picture


def title(result: Neighbors) -> str:
    """Say in a line what the picture shows."""
    among = str(result.candidates)
    what = "photographs"
    if result.asked[0].box is not None:
        what, among = "patches", f"those of {count(result.candidates, 'photograph')}"
    if result.shown < len(result.asked):
        return f"Nearest neighbours of the first {result.shown} of {len(result.asked)} queries"
    return f"Nearest neighbours of {result.shown} {what} among {among}"


def _caption(pen: ImageDraw.ImageDraw, at: tuple[int, int], text: str, path: str, color: Color) -> None:
    pen.text((at[0], at[1] + TILE + 4), text, fill=color, font=font(13))
    used = pen.textlength(text + "  ", font=font(13))
    name = fitted(Path(path).stem, TILE - used, 12)
    pen.text((at[0] + used, at[1] + TILE + 5), name, fill=GREY, font=font(12))


def page_of(result: Neighbors, most: int) -> str:
    """Write the page: a section a query, a link to the file at every photograph; one file, no script."""

    @lru_cache(maxsize=512)
    def uri(path: str, box: tuple[float, float, float, float] | None, color: Color) -> str:
        return jpeg_uri(tile(Match(path, box, 0), 2 * TILE, color))

    sections = []
    for number, (query, matches) in enumerate(
        zip(result.asked[: result.shown], result.matches[: result.shown], strict=True), 1
    ):
        figures = [_figure(query, "query", f"Query {number}", uri, COLORS[0], result.page)]
        figures += [
            _figure(match, f"{match.score:.3f}", f"Neighbour {rank} of query {number}", uri, COLORS[1], result.page)
            for rank, match in enumerate(matches[:most], 1)
        ]
        heading = element("h2", f"{number}. {Path(query.path).name}", id=f"query-{number}")
        sections.append(element("section", heading, element("div", figures, class_="row")))
    body = joined(
        element("h1", title(result)),
        element("p", f"{result.what}. The number under a picture is the normalised correlation of its features with "
                "the query's, 1 at most. A picture leads to its file.", class_="soft"),
        element("p", "The whole list: ", element("a", result.json.name, href=result.json.name), ".", class_="soft"),
        element("main", sections),
    )  # fmt: skip
    return page(title(result), body, STYLE)


def _figure(match: Match, score: str, what: str, uri: Callable[..., str], color: Color, beside: Path) -> Markup:
    name = Path(match.path).name
    where = "" if match.box is None else f", the patch at {', '.join(f'{v:.0f}' for v in match.box)} px"
    image = element("img", src=uri(match.path, match.box, color), alt=f"{what}: {name}{where}", width=TILE, height=TILE)
    link = element("a", image, href=_address(match.path, beside))
    return element("figure", link, element("figcaption", element("b", score), " ", name), class_="tile-of")


def _address(path: str, beside: Path) -> str:
    """Address of a file as seen from the page's folder; absolute where there is no way (another drive)."""
    try:
        found = os.path.relpath(path, beside.parent)
    except ValueError:
        found = os.path.abspath(path)
    return quote(os.fsencode(found.replace(os.sep, "/")))


STYLE = """
h2 { overflow-wrap:anywhere; }
.row { display:grid; grid-template-columns:repeat(auto-fill,minmax(136px,1fr)); gap:.75rem; }
.tile-of { margin:0; } .tile-of img { display:block; border-radius:4px; width:100%; height:auto; }
.tile-of:first-child img { outline:4px solid var(--a); }
.tile-of a:focus-visible { outline:3px solid var(--b); outline-offset:3px; display:block; border-radius:4px; }
.tile-of figcaption { font-size:.82rem; overflow-wrap:anywhere; margin:.45rem 0 0; }
"""
