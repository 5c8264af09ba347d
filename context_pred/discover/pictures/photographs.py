"""What every picture begins with: photographs opened and brought to a moderate size, and a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from context_pred.data.files import find_images
from context_pred.data.images import open_image
from context_pred.errors import ImageError, InvalidInputError, check_whole_number, storing

Source = str | Path | Sequence[str | Path]

MOST = 100
"""Photographs on one sheet."""

DRAWN = ("features.png", "pretext.png", "pretext.json", "map.png", "map.html", "map.json", "similarity.png",
         "similarity.html")  # fmt: skip
"""What the commands write."""

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
    check_whole_number("at_most", at_most, most=MOST)
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


def found_in(source: Source, out: str | Path) -> list[Path]:
    """Find photographs: one file counts once, whatever links lead to it, and what was drawn into ``out`` is none.

    Raises:
        InvalidInputError: nothing was found.
    """
    found = by_file(source, lambda path, _: lies_in(path, out, DRAWN))
    if not found:
        raise InvalidInputError(f"No images in {source!r} but what was drawn there before.")
    return list(found.values())


def by_file(source: Source, left_out: Callable[[Path, str], bool]) -> dict[str, Path]:
    """Find photographs, each once, whatever links lead to it: {where the file really lies: its path}.

    Args:
        source: As ``find_images`` takes them.
        left_out: Of a path, and where it really lies, whether it is none of the photographs.
    """
    found: dict[str, Path] = {}
    for path in find_images(source):
        real = os.path.realpath(path)
        if not left_out(path, real):
            found.setdefault(real, path)
    return found


def lies_in(path: Path, folder: str | Path, names: Collection[str]) -> bool:
    """Tell whether a path is one of these names in a folder itself, whatever links lead to the folder."""
    return path.name in names and os.path.realpath(path.parent) == os.path.realpath(folder)


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


def check_seed(seed: object) -> None:
    """Raise InvalidInputError unless a seed is what NumPy, PyTorch and scikit-learn all take."""
    check_whole_number("seed", seed, 0, 2**32 - 1)


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
