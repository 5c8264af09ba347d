"""The evaluation preprocessing, against torchvision's own on Pillow images."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from context_pred.data import EvalTransform
from context_pred.data.transforms import resize
from context_pred.errors import InvalidInputError, UnknownNameError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise over a smooth picture: both fine and coarse structure."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((width, height), 3)
    fine = rng.integers(-40, 41, (height, width, 3))
    return Image.fromarray((np.asarray(coarse).astype(int) + fine).clip(0, 255).astype(np.uint8))


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (256, 256), (100, 130), (301, 257), (1001, 333)])
def test_pillow_images_as_torchvision_does(size: tuple[int, int]) -> None:
    image = picture(*size)
    reference = v2.Compose(
        [
            v2.Resize(256, antialias=True),
            v2.CenterCrop(224),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(MEAN), list(STD)),
        ]
    )
    found = EvalTransform()(image)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, reference(image).as_subclass(torch.Tensor), rtol=0, atol=1e-6)


def test_tensors_and_batches_agree_with_pillow() -> None:
    transform = EvalTransform()
    images = [picture(500, 375, seed) for seed in range(3)]
    expected = torch.stack([transform(image) for image in images])
    batch = torch.stack([tensor(image) for image in images])
    level = 1.01 / 255 / min(STD)  # one grey level, normalised
    assert (transform(batch) - expected).abs().max() <= level
    assert (transform(batch[0]) - expected[0]).abs().max() <= level
    assert (transform(batch / 255) - expected).abs().max() <= level
    assert (transform(batch.double() / 255) - expected).abs().max() <= level
    assert transform(batch[:0]).shape == (0, 3, 224, 224)


def test_bgr_weights_get_their_order_with_their_mean() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    image = picture(300, 260)
    plain = EvalTransform(mean=(0, 0, 0), std=(1, 1, 1))(image)
    for given in (image, tensor(image)):
        found = EvalTransform(mean=mean, std=std, channel_order="bgr")(given)
        for channel, source in enumerate((2, 1, 0)):
            expected = (plain[source] - mean[channel]) / std[channel]
            assert (found[channel] - expected).abs().max() <= 1.01 / 255 / std[channel]


def test_grey_input() -> None:
    transform = EvalTransform(in_channels=1)
    image = picture(300, 260)
    found = transform(image)
    assert found.shape == (1, 224, 224)
    cut = image.convert("L").resize((295, 256), Image.Resampling.BILINEAR)
    levels = np.asarray(cut.crop((36, 16, 260, 240)))
    expected = (torch.from_numpy(levels.copy()) / 255 - sum(MEAN) / 3) / (sum(STD) / 3)
    assert (found[0] - expected).abs().max() <= 1e-5
    assert (transform(tensor(image)) - found).abs().max() <= 2.01 / 255 / (sum(STD) / 3)
    assert transform(torch.zeros(2, 1, 300, 300)).shape == (2, 1, 224, 224)


def test_many_channels_repeat_mean_and_std() -> None:
    found = EvalTransform(resize=8, crop=8, in_channels=5)(torch.zeros(5, 8, 8))
    expected = torch.tensor([-MEAN[i % 3] / STD[i % 3] for i in range(5)])
    torch.testing.assert_close(found[:, 0, 0], expected)
    with pytest.raises(InvalidInputError, match="5 input channels"):
        EvalTransform(in_channels=5)(picture(10, 10))


def test_pillow_modes() -> None:
    transform = EvalTransform(resize=16, crop=16)
    image = picture(40, 30)
    for mode in ("L", "P", "1", "CMYK", "LA", "RGBA", "YCbCr", "HSV"):
        assert transform(image.convert(mode)).shape == (3, 16, 16), mode
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    torch.testing.assert_close(transform(clear), transform(Image.new("RGB", (20, 20), (255, 255, 255))))
    with pytest.raises(InvalidInputError, match="open_image"):
        transform(Image.new("I;16", (20, 20)))


def test_very_long_images_need_no_gigabytes() -> None:
    image = picture(3000, 100)
    whole = image.resize((7680, 256), Image.Resampling.BILINEAR).crop((3728, 16, 3952, 240))
    difference = EvalTransform().cut(image).int() - tensor(whole).int()
    assert difference.abs().max() <= 1
    assert EvalTransform()(Image.new("RGB", (60_000, 2))).shape == (3, 224, 224)


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (64, 48), (1000, 260), (255, 256)])
@pytest.mark.parametrize("target", [256, 292, 64, (100, 300)])
def test_resize_is_within_one_grey_level_of_pillow(size: tuple[int, int], target: int | tuple[int, int]) -> None:
    image = picture(*size)
    batch = torch.stack([tensor(image), tensor(picture(*size, seed=1))])
    found = resize(batch, target)
    assert found.dtype == torch.uint8
    expected = image.resize((found.shape[-1], found.shape[-2]), Image.Resampling.BILINEAR)
    assert (found[0].int() - tensor(expected).int()).abs().max() <= 1
    if isinstance(target, int):
        assert min(found.shape[-2:]) == target


def test_mistakes() -> None:
    transform = EvalTransform()
    table = [
        (torch.zeros(3, 8, 8, dtype=torch.int64), "int64"),
        (torch.zeros(8, 8, 3), r"\(8, 8, 3\)"),
        (torch.zeros(8, 8), r"\(8, 8\)"),
        (torch.zeros(1, 8, 8), r"\(1, 8, 8\)"),
        (torch.zeros(3, 0, 8), r"\(3, 0, 8\)"),
        (torch.full((3, 8, 8), 255.0), "from 255 to 255"),
        (torch.randn(3, 80, 80), "values from -"),
        (torch.full((3, 8, 8), float("nan")), "nan"),
        (np.zeros((8, 8, 3), np.uint8), "ndarray"),
        ("photo.jpg", "str"),
    ]
    for given, message in table:
        with pytest.raises(InvalidInputError, match=rf"{message}.*accepted"):
            transform(given)  # type: ignore[arg-type]
    for options in ({"crop": 300}, {"crop": 0}, {"std": (0.0, 1, 1)}, {"mean": (0.5,)}, {"in_channels": 0}):
        with pytest.raises(InvalidInputError, match="accepted"):
            EvalTransform(**options)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match=r"bgrr.*bgr"):
        EvalTransform(channel_order="bgrr")  # type: ignore[arg-type]
    for given, size in ((torch.zeros(3, 8, 8), 0), (torch.zeros(3, 8, 8, dtype=torch.int32), 4), (torch.zeros(8), 4)):
        with pytest.raises(InvalidInputError, match="accepted"):
            resize(given, size)


def test_repr_says_it_all_and_pickle_keeps_it() -> None:
    transform = EvalTransform(channel_order="bgr")
    text = repr(transform)
    for part in ("resize=256", "crop=224", "0.485", "0.229", "'bgr'"):
        assert part in text
    assert pickle.loads(pickle.dumps(transform)) == transform
    assert transform != EvalTransform()
