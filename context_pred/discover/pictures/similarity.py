"""Similarity maps: name a point in one photograph, see where its like lies in others.

    context-pred picture similarity docs/photos/koala.jpg docs/photos --at center --out similarity

The feature at the point is compared with every position of the others' feature maps by normalised correlation, the
measure of Doersch, Gupta, Efros, ICCV 2015, section 4.1. Before that the mean feature of all the photographs, each
counted alike, is subtracted: what every position has in common would otherwise make everything look alike, the more so
the deeper the layer (tried on animals, flowers and groceries: without it, a map of feature4 is nearly even).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from context_pred.data.images import to_rgb
from context_pred.errors import InvalidInputError, unknown

from .colors import WARM
from .dense import SIDE, FeatureMaps

if TYPE_CHECKING:
    from context_pred.model import ContextPredictionModel

LAYER = "feature4"

POINTS = {
    "top-left": (0.25, 0.25),
    "top": (0.5, 0.25),
    "top-right": (0.75, 0.25),
    "left": (0.25, 0.5),
    "center": (0.5, 0.5),
    "right": (0.75, 0.5),
    "bottom-left": (0.25, 0.75),
    "bottom": (0.5, 0.75),
    "bottom-right": (0.75, 0.75),
}
"""The points that have a name, as shares of the photograph's width and height."""

Point = tuple[float, float] | str
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Compared:
    """Photographs' feature maps, computed once, so that many points can be asked about.

    Attributes:
        size: (width, height) of the photograph that points lie in.
        query: Its map, float32 (h, w, channels), each position normalised: mean 0, length 1.
        others: The other photographs' maps, likewise.
    """

    size: tuple[int, int]
    query: Floats
    others: tuple[Floats, ...]

    @classmethod
    def of(
        cls,
        model: ContextPredictionModel,
        image: Image.Image,
        others: Sequence[Image.Image],
        *,
        layer: str = LAYER,
        side: float = SIDE,
        finer: int = 2,
        device: str | torch.device = "auto",
    ) -> Compared:
        """Compute the maps; arguments as of ``similarity_maps``."""
        if not others:
            raise InvalidInputError("No other photographs to compare with; at least one is needed.")
        make = FeatureMaps.of(model, layer, side=side, finer=finer, device=device)
        maps = [make(one) for one in (image, *others)]
        mean = np.mean([one.mean((0, 1)) for one in maps], 0)
        query, *rest = (_normalized(one - mean) for one in maps)
        return cls(image.size, query, tuple(rest))

    def maps(self, point: Point) -> list[Floats]:
        """Return how alike each position of each other photograph is to a point, float32 (h, w) in −1 … 1 each."""
        feature = self._feature(point)
        return [one @ feature for one in self.others]

    def own(self, point: Point) -> Floats:
        """Return the same for the photograph that the point lies in."""
        return self.query @ self._feature(point)

    def _feature(self, point: Point) -> Floats:
        x, y = point_in(self.size, point)
        rows, columns = self.query.shape[:2]
        feature: Floats = self.query[int(y * rows / self.size[1]), int(x * columns / self.size[0])]
        return feature


def similarity_maps(
    model: ContextPredictionModel,
    image: Image.Image,
    point: Point,
    others: Sequence[Image.Image],
    *,
    layer: str = LAYER,
    side: float = SIDE,
    finer: int = 2,
    device: str | torch.device = "auto",
) -> list[Floats]:
    """Tell how alike each position of other photographs is to a point of one.

    Ask ``Compared.of`` once where several points of the same photographs are of interest.

    Args:
        model: The model, which is left as it is.
        image: The photograph that the point lies in; any 8-bit mode.
        point: (x, y) in px of ``image``, 0 ≤ x < width, 0 ≤ y < height; or a name of ``POINTS`` ("center").
        others: The photographs to look in, of any sizes; ``image`` may be among them.
        layer: The layer whose features are compared.
        side: The photographs' shorter side in patches of the model's training: more shows finer things.
        finer: Positions a stride of the layer, 1 or 2; 2 takes four times as long.
        device: Where to compute.

    Returns:
        A map for each of ``others``, float32 (h, w) in −1 … 1, rows from the top; h : w is nearly the photograph's.

    Raises:
        InvalidInputError: no others, a point outside of the photograph, or an argument out of its range.
        UnknownNameError: no such layer, or no point of that name.
    """
    point_in(image.size, point)
    return Compared.of(model, image, others, layer=layer, side=side, finer=finer, device=device).maps(point)


def point_in(size: tuple[int, int], point: Point) -> tuple[float, float]:
    """Return a point's x, y in px of a photograph of (width, height) px.

    Raises:
        UnknownNameError: no point of that name.
        InvalidInputError: outside of the photograph, or no point.
    """
    width, height = size
    if isinstance(point, str):
        if point not in POINTS:
            raise unknown("point", point, POINTS)
        return POINTS[point][0] * width, POINTS[point][1] * height
    try:
        x, y = (float(value) for value in point)
    except (TypeError, ValueError):
        raise InvalidInputError(f"point={point!r}; accepted: (x, y) in px, or one of {', '.join(POINTS)}.") from None
    if not (0 <= x < width and 0 <= y < height):
        raise InvalidInputError(
            f"The point ({x:g}, {y:g}) lies outside of the photograph; accepted: 0 ≤ x < {width}, 0 ≤ y < {height} px."
        )
    return x, y


def heat(image: Image.Image, similarity: Floats, *, low: float = 0.0, high: float = 0.6) -> Image.Image:
    """Lay a similarity map over its photograph: grey where nothing is alike, from plum to pale yellow where much is.

    Args:
        image: The photograph, any 8-bit mode.
        similarity: float32 (h, w), its map.
        low: The similarity that is not coloured at all, and those below.
        high: The similarity that has the fullest colour, and those above; photographs of different things seldom reach
            .6.

    Returns:
        RGB, of the photograph's size.

    Raises:
        InvalidInputError: ``similarity`` is no map, or ``low`` is not below ``high``.
    """
    if np.ndim(similarity) != 2 or not np.size(similarity) or not low < high:
        raise InvalidInputError(
            f"heat takes a map (h, w) and low < high, not {np.shape(similarity)}, low={low}, high={high}."
        )
    values = Image.fromarray(np.ascontiguousarray(similarity, np.float32))
    smooth = np.asarray(values.resize(image.size, Image.Resampling.BICUBIC))
    share = np.clip((smooth - low) / (high - low), 0, 1)
    grey = np.asarray(to_rgb(image).convert("L"), np.float32)[..., None]
    cover = np.clip(1.6 * share, 0, 0.88)[..., None]
    colored = WARM[np.rint(255 * share).astype(np.intp)] * (0.75 + 0.25 * grey / 255)
    return Image.fromarray(np.rint(0.55 * grey * (1 - cover) + colored * cover).astype(np.uint8))


def _normalized(features: Floats) -> Floats:
    """Give each position's feature the mean 0 and the length 1; a constant one becomes 0."""
    features = features - features.mean(2, keepdims=True)
    length = np.linalg.norm(features, axis=2, keepdims=True)
    normal: Floats = np.divide(features, length, out=np.zeros_like(features), where=length > 1e-12)
    return normal
