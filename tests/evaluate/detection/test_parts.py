"""What the detectors are made of: anchors, matches, pooling, losses; and what they are given."""

from __future__ import annotations

import dataclasses
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import roi_align

from context_pred.data.transforms import EvalTransform
from context_pred.errors import InvalidInputError
from context_pred.evaluate.detection.boxes import BoxedImage
from context_pred.evaluate.detection.examples import DetectionExamples, collate, run_lengths, scaled_size
from context_pred.evaluate.detection.fpn import mask_targets, paste
from context_pred.evaluate.detection.parts import (
    AlignedPool,
    Anchors,
    Detector,
    Heads,
    LeastMatcher,
    Predictor,
    ProposalNetwork,
    box_losses,
)


def test_anchors_lie_around_the_top_left_corner_of_each_cell_and_are_not_rounded() -> None:
    anchors = Anchors((9 / 16,), (1.0,), (16,))  # mmdetection's own example of grid_priors
    images = ImageList(torch.zeros(2, 3, 32, 32), [(32, 32), (30, 20)])
    first, second = anchors(images, [torch.zeros(2, 8, 2, 2)])
    expected = [[-4.5, -4.5, 4.5, 4.5], [11.5, -4.5, 20.5, 4.5], [-4.5, 11.5, 4.5, 20.5], [11.5, 11.5, 20.5, 20.5]]
    assert first.tolist() == second.tolist() == expected


def test_anchors_keep_their_area_over_ratios_height_over_width() -> None:
    anchors = Anchors((2.0, 4.0), (0.5, 1.0, 2.0), (16,))
    shapes = anchors.shapes(16)
    sides = shapes[:, 2:] - shapes[:, :2]
    assert anchors.num_anchors_per_location() == [6]
    torch.testing.assert_close(sides.prod(1), torch.tensor([32.0**2, 64.0**2]).repeat(3))
    torch.testing.assert_close(sides[:, 1] / sides[:, 0], torch.tensor([0.5, 0.5, 1, 1, 2, 2]))


def test_matches() -> None:
    overlap = torch.tensor(
        [[0.8, 0.45, 0.1, 0.0, 0.5, 0.5], [0.1, 0.40, 0.2, 0.0, 0.1, 0.0], [0.0, 0.0, 0.0, 0.2, 0.0, 0.6]]
    )
    plain = LeastMatcher(0.7, 0.3, None)(overlap)
    assert plain.tolist() == [0, -2, -1, -1, -2, -2]
    # the second object takes its best, although that overlaps the first more; the third's best reaches .3, too
    assert LeastMatcher(0.7, 0.3, 0.3)(overlap).tolist() == [0, 1, -1, -1, -2, 2]
    assert LeastMatcher(0.7, 0.3, 0.5)(overlap).tolist() == [0, -2, -1, -1, -2, 2]
    ties = torch.tensor([[0.4, 0.4, 0.2]])
    assert LeastMatcher(0.7, 0.3, 0.3)(ties).tolist() == [0, 0, -1]


def network(border: int) -> ProposalNetwork:
    return ProposalNetwork(
        4, Anchors((1.0, 2.0), (1.0,), (16,)), positive=0.7, negative=0.3, least=0.3, samples=16, positive_share=0.5,
        before=(50, 50), after=(20, 10), overlap=0.7, allowed_border=border, pad_to=32,
    )  # fmt: skip


def test_anchors_across_the_border_are_left_out_of_training() -> None:
    anchors = torch.tensor([[0.0, 0, 16, 16], [-1, 0, 15, 16], [30, 0, 46, 16], [60, 0, 76, 16], [24, 24, 40, 40]])
    size = torch.tensor([48, 45])
    assert network(0).inside(anchors, size).tolist() == [True, False, False, False, True]
    assert network(2).inside(anchors, size).tolist() == [True, True, True, False, True]
    # any number of px, where the centre lies within the image padded to 64 × 64
    assert network(-1).inside(anchors, size).tolist() == [True, True, True, False, True]


