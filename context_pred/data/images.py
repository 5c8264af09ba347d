"""Opening an image file as 8-bit RGB, whatever was stored: orientation, palettes, 16 bits, CMYK, transparency, HEIC.

Colour profiles are not applied, as in the pipelines the published models were trained and evaluated with.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from context_pred.errors import ImageError, InvalidInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

HEIF_INSTALL = 'pip install "context-pred[heif]"'
"""The line that makes HEIC and HEIF files readable."""

WHITE = (255, 255, 255)

DIM_BELOW = 4096
"""A 16-bit image whose largest value is below this holds 12-bit data: divided by 257 it is almost black."""

_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})

# Pillow unpacks three- and four-channel images of 16 bits to their high bytes. Read with the other byte order, the
# same data gives the low bytes. 16-bit grey with alpha fits four bytes a pixel, so one plain reading gives all.
_SWAPPED = "B" if sys.byteorder == "little" else "L"
_OTHER_BYTE = {
    **{f"{mode};16{order}": f"{mode};16{other}" for mode in ("RGB", "RGBX", "RGBA") for order, other in ("BL", "LB")},
    **{f"{mode};16N": f"{mode};16{_SWAPPED}" for mode in ("RGB", "RGBX", "RGBA")},
    "LA;16B": "RGBA",
}


class HeifError(ImageError):
    """A HEIC or HEIF file, and the package that reads it is not installed."""


@dataclass(frozen=True)
class Opened:
    """An image file, opened.

    ``image`` has mode RGB; ``sixteen_bit`` says whether the file stored 16 bits a value, ``dim`` whether it did and
    its largest value was below 4,096.
    """

    image: Image.Image
    sixteen_bit: bool = False
    dim: bool = False


def open_image(
    path: str | Path | bytes,
    *,
    name: str | None = None,
    background: tuple[int, int, int] = WHITE,
    value_range: tuple[float, float] | None = None,
) -> Image.Image:
    """Open an image file as 8-bit RGB, upright.

    - EXIF orientation (also TIFF's and XMP's) is applied. Of several frames or pages the first is taken.
    - Grey, 1-bit, palette, CMYK (Adobe's inverted kind too), YCbCr and Lab files become RGB, without colour profiles.
    - Transparent pixels are laid over ``background``.
    - 16-bit values are divided by 257 and rounded, in grey and (PNG and TIFF) colour files alike; 16-bit JPEG 2000
      colour comes with its high byte, as Pillow gives it.
    - Floating point is taken to run from 0 to 1, 32-bit integers from 0 to 65,535; outside of that ``value_range``
      is needed.

    Args:
        path: The file, or its bytes.
        name: What errors call the image; None: the path, or "image" for bytes.
        background: Red, green, blue, each 0 … 255, for transparent pixels.
        value_range: (low, high): the values of 16-bit, 32-bit and floating-point files that become 0 and 255; what
            lies beyond is clipped, NaN becomes 0. Files of 8 bits or fewer are not touched by it.

    Returns:
        The image, loaded, mode RGB.

    Raises:
        ImageError: the file is missing, damaged, cut off, no image, or larger than Pillow allows
            (``PIL.Image.MAX_IMAGE_PIXELS`` decides; twice as many pixels are an error). A ``HeifError`` where only
            the package for HEIC is missing.
        InvalidInputError: ``background`` or ``value_range`` is not what is accepted.
    """
    return read(path, name=name, background=background, value_range=value_range).image


def read(
    path: str | Path | bytes,
    *,
    name: str | None = None,
    background: tuple[int, int, int] = WHITE,
    value_range: tuple[float, float] | None = None,
) -> Opened:
    """Do the work of ``open_image`` (same arguments and errors), and tell about 16-bit files too."""
    check_options(background, value_range)
    source = _Source.of(path, name)
    with _explained(source), _open(source) as image:
        return _convert(image, source, background, value_range)


@dataclass(frozen=True)
class Header:
    """What an image file says of itself before its pixels: sides in px as stored, Pillow's names of format and mode."""

    width: int
    height: int
    format: str
    mode: str

    @property
    def grey(self) -> bool:
        """Whether there is one channel, alpha aside."""
        return self.mode in ("1", "L", "LA", "La", "I", "F") or self.mode.startswith("I;16")


def read_header(path: str | Path | bytes, name: str | None = None) -> Header:
    """Read what a file says of itself, in a fraction of a millisecond; its pixels may still be damaged.

    Raises:
        ImageError: as ``open_image``.
    """
    source = _Source.of(path, name)
    with _explained(source):
        if _is_heif(source.start()):
            heif = _open_heif(source)
            width, height = heif.size
            return Header(width, height, "HEIF", heif.mode)
    with _explained(source), _open(source) as image:
        return Header(*image.size, image.format or "", image.mode)


@contextlib.contextmanager
def _explained(source: _Source) -> Iterator[None]:
    """Turn whatever opening an image raises into an ImageError with the reason."""
    try:
        yield
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{source.name}: no such file") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{source.name}: {_why_not(source)}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{source.name}: more pixels than Pillow allows ({error}); raise PIL.Image.MAX_IMAGE_PIXELS to accept it"
        ) from error
    except MemoryError as error:
        raise ImageError(f"{source.name}: too large for the memory") from error
    # Damaged files make Pillow's decoders raise almost anything: struct.error, SyntaxError, IndexError, zlib.error, …
    except Exception as error:
        raise ImageError(f"{source.name}: {_reason(error)}") from error


