"""Checkpoints of this library's own pretraining runs: their recipe tells what a card has to say."""

from __future__ import annotations

import tomllib
from typing import Any

import torch

from ..card import Card
from ..errors import WeightsError
from ..model import ContextPredictionModel
from ..patches import GridPatchSampler, RandomPairSampler, sampler_from_config
from .checkpoints import RunState


def card_of(state: RunState) -> Card:
    """Make the card of a run's checkpoint, as the finished run would write it, but for its name and its figures.

    Raises:
        WeightsError: the recipe in the file is none, or lacks what a card needs.
    """
    try:
        recipe = tomllib.loads(state.recipe)
        network, sampler = recipe["model"], sampler_from_config(recipe["sampler"])
        options = {key: network[key] for key in ("backbone", "in_channels", "neck_channels") if key in network}
        with torch.device("meta"):
            untrained = ContextPredictionModel(**options).card
        return untrained.replace(
            **preprocessing(sampler),
            patch_sampler=sampler.to_config(),
            title=str(recipe["title"]),
            description=f"A checkpoint, after {state.step:,} steps, of a run with the recipe {recipe['name']}.",
            recipe=str(recipe["name"]),
        )
    except Exception as error:  # the text is anybody's, and so are its mistakes
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise WeightsError(f"it is a checkpoint of a run, but its recipe does not tell the network ({what})") from error


def preprocessing(sampler: GridPatchSampler | RandomPairSampler) -> dict[str, Any]:
    """Return the preprocessing of whole images that fits what a sampler trained the network on: a card's entries."""
    if isinstance(sampler, GridPatchSampler):
        return {"mean": sampler.mean, "std": sampler.std, "channel_order": sampler.channel_order}
    return {"mean": sampler.mean, "std": (1 / 255,) * 3}  # grey levels, the mean subtracted
