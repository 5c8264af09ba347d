"""Rows in the coordinates in which they are a triangle: the same inner products from far fewer numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WORTH = 0.8  # of the numbers that are not zero


@dataclass(frozen=True, eq=False)
class Triangular:
    """Rows X (n, d) as L (n, r), r = min(n, d), with X = L Q: Q's rows orthonormal, L zero right of the diagonal.

    A linear classifier in its dual form (liblinear's coordinate descent among them) sees the rows by their inner
    products alone, and these are L's: every step, and with it the result, is the same up to rounding. liblinear passes
    over zeros, so a step costs about n²/2 instead of n·d products.

    Attributes:
        rows: L, float64 (n, r); X itself where the triangle would not save a fifth of the numbers.
    """

    rows: NDArray[np.float64]
    _reflectors: NDArray[np.float64] | None
    _scales: NDArray[np.float64] | None

    @classmethod
    def of(cls, rows: NDArray[np.float64]) -> Triangular:
        """Find the coordinates by Householder reflections (QR of the transpose), in O(n² d); ``rows`` is overwritten.

        Args:
            rows: float64 (n, d), C-contiguous, finite.
        """
        from scipy.linalg import qr

        n, d = rows.shape
        r = min(n, d)
        if n * r - r * (r - 1) // 2 > _WORTH * np.count_nonzero(rows):
            return cls(rows, None, None)
        (reflectors, scales), upper = qr(rows.T, mode="raw", overwrite_a=True, check_finite=False)
        return cls(np.ascontiguousarray(upper[:r].T), reflectors[:, :r], scales[:r])

    def back(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Take weights (k, r) of classifiers of L to weights (k, d) of the same classifiers of X."""
        if self._reflectors is None:
            return weights
        from scipy.linalg import get_lapack_funcs

        d, r = self._reflectors.shape
        padded = np.zeros((d, len(weights)), order="F")
        padded[:r] = weights.T
        multiply = get_lapack_funcs("ormqr", (self._reflectors, padded))
        size = self._call(multiply, padded, -1)[1]
        return np.ascontiguousarray(self._call(multiply, padded, int(size[0]))[0].T)

    def _call(self, multiply: Any, padded: NDArray[np.float64], size: int) -> Any:
        found, work, info = multiply("L", "N", self._reflectors, self._scales, padded, lwork=size)
        if info:
            raise ArithmeticError(f"LAPACK's ormqr returned {info}.")
        return found, work
