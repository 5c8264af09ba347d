"""The processes that ``torchrun`` started, sharing one extraction or one training."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from context_pred.errors import ContextPredError

T = TypeVar("T")

_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

# A rank may wait for another as long as that one's share takes; a rank that died is noticed at once all the same.
_PATIENCE = timedelta(days=30)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Ranks:
    """One process alone, or one of several that talk over gloo (on the CPU, so any device will do).

    Args:
        group: The gloo group; None for one process.
        kept: What an error says of the work so far when another rank is lost.
    """

    def __init__(self, group: Any = None, kept: str = "") -> None:
        self.group = group
        self.kept = kept
        self.rank = 0 if group is None else dist.get_rank()
        self.count = 1 if group is None else dist.get_world_size()

    def lead(self, work: Callable[[], T]) -> T:
        """Let rank 0 do the work; every rank returns its result, or raises its error."""
        if self.group is None:
            return work()
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = work()
            except ContextPredError as error:
                outcome[1] = error
        self._talk(lambda: dist.broadcast_object_list(outcome, src=0, group=self.group))
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result

    def wait(self) -> None:
        """Return when every rank has come here."""
        if self.group is not None:
            self._talk(lambda: dist.barrier(group=self.group))

    def total(self, values: Tensor) -> Tensor:
        """Add up a CPU tensor over the ranks; every rank returns the sum."""
        if self.group is not None:
            values = values.clone()
            self._talk(lambda: dist.all_reduce(values, group=self.group))
        return values

    def gather(self, item: T) -> list[T]:
        """Return every rank's item, in the order of the ranks, on every rank."""
        if self.group is None:
            return [item]
        items: list[Any] = [None] * self.count
        self._talk(lambda: dist.all_gather_object(items, item, group=self.group))
        return items

    def _talk(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except RuntimeError as error:
            raise ContextPredError(
                f"Rank {self.rank} lost the other {self.count - 1}: one has stopped, and its own message says why."
                f"{self.kept and ' ' + self.kept}"
            ) from error


@contextmanager
def joined(kept: str = "", backend: str = "gloo") -> Iterator[Ranks]:
    """Join the other ranks where ``torchrun`` (or a process group of the caller's) says there are any.

    Args:
        kept: As in ``Ranks``.
        backend: Of the default process group, which gradients are averaged over: "gloo", or "cpu:gloo,cuda:nccl".
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        yield Ranks(dist.new_group(backend="gloo", timeout=_PATIENCE), kept)
    elif all(name in os.environ for name in _TORCHRUN) and int(os.environ["WORLD_SIZE"]) > 1:
        dist.init_process_group(backend, timeout=_PATIENCE)
        plain = backend == "gloo"
        ranks = Ranks(dist.group.WORLD if plain else dist.new_group(backend="gloo", timeout=_PATIENCE), kept)
        try:
            yield ranks
        finally:
            # gloo's threads end with the last reference to their group; if Python ends first, they abort the process.
            ranks.group = None
            dist.destroy_process_group()
            gc.collect()
    else:
        yield Ranks(kept=kept)
