"""Average precision of detections: hand cases, an independent count, and pycocotools."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from context_pred.errors import InvalidInputError, UnknownNameError
from context_pred.evaluate.detection.average_precision import (
    THRESHOLDS,
    Detections,
    mean,
    of_ranked,
    overlaps,
    voc,
)
from context_pred.evaluate.detection.boxes import BoxedImage
from context_pred.evaluate.detection.coco_average_precision import _truth, coco


def image(boxes: Any, labels: Any = None, difficult: Any = None, outlines: tuple[Any, ...] = ()) -> BoxedImage:
    table = np.array(boxes, np.float32).reshape(-1, 4)
    n = len(table)
    sides = table[:, 2:] - table[:, :2]
    return BoxedImage(
        path=Path("image.jpg"),
        size=(200, 160),
        boxes=table,
        labels=np.array(labels if labels is not None else [0] * n, np.int64),
        difficult=np.array(difficult if difficult is not None else [False] * n, bool),
        crowd=np.zeros(n, bool),
        areas=sides.prod(1).astype(np.float64),
        outlines=outlines,
    )


def found(boxes: Any, scores: Any, labels: Any = None) -> Detections:
    table = np.array(boxes, np.float32).reshape(-1, 4)
    labels = labels if labels is not None else [0] * len(table)
    return Detections(table, np.array(scores, np.float32), np.array(labels, np.int64))


def test_last_pixel_lies_within_a_box() -> None:
    a, b = np.array([[0, 0, 9, 9]]), np.array([[5, 0, 14, 9]])
    assert overlaps(a, b).item() == pytest.approx(50 / 150)
    assert overlaps(a, b, last_pixel_within=False).item() == pytest.approx(36 / 126)
    assert overlaps(a, np.array([[10, 0, 19, 9]])).item() == 0
    assert overlaps(a, np.array([[20, 20, 19, 19]]), last_pixel_within=False).item() == 0


@pytest.mark.parametrize(
    ("hits", "objects", "area", "eleven"),
    [
        ([1, 0, 1], 2, (1 + 2 / 3) / 2, (6 * 1 + 5 * 2 / 3) / 11),
        ([0, 1], 1, 0.5, 0.5),
        ([1], 4, 0.25, 3 / 11),
        ([1, 1, 1, 0], 10, 0.3, 4 / 11),  # three of ten reach a recall of .3
        ([], 3, 0.0, 0.0),
        ([0, 0], 3, 0.0, 0.0),
    ],
)
def test_hand_cases_in_both_forms(hits: list[int], objects: int, area: float, eleven: float) -> None:
    ranked = np.array(hits, bool)
    assert of_ranked(ranked, objects, "area") == pytest.approx(area, abs=1e-12)
    assert of_ranked(ranked, objects, "11-point") == pytest.approx(eleven, abs=1e-12)


def test_no_object_and_no_such_form() -> None:
    assert np.isnan(of_ranked(np.array([True]), 0))
    with pytest.raises(UnknownNameError, match="'11-point'"):
        of_ranked(np.array([True]), 1, "11point")
    with pytest.raises(InvalidInputError, match="1 images and detections of 0"):
        voc([image([])], [], 1)


BOX, FAR = [10, 10, 49, 49], [100, 100, 139, 139]


def test_an_object_is_found_once() -> None:
    table = voc([image([BOX, FAR])], [found([BOX, BOX, FAR], [0.9, 0.8, 0.7])], 1, form="area")
    assert table.item() == pytest.approx((1 + 2 / 3) / 2)


def test_difficult_objects_neither_count_nor_are_counted_as_wrong() -> None:
    one = image([BOX, FAR], difficult=[False, True])
    assert voc([one], [found([FAR, FAR, BOX], [0.9, 0.8, 0.7])], 1).item() == 1.0
    plain = image([BOX, FAR])
    assert voc([plain], [found([FAR, FAR, BOX], [0.9, 0.8, 0.7])], 1, form="area").item() == pytest.approx(5 / 6)
    assert np.isnan(voc([image([FAR], difficult=[True])], [found([FAR], [0.9])], 1).item())


def test_a_detection_is_held_against_the_object_it_overlaps_most_alone() -> None:
    # the second box overlaps both objects by more than half, and most the one that was found before
    objects = [[0, 0, 9, 9], [2, 0, 11, 9]]
    result = voc([image(objects)], [found([[0, 0, 9, 9], [0.4, 0, 9.4, 9]], [0.9, 0.8])], 1, form="area")
    assert result.item() == pytest.approx(0.5)


def test_classes_and_images_are_kept_apart() -> None:
    images = [image([BOX], [1]), image([BOX, FAR], [0, 1])]
    results = [found([BOX, FAR], [0.9, 0.5], [0, 1]), found([BOX, FAR], [0.8, 0.7], [0, 1])]
    table = voc(images, results, 3, form="area")[0]
    assert table[0] == pytest.approx(0.5)  # the stronger lies in the other image
    assert table[1] == pytest.approx(0.5)
    assert np.isnan(table[2])
    assert mean(table) == pytest.approx(0.5)


def plainly(images: list[BoxedImage], results: list[Detections], label: int, threshold: float, form: str) -> float:
    """VOCdevkit's loop, one detection after the other."""
    rows = [(float(s), n, box) for n, r in enumerate(results)
            for box, s, k in zip(r.boxes.astype(float), r.scores, r.labels, strict=True) if k == label]  # fmt: skip
    rows.sort(key=lambda row: -row[0])
    taken: set[tuple[int, int]] = set()
    tp, fp = [], []
    for _, n, box in rows:
        best, which = -1.0, -1
        for j, (other, k) in enumerate(zip(images[n].boxes.astype(float), images[n].labels, strict=True)):
            if k != label:
                continue
            w = min(box[2], other[2]) - max(box[0], other[0]) + 1
            h = min(box[3], other[3]) - max(box[1], other[1]) + 1
            if w > 0 and h > 0:
                area = (box[2] - box[0] + 1) * (box[3] - box[1] + 1) + (other[2] - other[0] + 1) * (
                    other[3] - other[1] + 1
                )
                ratio = w * h / (area - w * h)
                if ratio > best:
                    best, which = ratio, j
        right = best >= threshold
        if right and images[n].difficult[which]:
            continue
        hit = right and (n, which) not in taken
        taken |= {(n, which)} if hit else set()
        tp.append(int(hit))
        fp.append(int(not hit))
    total = sum(int(((i.labels == label) & ~i.difficult).sum()) for i in images)
    recall, precision = np.cumsum(tp) / total, np.cumsum(tp) / np.maximum(np.cumsum(tp) + np.cumsum(fp), 1)
    if form == "11-point":
        return float(np.mean([max(precision[recall >= t / 10 - 1e-12], default=0.0) for t in range(11)]))
    mrec, mpre = np.concatenate([[0], recall, [1]]), np.concatenate([[0], precision, [0]])
    for k in range(len(mpre) - 2, -1, -1):
        mpre[k] = max(mpre[k], mpre[k + 1])
    steps = np.flatnonzero(mrec[1:] != mrec[:-1])
    return float(((mrec[steps + 1] - mrec[steps]) * mpre[steps + 1]).sum())


