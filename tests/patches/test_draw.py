"""The drawing of a sample: what is shown, where, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from context_pred.errors import InvalidInputError, StorageError
from context_pred.patches import GridPatchSampler, PatchPairs, RandomPairSampler
from context_pred.patches.draw import CELL, draw_sample
from context_pred.pictures import COLORS


@pytest.fixture(scope="module")
def photo(photos: Path) -> Tensor:
    with Image.open(photos / "koala.jpg") as image:
        return torch.from_numpy(np.array(image.convert("RGB").resize((300, 400)))).permute(2, 0, 1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def finds(picture: Image.Image, patch: Tensor) -> list[tuple[int, int]]:
    """Find where a patch (3, p, p), uint8, enlarged to a cell, lies in the picture's right part: top-left corners."""
    cell = Image.fromarray(patch.permute(1, 2, 0).numpy()).resize((CELL, CELL), Image.Resampling.NEAREST)
    inner = np.array(cell)[6:-6, 6:-6]  # a center's frame covers its rim
    whole = np.array(picture)
    starts = np.argwhere((whole == inner[0, 0]).all(2))
    size = inner.shape[0]
    return [(int(x) - 6, int(y) - 6) for y, x in starts if np.array_equal(whole[y : y + size, x : x + size], inner)]


def test_the_grid_shows_every_patch_once_at_its_position(photo: Tensor, tmp_path: Path) -> None:
    sampler = GridPatchSampler(grayscale=0)
    pairs = sampler(photo[None], seeded())
    picture = draw_sample(photo, pairs, tmp_path / "sample.png", sampler=sampler)
    pixels = (sampler.to_pixels(pairs.patches) * 255).round().to(torch.uint8)
    places = [finds(picture, patch) for patch in pixels]
    assert [len(place) for place in places] == [1] * 9
    xs, ys = (sorted({place[0][axis] for place in places}) for axis in range(2))
    assert [(xs.index(x), ys.index(y)) for ((x, y),) in places] == [(c, r) for r in range(3) for c in range(3)]
    with Image.open(tmp_path / "sample.png") as written:
        assert written.format == "PNG"
        assert np.array_equal(np.array(written), np.array(picture))


def test_boxes_are_drawn_where_the_patches_were_cut(photo: Tensor) -> None:
    pairs = GridPatchSampler(normalize=False, grayscale=0)(photo[None], seeded(1))
    black = torch.zeros_like(photo)
    picture = np.array(draw_sample(black, pairs))
    blue = (picture == COLORS[0]).all(2)
    scale = 600 / 400
    for x1, y1, x2, y2 in pairs.boxes.tolist():
        across, down = (20 + round((x1 + x2) / 2 * scale), 20 + round((y1 + y2) / 2 * scale))
        for x, y in (
            (across, 20 + round(y2 * scale) - 3),
            (20 + round(x1 * scale) + 2, down),
            (20 + round(x2 * scale) - 3, down),
        ):
            assert blue[y, x], "a side of the box"
        assert not blue[down, across], "its inside"


def test_centers_share_no_patch(photo: Tensor) -> None:
    sampler = RandomPairSampler(count=3)
    pairs = sampler(photo[None], seeded(2))
    one, four = (draw_sample(photo, pairs, sampler=sampler, centers=count) for count in (1, 4))
    assert one.size < four.size
    colors = {color for color in COLORS if (np.array(four) == color).all(2).sum() > 500}
    assert colors == set(COLORS[:3]), "three grids, so three centers that share nothing"


def test_one_image_of_a_batch(photo: Tensor) -> None:
    sampler = GridPatchSampler(normalize=False, grayscale=0)
    batch = torch.stack([photo, photo.flip(2)])
    pairs = sampler(batch, seeded(3))
    second = draw_sample(batch[1], pairs, index=1)
    places = [len(finds(second, patch)) for patch in pairs.patches]
    assert places == [0] * 9 + [1] * 9


def test_floats_and_pil_images_are_taken(photo: Tensor) -> None:
    pairs = GridPatchSampler(normalize=False, grayscale=0)(photo[None], seeded(4))
    as_float = PatchPairs(*[getattr(pairs, name) if name != "patches" else pairs.patches / 255.0 for name in FIELDS])
    pictures = [
        draw_sample(photo, pairs),
        draw_sample(photo / 255.0, as_float),
        draw_sample(Image.fromarray(photo.permute(1, 2, 0).numpy()), pairs),
    ]
    for other in pictures[1:]:
        assert np.array_equal(np.array(pictures[0]), np.array(other))


FIELDS = ("patches", "neighbor", "center", "position", "boxes", "image")


def test_refusals(photo: Tensor, tmp_path: Path) -> None:
    pairs = GridPatchSampler(normalize=False)(photo[None], seeded(5))
    with pytest.raises(InvalidInputError, match="Image 3"):
        draw_sample(photo, pairs, index=3)
    with pytest.raises(InvalidInputError, match="outside this image of 100×100 px"):
        draw_sample(photo[:, :100, :100], pairs)
    with pytest.raises(InvalidInputError, match=r"\(1, 400, 300\)"):
        draw_sample(photo[:1], pairs)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"Cannot write .*sample\.png: "):
        draw_sample(photo, pairs, tmp_path / "file" / "sample.png")
