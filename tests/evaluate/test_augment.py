"""Training images: what is drawn, from which numbers, in which channel order."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from context_pred.data.transforms import EvalTransform
from context_pred.errors import ImageError, InvalidInputError
from context_pred.evaluate.augment import (
    EIGENVALUES,
    EIGENVECTORS,
    Augmentation,
    TestImages,
    TrainImages,
    collate,
    prepared,
)
from context_pred.training import keys

STILL = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 0.0}


@pytest.fixture
def photo(photos: Path) -> Image.Image:
    with Image.open(sorted(photos.glob("*.jpg"))[0]) as image:
        return image.convert("RGB").resize((96, 72))


def drawn(augmentation: Augmentation, image: Image.Image, count: int) -> list[tuple[Tensor, Tensor]]:
    return [augmentation(image, keys.generator(0, k)) for k in range(count)]


def test_a_key_decides_every_number_and_the_callers_random_numbers_stay(photo: Image.Image) -> None:
    augmentation = Augmentation(32, jitter=(0.4, 0.4, 0.4, 0.0), lighting=0.1)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, other = augmentation(photo, keys.generator(3)), augmentation(photo, keys.generator(4))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = pickle.loads(pickle.dumps(augmentation))(photo, keys.generator(3))
    assert all(torch.equal(*pair) for pair in zip(one, again, strict=True))
    assert not torch.equal(one[0], other[0])
    assert not torch.equal(one[1], other[1])


def test_crops_have_the_areas_and_shapes_asked_for() -> None:
    """On a ramp that encodes the position, the span of a crop's values is its size in the image."""
    row = np.linspace(0, 255, 256).round().astype(np.uint8)
    across, down = np.tile(row, (256, 1)), np.tile(row[:, None], (1, 256))
    ramp = Image.fromarray(np.stack([across, down, np.zeros_like(across)], -1))
    spans = []
    for pixels, _ in drawn(Augmentation(64, scale=(0.08, 0.25), ratio=(0.5, 2.0), flip=0.0), ramp, 200):
        width = pixels[0].float().mean(0)
        height = pixels[1].float().mean(1)
        spans.append(((width[-1] - width[0]).item() * 64 / 63, (height[-1] - height[0]).item() * 64 / 63))
    sides = np.array(spans)
    area, ratio = sides.prod(1) / 256**2, sides[:, 0] / sides[:, 1]
    assert 0.07 < area.min() < 0.1
    assert 0.22 < area.max() < 0.27
    assert 0.45 < ratio.min() < 0.6
    assert 1.6 < ratio.max() < 2.2


def test_whole_images_are_left_and_flipped_at_the_rate_asked_for(photo: Image.Image) -> None:
    square = photo.resize((32, 32))
    plain = F.pil_to_tensor(square)
    assert torch.equal(Augmentation(32, **STILL)(square, keys.generator(0))[0], plain)
    half = Augmentation(32, **STILL | {"flip": 0.5})
    flipped = [torch.equal(pixels, plain.flip(-1)) for pixels, _ in drawn(half, square, 200)]
    assert 70 < sum(flipped) < 130
    assert all(
        torch.equal(pixels, plain.flip(-1)) or torch.equal(pixels, plain) for pixels, _ in drawn(half, square, 20)
    )


def test_a_window_is_cut_anywhere_from_the_centre_square(photo: Image.Image) -> None:
    whole = EvalTransform(40, 40).cut(photo)
    places = set()
    for pixels, shift in drawn(Augmentation(32, "window", resize=40, flip=0.0), photo, 60):
        found = [(y, x) for y in range(9) for x in range(9) if torch.equal(whole[:, y : y + 32, x : x + 32], pixels)]
        assert len(found) == 1
        assert not shift.any()
        places.update(found)
    assert {y for y, _ in places} == {x for _, x in places} == set(range(9))


def test_lighting_has_the_variance_of_the_colour_components(photo: Image.Image) -> None:
    shifts = torch.stack([shift for _, shift in drawn(Augmentation(8, lighting=0.1), photo, 800)]).double()
    vectors, values = torch.tensor(EIGENVECTORS).double(), torch.tensor(EIGENVALUES).double()
    expected = vectors @ torch.diag((0.1 * values) ** 2) @ vectors.T
    assert shifts.mean(0).abs().max() < 1e-3
    torch.testing.assert_close(shifts.T.cov(), expected, rtol=0.15, atol=2e-6)


