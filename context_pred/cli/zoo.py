"""The commands ``context-pred zoo …``."""

from __future__ import annotations

from typing import Any

import click

from .options import cache_option, example, progress_option, revision_option


@click.group()
def zoo() -> None:
    """Fetch, check and convert models."""


@zoo.command(epilog=example("context-pred zoo pull resnet50_8xb64-steplr-70e"))
@click.argument("names", nargs=-1, required=True, metavar="NAME…")
@revision_option
@cache_option
@click.option("--force", "force_download", is_flag=True, help="Fetch again what is here already.")
@progress_option
def pull(names: tuple[str, ...], **options: Any) -> None:
    """Bring models onto this machine, verified, so that they load without a network; print where they lie."""
    from context_pred.zoo import pull as fetch

    for name in names:
        click.echo(fetch(name, **options))


@zoo.command(epilog=example("context-pred zoo verify resnet50_8xb64-steplr-70e"))
@click.argument("names", nargs=-1, required=True, metavar="NAME…")
@revision_option
@cache_option
@click.pass_context
def verify(ctx: click.Context, /, names: tuple[str, ...], **options: Any) -> None:
    """Check models that are on this machine: digest, keys and shapes. Exit status 1 if one is wrong; asks no server."""
    from context_pred.zoo import verify as check

    reports = [check(name, **options) for name in names]
    for report in reports:
        click.echo(report)
    ctx.exit(0 if all(report.ok for report in reports) else 1)


@zoo.command(epilog=example("context-pred zoo convert relative-loc_resnet50.pth my-model --channel-order rgb"))
@click.argument("src")
@click.argument("out")
@click.option("--channel-order", default=None, metavar="ORDER", help="rgb or bgr, for files that do not tell.")
@click.option(
    "--label-order",
    default=None,
    metavar="ORDER",
    help="raster or openmmlab-1.x, for heads of files that do not tell.",
)
@click.option("--name", default=None, help="The model's name on its card.  [default: the file's]")
@click.option("--overwrite", is_flag=True, help="Replace a model folder that is there already.")
def convert(src: str, out: str, **options: Any) -> None:
    """Convert the checkpoint SRC to the model folder OUT without executing any of its code; print where it lies."""
    from context_pred.zoo.convert import convert as write

    click.echo(write(src, out, **options))


@zoo.command(epilog=example("context-pred zoo results RUN/model knn linear knn-random"))
@click.argument("folder", metavar="MODEL")
@click.argument("outs", nargs=-1, required=True, metavar="OUT…")
def results(folder: str, outs: tuple[str, ...]) -> None:
    """Put the figures that `evaluate` wrote to each OUT on the card of MODEL, a model folder; print them.

    An OUT is of the folder's own weights, or of random:BACKBONE, pixels or hog to hold them against. Figures that the
    same command gave before are replaced.
    """
    from context_pred.evaluate.card_figures import add

    for one in add(folder, outs):
        parts = (one.measured_on, one.benchmark, one.dataset, one.layer, one.metric)
        click.echo(f"{', '.join(filter(None, parts))}: {one.value}")