def test_labels_of_anchors() -> None:
    anchors = torch.tensor([[0.0, 0, 16, 16], [4, 4, 20, 20], [30, 30, 46, 46], [-8, 0, 8, 16]])
    target = {"boxes": torch.tensor([[0.0, 0, 16, 15]]), "size": torch.tensor([48, 48])}
    labels, boxes = network(0).assign_targets_to_anchors([anchors], [target])
    assert labels[0].tolist() == [1, -1, 0, -1]
    assert boxes[0][0].tolist() == [0, 0, 16, 15]
    empty = {"boxes": torch.zeros(0, 4), "size": torch.tensor([48, 48])}
    assert network(0).assign_targets_to_anchors([anchors], [empty])[0][0].tolist() == [0, 0, 0, -1]
    tiny = {"boxes": torch.tensor([[0.0, 0, 5, 5]]), "size": torch.tensor([5, 5])}
    assert network(0).assign_targets_to_anchors([anchors], [tiny])[0][0].tolist() == [-1] * 4


def test_proposal_losses_are_cross_entropy_and_l1_over_the_sampled() -> None:
    rpn = network(0)
    labels = [torch.tensor([1.0, 0.0, -1.0]), torch.tensor([0.0, 1.0, 0.0])]
    scores, deltas, targets = torch.randn(6, 1), torch.randn(6, 4), torch.randn(6, 4)
    score_loss, box_loss = rpn.compute_loss(scores, deltas, labels, list(targets.split(3)))
    chosen = torch.tensor([0, 1, 3, 4, 5])
    expected = F.binary_cross_entropy_with_logits(scores[chosen, 0], torch.cat(labels)[chosen])
    torch.testing.assert_close(score_loss, expected)
    torch.testing.assert_close(box_loss, (deltas - targets)[[0, 4]].abs().sum() / 5)


def test_head_losses_are_cross_entropy_and_l1_of_the_own_class() -> None:
    scores, boxes = torch.randn(4, 3), torch.randn(4, 12)
    labels, targets = torch.tensor([0, 2, 1, 0]), torch.randn(4, 4)
    losses = box_losses(scores, boxes, labels, targets)
    torch.testing.assert_close(losses["loss_classifier"], F.cross_entropy(scores, labels))
    own = (boxes[1, 8:12] - targets[1]).abs().sum() + (boxes[2, 4:8] - targets[2]).abs().sum()
    torch.testing.assert_close(losses["loss_box"], own / 4)


@pytest.mark.parametrize(("weak", "expected"), [(True, [1, 1, 0, 1]), (False, [0, 1, 0, 1])])
def test_an_objects_best_proposal_is_one_of_the_network_not_its_own_box(weak: bool, expected: list[int]) -> None:
    heads = Heads(
        nn.Identity(), nn.Identity(), nn.Identity(), overlap=0.5, weak=weak, rois=8, positive_share=0.25,
        box_stds=(0.1, 0.1, 0.2, 0.2), score=0.05, nms=0.5, detections=5,
    )  # fmt: skip
    objects = torch.tensor([[0.0, 0, 100, 100], [0, 0, 100, 90]])
    proposals = torch.tensor([[0.0, 0, 100, 98], [0, 0, 100, 80]])  # the first is the best of both objects
    kinds = torch.tensor([7, 9])
    matched, labels = heads.assign_targets_to_proposals([torch.cat([proposals, objects])], [objects], [kinds])
    assert matched[0].tolist() == expected
    assert labels[0].tolist() == kinds[expected].tolist()
    far = torch.tensor([[200.0, 0, 300, 98]])
    nothing = torch.zeros(0, 4)
    matched, labels = heads.assign_targets_to_proposals(
        [torch.cat([far, objects]), far, objects], [objects, nothing, objects], [kinds, kinds[:0], kinds]
    )
    assert [one.tolist() for one in labels] == [[0, 7, 9], [0], [7, 9]]
    assert [one.tolist() for one in matched] == [[0, 0, 1], [0], [0, 1]]


