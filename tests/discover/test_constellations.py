"""Square fit, ranking and cover against brute force on random cases."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

from context_pred.discover.constellations import CORNERS, MOST_ERROR, SIDES, cover, fit_squares, ranking


def by_search(points: NDArray[np.float64], patch: float) -> tuple[NDArray[np.float64], float, float]:
    """Fit by a numerical search over centre and side, within the bounds."""

    def cost(square: NDArray[np.float64]) -> float:
        return float(((square[:2] + square[2] * CORNERS - points) ** 2).sum() / patch**2)

    start = np.array([*points.mean(0), patch])
    bounds = [(None, None), (None, None), (SIDES[0] * patch, SIDES[1] * patch)]
    best = minimize(cost, start, bounds=bounds, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-12})
    return best.x[:2], best.x[2], best.fun * patch**2 / best.x[2] ** 2


@pytest.mark.parametrize("spread", [0.05, 0.4, 3.0])
@pytest.mark.parametrize("patch", [1.0, 32.0, 96.5])
def test_the_fit_is_the_least_squares_square_within_its_bounds(spread: float, patch: float) -> None:
    rng = np.random.default_rng(int(patch) + int(10 * spread))
    clamped = 0
    for _ in range(40):
        points = rng.uniform(0, 300, 2) + patch * (rng.uniform(0.4, 1.7) * CORNERS + rng.normal(0, spread, (4, 2)))
        center, side, error = by_search(points, patch)
        found = fit_squares(points, patch)
        np.testing.assert_allclose(found.center, center, atol=1e-4 * patch)
        np.testing.assert_allclose(found.side, side, rtol=1e-4)
        np.testing.assert_allclose(found.error, error, rtol=1e-4, atol=1e-7)
        clamped += bool(np.isclose(found.side, [bound * patch for bound in SIDES]).any())
    assert 0 < clamped < 40 or spread == 3.0


def test_many_at_once_are_each_alone() -> None:
    rng = np.random.default_rng(0)
    points, patch = rng.uniform(0, 100, (5, 7, 4, 2)), rng.uniform(10, 60, (5, 7))
    together = fit_squares(points, patch)
    for i, j in itertools.product(range(5), range(7)):
        alone = fit_squares(points[i, j], patch[i, j])
        np.testing.assert_allclose(together.center[i, j], alone.center)
        assert together.side[i, j] == pytest.approx(float(alone.side))
        assert together.error[i, j] == pytest.approx(float(alone.error))
        assert together.verified[i, j] == alone.verified


def test_a_constellation_verifies_itself_and_not_its_mirror_image() -> None:
    touching = 50 + 32 * CORNERS
    same = fit_squares(touching, 32.0)
    assert same.error == pytest.approx(0)
    assert same.side == pytest.approx(32)
    assert same.verified
    mirrored = fit_squares(touching[[1, 0, 3, 2]], 32.0)
    # Mirrored, the corners' products cancel: the side is at its lower bound, every corner is far off.
    assert mirrored.side == pytest.approx(SIDES[0] * 32)
    assert mirrored.error > MOST_ERROR
    assert not mirrored.verified
    assert not fit_squares(np.full((4, 2), 50.0), 32.0).verified.item()


def test_ranking_is_by_count_then_score_then_place() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        verified, score = rng.integers(0, 4, 30), rng.integers(0, 3, 30) / 10
        wanted = sorted(range(30), key=lambda k: (-verified[k], -score[k], k))
        assert ranking(verified, score).tolist() == wanted


def by_walking(clusters: list[list[int]], images: int, fresh: float) -> list[tuple[int, int]]:
    """The selection by its words: again and again from the top, each time asking for one more showing."""
    taken: list[tuple[int, int]] = []
    for times in range(1, len(clusters) + 2):
        for place, members in enumerate(clusters):
            if place in {p for p, _ in taken}:
                continue
            shown = [sum(image in set(clusters[p]) for p, _ in taken) for image in range(images)]
            new = sum(shown[image] < times for image in set(members))
            if new and new / len(set(members)) >= fresh:
                taken.append((place, times))
    return taken


@pytest.mark.parametrize("fresh", [0.0, 0.5, 0.75, 1.0])
def test_cover_is_the_walk_from_the_top(fresh: float) -> None:
    rng = np.random.default_rng(2)
    for _ in range(40):
        images = int(rng.integers(3, 12))
        clusters = [rng.integers(0, images, rng.integers(0, 5)).tolist() for _ in range(int(rng.integers(1, 15)))]
        arrays = [np.array(members, int) for members in clusters]
        wanted = by_walking(clusters, images, fresh)
        assert list(cover(arrays, images, fresh=fresh)) == wanted
        for most in (1, 3, 7):
            assert list(cover(arrays, images, most, fresh=fresh)) == wanted[:most]


def test_every_cluster_with_members_is_taken_in_the_end() -> None:
    clusters = [np.array([0, 1])] * 3 + [np.array([], int), np.array([2])]
    assert list(cover(clusters, 3)) == [(0, 1), (4, 1), (1, 2), (2, 3)]
