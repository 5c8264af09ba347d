"""Photographs decoded fast come out as ``open_image`` gives them; damaged ones do not come out half."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from context_pred.data import decode, open_image
from context_pred.data.decode import Photo, read_bytes
from context_pred.data.resampling import resize_window
from context_pred.errors import ImageError

RNG = np.random.default_rng(0)


def jpeg(array: np.ndarray | Image.Image, mode: str | None = None, **options: object) -> bytes:
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    file = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(file, "JPEG", **options)
    return file.getvalue()


def picture(height: int, width: int) -> np.ndarray:
    """Smooth, with edges: a JPEG file keeps it, and every corner differs."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + k) * np.cos(y / (7 + k)) for k in range(3)]
    return np.stack([(127 + 100 * wave + (x > y) * 20).clip(0, 255) for wave in waves], 2).astype(np.uint8)


def whole(photo: Photo) -> np.ndarray:
    return photo.pixels().permute(1, 2, 0).numpy()


def test_photographs_are_decoded_as_pillow_decodes_them(photos: Path) -> None:
    for path in sorted(photos.glob("*.jpg")):
        photo = Photo(path)
        assert not photo.decoded  # the fast way, or this test says nothing
        expected = np.asarray(open_image(path))
        assert (photo.height, photo.width, 3) == expected.shape
        assert (whole(photo) == expected).all(), path.name
        assert (whole(Photo(path.read_bytes())) == expected).all()


