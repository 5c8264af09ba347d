"""The page's own pieces as HTML: a photograph with a point, a sheet of photographs, the game's board, a sentence.

Pictures lie in the HTML itself (data URIs), so the page shows nothing that the server would have to serve as a file.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from context_pred.errors import ImageError
from context_pred.patches import POSITIONS

from .guess import Question, Score, cell_of
from .uploads import Photo, open_photo

Box = tuple[float, float, float, float]

SHOWN_SIDE, TILE_SIDE = 900, 320
"""Longer sides in px of a photograph shown large, and of one in a sheet."""


@dataclass(frozen=True)
class Tile:
    """One photograph of a sheet.

    Attributes:
        source: Its data URI.
        ratio: Width over height.
        label: What it is called.
        note: What stands below, a score say.
        box: A frame within: x1, y1, x2, y2 as shares of width and height.
        mark: Whether this is the one the others are compared with.
    """

    source: str
    ratio: float
    label: str
    note: str = ""
    box: Box | None = None
    mark: bool = False


def encoded(image: Image.Image, side: int, *, quality: int = 88) -> str:
    """Return an image as a data URI, JPEG, reduced to ``side`` px where it is longer."""
    if max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def tile(image: Image.Image, label: str, **more: Any) -> Tile:
    """Make a tile of an image; ``more`` as ``Tile`` has it."""
    return Tile(encoded(image, TILE_SIDE), image.width / image.height, label, **more)


def tile_of(path: str, note: str = "", box: Sequence[float] | None = None) -> Tile:
    """Make the tile of a photograph of the collection; a grey one where it is no longer there.

    Args:
        path: The photograph.
        note: What stands below.
        box: A frame within: x1, y1, x2, y2 in px of the photograph.
    """
    try:
        source, width, height = _known(path)
    except ImageError:
        return tile(Image.new("RGB", (4, 3), (150, 150, 150)), Path(path).name, note="cannot be opened")
    share = None if box is None else (box[0] / width, box[1] / height, box[2] / width, box[3] / height)
    return Tile(source, width / height, Path(path).name, note, share)


@lru_cache(maxsize=2048)
def _known(path: str) -> tuple[str, int, int]:
    photo = open_photo(path)
    return encoded(photo.image, TILE_SIDE), *photo.size


def picture(
    photo: Photo | None, point: tuple[float, float] | None = None, *, hint: str = "", box: Box | None = None
) -> str:
    """Show a photograph in which a point can be chosen by mouse, finger or keyboard.

    Args:
        photo: The photograph; None: an empty frame with the hint.
        point: x and y as shares of width and height.
        hint: What to do.
        box: A frame within: x1, y1, x2, y2 as shares of width and height.
    """
    if photo is None:
        return f'<div class="cp-empty">{escape(hint)}</div>'
    x, y = point or (0.5, 0.5)
    shown = "" if point else " hidden"
    return (
        f'<div class="cp-picture" tabindex="0" role="application" data-x="{x:.4f}" data-y="{y:.4f}" '
        f'aria-label="{escape(photo.name)}. Arrow keys move the point, Enter chooses it.">'
        f'<img src="{encoded(photo.image, SHOWN_SIDE)}" alt="{escape(photo.name)}" draggable="false">'
        f'{_frame(box) if box else ""}<span class="cp-point" style="left:{x:.2%};top:{y:.2%}"{shown}></span></div>'
        f'<p class="cp-hint">{escape(hint)}</p>'
    )


def still(photo: Photo | None, *, hint: str = "", boxes: Sequence[tuple[Box, str]] = ()) -> str:
    """Show a photograph, with frames in it where boxes (shares of its sides, and a class) are given."""
    if photo is None:
        return f'<div class="cp-empty">{escape(hint)}</div>'
    frames = "".join(_frame(box, kind) for box, kind in boxes)
    note = f'<p class="cp-hint">{escape(hint)}</p>' if hint else ""
    return (
        f'<div class="cp-still"><img src="{encoded(photo.image, SHOWN_SIDE)}" alt="{escape(photo.name)}">{frames}</div>'
        f"{note}"
    )


def _frame(box: Box, kind: str = "") -> str:
    x1, y1, x2, y2 = box
    place = f"left:{x1:.2%};top:{y1:.2%};width:{x2 - x1:.2%};height:{y2 - y1:.2%}"
    return f'<span class="cp-frame {kind}" style="{place}"></span>'


def sheet(tiles: Sequence[Tile], *, choose: str = "", empty: str = "") -> str:
    """Lay photographs out in rows of equal height.

    Args:
        tiles: The photographs.
        choose: Where given, each is a button, named by this and its label ("Search on from", "Take").
        empty: What stands there instead where there are none.
    """
    if not tiles:
        return f'<div class="cp-empty">{escape(empty)}</div>' if empty else ""
    return f'<ul class="cp-sheet">{"".join(_tile(i, one, choose) for i, one in enumerate(tiles))}</ul>'


def _tile(i: int, one: Tile, choose: str) -> str:
    name, note = escape(one.label), f"<b>{escape(one.note)}</b>" if one.note else ""
    frame = _frame(one.box) if one.box else ""
    inside = f'<span class="cp-still"><img src="{one.source}" alt="{name}" loading="lazy">{frame}</span>'
    if choose:
        label = f'aria-label="{escape(choose)} {name}"'
        inside = f'<button type="button" data-choice="{i}" {label}>{inside}</button>'
    kind = "cp-tile cp-mark" if one.mark else "cp-tile"
    return (
        f'<li class="{kind}" style="--ratio:{min(max(one.ratio, 0.5), 2.4):.3f}">{inside}'
        f'<span class="cp-caption" title="{name}">{note}<span>{name}</span></span></li>'
    )


def sentence(text: str, *, wrong: bool = False) -> str:
    """Say something; what went wrong is announced to screen readers at once."""
    if not text:
        return ""
    kind, role = ("cp-sentence cp-wrong", "alert") if wrong else ("cp-sentence", "status")
    return f'<p class="{kind}" role="{role}">{escape(text)}</p>'


def board(question: Question | None, score: Score, guess: int | None = None, *, idle: str = "") -> str:
    """Draw the game: the neighbour, eight buttons around the centre, and once guessed the truth in its place.

    Args:
        question: The pair; None: there is none to ask about, and ``idle`` says why.
        score: So far, this question included once it is answered.
        guess: The person's answer; None: not given yet. Before, nothing in the HTML tells the truth.
        idle: The sentence where there is no question.
    """
    if question is None:
        return f'<div class="cp-empty">{escape(idle)}</div>'
    cells = {cell_of(k): _cell(question, k, guess) for k in range(len(POSITIONS))}
    center = encoded(question.center_patch, TILE_SIDE, quality=95)
    cells[1, 1] = f'<span class="cp-cell cp-center"><img src="{center}" alt="The centre patch"></span>'
    grid = "".join(cells[row, column] for row in range(3) for column in range(3))
    asked = encoded(question.neighbor_patch, TILE_SIDE, quality=95)
    following = '<button type="button" class="cp-next" data-next>Next pair</button>' if guess is not None else ""
    return (
        '<div class="cp-game"><div class="cp-asked">'
        f'<p>Where does this patch lie, seen from the one in the middle?</p><img src="{asked}" alt="The neighbour">'
        f'<div class="cp-answer" role="status">{_verdict(question, guess)}</div>{following}{_scores(score)}</div>'
        f'<div class="cp-board" role="group" aria-label="The eight positions around the centre">{grid}</div>'
        f"{_place(question) if guess is not None else ''}</div>"
    )


def _place(question: Question) -> str:
    """Show where in the photograph the two patches lie."""
    width, height = question.photograph.size
    boxes = [
        ((box[0] / width, box[1] / height, box[2] / width, box[3] / height), kind)
        for box, kind in ((question.center, ""), (question.neighbor, "cp-found"))
    ]
    photo = Photo(question.name, question.photograph, (width, height))
    return f'<div class="cp-place">{still(photo, hint=question.name, boxes=boxes)}</div>'


def _cell(question: Question, position: int, guess: int | None) -> str:
    name = POSITIONS[position]
    if guess is None:
        return f'<button type="button" class="cp-cell" data-cell="{position}" aria-label="{name}"></button>'
    share = question.probabilities[position]
    kinds, tags = ["cp-cell", "cp-said"], []
    inside = ""
    if position == question.position:
        kinds.append("cp-true")
        inside = f'<img src="{encoded(question.neighbor_patch, TILE_SIDE, quality=95)}" alt="It lies here">'
    elif position == guess:
        kinds.append("cp-false")
    if position == guess:
        tags.append("you")
    if position == question.predicted:
        tags.append("model")
    label = f"{name}: the model says {share:.0%}"
    labels = "".join(f"<i>{tag}</i>" for tag in tags)
    return (
        f'<span class="{" ".join(kinds)}" role="img" aria-label="{label}" style="--share:{share:.3f}">{inside}'
        f'<span class="cp-tags">{labels}</span><span class="cp-share">{share:.0%}</span></span>'
    )


def _verdict(question: Question, guess: int | None) -> str:
    if guess is None:
        return ""
    truth, predicted = question.position, question.predicted
    you = f"“{POSITIONS[guess]}”, {'right' if guess == truth else 'wrong'}"
    model = f"“{POSITIONS[predicted]}” ({question.probabilities[predicted]:.0%} sure), "
    model += "right" if predicted == truth else "wrong"
    return f"<p><b>It lies {POSITIONS[truth]}.</b><br>You said {you}.<br>The model said {model}.</p>"


def _scores(score: Score) -> str:
    if not score.asked:
        return ""

    def one(kind: str, hits: float, name: str, text: str) -> str:
        share = hits / score.asked
        return f'<li class="{kind}" style="--share:{share:.3f}"><span>{name}</span><b>{text}</b></li>'

    of = f" of {score.asked}"
    return (
        '<ul class="cp-scores" aria-label="Score">'
        f"{one('cp-you', score.person, 'You', f'{score.person}{of}')}"
        f"{one('cp-model', score.model, 'Model', f'{score.model}{of}')}"
        f"{one('cp-chance', score.asked / 8, 'Guessing blindly', '1 of 8')}</ul>"
    )
