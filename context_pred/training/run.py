"""The steps of a run, with what lies between them: the watch, the log, evaluations, checkpoints, a request to stop."""

from __future__ import annotations

from collections.abc import Callable

from .loop import Loop, StopRequest
from .progress import LossWatch, Progress


def take_steps(
    loop: Loop,
    first: int,
    *,
    log: Progress | None,
    stop: StopRequest,
    watch: LossWatch,
    per_epoch: int,
    between: Callable[[int], bool],
    every: int,
    save: Callable[[int, bool], None],
) -> int:
    """Take steps to the run's end, or until someone asks to stop.

    Args:
        loop: The loop.
        first: Steps made already.
        log: What shows and records them; rank 0's alone.
        stop: Whether someone asked.
        watch: What stops a diverging run.
        per_epoch: Steps in an epoch.
        between: Called after each step with the number made; True where that was the best so far.
        every: Steps between two checkpoints.
        save: Writes a checkpoint of so many steps, and whether it is the best.

    Returns:
        Steps made in all.

    Raises:
        TrainingDivergedError: the run has diverged.
    """
    done, total = first, loop.rates.steps
    for stepped in loop.steps(first):
        done = stepped.step
        watch.check(done, stepped.rate, stepped.loss, skipped=stepped.skipped)
        if log is not None:
            share = stepped.hits / stepped.asked if stepped.asked else None
            log.step(done, done / per_epoch, stepped.rate, stepped.loss, share, stepped.images, stepped.waited)
        better = between(done)
        stopping = stop.asked()
        if stopping or better or done == total or done % every == 0:
            save(done, better)
        if stopping:
            break
    return done