def test_lighting_on_bytes_truncates_and_wraps_around() -> None:
    """As a cast of floats back to uint8 does; checked against NumPy's whole numbers modulo 256."""
    bright = Image.fromarray(np.tile(np.array([0, 1, 128, 254, 255], np.uint8)[:, None], (5, 3)).reshape(5, 5, 3))
    floats = Augmentation(5, **STILL, lighting=0.1)
    bytes_ = Augmentation(5, **STILL, lighting=0.1, lighting_on="uint8")
    wrapped = 0
    for k in range(20):
        pixels, shift = floats(bright, keys.generator(k))
        expected = np.trunc(pixels.numpy() + 255 * shift.numpy()[:, None, None].astype(np.float32)).astype(int)
        wrapped += int(((expected < 0) | (expected > 255)).sum())
        got, none = bytes_(bright, keys.generator(k))
        np.testing.assert_array_equal(got.numpy(), expected % 256)
        assert not none.any()
    assert wrapped


def test_networks_of_bgr_see_what_upstream_drew_on_bgr(photo: Image.Image) -> None:
    options: dict[str, Any] = {"jitter": (0.4, 0.4, 0.4, 0.0), "lighting": 0.1}
    swapped = Image.fromarray(np.asarray(photo)[..., ::-1].copy())
    bgr, bgr_shift = Augmentation(32, **options, channel_order="bgr")(photo, keys.generator(1))
    rgb, rgb_shift = Augmentation(32, **options)(swapped, keys.generator(1))
    assert torch.equal(bgr, rgb.flip(0))
    assert torch.equal(bgr_shift, rgb_shift)
    # and in the input both come to the same numbers
    labels = torch.zeros(1, dtype=torch.int64)
    one, _ = prepared((bgr[None], bgr_shift[None], labels), EvalTransform(channel_order="bgr"), torch.device("cpu"))
    other, _ = prepared((rgb[None], rgb_shift[None], labels), EvalTransform(), torch.device("cpu"))
    assert torch.equal(one, other)


def test_the_input_is_the_shifted_image_normalised(photo: Image.Image) -> None:
    pixels, shift = Augmentation(16, lighting=0.1)(photo, keys.generator(0))
    own = EvalTransform()
    images, classes = prepared(collate([(pixels, shift, 3)]), own, torch.device("cpu"))
    expected = (pixels / 255 + shift[:, None, None] - torch.tensor(own.mean)[:, None, None]) / torch.tensor(own.std)[
        :, None, None
    ]
    torch.testing.assert_close(images[0], expected, rtol=0, atol=1e-5)
    assert classes.tolist() == [3]


def test_grey_networks_get_one_channel(photo: Image.Image) -> None:
    pixels, shift = Augmentation(16, lighting=0.1, channels=1)(photo, keys.generator(0))
    assert (pixels.shape, shift.shape) == ((1, 16, 16), (1,))
    images, _ = prepared(collate([(pixels, shift, 0)]), EvalTransform(in_channels=1), torch.device("cpu"))
    assert images.shape == (1, 1, 16, 16)


def test_bicubic_and_bilinear_crops_differ(photo: Image.Image) -> None:
    one, other = (Augmentation(32, interpolation=kind)(photo, keys.generator(0))[0] for kind in ("pillow", "bicubic"))
    assert 0 < (one.int() - other.int()).abs().float().mean() < 20


def test_examples_are_files_with_their_classes(photos: Path, tmp_path: Path) -> None:
    files = sorted(photos.glob("*.jpg"))[:2]
    classes = np.array([4, 7])
    train = TrainImages(files, classes, Augmentation(16))
    tests = TestImages(files, classes, EvalTransform(18, 16))
    for examples in (train, tests):
        assert len(examples) == 2
        pixels, shift, label = examples.example(1, keys.generator(0))
        assert (pixels.dtype, tuple(pixels.shape), label) == (torch.uint8, (3, 16, 16), 7)
        assert shift.shape == (3,)
    (tmp_path / "bad.jpg").write_text("no image")
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        TrainImages([tmp_path / "bad.jpg"], classes, Augmentation(16)).example(0, keys.generator(0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": (0.0, 1.0)}, {"scale": (0.5, 0.2)}, {"scale": (0.5, 1.1)}, {"ratio": (0.0, 1.0)},
        {"ratio": (2.0, 1.0)}, {"flip": 1.5}, {"lighting": -0.1}, {"jitter": (-0.1, 0.0, 0.0, 0.0)},
        {"jitter": (0.0, 0.0, 0.0, 0.6)}, {"size": 0}, {"crop": "window", "resize": 100}, {"channels": 4},
    ],
    ids=lambda wrong: str(wrong),
)  # fmt: skip
def test_numbers_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        Augmentation(**wrong)