@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"subsampling": 0}, {"quality": 30}, {"restart_marker_rows": 1}]
)
def test_kinds_of_jpeg(options: dict[str, object]) -> None:
    data = jpeg(picture(75, 101), **options)
    photo = Photo(data)
    assert not photo.decoded
    assert (whole(photo) == np.asarray(open_image(data))).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_at_every_scale_and_in_grey(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(picture(203, 321), exif=exif, quality=95)
    photo = Photo(data)
    expected = np.asarray(open_image(data))
    assert not photo.decoded
    assert (photo.height, photo.width, 3) == expected.shape
    assert (whole(photo) == expected).all()
    grey = photo.pixels(grey=True)[0].numpy().astype(int)
    assert np.abs(grey - np.asarray(open_image(data).convert("L"))).max() <= 2
    data = jpeg(picture(200, 320), exif=exif, quality=95)
    reduced, divisor = Photo(data).reduced(5)
    assert divisor == 4
    expected = np.asarray(open_image(data))
    height, width = expected.shape[:2]
    means = expected.reshape(height // 4, 4, width // 4, 4, 3).mean((1, 3))
    assert np.abs(reduced.permute(1, 2, 0).numpy() - means).mean() < 2


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_orientation_without_exif_and_damaged_exif() -> None:
    plain = jpeg(picture(40, 60))
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"></x:xmpmeta>'
    broken = b"Exif\0\0MM\0*\xff\xff\xff\xff garbage"
    for label, content in (("xmp", xmp), ("broken", broken)):
        data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + plain[2:]
        expected = np.asarray(open_image(data))
        assert (whole(Photo(data)) == expected).all(), label


def test_without_torchvision_s_decoder_pillow_gives_the_same(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = (photos / "koala.jpg").read_bytes()
    before = [Photo(data).pixels(grey=grey) for grey in (False, True)]
    monkeypatch.setattr(decode, "_torch_decode", None)
    after = [Photo(data).pixels(grey=grey) for grey in (False, True)]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    with pytest.raises(ImageError, match="truncated"):
        Photo(data[:9000]).pixels()


def test_grey_files_come_out_as_rgb() -> None:
    data = jpeg(picture(50, 70)[..., 0])
    photo = Photo(data)
    assert not photo.decoded
    assert (whole(photo) == np.asarray(open_image(data))).all()
    assert (photo.pixels(grey=True)[0].numpy() == np.asarray(open_image(data))[..., 0]).all()


def test_brightness_as_the_file_stores_it(photos: Path) -> None:
    for path in sorted(photos.glob("*.jpg")):
        grey = Photo(path).pixels(grey=True)
        assert grey.shape[0] == 1
        difference = np.abs(grey[0].numpy().astype(int) - np.asarray(open_image(path).convert("L")))
        assert difference.mean() < 0.5
        assert (difference > 1).mean() < 0.05  # where colours were clipped
        assert (difference > 4).mean() < 0.005


def test_what_the_fast_way_does_not_take(tmp_path: Path) -> None:
    ink = RNG.integers(0, 256, (24, 32, 4), dtype=np.uint8)
    deep = picture(24, 32)[..., 0].astype(np.uint16) * 257
    files = {"cmyk.jpg": jpeg(Image.fromarray(ink, "CMYK")), "deep.png": None, "small.gif": None, "clear.png": None}
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(picture(24, 32)).save(tmp_path / "small.gif")
    Image.fromarray(ink, "RGBA").save(tmp_path / "clear.png")
    for name, data in files.items():
        source = data or (tmp_path / name).read_bytes()
        photo = Photo(source)
        assert photo.decoded, name
        assert (whole(photo) == np.asarray(open_image(source))).all(), name
        assert photo.reduced(8)[1] == 1
    grey = Photo(tmp_path / "small.gif").pixels(grey=True)[0].numpy()
    assert (grey == np.asarray(open_image(tmp_path / "small.gif").convert("L"))).all()


def test_a_damaged_file_is_an_error_with_its_reason_and_never_half_a_picture(tmp_path: Path) -> None:
    data = jpeg(RNG.integers(0, 256, (96, 128, 3), dtype=np.uint8), quality=90)
    header = data.index(b"\xff\xda")
    cuts = [*range(0, header, 37), *range(header, len(data) - 2, len(data) // 23)]
    for cut in cuts:
        (tmp_path / "cut.jpg").write_bytes(data[:cut])
        for way in (Photo.pixels, lambda photo: photo.pixels(grey=True), lambda photo: photo.reduced(4)):
            with pytest.raises(ImageError, match=r"cut\.jpg: ."):
                way(Photo(tmp_path / "cut.jpg"))
    with pytest.raises(ImageError, match=r"^here: empty file$"):
        Photo(b"", "here")
    with pytest.raises(ImageError, match=r"gone\.jpg: no such file"):
        Photo(tmp_path / "gone.jpg")
    with pytest.raises(ImageError, match="directory"):
        read_bytes(tmp_path)
    with pytest.raises(ImageError, match=r"^image: not an image"):
        Photo(b"\xff\xd8\xff" + b"no picture follows" * 9)


def test_more_pixels_than_pillow_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg(picture(60, 60))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="MAX_IMAGE_PIXELS"):
        Photo(data)


def test_reduced_is_never_smaller_than_asked() -> None:
    for height, width in ((400, 640), (397, 643), (129, 65)):
        photo = Photo(jpeg(picture(height, width)))
        for part, expected in ((0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (7, 4), (8, 8), (99, 8)):
            pixels, divisor = photo.reduced(part)
            assert divisor == expected
            assert pixels.shape == (3, -(-height // divisor), -(-width // divisor))


SIZES = [
    ((375, 500), (292, 389)),
    ((500, 375), (389, 292)),
    ((37, 41), (64, 70)),
    ((300, 1201), (64, 256)),
    ((96, 128), (96, 200)),
    ((97, 131), (200, 131)),
    ((64, 64), (64, 64)),
]


@pytest.mark.parametrize(("source", "target"), SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_windows_are_cut_from_what_pillow_resizes(
    source: tuple[int, int], target: tuple[int, int], channels: int
) -> None:
    values = np.ascontiguousarray(picture(*source)[..., :channels])
    image = Image.fromarray(values[..., 0] if channels == 1 else values)
    expected = np.asarray(image.resize(target[::-1], Image.Resampling.BILINEAR)).reshape(*target, channels).astype(int)
    height, width = target
    for left, top, across, down in ((0, 0, width, height), (width - 50, height - 60, 50, 60), (3, 5, 41, 43)):
        # As decoded, and with the channels apart.
        for pixels in (
            torch.from_numpy(values).permute(2, 0, 1),
            torch.from_numpy(values).permute(2, 0, 1).contiguous(),
        ):
            found = resize_window(pixels, target, (left, top, across, down)).permute(1, 2, 0).numpy()
            assert found.shape == (down, across, channels)
            assert np.abs(found - expected[top : top + down, left : left + across]).max() <= 1


def test_without_antialiasing_half_pixel_centres_as_opencv() -> None:
    values = picture(90, 131)
    found = resize_window(torch.from_numpy(values).permute(2, 0, 1), (40, 50), (5, 6, 30, 20), antialias=False)
    y = ((np.arange(40) + 0.5) * 90 / 40 - 0.5)[6:26]
    x = ((np.arange(50) + 0.5) * 131 / 50 - 0.5)[5:35]
    low_y, low_x = np.floor(y).astype(int), np.floor(x).astype(int)
    down, across = (y - low_y)[:, None, None], (x - low_x)[None, :, None]
    row = [(1 - across) * values[low_y + k][:, low_x] + across * values[low_y + k][:, low_x + 1] for k in (0, 1)]
    expected = (1 - down) * row[0] + down * row[1]
    assert np.abs(found.permute(1, 2, 0).numpy() - expected).max() <= 1


def test_of_a_very_long_strip_only_the_window_is_made() -> None:
    strip = torch.from_numpy(picture(20, 30_000)).permute(2, 0, 1)
    size = (292, 438_000)
    for channels in (strip, strip[:1]):
        found = resize_window(channels, size, (400_000, 30, 255, 255))
        start, end = 400_000 * 20 // 292 - 30, 400_255 * 20 // 292 + 30
        part = channels[None, :, :, start:end].double()
        # The same stretch alone, its sampling points set by hand.
        x = (torch.arange(400_000, 400_255) + 0.5) * 30_000 / 438_000 - 0.5 - start
        y = (torch.arange(30, 285) + 0.5) * 20 / 292 - 0.5
        grid = torch.stack(
            torch.meshgrid((2 * y + 1) / 20 - 1, (2 * x + 1) / (end - start) - 1, indexing="ij")[::-1], -1
        )
        expected = F.grid_sample(part, grid[None].double(), padding_mode="border", align_corners=False)[0]
        assert (found.double() - expected).abs().max() <= 1.5
