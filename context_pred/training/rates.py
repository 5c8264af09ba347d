"""Learning rates of runs whose length is counted in steps, as the published protocols give them."""

from __future__ import annotations

from dataclasses import dataclass

from context_pred.errors import InvalidInputError


@dataclass(frozen=True)
class StepRates:
    """A rate that falls at milestones, after a linear warm-up.

    In the warm-up of W steps the rate of step t is that of the schedule times 1 − (1 − t / W) · (1 − warmup_start).
    Sources: mmcv 1.x ``StepLrUpdaterHook``, ``warmup="linear"``.

    Args:
        base: The full rate.
        steps: Of the whole run.
        milestones: Steps before which the rate is multiplied by ``factor``, once each.
        factor: As above.
        warmup_steps: W; 0 is none.
        warmup_start: Share of the rate at step 0.
    """

    base: float
    steps: int
    milestones: tuple[int, ...] = ()
    factor: float = 0.1
    warmup_steps: int = 0
    warmup_start: float = 0.001

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check(self.base, self.steps)

    def rate(self, step: int) -> float:
        """Return the rate of step 0 … steps − 1."""
        rate = self.base * self.factor ** sum(step >= milestone for milestone in self.milestones)
        if step < self.warmup_steps:
            rate *= 1 - (1 - step / self.warmup_steps) * (1 - self.warmup_start)
        return rate


@dataclass(frozen=True)
class PolyRates:
    """A rate that falls to ``least`` as a power of what is left: (base − least) · (1 − t / steps)^power + least.

    Source: mmcv 1.x ``PolyLrUpdaterHook``, ``by_epoch=False``.

    Args:
        base: The rate of step 0.
        steps: Of the whole run.
        power: As above.
        least: As above.
    """

    base: float
    steps: int
    power: float = 0.9
    least: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check(self.base, self.steps)

    def rate(self, step: int) -> float:
        """Return the rate of step 0 … steps − 1."""
        return float((self.base - self.least) * (1 - step / self.steps) ** self.power + self.least)


def _check(base: float, steps: int) -> None:
    if base <= 0 or steps < 1:
        raise InvalidInputError(f"A rate of {base} over {steps} steps; accepted: above 0, and 1 or more.")
