"""The command ``context-pred``: parse, call, print. What it does lies in the modules it calls, imported when needed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import click

from context_pred import __version__
from context_pred.errors import StoppedError

from .discover import discover, neighbors, picture, serve
from .options import (
    Group,
    batch_option,
    default_model,
    device_option,
    example,
    model_option,
    pairs,
    progress_option,
    workers_option,
)
from .zoo import zoo


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="context-pred")
def main() -> None:
    """Features from images by context prediction."""


def _size(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.1f} MB"


def _table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@main.command(epilog=example('context-pred models "resnet50*"'))
@click.argument("pattern", default="*")
@click.option("--json", "as_json", is_flag=True, help="Print the whole cards as JSON.")
def models(pattern: str, as_json: bool) -> None:
    """List the models whose names match PATTERN, or show the card of the one that PATTERN names."""
    from context_pred.errors import unknown
    from context_pred.zoo import list_models, model_info
    from context_pred.zoo.registry import shipped

    names = list_models(pattern)
    if not names:
        raise unknown("model", pattern, list_models())
    cards = {name: model_info(name) for name in names}
    if as_json:
        unique = {card.name: card.to_dict() for card in cards.values()}
        click.echo(json.dumps(list(unique.values()), indent=1, ensure_ascii=False))
    elif names == [pattern]:
        _show(cards[pattern].to_dict())
    else:
        here = {card.name for card in shipped()}
        rows = [("name", "backbone", "parameters", "size", "weights", "licence")]
        for name, card in cards.items():
            weights = f"= {card.name}" if name != card.name else "shipped" if name in here else "fetched on first use"
            rows.append(
                (name, card.backbone, f"{card.num_params or 0:,}", _size(card.file_size), weights, card.license)
            )
        _table(rows)


def _show(card: dict[str, Any]) -> None:
    """Print the entries of a card that say something, one a line, then its numbers as a table."""
    metrics = card.pop("metrics")
    for key, value in card.items():
        if value in (None, "", (), [], {}):
            continue
        texts = value if isinstance(value, (list, tuple)) and key in ("notes", "aliases") else [value]
        for text in texts:
            click.echo(f"{key:18} {text}")
    if metrics:
        click.echo()
        columns = [key for key in metrics[0] if key not in ("source", "note")]
        _table([columns, *([str(metric[key]) for key in columns] for metric in metrics)])


@main.command(epilog=example("context-pred extract photos/ --layer feature4 --layer feature5 --out photos.safetensors"))
@click.argument("images", nargs=-1, required=True)
@click.option("--out", required=True, metavar="FILE", help="The .safetensors file to write; its index lies beside it.")
@model_option
@click.option("--layer", "layers", multiple=True, default=("feature5",), show_default=True, help="May be repeated.")
@click.option("--pool", type=click.Choice(["gap", "grid", "none"]), default="gap", show_default=True,
              help="gap: the mean over positions; grid: a few cells a side; none: the whole map.")  # fmt: skip
@batch_option
@workers_option
@click.option("--engine", type=click.Choice(["auto", "torch", "onnxruntime", "openvino"]), default="torch",
              show_default=True, help="Who computes; auto: the fastest that is installed for the device.")  # fmt: skip
@device_option
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), default="float32", show_default=True,
              help="Of the computation; float16 is stored so too, bfloat16 as float32.")  # fmt: skip
@click.option("--strict", is_flag=True, help="Stop at the first damaged or non-image file instead of listing it.")
@click.option("--background", nargs=3, type=click.IntRange(0, 255), default=(255, 255, 255), metavar="R G B",
              help="The colour under transparency.  [default: 255 255 255]")  # fmt: skip
@click.option("--range", "value_range", nargs=2, type=float, default=None, metavar="LO HI",
              help="The values of 16-bit images that become black and white.")  # fmt: skip
@click.option("--shard-rows", type=click.IntRange(1), default=None, metavar="N",
              help="Write numbered files of N images each.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Begin anew where OUT is there already.")
@progress_option
def extract(images: tuple[str, ...], model: str, **options: Any) -> None:
    """Write the features of IMAGES (a folder, files, a quoted glob or a list file) to one safetensors file.

    A run that was stopped goes on where it ended when the same command is given again.
    """
    from context_pred import extract as extraction

    summary = extraction.run(_source(images), model, **options)
    if os.environ.get("RANK", "0") == "0":  # torchrun's other processes have nothing to add
        click.echo(summary)


def _source(images: tuple[str, ...]) -> str | list[str]:
    return images[0] if len(images) == 1 else list(images)


@main.command(epilog=example("context-pred pretrain photos/ --recipe resnet18_1xb64-coslr-300k --out run"))
@click.argument("images", nargs=-1, required=True)
@click.option(
    "--recipe", required=True, metavar="NAME", help="A recipe of the library, or a TOML file; --recipes lists."
)
@click.option("--recipes", is_flag=True, is_eager=True, expose_value=False, callback=lambda c, _, v: _recipes(c, v),
              help="List the library's recipes and exit.")  # fmt: skip
@click.option("--out", required=True, metavar="RUN", help="The run's folder; the model is RUN/model.")
@click.option("--held-out", default=None, metavar="IMAGES", help="Never trained on; they measure the pretext accuracy.")
@click.option(
    "--init", default=None, metavar="MODEL", help="Start from a model of the zoo, a path, or another run's folder."
)
@click.option("--batch-size", type=click.IntRange(1), default=None, metavar="N",
              help="Another global batch; the learning rate is scaled in proportion.")  # fmt: skip
@click.option("--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE",
              help="Another value of one of the recipe's options. May be repeated.")  # fmt: skip
@click.option("--workers", type=click.IntRange(0), default=None, metavar="N",
              help="Processes that decode.  [default: as many as there are cores to spare]")  # fmt: skip
@device_option
@click.option("--resume", is_flag=True, help="Go on with the run in RUN; begin where there is none.")
@click.option("--overwrite", is_flag=True, help="Remove what an earlier run wrote into RUN, and begin.")
@progress_option
def pretrain(images: tuple[str, ...], recipe: str, settings: tuple[str, ...], **options: Any) -> None:
    """Train a model on IMAGES (a folder, files, a quoted glob, a list file or tar shards), which need no labels.

    Several GPUs: torchrun --nproc-per-node 8 --no-python context-pred pretrain …; the batch stays the recipe's.
    """
    import logging

    from context_pred import pretrain as training

    logging.basicConfig(format="%(message)s", level=logging.INFO)
    parsed = pairs(settings, "SECTION.KEY=VALUE", "run.seed=1")
    done = training.run(_source(images), recipe, settings=parsed, **options)
    if os.environ.get("RANK", "0") == "0":
        click.echo(done)


def _recipes(ctx: click.Context, asked: bool) -> None:
    if asked:
        from context_pred.pretrain import list_recipes, read_recipe

        _table([(name, read_recipe(name).title) for name in list_recipes()])
        ctx.exit()


@main.command(epilog=example("context-pred audit resnet18_1xb64-coslr-300k photos/ --out audit"))
@click.argument("model")
@click.argument("images", nargs=-1, required=True)
@click.option("--out", required=True, metavar="DIR", help="The folder to write audit.json and audit.png into.")
@click.option("--size", type=click.IntRange(1), default=None, metavar="PX",
              help="Another shorter side of the photographs than that of training.")  # fmt: skip
@click.option("--at-most", default=500, show_default=True, metavar="N", help="Photographs, chosen at random.")
@click.option("--seed", default=0, show_default=True, metavar="N", help="Of the choice and of every patch.")
@device_option
@progress_option
def audit(model: str, images: tuple[str, ...], **options: Any) -> None:
    """Tell whether MODEL cheats: what accuracy it keeps on IMAGES without colour, borders or adjacent patches.

    MODEL is a name of the zoo, a path, or hf-hub:OWNER/NAME@REVISION. Photographs that it has not seen say most.
    """
    from context_pred.pretrain import audit as shortcuts

    click.echo(shortcuts.run(model, _source(images), **options))


@main.command(epilog=example("context-pred evaluate knn --model resnet18_1xb64-coslr-300k --data photos/ --out knn"))
@click.argument("protocol")
@click.option(
    "--model",
    default=default_model,
    show_default="the shipped one",
    metavar="NAME",
    help="As elsewhere; or random:BACKBONE (seeded), pixels, hog.",
)
@click.option("--data", required=True, metavar="DIR", help="Labelled images: VOCdevkit, ImageNet, Places205, "
              "iNaturalist, train/CLASS and test/CLASS, CLASS alone, or train.txt and test.txt.")  # fmt: skip
@click.option(
    "--out", required=True, metavar="DIR", help="The folder to write result.json, result.md and plot.png into."
)
@click.option("--variant", default=None, metavar="ROW", help="Which row of the protocol.  [default: the data's]")
@click.option("--layer", "layers", multiple=True, help="May be repeated.  [default: the protocol's]")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
              help="Another value of one of the protocol's or the data's options. May be repeated.")  # fmt: skip
@click.option("--seed", "seeds", type=click.IntRange(0), multiple=True, default=(0,), show_default=True,
              help="Of every draw; repeated, the result has means and spreads.")  # fmt: skip
@click.option("--pool", default=None, metavar="NAME", help="How maps are pooled, where the protocol has a choice: "
              "grid or gap.")  # fmt: skip
@click.option("--memory", default=None, metavar="SIZE", help="Bound of the features in memory, as 1GB (knn, linear).")
@click.option("--features", default=None, metavar="DIR", help="Where extracted features are kept, for several runs to "
              "share.  [default: OUT/features]")  # fmt: skip
@click.option("--workers", type=click.IntRange(1), default=None, metavar="N",
              help="Processes or threads.  [default: as many as there are cores]")  # fmt: skip
@device_option
@click.option("--resume", is_flag=True, help="Go on with what OUT holds; the same command does so anyway.")
@click.option("--overwrite", is_flag=True, help="Remove what another evaluation left in OUT, and begin anew.")
@progress_option
def evaluate(
    protocol: str,
    model: str,
    data: str,
    settings: tuple[str, ...],
    pool: str | None,
    memory: str | None,
    resume: bool,
    **options: Any,
) -> None:
    """Measure MODEL by PROTOCOL beside the published figures.

    Frozen features: svm, low-shot-svm, knn, linear. Trained on: semi-supervised, detection, segmentation. The model
    itself: pretext.

    A run that was stopped goes on where it ended when the same command is given again.
    """
    from context_pred import evaluate as evaluation

    if resume and options["overwrite"]:
        raise click.UsageError("--resume goes on and --overwrite begins anew; give one of them.")
    given = pairs(settings, "KEY=VALUE", "k=5")
    given |= {name: value for name, value in (("pool", pool), ("memory", memory)) if value is not None}
    try:
        click.echo(evaluation.run(protocol, model, data, settings=given, **options))
    except StoppedError as stopped:
        click.echo(str(stopped), err=True)
        raise SystemExit(130) from None  # a shell's number of what was interrupted: what was to follow must not


for command in (discover, neighbors, picture, serve, zoo):
    main.add_command(command)