def test_pooling_is_aligned_and_picks_the_level_by_size() -> None:
    maps = OrderedDict((str(k), torch.randn(2, 3, 64 >> k, 64 >> k)) for k in range(3))
    boxes = [torch.tensor([[8.0, 8, 30, 40], [0, 0, 250, 200]]), torch.tensor([[5.0, 5, 120, 130]])]
    one = AlignedPool(7, (4,))(maps, boxes, None)
    torch.testing.assert_close(one, roi_align(maps["0"], boxes, 7, 0.25, 0, aligned=True))
    assert not torch.allclose(one, roi_align(maps["0"], boxes, 7, 0.25, 0, aligned=False))
    pool = AlignedPool(7, (4, 8, 16))
    sides = torch.tensor([10.0, 111, 113, 223, 225, 900])
    rows = torch.stack([torch.zeros(6), torch.zeros(6), sides, sides], 1)
    assert pool.levels(rows).tolist() == [0, 0, 1, 1, 2, 2]
    several = pool(maps, boxes, None)
    torch.testing.assert_close(several[0], one[0])
    last = roi_align(maps["1"], [boxes[0][:0], boxes[1]], 7, 1 / 8, 0, aligned=True)
    torch.testing.assert_close(several[2], last[0])


def test_the_background_has_no_box() -> None:
    scores, boxes = Predictor(5, 3)(torch.randn(2, 5))
    assert (scores.shape, boxes.shape) == ((2, 4), (2, 16))
    assert boxes[:, :4].eq(0).all()


@pytest.mark.parametrize("module", [Predictor(8, 3), network(0).head], ids=["predictor", "proposals"])
def test_boxes_are_exact_under_autocast(module: Any) -> None:
    given = torch.randn(2, 8) if isinstance(module, Predictor) else [torch.randn(1, 4, 5, 5)]
    with torch.autocast("cpu", torch.bfloat16):
        found = module(given)
    tensors = found if isinstance(module, Predictor) else [one for part in found for one in part]
    assert {one.dtype for one in tensors} == {torch.float32}


def test_images_are_normalised_and_padded_with_zeros() -> None:
    transform = EvalTransform(mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3), channel_order="bgr")
    detector = Detector(nn.Identity(), network(0), nn.Identity(), transform, 32)  # type: ignore[arg-type]
    images = [torch.randint(0, 256, (3, 20, 40), dtype=torch.uint8), torch.zeros(3, 33, 8, dtype=torch.uint8)]
    batch = detector.batched(images)
    assert batch.tensors.shape == (2, 3, 64, 64)
    assert batch.image_sizes == [(20, 40), (33, 8)]
    expected = (images[0].flip(0) / 255 - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.1, 0.2, 0.3])[
        :, None, None
    ]
    torch.testing.assert_close(batch.tensors[0, :, :20, :40], expected)
    assert batch.tensors[0, :, 20:].eq(0).all()
    assert batch.tensors[0, :, :, 40:].eq(0).all()
    assert not [name for name in detector.state_dict() if "mean" in name or "std" in name]


@pytest.mark.parametrize(
    ("size", "short", "longest", "expected"),
    [((375, 500), 800, 1333, (800, 1067)), ((300, 1000), 800, 1333, (400, 1333)), ((480, 640), 240, 400, (240, 320))],
)
def test_sizes(size: tuple[int, int], short: int, longest: int, expected: tuple[int, int]) -> None:
    assert scaled_size(*size, short, longest) == expected


@pytest.fixture
def patch(tmp_path: Path) -> BoxedImage:
    """A grey image with a red patch, that is marked; and a difficult object."""
    pixels = np.full((60, 90, 3), 128, np.uint8)
    pixels[12:30, 60:84] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "patch.png")
    return BoxedImage(
        tmp_path / "patch.png", (90, 60), np.array([[60, 12, 84, 30], [0, 0, 9, 9]], np.float32), np.array([2, 1]),
        np.array([False, True]), np.zeros(2, bool), np.array([432.0, 81.0]),
        ((np.array([60.0, 12, 84, 12, 84, 30, 60, 30]),), (np.array([0.0, 0, 9, 0, 9, 9]),)),
    )  # fmt: skip


