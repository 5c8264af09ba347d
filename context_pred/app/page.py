"""The page: three tabs of Gradio's around the page's own pieces."""

from __future__ import annotations

import gradio as gr

from context_pred.markup import Child, Markup, count, element, joined

from .album import Album
from .guess_tab import guess_tab
from .neighbors_tab import neighbors_tab
from .parts import piece
from .similarity_tab import similarity_tab
from .style import CSS
from .uploads import Limits

TITLE = "context-pred"
_HOUR = 3600


def page(album: Album, limits: Limits, seed: int | None) -> gr.Blocks:
    """Lay the page out. Nothing on it asks another server: no analytics, no fonts, no checks of versions."""
    blocks: gr.Blocks
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(_HOUR // 4, _HOUR)) as blocks:
        piece(joined(element("style", Markup(CSS)), _head(album)), name="head")
        with gr.Tabs():
            with gr.Tab("Neighbours"):
                neighbors_tab(album, limits)
            with gr.Tab("Similarity"):
                similarity_tab(album, limits)
            with gr.Tab("Guess"):
                guess_tab(album, limits, blocks, seed)
    return blocks


def _head(album: Album) -> Markup:
    parts: list[Child] = ["Model ", element("code", album.model.card.name)]
    for index, what in ((album.whole, "image"), (album.patches, "patch")):
        if index is not None:
            many = count(len(index), what, "patches" if what == "patch" else "")
            parts += [f" · {many} by ", element("code", str(index.settings["layer"]))]
    return element(
        "div", element("h1", "What looks alike, learned without labels"), element("p", parts), class_="cp-head"
    )
