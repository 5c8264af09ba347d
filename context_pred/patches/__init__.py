"""The pretext task: positions, the samplers that cut patches, and what keeps a network from cheating."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from context_pred.errors import InvalidInputError, unknown

from .grid import GridPatchSampler
from .layout import POSITIONS
from .pairs import PatchDraw, PatchPairs, cut_boxes, joined
from .random_pairs import RandomPairSampler

__all__ = [
    "POSITIONS",
    "GridPatchSampler",
    "PatchDraw",
    "PatchPairs",
    "RandomPairSampler",
    "cut_boxes",
    "joined",
    "sampler_from_config",
]

SAMPLERS: dict[str, Callable[..., GridPatchSampler | RandomPairSampler]] = {
    "GridPatchSampler": GridPatchSampler,
    "RandomPairSampler": RandomPairSampler,
}


def sampler_from_config(config: dict[str, Any]) -> GridPatchSampler | RandomPairSampler:
    """Make a sampler from a card's ``patch_sampler`` entry.

    Args:
        config: "type" and the options, as ``to_config`` gives them.

    Raises:
        UnknownNameError: no sampler of that type.
        InvalidInputError: an option the sampler does not have.
    """
    options = dict(config)
    kind = options.pop("type", None)
    if kind not in SAMPLERS:
        raise unknown("sampler", str(kind), SAMPLERS)
    try:
        return SAMPLERS[kind](**options)
    except TypeError as error:
        raise InvalidInputError(f"{kind} does not take these options: {error}") from error