def test_boxes_and_masks_move_with_the_pixels(patch: BoxedImage) -> None:
    seen = set()
    examples = DetectionExamples((patch,), (40, 60, 80), 1000, flip=0.5, masks=True)
    for seed in range(24):
        pixels, target = examples.example(0, torch.Generator().manual_seed(seed))
        red = (pixels[0] > 190) & (pixels[1] < 64)
        rows, columns = torch.where(red)
        x1, y1, x2, y2 = target["boxes"][0].tolist()
        edges = [columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1]
        assert np.allclose([x1, y1, x2, y2], edges, atol=1.5)
        assert (target["masks"][0].bool() ^ red).float().mean() < 0.02
        assert target["labels"].tolist() == [3]  # counted from 1; the difficult one is left out
        assert tuple(target["size"].tolist()) == tuple(pixels.shape[1:])
        seen.add((pixels.shape[1], x1 > pixels.shape[2] / 2))
    assert seen == {(side, right) for side in (40, 60, 80) for right in (True, False)}


def test_what_is_difficult_or_a_crowd_is_kept_in_testing(patch: BoxedImage) -> None:
    examples = DetectionExamples((patch,), (60,), 1000, train=False)
    assert len(examples.example(0, torch.Generator())[1]["labels"]) == 2
    crowd = dataclasses.replace(patch, crowd=np.array([True, False]))
    _, target = DetectionExamples((crowd,), (60,), 1000, masks=True).example(0, torch.Generator())
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, 60, 90)


def test_examples_depend_on_the_generator_alone(patch: BoxedImage) -> None:
    examples = pickle.loads(pickle.dumps(DetectionExamples((patch,), tuple(range(40, 80)), 1000, flip=0.5)))
    torch.manual_seed(1)
    first = examples.example(0, torch.Generator().manual_seed(5))
    torch.manual_seed(2)
    second = examples.example(0, torch.Generator().manual_seed(5))
    assert torch.equal(first[0], second[0])
    images, targets = collate([first, second])
    assert len(images) == len(targets) == 2


def test_outlines_as_polygons_and_both_run_lengths() -> None:
    coder: Any = pytest.importorskip("faster_coco_eval.core.mask")
    square = (np.array([2.0, 2, 6, 2, 6, 6, 2, 6]),)
    made = run_lengths(square, 8, 10)
    mask = coder.decode(made)
    assert mask.shape == (8, 10)
    assert mask.sum() == 16
    counts = [22, 3, 55]
    assert coder.decode(run_lengths({"size": [8, 10], "counts": counts}, 8, 10)).sum() == 3
    assert run_lengths(made, 8, 10) is made
    with pytest.raises(InvalidInputError, match="polygons and run lengths"):
        run_lengths([], 8, 10)


def test_masks_are_cut_out_and_drawn_back() -> None:
    mask = torch.zeros(2, 40, 60, dtype=torch.uint8)
    mask[0, 8:24, 10:42] = 1
    mask[0, 8:16, 10:26] = 0
    boxes = torch.tensor([[10.0, 8, 42, 24], [50, 30, 58, 38]])
    cut = mask_targets(mask, torch.tensor([0, 1]), boxes, 28)
    assert cut.shape == (2, 28, 28)
    assert cut[0, :14, :14].eq(0).all()
    assert cut[0, 14:].eq(1).all()
    assert cut[1].eq(0).all()
    drawn = paste(cut, boxes, (40, 60), 0.5)
    assert (drawn[0] ^ mask[0].bool()).sum() <= 8
    assert not drawn[1].any()
    whole = paste(torch.ones(2, 28, 28), torch.tensor([[10.0, 8, 42, 24], [-9.0, -9, 5, 5]]), (40, 60), 0.5)
    assert whole[0].sum() == 16 * 32
    assert whole[1].sum() == 25
    assert mask_targets(mask, torch.zeros(0, dtype=torch.long), torch.zeros(0, 4), 28).shape == (0, 28, 28)
