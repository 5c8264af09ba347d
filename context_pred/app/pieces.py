"""The page's own pieces as HTML: a photograph with a point, a sheet of photographs, the game's board, a sentence.

Pictures lie in the HTML itself (data URIs), so the page shows nothing that the server would have to serve as a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from context_pred.discover.pictures.sheets import jpeg_uri
from context_pred.errors import ImageError
from context_pred.markup import Child, Markup, element, joined, percent
from context_pred.patches import POSITIONS

from .guess import Question, Score, cell_of
from .uploads import Photo, open_photo

Box = tuple[float, float, float, float]

SHOWN_SIDE, TILE_SIDE = 900, 320
"""Longer sides in px of a photograph shown large, and of one in a sheet."""

_NARROWEST, _WIDEST = 0.5, 2.4  # width over height of a tile; photographs beyond are cropped
_GONE = (150, 150, 150)


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
    return jpeg_uri(image.convert("RGB"), quality)


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
        return tile(Image.new("RGB", (4, 3), _GONE), Path(path).name, note="cannot be opened")
    share = None if box is None else (box[0] / width, box[1] / height, box[2] / width, box[3] / height)
    return Tile(source, width / height, Path(path).name, note, share)


@lru_cache(maxsize=2048)
def _known(path: str) -> tuple[str, int, int]:
    photo = open_photo(path)
    return encoded(photo.image, TILE_SIDE), *photo.size


def text(words: Child, kind: str, name: str = "p") -> Markup:
    """Make a paragraph, or another element, of one of the style's classes."""
    return element(name, words, class_=kind)


def empty(words: str) -> Markup:
    """Say in a frame what will be seen there, and what to do for it."""
    return text(words, "cp-empty", "div")


def sentence(words: str, *, wrong: bool = False) -> Markup:
    """Say something; what went wrong is announced to screen readers at once."""
    if not words:
        return Markup()
    return element(
        "p", words, class_="cp-sentence cp-wrong" if wrong else "cp-sentence", role="alert" if wrong else "status"
    )


def picture(
    photo: Photo, point: tuple[float, float] | None = None, *, hint: str = "", box: Box | None = None
) -> Markup:
    """Show a photograph in which a point can be chosen by mouse, finger or keyboard.

    Args:
        photo: The photograph.
        point: x and y as shares of width and height.
        hint: What to do.
        box: A frame within: x1, y1, x2, y2 as shares of width and height.
    """
    x, y = point or (0.5, 0.5)
    marker = element(
        "span", class_="cp-point", style=f"left:{x:.2%};top:{y:.2%}", hidden=None if point else "hidden"
    )  # fmt: skip
    image = element("img", src=encoded(photo.image, SHOWN_SIDE), alt=photo.name, draggable="false")
    shown = element(
        "div",
        [image, _frame(box) if box else None, marker],
        class_="cp-picture",
        tabindex="0",
        role="application",
        data_x=f"{x:.4f}",
        data_y=f"{y:.4f}",
        aria_label=f"{photo.name}. Arrow keys move the point, Enter chooses it.",
    )
    return joined(shown, text(hint, "cp-hint") if hint else None)


def still(photo: Photo, *, hint: str = "", boxes: Sequence[tuple[Box, str]] = ()) -> Markup:
    """Show a photograph, with frames in it where boxes (shares of its sides, and a class) are given."""
    image = element("img", src=encoded(photo.image, SHOWN_SIDE), alt=photo.name)
    shown = element("div", image, [_frame(box, kind) for box, kind in boxes], class_="cp-still")
    return joined(shown, text(hint, "cp-hint") if hint else None)


def _frame(box: Box, kind: str = "") -> Markup:
    x1, y1, x2, y2 = box
    place = f"left:{x1:.2%};top:{y1:.2%};width:{x2 - x1:.2%};height:{y2 - y1:.2%}"
    return element("span", class_=f"cp-frame {kind}".strip(), style=place)


def sheet(tiles: Sequence[Tile], *, choose: str = "") -> Markup:
    """Lay photographs out in rows of equal height.

    Args:
        tiles: The photographs.
        choose: Where given, each is a button, named by this and its label ("Search on from", "Take").
    """
    return element("ul", [_tile(i, one, choose) for i, one in enumerate(tiles)], class_="cp-sheet")


