"""VOC's average precision of detections, in both its forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from context_pred.errors import InvalidInputError, unknown
from context_pred.evaluate.metrics import FORMS

from .boxes import BoxedImage

THRESHOLDS = tuple(round(0.5 + 0.05 * k, 2) for k in range(10))
"""The intersections over union that "AP" is the mean over: .5, .55 … .95."""


@dataclass(frozen=True, eq=False)
class Detections:
    """What was found in one image.

    Attributes:
        boxes: float32 (n, 4): x1, y1, x2, y2 in px of the image as it is stored.
        scores: float32 (n,).
        labels: int64 (n,): indices of the classes.
        masks: Of each box its outline as COCO's run lengths; () where none were asked for.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: tuple[dict[str, object], ...] = ()


def overlaps(
    boxes: NDArray[np.floating], others: NDArray[np.floating], *, last_pixel_within: bool = True
) -> NDArray[np.float64]:
    """Intersection over union of every box with every other.

    Args:
        boxes: (n, 4): x1, y1, x2, y2.
        others: (m, 4).
        last_pixel_within: x2 and y2 are the last pixel within the box, so that it is x2 − x1 + 1 wide (VOC's own rule,
            which mmdetection's ``VOCDataset.evaluate`` follows); else x2 − x1.

    Returns:
        float64 (n, m), 0 … 1.
    """
    a, b = boxes.astype(np.float64)[:, None], others.astype(np.float64)[None]
    more = 1.0 if last_pixel_within else 0.0
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + more
    shared = sides.clip(0).prod(2)
    area_a, area_b = ((x[..., 2:] - x[..., :2] + more).prod(2) for x in (a, b))
    union = area_a + area_b - shared
    result: NDArray[np.float64] = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return result


def of_ranked(hits: NDArray[np.bool_], objects: int, form: str = "area") -> float:
    """Average precision of one class from its detections, ranked.

    Args:
        hits: (n,): for each detection, the highest score first, whether it found an object.
        objects: How many there are to find.
        form: "area": under precision made monotone (VOC since 2010); "11-point": the mean, over recalls 0, .1 … 1, of
            the best precision at that recall or above (VOC2007). A recall is compared exactly.

    Returns:
        0 … 1; NaN where there is no object.

    Raises:
        UnknownNameError: no such form.
    """
    if form not in FORMS:
        raise unknown("form of average precision", form, FORMS)
    if not objects:
        return float("nan")
    if not len(hits):
        return 0.0
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(hits) + 1)
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)  # at this recall or a higher one
    if form == "area":
        return float(best[:-1][hits].sum() / objects)
    reached = np.searchsorted(found * 10, np.arange(11) * objects)
    return float(best[reached].mean())


@dataclass(frozen=True, eq=False)
class _Ranked:
    """The detections of one class over all images, the highest score first.

    Attributes:
        overlap: (n,): with the object of its image that it overlaps most; −1 where there is none.
        object: (n,): the number of that object among all of the class.
        difficult: (m,): of each object of the class.
    """

    overlap: NDArray[np.float64]
    object: NDArray[np.int64]
    difficult: NDArray[np.bool_]

    def precision(self, threshold: float, form: str) -> float:
        """Average precision where an overlap of ``threshold`` finds an object, which counts once."""
        reaches = self.overlap >= threshold
        on_difficult = reaches & self.difficult[self.object] if len(self.difficult) else np.zeros_like(reaches)
        places = np.flatnonzero(reaches & ~on_difficult)
        _, first = np.unique(self.object[places], return_index=True)
        hits = np.zeros(len(reaches), bool)
        hits[places[first]] = True
        return of_ranked(hits[~on_difficult], int((~self.difficult).sum()), form)


def _ranked(images: Sequence[BoxedImage], found: Sequence[Detections], label: int, within: bool) -> _Ranked:
    overlap, number, scores, difficult = [], [], [], []
    count = 0
    for image, detections in zip(images, found, strict=True):
        mine, asked = detections.labels == label, image.labels == label
        if mine.any():
            scores.append(detections.scores[mine].astype(np.float64))
            if asked.any():
                table = overlaps(detections.boxes[mine], image.boxes[asked], last_pixel_within=within)
                best = table.argmax(1)
                overlap.append(table[np.arange(len(best)), best])
                number.append(best + count)
            else:
                overlap.append(np.full(int(mine.sum()), -1.0))
                number.append(np.zeros(int(mine.sum()), np.int64))
        difficult.append(image.difficult[asked])
        count += int(asked.sum())
    if not scores:
        return _Ranked(np.zeros(0), np.zeros(0, np.int64), np.concatenate([*difficult, np.zeros(0, bool)]))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    return _Ranked(np.concatenate(overlap)[order], np.concatenate(number)[order], np.concatenate(difficult))


def voc(
    images: Sequence[BoxedImage],
    found: Sequence[Detections],
    classes: int,
    *,
    thresholds: Sequence[float] = (0.5,),
    form: str = "11-point",
    last_pixel_within: bool = True,
) -> NDArray[np.float64]:
    """Average precision of every class by VOC's rules.

    A detection is held against the object of its class that it overlaps most. It is right where that overlap reaches
    the threshold and no detection with a higher score has found the object before; on a difficult object it is
    neither right nor wrong. Detections of equal scores rank in the order of the images. Sources: VOCdevkit
    (``VOCevaldet.m``), mmdetection 2.x ``eval_map``.

    Args:
        images: The test images, in order.
        found: What was found in each.
        classes: How many there are.
        thresholds: Intersections over union.
        form: "11-point" or "area".
        last_pixel_within: As in ``overlaps``.

    Returns:
        float64 (thresholds, classes), 0 … 1; NaN where no image shows an object of the class.

    Raises:
        InvalidInputError: as many images as detections are needed.
    """
    if len(images) != len(found):
        raise InvalidInputError(f"{len(images)} images and detections of {len(found)}: accepted are as many of both.")
    table = np.full((len(thresholds), classes), np.nan)
    for label in range(classes):
        ranked = _ranked(images, found, label, last_pixel_within)
        table[:, label] = [ranked.precision(threshold, form) for threshold in thresholds]
    return table


def mean(values: NDArray[np.float64]) -> float:
    """Mean over the classes that have objects; NaN where none has."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
