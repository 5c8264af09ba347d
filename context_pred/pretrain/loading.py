"""Micro-batches from a collection: worker processes decode, resize and draw; the device gets bytes and boxes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from context_pred.data.collection import Collection
from context_pred.data.decode import Photo, read_bytes
from context_pred.errors import ContextPredError, ImageError
from context_pred.patches import PatchDraw, joined
from context_pred.training import keys
from context_pred.training.examples import Place, loaded

from .prepare import Begun, Preparation, Prepared

IN_A_ROW = 100
"""So many damaged images one after the other are no accident."""

TOGETHER = 32_000_000
"""Bytes of files at a time: all are read, then all drawn for, then all decoded. So each kind of work finds its code and
its tables in the processor's caches, which is worth a third of the time."""

NOTHING = PatchDraw(
    boxes=torch.zeros(0, 4, dtype=torch.int64),
    image=torch.zeros(0, dtype=torch.int64),
    neighbor=torch.zeros(0, dtype=torch.int64),
    center=torch.zeros(0, dtype=torch.int64),
    position=torch.zeros(0, dtype=torch.int64),
)
"""The draw of no images."""


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


@dataclass(frozen=True)
class _Packed(MicroBatch):
    """Images of differing sizes on their way from a worker: one tensor, since each takes an open file on the way."""

    shapes: tuple[tuple[int, ...], ...] = ()

    def unpacked(self) -> MicroBatch:
        if not isinstance(self.images, Tensor):
            return self
        parts = torch.split(self.images, [math.prod(shape) for shape in self.shapes])
        images = [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]
        return MicroBatch(images, self.draw, self.index, self.damaged)


def load(
    collection: Collection,
    preparation: Preparation,
    batches: Iterable[Sequence[Place]],
    *,
    seed: int,
    workers: int = 0,
    pin_memory: bool = False,
    replace: bool = True,
) -> Iterator[MicroBatch]:
    """Load micro-batches, in the order given, the same ones with any number of workers.

    All random numbers of an image come from ``keys.generator(seed, epoch, image)``. In the place of a damaged image
    comes the next one that can be read, counted on from it (after the last the first), with the draws of the place:
    every micro-batch is full. Without ``replace`` damaged images are left out, and a micro-batch can have none left.

    Args:
        collection: The images.
        preparation: What is done to each.
        batches: Micro-batches of (epoch, image).
        seed: The run's.
        workers: Processes; 0 loads in the caller's.
        pin_memory: True puts the images where a GPU can copy from by itself.
        replace: False leaves damaged images out, as a measurement must.

    Raises:
        ImageError: with ``replace``, a hundred images in a row cannot be read.
        WorkerError: a worker died.
    """
    dataset = _Batches(collection, preparation, seed, IN_A_ROW if replace else 0)
    for batch in loaded(dataset, batches, workers=workers, pin_memory=pin_memory):
        yield batch.unpacked() if isinstance(batch, _Packed) else batch


