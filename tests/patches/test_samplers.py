"""What every sampler promises, whatever it draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from context_pred.errors import InvalidInputError, UnknownNameError
from context_pred.patches import GridPatchSampler, PatchPairs, RandomPairSampler, sampler_from_config

SAMPLERS: dict[str, Any] = {
    "grid 0.x": lambda: GridPatchSampler(),
    "grid 1.x": lambda: GridPatchSampler(preset="openmmlab-1.x"),
    "grid, all pairs": lambda: GridPatchSampler(96, 24, pairs="adjacent", grayscale=0.1, channel_order="bgr"),
    "grid, all options": lambda: GridPatchSampler(
        192, 48, gap=(0, 9), yoked=True, aperture=0.5, chroma_blur=0.9, grayscale=0.1
    ),
    "grid, raw": lambda: GridPatchSampler(normalize=False),
    "deepcontext": lambda: RandomPairSampler(),
    "paper": lambda: RandomPairSampler("paper", count=3),
    "projection": lambda: RandomPairSampler(projection=True, gap=30, jitter=3, mean=(0.5, 0.5, 0.5)),
    "pairs, raw": lambda: RandomPairSampler(dropping="none", normalize=False, patch=64),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=SAMPLERS)
def sampler(request: pytest.FixtureRequest) -> GridPatchSampler | RandomPairSampler:
    return SAMPLERS[request.param]()


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (3, 3, 260, 280), dtype=torch.uint8, generator=seeded())


class Photographs(Dataset):
    """Pairs made inside a dataset, one photograph at a time."""

    def __init__(self, images: Tensor, sampler: GridPatchSampler | RandomPairSampler) -> None:
        self.images, self.sampler = images, sampler

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> PatchPairs:
        return self.sampler(self.images[index : index + 1], seeded(index))


class TestSampler:
    def test_the_fields(self, sampler, images: Tensor) -> None:
        pairs = sampler(images, seeded(1))
        count, side = len(pairs.patches), sampler.patch
        assert pairs.patches.shape == (count, 3, side, side)
        assert pairs.patches.dtype == (torch.float32 if sampler.normalize else torch.uint8)
        assert pairs.boxes.shape == (count, 4)
        assert pairs.image.shape == (count,)
        for field in (pairs.boxes, pairs.image, pairs.neighbor, pairs.center, pairs.position):
            assert field.dtype == torch.int64
        assert len(pairs) == len(pairs.neighbor) == len(pairs.center) == len(pairs.position) > 0
        assert 0 <= int(pairs.position.min()) <= int(pairs.position.max()) <= 7
        assert set(pairs.image.tolist()) == {0, 1, 2}
        assert torch.equal(pairs.image[pairs.neighbor], pairs.image[pairs.center])

    def test_a_generator_repeats_and_the_images_stay(self, sampler, images: Tensor) -> None:
        before = images.clone()
        one, again, other = (sampler(images, seeded(seed)) for seed in (1, 1, 2))
        assert torch.equal(one.patches, again.patches)
        assert torch.equal(one.boxes, again.boxes)
        assert not torch.equal(one.boxes, other.boxes)
        assert torch.equal(images, before)

    def test_without_a_generator_torchs_own_is_used(self, sampler, images: Tensor) -> None:
        torch.manual_seed(7)
        one = sampler(images)
        torch.manual_seed(7)
        assert torch.equal(one.patches, sampler(images).patches)

    def test_drawing_and_cutting_apart_are_the_call(self, sampler, images: Tensor) -> None:
        generator = seeded(3)
        draw = sampler.draw([(260, 280)] * 3, generator)
        apart = (
            sampler.cut(images, draw, generator)
            if isinstance(sampler, RandomPairSampler)
            else sampler.cut(images, draw)
        )
        whole = sampler(images, seeded(3))
        assert torch.equal(apart.boxes, whole.boxes)
        assert torch.equal(apart.patches, whole.patches)

    def test_floats_and_uint8_agree(self, sampler, images: Tensor) -> None:
        one, two = sampler(images, seeded(4)), sampler(images / 255.0, seeded(4))
        assert two.patches.dtype == torch.float32
        scale = 255.0 if not sampler.normalize else 1.0
        # Rounding to grey levels happens where uint8 turns grey or is resampled: a level, on the scale of the patches.
        level = {"GridPatchSampler": 1.01 if scale > 1 else 1.01 / 255 / 0.2, "RandomPairSampler": 1.01}
        difference = (one.patches.float() - two.patches * scale).abs().max()
        assert difference <= level[type(sampler).__name__]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
    def test_normalised_patches_are_float32_from_any_float(self, sampler, images: Tensor, dtype: torch.dtype) -> None:
        pairs = sampler((images / 255.0).to(dtype), seeded(5))
        assert pairs.patches.dtype == (torch.float32 if sampler.normalize else dtype)
        assert pairs.patches.isfinite().all()

    def test_the_card_makes_it_again(self, sampler, images: Tensor) -> None:
        twin = sampler_from_config(sampler.to_config())
        assert type(twin) is type(sampler)
        assert repr(twin) == repr(sampler)
        assert torch.equal(twin(images, seeded(6)).patches, sampler(images, seeded(6)).patches)

    def test_to_pixels_is_in_range(self, sampler, images: Tensor) -> None:
        pixels = sampler.to_pixels(sampler(images, seeded(7)).patches)
        assert pixels.dtype == torch.float32
        assert pixels.min() >= 0
        assert pixels.max() <= 1
        assert pixels.std() > 0.05

    def test_inside_a_dataset(self, sampler, images: Tensor) -> None:
        loader = DataLoader(Photographs(images, sampler), batch_size=None, num_workers=0)
        for index, pairs in enumerate(loader):
            assert torch.equal(pairs.patches, sampler(images[index : index + 1], seeded(index)).patches)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (torch.zeros(3, 260, 280), r"images\[None\]"),
            (torch.zeros(1, 3, 260, 280, dtype=torch.int64), "uint8"),
            (torch.zeros(1, 3, 90, 300), "300×90 px"),
            (torch.zeros(1, 3, 300, 90), "90×300 px"),
        ],
    )
    def test_refusals(self, sampler, given: Tensor, message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            sampler(given)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_on_a_gpu(self, sampler, images: Tensor) -> None:
        here, there = sampler(images, seeded(8)), sampler(images.cuda(), seeded(8))
        assert there.patches.is_cuda
        assert there.position.is_cuda
        assert torch.equal(here.boxes, there.boxes.cpu())
        tolerance = 1.0 if here.patches.dtype == torch.uint8 else 1e-2
        if getattr(sampler, "chroma_blur", 0):
            tolerance = 1.01 / 255 / 0.22  # a blurred level can round the other way
        assert (here.patches.float() - there.patches.cpu().float()).abs().max() <= tolerance
        on_device = torch.Generator("cuda").manual_seed(9)
        again = torch.Generator("cuda").manual_seed(9)
        assert torch.equal(sampler(images.cuda(), on_device).patches, sampler(images.cuda(), again).patches)


def test_an_unknown_sampler_or_option_is_named() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'GridPatchSampler'"):
        sampler_from_config({"type": "GridSampler"})
    with pytest.raises(InvalidInputError, match="grid"):
        sampler_from_config({"type": "RandomPairSampler", "grid": 3})
