"""Constellations of four touching patches: which matches keep their layout, and which ones cover a collection.

Source: Doersch, Gupta, Efros, ICCV 2015, section 4.4 ("Visual Data Mining"); METHOD A5.5. The square is upright.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CORNERS: Floats = np.array([(-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5)])
"""Where the four patches lie about the square's centre, in sides of it: (x, y), row by row."""

SIDES = (2 / 3, 4 / 3)
"""The fitted side's bounds, in sides of a patch."""

MOST_ERROR = 1.0
"""Of a layout that still counts: the sum of squared distances by the squared side lies below."""


@dataclass(frozen=True)
class Squares:
    """Squares fitted to matches.

    Attributes:
        center: (…, 2), in px: x, y.
        side: (…), in px, within ``SIDES`` of a patch.
        error: (…): the sum of the squared distances from the square's corners, by the squared side.
    """

    center: Floats
    side: Floats
    error: Floats

    @property
    def verified(self) -> NDArray[np.bool_]:
        """Which layouts count."""
        found: NDArray[np.bool_] = self.error < MOST_ERROR
        return found


def fit_squares(points: NDArray[np.floating], patch: NDArray[np.floating] | float) -> Squares:
    """Fit the upright square that lies nearest to four matched patches, in least squares.

    The centre is the mean of the points and the side Σ eᵢ·(pᵢ − centre) / 2, eᵢ the corners; a side out of bounds is
    set to the nearer one, which is again the least-squares answer there, for the error is a parabola of the side.

    Args:
        points: (…, 4, 2) centres of the patches that matched, in px: x, y, in the order of ``CORNERS``.
        patch: The mean side of the four patches, in px; (…) or one number.
    """
    points = np.asarray(points, np.float64)
    center = points.mean(-2)
    offsets = points - center[..., None, :]
    low, high = (bound * np.asarray(patch, np.float64) for bound in SIDES)
    side = np.clip((offsets * CORNERS).sum((-2, -1)) / 2, low, high)
    error = ((offsets - side[..., None, None] * CORNERS) ** 2).sum((-2, -1)) / side**2
    return Squares(center, side, error)


def ranking(verified: NDArray[np.integer], score: NDArray[np.floating]) -> NDArray[np.int64]:
    """Order constellations: most verified images first; of equals the higher score, then the earlier one.

    Args:
        verified: (n,) counts.
        score: (n,) of the matches.
    """
    return np.lexsort((-np.asarray(score, np.float64), -np.asarray(verified, np.int64)))


def cover(
    clusters: Sequence[NDArray[np.integer]], images: int, most: int | None = None, *, fresh: float = 0.0
) -> Iterator[tuple[int, int]]:
    """Walk down a ranking and take each cluster that shows an image not yet shown; then not yet twice, and so on.

    Args:
        clusters: The images of each, in the order of the ranking; empty ones are passed over.
        images: How many there are.
        most: Stop after so many; None: when all are taken.
        fresh: The share of a cluster's images that must be new for it to be taken, 0 … 1; one of them must be in any
            case, which is the paper's rule. A large share keeps one object from standing there again and again.

    Yields:
        (place in the ranking, how often an image had to be shown before it was no longer new).
    """
    shown = np.zeros(images, np.int64)
    members = [np.unique(cluster) for cluster in clusters]
    left = [place for place, cluster in enumerate(members) if len(cluster)]
    times, taken = 1, 0
    while left and taken != most:
        passed = []
        for place in left:
            cluster = members[place]
            if taken == most or (shown[cluster] < times).sum() < max(1, fresh * len(cluster)):
                passed.append(place)
                continue
            shown[cluster] += 1
            taken += 1
            yield place, times
        left, times = passed, times + 1
