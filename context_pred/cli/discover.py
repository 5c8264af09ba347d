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