def _tile(i: int, one: Tile, choose: str) -> Markup:
    image = element("img", src=one.source, alt=one.label, loading="lazy")
    inside = element("span", image, _frame(one.box) if one.box else None, class_="cp-still")
    if choose:
        inside = element("button", inside, type="button", data_choice=i, aria_label=f"{choose} {one.label}")
    caption = element(
        "span",
        element("b", one.note) if one.note else None,
        element("span", one.label),
        class_="cp-caption",
        title=one.label,
    )
    ratio = min(max(one.ratio, _NARROWEST), _WIDEST)
    return element(
        "li", inside, caption, class_="cp-tile cp-mark" if one.mark else "cp-tile", style=f"--ratio:{ratio:.3f}"
    )


def board(question: Question, score: Score, guess: int | None = None) -> Markup:
    """Draw the game: the neighbour, eight buttons around the centre, and once guessed the truth in its place.

    Args:
        question: The pair.
        score: So far, this question included once it is answered.
        guess: The person's answer; None: not given yet. Before, nothing in the HTML tells the truth.
    """
    cells = {cell_of(k): _cell(question, k, guess) for k in range(len(POSITIONS))}
    cells[1, 1] = element("span", _patch(question.center_patch, "The centre patch"), class_="cp-cell cp-center")
    answered = guess is not None
    asked = element(
        "div",
        element("p", "Where does this patch lie, seen from the one in the middle?"),
        _patch(question.neighbor_patch, "The neighbour"),
        element("div", _verdict(question, guess) if guess is not None else None, role="status", class_="cp-answer"),
        element("button", "Next pair", type="button", class_="cp-next", data_next="") if answered else None,
        _scores(score) if score.asked else None,
        class_="cp-asked",
    )
    grid = element(
        "div",
        [cells[row, column] for row in range(3) for column in range(3)],
        class_="cp-board",
        role="group",
        aria_label="The eight positions around the centre",
    )
    return element("div", asked, grid, _place(question) if answered else None, class_="cp-game")


def _patch(patch: Image.Image, label: str) -> Markup:
    return element("img", src=encoded(patch, TILE_SIDE, quality=95), alt=label)


def _place(question: Question) -> Markup:
    """Show where in the photograph the two patches lie."""
    width, height = question.photograph.size
    boxes = [
        ((box[0] / width, box[1] / height, box[2] / width, box[3] / height), kind)
        for box, kind in ((question.center, ""), (question.neighbor, "cp-found"))
    ]
    photo = Photo(question.name, question.photograph, (width, height))
    return element("div", still(photo, hint=question.name, boxes=boxes), class_="cp-place")


def _cell(question: Question, position: int, guess: int | None) -> Markup:
    name = POSITIONS[position]
    if guess is None:
        return element("button", type="button", class_="cp-cell", data_cell=position, aria_label=name)
    share = question.probabilities[position]
    true = position == question.position
    kind = "cp-cell cp-said" + (" cp-true" if true else " cp-false" if position == guess else "")
    tags = [tag for tag, at in (("you", guess), ("model", question.predicted)) if at == position]
    return element(
        "span",
        _patch(question.neighbor_patch, "It lies here") if true else None,
        element("span", [element("i", tag) for tag in tags], class_="cp-tags"),
        element("span", percent(share, 0), class_="cp-share"),
        class_=kind,
        role="img",
        aria_label=f"{name}: the model says {percent(share, 0)}",
        style=f"--share:{share:.3f}",
    )


def _verdict(question: Question, guess: int) -> Markup:
    truth, predicted = question.position, question.predicted
    right = {True: "right", False: "wrong"}
    return element(
        "p",
        element("b", f"It lies {POSITIONS[truth]}."),
        element("br"),
        f"You said “{POSITIONS[guess]}”, {right[guess == truth]}.",
        element("br"),
        f"The model said “{POSITIONS[predicted]}” ({percent(question.probabilities[predicted], 0)} sure), "
        f"{right[predicted == truth]}.",
    )


def _scores(score: Score) -> Markup:
    rows = (
        ("cp-you", "You", score.person / score.asked, f"{score.person} of {score.asked}"),
        ("cp-model", "Model", score.model / score.asked, f"{score.model} of {score.asked}"),
        ("cp-chance", "Guessing blindly", 1 / len(POSITIONS), f"1 of {len(POSITIONS)}"),
    )
    items = [
        element("li", element("span", name), element("b", words), class_=kind, style=f"--share:{share:.3f}")
        for kind, name, share, words in rows
    ]
    return element("ul", items, class_="cp-scores", aria_label="Score")
