"""The commands ``context-pred zoo …``."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

import click

from .options import cache_option, example, pairs, progress_option, revision_option


@click.group()
def zoo() -> None:
    """Fetch, check, convert, export and publish models."""


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


@zoo.command(epilog=example("context-pred zoo export resnet18_1xb64-coslr-300k features.onnx --layer feature4"))
@click.argument("name")
@click.argument("out", metavar="OUT.onnx|OUT.pt2")
@click.option("--layer", "layers", multiple=True, help="May be repeated.  [default: feature1 … feature5]")
@click.option("--pool", type=click.Choice(["gap", "grid", "none"]), default="none", show_default=True,
              help="gap: the mean over positions; grid: a few cells a side; none: the whole map.")  # fmt: skip
@click.option("--pixels", type=click.Choice(["normalized", "unit", "uint8"]), default="normalized", show_default=True,
              help="What the file takes: as the model's transform makes it, or in [0, 1], or 0 … 255.")  # fmt: skip
@click.option("--size", type=click.IntRange(1), default=None, metavar="PX",
              help="One side of images for good.  [default: any]")  # fmt: skip
@revision_option
@cache_option
def export(name: str, out: str, layers: tuple[str, ...], **options: Any) -> None:
    """Write the backbone of the model NAME as an ONNX file, or a torch.export program (.pt2), that takes RGB images.

    What it computes is compared with the model first. The file's metadata hold its preprocessing.
    """
    from context_pred import load_pretrained
    from context_pred.export import onnx, pt2

    writers = {".onnx": onnx, ".pt2": pt2}
    suffix = PurePath(out).suffix.lower()
    if suffix not in writers:
        raise click.UsageError(f"OUT is {out}; accepted: a name that ends in .onnx or .pt2.")
    model = load_pretrained(name, **{key: options.pop(key) for key in ("revision", "cache_dir")})
    click.echo(writers[suffix](model, out, layers or None, **options))


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


@zoo.command(epilog=example("context-pred zoo publish RUN/model --namespace me --dry-run --out folders"))
@click.argument("name")
@click.option("--namespace", required=True, metavar="OWNER", help="The user or organisation on the Hub.")
@click.option("--dry-run", is_flag=True, help="Only write the folders that would be uploaded.")
@click.option("--out", default=None, metavar="DIR", help="Where DIR/full and DIR/timm are written and kept.")
@click.option("--layout", default="both", show_default=True, metavar="LAYOUT",
              help="full: the whole model, to OWNER/NAME; timm: the backbone, to OWNER/NAME-timm; both.")  # fmt: skip
@click.option("--set", "changes", multiple=True, metavar="KEY=TEXT",
              help="Set a text of the card: name, title, description, dataset, license, authors, …")  # fmt: skip
@click.option("--private", is_flag=True, help="Make new repositories private.")
@click.option("--token", default=None, metavar="TOKEN", help="Of the Hub.  [default: that of `hf auth login`]")
@click.option("--message", default=None, metavar="TEXT", help="Of the commits.")
@cache_option
def publish(name: str, namespace: str, **options: Any) -> None:
    """Publish NAME, a name of the zoo or a model folder, on the Hub: whole, and as timm and transformers read it.

    Both folders are loaded back and checked before anything is uploaded; each repository gets one commit.
    """
    from context_pred.zoo.publish import publish as send
    from context_pred.zoo.publish import summary

    changes = pairs(options.pop("changes"), "KEY=TEXT", "license=MIT")
    click.echo(summary(send(name, namespace, changes=changes, **options)))


@zoo.command(epilog=example(f"context-pred zoo pin resnet50_8xb64-steplr-70e.20220825 OWNER/NAME@{'0123456789' * 4}"))
@click.argument("name")
@click.argument("at", metavar="OWNER/NAME@REVISION")
@click.option("--token", default=None, metavar="TOKEN", help="For a private repository.")
@cache_option
@progress_option
def pin(name: str, at: str, **options: Any) -> None:
    """Note on the card of NAME that the Hub has it, after checking that it does; print the files written.

    For maintainers, in a clone of the repository.
    """
    from context_pred.zoo.pin import pin as note

    for path in note(name, at, **options).files:
        click.echo(path)
