"""The authors' sampler: the released code and the paper by a loop over cells, by geometry and by distribution."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from context_pred.errors import InvalidInputError, UnknownNameError
from context_pred.patches import RandomPairSampler
from context_pred.patches.random_pairs import draw_size

POSITION = {(-1, -1): 0, (-1, 0): 1, (-1, 1): 2, (0, -1): 3, (0, 1): 4, (1, -1): 5, (1, 0): 6, (1, 1): 7}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_loops(rows: int, columns: int, first: int) -> list[tuple[int, int, int]]:
    """Visit cells in raster order; pair each with the visited up-left, up, up-right, left ones, in both directions."""
    pairs = []
    for row, column in itertools.product(range(rows), range(columns)):
        for down, right in ((-1, -1), (-1, 0), (-1, 1), (0, -1)):
            if row + down >= 0 and 0 <= column + right < columns:
                this, that = first + row * columns + column, first + (row + down) * columns + column + right
                pairs.append((that, this, POSITION[down, right]))
                pairs.append((this, that, POSITION[-down, -right]))
    return pairs


def test_grids_without_jitter_are_those_of_a_loop() -> None:
    sizes = torch.randint(248, 900, (60, 2), generator=seeded(1))
    draw = RandomPairSampler(jitter=0, count=1).draw(sizes, seeded(2))
    pairs, first = [], 0
    for i, (height, width) in enumerate(sizes.tolist()):
        boxes = draw.boxes[draw.image == i]
        x0, y0 = boxes[0, :2].tolist()
        assert 0 <= x0 <= 143
        assert 0 <= y0 <= 143
        rows, columns = int((height + 48 - y0) / 144), int((width + 48 - x0) / 144)
        expected = [
            (x0 + 144 * c, y0 + 144 * r, x0 + 144 * c + 96, y0 + 144 * r + 96)
            for r in range(rows)
            for c in range(columns)
        ]
        assert [tuple(box) for box in boxes.tolist()] == expected
        assert expected[-1][2] <= width
        assert expected[-1][3] <= height
        pairs += by_loops(rows, columns, first)
        first += len(expected)
    assert list(zip(draw.neighbor.tolist(), draw.center.tolist(), draw.position.tolist(), strict=True)) == pairs


def test_origins_are_uniform_in_0_to_143() -> None:
    draw = RandomPairSampler(jitter=0, count=1).draw([(400, 500)] * 6000, seeded(3))
    first = torch.cat([torch.ones(1).bool(), draw.image[1:] != draw.image[:-1]])
    for axis in range(2):
        counts = draw.boxes[first, axis].bincount(minlength=144)
        assert len(counts) == 144
        expected = 6000 / 144
        assert ((counts - expected) ** 2 / expected).sum() < 220  # 143 degrees of freedom; exceeded once in 50,000


def test_jitter_is_seven_each_way_and_clamped() -> None:
    """The differences of neighbouring patches show the jitter of both; a patch in the image's middle is not clamped."""
    draw = RandomPairSampler(count=1).draw([(1500, 1500)] * 400, seeded(4))
    inside = ((draw.boxes[:, :2] > 200) & (draw.boxes[:, :2] < 1200)).all(1)
    right = (draw.position == 4) & inside[draw.neighbor] & inside[draw.center]
    delta = draw.boxes[draw.neighbor[right], :2] - draw.boxes[draw.center[right], :2] - torch.tensor([144, 0])
    assert delta.amin(0).tolist() == [-14, -14]
    assert delta.amax(0).tolist() == [14, 14]
    counts = (delta[:, 1] + 14).bincount(minlength=29).double()
    triangle = torch.tensor([15 - abs(d) for d in range(-14, 15)]).double() / 225 * len(delta)
    assert ((counts - triangle) ** 2 / triangle).sum() < 75  # 28 degrees of freedom; once in 100,000
    edges = draw.boxes[:, :2].amin(0).tolist() + draw.boxes[:, 2:].amax(0).tolist()
    assert edges == [0, 0, 1500, 1500]


