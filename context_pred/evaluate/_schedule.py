"""Schedules counted in epochs, as the classification protocols give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from context_pred.errors import InvalidInputError
from context_pred.training.rates import StepRates


def check(
    epochs: int, milestones: tuple[int, ...], factor: float, batch: int, per_device: int, evaluate_every: int = 0
) -> None:
    """Raise InvalidInputError where a number of a training is out of its range."""
    if epochs < 1 or batch < 1:
        raise InvalidInputError(f"epochs = {epochs}, batch = {batch}: accepted is 1 or more.")
    if any(milestone < 1 for milestone in milestones) or not 0 < factor <= 1:
        raise InvalidInputError(
            f"milestones = {list(milestones)}, factor = {factor}: accepted are epochs from 1 up, and a factor above 0 "
            "and up to 1."
        )
    if per_device < 0 or (per_device and batch % per_device):
        raise InvalidInputError(f"per_device = {per_device}: accepted is what divides the batch of {batch}, or 0.")
    if evaluate_every < 0:
        raise InvalidInputError(f"evaluate_every = {evaluate_every}: accepted is 0 (at the end alone) or more.")


def check_sgd(momentum: float, nesterov: bool, weight_decay: float, init_std: float) -> None:
    """Raise InvalidInputError where a number of the optimiser or of the random weights is out of its range."""
    if not 0 <= momentum < 1 or weight_decay < 0 or init_std < 0:
        raise InvalidInputError(
            f"momentum = {momentum}, weight_decay = {weight_decay}, init_std = {init_std}: accepted is a momentum from "
            "0 to below 1, the others from 0 up."
        )
    if nesterov and not momentum:
        raise InvalidInputError("nesterov needs a momentum above 0; accepted without: nesterov = false.")


def step_rates(base: float, epochs: int, milestones: tuple[int, ...], factor: float, per_epoch: int) -> StepRates:
    """Return the schedule of so many epochs of so many steps."""
    return StepRates(base, epochs * per_epoch, tuple(milestone * per_epoch for milestone in milestones), factor)


def scaled(epochs: int, milestones: tuple[int, ...], given: Mapping[str, Any]) -> dict[str, Any]:
    """Where other epochs were given and no milestones, return these at the same shares of them; else nothing."""
    other = str(given.get("epochs", "")).strip()
    if not other.isdecimal() or "milestones" in given:
        return {}
    moved = (round(milestone * int(other) / epochs) for milestone in milestones)
    return {"milestones": tuple(milestone for milestone in moved if milestone)}
