from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, top_k_accuracy_score

from context_pred.errors import InvalidInputError, UnknownNameError
from context_pred.evaluate.metrics import average_precision, mean_average_precision, top_k


def slow_area(labels: np.ndarray, scores: np.ndarray) -> float:
    """VOC's own words: precision made monotone, summed where recall changes (svm_helper.calculate_ap)."""
    hits = labels[np.argsort(scores)[::-1]] == 1
    recall = np.hstack([0, np.cumsum(hits) / hits.sum(), 1])
    precision = np.hstack([0, np.cumsum(hits) / np.arange(1, len(hits) + 1), 0])
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    at = np.flatnonzero(recall[1:] != recall[:-1])
    return float(((recall[at + 1] - recall[at]) * precision[at + 1]).sum())


# Ranked: hit, miss, hit, miss, hit → precisions 1, 1/2, 2/3, 2/4, 3/5; monotone at the hits 1, 2/3, 3/5.
HAND = np.array([1, 0, 1, 0, 1]), np.array([5.0, 4.0, 3.0, 2.0, 1.0])


def test_hand_case_in_both_forms_which_differ() -> None:
    area, points = average_precision(*HAND), average_precision(*HAND, "11-point")
    assert area == pytest.approx((1 + 2 / 3 + 3 / 5) / 3, abs=1e-12)
    # Recalls 0 … .3 at one of three found; .4 … .6 at two; .7 … 1 at three.
    assert points == pytest.approx((4 * 1 + 3 * 2 / 3 + 4 * 3 / 5) / 11, abs=1e-12)
    assert abs(area - points) > 1e-3


def test_the_envelope_lifts_what_scikit_learn_leaves() -> None:
    labels, scores = np.array([0, 1, 1]), np.array([3.0, 2.0, 1.0])  # precisions at the hits: 1/2, 2/3
    assert average_precision(labels, scores) == pytest.approx(2 / 3)
    assert average_precision_score(labels, scores) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_against_the_definition_and_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    for count in (3, 20, 200):
        labels, scores = (rng.random(count) < 0.3).astype(int), rng.standard_normal(count)
        labels[0] = 1
        assert average_precision(labels, scores) == pytest.approx(slow_area(labels, scores), abs=1e-12)
    ordered = np.arange(50)[::-1].astype(float)
    labels = (ordered > 30).astype(int)
    assert average_precision(labels, ordered) == average_precision_score(labels, ordered) == 1
    once = np.eye(1, 50, 7, dtype=int)[0]  # a single hit has no envelope
    assert average_precision(once, ordered) == pytest.approx(average_precision_score(once, ordered), abs=1e-12)


def test_difficult_images_are_left_out() -> None:
    labels, scores = np.array([-1, 1, -1, 0, 1]), np.array([9.0, 5.0, 4.5, 4.0, 3.0])
    assert average_precision(labels, scores) == average_precision(labels[labels >= 0], scores[labels >= 0])
    assert average_precision(labels, scores) != average_precision(np.maximum(labels, 0), scores)


@pytest.mark.parametrize(("labels", "expected"), [([1, 0], 0.5), ([0, 1], 1.0)])
def test_of_equal_scores_the_later_comes_first(labels: list[int], expected: float) -> None:
    assert average_precision(np.array(labels), np.zeros(2)) == expected


def test_a_recall_is_compared_exactly() -> None:
    # 3 of 10 found is a recall of .3, although 3 * .1 > .3 in floating point.
    labels = np.array([1] * 3 + [0] * 7 + [1] * 7)
    expected = (4 * 1 + 7 * 10 / 17) / 11
    assert average_precision(labels, np.arange(17)[::-1], "11-point") == pytest.approx(expected, abs=1e-12)


def test_no_image_of_the_class() -> None:
    assert math.isnan(average_precision(np.array([0, -1]), np.array([1.0, 2.0])))
    labels = np.array([[1, 0], [0, 0]])
    assert mean_average_precision(labels, np.array([[2.0, 1.0], [1.0, 2.0]])) == 1


def test_mean_over_classes() -> None:
    labels, scores = np.array([[1, 0], [0, 1]]), np.array([[2.0, 2.0], [1.0, 1.0]])
    assert mean_average_precision(labels, scores) == 0.75


def test_mistakes_are_named() -> None:
    with pytest.raises(UnknownNameError, match="11-point"):
        average_precision(*HAND, "11point")
    with pytest.raises(InvalidInputError, match=r"\(5,\) and scores \(4,\)"):
        average_precision(HAND[0], HAND[1][:4])
    with pytest.raises(InvalidInputError, match="no numbers"):
        average_precision(HAND[0], np.full(5, np.nan))
    with pytest.raises(InvalidInputError, match="for 2 classes"):
        top_k(np.array([2]), np.zeros((1, 2)))


def test_top_k() -> None:
    rng = np.random.default_rng(1)
    scores, labels = rng.standard_normal((40, 7)), rng.integers(0, 7, 40)
    for k in (1, 3, 6):
        assert top_k(labels, scores, k) == pytest.approx(top_k_accuracy_score(labels, scores, k=k, labels=range(7)))
    assert top_k(labels, scores, 7) == 1
    assert top_k(labels, scores) == (scores.argmax(1) == labels).mean()
    assert top_k(np.array([0, 1]), np.zeros((2, 2))) == 0.5  # the earlier class wins a tie, as argmax has it
