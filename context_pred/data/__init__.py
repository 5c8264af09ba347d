"""Files to images to tensors: finding them, opening the awkward ones, and the evaluation preprocessing."""

from __future__ import annotations

from .files import find_images
from .images import open_image
from .transforms import EvalTransform

__all__ = ["EvalTransform", "find_images", "open_image"]
