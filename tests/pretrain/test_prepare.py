"""From a file to the pixels and boxes of its patches: geometry, grey, flips, awkward files."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from context_pred.data import open_image
from context_pred.errors import ImageError, InvalidInputError, UnknownNameError
from context_pred.patches import GridPatchSampler, RandomPairSampler, sampler_from_config
from context_pred.patches.random_pairs import draw_size
from context_pred.pretrain.prepare import ImageOptions, Preparation, Prepared
from context_pred.pretrain.recipe import read_recipe
from context_pred.training import keys

COLOR = GridPatchSampler(60, 16, grayscale=0, normalize=False)
"""Never grey, so that pixels can be compared."""


def save(path: Path, array: np.ndarray | Image.Image, **options: object) -> Path:
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(path, **options)
    return path


def ramp(height: int, width: int) -> np.ndarray:
    """Red tells the column, green the row: a pixel tells where it comes from."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // max(1, width - 1), y * 255 // max(1, height - 1), (x + y) % 50], 2).astype(np.uint8)


def patches(prepared: Prepared, sampler: GridPatchSampler = COLOR) -> torch.Tensor:
    return sampler.cut(prepared.pixels[None], prepared.draw).patches


def test_the_window_holds_the_patches_of_the_resized_photograph(photos: Path) -> None:
    for number, path in enumerate(sorted(photos.glob("*.jpg"))):
        preparation = Preparation(ImageOptions(resize=100), COLOR)
        prepared = preparation(path, keys.generator(1, number))
        whole = F.pil_to_tensor(F.resize(open_image(path), [100], antialias=True))
        generator = keys.generator(1, number)
        torch.rand((), generator=generator)  # the flip
        draw = COLOR.draw([tuple(whole.shape[1:])], generator)
        expected = COLOR.cut(whole[None], draw)
        assert prepared.pixels.shape == (3, 60, 60)
        assert prepared.pixels.dtype == torch.uint8
        assert (patches(prepared).int() - expected.patches.int()).abs().max() <= 1, path.name
        shift = draw.boxes - prepared.draw.boxes
        assert (shift == shift[0]).all()
        for name in ("neighbor", "center", "position", "image"):
            assert torch.equal(getattr(prepared.draw, name), getattr(draw, name))


def test_photographs_that_turn_grey_are_grey_within_one_level(photos: Path) -> None:
    colored, grey = (GridPatchSampler(60, 16, grayscale=share, normalize=False) for share in (0, 1))
    for path in sorted(photos.glob("*.jpg"))[:6]:
        prepared = Preparation(ImageOptions(resize=100), grey)(path, keys.generator(1))
        expected = Preparation(ImageOptions(resize=100), colored)(path, keys.generator(1))
        assert (prepared.pixels == prepared.pixels[0]).all()
        assert not bool(prepared.draw.grayscale)  # it is done
        wanted = grey.cut(
            expected.pixels[None], Preparation(ImageOptions(resize=100), grey)(path, keys.generator(1)).draw
        )
        luma = (0.299 * wanted.patches[:, 0] + 0.587 * wanted.patches[:, 1] + 0.114 * wanted.patches[:, 2]).round()
        difference = (patches(prepared, grey)[:, 0].float() - luma).abs()
        assert (difference > 1).float().mean() < 0.03
        assert difference.mean() < 0.6


