"""The grid sampler against what the upstream implementation drew and cut (goldens), and against its distribution."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from context_pred.errors import InvalidInputError, UnknownNameError
from context_pred.patches import GridPatchSampler, PatchDraw
from context_pred.patches.layout import RASTER_FROM_1X, center_pairs

CELLS_1X = (86, 86, 85)
STEP_ORDER = [3 * row + column for column in range(3) for row in range(3)]
"""Where upstream's i-th step (columns first) lies in raster order."""


@pytest.fixture(scope="module")
def goldens(root) -> dict[str, np.ndarray]:
    with np.load(root / "tests" / "goldens" / "relative_loc_1x.npz") as file:
        return {name: file[name] for name in file.files if name.startswith(("patch/", "pipe/"))}


def ramp(height: int = 255, width: int = 255) -> Tensor:
    """An image whose pixels say where they are: red is x, green is y (both modulo 256), blue tells the two apart."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y, x // 16 * 16 + y // 16]).remainder(256).to(torch.uint8)[None]


def as_draw(boxes: np.ndarray, gray: bool = False, at: tuple[int, int] = (0, 0)) -> PatchDraw:
    """Turn upstream's inclusive boxes in step order, of a crop at (y, x), into our half-open ones in raster order."""
    ours = np.empty_like(boxes)
    ours[STEP_ORDER] = boxes + np.array([at[1], at[0], at[1] + 1, at[0] + 1])
    neighbor, center, position = torch.tensor(center_pairs()).T
    image = torch.zeros(9, dtype=torch.int64)
    return PatchDraw(torch.from_numpy(ours), image, neighbor, center, position, torch.tensor([gray]))


def replayed_cells(generator: random.Random) -> np.ndarray:
    """Draw nine boxes as upstream's 1.x cutter does: columns first, y before x, inclusive randint."""
    boxes = []
    for column in range(3):
        for row in range(3):
            y = 85 * row + generator.randint(0, CELLS_1X[row] - 64)
            x = 85 * column + generator.randint(0, CELLS_1X[column] - 64)
            boxes.append((x, y, x + 63, y + 63))
    return np.array(boxes)


def test_boxes_drawn_by_upstream_are_cut_where_upstream_cut(goldens) -> None:
    generator = random.Random(0)
    sampler = GridPatchSampler(preset="openmmlab-1.x", normalize=False)
    image = ramp()
    label_of_step = {step: label for label, step in enumerate(s for s in range(9) if s != 4)}
    for boxes in goldens["patch/boxes_seed0_first16"]:
        assert np.array_equal(replayed_cells(generator), boxes)
        pairs = sampler.cut(image, as_draw(boxes))
        step_of_corner = {tuple(box[:2]): step for step, box in enumerate(boxes.tolist())}
        for patch, (x1, y1, x2, y2) in zip(pairs.patches, pairs.boxes.tolist(), strict=True):
            assert (x2 - x1, y2 - y1) == (64, 64)
            assert torch.equal(patch, image[0, :, y1:y2, x1:x2])
            assert patch[:2, 0, 0].tolist() == [x1, y1]
        steps = [step_of_corner[tuple(box[:2])] for box in pairs.boxes.tolist()]
        for m in range(8):
            assert steps[pairs.center[m]] == 4
            label = label_of_step[steps[pairs.neighbor[m]]]
            assert pairs.position[m] == RASTER_FROM_1X[label]


