"""What the tabs share: Gradio's components as this page uses them, and what a browser may send."""

from __future__ import annotations

import math
from typing import Any

import gradio as gr

from context_pred.errors import InvalidInputError

from . import pieces
from .album import Album
from .style import BOARD_JS, PICTURE_JS, SHEET_JS
from .uploads import Limits


def in_turn(name: str) -> dict[str, Any]:
    """Return the options of a tab's events: one after the other, of several in a row the last, none of them an API.

    Two at once would each begin from the state before the other.
    """
    return {
        "api_visibility": "private",
        "show_progress": "minimal",
        "trigger_mode": "always_last",
        "concurrency_id": name,
        "concurrency_limit": 1,
    }


FAR = "Only files that are uploaded are taken, no addresses."


def piece(value: str = "", *, name: str, js: str | None = None, small: bool = False, large: bool = False) -> Any:
    """Make a piece of the page's own HTML; its events are those that ``js`` triggers."""
    kinds = ["cp-small"] * small + ["cp-large"] * large
    return gr.HTML(value, js_on_load=js, apply_default_css=False, elem_id=name, elem_classes=kinds)


def picture_piece(value: str, *, name: str) -> Any:
    """Make a photograph in which points are chosen: event ``point``, with x and y."""
    return piece(value, name=name, js=PICTURE_JS)


def sheet_piece(value: str = "", *, name: str, small: bool = False) -> Any:
    """Make a sheet of photographs: event ``choice``, with a number."""
    return piece(value, name=name, js=SHEET_JS, small=small)


def offered(album: Album, *, name: str) -> Any:
    """Offer photographs of the collection, if there are any: event ``choice``, with a number."""
    if not album.samples:
        return sheet_piece(name=name, small=True)
    piece(pieces.text("Or one of the collection", "cp-title"), name=f"{name}-title")
    tiles = [pieces.tile_of(path) for path in album.samples]
    return sheet_piece(pieces.sheet(tiles, choose="Take"), name=name, small=True)


def nothing_yet(album: Album) -> str:
    """Say what to do where no image has been chosen."""
    return pieces.empty("Drop an image, or take one of the collection." if album.samples else "Drop an image.")


def board_piece(value: str, *, name: str) -> Any:
    """Make the game's board: events ``guess``, with a position, and ``following``."""
    return piece(value, name=name, js=BOARD_JS)


def upload(label: str, limits: Limits, *, name: str, several: bool = False) -> gr.File:
    """Make a field that files are dropped on. Whatever they are, the server says what is wrong with them."""
    field = gr.File(
        label=f"{label}, at most {limits.files}" if several else f"{label}, {limits}",
        file_count="multiple" if several else "single",
        type="filepath",
        height=150,
        elem_id=name,
    )
    fetch = field.async_move_resource_to_block_cache

    async def only_files(path: str | None) -> str | None:
        """Refuse addresses: Gradio would fetch what a client names by one."""
        if "://" in str(path):
            raise gr.Error(FAR)
        return await fetch(path)

    setattr(field, "async_move_resource_to_block_cache", only_files)  # noqa: B010 - a method, for this field alone
    return field


def sent(event: gr.EventData, name: str, below: int) -> int:
    """Return a number that the browser sent, 0 … below − 1.

    Raises:
        InvalidInputError: it sent something else.
    """
    value = _values(event).get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < below:
        raise InvalidInputError(f"The browser sent {name}={value!r}; accepted: 0 … {below - 1}.")
    return value


def sent_point(event: gr.EventData) -> tuple[float, float]:
    """Return the point that the browser sent: shares of width and height, 0 ≤ x, y < 1.

    Raises:
        InvalidInputError: it sent something else.
    """
    values = _values(event)
    x, y = values.get("x"), values.get("y")
    for value in (x, y):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise InvalidInputError(f"The browser sent the point ({x!r}, {y!r}); accepted: 0 ≤ x, y < 1.")
    return min(max(float(x), 0.0), 0.9999), min(max(float(y), 0.0), 0.9999)  # type: ignore[arg-type]


def _values(event: gr.EventData) -> dict[str, Any]:
    return event._data if isinstance(event._data, dict) else {}
