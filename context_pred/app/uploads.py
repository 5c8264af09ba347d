"""What people drop on the page: opened within limits, or refused in a sentence they can read."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from context_pred.data.images import open_image, read_header
from context_pred.errors import ImageError, InvalidInputError

WORKING_SIDE = 1024
"""The longer side in px that the page works with; larger photographs are reduced to it."""

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "HEIF", "TIFF", "GIF", "BMP", "PPM", "JPEG2000", "MPO")
"""Pillow's names of what is taken. It opens more, some by running another program: EPS by Ghostscript."""


@dataclass(frozen=True)
class Limits:
    """What an uploaded image may be at most.

    Attributes:
        megabytes: Of the file, in 2²⁰ bytes; larger ones are refused before they arrive.
        megapixels: Width × height, in 1,000,000 px, asked of the file's header before a pixel is decoded.
        ratio: Longer side over shorter side.
        files: Files at once, where several are taken.

    Raises:
        InvalidInputError: a limit that lets nothing through.
    """

    megabytes: float = 20
    megapixels: float = 50
    ratio: int = 16
    files: int = 8

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("megabytes", "megapixels", "ratio", "files"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidInputError(f"{name}={getattr(self, name)!r}; accepted: a finite number above 0.")

    @property
    def bytes(self) -> int:
        """The most bytes of a file."""
        return int(self.megabytes * 2**20)

    def __str__(self) -> str:
        """Say it in a line."""
        return f"up to {self.megabytes:g} MB and {self.megapixels:g} megapixels"


@dataclass(frozen=True)
class Photo:
    """A photograph on the page.

    Attributes:
        name: What it is called.
        image: Its pixels: RGB, upright, at most ``WORKING_SIDE`` px.
        size: (width, height) of the file's own pixels, upright.
    """

    name: str
    image: Image.Image
    size: tuple[int, int]


def open_upload(path: str | Path, limits: Limits) -> Photo:
    """Open what was uploaded.

    Raises:
        ImageError: too large in bytes or pixels, too narrow, damaged, of another format, or no image; the message is
            for the page.
    """
    name = Path(path).name
    try:
        size = os.path.getsize(path)
    except OSError as error:
        raise ImageError(f"{name}: the upload has not arrived; try again.") from error
    if size > limits.bytes:
        raise ImageError(f"{name} has {size / 2**20:,.1f} MB; accepted are files of up to {limits.megabytes:g} MB.")
    return _photo(name, _opened(path, name, limits))


def open_photo(path: str | Path) -> Photo:
    """Open a photograph of the collection.

    Raises:
        ImageError: it is no longer there, or damaged.
    """
    return _photo(Path(path).name, open_image(path, name=Path(path).name))


def _opened(path: str | Path, name: str, limits: Limits) -> Image.Image:
    most = f"accepted are images of up to {limits.megapixels:g} megapixels."
    try:
        header = read_header(path, name)
    except ImageError as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):
            raise ImageError(f"{name} has far too many pixels; {most}") from error
        raise
    if header.format and header.format not in FORMATS:
        raise ImageError(f"{name} is {header.format}; accepted are {', '.join(FORMATS)}.")
    width, height = header.width, header.height
    if width * height > limits.megapixels * 1e6:
        raise ImageError(f"{name} has {width:,}×{height:,} px; {most}")
    if max(width, height) > limits.ratio * min(width, height):
        raise ImageError(
            f"{name} has {width:,}×{height:,} px; accepted are images at most {limits.ratio} times as long as wide."
        )
    return open_image(path, name=name)


def _photo(name: str, image: Image.Image) -> Photo:
    size = image.size
    image.thumbnail((WORKING_SIDE, WORKING_SIDE), Image.Resampling.LANCZOS)
    return Photo(name, image, size)