def test_the_whole_1x_pipeline_replayed(goldens) -> None:
    """Crop, grey and cells from Python's random; grey by mmcv's formula, computed here with NumPy in float64."""
    image = torch.from_numpy(np.random.RandomState(5).randint(0, 256, (1, 3, 292, 292)).astype(np.uint8))
    sampler = GridPatchSampler(preset="openmmlab-1.x", normalize=False)
    bgr = image[0].flip(0).numpy().transpose(1, 2, 0)
    weights = np.array((1.0, 1.0, 1.0)) / 3.0
    mean = (weights * bgr).sum(axis=2).astype(np.uint8)
    for seed in range(12):
        generator = random.Random(seed)
        at = (generator.randint(0, 37), generator.randint(0, 37))
        gray = generator.random() < 0.66
        boxes = replayed_cells(generator)
        assert gray == goldens["pipe/is_gray"][seed]
        assert np.array_equal(boxes, goldens["pipe/boxes"][seed])
        pairs = sampler.cut(image, as_draw(boxes, gray, at))
        for patch, (x1, y1, x2, y2) in zip(pairs.patches.numpy(), pairs.boxes.tolist(), strict=True):
            expected = np.stack([mean] * 3) if gray else image[0].numpy()
            assert np.array_equal(patch, expected[:, y1:y2, x1:x2])


def offsets(sampler: GridPatchSampler, count: int) -> Tensor:
    """Draw offsets inside the cells, (count, 9 in raster order, x and y), for images that are not cropped."""
    draw = sampler.draw([(255, 255)] * count, torch.Generator().manual_seed(1))
    corner = torch.cartesian_prod(torch.arange(3), torch.arange(3)).flip(1) * 85
    return draw.boxes.reshape(count, 9, 4)[..., :2] - corner


def test_offsets_are_distributed_as_upstream(goldens) -> None:
    ours = offsets(GridPatchSampler(preset="openmmlab-1.x"), 3000)[:, STEP_ORDER]
    assert np.array_equal(ours.amin(0), goldens["patch/off_min"])
    assert np.array_equal(ours.amax(0), goldens["patch/off_max"])
    for cell in range(9):
        for axis in range(2):
            counts = ours[:, cell, axis].bincount(minlength=23).numpy()
            theirs = goldens["patch/off_hist3000"][cell, axis]
            chi2 = ((counts - theirs) ** 2 / np.maximum(counts + theirs, 1)).sum()
            # 22 degrees of freedom: 60 is exceeded once in 40,000 times; one value fewer gives above 120.
            assert chi2 < 60, (cell, axis)


def test_0x_cells_are_85_px() -> None:
    drawn = offsets(GridPatchSampler(), 3000)
    assert drawn.amin((0, 1)).tolist() == [0, 0]
    assert drawn.amax(0).tolist() == [[21, 21]] * 9
    x, y = drawn[:, 3, 0].float(), drawn[:, 3, 1].float()
    assert abs(torch.corrcoef(torch.stack([x, y]))[0, 1]) < 0.1


def test_a_larger_image_is_cropped_at_random() -> None:
    draw = GridPatchSampler().draw([(292, 300)] * 3000, torch.Generator().manual_seed(2))
    corner = torch.cartesian_prod(torch.arange(3), torch.arange(3)).flip(1) * 85
    crop = draw.boxes.reshape(3000, 9, 4)[..., :2] - corner
    # crop + offset in 0 … 21: the range of its minimum over nine cells tells the crop's range.
    assert crop.amin((0, 1)).tolist() == [0, 0]
    assert crop.amax((0, 1)).tolist() == [45 + 21, 37 + 21]
    spread = crop.amax(1) - crop.amin(1)
    assert int(spread.max()) <= 21, "one crop an image"
    crops = crop.amin(1)
    assert len(crops.unique(dim=0)) > 800


@pytest.mark.parametrize("preset", ["openmmlab-0.x", "openmmlab-1.x"])
def test_positions_are_where_the_boxes_lie(preset: str) -> None:
    for choice, count in (("center", 8), ("adjacent", 40)):
        draw = GridPatchSampler(preset=preset, pairs=choice).draw([(255, 255)] * 50, torch.Generator().manual_seed(3))
        assert len(draw.position) == 50 * count
        delta = draw.boxes[draw.neighbor, :2] - draw.boxes[draw.center, :2]
        sign = torch.where(delta.abs() < 42, 0, delta.sign())  # neighbours are 63 px apart and more, others 22 at most
        cell = 3 * (sign[:, 1] + 1) + sign[:, 0] + 1
        assert torch.equal(draw.position, cell - (cell > 4).long())
        assert torch.equal(draw.image[draw.neighbor], draw.image[draw.center])


