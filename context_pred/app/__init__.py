"""The local page: an image's neighbours, where the like of a point lies, and the pretext task as a game.

    context-pred serve photos/

As a Space of the Hub, in ``app.py``:

    import context_pred.app

    demo = context_pred.app.build(images="photos")
    demo.launch()
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from context_pred.errors import InvalidInputError
from context_pred.extras import need

from .uploads import Limits

if TYPE_CHECKING:
    import gradio as gr
    import torch

    from context_pred.discover.index import NeighborIndex
    from context_pred.model import ContextPredictionModel

__all__ = ["Limits", "build", "serve"]

WHAT = "The local page"
USUAL = Limits()


def build(
    model: ContextPredictionModel | str | Path | None = None,
    *,
    images: str | Path | Sequence[str | Path] | None = None,
    index: str | Path | NeighborIndex | Sequence[str | Path | NeighborIndex] = (),
    patches: bool = False,
    folder: str | Path | None = None,
    seed: int | None = None,
    limits: Limits = USUAL,
    device: str | torch.device = "auto",
    progress: bool = False,
) -> gr.Blocks:
    """Make the page.

    Args:
        model: The model (it is left as it is), or what ``load_pretrained`` takes; None: the shipped one.
        images: The collection, as ``find_images`` takes it. Without ``index`` it is indexed now; with one, these are
            the photographs that are offered and asked about, and the index is what is searched.
        index: A folder that ``NeighborIndex`` wrote, or an index; or two, one of whole images and one of patches.
        patches: Index the patches of ``images`` too; takes longer.
        folder: Where to write the index of ``images``; None: a temporary folder, removed with the process.
        seed: Of the game's questions, the same for every session; None: other ones each time.
        limits: What uploads may be at most. Set ``max_file_size`` of ``launch`` too, which refuses them on arrival.
        device: Where to compute.
        progress: Show a bar while images are indexed.

    Returns:
        The page; ``launch()`` starts it, on a Space too.

    Raises:
        InvalidInputError: Gradio is not installed (the message says how), no images, ``patches`` without them, an
            index that is damaged or was made with another model.
        UnknownNameError: no such model.
    """
    need("gradio", WHAT, "app")
    from context_pred.discover.index import NeighborIndex
    from context_pred.extract.network import find_device

    from .album import Album
    from .page import page

    if patches and (index or images is None):
        raise InvalidInputError("patches=True (--patches) indexes the patches of images: give images, and no index.")
    place = find_device(device)
    loaded = _loaded(model).to(place)
    given = [index] if isinstance(index, (str, Path, NeighborIndex)) else list(index)
    indices = [one if isinstance(one, NeighborIndex) else NeighborIndex.load(one, loaded) for one in given]
    if images is not None and not indices:
        where = Path(folder) if folder is not None else Path(_lasting())
        for name, of_patches in (("whole", False), ("patches", True))[: 1 + patches]:
            indices.append(
                NeighborIndex.build(
                    images, loaded, out=where / name, patches=of_patches, device=place, progress=progress
                )
            )
    return page(Album.of(loaded, images, indices, place), limits, seed)


def serve(
    images: str | Path | Sequence[str | Path] | None = None,
    *,
    model: ContextPredictionModel | str | Path | None = None,
    index: Sequence[str | Path] = (),
    patches: bool = False,
    host: str = "127.0.0.1",
    port: int = 7860,
    open_browser: bool = True,
    seed: int | None = None,
    limits: Limits = USUAL,
    device: str | torch.device = "auto",
    progress: bool = True,
    say: Callable[[str], None] | None = None,
) -> None:
    """Make the page and serve it until Ctrl-C; uploads lie in a temporary folder that is removed then.

    Args:
        images: As in ``build``; likewise model, index, patches, seed, limits and device.
        host: The address to listen on; 127.0.0.1: this machine alone.
        port: The port; 0: any free one.
        open_browser: Open the page in the browser.
        progress: Show a bar while images are indexed.
        say: Told the page's address once it is up.
        model: As in ``build``.
        index: As in ``build``.
        patches: As in ``build``.
        seed: As in ``build``.
        limits: As in ``build``.
        device: As in ``build``.

    Raises:
        InvalidInputError: the port is taken (the message names a free one); or as ``build``.
    """
    need("gradio", WHAT, "app")
    from .server import address, bound, run_until_stopped, server_of, sigterm_as_ctrl_c, temporary_folder

    with bound(host, port) as taken, sigterm_as_ctrl_c(), temporary_folder() as folder:
        blocks = build(
            model,
            images=images,
            index=index,
            patches=patches,
            folder=folder / "index",
            seed=seed,
            limits=limits,
            device=device,
            progress=progress,
        )
        url = address(taken)

        def started() -> None:
            if say is not None:
                say(url)
            if open_browser:
                import webbrowser

                webbrowser.open(url)

        run_until_stopped(server_of(blocks, limits, host), taken, started)


def _loaded(model: ContextPredictionModel | str | Path | None) -> ContextPredictionModel:
    if model is not None and not isinstance(model, (str, Path)):
        return copy.deepcopy(model).eval()
    from context_pred.zoo import load_pretrained
    from context_pred.zoo.registry import default_name

    name = model if model is not None else default_name()
    if name is None:
        raise InvalidInputError("No model ships with this installation; name one.")
    return load_pretrained(name)


def _lasting() -> str:
    """Make a folder that goes when the process ends."""
    import atexit

    made = tempfile.TemporaryDirectory(prefix="context-pred-", ignore_cleanup_errors=True)
    atexit.register(made.cleanup)
    return made.name
