"""Awkward image files come out as upright 8-bit RGB, or as an error with the reason."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from context_pred.data import images, open_image
from context_pred.errors import ImageError, InvalidInputError

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
DEEP_GREY = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
DEEP_COLOUR = RNG.integers(0, 65536, (5, 7, 4), dtype=np.uint16)


def saved(path: Path, array: np.ndarray, mode: str | None = None, **options: object) -> Path:
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


def pixels(path: Path, **options: object) -> np.ndarray:
    image = open_image(path, **options)  # type: ignore[arg-type]
    assert image.mode == "RGB"
    return np.asarray(image)


def by_257(values: np.ndarray) -> np.ndarray:
    return np.rint(values / 257).astype(np.uint8)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, 2)


def png(path: Path, values: np.ndarray, colour_type: int, *, clear: tuple[int, ...] = ()) -> Path:
    """Write a 16-bit PNG, which Pillow cannot do for colour: chunks as in the PNG specification."""
    height, width = values.shape[:2]
    rows = values.astype(">u2").reshape(height, -1)

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
    transparent = chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear)) if clear else b""
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + transparent + body + chunk(b"IEND", b""))
    return path


def tiff(path: Path, values: np.ndarray, order: str, tags: dict[int, tuple[int, ...]] | None = None) -> Path:
    """Write a TIFF by hand (TIFF 6.0, section 2), plain or (259: 8) deflated, for what Pillow does not write."""
    height, width = values.shape[:2]
    samples = 1 if values.ndim == 2 else values.shape[2]
    bits = values.dtype.itemsize * 8
    entries = {
        256: (width,), 257: (height,), 258: (bits,) * samples, 259: (1,), 262: (1 if samples < 3 else 2,), 273: (0,),
        277: (samples,), 278: (height,), 279: (values.nbytes,),
    } | ({338: (2,)} if samples == 4 else {}) | (tags or {})  # fmt: skip
    body = values.astype(values.dtype.newbyteorder(order)).tobytes()
    if entries[259] == (8,):
        body = zlib.compress(body)
        entries[279] = (len(body),)
    data_at = 8 + 2 + 12 * len(entries) + 4
    extra_at = data_at + len(body)
    extra = b""
    fields = b""
    for tag, given in sorted(entries.items()):
        value = (data_at,) if tag == 273 else given
        packed = struct.pack(f"{order}{len(value)}I", *value)
        if len(value) > 1:
            extra += packed
            packed = struct.pack(f"{order}I", extra_at + len(extra) - 4 * len(value))
        fields += struct.pack(f"{order}HHI", tag, 4, len(value)) + packed
    magic = b"II*\0" if order == "<" else b"MM\0*"
    directory = struct.pack(f"{order}H", len(entries)) + fields + bytes(4)
    path.write_bytes(magic + struct.pack(f"{order}I", 8) + directory + body + extra)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_orientation(tmp_path: Path, orientation: int, ending: str) -> None:
    # The table of the EXIF standard: what turns the stored rows and columns upright.
    upright = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a),
    }[orientation]  # fmt: skip
    big = PICTURE.repeat(8, 0).repeat(8, 1) // 32 * 32  # blocks, so that JPEG keeps them apart
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(ending, {})
    path = saved(tmp_path / f"a.{ending}", big, exif=exif, **options)
    found = pixels(path).astype(int)
    assert found.shape == upright(big).shape
    assert np.abs(found - upright(big)).max() <= (6 if ending == "jpg" else 0)


def test_orientation_of_sixteen_bits(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path / "a.png", DEEP_GREY, exif=exif)
    assert (pixels(path) == np.rot90(grey(by_257(DEEP_GREY)), -1)).all()
    path = tiff(tmp_path / "a.tif", DEEP_COLOUR[..., :3], "<", {274: (6,)})
    assert (pixels(path) == np.rot90(by_257(DEEP_COLOUR[..., :3]), -1)).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_lose_the_image(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", PICTURE, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert (pixels(path) == PICTURE).all()


def test_palette_grey_and_one_bit(tmp_path: Path) -> None:
    quantized = Image.fromarray(PICTURE).quantize(16)
    quantized.save(tmp_path / "p.png")
    assert (pixels(tmp_path / "p.png") == np.asarray(quantized.convert("RGB"))).all()
    flat = PICTURE[..., 0]
    assert (pixels(saved(tmp_path / "l.png", flat)) == grey(flat)).all()
    bits = (flat > 127) * np.uint8(255)
    assert (pixels(saved(tmp_path / "1.png", bits, "1")) == grey(bits)).all()
    assert (pixels(saved(tmp_path / "1.tif", bits, "1")) == grey(bits)).all()


def over(colours: np.ndarray, alpha: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    share = alpha[..., None] / 255
    return colours * share + np.asarray(background) * (1 - share)


@pytest.mark.parametrize("background", [(255, 255, 255), (10, 200, 0)])
def test_transparency(tmp_path: Path, background: tuple[int, int, int]) -> None:
    alpha = RNG.integers(0, 256, PICTURE.shape[:2], dtype=np.uint8)
    path = saved(tmp_path / "rgba.png", np.dstack([PICTURE, alpha]))
    assert np.abs(pixels(path, background=background) - over(PICTURE, alpha, background)).max() <= 1
    flat = PICTURE[..., 0]
    path = tmp_path / "la.png"
    Image.merge("LA", [Image.fromarray(flat), Image.fromarray(alpha)]).save(path)
    assert np.abs(pixels(path, background=background) - over(grey(flat), alpha, background)).max() <= 1

    index = np.arange(35, dtype=np.uint8).reshape(5, 7) % 4
    palette = Image.fromarray(index)
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]])[index]
    palette.save(tmp_path / "one.png", transparency=2)  # one entry is clear
    expected = over(colours, np.where(index == 2, 0, 255), background)
    assert (pixels(tmp_path / "one.png", background=background) == expected).all()
    palette.save(tmp_path / "each.png", transparency=bytes([0, 128, 255, 64]))  # an alpha an entry
    expected = over(colours, np.array([0, 128, 255, 64])[index], background)
    assert np.abs(pixels(tmp_path / "each.png", background=background) - expected).max() <= 1
    palette.save(tmp_path / "a.gif", transparency=1)
    expected = over(colours, np.where(index == 1, 0, 255), background)
    assert (pixels(tmp_path / "a.gif", background=background) == expected).all()
    clear = tuple(int(v) for v in PICTURE[2, 3])
    Image.fromarray(PICTURE).save(tmp_path / "rgb.png", transparency=clear)
    expected = over(PICTURE, np.where(np.equal(PICTURE, clear).all(2), 0, 255), background)
    assert (pixels(tmp_path / "rgb.png", background=background) == expected).all()


def test_cmyk(tmp_path: Path) -> None:
    ink = np.zeros((16, 16, 4), np.uint8)
    ink[:8, :, 0], ink[8:, :, 3] = 255, 128  # cyan above, half black below
    image = Image.fromarray(ink, "CMYK")
    expected = np.zeros((16, 16, 3))
    expected[:8], expected[8:] = (0, 255, 255), (127, 127, 127)
    image.save(tmp_path / "a.tif")
    assert np.abs(pixels(tmp_path / "a.tif") - expected).max() <= 1
    image.save(tmp_path / "adobe.jpg", quality=100)  # with Adobe's mark, the ink inverted
    assert b"Adobe" in (tmp_path / "adobe.jpg").read_bytes()
    assert np.abs(pixels(tmp_path / "adobe.jpg") - expected).max() <= 4
    Image.fromarray(255 - ink, "CMYK").save(tmp_path / "plain.jpg", quality=100)
    data = (tmp_path / "plain.jpg").read_bytes()
    at = data.index(b"\xff\xee")
    length = struct.unpack(">H", data[at + 2 : at + 4])[0]
    (tmp_path / "plain.jpg").write_bytes(data[:at] + data[at + 2 + length :])  # no mark: the ink as it is
    assert np.abs(pixels(tmp_path / "plain.jpg") - expected).max() <= 4


def test_sixteen_bit_grey_is_divided_by_257(tmp_path: Path) -> None:
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = grey(by_257(every))
    for path in (
        saved(tmp_path / "a.png", every),
        saved(tmp_path / "a.tif", every),
        tiff(tmp_path / "big-endian.tif", every, ">"),
        tiff(tmp_path / "inverted.tif", 65535 - every, "<", {262: (0,)}),
    ):
        assert (pixels(path) == expected).all(), path.name
        assert images.read(path).sixteen_bit
        assert not images.read(path).dim
    (tmp_path / "a.pgm").write_bytes(b"P5 256 256 65535\n" + every.astype(">u2").tobytes())
    assert (pixels(tmp_path / "a.pgm") == expected).all()
    assert images.read(tmp_path / "a.pgm").sixteen_bit


def test_sixteen_bit_colour_is_divided_by_257(tmp_path: Path) -> None:
    rgb, alpha = DEEP_COLOUR[..., :3], DEEP_COLOUR[..., 3]
    for path in (
        png(tmp_path / "rgb.png", rgb, 2),
        tiff(tmp_path / "little.tif", rgb, "<"),
        tiff(tmp_path / "big.tif", rgb, ">"),
        tiff(tmp_path / "deflated.tif", rgb, "<", {259: (8,)}),
        tiff(tmp_path / "deflated big.tif", rgb, ">", {259: (8,)}),
    ):
        assert (pixels(path) == by_257(rgb)).all(), path.name
        assert images.read(path).sixteen_bit
    compressed = tmp_path / "lzw.tif"
    with Image.open(tiff(tmp_path / "t.tif", DEEP_GREY, "<")) as image:
        image.save(compressed, compression="tiff_lzw")
    assert (pixels(compressed) == grey(by_257(DEEP_GREY))).all()
    white = (255, 255, 255)
    for path in (png(tmp_path / "rgba.png", DEEP_COLOUR, 6), tiff(tmp_path / "rgba.tif", DEEP_COLOUR, "<")):
        assert np.abs(pixels(path) - over(by_257(rgb), by_257(alpha), white)).max() <= 1, path.name
    path = png(tmp_path / "la.png", np.dstack([rgb[..., 0], alpha]), 4)
    assert np.abs(pixels(path) - over(grey(by_257(rgb[..., 0])), by_257(alpha), white)).max() <= 1
    clear = tuple(int(v) for v in rgb[1, 1])
    path = png(tmp_path / "clear.png", rgb, 2, clear=clear)
    expected = by_257(rgb)
    expected[1, 1] = 255
    assert (pixels(path) == expected).all()
    path = png(tmp_path / "clear-grey.png", DEEP_GREY, 0, clear=(int(DEEP_GREY[0, 0]),))
    expected = grey(by_257(DEEP_GREY))
    expected[0, 0] = 255
    assert (pixels(path) == expected).all()


def test_value_range_and_dim_images(tmp_path: Path) -> None:
    twelve = RNG.integers(0, 4096, (5, 7, 3), dtype=np.uint16)
    expected = np.rint(twelve / 4095 * 255).astype(np.uint8)
    for path, wanted in (
        (saved(tmp_path / "grey.png", twelve[..., 0]), grey(expected[..., 0])),
        (png(tmp_path / "rgb.png", twelve, 2), expected),
    ):
        assert images.read(path).dim
        assert (pixels(path, value_range=(0, 4095)) == wanted).all()
    clipped = pixels(saved(tmp_path / "c.png", DEEP_GREY), value_range=(1000, 2000))
    assert (clipped[..., 0][DEEP_GREY <= 1000] == 0).all()
    assert (clipped[..., 0][DEEP_GREY >= 2000] == 255).all()
    eight = saved(tmp_path / "eight.png", PICTURE)
    assert (pixels(eight, value_range=(0, 4095)) == PICTURE).all()
    assert not images.read(eight).sixteen_bit


def test_floating_point_and_integers(tmp_path: Path) -> None:
    unit = RNG.random((5, 7)).astype(np.float32)
    assert (pixels(saved(tmp_path / "f.tif", unit)) == grey(np.rint(unit * 255))).all()
    height = unit * 3000 - 500
    with pytest.raises(ImageError, match=r"values run from -.*outside of 0 … 1.*value_range=.*--range"):
        open_image(saved(tmp_path / "h.tif", height))
    found = pixels(tmp_path / "h.tif", value_range=(-500, 2500))
    assert np.abs(found - grey(unit * 255)).max() <= 0.51
    height[0, 0] = np.nan
    saved(tmp_path / "n.tif", height)
    with pytest.raises(ImageError, match="nan"):
        open_image(tmp_path / "n.tif")
    assert (pixels(tmp_path / "n.tif", value_range=(-500, 2500))[0, 0] == 0).all()
    whole = np.array([[0, 65535, 257 * 9]], np.int32)
    assert (pixels(saved(tmp_path / "i.tif", whole)) == grey(np.array([[0, 255, 9]]))).all()
    with pytest.raises(ImageError, match="outside of 0 … 65535"):
        open_image(saved(tmp_path / "j.tif", whole * 2))


def test_what_cannot_be_read_is_an_error_with_its_reason(tmp_path: Path) -> None:
    noise = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = saved(tmp_path / "whole.jpg", noise).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.png").write_bytes(saved(tmp_path / "whole.png", noise).read_bytes()[:500])
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    png(tmp_path / "bomb.png", np.zeros((1, 1), np.uint16), 0)
    bomb = bytearray((tmp_path / "bomb.png").read_bytes())
    bomb[16:24] = struct.pack(">II", 30000, 30000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bytes(bomb[12:29])))
    (tmp_path / "bomb.png").write_bytes(bytes(bomb))
    table = [
        ("cut.jpg", "truncated"),
        ("cut.png", "."),
        ("notes.txt", "not an image"),
        ("empty.jpg", "empty file"),
        ("folder.jpg", "directory"),
        ("missing.jpg", "no such file"),
        ("bomb.png", "MAX_IMAGE_PIXELS"),
    ]
    for name, reason in table:
        with pytest.raises(ImageError, match=rf"{name}: .*{reason}"):
            open_image(tmp_path / name)


def test_heic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "telephone.jpg"  # HEIC by its bytes, whatever its name says
    path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(12))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(images.HeifError, match=r'pip install "context-pred\[heif\]"'):
        open_image(path)


def test_heic_opens_with_its_package(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif", reason="the extra [heif] is not installed")
    big = PICTURE.repeat(16, 0).repeat(16, 1)
    file = io.BytesIO()
    heif.from_pillow(Image.fromarray(big)).save(file, quality=-1)
    (tmp_path / "a.heic").write_bytes(file.getvalue())
    found = pixels(tmp_path / "a.heic").astype(int)
    assert found.shape == big.shape
    assert np.abs(found - big).mean() < 4
    (tmp_path / "cut.heic").write_bytes(file.getvalue()[:200])
    with pytest.raises(ImageError, match=r"cut\.heic"):
        open_image(tmp_path / "cut.heic")


def test_options_are_checked(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", PICTURE)
    for options in ({"background": (0, 0, 256)}, {"background": (0.5, 0, 0)}, {"value_range": (5, 5)}):
        with pytest.raises(InvalidInputError, match="accepted"):
            open_image(path, **options)  # type: ignore[arg-type]
