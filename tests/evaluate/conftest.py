"""Miniature labelled sets in the formats that archives really have, made of the repository's photographs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from miniatures import Mini


@pytest.fixture
def mini(tmp_path: Path, photos: Path) -> Mini:
    return Mini(tmp_path / "mini", photos)


@pytest.fixture
def another(tmp_path: Path, photos: Path) -> Callable[[str], Mini]:
    return lambda name: Mini(tmp_path / name, photos)