def by_pillow(path: Path, short: int, sampler: GridPatchSampler) -> torch.Tensor:
    """The patches of upstream's way: resize in colour, then Pillow's "L"; with the boxes of generator 1."""
    image = open_image(path)
    height, width = (short * side // min(image.size) for side in (image.height, image.width))
    grey = np.array(image.resize((width, height), Image.Resampling.BILINEAR).convert("L").convert("RGB"))
    generator = keys.generator(1)
    torch.rand((), generator=generator)  # the flip
    draw = sampler.draw([(height, width)], generator)
    return sampler.cut(torch.from_numpy(grey).permute(2, 0, 1)[None], draw).patches


def test_exact_grey_is_upstreams(photos: Path) -> None:
    """A colour that was clipped when it was decoded has another brightness than the file stores."""
    sampler = GridPatchSampler(60, 16, grayscale=1, normalize=False)
    one_channel = GridPatchSampler(60, 16, grayscale=1, normalize=False, mean=(0.5,), std=(0.25,))
    largest = {True: 0, False: 0}
    for path in sorted(photos.glob("*.jpg"))[:6]:
        expected = by_pillow(path, 100, sampler).int()
        for exact in (True, False):
            options = ImageOptions(resize=100, exact_grey=exact)
            prepared = Preparation(options, sampler)(path, keys.generator(1))
            difference = (patches(prepared, sampler).int() - expected).abs()
            largest[exact] = max(largest[exact], int(difference.max()))
        prepared = Preparation(ImageOptions(resize=100, exact_grey=True), one_channel, 1)(path, keys.generator(1))
        assert prepared.pixels.shape == (1, 60, 60)
        assert (patches(prepared, one_channel).int() - expected[:, :1]).abs().max() <= 1
    assert largest[True] == 1  # the resizing's rounding
    assert 3 <= largest[False] <= 15


@pytest.mark.parametrize("name", ["resnet50_8xb64-steplr-70e", "resnet50_8xb64-steplr-70e-1x", "deepcontext"])
def test_the_published_recipes_take_no_short_cut(photos: Path, name: str) -> None:
    recipe = read_recipe(name)
    sampler = sampler_from_config({**recipe.sampler, "grayscale": 1.0 if recipe.sampler.get("grayscale") else 0.0})
    preparation = Preparation(recipe.images, sampler, recipe.model.in_channels)
    prepared = preparation(photos / "koala.jpg", keys.generator(1))
    assert not (prepared.pixels == prepared.pixels[0]).all()  # not grey yet


@pytest.mark.parametrize("options", [{"preset": "openmmlab-1.x"}, {"channel_order": "bgr"}])
def test_another_grey_is_left_to_the_sampler(photos: Path, options: dict[str, str]) -> None:
    sampler = GridPatchSampler(60, 16, grayscale=1, **options)  # type: ignore[arg-type]
    prepared = Preparation(ImageOptions(resize=100), sampler)(photos / "koala.jpg", keys.generator(1))
    assert bool(prepared.draw.grayscale)
    assert not (prepared.pixels == prepared.pixels[0]).all()


def test_the_1x_way_squashes_and_samples(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", ramp(150, 400))
    prepared = Preparation(ImageOptions(resize=60, keep_ratio=False, antialias=False), COLOR)(path, keys.generator(0))
    at = (np.arange(60) + 0.5) / 60
    assert np.abs(prepared.pixels[0, 30].numpy() - (at * 400 - 0.5) * 255 / 399).max() <= 1.7
    assert np.abs(prepared.pixels[1, :, 30].numpy() - (at * 150 - 0.5) * 255 / 149).max() <= 1.7


def test_a_size_that_fits_is_not_touched(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (100, 140, 3), dtype=np.uint8)
    prepared = Preparation(ImageOptions(resize=100), COLOR)(save(tmp_path / "a.png", array), keys.generator(3))
    pixels = prepared.pixels.permute(1, 2, 0).numpy()
    assert any((array[y : y + 60, x : x + 60] == pixels).all() for y in range(41) for x in range(81))


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_flip_mirrors_what_is_cut_and_draws_the_same(tmp_path: Path, name: str) -> None:
    array = ramp(140, 200)
    (tmp_path / "mirrored").mkdir()
    options = {"quality": 95, "subsampling": 0} if name == "a.jpg" else {}
    path = save(tmp_path / name, array, **options)
    mirrored = save(tmp_path / "mirrored" / name, array[:, ::-1].copy(), **options)
    for seed in range(5):
        flipped = Preparation(ImageOptions(resize=100, flip=1.0), COLOR)(path, keys.generator(seed))
        plain = Preparation(ImageOptions(resize=100), COLOR)(mirrored, keys.generator(seed))
        assert torch.equal(flipped.draw.boxes, plain.draw.boxes)
        assert (flipped.pixels.int() - plain.pixels.int()).abs().max() <= (8 if name == "a.jpg" else 1)
        assert float((flipped.pixels.int() - plain.pixels.int()).abs().float().mean()) < 1
    half = Preparation(ImageOptions(resize=100, flip=0.5), COLOR)
    rows = [half(path, keys.generator(1, k)).pixels[0, 30] for k in range(60)]
    assert 15 < sum(bool(row[0] > row[-1]) for row in rows) < 45


def test_squares_have_log_uniform_sides_anywhere(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", ramp(512, 1024))
    preparation = Preparation(ImageOptions("squares", squares=(0.25, 1.0)), GridPatchSampler(48, 16, grayscale=0))
    sides, lefts, tops = [], [], []
    for k in range(150):
        pixels = preparation(path, keys.generator(k)).pixels.float()
        assert pixels.shape == (3, 48, 48)
        # From the ends of the ramps: half a step lies beyond each.
        left, right = pixels[0, 24, 0] * 1023 / 255, pixels[0, 24, -1] * 1023 / 255
        top, bottom = pixels[1, 0, 24] * 511 / 255, pixels[1, -1, 24] * 511 / 255
        side = float(right - left) * 48 / 47
        assert abs(side - float(bottom - top) * 48 / 47) < 0.06 * side + 6  # it is a square
        sides.append(side)
        lefts.append(float(left) / (1024 - side))
        tops.append(float(top) / max(1, 512 - side))
    shares = np.log(np.array(sides) / 512) / np.log(0.25)
    assert 0.4 < shares.mean() < 0.6
    assert shares.min() < 0.1
    assert shares.max() > 0.9
    assert 0.4 < np.mean(lefts) < 0.6
    assert min(lefts) < 0.1
    assert 0.9 < max(lefts) < 1.1


def test_squares_of_a_large_photograph_come_from_a_reduced_one(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    Image.fromarray(ramp(1600, 2400)).save(file, "JPEG", quality=95, subsampling=0)
    preparation = Preparation(ImageOptions("squares", squares=(0.5, 1.0)), COLOR)
    reduced = [preparation(file.getvalue(), keys.generator(k)).pixels for k in range(4)]
    from context_pred.data.decode import Photo

    divisors = []
    plain = Photo.reduced
    monkeypatch.setattr(
        Photo, "reduced", lambda self, part, *, grey=False: (divisors.append(part), (self.pixels(), 1))[1]
    )
    for k, found in enumerate(reduced):
        whole = preparation(file.getvalue(), keys.generator(k)).pixels
        assert (found.float() - whole.float())[:2].abs().mean() < 1.5  # a ramp: where it was taken, too
    assert all(part >= 8 for part in divisors)
    assert plain(Photo(file.getvalue()), 13)[1] == 8


def test_pixels_are_the_authors_sizes(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", ramp(60, 80))
    sampler = RandomPairSampler(patch=16, gap=8, jitter=2, count=1)
    for k in range(5):
        prepared = Preparation(ImageOptions("pixels", pixels=(4000, 9000)), sampler)(path, keys.generator(k))
        assert tuple(prepared.pixels.shape[1:]) == draw_size(60, 80, keys.generator(k), (4000, 9000))
        sampler.cut([prepared.pixels], prepared.draw, keys.generator(k))
    strip = save(tmp_path / "strip.png", ramp(20, 400))
    prepared = Preparation(ImageOptions("pixels", pixels=(4000, 9000)), sampler)(strip, keys.generator(0))
    assert prepared.pixels.shape == (3, sampler.smallest + 1, 20 * (sampler.smallest + 1))
    grid = Preparation(ImageOptions("pixels", pixels=(4000, 9000)), COLOR)(path, keys.generator(0))
    assert grid.pixels.shape == (3, 60, 60)


def test_tiny_huge_and_odd_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = (ramp(90, 120)[..., 0].astype(np.uint16)) * 257
    files = {
        "one.png": save(tmp_path / "one.png", np.full((1, 1, 3), (9, 99, 199), np.uint8)),
        "tiny.jpg": save(tmp_path / "tiny.jpg", ramp(7, 5)),
        "huge.jpg": save(tmp_path / "huge.jpg", Image.fromarray(ramp(400, 600)).resize((6000, 4000))),
        "strip.jpg": save(tmp_path / "strip.jpg", ramp(8, 9000)),
        "grey.jpg": save(tmp_path / "grey.jpg", ramp(90, 120)[..., 0]),
        "deep.png": save(tmp_path / "deep.png", deep),
        "turned.jpg": save(tmp_path / "turned.jpg", ramp(90, 180), exif=exif, quality=95),
        "cmyk.jpg": save(tmp_path / "cmyk.jpg", Image.fromarray(ramp(90, 120)).convert("CMYK"), quality=95),
        "clear.webp": save(tmp_path / "clear.webp", rng.integers(0, 256, (90, 120, 4), dtype=np.uint8)),
    }
    for mode in ("resize", "squares", "pixels"):
        preparation = Preparation(ImageOptions(mode, resize=70, pixels=(5000, 9000), squares=(0.3, 1)), COLOR)
        for name, path in files.items():
            prepared = preparation(path, keys.generator(0))
            assert prepared.pixels.shape == (3, 60, 60), (mode, name)
            assert patches(prepared).shape == (9, 3, 16, 16)
            if name == "one.png":
                assert (prepared.pixels == torch.tensor([9, 99, 199]).reshape(3, 1, 1)).all()
    # Upright the stored rows run to the left: stored red, the column, tells the row now, from the top.
    turned = Preparation(ImageOptions(resize=90), COLOR)(files["turned.jpg"], keys.generator(0)).pixels.float()
    assert (turned[0].diff(dim=0) >= -3).all()
    assert float(turned[0, -1].mean() - turned[0, 0].mean()) > 60
    assert float(turned[1, :, -1].mean() - turned[1, :, 0].mean()) < -100
    deep_pixels = Preparation(ImageOptions(resize=90), COLOR)(files["deep.png"], keys.generator(0)).pixels
    assert (deep_pixels == deep_pixels[0]).all()
    assert deep_pixels.float().std() > 20


def test_bytes_and_paths_give_the_same(photos: Path) -> None:
    path = photos / "moose.jpg"
    for mode in ("resize", "squares"):
        preparation = Preparation(ImageOptions(mode, resize=100), COLOR)
        a, b = preparation(path, keys.generator(5)), preparation(path.read_bytes(), keys.generator(5))
        assert torch.equal(a.pixels, b.pixels)
        assert torch.equal(a.draw.boxes, b.draw.boxes)
        assert not torch.equal(a.draw.boxes, preparation(path, keys.generator(6)).draw.boxes)


def test_nothing_else_is_random(photos: Path) -> None:
    state = torch.random.get_rng_state()
    Preparation(ImageOptions("squares", flip=0.5), COLOR)(photos / "moose.jpg", keys.generator(5))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_one_channel_is_grey(photos: Path) -> None:
    sampler = GridPatchSampler(60, 16, mean=(0.5,), std=(0.25,))
    prepared = Preparation(ImageOptions(resize=100), sampler, in_channels=1)(photos / "koala.jpg", keys.generator(0))
    assert prepared.pixels.shape == (1, 60, 60)
    assert sampler.cut(prepared.pixels[None], prepared.draw).patches.shape == (9, 1, 16, 16)


def test_damaged_files_and_endless_strips_are_errors(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (photos / "koala.jpg").read_bytes()
    for mode in ("resize", "squares"):
        with pytest.raises(ImageError, match=r"^shard\.tar/7\.jpg: .*truncated"):
            Preparation(ImageOptions(mode, resize=100), COLOR)(
                data[: len(data) // 2], keys.generator(0), "shard.tar/7.jpg"
            )
    (tmp_path / "notes.txt").write_text("no picture, only words")
    with pytest.raises(ImageError, match=r"notes\.txt: not an image"):
        Preparation(ImageOptions(resize=100), COLOR)(tmp_path / "notes.txt", keys.generator(0))
    strip = save(tmp_path / "strip.png", ramp(2, 900))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    sampler = RandomPairSampler(patch=16, gap=8, jitter=2, count=1)
    with pytest.raises(ImageError, match=r"strip of 900×2 px.*45000×100 px"):
        Preparation(ImageOptions(resize=100), sampler)(strip, keys.generator(0))
    assert Preparation(ImageOptions(resize=100), COLOR)(strip, keys.generator(0)).pixels.shape == (3, 60, 60)


def test_how_much_an_image_is_enlarged() -> None:
    assert Preparation(ImageOptions(resize=100), COLOR).enlarged(50, 200) == 2
    assert Preparation(ImageOptions(resize=100), COLOR).enlarged(200, 400) == 0.5
    squares = Preparation(ImageOptions("squares", squares=(0.5, 1)), COLOR)
    assert squares.enlarged(120, 999) == 1
    assert squares.enlarged(60, 60) == 2
    pixels = Preparation(ImageOptions("pixels", pixels=(100, 40_000)), COLOR)
    assert pixels.enlarged(100, 100) == 2
    assert math.isclose(pixels.enlarged(10, 10_000), 6)


def test_options_that_leave_no_room() -> None:
    pairs = RandomPairSampler()
    table = [
        (ImageOptions(resize=59), COLOR, 3, "from 60 px up"),
        (ImageOptions(resize=247), pairs, 3, "from 248 px up"),
        (ImageOptions("squares"), pairs, 3, "has none"),
        (ImageOptions(), COLOR, 4, "in_channels=4; accepted.*1 or 3"),
        (ImageOptions(), pairs, 1, "in_channels=1; accepted.*3"),
    ]
    for options, sampler, channels, message in table:
        with pytest.raises(InvalidInputError, match=message):
            Preparation(options, sampler, channels)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("resize", 0, "from 1 up"),
        ("resize", 2.5, "whole number"),
        ("resize", True, "whole number"),
        ("keep_ratio", 1, "true or false"),
        ("antialias", "no", "true or false"),
        ("pixels", (0, 5), "fewest ≤ most"),
        ("pixels", (6, 5), "fewest ≤ most"),
        ("pixels", (1.5, 5), "whole numbers"),
        ("pixels", 5, "two numbers"),
        ("squares", (0, 1), "smallest ≤ largest"),
        ("squares", (0.5, 1.1), "smallest ≤ largest"),
        ("squares", ("a", 1), "two numbers"),
        ("flip", 1.5, "no probability"),
        ("flip", "x", "no probability"),
    ],
)
def test_options_are_checked(name: str, value: object, message: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"{name}=.*{message}"):
        ImageOptions(**{name: value})  # type: ignore[arg-type]


def test_options_from_toml_compare_by_value() -> None:
    assert ImageOptions(pixels=[1, 2], squares=[1, 1]) == ImageOptions(pixels=(1, 2), squares=(1.0, 1.0))  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match=r"Did you mean 'squares'.*Accepted: resize, pixels, squares"):
        ImageOptions("square")
