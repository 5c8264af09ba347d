"""The loop: steps of a global batch, computed in micro-batches by one process or by many.

A step's gradient is that of its micro-batches together, whoever computes them: one process adds them up one after the
other, several average theirs with ``DistributedDataParallel``. Batch norm sees one micro-batch at a time; the running
statistics are those of the first, as upstream's are those of its first GPU (mmselfsup neither synchronises nor
averages them, and rank 0's are saved).
"""

from __future__ import annotations

import contextlib
import inspect
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from context_pred.ranks import Ranks

from . import keys
from .order import Order

PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


class Objective(Protocol):
    """What a micro-batch minimises."""

    def __call__(self, model: nn.Module, batch: Any, noise: torch.Generator) -> tuple[Tensor, Tensor, int]:
        """Compute (loss, hits, number asked) of one micro-batch."""


class Rates(Protocol):
    """The learning rate of each step, and how many steps there are."""

    @property
    def steps(self) -> int:
        """Of the whole run."""

    def rate(self, step: int) -> float:
        """Return the rate of step 0 … steps − 1."""


@dataclass(frozen=True)
class Stepped:
    """One finished step, over all ranks.

    Attributes:
        step: Steps made so far, this one with them.
        rate: Its learning rate.
        loss: Mean over its examples (the micro-batches' means averaged, where those are what is optimised).
        hits: Examples that were answered right.
        asked: Examples; 0 where there is nothing to be right about.
        images: Images.
        waited: Seconds in which the ranks waited for data, on average.
        skipped: The loss scaler found an overflow and left the weights as they were.
    """

    step: int
    rate: float
    loss: float
    hits: int
    asked: int
    images: int
    waited: float
    skipped: bool


class Loop:
    """Train a model step by step; iterate over ``steps(first)``.

    A group of parameters with a "multiplier" learns at that many times the rate.

    Every step seeds torch's generators from (seed, step, micro-batch), so that dropout and noise depend on nothing
    that happened before it, nor on how many ranks there are.

    Args:
        model: On its device.
        objective: What a micro-batch minimises.
        optimizer: Its parameters are the model's.
        rates: The schedule.
        order: Which micro-batches a step has.
        batches: Makes the iterator of this rank's micro-batches, in order, from a first step on.
        ranks: The processes that share the run.
        device: Where the model is.
        precision: "bfloat16" and "float16" compute with autocast, the latter with a scaled loss.
        average: False where the objective sums over its examples: the micro-batches' losses are then added.
        seed: Of dropout and noise.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        rates: Rates,
        order: Order,
        batches: Callable[[int], Iterator[Any]],
        ranks: Ranks,
        *,
        device: torch.device,
        precision: str = "float32",
        average: bool = True,
        seed: int = 0,
    ) -> None:
        self.model, self.objective, self.optimizer, self.rates = model, objective, optimizer, rates
        self.order, self.batches, self.ranks, self.device, self.seed = order, batches, ranks, device, seed
        self.dtype = PRECISIONS[precision]
        self.numbers = order.numbers(ranks.rank, ranks.count)
        self.average = average
        # DistributedDataParallel averages over the ranks; a step's gradient is the micro-batches' mean, or their sum.
        self.scale = ranks.count / order.micro_batches if average else float(ranks.count)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
        self.wrapped: nn.Module = model
        if ranks.count > 1:
            # Ranks start from rank 0's weights; buffers stay apart (see the module), so none are sent at each step.
            names = inspect.signature(DistributedDataParallel).parameters
            old, new = "broadcast_buffers", "forward_sync_buffers"  # PyTorch 2.15 renamed it
            options: dict[str, Any] = {new if new in names else old: False}
            self.wrapped = DistributedDataParallel(model, **options)
        self.statistics = [buffer for name, buffer in model.named_buffers() if "running_" in name or "tracked" in name]

    def steps(self, first: int = 0) -> Iterator[Stepped]:
        """Run the steps from ``first`` on, yielding each when it is done."""
        self.model.train()
        batches = self.batches(first)
        for step in range(first, self.rates.steps):
            yield self._step(step, batches)

    def _step(self, step: int, batches: Iterator[Any]) -> Stepped:
        rate = self.rates.rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("multiplier", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        losses, hits, asked, waited = [], [], 0, 0.0
        for number in self.numbers:
            begun = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - begun
            loss, right, count = self._micro_batch(step, number, batch)
            losses.append(loss)
            hits.append(right)
            asked += count
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        mine = torch.stack([torch.stack(losses).double().sum(), torch.stack(hits).double().sum()]).cpu()
        sums = self.ranks.total(torch.tensor([*mine.tolist(), asked, waited], dtype=torch.float64)).tolist()
        images = sum(len(self.order.micro_batch(step, m)) for m in range(self.order.micro_batches))
        return Stepped(
            step=step + 1,
            rate=rate,
            loss=sums[0] / (self.order.micro_batches if self.average else max(sums[2], 1.0)),
            hits=int(sums[1]),
            asked=int(sums[2]),
            images=images,
            waited=sums[3] / self.ranks.count,
            skipped=self.scaler.get_scale() < before,
        )

    def _micro_batch(self, step: int, number: int, batch: Any) -> tuple[Tensor, Tensor, int]:
        """Compute one micro-batch and add its gradient; return its loss, hits and number asked."""
        key = keys.seed(self.seed, step, number)
        torch.manual_seed(key)
        noise = torch.Generator(self.device).manual_seed(key)
        last = number == self.numbers[-1]
        wait: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if isinstance(self.wrapped, DistributedDataParallel) and not last:
            wait = self.wrapped.no_sync()
        low = self.dtype in (torch.bfloat16, torch.float16)
        with wait, self._statistics_of_the_first(number):
            with torch.autocast(self.device.type, self.dtype, enabled=low):
                loss, hits, asked = self.objective(self.wrapped, batch, noise)
            self.scaler.scale(loss * self.scale).backward()  # type: ignore[no-untyped-call]
        return loss.detach(), hits, asked

    @contextlib.contextmanager
    def _statistics_of_the_first(self, number: int) -> Iterator[None]:
        """Let only a step's first micro-batch move the running statistics."""
        kept = [] if number == 0 else [buffer.clone() for buffer in self.statistics]
        yield
        with torch.no_grad():
            for buffer, before in zip(self.statistics, kept, strict=False):
                buffer.copy_(before)

    def share_statistics(self) -> None:
        """Give every rank rank 0's running statistics, for an evaluation that all share."""
        if self.ranks.count > 1:
            for buffer in self.statistics:
                torch.distributed.broadcast(buffer, src=0)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs to go on: weights, optimiser, scaler."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what ``state`` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


class StopRequest:
    """Whether someone asked the run to stop: SIGTERM (a scheduler's pre-emption) or SIGINT (Ctrl-C), on any rank.

    Signals can be caught in the main thread only; elsewhere nothing is changed. A second Ctrl-C interrupts at once.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def asked(self) -> bool:
        """Tell, the same on every rank, whether any was asked to stop."""
        return bool(self.ranks.total(torch.tensor([float(self.signal is not None)])).item())