def test_four_grids_an_image_and_pairs_stay_inside_a_grid() -> None:
    draw = RandomPairSampler().draw([(300, 300)] * 50, seeded(5))
    counts = draw.image.bincount()
    assert len(counts) == 50
    assert int(counts.min()) >= 4  # each grid of a 300 px image has one, two or four cells
    assert int(counts.max()) <= 16
    assert torch.equal(draw.image, draw.image.sort().values)
    assert torch.equal(draw.image[draw.neighbor], draw.image[draw.center])
    assert int((draw.neighbor - draw.center).abs().max()) <= 3


@pytest.mark.parametrize("preset", ["deepcontext", "paper"])
def test_positions_are_where_the_boxes_lie(preset: str) -> None:
    sizes = torch.randint(248, 700, (300, 2), generator=seeded(6))
    draw = RandomPairSampler(preset).draw(sizes, seeded(7))
    assert len(draw.position) > 1000
    width_height = sizes.flip(1)[draw.image]
    assert bool((draw.boxes[:, :2] >= 0).all())
    assert bool((draw.boxes[:, 2:] <= width_height).all())
    assert bool((draw.boxes[:, 2:] - draw.boxes[:, :2] == 96).all())
    delta = draw.boxes[draw.neighbor, :2] - draw.boxes[draw.center, :2]
    sign = torch.where(delta.abs() < 72, 0, delta.sign())
    cell = 3 * (sign[:, 1] + 1) + sign[:, 0] + 1
    assert torch.equal(draw.position, cell - (cell > 4).long())
    assert int((delta - sign * 144).abs().max()) == 14


def test_the_paper_draws_each_pair_by_itself() -> None:
    draw = RandomPairSampler("paper", count=5).draw([(300, 420)] * 1600, seeded(8))
    assert draw.boxes.shape == (16_000, 4)
    assert torch.equal(draw.center, torch.arange(0, 16_000, 2))
    assert torch.equal(draw.neighbor, draw.center + 1)
    counts = draw.position.bincount(minlength=8)
    assert ((counts - 1000) ** 2 / 1000).sum() < 32  # 7 degrees of freedom; once in 25,000
    first = draw.boxes[draw.center[draw.position == 4], :2]
    assert first.amin(0).tolist() == [0, 0]
    assert first[:, 0].amax() == 420 - 96 - 144 + 7
    assert first[:, 1].amax() == 300 - 96
    middle = (first[:, 0] >= 7) & (first[:, 0] < 173)
    halves = first[middle, 0].sub(7).div(83, rounding_mode="floor").bincount(minlength=2)
    assert abs(int(halves[0] - halves[1])) < 5 * int(halves.sum()) ** 0.5


@pytest.mark.parametrize("preset", ["deepcontext", "paper"])
def test_an_image_of_247_px_is_refused_and_one_of_248_taken(preset: str) -> None:
    sampler = RandomPairSampler(preset)
    for size in ((248, 247), (247, 600), (10, 10)):
        with pytest.raises(InvalidInputError, match=rf"{size[1]}×{size[0]} px.*more than 247 px.*transforms\.resize"):
            sampler.draw([(500, 500), size])
    assert len(sampler.draw([(248, 248)], seeded()).boxes) >= 4


def ramp(height: int, width: int) -> Tensor:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y, x // 16 * 16 + y // 16]).remainder(256).to(torch.uint8)


PLAIN = {"dropping": "none", "down_and_up": 0.0, "normalize": False}


@pytest.mark.parametrize("preset", ["deepcontext", "paper"])
@pytest.mark.parametrize("listed", [True, False])
def test_pixels_come_from_the_boxes(preset: str, listed: bool) -> None:
    images = [ramp(300, 410), ramp(400, 260), ramp(300, 333)] if listed else torch.stack([ramp(300, 400)] * 3)
    pairs = RandomPairSampler(preset, **PLAIN)(images, seeded(9))
    assert pairs.patches.dtype == torch.uint8
    assert pairs.image.unique().tolist() == [0, 1, 2]
    for patch, i, (x1, y1, x2, y2) in zip(pairs.patches, pairs.image.tolist(), pairs.boxes.tolist(), strict=True):
        assert torch.equal(patch, images[i][:, y1:y2, x1:x2])


