"""The commands for looking: what is alike, what recurs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from .options import batch_option, device_option, example, model_option, progress_option, workers_option


@click.command(epilog=example("context-pred neighbors photos/ photos/ --patches --layer feature4 --out neighbors"))
@click.argument("query")
@click.argument("images")
@click.option("--out", required=True, metavar="DIR",
              help="The folder to write neighbors.png, neighbors.json and index.html into.")  # fmt: skip
@model_option
@click.option("--layer", default="feature5", show_default=True, help="The layer to compare.")
@click.option(
    "--pool", type=click.Choice(["gap", "grid", "quarters", "none"]), default="gap", show_default=True,
    help="As in extract: gap, grid or none; of patches gap, quarters or none.",
)  # fmt: skip
@click.option("-k", type=click.IntRange(1), default=None, metavar="K",
              help="Neighbours of each query.  [default: 5, or as many as there are]")  # fmt: skip
@click.option("--patches", is_flag=True, help="Compare patches, of the size that the model was trained with, instead "
              "of whole images; of each image the nearest counts.")  # fmt: skip
@click.option("--queries", default="24", show_default=True, metavar="N", callback=lambda _, __, v: _number_or_all(v),
              help="Patches drawn at random from the QUERY images; all: every patch of a grid.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N", help="Of that draw.")
@click.option("--index", default=None, metavar="DIR",
              help="Keep the index here: built of IMAGES, and the next time only what is new is added.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), default=None, metavar="N",
              help="Images at once.  [default: 32; with --patches 8]")  # fmt: skip
@workers_option
@device_option
@progress_option
def neighbors(query: str, images: str, **options: Any) -> None:
    """Find the nearest neighbours of the QUERY images among IMAGES and draw them.

    Both are a folder, a file, a quoted glob or a list file.
    """
    from context_pred.discover import neighbors as search

    click.echo(search.run(query, images, **options))


def _number_or_all(value: str) -> int | None:
    """Read a whole number from 1 up, or "all" as None."""
    if value == "all":
        return None
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"{value!r}; accepted: a whole number from 1 up, or all.")
    return int(value)


@click.command(epilog=example("context-pred discover photos/ --out discovered"))
@click.argument("images")
@click.option("--out", required=True, metavar="DIR", help="The folder to write index.html and clusters.json into.")
@model_option
@click.option("--layer", default="feature3", show_default=True, help="The layer to compare.")
@click.option("--pool", default="quarters", show_default=True, help="Of a patch: gap, quarters or none.")
@click.option("--side", "sides", type=float, multiple=True, metavar="N", help="The photographs' shorter side in "
              "patches; repeated, a scale each.  [default: 4, 6, 9]")  # fmt: skip
@click.option("--constellations", default=16_384, show_default=True, metavar="N", help="Drawn at random.")
@click.option("--photographs", default=100, show_default=True, metavar="N", help="Strongest matches to verify.")
@click.option("--members", default=10, show_default=True, metavar="N", help="Of a cluster: the best verified.")
@click.option("--least", default=5, show_default=True, metavar="N", help="Verified photographs that a cluster needs.")
@click.option("--fresh", default=0.8, show_default=True, metavar="SHARE", help="Of a cluster's photographs that must "
              "be new for it to be taken; the paper: 0, which is one photograph.")  # fmt: skip
@click.option("--clusters", default=100, show_default=True, metavar="N", help="Taken at most; the paper: 1000.")
@click.option("--labels", default=None, metavar="WHAT", help="To judge by: folders, a list (path, label), or a folder "
              "of VOC's annotations.")  # fmt: skip
@click.option("--label-column", default=1, show_default=True, metavar="N", help="Of a list, after the path.")
@click.option("--only", default=None, metavar="A,B,…", help="Take only photographs with one of these labels.")
@click.option("--centered/--uncentered", default=True, show_default=True,
              help="Subtract the collection's mean feature; the paper does not.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the draw.")
@workers_option
@device_option
@click.option("--overwrite", is_flag=True, help="Replace what another discovery left in OUT.")
@progress_option
def discover(images: str, **options: Any) -> None:
    """Find what recurs in IMAGES, without labels: objects, ranked, on a page.

    A run that was stopped goes on when the same command is given again.
    """
    from context_pred.discover import objects
    from context_pred.discover.mining import Search

    def taken(*names: str) -> dict[str, Any]:
        return {name: options.pop(name) for name in names}

    search = Search(**taken("constellations", "photographs", "centered", "seed"))
    selection = objects.Selection(**taken("members", "least", "fresh", "clusters"))
    names = [name.strip() for name in (options.pop("only") or "").split(",") if name.strip()]
    click.echo(objects.run(images, search=search, selection=selection, label_only=names, **options))


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


@click.group()
def picture() -> None:
    """Draw what a model sees: features, the pretext task, a map of a collection, similarity."""


seed_option = click.option("--seed", default=0, show_default=True, metavar="N", help="Of every choice.")


def at_most_option(number: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option that bounds how many photographs are drawn."""
    return click.option("--at-most", default=number, show_default=True, metavar="N",
                        help="Photographs; of more, so many are chosen at random.")  # fmt: skip


