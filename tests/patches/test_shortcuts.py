"""Grey, colour dropping, projection and blurring, down-and-up sampling, apertures, against independent references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from context_pred.errors import InvalidInputError, UnknownNameError
from context_pred.patches.shortcuts import (
    blank_outside,
    blur_chroma,
    cut_some_gray,
    down_and_up,
    draw_apertures,
    draw_sides,
    drop_colors,
    grayscale_mean,
    grayscale_pil,
    luma_pil,
    project_colors,
    projection_matrix,
    resample,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=seeded(seed))


def smooth(count: int, side: int = 96) -> Tensor:
    """Patches like photographs: low frequencies, one channel unlike the other."""
    coarse = torch.rand(count, 3, 12, 12, generator=seeded(1))
    return (F.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1) * 255).round().to(torch.uint8)


class TestGrey:
    def test_pil_is_pillows(self) -> None:
        levels = torch.tensor([0, 1, 2, 127, 128, 253, 254, 255], dtype=torch.uint8)
        corners = torch.cartesian_prod(levels, levels, levels).T.reshape(3, 16, 32)
        for patch in (noise(3, 400, 500), corners):
            expected = np.array(Image.fromarray(patch.permute(1, 2, 0).numpy()).convert("L"))
            assert np.array_equal(grayscale_pil(patch).numpy(), np.stack([expected] * 3))

    def test_mean_is_mmcvs_with_its_42_rounding_errors(self) -> None:
        gray = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
        lowered = torch.nonzero(grayscale_mean(gray)[0, 0] != gray[0, 0]).flatten()
        assert len(lowered) == 42
        assert lowered[:10].tolist() == [7, 14, 25, 28, 31, 50, 53, 56, 59, 62]
        assert torch.equal(grayscale_mean(gray)[1, 0, lowered].long(), lowered - 1)
        patch = noise(3, 400, 500)
        bgr = patch.flip(0).permute(1, 2, 0).numpy()
        expected = (bgr * (np.ones(3) / 3)).sum(2).astype(np.uint8)
        assert np.array_equal(grayscale_mean(patch).numpy(), np.stack([expected] * 3))

    @pytest.mark.parametrize("gray", [grayscale_pil, grayscale_mean])
    @pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.float16])
    def test_any_leading_axes_and_dtypes(self, gray, dtype: torch.dtype) -> None:
        patches = noise(2, 4, 3, 5, 6)
        given = patches if dtype == torch.uint8 else (patches / 255.0).to(dtype)
        result = gray(given)
        assert (result.dtype, result.shape) == (dtype, given.shape)
        assert torch.equal(result, result[..., :1, :, :].expand_as(result))
        scaled = result.double() * (1 if dtype == torch.uint8 else 255)
        step = 1.0001 if dtype != torch.float16 else 1.5
        assert (scaled - gray(patches).double()).abs().max() <= step
        result.zero_()  # an ordinary tensor, no view

    def test_cutting_and_greying_at_once_keeps_the_order(self) -> None:
        patches, chosen = noise(50, 3, 40, 40), torch.rand(50, generator=seeded()) < 0.5
        image = torch.arange(50)
        result = cut_some_gray(lambda boxes, image: patches[image], torch.zeros(50, 4), image, chosen, luma_pil)
        expected = torch.where(chosen[:, None, None, None], grayscale_pil(patches), patches)
        assert torch.equal(result, expected)


class TestProjection:
    def test_the_matrix(self) -> None:
        matrix = projection_matrix(dtype=torch.float64)
        axis = torch.tensor([-1.0, 2.0, -1.0]).double()
        assert (matrix @ axis).abs().max() < 1e-15
        assert (matrix @ matrix - matrix).abs().max() < 1e-15
        assert (matrix @ torch.ones(3).double() - 1).abs().max() < 1e-15
        assert torch.equal(matrix, matrix.T)

    def test_green_against_magenta_is_gone_and_grey_stays(self) -> None:
        patches = noise(4, 3, 8, 8)
        projected = project_colors(patches)
        assert projected.dtype == torch.float32
        red, green, blue = projected.unbind(1)
        assert (2 * green - red - blue).abs().max() < 1e-6
        torch.testing.assert_close(projected.mean(1), patches.float().mean(1) / 255)
        torch.testing.assert_close(red - blue, (patches[:, 0].float() - patches[:, 2]) / 255)
        gray = grayscale_pil(patches)
        torch.testing.assert_close(project_colors(gray), gray / 255.0)


class TestDropping:
    def test_the_released_code(self) -> None:
        patches = smooth(600, 32)
        dropped = drop_colors(patches, "code", seeded())
        assert dropped.dtype == torch.float32
        torch.testing.assert_close(dropped.square().mean((1, 2, 3)).sqrt(), torch.full((600,), 50.0))
        kept = dropped.flatten(2).std(2).argmax(1)
        assert torch.all((kept.bincount(minlength=3) - 200).abs() < 50)
        rows = torch.arange(600)
        mine, source = dropped[rows, kept].flatten(1), patches[rows, kept].flatten(1).double()
        source = source - source.mean(1, keepdim=True)
        assert mine.mean(1).abs().max() < 1e-3
        scale = mine.double().norm(dim=1) / source.norm(dim=1)
        torch.testing.assert_close(mine.double(), source * scale[:, None], rtol=1e-4, atol=1e-3)
        assert (mine.std(1) / 50 / 3**0.5 - 1).abs().max() < 0.01
        others = dropped[rows[:, None], torch.stack([(kept + 1) % 3, (kept + 2) % 3], 1)] / scale.reshape(-1, 1, 1, 1)
        assert -0.5 <= others.min() < -0.499
        assert 0.499 < others.max() <= 0.5
        assert abs(others.std() - 12**-0.5) < 1e-3

    def test_the_papers_text(self) -> None:
        patches = smooth(600, 32).float() - 120
        dropped = drop_colors(patches, "paper", seeded())
        same = (dropped == patches).flatten(2).all(2)
        assert torch.all(same.sum(1) == 1)
        kept = same.int().argmax(1)
        assert torch.all((kept.bincount(minlength=3) - 200).abs() < 50)
        rows = torch.arange(600)
        spread = patches[rows, kept].flatten(1).std(1, correction=0)
        others = dropped[~same].reshape(600, 2, -1) / spread[:, None, None] * 100
        assert abs(others.mean()) < 0.01
        assert abs(others.std() - 1) < 0.01
        assert abs(others.pow(4).mean() - 3) < 0.05  # Gaussian; uniform noise has 1.8

    @pytest.mark.parametrize("reading", ["code", "paper"])
    def test_flat_patches_stay_finite(self, reading) -> None:
        assert drop_colors(torch.full((4, 3, 16, 16), 200, dtype=torch.uint8), reading, seeded()).isfinite().all()

    def test_float_and_uint8_agree(self) -> None:
        patches = smooth(8)
        torch.testing.assert_close(
            drop_colors(patches, "code", seeded()), drop_colors(patches / 255.0, "code", seeded())
        )

    def test_an_unknown_reading(self) -> None:
        with pytest.raises(UnknownNameError, match="Did you mean 'paper'"):
            drop_colors(smooth(1), "papers")  # type: ignore[arg-type]


def blurred_pixel_by_pixel(patch: np.ndarray, sigma: float) -> np.ndarray:
    """Blur Cb and Cr, as JFIF defines them, with a Gaussian in two dimensions; float64 (3, H, W) in 0…255."""
    red, green, blue = patch.astype(np.float64)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    planes = []
    for chroma in ((blue - luma) / 1.772, (red - luma) / 1.402):
        result = np.empty_like(chroma)
        for y, x in np.ndindex(chroma.shape):
            rows, columns = np.indices(chroma.shape)
            weight = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * sigma**2))
            result[y, x] = (weight * chroma).sum() / weight.sum()
        planes.append(result)
    cb, cr = planes
    return np.stack([luma + 1.402 * cr, luma - 0.344136 * cb - 0.714136 * cr, luma + 1.772 * cb]).clip(0, 255)


class TestChromaBlur:
    @pytest.mark.parametrize("sigma", [1 / 16, 0.2])
    def test_every_pixel(self, sigma: float) -> None:
        patches = torch.cat([noise(2, 3, 16, 21), smooth(1)[:, :, :16, :21]])
        expected = np.stack([blurred_pixel_by_pixel(patch, sigma * 16) for patch in patches.numpy()])
        exact = blur_chroma(patches.double() / 255, sigma)
        assert exact.dtype == torch.float64
        assert np.abs(exact.numpy() * 255 - expected).max() < 1e-3  # JFIF's factors have six digits
        assert np.abs(blur_chroma(patches, sigma).numpy() - expected).max() <= 0.5 + 1e-3

    def test_luma_single_colours_and_grey_stay(self) -> None:
        patches = (smooth(4) * 0.4 + 70).to(torch.uint8)  # far from 0 and 255, so that nothing is clamped
        blurred = blur_chroma(patches / 255.0)
        torch.testing.assert_close(luma_pil(blurred), luma_pil(patches / 255.0), rtol=0, atol=1e-6)
        colors = noise(20, 3, 1, 1, seed=2).expand(20, 3, 24, 24)
        assert torch.equal(blur_chroma(colors), colors)
        gray = grayscale_pil(noise(4, 3, 24, 24))
        assert torch.equal(blur_chroma(gray), gray)

    def test_a_fringe_of_colour_fades(self) -> None:
        """A white square whose red lies two pixels to the right, as behind a lens: its sides differ in colour."""
        patch = torch.zeros(1, 3, 64, 64)
        patch[:, 1:, 20:44, 20:44] = 1
        patch[:, 0, 20:44, 22:46] = 1
        difference = [image[0, 0] - image[0, 2] for image in (patch, blur_chroma(patch))]
        assert [float(d[32].max()) for d in difference] == [1.0, pytest.approx(0.2, abs=0.1)]

    def test_neighbours_in_the_batch_do_not_matter(self) -> None:
        patches = noise(2, 4, 3, 16, 16)
        torch.testing.assert_close(blur_chroma(patches)[1, 2], blur_chroma(patches[1, 2]), rtol=0, atol=1)
        torch.testing.assert_close(blur_chroma(patches / 255.0)[1, 2], blur_chroma(patches[1, 2] / 255.0))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    def test_dtypes(self, dtype: torch.dtype) -> None:
        patches = noise(3, 3, 16, 16)
        result = blur_chroma((patches / 255.0).to(dtype))
        assert result.dtype == dtype
        assert (result.float() * 255 - blur_chroma(patches)).abs().max() <= 1.0

    def test_a_blur_has_a_width(self) -> None:
        with pytest.raises(InvalidInputError, match="sigma=0"):
            blur_chroma(noise(1, 3, 8, 8), 0)


class TestAperture:
    def test_the_window_stays_and_the_rest_is_one_colour(self) -> None:
        window = torch.tensor([[0, 0, 12, 10], [3, 1, 9, 7], [11, 9, 12, 10]])
        for patches in (noise(3, 2, 10, 12), noise(3, 2, 10, 12).double() - 100):
            result = blank_outside(patches, window, (7, 11))
            assert result.dtype == patches.dtype
            for k, channel, y, x in np.ndindex(3, 2, 10, 12):
                x1, y1, x2, y2 = window[k].tolist()
                inside = x1 <= x < x2 and y1 <= y < y2
                assert result[k, channel, y, x] == (patches[k, channel, y, x] if inside else (7, 11)[channel])

    def test_windows_are_drawn_as_the_authors_code_draws_them(self) -> None:
        """A side of 64 … 96 of 96 px, uniform, anywhere in the patch, the same for all patches of an image."""
        windows = draw_apertures(6000, 9, 96, 1.0, seeded()).reshape(6000, 9, 4)
        assert torch.equal(windows, windows[:, :1].expand_as(windows))
        x1, y1, x2, y2 = windows[:, 0].unbind(1)
        side = x2 - x1
        assert torch.equal(side, y2 - y1)
        counts = side.bincount()
        assert len(counts) == 97
        assert int(counts[:64].sum()) == 0
        assert ((counts[64:] - 6000 / 33) ** 2 / (6000 / 33)).sum() < 75  # 32 degrees of freedom
        small = side == 64
        for corner in (x1, y1):
            assert (int(corner[small].min()), int(corner[small].max())) == (0, 32)
            assert abs((corner / (96 - side))[side < 96].mean() - 0.5) < 0.03
        assert not torch.equal(x1, y1)

    def test_each_patch_gets_it_with_the_probability(self) -> None:
        whole = torch.tensor([0, 0, 40, 40])
        windows = draw_apertures(3000, 9, 40, 0.25, seeded()).reshape(3000, 9, 4)
        got = (windows != whole).any(2).float()
        expected = 0.25 * 13 / 14  # one of the sides 27 … 40 is the whole patch
        assert abs(got.mean() - expected) < 0.01
        assert abs(got.sum(1).var() - 9 * expected * (1 - expected)) < 0.5, "patch by patch"
        assert torch.equal(draw_apertures(5, 9, 40, 0.0, seeded()), whole.expand(45, 4))

    @pytest.mark.parametrize(
        ("windows", "values"),
        [(torch.zeros(2, 4), (0, 0, 0)), (torch.zeros(3, 2), (0, 0, 0)), (torch.zeros(3, 4), (0,))],
    )
    def test_refusals(self, windows: Tensor, values: tuple[int, ...]) -> None:
        with pytest.raises(InvalidInputError, match=r"windows \(K, 4\)"):
            blank_outside(noise(3, 3, 8, 8), windows.long(), values)


class TestDownAndUp:
    def test_every_side_equals_two_resizes(self) -> None:
        """86 differing sides in one call, against torch's own bilinear resize (half-pixel centres, no averaging)."""
        patches = noise(86, 3, 96, 96).float()
        side = torch.arange(10, 96)
        result = resample(patches, side)
        for k, s in enumerate(side.tolist()):
            small = F.interpolate(patches[k : k + 1], (s, s), mode="bilinear", align_corners=False)
            expected = F.interpolate(small, (96, 96), mode="bilinear", align_corners=False)
            torch.testing.assert_close(result[k : k + 1], expected, rtol=0, atol=2e-3)

    def test_averaging_is_pillows_within_a_grey_level(self) -> None:
        patches = torch.cat([smooth(43), noise(43, 3, 96, 96)])
        side = torch.arange(10, 96)
        result = resample(patches, side, antialias=True)
        for k, s in enumerate(side.tolist()):
            for channel in range(3):
                # Mode F keeps fractions between the two resizes, as ours does.
                plane = Image.fromarray(patches[k, channel].float().numpy())
                both = plane.resize((s, s), Image.Resampling.BILINEAR).resize((96, 96), Image.Resampling.BILINEAR)
                assert np.abs(np.array(both) - result[k, channel].numpy()).max() <= 0.51

    def test_the_area_is_uniform(self) -> None:
        side = draw_sides(30_000, 96, 1.0, seeded())
        assert (int(side.min()), int(side.max())) == (10, 94)
        for s in (20, 48, 80):
            expected = (s**2 - 100) / (95**2 - 100)  # P(side < s) = P(area < s²)
            assert abs((side < s).float().mean() - expected) < 0.012

    def test_a_third_of_the_patches_changes(self) -> None:
        patches = noise(2000, 1, 16, 16)
        result = down_and_up(patches, 0.33, seeded())
        assert result.dtype == torch.uint8
        changed = (result != patches).flatten(1).any(1).float().mean()
        assert abs(changed - 0.33) < 4 * (0.33 * 0.67 / 2000) ** 0.5
        assert torch.equal(down_and_up(patches, 0.0), patches)

    def test_uint8_is_rounded_once(self) -> None:
        patches, side = noise(20, 3, 96, 96), torch.arange(20) * 4 + 10
        exact = resample(patches.double(), side)
        assert (resample(patches, side).double() - exact).abs().max() <= 0.5 + 1e-3

    @pytest.mark.parametrize(
        ("patches", "options", "message"),
        [
            (torch.zeros(2, 3, 96, 90), {}, "square"),
            (torch.zeros(2, 3, 10, 10), {}, "10 px"),
            (torch.zeros(2, 3, 96, 96), {"probability": -0.1}, "probability"),
            (torch.zeros(2, 3, 96, 96, dtype=torch.int16), {}, "int16"),
        ],
    )
    def test_refusals(self, patches: Tensor, options: dict[str, float], message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            down_and_up(patches, **options)


@pytest.mark.parametrize("work", [drop_colors, project_colors, blur_chroma, grayscale_pil, grayscale_mean])
@pytest.mark.parametrize("patches", [torch.zeros(2, 4, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.int64)])
def test_wrong_channels_and_dtypes_are_refused(work, patches: Tensor) -> None:
    with pytest.raises(InvalidInputError, match=r"shape|uint8"):
        work(patches)


@pytest.mark.parametrize("work", [drop_colors, down_and_up])
def test_a_generator_repeats(work) -> None:
    patches = smooth(16)
    first, again, other = (work(patches, generator=seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cpu_generator_gives_the_same_patches_on_a_gpu() -> None:
    patches = smooth(64)
    for work in (drop_colors, down_and_up):
        there = work(patches.cuda(), generator=seeded(5)).cpu().float()
        torch.testing.assert_close(there, work(patches, generator=seeded(5)).float(), rtol=1e-4, atol=1.01)
    for gray in (grayscale_pil, grayscale_mean):
        assert torch.equal(gray(patches.cuda()).cpu(), gray(patches))
