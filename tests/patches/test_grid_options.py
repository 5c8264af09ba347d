"""The grid sampler's options beyond upstream: gap, yoked jitter, aperture, chroma blurring."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from context_pred.errors import InvalidInputError
from context_pred.patches import GridPatchSampler, PatchDraw, joined, sampler_from_config
from context_pred.patches.shortcuts import blur_chroma

SMALL: dict[str, Any] = {"crop": 126, "patch": 32}
ALL: dict[str, Any] = {"gap": (0, 12), "yoked": True, "aperture": 0.5, "chroma_blur": 0.5}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photographs(count: int = 6, seed: int = 0) -> Tensor:
    """Images of smooth colour and sharp noise, uint8 (count, 3, 140, 150)."""
    coarse = torch.rand(count, 3, 14, 15, generator=seeded(seed)).repeat_interleave(10, 2).repeat_interleave(10, 3)
    noise = torch.rand(count, 3, 140, 150, generator=seeded(seed + 1))
    return ((0.7 * coarse + 0.3 * noise) * 255).round().to(torch.uint8)


class TestUpstreamStays:
    @pytest.mark.parametrize(
        ("preset", "first", "second"),
        [
            ("openmmlab-0.x", [[106, 50], [181, 39], [265, 48]], [[25, 201], [100, 203], [183, 208]]),
            ("openmmlab-1.x", [[107, 50], [182, 40], [265, 49]], [[26, 201], [101, 203], [183, 208]]),
        ],
    )
    def test_a_seed_gives_the_boxes_it_gave_before_there_were_options(
        self, preset: str, first: list[list[int]], second: list[list[int]]
    ) -> None:
        draw = GridPatchSampler(preset=preset).draw([(292, 380), (300, 260)], seeded())
        assert draw.boxes[:3, :2].tolist() == first
        assert draw.boxes[15:, :2].tolist() == second
        assert draw.grayscale is not None
        assert draw.grayscale.tolist() == [True, False]
        assert draw.chroma_blur is None
        assert draw.aperture is None

    def test_an_option_that_is_off_draws_nothing(self) -> None:
        """Aperture and chroma blur come last, so a sampler with them draws the boxes of one without."""
        plain, generator = GridPatchSampler(), seeded(1)
        options = GridPatchSampler(aperture=0.5, chroma_blur=0.5)
        sizes = [(300, 310)] * 20
        one, other = plain.draw(sizes, generator), options.draw(sizes, seeded(1))
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(one.grayscale, other.grayscale)
        expected = seeded(1)
        torch.rand(20, 2, generator=expected, dtype=torch.float64)
        torch.rand(20, 9, 2, generator=expected, dtype=torch.float64)
        torch.rand(20, generator=expected)
        assert torch.equal(generator.get_state(), expected.get_state())

    def test_old_cards_load_and_new_ones_name_only_what_is_on(self) -> None:
        plain = GridPatchSampler(**SMALL)
        assert set(plain.to_config()) == {
            "type", "preset", "crop", "patch", "grayscale", "normalize", "mean", "std", "channel_order", "pairs"
        }  # fmt: skip
        assert repr(sampler_from_config(plain.to_config())) == repr(plain)
        for name, value in ALL.items():
            sampler = GridPatchSampler(**SMALL, **{name: value})
            config = json.loads(json.dumps(sampler.to_config()))
            assert set(config) - set(plain.to_config()) == {name}
            twin = sampler_from_config(config)
            assert getattr(twin, name) == value
            assert repr(twin) == repr(sampler)


def replayed(
    size: tuple[int, int], generator: torch.Generator, crop: int, patch: int, gap: tuple[int, int], yoked: bool
) -> list[tuple[int, int, int, int]]:
    """Draw the nine boxes of one image with plain integers, in the order in which the sampler draws."""

    def drawn(*limits: int) -> list[int]:
        values = torch.rand(len(limits), generator=generator, dtype=torch.float64).tolist()
        return [int(value * limit) for value, limit in zip(values, limits, strict=True)]

    top, left = drawn(size[0] - crop + 1, size[1] - crop + 1)
    between = gap[0]
    if gap[1] > gap[0]:
        between += drawn(gap[1] - gap[0] + 1)[0]
    cell = (crop - 2 * between) // 3
    shifts = drawn(*[cell - patch + 1] * (2 if yoked else 18)) * (9 if yoked else 1)
    boxes = []
    for k in range(9):
        y = top + k // 3 * (cell + between) + shifts[2 * k]
        x = left + k % 3 * (cell + between) + shifts[2 * k + 1]
        boxes.append((x, y, x + patch, y + patch))
    return boxes


@pytest.mark.parametrize("yoked", [False, True])
@pytest.mark.parametrize("gap", [(0, 0), (0, 12), (5, 5), (3, 15)])
def test_boxes_are_those_of_a_plain_loop(gap: tuple[int, int], yoked: bool) -> None:
    sampler = GridPatchSampler(**SMALL, gap=gap, yoked=yoked, pairs="adjacent")
    for seed in range(40):
        draw = sampler.draw([(130 + seed, 170)], seeded(seed))
        assert draw.boxes.tolist() == [list(b) for b in replayed((130 + seed, 170), seeded(seed), 126, 32, gap, yoked)]


def test_every_gap_is_as_likely_and_drawn_for_each_image() -> None:
    """Yoked, all boxes of an image stand one cell and one gap apart, (99 − 2 g) // 3 + g: that shows its g."""
    draw = GridPatchSampler(99, 20, gap=(0, 12), yoked=True).draw([(99, 99)] * 6500, seeded(2))
    corner = draw.boxes.reshape(-1, 3, 3, 4)[..., :2]
    across, down = corner[:, :, 1:, 0] - corner[:, :, :-1, 0], corner[:, 1:, :, 1] - corner[:, :-1, :, 1]
    pitch = across[:, 0, 0]
    assert torch.equal(across, pitch.reshape(-1, 1, 1).expand_as(across))
    assert torch.equal(down, pitch.reshape(-1, 1, 1).expand_as(down))
    expected = torch.tensor([(99 - 2 * g) // 3 + g for g in range(13)]).bincount()
    counts = pitch.bincount(minlength=len(expected))
    assert len(counts) == len(expected)
    chi2 = ((counts - 500 * expected) ** 2 / (500 * expected).clamp(min=1)).sum()
    assert chi2 < 25, "4 degrees of freedom"
    assert (pitch[1:] != pitch[:-1]).float().mean() > 0.5


def test_patches_reach_every_place_of_their_cells_and_no_other() -> None:
    draw = GridPatchSampler(**SMALL, gap=(6, 6)).draw([(126, 126)] * 4000, seeded(3))
    start = torch.cartesian_prod(torch.arange(3), torch.arange(3)).flip(1) * (38 + 6)
    shift = draw.boxes.reshape(-1, 9, 4)[..., :2] - start
    assert shift.amin(0).tolist() == [[0, 0]] * 9
    assert shift.amax(0).tolist() == [[38 - 32, 38 - 32]] * 9


@pytest.mark.parametrize("preset", ["openmmlab-0.x", "openmmlab-1.x"])
def test_yoked_patches_keep_their_distances(preset: str) -> None:
    draw = GridPatchSampler(preset=preset, yoked=True).draw([(255, 255)] * 2000, seeded(4))
    corner = draw.boxes.reshape(-1, 9, 4)[..., :2]
    grid = torch.cartesian_prod(torch.arange(3), torch.arange(3)).flip(1) * 85
    shift = corner - grid
    assert torch.equal(shift, shift[:, :1].expand_as(shift))
    assert (int(shift.min()), int(shift.max())) == (0, 21)
    assert len(shift[:, 0].unique(dim=0)) > 450, "of 22 × 22 shifts"


class TestChromaBlur:
    def test_it_changes_the_images_drawn_and_no_grey_one(self) -> None:
        images = photographs(24)
        options = GridPatchSampler(**SMALL, chroma_blur=0.5, grayscale=0.4, normalize=False)
        plain = GridPatchSampler(**SMALL, grayscale=0.4, normalize=False)
        draw = options.draw([(140, 150)] * 24, seeded(5))
        assert draw.chroma_blur is not None
        assert draw.grayscale is not None
        assert {(bool(a), bool(b)) for a, b in zip(draw.chroma_blur, draw.grayscale, strict=True)} == {
            (a, b) for a in (False, True) for b in (False, True)
        }
        blurred = (draw.chroma_blur & ~draw.grayscale)[draw.image]
        for given in (images, images / 255.0):
            expected = plain.cut(given, PatchDraw(*fields(draw), draw.grayscale)).patches
            cut = options.cut(given, draw).patches
            assert torch.equal(cut[~blurred], expected[~blurred])
            assert torch.equal(cut[blurred], blur_chroma(expected[blurred]))
            assert not torch.equal(cut[blurred], expected[blurred])

    def test_the_probability(self) -> None:
        flags = GridPatchSampler(**SMALL, chroma_blur=0.3).draw([(126, 126)] * 4000, seeded(6)).chroma_blur
        assert flags is not None
        assert abs(flags.float().mean() - 0.3) < 4 * (0.3 * 0.7 / 4000) ** 0.5

    @pytest.mark.parametrize("channels", [1, 5])
    def test_other_than_three_channels_have_no_colours(self, channels: int) -> None:
        images = torch.rand(2, channels, 130, 130, generator=seeded(7))
        mean = {"mean": (0.5,) * channels, "std": (0.2,) * channels}
        one = GridPatchSampler(**SMALL, chroma_blur=1, **mean)(images, seeded(8))
        other = GridPatchSampler(**SMALL, **mean)(images, seeded(8))
        assert torch.equal(one.patches, other.patches)


class TestAperture:
    @pytest.mark.parametrize(
        ("options", "blank"),
        [
            ({}, (0, 0, 0)),
            ({"normalize": False}, (124, 116, 104)),
            ({"normalize": False, "mean": (0.1, 0.5, 0.9)}, (26, 128, 230)),
        ],
    )
    def test_the_rest_is_the_mean(self, options: dict[str, Any], blank: tuple[int, ...]) -> None:
        images = photographs()
        sampler = GridPatchSampler(**SMALL, aperture=0.6, **options)
        draw = sampler.draw([(140, 150)] * 6, seeded(9))
        assert draw.aperture is not None
        cut = sampler.cut(images, draw).patches
        whole = GridPatchSampler(**SMALL, **options).cut(images, PatchDraw(*fields(draw), draw.grayscale)).patches
        changed = 0
        for patch, before, (x1, y1, x2, y2) in zip(cut, whole, draw.aperture.tolist(), strict=True):
            expected = torch.tensor(blank, dtype=patch.dtype).reshape(3, 1, 1).repeat(1, 32, 32)
            expected[:, y1:y2, x1:x2] = before[:, y1:y2, x1:x2]
            assert torch.equal(patch, expected)
            changed += not torch.equal(patch, before)
        assert 10 < changed < 45

    def test_floats_without_normalisation(self) -> None:
        sampler = GridPatchSampler(**SMALL, aperture=1, normalize=False)
        pairs = sampler(photographs() / 255.0, seeded(10))
        corner = pairs.patches[:, :, 0, 0]
        mean = torch.tensor(sampler.mean)
        assert (corner == mean).all(1).sum() > 20

    def test_the_mean_has_a_value_for_every_channel(self) -> None:
        sampler = GridPatchSampler(**SMALL, aperture=1, normalize=False)
        with pytest.raises(InvalidInputError, match="5 channels, but a mean of 3"):
            sampler(torch.rand(1, 5, 130, 130))


def test_gradients_reach_the_images_through_every_option() -> None:
    """The derivative of the sum along one direction, against two samples a step apart."""
    sampler = GridPatchSampler(**SMALL, **ALL, std=(1.0, 1.0, 1.0))
    images = (0.25 + 0.5 * torch.rand(6, 3, 130, 130, generator=seeded(11))).requires_grad_()
    draw = sampler.draw([(130, 130)] * 6, seeded(12))
    assert draw.grayscale is not None
    assert 0 < int(draw.grayscale.sum()) < 6
    weight = torch.rand(54, 3, 32, 32, generator=seeded(13))
    (sampler.cut(images, draw).patches * weight).sum().backward()
    step = 0.01 * torch.rand(images.shape, generator=seeded(14))
    ends = [(sampler.cut(images.detach() + k * step, draw).patches * weight).double().sum() for k in (-1, 1)]
    assert images.grad is not None
    assert float((images.grad * step).double().sum()) == pytest.approx(float(ends[1] - ends[0]) / 2, rel=1e-3)


def fields(draw: PatchDraw) -> list[Tensor]:
    return [draw.boxes, draw.image, draw.neighbor, draw.center, draw.position]


def test_draws_of_single_images_join_with_all_their_options() -> None:
    sampler = GridPatchSampler(**SMALL, **ALL)
    images = photographs()
    draws = [sampler.draw([(140, 150)], seeded(100 + i)) for i in range(6)]
    whole = joined(draws)
    assert len(whole.boxes) == len(whole.to("cpu").aperture) == 54
    pairs = sampler.cut(images, whole)
    for i, draw in enumerate(draws):
        alone = sampler.cut(images[i : i + 1], draw)
        # Products of matrices of other sizes may differ in the last bit, so a blurred value can round the other way.
        torch.testing.assert_close(pairs.patches[9 * i : 9 * i + 9], alone.patches, rtol=0, atol=1.01 / 255 / 0.22)
        assert torch.equal(pairs.boxes[9 * i : 9 * i + 9], alone.boxes)
    assert torch.equal(sampler.cut(images, whole.to("cpu")).patches, pairs.patches)
    plain = GridPatchSampler(**SMALL).draw([(140, 150)], seeded())
    assert joined([plain, plain]).aperture is None
    assert joined([plain, plain]).chroma_blur is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gap": (0, 16)}, "up to 15 px"),
        ({"gap": (5, 3)}, "lo <= hi"),
        ({"gap": (-1, 3)}, "lo <= hi"),
        ({"gap": (0, 2.5)}, "two integers"),
        ({"gap": 4}, "two integers"),
        ({"gap": (1, 2, 3)}, "two integers"),
        ({"gap": (0, 1), "preset": "openmmlab-1.x"}, "share an edge"),
        ({"aperture": 1.5}, "aperture=1.5 is no probability"),
        ({"chroma_blur": -0.1}, "chroma_blur=-0.1 is no probability"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        GridPatchSampler(**SMALL, **options)
