"""First tab: drop an image, see its nearest neighbours in the collection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import gradio as gr

from context_pred.errors import ContextPredError

from . import pieces
from .album import Album
from .parts import in_turn, nothing_yet, offered, picture_piece, piece, sent, sent_point, sheet_piece, upload
from .uploads import Limits, Photo, open_photo, open_upload

if TYPE_CHECKING:
    from context_pred.discover.index import Match

SHOWN = 15
WHOLE, PATCH = "Whole images", "Patch at a point"

LEAD = "Drop an image, and see which photographs of the collection lie nearest to it, by normalised correlation."
POINT_HINT = "Click a point; or focus the picture, move the point with the arrow keys, and press Enter."
NO_POINT = "Choose a point of the image: the patch around it is what is looked for."
NO_INDEX = (
    "No collection is indexed. Start with a folder of images, context-pred serve IMAGES, or with an index, "
    "context-pred serve --index DIR."
)


@dataclass(frozen=True)
class Query:
    """What neighbours are sought of: a photograph, its path where it is one of the collection, a point in it."""

    photo: Photo | None = None
    path: str | None = None
    point: tuple[float, float] | None = None


Shown = tuple[Query, tuple[str, ...], str, str, str]
"""What a change gives the page: the query, the paths shown, and the HTML of picture, sheet and sentence."""


def look(album: Album, query: Query, by: str) -> Shown:
    """Find the neighbours of a query, by whole images or by the patch at its point."""
    if query.photo is None:
        return query, (), "", nothing_yet(album), ""
    if by == WHOLE:
        matches = album.like(query.photo.image, SHOWN, but=query.path)
        picture = pieces.still(query.photo, hint=query.photo.name)
    elif query.point is None:
        return query, (), pieces.picture(query.photo, hint=POINT_HINT), pieces.empty(NO_POINT), ""
    else:
        matches, box = album.like_patch(query.photo.image, query.point, SHOWN, but=query.path)
        picture = pieces.picture(query.photo, query.point, hint=POINT_HINT, box=box)
    return query, tuple(match.path for match in matches), picture, _sheet(matches), ""


def _sheet(matches: list[Match]) -> str:
    tiles = [pieces.tile_of(match.path, f"{match.score:.3f}", match.box) for match in matches]
    return pieces.sheet(tiles, choose="Search on from") if tiles else pieces.empty("Nothing was found.")


def neighbors_tab(album: Album, limits: Limits) -> None:
    """Lay out the tab, within a tab of Gradio's."""
    piece(pieces.text(LEAD, "cp-lead"), name="neighbors-lead")
    if album.whole is None and album.patches is None:
        piece(pieces.empty(NO_INDEX), name="neighbors-none")
        return
    kinds = [kind for kind, index in ((WHOLE, album.whole), (PATCH, album.patches)) if index is not None]
    query, shown = gr.State(Query()), gr.State(())
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            field = upload("An image", limits, name="neighbors-upload")
            said = piece(name="neighbors-said")
            by = gr.Radio(kinds, value=kinds[0], label="Compare", visible=len(kinds) > 1, elem_id="neighbors-by")
            picture = picture_piece("", name="neighbors-picture")
            samples = offered(album, name="neighbors-samples")
        with gr.Column(scale=5, min_width=320):
            found = sheet_piece(nothing_yet(album), name="neighbors-found")
    outputs = [query, shown, picture, found, said]

    def seen(query: Query, by: str, make: Callable[[], Query]) -> Shown:
        """Look at what ``make`` gives; where that fails, show ``query`` and say why."""
        try:
            return look(album, make(), by)
        except ContextPredError as error:
            return *look(album, query, by)[:4], pieces.sentence(str(error), wrong=True)

    def uploaded(path: str | None, by: str) -> Shown:
        return seen(Query(), by, lambda: Query(None if path is None else open_upload(path, limits)))

    def sample(by: str, event: gr.EventData) -> Shown:
        return taken(album.samples, by, event)

    def taken(paths: tuple[str, ...], by: str, event: gr.EventData) -> Shown:
        def make() -> Query:
            path = paths[sent(event, "number", len(paths))]
            return Query(open_photo(path), path)

        return seen(Query(), by, make)

    def pointed(query: Query, by: str, event: gr.EventData) -> Shown:
        return seen(query, by, lambda: replace(query, point=sent_point(event)))

    def compared(query: Query, by: str) -> Shown:
        return seen(Query(), by, lambda: query)

    quiet = {"outputs": outputs, **in_turn("neighbors")}
    field.upload(uploaded, [field, by], **quiet)
    field.clear(uploaded, [field, by], **quiet)
    samples.choice(sample, by, **quiet)
    found.choice(taken, [shown, by], **quiet)
    picture.point(pointed, [query, by], **quiet)
    by.change(compared, [query, by], **quiet)
