"""Colours for numbers: a ramp whose lightness rises evenly, so that it reads in grey and to colour-blind eyes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_TO_LMS = np.array(
    [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
     [0.0883024619, 0.2817188376, 0.6299787005]]
)  # fmt: skip
_TO_LAB = np.array(
    [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
     [0.0259040371, 0.7827717662, -0.8086757660]]
)  # fmt: skip


def ramp(stops: Sequence[tuple[int, int, int]]) -> NDArray[np.float32]:
    """Return 256 colours, float32 (256, 3) in 0 … 255, through the stops, evenly spaced by Oklab's lightness.

    Source: Björn Ottosson, "A perceptual color space for image processing", 2020, for the space.
    """
    lab = np.cbrt(_linear(np.array(stops) / 255) @ _TO_LMS.T) @ _TO_LAB.T
    at = np.linspace(lab[0, 0], lab[-1, 0], 256)
    mixed = np.stack([np.interp(at, lab[:, 0], lab[:, k]) for k in range(3)], 1)
    back = np.linalg.inv(_TO_LMS) @ ((np.linalg.inv(_TO_LAB) @ mixed.T) ** 3)
    return (255 * _gamma(np.clip(back.T, 0, 1))).astype(np.float32)


def _linear(srgb: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def _gamma(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


WARM = ramp(((38, 8, 44), (128, 24, 60), (213, 94, 0), (240, 160, 40), (250, 240, 140)))
"""Dark plum through vermilion (Okabe and Ito's) to pale yellow."""
