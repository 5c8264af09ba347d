"""How pure the clusters of a discovery are, and how much of a collection they cover, where labels are known.

Source: Doersch, Gupta, Efros, ICCV 2015, section 4.4 and figure 9; METHOD A5.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PUBLISHED = {"all": 0.87, "half": 0.48}
"""The paper's areas on a part of VOC2007: under the whole curve, and up to a coverage of .5."""


@dataclass(frozen=True)
class Curve:
    """Purity over coverage: clusters sorted by purity, the purest first; point k stands for the first k of them.

    Attributes:
        coverage: (clusters): the share of the images that the first k clusters show, 0 … 1.
        purity: (clusters): the mean purity of the first k.
        order: int64 (clusters): their numbers in the order as given.
    """

    coverage: Floats
    purity: Floats
    order: NDArray[np.int64]

    def area(self, up_to: float = 1.0) -> float:
        """Return the area under the curve, by trapezia, from coverage 0 to ``up_to``.

        Left of the first point the curve is level; right of the last there is none, and no area.
        """
        if not len(self.coverage):
            return 0.0
        x = np.concatenate([[0.0], self.coverage])
        y = np.concatenate([self.purity[:1], self.purity])
        if x[-1] > up_to:
            end = np.interp(up_to, x, y)
            inside = x < up_to
            x, y = np.append(x[inside], up_to), np.append(y[inside], end)
        return float(np.trapezoid(y, x))

    def to_dict(self) -> dict[str, Any]:
        """Return the curve and its areas for JSON."""
        return {
            "area": round(self.area(), 6),
            "area up to half": round(self.area(0.5), 6),
            "coverage": np.round(self.coverage, 6).tolist(),
            "purity": np.round(self.purity, 6).tolist(),
        }


def purity(members: Sequence[int] | NDArray[np.integer], labels: Sequence[frozenset[str]]) -> tuple[float, str]:
    """Return the share of a cluster's images that have its commonest label, and that label (of equals the first).

    Args:
        members: The images of the cluster, each once.
        labels: Of every image; one may have several, as in VOC, or none.
    """
    names = sorted({name for image in members for name in labels[image]})
    if not names:
        return 0.0, ""
    counts = [sum(name in labels[image] for image in members) for name in names]
    best = int(np.argmax(counts))
    return counts[best] / len(members), names[best]


def curve(
    clusters: Sequence[NDArray[np.integer]], labels: Sequence[frozenset[str]], images: int | None = None
) -> Curve:
    """Compute the curve of clusters.

    Args:
        clusters: The images of each.
        labels: Of every image.
        images: How many there are to cover; None: as many as labels.
    """
    purities = np.array([purity(members, labels)[0] for members in clusters])
    order = np.argsort(-purities, kind="stable")
    shown = np.zeros(len(labels), bool)
    coverage = []
    for number in order:
        shown[clusters[number]] = True
        coverage.append(shown.sum() / (images or len(labels)))
    means = np.cumsum(purities[order]) / np.arange(1, len(order) + 1)
    return Curve(np.array(coverage), means, order)
