"""Examples from files, loaded by worker processes: the same ones in the same order with any number of them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from context_pred.errors import ContextPredError

from . import keys

AHEAD = 2
"""Batches that each worker prepares ahead."""

_GRACE = 60
"""Seconds that a worker goes on after the signal to end, for its process to save what it has done."""

Place = tuple[int, int]
"""(epoch, image)"""


class WorkerError(ContextPredError, RuntimeError):
    """A process that loads images has died."""


class Examples(Protocol):
    """What a protocol trains on or is measured with."""

    def __len__(self) -> int:
        """Return how many there are."""

    def example(self, image: int, generator: torch.Generator) -> Any:
        """Load one; every random number comes from the generator."""


def batches(
    examples: Examples,
    places: Iterable[Sequence[Place]],
    collate: Callable[[list[Any]], Any],
    *,
    seed: int,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Any]:
    """Load batches, in the order given; an image's random numbers are those of ``keys.generator(seed, epoch, image)``.

    Args:
        examples: Picklable.
        places: Batches of (epoch, image).
        collate: From a list of examples to a batch; picklable.
        seed: Of every draw.
        workers: Processes; 0 loads in the caller's.
        pin_memory: True puts tensors where a GPU can copy from by itself.

    Raises:
        ImageError: an image cannot be read.
        WorkerError: a worker died.
    """
    yield from loaded(_Loaded(examples, collate, seed), places, workers=workers, pin_memory=pin_memory)


class _Loaded(Dataset[Any]):
    """Turns a list of (epoch, image) into a batch, in a worker."""

    def __init__(self, examples: Examples, collate: Callable[[list[Any]], Any], seed: int) -> None:
        self.examples, self.collate, self.seed = examples, collate, seed

    def __getitems__(self, places: Sequence[Place]) -> Any:
        try:
            return self.collate(
                [self.examples.example(image, keys.generator(self.seed, epoch, image)) for epoch, image in places]
            )
        except ContextPredError as error:  # as a value, since PyTorch would put a traceback into its text
            return error


def loaded(
    dataset: Dataset[Any], places: Iterable[Sequence[Place]], *, workers: int, pin_memory: bool = False
) -> Iterator[Any]:
    """Iterate over what a dataset's ``__getitems__`` makes of each list of places; its errors come as values.

    Raises:
        ContextPredError: what came in place of a batch.
        WorkerError: a worker died.
    """
    loader = DataLoader(
        dataset,
        batch_sampler=places,  # type: ignore[arg-type]  # any iterable of lists does, which may be endless
        collate_fn=_same,
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        worker_init_fn=_begin_worker,
        pin_memory=pin_memory,
    )
    # Each DataLoader takes one number of PyTorch's global generator to seed its workers with; they need none.
    with torch.random.fork_rng(devices=[]):
        coming = iter(loader)
    while True:
        try:
            batch = next(coming)
        except StopIteration:
            return
        except RuntimeError as error:
            if isinstance(error, ContextPredError) or not workers:
                raise
            raise WorkerError(
                f"A process that loads images died ({str(error).splitlines()[0].strip(' .')}). Often it is memory, or "
                f"room in /dev/shm (in a container: docker run --shm-size=8g). Fewer processes need less: --workers 1, "
                f"or --workers 0 for none."
            ) from error
        if isinstance(batch, ContextPredError):
            raise batch
        yield batch


def _same(batch: Any) -> Any:
    return batch


def _begin_worker(_: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C and a scheduler's SIGTERM go to the whole group. What then happens is the main process's to decide: it
    # may want the batches that are under way, and ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))
