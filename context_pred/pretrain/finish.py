"""What a run leaves behind: the model as the zoo takes it, its figures, sampled pairs, the report."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from torch import Tensor

from context_pred.card import Metric
from context_pred.errors import StorageError
from context_pred.hub_readme import PAPER
from context_pred.model import ContextPredictionModel
from context_pred.patches import GridPatchSampler, RandomPairSampler
from context_pred.pretext import PretextResult, cut_batch
from context_pred.training import keys
from context_pred.weights_file import write_bytes
from context_pred.zoo.runs import preprocessing

from . import report
from .folder import write_result
from .loading import load

if TYPE_CHECKING:
    from .run import Run

SAMPLED = 24
"""Pairs that the report shows."""


def finish(
    run: Run, held_out: PretextResult | None, training: PretextResult, seconds: float, images_seen: int, steps: int
) -> None:
    """Write the finished model, its figures and the report into the run's folder.

    Args:
        run: The run, its model trained.
        held_out: The pretext accuracy on held-out images, if there are any.
        training: The same on training images, dropout off.
        seconds: Of the whole run.
        images_seen: Over all epochs.
        steps: Optimiser steps.

    Raises:
        StorageError: the disk is full; the run's last checkpoint stands.
    """
    try:
        _write(run, held_out, training, seconds, images_seen, steps)
    except StorageError as error:
        raise StorageError(f"{error} {run.ranks.kept}") from error


def _write(
    run: Run, held_out: PretextResult | None, training: PretextResult, seconds: float, images_seen: int, steps: int
) -> None:
    figures = {
        "held_out": held_out.to_dict() if held_out is not None else None,
        "training": training.to_dict(),
        "seconds": seconds,
        "images_seen": images_seen,
        "steps": steps,
    }
    write_result(run.folder, figures)
    write_bytes(safetensors.torch.save(_sampled_pairs(run)), run.folder / "samples.safetensors")
    export(run, held_out, training, seconds=seconds, images_seen=images_seen, steps=steps)
    report.write(run.folder)


def export(
    run: Run, held_out: PretextResult | None, training: PretextResult, *, seconds: float, images_seen: int, steps: int
) -> None:
    """Write ``RUN/model``: safetensors in float32, the card, and what huggingface-hub's mixin adds."""
    recipe, options = run.recipe, run.recipe.model
    state = {
        key: value.float() if value.is_floating_point() else value for key, value in run.model.state_dict().items()
    }
    with torch.random.fork_rng(devices=[]):
        model = ContextPredictionModel(
            options.backbone,
            in_channels=options.in_channels,
            neck_channels=options.neck_channels,
            dropout=options.dropout,
        )
    model.load_weights(state)
    model.card = model.card.replace(
        **preprocessing(run.sampler),
        patch_sampler=run.sampler.to_config(),
        name=recipe.name,
        title=recipe.title,
        description=f"Trained by context prediction with the recipe {recipe.name}.",
        dataset=f"{len(run.split.training):,} unlabelled images",
        recipe=recipe.name,
        trained=time.strftime("%Y-%m-%d"),
        paper=PAPER,
        notes=(
            f"{images_seen:,} images in {steps:,} steps of {recipe.batch.images} "
            f"({images_seen / len(run.split.training):.1f} epochs), {seconds / 60:.1f} minutes.",
            *run.notes,
        ),
        metrics=_metrics(recipe.name, held_out, training),
    )
    model.eval().save_pretrained(run.folder / "model")


def _metrics(name: str, held_out: PretextResult | None, training: PretextResult) -> tuple[Metric, ...]:
    found = [("training images", training)]
    if held_out is not None:
        found.insert(0, ("held-out images", held_out))
    return tuple(
        Metric(
            benchmark="Pretext accuracy",
            dataset=f"{result.images:,} {images}",
            layer="",
            metric="%",
            value=f"{100 * result.accuracy:.1f} ({100 * result.low:.1f} … {100 * result.high:.1f})",
            measured_on=name,
            source="context-pred pretrain",
            note="The recipe's own sampler, dropout off; with the 95 % interval over whole images; chance is 12.5 %.",
        )
        for images, result in found
    )


@torch.no_grad()
def _sampled_pairs(run: Run) -> dict[str, Tensor]:
    """Cut some pairs of held-out (or training) images, one an image, and let the model say where the neighbour lies."""
    collection = run.split.held_out or run.split.training
    count = min(SAMPLED, len(collection))
    chosen = [(0, number * len(collection) // count) for number in range(count)]
    seed = keys.seed(run.recipe.run.seed, 3)
    (batch,) = load(collection, run.preparation, [chosen], seed=seed, workers=0)
    pairs = cut_batch(run.sampler, batch, run.device, torch.Generator().manual_seed(seed))
    dtype = next(run.model.parameters()).dtype
    model = run.model.eval()
    image = pairs.image[pairs.center]
    draw = torch.rand(len(pairs), generator=torch.Generator().manual_seed(seed)).to(image.device)
    mine = [torch.nonzero(image == k).flatten() for k in range(count)]
    picked = torch.stack([index[draw[index].argmax()] for index in mine if len(index)])
    neighbors, centers = pairs.patches[pairs.neighbor[picked]], pairs.patches[pairs.center[picked]]
    logits = model(neighbors.to(dtype), centers.to(dtype))
    return {
        "neighbors": _pixels(run.sampler, neighbors),
        "centers": _pixels(run.sampler, centers),
        "position": pairs.position[picked].cpu().contiguous(),
        "probabilities": logits.float().softmax(1).cpu().contiguous(),
    }


def _pixels(sampler: GridPatchSampler | RandomPairSampler, patches: Tensor) -> Tensor:
    pixels = sampler.to_pixels(patches.float()).mul(255).round().to(torch.uint8).cpu()
    if pixels.shape[1] != 3:
        pixels = pixels[:, :1].expand(-1, 3, -1, -1)
    return pixels.contiguous()
