"""What a run says while it goes on: the bar, ``log.jsonl``, TensorBoard; and the watch that stops a diverging one."""

from __future__ import annotations

import json
import logging
import math
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from context_pred.errors import TrainingDivergedError, storing

if TYPE_CHECKING:
    from context_pred.pretext import PretextResult

logger = logging.getLogger("context_pred")

LOG = "log.jsonl"
TENSORBOARD = "tensorboard"

CHANCE_LOSS = math.log(8)
"""The cross entropy of guessing among eight positions: 2.079 nats a pair."""


class Progress:
    """Show and record a run; with several processes, rank 0's alone.

    ``FOLDER/log.jsonl`` gets a row every ``every`` steps, at each evaluation and at the end, each written out at once:
    ``step``, ``epoch``, ``images`` (seen so far), ``seconds`` (of the whole run, over all resumes), ``lr``, and, since
    the last row, the means ``loss`` and ``accuracy``, ``images_per_second`` and ``waiting`` (share of the time in which
    the loop waited for data); after an evaluation also ``held_out``. Where no step was made since the last row, the row
    of an evaluation has no means. ``FOLDER/tensorboard`` gets the same where the package ``tensorboard`` is installed.

    A run that goes on at ``start_step`` keeps the rows up to there and drops what a killed run wrote beyond.

    Args:
        folder: The run's folder; made where it is missing.
        total_steps: Steps of the whole run.
        start_step: Steps made already; 0 begins an empty log.
        images_per_step: Images of a full step; counts the steps between the last kept row and ``start_step``.
        bar: Show a bar on stderr.
        tensorboard: Write TensorBoard's event files, where that package is installed.
        every: Steps between two rows.

    Raises:
        StorageError: the folder cannot be written to, here or later.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        total_steps: int,
        start_step: int,
        images_per_step: int,
        bar: bool,
        tensorboard: bool = True,
        every: int = 50,
    ) -> None:
        self.path = Path(folder) / LOG
        self.every = every
        last = self._begin_log(start_step)
        self._images = int(last.get("images", 0)) + (start_step - int(last.get("step", 0))) * images_per_step
        self._start = self._row_at = self._step_at = time.perf_counter()
        self._seconds_before = float(last.get("seconds", 0.0))
        self._state: dict[str, Any] = {"step": start_step, "epoch": last.get("epoch", 0.0)}
        self._pending: list[tuple[float | Tensor, float | Tensor, int]] = []
        self._since_row: list[tuple[float, float, int]] = []
        self._recent: deque[tuple[float, float, int]] = deque(maxlen=every)
        self._waited = 0.0
        self._held_out_text = self._speed_text = ""
        self._speed: deque[tuple[float, int]] = deque([(0.0, self._images)], maxlen=2 * every)
        with storing(self.path):
            self._log = self.path.open("a", encoding="utf-8")
        self._writer = _summary_writer(self.path.parent / TENSORBOARD, start_step) if tensorboard else None
        # A terminal is redrawn twice a second; a file that catches stderr gets a line a minute.
        self._interval = 0.5 if sys.stderr.isatty() else 60.0
        self._shown_at = -math.inf
        self._bar = tqdm(
            total=total_steps,
            initial=start_step,
            unit="step",
            disable=not bar,
            smoothing=0.05,
            mininterval=self._interval,
            dynamic_ncols=True,
        )

    @property
    def images(self) -> int:
        """Images seen so far, over all resumes."""
        return self._images

    @property
    def seconds(self) -> float:
        """Seconds of the run so far, over all resumes; what a killed run did after its last row is not counted."""
        return self._seconds_before + time.perf_counter() - self._start

    def step(
        self,
        step: int,
        epoch: float,
        lr: float,
        loss: float | Tensor,
        accuracy: float | Tensor | None,
        images: int,
        waited_seconds: float,
    ) -> None:
        """Record one step. Tensors stay on their device until a row or the bar needs them.

        Args:
            step: Steps made so far, this one with them: 1 after the first.
            epoch: Passes over the images so far, with the fraction of the present one.
            lr: The step's learning rate.
            loss: Mean cross entropy a pair over the global batch, in nats, whatever is optimised.
            accuracy: Share of the global batch's pairs that were answered right, 0 … 1; None where none is asked.
            images: Images of the step, over all ranks.
            waited_seconds: Seconds of the step in which the loop waited for data.
        """
        self._state = {"step": step, "epoch": epoch, "lr": lr}
        self._images += images
        asked = math.nan if accuracy is None else accuracy
        self._pending.append((_detached(loss), _detached(asked), images))
        self._waited += waited_seconds
        self._step_at = time.perf_counter()
        self._speed.append((self._step_at - self._start, self._images))
        if step % self.every == 0:
            self._write_row()
        if not self._bar.disable:
            if self._step_at - self._shown_at >= self._interval:
                self._shown_at = self._step_at
                self._describe()
            self._bar.update(step - self._bar.n)

    def held_out(self, step: int, result: PretextResult) -> None:
        """Record an evaluation; the time since the last ``step`` counts for the run, not for its images a second.

        Args:
            step: Steps made so far.
            result: The accuracy on held-out images.
        """
        self._state["step"] = step
        self._write_row(result)
        self._held_out_text = f", held-out {100 * result.accuracy:.1f} %"
        if not self._bar.disable:
            self._describe()
        self._speed = deque([(time.perf_counter() - self._start, self._images)], maxlen=self._speed.maxlen)

    def close(self) -> None:
        """Write what is left and close the files and the bar; a second call does nothing."""
        if self._log.closed:
            return
        try:
            if self._pending or self._since_row:
                self._write_row()
        finally:
            self._log.close()
            if self._writer is not None:
                self._writer.close()
            if not self._bar.disable:
                self._settle()
                self._describe()
            self._bar.close()

    def __enter__(self) -> Progress:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close, whatever happened."""
        self.close()

    def _begin_log(self, start_step: int) -> dict[str, Any]:
        """Drop the rows beyond ``start_step`` and a torn last line; return the last row that stays."""
        with storing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            rows = [row for row in read_log(self.path) if row["step"] <= start_step] if start_step else []
            new = self.path.with_name(self.path.name + ".new")
            with new.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, self.path)
        return rows[-1] if rows else {}

    def _settle(self) -> None:
        """Turn what waits on a device into numbers, in one transfer."""
        if self._pending:
            losses, accuracies, images = zip(*self._pending, strict=True)
            settled = list(zip(_numbers(losses), _numbers(accuracies), images, strict=True))
            self._pending.clear()
            self._since_row += settled
            self._recent += settled

    def _write_row(self, result: PretextResult | None = None) -> None:
        self._settle()
        row: dict[str, Any] = {
            "step": self._state["step"],
            "epoch": round(self._state["epoch"], 6),
            "images": self._images,
            "seconds": round(self.seconds, 3),
        }
        if "lr" in self._state:
            row["lr"] = self._state["lr"]
        if self._since_row:
            took = max(self._step_at - self._row_at, 1e-9)
            row["loss"], row["accuracy"] = _means(self._since_row)
            row["images_per_second"] = round(sum(images for *_, images in self._since_row) / took, 3)
            row["waiting"] = round(min(self._waited / took, 1.0), 4)
        self._to_tensorboard(row, result)
        if result is not None:
            row["held_out"] = result.to_dict()
        with storing(self.path):
            self._log.write(json.dumps(row) + "\n")
            self._log.flush()
        self._since_row, self._waited = [], 0.0
        self._row_at = time.perf_counter()

    def _to_tensorboard(self, row: dict[str, Any], result: PretextResult | None) -> None:
        if self._writer is None:
            return
        values = {
            "training/loss": row.get("loss"),
            "training/accuracy": row.get("accuracy"),
            "training/learning_rate": row.get("lr"),
            "speed/images_per_second": row.get("images_per_second"),
            "speed/waiting": row.get("waiting"),
        }
        if result is not None:
            values |= {"held_out/accuracy": result.accuracy, "held_out/loss": result.loss}
        with storing(self.path.parent / TENSORBOARD):
            for name, value in values.items():
                if value is not None:
                    self._writer.add_scalar(name, value, row["step"])

    def _describe(self) -> None:
        """Put the means of the last steps on the bar; drawing is tqdm's."""
        self._settle()
        loss, accuracy = _means(self._recent)
        if loss is None:
            return
        (before, first), (now, last) = self._speed[0], self._speed[-1]
        if now > before and last > first:
            rate = (last - first) / (now - before)
            self._speed_text = f", {rate:,.{0 if rate >= 10 else 2}f} images/s"
        right = "" if accuracy is None else f", accuracy {100 * accuracy:.1f} %"
        text = f"loss {loss:.3f}{right}{self._held_out_text}{self._speed_text}"
        self._bar.set_description_str(f"epoch {self._state['epoch']:.2f}", refresh=False)
        self._bar.set_postfix_str(text, refresh=False)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a log; a line that a killed run left torn is passed over, a missing file has none."""
    rows: list[dict[str, Any]] = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return rows
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


class LossWatch:
    """Stop a run that has diverged, and say what to try.

    A run has diverged

    - at once where a loss is NaN or infinite and the step was taken;
    - where more than half of the last ``window`` steps after the warm-up lost more than ln 8 + 1 = 3.08 nats a pair,
      one nat worse than guessing, though the loss had been lower before. Single spikes, which a high learning rate
      brings, do not count, nor does a start from weights that do not fit yet;
    - where ``window`` steps running were skipped because float16 overflowed: the loss scale has then shrunk 2^50-fold.
      Fewer skipped steps are the loss scaling at work.

    The authors' training loop stops on NaN and on weights and gradients out of all proportion (deepcontext's
    ``train.py``); here the loss alone is watched.

    Args:
        warmup_steps: Steps of the learning rate's warm-up.
        window: Steps that must agree.
        chance: The loss of guessing; None: a loss is only looked at for being a number.
    """

    def __init__(self, *, warmup_steps: int = 0, window: int = 50, chance: float | None = CHANCE_LOSS) -> None:
        self.warmup_steps, self.window = warmup_steps, window
        self.limit = math.inf if chance is None else chance + 1
        self._last: deque[float] = deque(maxlen=window)
        self._good: deque[float] = deque(maxlen=5)
        self._was_below = False
        self._skipped = 0

    def check(self, step: int, lr: float, loss: float, *, skipped: bool = False) -> None:
        """Look at one step's loss.

        Args:
            step: Steps made so far, this one with them.
            lr: The step's learning rate.
            loss: Mean cross entropy a pair over the global batch, in nats, also where the sum is optimised.
            skipped: The loss scaler found an overflow and left the weights as they were.

        Raises:
            TrainingDivergedError: the run has diverged.
        """
        if skipped:
            self._skipped += 1
            if self._skipped >= self.window:
                raise self._error(step, lr, f"float16 overflowed in {self._skipped} steps running")
            return
        self._skipped = 0
        if not math.isfinite(loss):
            raise self._error(step, lr, f"the loss is {loss}")
        if step > self.warmup_steps:
            self._last.append(loss)
        if len(self._last) == self.window and self._was_below:
            middle = statistics.median_low(self._last)  # above the limit: more than half are
            if middle > self.limit:
                what = f"the median loss of the last {self.window} steps is {middle:.3g} nats a pair"
                raise self._error(step, lr, f"{what}, guessing has {CHANCE_LOSS:.2f}")
        if loss <= self.limit:
            self._was_below = True
            self._good.append(loss)

    def _error(self, step: int, lr: float, what: str) -> TrainingDivergedError:
        good = ", ".join(f"{loss:.4g}" for loss in self._good)
        before = f"the last good losses: {good}" if good else "there was no good loss before"
        return TrainingDivergedError(
            f"Training diverged at step {step} with learning rate {lr:.3g}: {what} ({before}). Try a lower learning "
            f"rate; a longer warm-up; bfloat16 or float32 instead of float16; and look for damaged or flat images in "
            f"the run's damaged.jsonl and the corpus check."
        )


def _detached(value: float | Tensor) -> float | Tensor:
    return value.detach() if isinstance(value, Tensor) else float(value)


def _numbers(values: Sequence[float | Tensor]) -> list[float]:
    tensors = [value for value in values if isinstance(value, Tensor)]
    if len(tensors) < len(values):
        return [float(value) for value in values]
    numbers: list[float] = torch.stack([tensor.reshape(()).float() for tensor in tensors]).tolist()
    return numbers


def _means(steps: Sequence[tuple[float, float, int]]) -> tuple[float | None, float | None]:
    """Return the means of loss and accuracy over images; steps that overflowed do not count, JSON has no NaN."""
    good = [(loss, accuracy, images) for loss, accuracy, images in steps if math.isfinite(loss)]
    total = sum(images for *_, images in good)
    if not total:
        return None, None
    accuracy = sum(accuracy * images for _, accuracy, images in good) / total
    return (
        round(sum(loss * images for loss, _, images in good) / total, 6),
        round(accuracy, 6) if math.isfinite(accuracy) else None,
    )


def _summary_writer(folder: Path, start_step: int) -> Any:
    """Return TensorBoard's writer, or None where that package is not installed."""
    if find_spec("tensorboard") is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        logger.warning("no TensorBoard files: %s", error)
        return None
    with storing(folder):
        # Events from purge_step on are hidden: what a killed run wrote beyond its checkpoint.
        return SummaryWriter(str(folder), purge_step=start_step + 1 if start_step else None)