def _room(shape: tuple[int, ...]) -> Tensor:
    """Make an empty uint8 tensor, in a worker in the memory that it shares with the main process."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    shared: torch.UntypedStorage = torch.UntypedStorage._new_shared(math.prod(shape))  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(shared).reshape(shape)


class _Batches(Dataset[MicroBatch]):
    """Turns a list of (epoch, image) into a micro-batch, in a worker."""

    def __init__(self, collection: Collection, preparation: Preparation, seed: int, attempts: int) -> None:
        self.collection, self.preparation, self.seed = collection, preparation, seed
        self.attempts = min(attempts, len(collection))  # images tried for a place; 0 leaves a damaged one out

    def __getitems__(self, places: Sequence[Place]) -> MicroBatch | ContextPredError:
        try:
            return self._load(places)
        except ContextPredError as error:  # as a value, since PyTorch would put a traceback into its text
            return error

    def _load(self, places: Sequence[Place]) -> MicroBatch:
        damaged: dict[int, str] = {}
        index: list[int] = []
        draws: list[PatchDraw] = []
        images: list[Tensor] = []
        crop, channels = self.preparation.crop, self.preparation.in_channels
        stacked = None if crop is None else _room((len(places), channels, crop, crop))
        for lot in self._lots(places):
            for (place, _), one in zip(lot, self._begin(lot), strict=True):
                shown, prepared = self._finish(place, one, damaged)
                if prepared is None:
                    continue
                if stacked is None:
                    images.append(prepared.pixels)
                else:
                    stacked[len(index)].copy_(prepared.pixels)
                index.append(shown)
                draws.append(prepared.draw)
        seen = (joined(draws) if draws else NOTHING, tuple(index), tuple(damaged.items()))
        if stacked is not None:
            return MicroBatch(stacked[: len(index)], *seen)
        if get_worker_info() is None or not images:
            return MicroBatch(images, *seen)
        flat = torch.cat([image.flatten() for image in images], out=_room((sum(image.numel() for image in images),)))
        return _Packed(flat, *seen, tuple(tuple(image.shape) for image in images))

    def _lots(self, places: Sequence[Place]) -> Iterator[list[tuple[Place, bytes | ImageError]]]:
        """Read the files, as many at a time as there is room for."""
        lot: list[tuple[Place, bytes | ImageError]] = []
        held = 0
        for place in places:
            source = self._read(place[1])
            lot.append((place, source))
            held += len(source) if isinstance(source, bytes) else 0
            if held > TOGETHER:
                yield lot
                lot, held = [], 0
        yield lot

    def _read(self, image: int) -> bytes | ImageError:
        try:
            source = self.collection.read(image)
            return source if isinstance(source, bytes) else read_bytes(source)
        except ImageError as error:
            return error

    def _begin(self, lot: Sequence[tuple[Place, bytes | ImageError]]) -> list[Begun | Prepared | ImageError]:
        """Draw for images; one that had to be decoded for that is finished at once and takes no more room."""
        opened = [self._open(place, source, place[1]) for place, source in lot]
        photos = [one for one in opened if isinstance(one, Photo)]
        generators = [
            keys.generator(self.seed, *place)
            for (place, _), one in zip(lot, opened, strict=True)
            if isinstance(one, Photo)
        ]
        begun = iter(self.preparation.begin(photos, generators))
        return [next(begun) if isinstance(one, Photo) else one for one in opened]

    def _open(self, place: Place, source: bytes | ImageError, shown: int) -> Photo | Prepared | ImageError:
        if isinstance(source, ImageError):
            return source
        try:
            photo = Photo(source, self.collection.names[shown])
            return self._prepare(photo, place) if photo.decoded else photo
        except ImageError as error:
            return error

    def _prepare(self, photo: Photo, place: Place) -> Prepared:
        (begun,) = self.preparation.begin([photo], [keys.generator(self.seed, *place)])
        return self.preparation.finish(begun)

    def _finish(
        self, place: Place, begun: Begun | Prepared | ImageError, damaged: dict[int, str]
    ) -> tuple[int, Prepared | None]:
        """Decode an image, or the first after it that can be, if there are to be attempts."""
        image, count = place[1], len(self.collection)
        opened: Begun | Photo | Prepared | ImageError = begun
        for step in range(max(1, self.attempts)):
            tried = (image + step) % count
            try:
                if step:
                    opened = self._open(place, self._read(tried), tried)
                if isinstance(opened, ImageError):
                    raise opened
                if isinstance(opened, Begun):
                    opened = self.preparation.finish(opened)
                return tried, self._prepare(opened, place) if isinstance(opened, Photo) else opened
            except ImageError as error:
                damaged[tried] = str(error).removeprefix(f"{self.collection.names[tried]}: ")
        if not self.attempts:
            return image, None
        raise ImageError(
            f"{self.attempts} images in a row cannot be read, from {self.collection.names[image]} on: {damaged[image]}"
        )
