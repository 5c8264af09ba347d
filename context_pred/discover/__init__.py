"""Model and images → what looks alike: ``neighbors.run`` finds the nearest images of each query."""

from __future__ import annotations

from context_pred.discover import neighbors

__all__ = ["neighbors"]
