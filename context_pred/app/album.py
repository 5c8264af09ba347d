"""The photographs the page looks in: a collection, its index, and the model that made it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from context_pred.data.files import find_images
from context_pred.errors import ImageError, InvalidInputError

from .uploads import open_photo

if TYPE_CHECKING:
    from context_pred.discover.index import Match, NeighborIndex
    from context_pred.model import ContextPredictionModel

Box = tuple[float, float, float, float]

SAMPLES = 12
"""How many photographs of the collection are offered to begin with."""


@dataclass(frozen=True)
class Album:
    """What the page looks things up in.

    Attributes:
        model: The model.
        paths: The photographs to take from: the images given, or those of the index.
        whole: An index of whole images, or None.
        patches: An index of patches, or None.
        samples: Some of ``paths``, spread evenly, each of which can be opened.
        device: Where to compute.
    """

    model: ContextPredictionModel
    paths: tuple[str, ...]
    whole: NeighborIndex | None
    patches: NeighborIndex | None
    samples: tuple[str, ...]
    device: torch.device

    @classmethod
    def of(
        cls,
        model: ContextPredictionModel,
        images: str | Path | Sequence[str | Path] | None,
        indices: Sequence[NeighborIndex],
        device: torch.device,
    ) -> Album:
        """Put together what is there.

        Raises:
            InvalidInputError: two indices of one kind.
        """
        kinds: dict[bool, NeighborIndex] = {}
        for index in indices:
            of_patches = index.grid is not None
            if of_patches in kinds:
                kind = "patches" if of_patches else "whole images"
                raise InvalidInputError(
                    f"Two indices of {kind}; the page takes one of whole images and one of patches."
                )
            kinds[of_patches] = index
        given = [os.path.abspath(path) for path in find_images(images)] if images is not None else []
        paths = tuple(dict.fromkeys(given or [path for index in indices for path in index.paths]))
        return cls(model, paths, kinds.get(False), kinds.get(True), _samples(paths), device)

    def like(self, image: Image.Image, k: int, *, but: str | None = None) -> list[Match]:
        """Return the nearest whole images; ``but`` is the image's own path, which is left out."""
        if self.whole is None:
            return []
        return _nearest(self.whole, image, k, but, self.device)

    def like_patch(
        self, image: Image.Image, point: tuple[float, float], k: int, *, but: str | None = None
    ) -> tuple[list[Match], Box]:
        """Find the patches most like the one around a point, one a photograph.

        Args:
            image: The photograph.
            point: x and y as shares of its sides.
            k: How many.
            but: Its own path, which is left out.

        Returns:
            Matches, best first, and the patch's box as shares of the photograph's sides.

        Raises:
            InvalidInputError: the index has no patches.
        """
        if self.patches is None or self.patches.grid is None:
            raise InvalidInputError("The index has no patches; one that has is made with patches=True.")
        side = min(image.size) / self.patches.grid.sides[0]
        corner = [
            min(max(share * length - side / 2, 0), length - side)
            for share, length in zip(point, image.size, strict=True)
        ]
        x1, y1, x2, y2 = corner[0], corner[1], corner[0] + side, corner[1] + side
        patch = image.crop((round(x1), round(y1), max(round(x2), round(x1) + 1), max(round(y2), round(y1) + 1)))
        box = x1 / image.width, y1 / image.height, x2 / image.width, y2 / image.height
        return _nearest(self.patches, patch, k, but, self.device), box


def _nearest(index: NeighborIndex, image: Image.Image, k: int, but: str | None, device: torch.device) -> list[Match]:
    own = -1 if but is None else _own(index.paths, but)
    (found,) = index.nearest_images(index.features([image], device=device), k, without=[own])
    return found


def _own(paths: Sequence[str], but: str) -> int:
    """Return the number of a photograph among an index', by whatever link its folder is reached; −1 without one."""
    if but in paths:
        return paths.index(but)
    real, name = os.path.realpath(but), os.path.basename(but)
    named = (k for k, path in enumerate(paths) if os.path.basename(path) == name and os.path.realpath(path) == real)
    return next(named, -1)


def _samples(paths: Sequence[str]) -> tuple[str, ...]:
    """Choose photographs evenly, and of those that cannot be opened the next ones."""
    chosen: dict[str, None] = {}
    for start in np.linspace(0, len(paths), min(SAMPLES, len(paths)), endpoint=False).astype(int).tolist():
        for path in paths[start : start + SAMPLES]:
            if path not in chosen and _opens(path):
                chosen[path] = None
                break
    return tuple(chosen)


def _opens(path: str) -> bool:
    try:
        open_photo(path)
    except ImageError:
        return False
    return True
