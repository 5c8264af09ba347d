"""Positions: which cell of the 3×3 grid a neighbour lies in, and which pairs of cells are asked about."""

from __future__ import annotations

from itertools import product

POSITIONS = ("up-left", "up", "up-right", "left", "right", "down-left", "down", "down-right")
"""The eight positions in raster order: index = label (deepcontext; mmselfsup 0.x)."""

OFFSETS = tuple((dy, dx) for dy, dx in product((-1, 0, 1), repeat=2) if (dy, dx) != (0, 0))
"""(rows down, columns right) of the neighbour seen from the centre, for each position."""

RASTER_FROM_1X = (0, 3, 5, 1, 6, 2, 4, 7)
"""mmselfsup 1.x counts columns first: its label k is position ``RASTER_FROM_1X[k]``. The map is its own inverse."""


def center_pairs() -> list[tuple[int, int, int]]:
    """Return (neighbor cell, center cell, position) of the grid's eight centre pairs; cells 0…8 in raster order."""
    return [pair for pair in adjacent_pairs() if pair[1] == 4]


def adjacent_pairs() -> list[tuple[int, int, int]]:
    """Return (neighbor cell, center cell, position) of all 40 directed pairs of adjacent cells of the 3×3 grid."""
    pairs = []
    for center in range(9):
        row, column = divmod(center, 3)
        for position, (dy, dx) in enumerate(OFFSETS):
            if 0 <= row + dy < 3 and 0 <= column + dx < 3:
                pairs.append((3 * (row + dy) + column + dx, center, position))
    return pairs
