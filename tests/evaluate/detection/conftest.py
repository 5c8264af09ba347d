"""Miniature sets of images with boxes, in the formats that archives really have."""

from __future__ import annotations

import pytest
from miniatures import Marked, Mini


@pytest.fixture
def marked(mini: Mini) -> Marked:
    return Marked(mini)
