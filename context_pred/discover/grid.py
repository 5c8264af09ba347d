"""Where patches lie in a photograph: in rows, at several scales, overlapping by half."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from context_pred.errors import InvalidInputError

if TYPE_CHECKING:
    from context_pred.model import ContextPredictionModel

__all__ = ["PatchGrid", "usual_grid"]

Floats = NDArray[np.float32]

SIDES = (4.0, 6.0, 9.0)
"""A photograph's shorter side in patches, a scale each; the recipes of the zoo train on squares of three patches."""

STEP = 0.5

LONGEST = 16
"""Longer side over shorter side at most; a longer photograph would have patches without end."""

MOST_SIDE = 64
"""Patches to a photograph's shorter side at most: of a square that is 16,129 patches."""


@dataclass(frozen=True)
class PatchGrid:
    """Where patches lie in a photograph.

    At each scale the photograph is resized until its shorter side is so many patches long; patches then lie in rows,
    from the left and the top, whole ones only.

    Args:
        patch: Side in px.
        sides: The photograph's shorter side in patches, a scale each, 1 … ``MOST_SIDE``.
        step: From one patch to the next, in patches; 1 / step is whole, so that patches that touch are in the grid.

    Raises:
        InvalidInputError: a number out of its range.
    """

    patch: int
    sides: tuple[float, ...] = SIDES
    step: float = STEP

    def __post_init__(self) -> None:
        """Check the numbers."""
        object.__setattr__(self, "sides", tuple(float(side) for side in self.sides))
        if self.patch < 2:
            raise InvalidInputError(f"patch={self.patch}; accepted: a side of 2 px or more.")
        if not self.sides or not all(1 <= side <= MOST_SIDE for side in self.sides):
            raise InvalidInputError(
                f"sides={self.sides}; accepted: one scale or more, each 1 … {MOST_SIDE} patches to the shorter side."
            )
        if (
            not 0 < self.step <= 1
            or abs(1 / self.step - self.touching) > 1e-6
            or self.stride * self.touching != self.patch
        ):
            raise InvalidInputError(
                f"step={self.step:g} of a patch of {self.patch} px; accepted: 1, 1/2, 1/3, … where that is whole px."
            )

    @property
    def touching(self) -> int:
        """How many steps it is from a patch to the one that touches it."""
        return round(1 / self.step)

    @property
    def stride(self) -> int:
        """The step in px."""
        return round(self.patch * self.step)

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Return the (height, width) in px that a photograph of this size is brought to, a scale each.

        Args:
            height: Of the photograph in px.
            width: Of the photograph in px.
        """
        found = []
        for side in self.sides:
            scale = round(side * self.patch) / min(height, width)
            found.append((max(round(height * scale), self.patch), max(round(width * scale), self.patch)))
        return found

    def cells(self, height: int, width: int) -> list[tuple[int, int]]:
        """Return (rows, columns) of patches in a photograph of this size, a scale each.

        Args:
            height: Of the photograph in px.
            width: Of the photograph in px.
        """
        return [tuple((side - self.patch) // self.stride + 1 for side in size) for size in self.sizes(height, width)]  # type: ignore[misc]

    def boxes(self, height: int, width: int) -> Floats:
        """Return where the patches lie, (n, 4): x1, y1, x2, y2 in px of a photograph of this size; row by row.

        Args:
            height: Of the photograph in px.
            width: Of the photograph in px.
        """
        found = []
        for (tall, wide), (rows, columns) in zip(self.sizes(height, width), self.cells(height, width), strict=True):
            corners = _corners(rows, columns, self.stride)
            scale = np.array([width / wide, height / tall] * 2)
            found.append(np.concatenate([corners, corners + self.patch], 1) * scale)
        return np.concatenate(found).astype(np.float32)


def _corners(rows: int, columns: int, stride: int) -> NDArray[np.int64]:
    """Upper left corners, (rows × columns, 2): x, y; row by row."""
    y, x = np.mgrid[:rows, :columns] * stride
    return np.stack([x.ravel(), y.ravel()], 1)


def usual_grid(model: ContextPredictionModel) -> PatchGrid:
    """Return the grid of the patches that a model was trained with.

    Args:
        model: Its card's sampler says the patch's side.
    """
    return PatchGrid(model.patch_sampler.patch)


def too_long(width: int, height: int) -> str:
    """Say that a photograph of so many px is too long and narrow to be cut into patches; empty where it is not."""
    if max(width, height) <= LONGEST * min(width, height):
        return ""
    return f"it has {width:,} × {height:,} px; for patches the longer side may be at most {LONGEST} times the shorter"