def random_set(rng: np.random.Generator, count: int = 12) -> tuple[list[BoxedImage], list[Detections]]:
    images, results = [], []
    for _ in range(count):
        n = int(rng.integers(0, 6))
        corner, side = rng.integers(0, 100, (n, 2)), rng.integers(10, 60, (n, 2))
        boxes = np.concatenate([corner, corner + side], 1).astype(np.float32)
        labels, difficult = rng.integers(0, 3, n), rng.random(n) < 0.2
        images.append(image(boxes, labels, difficult))
        noise = boxes[rng.random(n) < 0.9]
        kinds = labels[: len(noise)] if len(noise) == n else rng.integers(0, 3, len(noise))
        moved = np.concatenate([noise + rng.normal(0, 4, noise.shape), noise + rng.normal(0, 9, noise.shape)])
        results.append(found(moved, rng.random(len(moved)), np.concatenate([kinds, kinds])))
    return images, results


@pytest.mark.parametrize("form", ["area", "11-point"])
def test_equal_to_the_devkits_loop(form: str) -> None:
    rng = np.random.default_rng(3)
    for _ in range(5):
        images, results = random_set(rng)
        table = voc(images, results, 3, thresholds=THRESHOLDS, form=form)
        for row, threshold in zip(table, THRESHOLDS, strict=True):
            expected = [plainly(images, results, label, threshold, form) for label in range(3)]
            np.testing.assert_allclose(row, expected, atol=1e-12)
    assert 0.1 < mean(table[0]) < 0.95  # a case that tells right from wrong


def by_pycocotools(images: list[BoxedImage], results: list[Detections], kind: Any) -> list[float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from context_pred.evaluate.detection.work import as_coco

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = _truth(images, ("a", "b", "c"), kind)
        truth.createIndex()
        rows = as_coco(
            [dataclasses.replace(one, number=number) for number, one in enumerate(images, 1)], results, (1, 2, 3)
        )
        if kind == "segm":
            rows = [{name: value for name, value in row.items() if name != "bbox"} for row in rows]
        judge = COCOeval(truth, truth.loadRes(rows), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return [float(value) for value in judge.stats[:3]]


def test_cocos_boxes_are_equal_to_pycocotools() -> None:
    images, results = random_set(np.random.default_rng(5), 20)
    mine = coco(images, results, ("a", "b", "c"), "bbox")
    assert list(mine.values()) == pytest.approx(by_pycocotools(images, results, "bbox"), abs=1e-6)
    assert 0.05 < mine["AP"] < mine["AP50"] < 1


def test_cocos_masks_are_equal_to_pycocotools() -> None:
    from pycocotools import mask as coder

    rng = np.random.default_rng(7)
    images, results = random_set(rng, 12)
    with_masks = []
    for k, (one, result) in enumerate(zip(images, results, strict=True)):
        outlines = tuple((np.array([b[0], b[1], b[2], b[1], b[2], b[3], b[0], b[3]], np.float64),) for b in one.boxes)
        images[k] = image(one.boxes, one.labels, one.difficult, outlines)
        masks = []
        for box in result.boxes:
            canvas = np.zeros((160, 200), np.uint8, order="F")
            x1, y1, x2, y2 = box.clip(0, 159).astype(int)
            canvas[y1:y2, x1 : x2 - (x2 - x1) // 5] = 1
            masks.append(coder.encode(canvas))
        with_masks.append(Detections(result.boxes, result.scores, result.labels, tuple(masks)))
    mine = coco(images, with_masks, ("a", "b", "c"), "segm")
    assert list(mine.values()) == pytest.approx(by_pycocotools(images, with_masks, "segm"), abs=1e-6)
    assert mine["AP50"] > 0.05
    assert mine != coco(images, with_masks, ("a", "b", "c"), "bbox")


def test_coco_without_detections_or_objects() -> None:
    assert coco([image([BOX])], [found([], [])], ("a",), "bbox") == {"AP": 0.0, "AP50": 0.0, "AP75": 0.0}
    assert all(np.isnan(value) for value in coco([image([])], [found([BOX], [0.5])], ("a",), "bbox").values())
