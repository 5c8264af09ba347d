"""Miniature sets with label maps in the formats that archives really have, made of the repository's photographs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from miniatures import MapSets


@pytest.fixture
def maps(tmp_path: Path, photos: Path) -> MapSets:
    return MapSets(tmp_path / "mini", photos)


@pytest.fixture
def more_maps(tmp_path: Path, photos: Path) -> Callable[[str], MapSets]:
    return lambda name: MapSets(tmp_path / name, photos)