def test_grey_is_decided_by_image_with_the_given_probability() -> None:
    gray = GridPatchSampler(grayscale=0.66).draw([(255, 255)] * 4000, torch.Generator().manual_seed(4)).grayscale
    assert gray is not None
    assert abs(gray.float().mean() - 0.66) < 4 * (0.66 * 0.34 / 4000) ** 0.5
    images = torch.randint(0, 256, (8, 3, 255, 255), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    sampler = GridPatchSampler(normalize=False)
    draw = sampler.draw([(255, 255)] * 8, torch.Generator().manual_seed(6))
    patches = sampler.cut(images, draw).patches.reshape(8, 9, 3, 64, 64)
    is_gray = (patches == patches[:, :, :1]).flatten(1).all(1)
    assert torch.equal(is_gray, draw.grayscale)
    assert 0 < int(is_gray.sum()) < 8
    color = GridPatchSampler(normalize=False, grayscale=0).cut(images, draw_without_gray(draw)).patches
    assert torch.equal(color.reshape(8, 9, 3, 64, 64)[~is_gray], patches[~is_gray])


def draw_without_gray(draw: PatchDraw) -> PatchDraw:
    return PatchDraw(draw.boxes, draw.image, draw.neighbor, draw.center, draw.position)


@pytest.mark.parametrize(
    ("preset", "mean", "std"),
    [
        ("openmmlab-0.x", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("openmmlab-1.x", (124 / 255, 117 / 255, 104 / 255), (59 / 255, 58 / 255, 58 / 255)),
    ],
)
def test_normalised_as_the_preset_says(preset: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    images = torch.randint(0, 256, (2, 3, 255, 255), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))
    raw, normal = (GridPatchSampler(preset=preset, normalize=flag) for flag in (False, True))
    draw = raw.draw([(255, 255)] * 2, torch.Generator().manual_seed(8))
    x = raw.cut(images, draw).patches.double() / 255
    expected = (x - torch.tensor(mean).double().reshape(3, 1, 1)) / torch.tensor(std).double().reshape(3, 1, 1)
    for given in (images, images / 255.0):
        ours = normal.cut(given, draw).patches
        assert ours.dtype == torch.float32
        colored = ~draw.grayscale[draw.image]  # grey of floats is not rounded
        torch.testing.assert_close(ours[colored].double(), expected[colored], rtol=0, atol=2e-6)
    torch.testing.assert_close(normal.to_pixels(normal.cut(images, draw).patches).double(), x, rtol=0, atol=1e-6)


def test_bgr_swaps_before_grey_and_mean() -> None:
    images = torch.randint(0, 256, (4, 3, 255, 255), dtype=torch.uint8, generator=torch.Generator().manual_seed(9))
    draw = GridPatchSampler().draw([(255, 255)] * 4, torch.Generator().manual_seed(10))
    swapped = GridPatchSampler(channel_order="bgr").cut(images, draw).patches
    assert torch.equal(swapped, GridPatchSampler().cut(images.flip(1), draw).patches)


def test_too_small_an_image_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"300×254 px is smaller than the square of 255 px.*resize"):
        GridPatchSampler().draw([(255, 255), (254, 300)])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"preset": "openmmlab-2.x"}, UnknownNameError, "openmmlab-1.x"),
        ({"pairs": "centre"}, UnknownNameError, "Did you mean 'center'"),
        ({"channel_order": "RGB"}, UnknownNameError, "rgb"),
        ({"patch": 86}, InvalidInputError, "85 px"),
        ({"grayscale": 1.5}, InvalidInputError, "probability"),
        ({"std": (1.0, 0.0, 1.0)}, InvalidInputError, "std above 0"),
        ({"mean": (0.5,)}, InvalidInputError, "one value a channel"),
    ],
)
def test_options_are_checked(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GridPatchSampler(**options)  # type: ignore[arg-type]
