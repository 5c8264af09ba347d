"""The learning rate of every step, and how many steps there are, from a recipe's schedule alone."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from context_pred.errors import InvalidInputError


@dataclass(frozen=True)
class ScheduleOptions:
    """How long a run is and how its learning rate moves: a recipe's ``[schedule]``.

    Args:
        epochs: Length in passes over the images. Exactly one of ``epochs`` and ``images`` is given.
        images: Length in images seen.
        decay: "constant", "steps" (times ``factor`` at each of ``milestones``), or "cosine" (to 0, from the end of
            the warm-up on).
        milestones: Of "steps": epochs, counted from 0, at whose first step the rate falls. Those beyond the run's end
            are never reached.
        factor: Of "steps".
        warmup_epochs: Length of the linear warm-up; 0 is none. At most one of the two is given.
        warmup_images: The same in images.
        warmup_start: Share of the rate that the first step has.
        warmup_ends: "after": the step after the warm-up's W steps is the first at the full rate (mmcv, 0.x);
            "at": the last of the W steps is (mmengine, 1.x).

    Raises:
        InvalidInputError: an option out of its range, or options that exclude one another.
    """

    epochs: int | None = dataclasses.field(default=None, metadata={"unset": "the length is given in images"})
    images: int | None = dataclasses.field(default=None, metadata={"unset": "the length is given in epochs"})
    decay: Literal["constant", "steps", "cosine"] = "constant"
    milestones: tuple[int, ...] = ()
    factor: float = 0.1
    warmup_epochs: float | None = dataclasses.field(default=None, metadata={"unset": "see warmup_images"})
    warmup_images: int | None = dataclasses.field(default=None, metadata={"unset": "see warmup_epochs"})
    warmup_start: float = 0.1
    warmup_ends: Literal["after", "at"] = "after"

    def __post_init__(self) -> None:
        """Check the options against one another."""
        if (self.epochs is None) == (self.images is None):
            raise InvalidInputError(
                f"epochs = {self.epochs} and images = {self.images}: exactly one of them says how long the run is."
            )
        if min(value for value in (self.epochs, self.images) if value is not None) < 1:
            raise InvalidInputError(f"epochs = {self.epochs}, images = {self.images}: accepted is 1 or more.")
        if self.warmup_epochs is not None and self.warmup_images is not None:
            raise InvalidInputError(
                f"warmup_epochs = {self.warmup_epochs} and warmup_images = {self.warmup_images}: give one of them."
            )
        if min(self.warmup_epochs or 0, self.warmup_images or 0) < 0:
            raise InvalidInputError("A warm-up is not negative; 0 is none.")
        if not 0 <= self.warmup_start <= 1:
            raise InvalidInputError(f"warmup_start = {self.warmup_start}: accepted is a share of the rate, 0 … 1.")
        if not 0 < self.factor <= 1:
            raise InvalidInputError(f"factor = {self.factor}: accepted is above 0, up to 1.")
        if bool(self.milestones) != (self.decay == "steps"):
            raise InvalidInputError(
                f'decay = "{self.decay}" with milestones = {list(self.milestones)}: milestones belong to '
                'decay = "steps", which needs at least one.'
            )
        if list(self.milestones) != sorted(set(self.milestones)) or any(m < 1 for m in self.milestones):
            raise InvalidInputError(
                f"milestones = {list(self.milestones)}: accepted are epochs from 1 up, each later than the one before."
            )


class Schedule:
    """The learning rate as a function of the step alone: nothing to save, nothing to resume.

    Warm-up and decay multiply, as upstream's do: a milestone inside the warm-up lowers the rates of the rest of the
    warm-up too. A run with fewer steps than its warm-up ends below the full rate; ``remarks`` says so.

    Sources: mmcv 1.x ``StepLrUpdaterHook`` with ``warmup="linear"`` ("after"); mmengine 0.x ``LinearLR`` with
    ``MultiStepLR``, both ``convert_to_iter_based`` ("at").

    Args:
        options: The recipe's schedule.
        steps_per_epoch: Optimiser steps in a pass over the images; the last one may hold fewer images.
        images_per_step: The global batch.
        base_lr: The full learning rate.

    Raises:
        InvalidInputError: no step in an epoch, no image in a step, or a rate that is not above 0.
    """

    def __init__(self, options: ScheduleOptions, steps_per_epoch: int, images_per_step: int, base_lr: float) -> None:
        if steps_per_epoch < 1 or images_per_step < 1 or not 0 < base_lr < math.inf:
            raise InvalidInputError(
                f"steps_per_epoch={steps_per_epoch}, images_per_step={images_per_step}, base_lr={base_lr}: accepted "
                "are whole numbers from 1 up and a rate above 0."
            )
        self.options, self.steps_per_epoch, self.images_per_step = options, steps_per_epoch, images_per_step
        self.base_lr = base_lr

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        if self.options.epochs is not None:
            return self.options.epochs * self.steps_per_epoch
        return math.ceil((self.options.images or 0) / self.images_per_step)

    @property
    def warmup_steps(self) -> int:
        """W: steps of the warm-up."""
        if self.options.warmup_images is not None:
            return math.ceil(self.options.warmup_images / self.images_per_step)
        return round((self.options.warmup_epochs or 0) * self.steps_per_epoch)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0; steps from ``steps`` on have the last one's.

        Raises:
            InvalidInputError: a negative step.
        """
        if step < 0:
            raise InvalidInputError(f"Steps are counted from 0; there is no step {step}.")
        step = min(step, self.steps - 1)
        return self.base_lr * self._decay(step) * self._warmup(step)

    def _warmup(self, step: int) -> float:
        warmup = self.warmup_steps
        if step >= warmup:
            return 1.0
        # With "at" the last of the steps 0 … W − 1 has the full rate; a warm-up of one step is then none.
        full = warmup if self.options.warmup_ends == "after" else warmup - 1
        return 1.0 - (1.0 - self.options.warmup_start) * (1.0 - step / full) if full else 1.0

    def _decay(self, step: int) -> float:
        if self.options.decay == "steps":
            epoch = step // self.steps_per_epoch
            return self.options.factor ** sum(epoch >= milestone for milestone in self.options.milestones)
        if self.options.decay == "cosine" and step > self.warmup_steps:
            done = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
            return 0.5 * (1.0 + math.cos(math.pi * done))
        return 1.0

    def remarks(self) -> tuple[str, ...]:
        """Say, a sentence each, what of the schedule this run will never reach; for the run's notes."""
        found = []
        if self._warmup(self.steps - 1) < 1:
            found.append(
                f"The run's {self.steps:,} steps end inside its warm-up of {self.warmup_steps:,}: the learning rate "
                f"gets no further than {self.rate(self.steps - 1):.4g} of {self.base_lr:.4g}."
            )
        epochs = self.steps / self.steps_per_epoch
        beyond = [str(milestone) for milestone in self.options.milestones if milestone >= epochs]
        if beyond:
            found.append(f"The run ends after {epochs:.4g} epochs, before the milestones at {', '.join(beyond)}.")
        return tuple(found)
