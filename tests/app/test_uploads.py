"""What is uploaded: opened within limits, refused in a sentence."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from context_pred.app.uploads import WORKING_SIDE, Limits, open_upload
from context_pred.data.images import open_image
from context_pred.errors import ImageError, InvalidInputError

LIMITS = Limits(megabytes=0.25, megapixels=10)


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes whose header says width × height."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no image at all", ("not an image",)),
        (b"", ("empty",)),
        (png_that_claims(40_000, 25_000), ("far too many pixels", "10 megapixels")),
        (png_that_claims(5_000, 4_000), ("5,000×4,000 px", "10 megapixels")),
        (png_that_claims(3_000, 100), ("3,000×100 px", "16 times")),
        (png_that_claims(300, 200), ("truncated",)),
        (bytes(300_000), ("0.3 MB", "up to 0.25 MB")),
    ],
    ids=["text", "empty", "a billion pixels", "too many pixels", "too narrow", "cut off", "too large"],
)
def test_what_cannot_be_taken_is_told(tmp_path: Path, content: bytes, words: tuple[str, ...]) -> None:
    path = tmp_path / "holiday.png"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        open_upload(path, LIMITS)
    text = str(caught.value)
    assert text.startswith("holiday.png")
    assert str(tmp_path) not in text
    assert all(word in text for word in words), text


def test_a_file_that_has_gone(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="try again"):
        open_upload(tmp_path / "gone.png", LIMITS)


def test_an_image_is_upright_rgb_and_reduced_and_remembers_its_size(tmp_path: Path) -> None:
    image = Image.new("RGBA", (2400, 1200), (0, 0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.save(tmp_path / "turned.png", exif=exif)
    photo = open_upload(tmp_path / "turned.png", Limits())
    assert (photo.name, photo.image.mode) == ("turned.png", "RGB")
    assert photo.size == (1200, 2400)
    assert photo.image.size == (WORKING_SIDE // 2, WORKING_SIDE)
    assert photo.image.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("form", ["EPS", "PCX"])
def test_a_format_that_photographs_do_not_have_is_not_opened(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "holiday.jpg", format=form)
    monkeypatch.setattr("context_pred.app.uploads.open_image", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(ImageError, match=f"holiday.jpg is {form}; accepted are JPEG, PNG"):
        open_upload(tmp_path / "holiday.jpg", LIMITS)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF", "HEIF", "TIFF", "GIF", "BMP", "PPM", "JPEG2000"])
def test_the_formats_of_photographs_are_taken(tmp_path: Path, form: str) -> None:
    if form == "HEIF":
        pytest.importorskip("pillow_heif", reason="HEIC needs the extra heif").register_heif_opener()
    try:
        Image.new("RGB", (64, 48), (200, 30, 30)).save(tmp_path / "a.bin", format=form)
    except (OSError, KeyError):
        pytest.skip(f"this Pillow writes no {form}")
    assert open_upload(tmp_path / "a.bin", LIMITS).size == (64, 48)


@pytest.mark.parametrize("name", ["megabytes", "megapixels", "ratio", "files"])
def test_limits_are_above_zero(name: str) -> None:
    with pytest.raises(InvalidInputError, match=name):
        Limits(**{name: 0})
    for wrong in (float("inf"), float("nan"), -1):
        with pytest.raises(InvalidInputError, match=name):
            Limits(**{name: wrong})  # type: ignore[arg-type]


def test_pixels_of_a_heic_are_counted_before_any_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heif = pytest.importorskip("pillow_heif", reason="the extra [heif] is not installed")
    heif.from_pillow(Image.new("RGB", (4000, 3000))).save(tmp_path / "large.heic", quality=10)
    with monkeypatch.context() as watched:
        watched.setattr(heif.HeifFile, "to_pillow", None)
        with pytest.raises(ImageError, match="4,000×3,000 px"):
            open_upload(tmp_path / "large.heic", LIMITS)
        watched.setattr(Image, "MAX_IMAGE_PIXELS", 5_000_000)
        with pytest.raises(ImageError, match="more pixels than Pillow allows"):
            open_image(tmp_path / "large.heic")
    assert open_upload(tmp_path / "large.heic", Limits()).size == (4000, 3000)