def test_a_list_and_a_tensor_give_the_same_pairs() -> None:
    images = torch.randint(0, 256, (3, 3, 300, 400), dtype=torch.uint8, generator=seeded(10))
    sampler = RandomPairSampler(grayscale=0.5)
    one, two = sampler(images, seeded(11)), sampler(list(images), seeded(11))
    assert torch.equal(one.patches, two.patches)
    # Boxes in any order of the images, too.
    plain = RandomPairSampler(**PLAIN)
    draw = plain.draw([(300, 400)] * 3, seeded(12))
    shuffled = torch.randperm(len(draw.boxes), generator=seeded(13))
    whole = plain.cut(list(images), draw).patches
    again = plain.cut(list(images), type(draw)(draw.boxes[shuffled], draw.image[shuffled], *[draw.position[:0]] * 3))
    assert torch.equal(again.patches, whole[shuffled])


def test_grids_of_a_single_cell_give_patches_without_pairs() -> None:
    sampler = RandomPairSampler(count=1)
    pairs = next(p for seed in range(100) if len(p := sampler(ramp(248, 248)[None], seeded(seed))) == 0)
    assert pairs.patches.shape == (1, 3, 96, 96)
    assert pairs.position.shape == (0,)


def test_no_images_give_no_pairs() -> None:
    for images in ([], torch.empty(0, 3, 300, 300)):
        pairs = RandomPairSampler()(images)
        assert pairs.patches.shape == (0, 3, 96, 96)
        assert len(pairs) == 0


