"""Second tab: click a point of an image, see where its like lies in the image itself and in others."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

import gradio as gr

from context_pred.discover.pictures.similarity import LAYER, Compared, heat
from context_pred.errors import ContextPredError, ImageError, InvalidInputError

from . import pieces
from .album import Album
from .parts import in_turn, nothing_yet, offered, picture_piece, piece, sent, sent_point, upload
from .uploads import Limits, Photo, open_photo, open_upload

OTHERS = 5
SIDE = 640  # longer side in px of what is compared and drawn

LEAD = (
    "Click a point of an image. The brighter a place, in the image itself and in others, the more its feature is like "
    "that of the point."
)
HINT = "Click a point; or focus the picture, move the point with the arrow keys, and press Enter."


@dataclass(frozen=True)
class View:
    """An image, the others it is compared with, the features of all, and the point asked about.

    Attributes:
        photo: The image.
        path: Its path where it is one of the collection.
        others: What it is compared with.
        compared: The features.
        point: x and y as shares of the image's sides, or None.
    """

    photo: Photo
    path: str | None
    others: tuple[Photo, ...]
    compared: Compared
    point: tuple[float, float] | None = None


Shown = tuple[View | None, str, str, str]
"""What a change gives the page: the view, and the HTML of picture, maps and sentence."""


def seen(
    album: Album,
    photo: Photo,
    path: str | None,
    given: tuple[Photo, ...],
    layer: str,
    point: tuple[float, float] | None = None,
) -> View:
    """Compute the features of an image and of others: those given, else its neighbours, else some of the collection."""
    others = given or _beside(album, photo, path)
    images = [one.image for one in others] or [_small(photo).image]  # an image alone is compared with itself
    compared = Compared.of(album.model, _small(photo).image, images, layer=layer, device=album.device)
    return View(photo, path, others, compared, point)


def maps(view: View) -> str:
    """Draw the similarity maps of the view's point: the image's own first, then the others'."""
    if view.point is None:
        return ""
    image = _small(view.photo).image
    at = view.point[0] * image.width, view.point[1] * image.height
    tiles = [pieces.tile(heat(image, view.compared.own(at)), view.photo.name, note="itself", mark=True)]
    for one, found in zip(view.others, view.compared.maps(at), strict=False):
        tiles.append(pieces.tile(heat(one.image, found), one.name, note=f"{found.max():.2f}"))
    return pieces.sheet(tiles)


def _small(photo: Photo) -> Photo:
    image = photo.image.copy()
    image.thumbnail((SIDE, SIDE))
    return replace(photo, image=image)


def _beside(album: Album, photo: Photo, path: str | None) -> tuple[Photo, ...]:
    near = [match.path for match in album.like(photo.image, OTHERS, but=path)]
    found = []
    for one in (near or [sample for sample in album.samples if sample != path])[:OTHERS]:
        with contextlib.suppress(ImageError):
            found.append(_small(open_photo(one)))
    return tuple(found)


def shown(album: Album, view: View | None, error: ContextPredError | None = None) -> Shown:
    """Draw a view, or say what is wrong."""
    said = "" if error is None else pieces.sentence(str(error), wrong=True)
    if view is None:
        return None, nothing_yet(album), "", said
    return view, pieces.picture(view.photo, view.point, hint=HINT), maps(view), said


def similarity_tab(album: Album, limits: Limits) -> None:
    """Lay out the tab, within a tab of Gradio's."""
    layers = list(album.model.feature_info)
    state = gr.State(None)
    piece(pieces.text(LEAD, "cp-lead"), name="similarity-lead")
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            field = upload("An image", limits, name="similarity-upload")
            said = piece(name="similarity-said")
            samples = offered(album, name="similarity-samples")
            layer = gr.Radio(layers, value=LAYER, label="Layer", elem_id="similarity-layer")
            more = upload("Others to look in", limits, name="similarity-others", several=True)
        with gr.Column(scale=5, min_width=320):
            picture = picture_piece(nothing_yet(album), name="similarity-picture")
            found = piece(name="similarity-found", large=True)

    def beside(paths: list[str] | None) -> tuple[Photo, ...]:
        """Open the others that were uploaded."""
        if len(paths or ()) > limits.files:
            raise InvalidInputError(f"{len(paths or ())} files; accepted are {limits.files} at once.")
        return tuple(_small(open_upload(path, limits)) for path in paths or ())

    def uploaded(path: str | None, others: list[str] | None, layer: str) -> Shown:
        try:
            view = seen(album, open_upload(path, limits), None, beside(others), layer) if path else None
            return shown(album, view)
        except ContextPredError as error:
            return shown(album, None, error)

    def sample(others: list[str] | None, view: View | None, layer: str, event: gr.EventData) -> Shown:
        try:
            path = album.samples[sent(event, "number", len(album.samples))]
            return shown(album, seen(album, open_photo(path), path, beside(others), layer))
        except ContextPredError as error:
            return shown(album, view, error)

    def compared(others: list[str] | None, view: View | None, layer: str) -> Shown:
        try:
            given = beside(others)
            if view is None:
                return shown(album, None)
            return shown(album, seen(album, view.photo, view.path, given, layer, view.point))
        except ContextPredError as error:
            return shown(album, view, error)

    def pointed(view: View | None, event: gr.EventData) -> tuple[View | None, str, str]:
        try:
            view = None if view is None else replace(view, point=sent_point(event))
            return view, "" if view is None else maps(view), ""
        except ContextPredError as error:
            return view, "", pieces.sentence(str(error), wrong=True)

    quiet = in_turn("similarity")
    every = {"outputs": [state, picture, found, said], **quiet}
    for event in (field.upload, field.clear):
        event(uploaded, [field, more, layer], **every)
    samples.choice(sample, [more, state, layer], **every)
    for event in (more.upload, more.delete, more.clear, layer.change):
        event(compared, [more, state, layer], **every)
    picture.point(pointed, state, [state, found, said], **quiet)
