"""Positions: the label tables of 0.x and 1.x, and which pairs of cells are asked about."""

from __future__ import annotations

import itertools

from context_pred.patches.layout import OFFSETS, POSITIONS, RASTER_FROM_1X, adjacent_pairs, center_pairs

SHORT = {"UL": 0, "U": 1, "UR": 2, "L": 3, "R": 4, "DL": 5, "D": 6, "DR": 7}


def test_positions_are_in_raster_order() -> None:
    assert POSITIONS == ("up-left", "up", "up-right", "left", "right", "down-left", "down", "down-right")
    for (down, right), name in zip(OFFSETS, POSITIONS, strict=True):
        assert ("up" in name, "down" in name) == (down < 0, down > 0)
        assert ("left" in name, "right" in name) == (right < 0, right > 0)


def test_the_map_from_1x_labels() -> None:
    in_1x = ("UL", "L", "DL", "U", "D", "UR", "R", "DR")
    assert tuple(SHORT[name] for name in in_1x) == RASTER_FROM_1X
    assert [RASTER_FROM_1X[RASTER_FROM_1X[k]] for k in range(8)] == list(range(8))


def test_center_pairs_skip_the_center() -> None:
    assert center_pairs() == [(cell, 4, position) for position, cell in enumerate((0, 1, 2, 3, 5, 6, 7, 8))]


def test_adjacent_pairs_are_all_forty() -> None:
    expected = set()
    for center, neighbor in itertools.permutations(range(9), 2):
        offset = (neighbor // 3 - center // 3, neighbor % 3 - center % 3)
        if max(map(abs, offset)) == 1:
            expected.add((neighbor, center, OFFSETS.index(offset)))
    assert len(expected) == 40
    assert set(adjacent_pairs()) == expected
    assert len(adjacent_pairs()) == 40
