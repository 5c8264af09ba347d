"""Model and images → what looks alike: nearest neighbours, objects that recur, pictures of what a network sees."""

from __future__ import annotations

from context_pred.discover import neighbors
from context_pred.discover.index import NeighborIndex

__all__ = ["NeighborIndex", "neighbors"]