side_option = click.option("--side", type=float, default=None, metavar="N",
                           help="The photographs' shorter side in patches of the model's training: more shows finer "
                           "things.")  # fmt: skip


def _source(images: tuple[str, ...]) -> str | list[str]:
    return images[0] if len(images) == 1 else list(images)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


@picture.command(epilog=example("context-pred picture features photos/ --out features"))
@click.argument("images", nargs=-1, required=True)
@click.option("--out", required=True, metavar="DIR", help="The folder to write features.png into.")
@model_option
@click.option("--layer", "layers", multiple=True, help="May be repeated.  [default: feature1 … feature5]")
@at_most_option(12)
@seed_option
@side_option
@device_option
@progress_option
def features(images: tuple[str, ...], layers: tuple[str, ...], **options: Any) -> None:
    """Colour the feature maps of IMAGES by their first three principal components, a column a layer."""
    from context_pred.discover.pictures import features as drawing

    click.echo(drawing.run(_source(images), **_given({**options, "layers": layers or None})))


@picture.command(epilog=example("context-pred picture pretext photos/ --out pretext --seed 1"))
@click.argument("images", nargs=-1, required=True)
@click.option("--out", required=True, metavar="DIR", help="The folder to write pretext.png and pretext.json into.")
@model_option
@at_most_option(8)
@seed_option
@device_option
@progress_option
def pretext(images: tuple[str, ...], **options: Any) -> None:
    """Draw patches of IMAGES as in training, and what the model says of where they lie."""
    from context_pred.discover.pictures import pretext as drawing

    click.echo(drawing.run(_source(images), **options))


@picture.command(name="map", epilog=example("context-pred picture map photos/ --labels --out map"))
@click.argument("images", nargs=-1, required=True)
@click.option("--out", required=True, metavar="DIR", help="The folder to write map.png, map.html and map.json into.")
@model_option
@click.option("--layer", default="feature2", show_default=True, help="The layer to compare.")
@click.option("--grid/--no-grid", default=True, show_default=True,
              help="Put every photograph into a cell of its own.")  # fmt: skip
@click.option("--labels", is_flag=True, help="Frame the photographs in the colours of their folders.")
@at_most_option(1000)
@seed_option
@batch_option
@workers_option
@device_option
@progress_option
def map_(images: tuple[str, ...], **options: Any) -> None:
    """Lay IMAGES out so that what is alike lies near: one large picture, and a page to look closer."""
    from context_pred.discover.pictures import map as drawing

    click.echo(drawing.run(_source(images), **options))


@picture.command(
    epilog=example("context-pred picture similarity photos/koala.jpg photos/ --at 120,80 --out similarity")
)
@click.argument("image")
@click.argument("others", nargs=-1, required=True)
@click.option("--at", default="center", show_default=True, metavar="X,Y",
              help="A point of IMAGE in px, or center, top-left, top, …")  # fmt: skip
@click.option(
    "--out", required=True, metavar="DIR", help="The folder to write similarity.png and similarity.html into."
)
@model_option
@click.option("--layer", default="feature4", show_default=True, help="The layer to compare.")
@at_most_option(12)
@seed_option
@side_option
@device_option
@progress_option
def similarity(image: str, others: tuple[str, ...], at: str, **options: Any) -> None:
    """Show where the like of a point of IMAGE lies in OTHERS; on the page, of any point that is clicked."""
    from context_pred.discover.pictures import similarity as drawing

    click.echo(drawing.run(image, _source(others), at=drawing.read_point(at), **_given(options)))
