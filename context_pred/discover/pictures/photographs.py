"""What every picture begins with: photographs opened and brought to a moderate size, and a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from tqdm import tqdm

from context_pred.data.files import find_images
from context_pred.data.images import open_image
from context_pred.errors import ImageError, InvalidInputError, storing

if TYPE_CHECKING:
    pass

Source = str | Path | Sequence[str | Path]

MOST = 100
"""Photographs on one sheet."""

LARGEST = 1024
"""px of a photograph's shorter side beyond which it is made smaller: no picture shows more."""


@dataclass(frozen=True)
class Photographs:
    """Photographs that could be opened.

    Attributes:
        paths: As given.
        images: RGB, upright, the shorter side at most ``LARGEST`` px.
        sizes: (width, height) in px before they were made smaller.
        skipped: {path: reason} of those that could not be opened.
        found: How many files there were in all.
    """

    paths: tuple[str, ...]
    images: tuple[Image.Image, ...]
    sizes: tuple[tuple[int, int], ...]
    skipped: dict[str, str]
    found: int

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.paths)


def opened(source: Source, *, at_most: int, seed: int = 0, progress: bool = False) -> Photographs:
    """Open photographs: all, or so many chosen at random, in their order.

    Args:
        source: As ``find_images`` takes them.
        at_most: How many to open, ``MOST`` at the most; where some cannot be, others take their place.
        seed: Of the choice.
        progress: Show a bar.

    Raises:
        InvalidInputError: nothing was found, or a number out of its range.
        ImageError: none can be opened.
    """
    whole_number("at_most", at_most, most=MOST)
    check_seed(seed)
    files = find_images(source)
    order = np.random.default_rng(seed).permutation(len(files)) if len(files) > at_most else range(len(files))
    kept: dict[int, tuple[Image.Image, tuple[int, int]]] = {}
    skipped: dict[str, str] = {}
    with tqdm(total=min(len(files), at_most), unit=" photographs", disable=not progress, leave=False) as bar:
        for number in map(int, order):
            if len(kept) == at_most:
                break
            try:
                kept[number] = moderate(open_image(files[number]))
                bar.update()
            except ImageError as error:
                skipped[str(files[number])] = str(error).removeprefix(f"{files[number]}: ")
    if not kept:
        path, reason = next(iter(skipped.items()))
        raise ImageError(f"No image could be opened; the first: {path} ({reason}).")
    numbers = sorted(kept)
    images, sizes = zip(*(kept[number] for number in numbers), strict=True)
    return Photographs(tuple(str(files[number]) for number in numbers), images, sizes, skipped, len(files))


def moderate(image: Image.Image) -> tuple[Image.Image, tuple[int, int]]:
    """Make a large photograph smaller; return it with its size before, (width, height)."""
    scale = LARGEST / min(image.size)
    if scale >= 1:
        return image, image.size
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0), image.size


def made(out: str | Path) -> Path:
    """Make the folder that pictures go into, before anything is computed; raises StorageError."""
    folder = Path(out)
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def whole_number(name: str, value: object, least: int = 1, most: int | None = None) -> None:
    """Raise InvalidInputError unless an argument is a whole number from ``least`` up, and not above ``most``."""
    accepted = f"from {least} up" if most is None else f"in {least:,} … {most:,}"
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        raise InvalidInputError(f"{name}={value!r}; accepted: a whole number {accepted}.")


def check_seed(seed: object) -> None:
    """Raise InvalidInputError unless a seed is what NumPy, PyTorch and scikit-learn all take."""
    whole_number("seed", seed, 0, 2**32 - 1)


def told(skipped: dict[str, str]) -> str:
    """Say which files were skipped, and why, after a space; nothing where none was."""
    if not skipped:
        return ""
    reasons = "; ".join(f"{path} ({reason})" for path, reason in list(skipped.items())[:10])
    more = f"; and {len(skipped) - 10} more" if len(skipped) > 10 else ""
    return f" {count(len(skipped), 'file')} skipped: {reasons}{more}."


def count(number: int, one: str, many: str = "") -> str:
    """Write a number of things."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
