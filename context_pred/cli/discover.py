"""The commands for looking: what is alike, what recurs."""

from __future__ import annotations

from typing import Any

import click

from .options import batch_option, device_option, example, model_option, progress_option, workers_option


@click.command(epilog=example("context-pred neighbors photos/ photos/ --out neighbors"))
@click.argument("query")
@click.argument("images")
@click.option("--out", required=True, metavar="DIR", help="The folder to write neighbors.png into.")
@model_option
@click.option("--layer", default="feature5", show_default=True, help="The layer to compare.")
@click.option(
    "--pool", type=click.Choice(["gap", "grid", "none"]), default="gap", show_default=True, help="As in extract."
)
@click.option("-k", default=5, show_default=True, metavar="K", help="Neighbours of each query.")
@batch_option
@workers_option
@device_option
@progress_option
def neighbors(query: str, images: str, **options: Any) -> None:
    """Find the nearest neighbours of the QUERY images among IMAGES and draw them."""
    from context_pred.discover import neighbors as search

    click.echo(search.run(query, images, **options))


@click.command(epilog=example("context-pred serve photos/"))
@click.argument("images", nargs=-1)
@click.option("--index", multiple=True, metavar="DIR", help="An index made before, searched instead of IMAGES; twice: "
              "one of whole images and one of patches.")  # fmt: skip
@click.option("--patches", is_flag=True, help="Index the patches of IMAGES too.")
@model_option
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS",
              help="Where to listen; 127.0.0.1: this machine alone.")  # fmt: skip
@click.option("--port", default=7860, show_default=True, metavar="N", help="0: any free one.")
@click.option("--open/--no-open", "open_browser", default=True, help="Open the page in the browser.")
@click.option("--megabytes", type=float, default=20, show_default=True, metavar="N", help="Of an upload, at most.")
@click.option("--megapixels", type=float, default=50, show_default=True, metavar="N", help="Of an upload, at most.")
@device_option
@progress_option
def serve(images: tuple[str, ...], megabytes: float, megapixels: float, **options: Any) -> None:
    """Serve a page on this machine: neighbours among IMAGES, similarity maps, and the pretext task as a game.

    IMAGES are a folder, files, a quoted glob or a list file. Ctrl-C ends it; uploads are removed then.
    """
    from context_pred import app

    def say(url: str) -> None:
        click.echo(f"{url} (Ctrl-C ends it)")

    app.serve(
        (images[0] if len(images) == 1 else list(images)) if images else None,
        limits=app.Limits(megabytes=megabytes, megapixels=megapixels),
        say=say,
        **options,
    )
