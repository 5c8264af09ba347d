"""The processes that ``torchrun`` started, sharing one extraction."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from context_pred.errors import ContextPredError

T = TypeVar("T")

_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

# A rank may wait for another as long as that one's share takes; a rank that died is noticed at once all the same.
_PATIENCE = timedelta(days=30)


class Ranks:
    """One process alone, or one of several that talk over gloo (objects only, so any device will do)."""

    def __init__(self, group: Any = None) -> None:
        self.group = group
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

    def _talk(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except RuntimeError as error:
            raise ContextPredError(
                f"Rank {self.rank} lost the other {self.count - 1}: one has stopped, and its own message says why. "
                f"What was computed is kept; the same command goes on from there."
            ) from error


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the other ranks where ``torchrun`` (or a process group of the caller's) says there are any."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        yield Ranks(dist.new_group(backend="gloo", timeout=_PATIENCE))
    elif all(name in os.environ for name in _TORCHRUN) and int(os.environ["WORLD_SIZE"]) > 1:
        dist.init_process_group("gloo", timeout=_PATIENCE)
        try:
            yield Ranks(dist.group.WORLD)
        finally:
            dist.destroy_process_group()
    else:
        yield Ranks()
