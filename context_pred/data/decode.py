"""Decoding for training: the size of a photograph first, then its pixels, a JPEG file's by the fastest way there is.

What comes out is what ``context_pred.data.open_image`` gives, as a tensor. JPEG files of 8 bits and one or three
components go through ``torchvision.io``, or through Pillow at an eighth to a half of the size where that is enough;
everything else, and every file with which that fails, through ``context_pred.data.images.read``, which also decides
whether a file is damaged.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from context_pred.errors import ImageError
from context_pred.patches.shortcuts import luma_pil

from . import images

with contextlib.suppress(ImportError):
    import torchvision.io  # noqa: F401  # registers the operator

# torchvision 0.29 deprecates its decoders, for a package of their own; without, Pillow takes a fifth as long again. The
# operator, since the function around it warns at every call. The modes are those of torchvision.io.ImageReadMode.
_torch_decode: Any = getattr(torch.ops.image, "decode_jpeg", None)
_GREY, _RGB = 1, 3

_PLAIN_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended and progressive, Huffman-coded
_OTHER_FRAMES = frozenset({0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)})
_NO_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})
_APP1, _SCAN, _END = 0xE1, 0xDA, 0xD9


class Photo:
    """An image whose size is known and whose pixels can be had.

    Args:
        source: The file, or its bytes.
        name: What errors call it; None: the path, or "image" for bytes.

    Attributes:
        name: What errors call it.
        height: In px, upright.
        width: In px, upright.

    Raises:
        ImageError: as ``open_image``.
    """

    def __init__(self, source: str | Path | bytes, name: str | None = None) -> None:
        self.name = name or ("image" if isinstance(source, bytes) else str(source))
        self._data = source if isinstance(source, bytes) else read_bytes(source, self.name)
        self._jpeg = _jpeg(self._data)
        self._whole: Tensor | None = None
        if self._jpeg is None:
            self._whole = self._slowly()
            self.height, self.width = self._whole.shape[1:]
        else:
            self.height, self.width = self._jpeg.upright_size

    @property
    def decoded(self) -> bool:
        """Whether it had to be decoded to know its size, and is held whole."""
        return self._whole is not None

    def pixels(self, *, grey: bool = False) -> Tensor:
        """Decode at full size.

        Args:
            grey: True gives one channel. Of a JPEG file it is the brightness that the file stores, which costs a
                quarter less to decode; the brightness of the decoded colours (Pillow's "L", which other files give)
                differs from it only where colours were clipped to 0 … 255, there by up to 15 grey levels.

        Returns:
            uint8 (3, height, width), RGB, or (1, height, width), upright; the channels of a pixel lie side by side.

        Raises:
            ImageError: the file is damaged.
        """
        if self._jpeg is not None:
            decoded = _by_torch(self._data, grey) if _torch_decode is not None else self._by_pillow(1, grey)
            if decoded is not None:
                return _upright(decoded, self._jpeg.orientation)
            self._jpeg = None
        if self._whole is None:
            self._whole = self._slowly()
        return luma_pil(self._whole)[None] if grey else self._whole

    def reduced(self, part: int, *, grey: bool = False) -> tuple[Tensor, int]:
        """Decode at a half, a quarter or an eighth of the size: at the smallest that is no less than 1 / ``part``.

        Only plain JPEG files can be decoded so, in a fraction of the time; each pixel is then the mean of a block.

        Returns:
            (pixels, divisor): as ``pixels``, the sides divided by 1, 2, 4 or 8 and rounded up.

        Raises:
            ImageError: the file is damaged.
        """
        divisor = min(8, 1 << (max(1, part).bit_length() - 1))
        if self._jpeg is not None and divisor > 1:
            decoded = self._by_pillow(divisor, grey)
            if decoded is not None:
                return _upright(decoded, self._jpeg.orientation), divisor
        return self.pixels(grey=grey), 1

    def _by_pillow(self, divisor: int, grey: bool) -> Tensor | None:
        """Decode a JPEG file at 1 / ``divisor``; None where that fails: ``_slowly`` finds the reason, or a way."""
        height, width = self._jpeg.stored_size if self._jpeg is not None else (0, 0)
        mode = "L" if grey else "RGB"
        try:
            with Image.open(io.BytesIO(self._data)) as image:
                image.draft(mode, (max(1, width // divisor), max(1, height // divisor)))
                plain = image.convert(mode)
        except Exception:  # Pillow's decoders raise almost anything
            return None
        return _tensor(plain) if plain.size == (-(-width // divisor), -(-height // divisor)) else None

    def _slowly(self) -> Tensor:
        return _tensor(images.read(self._data, name=self.name).image)


def _by_torch(data: bytes, grey: bool) -> Tensor | None:
    """Decode a JPEG file; None where that fails."""
    try:
        decoded: Tensor = _torch_decode(torch.frombuffer(bytearray(data), dtype=torch.uint8), _GREY if grey else _RGB)
    except RuntimeError:
        return None
    return decoded


@dataclass(frozen=True)
class _Jpeg:
    """A plain JPEG file: (height, width) as stored, and EXIF's orientation, 1 … 8."""

    stored_size: tuple[int, int]
    orientation: int

    @property
    def upright_size(self) -> tuple[int, int]:
        height, width = self.stored_size
        return (width, height) if self.orientation >= 5 else (height, width)


def read_bytes(path: str | Path, name: str | None = None) -> bytes:
    """Read a file.

    Raises:
        ImageError: it cannot be read; the message begins with ``name``, or the path.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            # Asked for the whole, the system gives it in one piece; the rest is for what grows or is no plain file.
            start = file.read(os.fstat(file.fileno()).st_size + 1)
            return start + file.read()
    except OSError:
        images.read(path, name=name)  # puts the reason into words
        raise ImageError(f"{name or path}: cannot be read") from None


def _jpeg(data: bytes) -> _Jpeg | None:
    """Read the header of a JPEG file that the fast decoders take; None for every other file."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    at, labelled, size = 2, False, (0, 0)
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == _SCAN:
            return _Jpeg(size, _orientation(data) if labelled else 1) if size != (0, 0) else None
        if marker in _PLAIN_FRAMES and size == (0, 0):
            bits, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
            most = Image.MAX_IMAGE_PIXELS
            if bits != 8 or components not in (1, 3) or not height * width or (most and height * width > most):
                return None
            size = (height, width)
        elif marker in _OTHER_FRAMES or marker in _PLAIN_FRAMES or marker == _END:
            return None
        elif marker == 0xFF or marker in _NO_LENGTH:
            at += 1 if marker == 0xFF else 2
            continue
        labelled = labelled or marker == _APP1
        at += 2 + (data[at + 2] << 8) + data[at + 3]
    return None


def _orientation(data: bytes) -> int:
    """EXIF's or XMP's, as ``images.read`` finds it."""
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
            warnings.simplefilter("ignore")
            found = image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF: Pillow raises whatever its parser meets
        return 1
    return found if found in range(1, 9) else 1


def _tensor(image: Image.Image) -> Tensor:
    values = torch.from_numpy(np.array(image))
    return values.permute(2, 0, 1) if values.ndim == 3 else values[None]


def _upright(pixels: Tensor, orientation: int) -> Tensor:
    """Turn stored rows and columns (…, H, W) upright; by the table of the EXIF standard."""
    if orientation >= 5:
        pixels = pixels.transpose(-1, -2)
    flipped = {2: [-1], 3: [-1, -2], 4: [-2], 6: [-1], 7: [-1, -2], 8: [-2]}.get(orientation)
    return pixels.flip(flipped) if flipped else pixels