class TestPreparation:
    images = torch.randint(0, 256, (2, 3, 300, 400), dtype=torch.uint8, generator=seeded(14))

    def patches(self, seed: int = 15, **options: object) -> Tensor:
        return RandomPairSampler(**options)(self.images, seeded(seed)).patches  # type: ignore[arg-type]

    def test_the_released_code_ends_with_a_root_mean_square_of_50(self) -> None:
        patches = self.patches()
        assert patches.dtype == torch.float32
        torch.testing.assert_close(patches.square().mean((1, 2, 3)).sqrt(), torch.full((len(patches),), 50.0))
        assert torch.all((patches.flatten(2).std(2) > 40).sum(1) == 1)

    def test_the_paper_keeps_grey_levels_and_a_hundredth_of_noise(self) -> None:
        patches = self.patches(preset="paper", down_and_up=0.0)
        spread = patches.flatten(2).std(2).sort(1).values
        ratio = spread[:, :2] / spread[:, 2:]
        assert ratio.min() > 0.009
        assert ratio.max() < 0.011
        pixels = self.patches(preset="paper", dropping="none", down_and_up=0.0, normalize=False)
        mean = torch.tensor([123.0, 117.0, 104.0]).reshape(3, 1, 1)
        difference = (patches - (pixels.float() - mean)).abs().flatten(2).amax(2)
        assert torch.all((difference < 1e-3).sum(1) == 1), "the kept channel is the pixel minus the mean"

    def test_projection_replaces_dropping(self) -> None:
        sampler = RandomPairSampler(projection=True, down_and_up=0.0)
        assert sampler.dropping == "none"
        red, green, blue = self.patches(projection=True, down_and_up=0.0).unbind(1)
        assert (2 * green - red - blue).abs().max() < 1e-3
        pixels = self.patches(dropping="none", down_and_up=0.0, normalize=False).float()
        torch.testing.assert_close(red - blue, pixels[:, 0] - 123 - pixels[:, 2] + 104, rtol=0, atol=1e-3)

    def test_down_and_up_comes_before_the_noise_in_the_code_and_after_it_in_the_paper(self) -> None:
        """Noise that was enlarged with the patch is smooth; noise drawn afterwards is not."""
        for preset, smooth in (("deepcontext", False), ("paper", True)):
            patches = self.patches(preset=preset, dropping="paper", down_and_up=1.0)
            noise = patches.flatten(2).std(2).argsort(1)[:, 0]
            one = patches[torch.arange(len(patches)), noise]
            step = (one[..., 1:] - one[..., :-1]).flatten(1).std(1) / one.flatten(1).std(1)
            assert (step.median() < 1.0) == smooth  # independent noise has √2

    def test_grey_by_image(self) -> None:
        pairs = RandomPairSampler(grayscale=1.0, **PLAIN)(self.images, seeded(16))
        assert torch.equal(pairs.patches, pairs.patches[:, :1].expand_as(pairs.patches))

    @pytest.mark.parametrize(
        "options",
        [
            {"dropping": "none", "down_and_up": 0.0},
            {"preset": "paper", "dropping": "none", "down_and_up": 0.0},
            {"dropping": "none", "down_and_up": 0.0, "normalize": False},
        ],
    )
    def test_to_pixels_undoes_the_normalisation(self, options: dict[str, object]) -> None:
        sampler = RandomPairSampler(**options)  # type: ignore[arg-type]
        pixels = RandomPairSampler(**{**options, "normalize": False})(self.images, seeded(15)).patches  # type: ignore[arg-type]
        torch.testing.assert_close(sampler.to_pixels(self.patches(**options)), pixels / 255.0, rtol=0, atol=1e-6)

    def test_to_pixels_of_dropped_colours_is_a_linear_picture(self) -> None:
        patches = self.patches()
        pixels = RandomPairSampler().to_pixels(patches)
        assert 0 <= pixels.min() < 0.2
        assert 0.8 < pixels.max() <= 1
        inside = (pixels > 0) & (pixels < 1)
        torch.testing.assert_close((pixels[inside] - 0.5) * 4 * 50 * 3**0.5, patches[inside], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"preset": "deep-context"}, UnknownNameError, "Did you mean 'deepcontext'"),
        ({"dropping": "colour"}, UnknownNameError, "code, paper, none"),
        ({"normalize": False}, InvalidInputError, r"dropping \(dropping='code'\).*dropping='none'"),
        ({"normalize": False, "preset": "paper"}, InvalidInputError, "dropping='paper'"),
        ({"normalize": False, "projection": True}, InvalidInputError, "projection=True cannot"),
        ({"projection": True, "dropping": "code"}, InvalidInputError, "exclude one another"),
        ({"down_and_up": 33}, InvalidInputError, "probability"),
        ({"grayscale": -1}, InvalidInputError, "probability"),
        ({"gap": -1}, InvalidInputError, "gap=-1"),
        ({"patch": 10}, InvalidInputError, "10 px"),
        ({"count": 0}, InvalidInputError, "count=0"),
        ({"mean": (0.5, 0.5)}, InvalidInputError, "three values"),
    ],
)
def test_options_are_checked(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RandomPairSampler(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 300, 300), r"images\[None\]"),
        (torch.zeros(1, 1, 300, 300), "RGB"),
        ([torch.zeros(1, 300, 300)], r"\(3, H, W\)"),
        ([torch.zeros(3, 300, 300), torch.zeros(3, 300, 300, dtype=torch.uint8)], "one dtype"),
        ([torch.zeros(3, 300, 300, dtype=torch.int64)], "int64"),
        (["photo.jpg"], "list of tensors"),
        (Path("photo.jpg"), "list of tensors"),
    ],
)
def test_images_are_checked(images: object, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        RandomPairSampler()(images)  # type: ignore[arg-type]


def test_an_index_outside_the_list_is_refused() -> None:
    sampler = RandomPairSampler()
    draw = sampler.draw([(300, 300)] * 2, seeded())
    with pytest.raises(InvalidInputError, match="list of 1 images"):
        sampler.cut([ramp(300, 300)], draw)


def test_sizes_that_the_authors_scale_to() -> None:
    sizes = torch.tensor([draw_size(375, 500, seeded(seed)) for seed in range(2000)]).double()
    area = sizes.prod(1)
    assert 148_500 < area.min() < 152_000
    assert 445_000 < area.max() <= 450_000
    assert abs(area.mean() - 299_500) < 8000  # int() takes off half a pixel a side
    assert (sizes[:, 1] / sizes[:, 0] - 4 / 3).abs().max() < 0.005
    with pytest.raises(InvalidInputError, match="0×5"):
        draw_size(5, 0)
