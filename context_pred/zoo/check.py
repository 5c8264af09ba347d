"""Verification on demand: is a model's file on disk what it should be?"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from context_pred.card import Card
from context_pred.errors import WeightsError

from . import sources
from .download import file_sha256
from .hub import Options


@dataclass(frozen=True)
class Report:
    """What ``verify`` found; ``problems`` is empty where all is well."""

    name: str
    path: Path
    origin: str
    sha256: str
    expected: str | None
    tensors: int
    parameters: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def __str__(self) -> str:
        head = f"{self.name}: {'ok' if self.ok else 'NOT OK'}"
        lines = [
            f"  file    {self.path} ({self.origin})",
            f"  SHA-256 {self.sha256}{'' if self.expected else ' (none is promised)'}",
            f"  holds   {self.tensors} tensors, {self.parameters:,} parameters",
        ]
        return "\n".join([head, *lines, *(f"  wrong   {problem}" for problem in self.problems)])


def verify(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Report:
    """Check a model that is on this machine, without any request: its digest, and every key and shape.

    Args:
        name_or_path: As ``load_pretrained`` takes it.
        revision: Of an ``hf-hub:`` model: commit, branch or tag.
        cache_dir: In place of the Hub's own cache folder.

    Returns:
        What was found; ``str()`` says it in lines, ``problems`` is empty where all is well.

    Raises:
        NotCachedError: nothing is here to check.
        UnknownNameError: no such model.
        InvalidInputError: a ``revision`` with a name that takes none, or an ``hf-hub:`` model without one.
    """
    target = sources.resolve(name_or_path, revision)
    found = sources.fetch(target, Options(cache_dir, local_files_only=True, progress=False))
    digest = file_sha256(found.path)
    problems: list[str] = []
    if found.sha256 is not None and digest != found.sha256:
        problems.append(f"SHA-256 should be {found.sha256}: the file is damaged or another one; delete {found.path}")
    card, tensors, parameters = found.card, 0, 0
    try:
        tensors, parameters = _strictly(found.path, card)
    except WeightsError as error:
        problems.append(str(error))
    if card is not None and card.num_params not in (None, parameters) and tensors:
        problems.append(f"the card counts {card.num_params:,} parameters")
    return Report(
        card.name if card is not None else str(name_or_path),
        found.path,
        found.origin,
        digest,
        found.sha256,
        tensors,
        parameters,
        tuple(problems),
    )


def _strictly(path: Path, card: Card | None) -> tuple[int, int]:
    """Fit the file into the card's network, or into the one its keys show; return its tensors and parameters."""
    from context_pred.model import ContextPredictionModel
    from context_pred.weights_file import read_weights

    from .convert import convert_checkpoint

    if card is None:
        state = convert_checkpoint(path, channel_order="rgb", label_order="raster").state_dict
        return len(state), sum(value.numel() for key, value in state.items() if _learned(key))
    state = read_weights(path)
    model = ContextPredictionModel.from_card(card, state)
    return len(state), sum(parameter.numel() for parameter in model.parameters())


def _learned(key: str) -> bool:
    return not key.endswith(("running_mean", "running_var", "num_batches_tracked"))
