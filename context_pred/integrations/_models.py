"""What the adapters share: a model by name or as it is, and images of every kind in batches."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import context_pred
from context_pred.channel_order import for_rgb
from context_pred.data.images import open_image
from context_pred.data.transforms import EvalTransform
from context_pred.errors import InvalidInputError, check_whole_number
from context_pred.model import ContextPredictionModel

Model = ContextPredictionModel | str | Path
"""A model, or what ``load_pretrained`` takes."""

IMAGES = "a path, the bytes of a file, a Pillow image, or uint8 pixels (H, W), (H, W, 3) or (H, W, 4) in RGB order"

_AHEAD = 2  # batches that are opened while one is computed


def loaded(model: Any) -> ContextPredictionModel:
    """Return the model, loaded where it was given by name.

    Raises:
        InvalidInputError: something else than a model, a name or a path.
    """
    if isinstance(model, ContextPredictionModel):
        return model
    if isinstance(model, (str, os.PathLike)):
        return context_pred.load_pretrained(model)
    raise InvalidInputError(
        f"A model given as {type(model).__name__}; accepted: a ContextPredictionModel, a name of the zoo, or a path."
    )


def turned(model: Any) -> ContextPredictionModel:
    """Return a copy that takes RGB, of a model given as ``loaded`` takes it."""
    return for_rgb(loaded(model))


def check_counts(batch_size: object, workers: object) -> None:
    """Raise InvalidInputError where these are no whole numbers, or below 1 and 0; ``workers`` may be None."""
    for name, value, least in (("batch_size", batch_size, 1), ("workers", 0 if workers is None else workers, 0)):
        check_whole_number(name, value, least)


def picture(image: Any, name: str) -> Image.Image:
    """Return an image of any kind that is accepted as a Pillow image.

    Args:
        image: See ``IMAGES``; or a dict with "bytes" or "path", as Hugging Face's datasets store images.
        name: What errors call it.

    Raises:
        InvalidInputError: another kind, shape or dtype.
        ImageError: a file that cannot be opened.
    """
    if isinstance(image, dict) and (image.get("bytes") or image.get("path")):
        image = image.get("bytes") or image["path"]
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, bytes):
        return open_image(image, name=name)
    if isinstance(image, (str, os.PathLike)):
        return open_image(Path(image))
    given = type(image).__name__
    if isinstance(image, np.ndarray):
        grey, colour = image.ndim == 2, image.ndim == 3 and image.shape[2] in (3, 4)
        if image.dtype == np.uint8 and image.size and (grey or colour):
            return Image.fromarray(np.ascontiguousarray(image))
        given = f"an array {image.shape} of {image.dtype}"
    raise InvalidInputError(f"{name} is {given}; accepted: {IMAGES}.")


def cut_batches(
    images: Iterable[Any], transform: EvalTransform, batch_size: int, workers: int, first: int = 0
) -> Iterator[Tensor]:
    """Open images and cut them to the network's input, in batches: uint8 (n, C, crop, crop), RGB.

    Args:
        images: As ``picture`` takes them; errors call them "Image 0", "Image 1" and so on.
        transform: Its ``cut`` is applied.
        batch_size: Images a batch.
        workers: Threads; 0: the caller's alone.
        first: The number of the first image.
    """

    def cut(number: int, image: Any) -> Tensor:
        return transform.cut(picture(image, f"Image {number}"))

    numbered = enumerate(images, first)
    if workers == 0:
        while batch := list(islice(numbered, batch_size)):
            yield torch.stack([cut(*one) for one in batch])
        return
    Image.init()  # Pillow registers its formats at the first need, and two threads would disturb each other
    with ThreadPoolExecutor(workers, thread_name_prefix="context-pred-open") as pool:
        yield from _ahead(pool, numbered, cut, batch_size)


def _ahead(
    pool: ThreadPoolExecutor, numbered: Iterator[Any], cut: Callable[..., Tensor], batch_size: int
) -> Iterator[Tensor]:
    coming: deque[list[Future[Tensor]]] = deque()
    try:
        while batch := list(islice(numbered, batch_size)):
            coming.append([pool.submit(cut, *one) for one in batch])
            if len(coming) > _AHEAD:
                yield torch.stack([future.result() for future in coming.popleft()])
        while coming:
            yield torch.stack([future.result() for future in coming.popleft()])
    finally:
        for future in (future for futures in coming for future in futures):
            future.cancel()
