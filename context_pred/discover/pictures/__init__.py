"""Pictures of what a model sees: feature maps, the pretext task, a map of a collection, similarity maps."""

from __future__ import annotations

from .similarity import Compared, heat, similarity_maps

__all__ = ["Compared", "heat", "similarity_maps"]