@dataclass(frozen=True)
class _Source:
    """A path or the bytes of a file, and what errors call it."""

    content: str | Path | bytes
    name: str

    @classmethod
    def of(cls, content: str | Path | bytes, name: str | None) -> _Source:
        return cls(content, name or ("image" if isinstance(content, bytes) else str(content)))

    def file(self) -> str | Path | io.BytesIO:
        """What Pillow opens, anew at each call."""
        return io.BytesIO(self.content) if isinstance(self.content, bytes) else self.content

    def start(self) -> bytes:
        if isinstance(self.content, bytes):
            return self.content[:12]
        with open(self.content, "rb") as file:
            return file.read(12)


def check_options(background: tuple[int, int, int], value_range: tuple[float, float] | None) -> None:
    """Raise InvalidInputError where ``background`` or ``value_range`` is not what ``open_image`` accepts."""
    if len(background) != 3 or not all(isinstance(v, int) and 0 <= v <= 255 for v in background):
        raise InvalidInputError(f"background={background!r}; accepted: red, green, blue, whole numbers 0 … 255.")
    if value_range is not None and (len(value_range) != 2 or not value_range[0] < value_range[1]):
        raise InvalidInputError(f"value_range={value_range!r}; accepted: (low, high) with low below high, or None.")


def to_rgb(image: Image.Image, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """Turn a Pillow image of any 8-bit mode into RGB, transparency over ``background``; an RGB image comes back itself.

    16-bit, integer and floating-point images (modes I;16, I, F) are refused: ``open_image`` knows their range.

    Raises:
        InvalidInputError: a mode of more than 8 bits.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        raise InvalidInputError(
            f"A Pillow image of mode {image.mode!r} has more than 8 bits and no range known; open the file with "
            f"context_pred.data.open_image(path, value_range=(low, high)), or convert it to RGB."
        )
    if image.mode == "LAB":
        from PIL import ImageCms  # needed by hardly anyone

        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return _some(ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB"))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        if image.mode == "La":
            image = image.convert("LA")
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (*background, 255))
        canvas.alpha_composite(rgba)
        return canvas.convert("RGB")
    return image.convert("RGB")


def _some(image: Image.Image | None) -> Image.Image:
    if image is None:
        raise ImageError("the colour conversion gave nothing")
    return image


def _open(source: _Source) -> Image.Image:
    if _is_heif(source.start()):
        heif: Image.Image = _open_heif(source).to_pillow()
        return heif
    return Image.open(source.file())


def _open_heif(source: _Source) -> Any:
    """Open a HEIC or HEIF file, none of whose pixels is decoded yet, within Pillow's bounds for its own formats."""
    try:
        import pillow_heif
    except ImportError as error:
        raise HeifError(f"{source.name}: HEIC and HEIF files need one more package: {HEIF_INSTALL}") from error
    heif = pillow_heif.open_heif(source.file())
    pixels, most = heif.size[0] * heif.size[1], Image.MAX_IMAGE_PIXELS
    if most is not None and pixels > 2 * most:
        raise Image.DecompressionBombError(f"{pixels:,} pixels, more than {2 * most:,}")
    return heif


def _is_heif(start: bytes) -> bool:
    """Tell by the first bytes: telephones give HEIC files the ending .jpg, too."""
    return start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS


def _why_not(source: _Source) -> str:
    return "not an image, or of a kind that Pillow does not know" if source.start() else "empty file"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _convert(
    image: Image.Image, source: _Source, background: tuple[int, int, int], value_range: tuple[float, float] | None
) -> Opened:
    rawmode = _rawmode(image)
    inverted = image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info
    image.load()
    sixteen_bit = rawmode in _OTHER_BYTE or image.mode.startswith("I;16") or (image.mode == "I" and _ppm_or_png(image))
    dim = False
    if rawmode in _OTHER_BYTE:
        values = _both_bytes(image, source, rawmode)
        dim = bool(_colours(values).max() < DIM_BELOW)
        plain = _from_channels(values, image, background, value_range)
    elif image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        if image.mode.startswith("I;16") and _white_is_zero(image):
            values = 65535 - values
        dim = sixteen_bit and bool(values.max() < DIM_BELOW)
        plain = _from_grey(values, image, source, background, value_range)
    else:
        # Pillow takes every CMYK JPEG for one of Adobe's, which store the ink inverted; without Adobe's mark they
        # do not.
        plain = to_rgb(ImageChops.invert(image) if inverted else image, background)
    return Opened(_upright(plain, image), sixteen_bit, dim)


def _ppm_or_png(image: Image.Image) -> bool:
    """Pillow gives 16-bit PGM files (and in older versions PNG) mode I, scaled to 65,535."""
    return image.format in ("PPM", "PNG")


def _white_is_zero(image: Image.Image) -> bool:
    """TIFF's inverted grey, which Pillow turns round at 8 bits but not at 16."""
    return getattr(image, "tag_v2", {}).get(262) == 0


def _rawmode(image: Image.Image) -> str:
    """How the stored values are laid out, where the format tells and all tiles agree; else an empty text."""
    modes = {args if isinstance(args, str) else args[0] for *_, args in getattr(image, "tile", []) if args}
    return str(modes.pop()) if image.format in ("PNG", "TIFF") and len(modes) == 1 else ""


def _both_bytes(high: Image.Image, source: _Source, rawmode: str) -> NDArray[np.uint16]:
    """Read all 16 bits of a colour file of which Pillow gave the high bytes: (H, W, 2, 3 or 4) uint16."""
    other = _OTHER_BYTE[rawmode]
    with Image.open(source.file()) as image:
        image.tile = [_with_rawmode(tile, other) for tile in image.tile]
        image.load()
        second = np.asarray(image).astype(np.uint16)
    if rawmode == "LA;16B":
        return _joined(second[..., 0::2], second[..., 1::2])
    return _joined(np.asarray(high).astype(np.uint16), second)


def _joined(high: NDArray[np.uint16], low: NDArray[np.uint16]) -> NDArray[np.uint16]:
    return high * np.uint16(256) + low


def _with_rawmode(tile: Any, rawmode: str) -> Any:
    args = rawmode if isinstance(tile[3], str) else (rawmode, *tile[3][1:])
    # A plain tuple before Pillow 11, a named one since.
    return tile._replace(args=args) if hasattr(tile, "_replace") else (*tile[:3], args)


def _colours(values: NDArray[np.uint16]) -> NDArray[np.uint16]:
    return values if values.shape[2] == 3 else values[..., :-1]


def _from_channels(
    values: NDArray[np.uint16],
    image: Image.Image,
    background: tuple[int, int, int],
    value_range: tuple[float, float] | None,
) -> Image.Image:
    """(H, W, 2, 3 or 4) uint16 → RGB; a last channel of two or four is the alpha, always of 0 … 65,535."""
    rgb = np.broadcast_to(_scaled(_colours(values), value_range or (0, 65535)), (*values.shape[:2], 3))
    clear = image.info.get("transparency")  # PNG: the one colour, in 16 bits, that is transparent
    if values.shape[2] != 3:
        alpha = _scaled(values[..., -1], (0, 65535))
    elif isinstance(clear, tuple):
        alpha = np.where((values == np.asarray(clear)).all(2), 0, 255).astype(np.uint8)
    else:
        return Image.fromarray(np.ascontiguousarray(rgb))
    return to_rgb(Image.fromarray(np.concatenate([rgb, alpha[..., None]], 2)), background)


def _from_grey(
    values: NDArray[Any],
    image: Image.Image,
    source: _Source,
    background: tuple[int, int, int],
    value_range: tuple[float, float] | None,
) -> Image.Image:
    """(H, W) of 16-bit, 32-bit or floating-point values → RGB."""
    if value_range is None:
        value_range = (0.0, 1.0) if image.mode == "F" else (0, 65535)
        low, high = values.min(), values.max()
        if not (value_range[0] <= low and high <= value_range[1]):  # also where NaN is among them
            raise ImageError(
                f"{source.name}: values run from {low:.6g} to {high:.6g}, outside of {value_range[0]:g} … "
                f"{value_range[1]:g}; say what is black and white with value_range=(low, high), or --range LOW HIGH"
            )
    grey = Image.fromarray(_scaled(values, value_range))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return to_rgb(grey, background)


def _scaled(values: NDArray[Any], value_range: tuple[float, float]) -> NDArray[np.uint8]:
    """Map low … high to 0 … 255, rounded and clipped; with (0, 65535) a division by 257."""
    low, high = value_range
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        looked_up: NDArray[np.uint8] = _scaled(np.arange(65536), value_range)[values]
        return looked_up
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    levels: NDArray[np.uint8] = np.nan_to_num(np.rint(scaled).clip(0, 255), nan=0).astype(np.uint8)
    return levels


def _upright(plain: Image.Image, source: Image.Image) -> Image.Image:
    try:
        orientation = source.getexif().get(0x0112, 1)
    except Exception:  # an image with damaged EXIF is still an image; Pillow raises whatever its parser meets
        return plain
    if orientation == 1:
        return plain
    plain.getexif()[0x0112] = orientation
    return ImageOps.exif_transpose(plain)
