"""The page: three tabs of Gradio's around the pieces of ``markup``."""

from __future__ import annotations

from html import escape

import gradio as gr

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
        piece(f"<style>{CSS}</style>{_head(album)}", name="head")
        with gr.Tabs():
            with gr.Tab("Neighbours"):
                neighbors_tab(album, limits)
            with gr.Tab("Similarity"):
                similarity_tab(album, limits)
            with gr.Tab("Guess"):
                guess_tab(album, limits, blocks, seed)
    return blocks


def _head(album: Album) -> str:
    parts = [f"Model <code>{escape(album.model.card.name)}</code>"]
    for index, what in ((album.whole, "images"), (album.patches, "patches")):
        if index is not None:
            parts.append(f"{len(index):,} {what} by <code>{escape(str(index.settings['layer']))}</code>")
    return f'<div class="cp-head"><h1>What looks alike, learned without labels</h1><p>{" · ".join(parts)}</p></div>'
