"""Micro-batches from a collection: worker processes decode, resize and draw; the device gets bytes and boxes."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from context_pred.data.collection import Collection
from context_pred.errors import ContextPredError, ImageError
from context_pred.patches import PatchDraw, joined
from context_pred.training import keys

from .prepare import Preparation, Prepared

AHEAD = 2
"""Micro-batches that each worker prepares ahead."""

IN_A_ROW = 100
"""So many damaged images one after the other are no accident."""

_GRACE = 60
"""Seconds that a worker goes on after the signal to end, for its process to save what it has done."""


class WorkerError(ContextPredError, RuntimeError):
    """A process that loads images has died."""


@dataclass(frozen=True)
class MicroBatch:
    """Images and what was drawn for them.

    Attributes:
        images: uint8 (B, C, crop, crop) for a ``GridPatchSampler``, whose ``cut`` takes it with ``draw``; a list of
            (3, H, W) for a ``RandomPairSampler``.
        draw: The joined draws, image by image.
        index: Which images of the collection these are.
        damaged: (image, reason) of those that were asked for or tried as a replacement, and could not be read.
    """

    images: Tensor | list[Tensor]
    draw: PatchDraw
    index: tuple[int, ...]
    damaged: tuple[tuple[int, str], ...] = ()

    def pin_memory(self) -> MicroBatch:
        """Return the batch in memory that a GPU can copy from by itself."""
        images = self.images
        pinned = images.pin_memory() if isinstance(images, Tensor) else [image.pin_memory() for image in images]
        return dataclasses.replace(self, images=pinned)


def load(
    collection: Collection,
    preparation: Preparation,
    batches: Iterable[Sequence[tuple[int, int]]],
    *,
    seed: int,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[MicroBatch]:
    """Load micro-batches, in the order given, the same ones with any number of workers.

    All random numbers of an image come from ``keys.generator(seed, epoch, image)``. In the place of a damaged image
    comes the next one that can be read, counted on from it (after the last the first), with the draws of the place:
    every micro-batch is full.

    Args:
        collection: The images.
        preparation: What is done to each.
        batches: Micro-batches of (epoch, image).
        seed: The run's.
        workers: Processes; 0 loads in the caller's.
        pin_memory: True puts the images where a GPU can copy from by itself.

    Raises:
        ImageError: a hundred images in a row cannot be read.
        WorkerError: a worker died.
    """
    loader = DataLoader(
        _Batches(collection, preparation, seed),
        batch_sampler=batches,  # type: ignore[arg-type]  # any iterable of lists does, which may be endless
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
                f"A process that loads images died: {str(error).splitlines()[0]} Often it is memory, or room in "
                f"/dev/shm (in a container: docker run --shm-size=8g). Fewer processes need less: --workers 1, or "
                f"--workers 0 for none."
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


class _Batches(Dataset[MicroBatch]):
    """Turns a list of (epoch, image) into a micro-batch, in a worker."""

    def __init__(self, collection: Collection, preparation: Preparation, seed: int) -> None:
        self.collection, self.preparation, self.seed = collection, preparation, seed

    def __getitems__(self, places: Sequence[tuple[int, int]]) -> MicroBatch | ContextPredError:
        try:
            return self._load(places)
        except ContextPredError as error:  # as a value, since PyTorch would put a traceback into its text
            return error

    def _load(self, places: Sequence[tuple[int, int]]) -> MicroBatch:
        index, prepared = [], []
        damaged: dict[int, str] = {}
        for epoch, image in places:
            shown, ready = self._first_readable(epoch, image, damaged)
            index.append(shown)
            prepared.append(ready)
        draw = joined([ready.draw for ready in prepared])
        images: Tensor | list[Tensor] = [ready.pixels for ready in prepared]
        if self.preparation.crop is not None:
            images = torch.stack(images)  # type: ignore[arg-type]
        return MicroBatch(images, draw, tuple(index), tuple(damaged.items()))

    def _first_readable(self, epoch: int, image: int, damaged: dict[int, str]) -> tuple[int, Prepared]:
        count = len(self.collection)
        for step in range(min(IN_A_ROW, count)):
            tried = (image + step) % count
            name = self.collection.names[tried]
            try:
                source = self.collection.read(tried)
                return tried, self.preparation(source, keys.generator(self.seed, epoch, image), name)
            except ImageError as error:
                damaged[tried] = str(error).removeprefix(f"{name}: ")
        reasons = list(damaged.items())[-1]
        raise ImageError(
            f"{min(IN_A_ROW, count)} images in a row cannot be read, the last of them "
            f"{self.collection.names[reasons[0]]}: {reasons[1]}"
        )
