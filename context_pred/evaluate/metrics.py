"""Figures of ranked images: average precision in the two forms of the VOC challenges, and top-k accuracy."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from context_pred.errors import InvalidInputError, unknown

Form = Literal["area", "11-point"]
FORMS = ("area", "11-point")


def average_precision(labels: NDArray[Any], scores: NDArray[Any], form: str = "area") -> float:
    """Average precision of one class.

    Images are ranked by their score, the highest first; of equal scores the later image comes first, as
    ``argsort(scores)[::-1]`` has it (Facebook's SVM benchmark, ``svm_helper.get_precision_recall``).

    Args:
        labels: (n,): 1 yes, 0 no, −1 left out (VOC's "difficult").
        scores: (n,): any finite numbers.
        form: "area": under precision made monotone, as VOC since 2010; "11-point": the mean, over recalls 0, .1 … 1,
            of the best precision at that recall or above, as VOC2007. A recall is compared exactly: three of ten
            images found reach .3.

    Returns:
        0 … 1; NaN where no label is 1.

    Raises:
        InvalidInputError: shapes that differ, scores that are no numbers.
        UnknownNameError: no such form.
    """
    if form not in FORMS:
        raise unknown("form of average precision", form, FORMS)
    labels, scores = np.asarray(labels), np.asarray(scores)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise InvalidInputError(f"labels {labels.shape} and scores {scores.shape}: accepted are two of shape (n,).")
    if not np.isfinite(scores).all():
        raise InvalidInputError("The scores hold infinities or values that are no numbers.")
    asked = labels >= 0
    hit = (labels[asked] == 1)[np.argsort(scores[asked], kind="stable")[::-1]]
    found = np.cumsum(hit)
    if not len(found) or not found[-1]:
        return float("nan")
    precision = found / np.arange(1, len(found) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall or a higher one
    if form == "area":
        return float(best[hit].sum() / found[-1])
    reached = np.searchsorted(found * 10, np.arange(11) * found[-1])
    return float(best[reached].mean())


def mean_average_precision(labels: NDArray[Any], scores: NDArray[Any], form: str = "area") -> float:
    """Mean over the classes that have images; labels and scores (n, classes) as in ``average_precision``."""
    found = [average_precision(*columns, form) for columns in zip(labels.T, scores.T, strict=True)]
    known = [value for value in found if value == value]
    return float(np.mean(known)) if known else float("nan")


def top_k(labels: NDArray[Any], scores: NDArray[Any], k: int = 1) -> float:
    """Share of the images whose class is among the k highest scores; of equal scores the earlier class comes first.

    Args:
        labels: (n,): the index of each image's class.
        scores: (n, classes).
        k: 1 or more.

    Raises:
        InvalidInputError: shapes that do not fit, no image, k below 1, a label that is no class.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or not len(labels) or k < 1:
        raise InvalidInputError(
            f"labels {labels.shape}, scores {scores.shape}, k = {k}: accepted are (n,), (n, classes), 1 or more."
        )
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise InvalidInputError(f"Labels from {labels.min()} to {labels.max()} for {scores.shape[1]} classes.")
    own = scores[np.arange(len(scores)), labels][:, None]
    earlier = np.arange(scores.shape[1]) < labels[:, None]
    ahead = (scores > own) | ((scores == own) & earlier)
    return float((ahead.sum(1) < k).mean())
