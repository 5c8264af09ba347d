"""The cutter against plain slicing, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from context_pred.errors import InvalidInputError
from context_pred.patches import PatchDraw, cut_boxes, joined

BOXES = torch.tensor([[0, 0, 5, 4], [6, 3, 11, 7], [2, 1, 7, 5], [6, 3, 11, 7]])
IMAGE = torch.tensor([0, 2, 1, 2])


def sliced(images: Tensor) -> Tensor:
    rows = zip(IMAGE.tolist(), BOXES.tolist(), strict=True)
    return torch.stack([images[i, :, y1:y2, x1:x2] for i, (x1, y1, x2, y2) in rows])


def batch(dtype: torch.dtype = torch.uint8) -> Tensor:
    return torch.arange(3 * 2 * 7 * 11).remainder(251).reshape(3, 2, 7, 11).to(dtype)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_cuts_what_slicing_cuts(dtype: torch.dtype) -> None:
    images = batch(dtype)
    patches = cut_boxes(images, BOXES, IMAGE)
    assert patches.dtype == dtype
    assert patches.is_contiguous()
    assert torch.equal(patches, sliced(images))


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda x: x.contiguous(memory_format=torch.channels_last), id="channels last"),
        pytest.param(lambda x: x.transpose(2, 3).contiguous().transpose(2, 3), id="columns first"),
        pytest.param(lambda x: x[:1].expand(3, 2, 7, 11), id="one image thrice"),
        pytest.param(lambda x: torch.cat([x, x], 1)[:, 1:3], id="a part of a larger tensor, not at its start"),
        pytest.param(lambda x: torch.cat([x, x, x, x])[::4], id="every fourth image"),
    ],
)
def test_any_memory_layout(view) -> None:
    images = view(batch())
    patches = cut_boxes(images, BOXES, IMAGE)
    assert torch.equal(patches, sliced(images))
    patches.zero_()
    assert images.sum() > 0, "the patches are a copy"


def test_gradients_reach_the_images() -> None:
    images = batch(torch.float32).requires_grad_()
    patches = cut_boxes(images, BOXES, IMAGE)
    assert torch.equal(patches, sliced(images))
    patches.sum().backward()
    counts = torch.zeros(3, 2, 7, 11)
    for i, (x1, y1, x2, y2) in zip(IMAGE.tolist(), BOXES.tolist(), strict=True):
        counts[i, :, y1:y2, x1:x2] += 1
    assert torch.equal(images.grad, counts)


@pytest.mark.parametrize(
    ("boxes", "image", "message"),
    [
        ([[0, 0, 5, 4], [0, 0, 4, 4]], [0, 0], "one size"),
        ([[3, 3, 3, 3]], [0], "one size"),
        ([[-1, 0, 4, 4]], [0], "outside its image of 11×7"),
        ([[7, 0, 12, 4]], [0], "outside its image"),
        ([[0, 4, 5, 8]], [0], "outside its image"),
        ([[0, 0, 5, 4]], [3], "batch of 3"),
        ([[0, 0, 5, 4]], [-1], "batch of 3"),
        ([[0, 0, 5, 4]], [0, 1], "index"),
        ([[0.0, 0.0, 5.0, 4.0]], [0], "integers"),
    ],
)
def test_refuses_boxes(boxes: list[list[float]], image: list[int], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        cut_boxes(batch(), torch.tensor(boxes), torch.tensor(image))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 7, 11), r"images\[None\]"),
        (torch.zeros(1, 2, 7, 11, dtype=torch.int32), "int32"),
        ([torch.zeros(2, 7, 11)], "list"),
    ],
)
def test_refuses_images(images: object, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        cut_boxes(images, BOXES, IMAGE)  # type: ignore[arg-type]


def test_joined_draws_cut_like_the_batch() -> None:
    one = PatchDraw(BOXES[:2], torch.tensor([0, 0]), torch.tensor([1]), torch.tensor([0]), torch.tensor([7]))
    two = PatchDraw(BOXES[1:], torch.zeros(3).long(), torch.tensor([2]), torch.tensor([1]), torch.tensor([3]))
    both = joined([one, two])
    assert both.image.tolist() == [0, 0, 1, 1, 1]
    assert both.neighbor.tolist() == [1, 4]
    assert both.center.tolist() == [0, 3]
    assert both.position.tolist() == [7, 3]
    assert torch.equal(both.boxes, torch.cat([BOXES[:2], BOXES[1:]]))
    with pytest.raises(InvalidInputError, match="No draws"):
        joined([])
