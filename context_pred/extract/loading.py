"""Images from files in fixed batches, opened by threads while the network computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from context_pred.data import images
from context_pred.data.transforms import EvalTransform
from context_pred.errors import ImageError
from context_pred.ranks import cores

AHEAD = 2
"""Batches that are being opened while one is computed."""


@dataclass(frozen=True)
class Loaded:
    """One batch: its number, uint8 pixels (N, C, crop, crop), and a record an image.

    A damaged image keeps its place, black, so that it cannot change the numbers of its neighbours. A record is what a
    part file keeps: {} or {"error": reason}, with "heif", "sixteen_bit" and "dim" where they are true.
    """

    number: int
    pixels: Tensor
    records: list[dict[str, Any]]


class Loader:
    """Opens images. Pillow decodes and resizes without Python's lock, so threads do, and start at once everywhere.

    Args:
        transform: Its ``cut`` is applied to each image.
        background: As in ``open_image``.
        value_range: As in ``open_image``.
        workers: Threads; 0 opens in the caller's.
    """

    def __init__(
        self,
        transform: EvalTransform,
        background: tuple[int, int, int],
        value_range: tuple[float, float] | None,
        workers: int,
    ) -> None:
        self.transform = transform
        self.background = background
        self.value_range = value_range
        self.workers = workers

    def __call__(self, batches: Iterable[tuple[int, Sequence[str]]]) -> Iterator[Loaded]:
        """Yield the batches, given as (number, paths), in their order."""
        if self.workers == 0:
            for number, paths in batches:
                pixels = self._empty(len(paths))
                yield Loaded(number, pixels, [self._open(path, slot) for path, slot in zip(paths, pixels, strict=True)])
            return
        Image.init()  # Pillow registers its formats at the first need, and two threads would disturb each other
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="context-pred-open")
        coming: deque[tuple[int, Tensor, list[Future[dict[str, Any]]]]] = deque()
        try:
            for number, paths in batches:
                pixels = self._empty(len(paths))
                futures = [pool.submit(self._open, path, slot) for path, slot in zip(paths, pixels, strict=True)]
                coming.append((number, pixels, futures))
                if len(coming) > AHEAD:
                    yield _waited(*coming.popleft())
            while coming:
                yield _waited(*coming.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _empty(self, count: int) -> Tensor:
        """Pixels side by side, as Pillow has them and as a channels-last network wants them."""
        side = self.transform.crop
        return torch.zeros(count, side, side, self.transform.in_channels, dtype=torch.uint8).permute(0, 3, 1, 2)

    def _open(self, path: str, slot: Tensor) -> dict[str, Any]:
        try:
            opened = images.read(path, background=self.background, value_range=self.value_range)
            # By NumPy: PyTorch would start threads of its own in each of ours.
            np.copyto(slot.numpy(), self.transform.cut(opened.image).numpy())
        except ImageError as error:
            record: dict[str, Any] = {"error": str(error).removeprefix(f"{path}: ")}
            if isinstance(error, images.HeifError):
                record["heif"] = True
            return record
        return {name: True for name in ("sixteen_bit", "dim") if getattr(opened, name)}


def _waited(number: int, pixels: Tensor, futures: list[Future[dict[str, Any]]]) -> Loaded:
    return Loaded(number, pixels, [future.result() for future in futures])


def usual_workers(device: torch.device) -> int:
    """Threads that keep a network busy: two beside one that computes on the CPU, up to 16 beside any other."""
    return min(2 if device.type == "cpu" else 16, cores())
