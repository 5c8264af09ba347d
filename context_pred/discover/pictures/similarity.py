"""Similarity maps: name a point in one photograph, see where its like lies in others.

    context-pred picture similarity docs/photos/koala.jpg docs/photos --at center --out similarity

The feature at the point is compared with every position of the others' feature maps by normalised correlation, the
measure of Doersch, Gupta, Efros, ICCV 2015, section 4.1. Before that the mean feature of all the photographs, each
counted alike, is subtracted: what every position has in common would otherwise make everything look alike, the more so
the deeper the layer (tried on animals, flowers and groceries: without it, a map of feature4 is nearly even).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from context_pred.data.images import open_image, to_rgb
from context_pred.discover.patches import loaded
from context_pred.errors import InvalidInputError, unknown
from context_pred.pictures import save_png
from context_pred.weights_file import write_bytes

from .colors import WARM
from .dense import SIDE, FeatureMaps
from .photographs import Photographs, Source, count, found_in, made, moderate, opened, told

if TYPE_CHECKING:
    from context_pred.model import ContextPredictionModel

__all__ = ["Compared", "Similarity", "heat", "run", "similarity_maps"]

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
class Similarity:
    """What was drawn; ``str()`` says it.

    Attributes:
        picture: ``OUT/similarity.png``.
        page: ``OUT/similarity.html``.
        query: The photograph that the point lies in.
        point: x, y in px of it.
        found: For each other photograph (path, highest similarity), the most alike first.
        skipped: {path: reason} of the files that could not be opened.
    """

    picture: Path
    page: Path
    query: str
    point: tuple[float, float]
    found: tuple[tuple[str, float], ...]
    skipped: dict[str, str]

    def __str__(self) -> str:
        """Say it in a paragraph."""
        near = ", ".join(f"{Path(path).name} ({peak:.2f})" for path, peak in self.found[:3])
        return (
            f"{self.picture}: what is like ({self.point[0]:.0f}, {self.point[1]:.0f}) of {self.query} in "
            f"{count(len(self.found), 'photograph')}; the most alike: {near}. {self.page}: the same for any point that "
            f"is clicked.{told(self.skipped)}"
        )


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
        progress: bool = False,
    ) -> Compared:
        """Compute the maps; arguments as of ``similarity_maps``, and whether to show a bar.

        Args:
            model: As in ``similarity_maps``.
            image: The photograph that points will lie in.
            others: The photographs to look in.
            layer: As in ``similarity_maps``.
            side: As in ``similarity_maps``.
            finer: As in ``similarity_maps``.
            device: Where to compute, as in ``extract.run``.
            progress: Show a bar.

        Raises:
            InvalidInputError: no other photographs.
        """
        if not others:
            raise InvalidInputError("No other photographs to compare with; at least one is needed.")
        make = FeatureMaps.of(model, layer, side=side, finer=finer, device=device)
        every = (image, *others)
        maps = [make(one) for one in tqdm(every, unit=" photographs", disable=not progress, leave=False)]
        mean = np.mean([one.mean((0, 1)) for one in maps], 0)
        query, *rest = (_normalized(one - mean) for one in maps)
        return cls(image.size, query, tuple(rest))

    def maps(self, point: Point) -> list[Floats]:
        """Return how alike each position of each other photograph is to a point, float32 (h, w) in −1 … 1 each.

        Args:
            point: (x, y) in px of the photograph, or a name of ``POINTS``.
        """
        feature = self._feature(point)
        return [one @ feature for one in self.others]

    def own(self, point: Point) -> Floats:
        """Return the same for the photograph that the point lies in.

        Args:
            point: (x, y) in px of the photograph, or a name of ``POINTS``.
        """
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


def run(
    image: str | Path,
    others: Source,
    *,
    out: str | Path,
    model: ContextPredictionModel | str | Path,
    at: Point = "center",
    layer: str = LAYER,
    side: float = SIDE,
    at_most: int = 12,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> Similarity:
    """Write ``OUT/similarity.png`` and ``OUT/similarity.html``: where the like of a point lies in other photographs.

    Args:
        image: The photograph that the point lies in; it is left out of the others.
        others: The photographs to look in, as ``find_images`` takes them.
        out: The folder; made where it is missing.
        model: The model, or what ``load_pretrained`` takes.
        at: (x, y) in px of ``image``, upright; or a name of ``POINTS``.
        layer: The layer whose features are compared.
        side: The photographs' shorter side in patches of the model's training: more shows finer things.
        at_most: Other photographs, 100 at the most; of more, so many are chosen at random.
        seed: Of the choice.
        device: Where to compute.
        progress: Show a bar.

    Returns:
        What was found, the most alike first, and where picture and page lie.

    Raises:
        InvalidInputError: no others, a point outside of the photograph, or an argument out of its range.
        UnknownNameError: no such model, layer or point.
        ImageError: ``image`` cannot be opened, or none of the others.
        StorageError: ``out`` cannot be written to; earlier files stand.
    """
    from .similarity_page import page_of
    from .similarity_sheet import sheet_of

    model = loaded(model)
    (layer,) = model.backbone.chosen((layer,))
    query, size = moderate(open_image(image))
    x, y = point_in(size, at)
    place = (x * query.width / size[0], y * query.height / size[1])
    photographs = opened(_without(others, image, out), at_most=at_most, seed=seed)
    folder = made(out)
    compared = Compared.of(
        model, query, photographs.images, layer=layer, side=side, device=device, progress=progress
    )  # fmt: skip
    maps = compared.maps(place)
    order = sorted(range(len(maps)), key=lambda k: -maps[k].max())
    found = tuple((photographs.paths[k], float(maps[k].max())) for k in order)
    picture, page = folder / "similarity.png", folder / "similarity.html"
    line = f"{model.card.name}, {layer}; normalised correlation, the mean feature of all the photographs subtracted"
    asked = Asked(str(image), query, place, compared, photographs, line)
    text = page_of(asked)
    save_png(sheet_of(asked, maps, order), picture)
    write_bytes(text.encode("utf-8", "backslashreplace"), page)
    return Similarity(picture, page, str(image), (x, y), found, photographs.skipped)


@dataclass(frozen=True)
class Asked:
    """What the sheet and the page are drawn from: the query, its point in px of ``image``, the others, a line."""

    name: str
    image: Image.Image
    point: tuple[float, float]
    compared: Compared
    photographs: Photographs
    line: str


def _without(others: Source, image: str | Path, out: str | Path) -> list[Path]:
    """Find the others and leave out the query itself, by whatever way it is reached."""
    query = os.path.realpath(image)
    left = [path for path in found_in(others, out) if os.path.realpath(path) != query]
    if not left:
        raise InvalidInputError(f"The only photograph to look in is {image} itself; at least one other is needed.")
    return left


def scale_of(maps: Sequence[Floats]) -> float:
    """Return the similarity to draw in the fullest colour: nearly the highest of the maps, at least .3."""
    return max(0.3, float(np.percentile(np.concatenate([one.ravel() for one in maps]), 99.5)))


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


def read_point(text: str) -> Point:
    """Read a point as the command line gives it: "120,80", or a name of ``POINTS``.

    Raises:
        UnknownNameError: neither.
    """
    parts = text.split(",")
    try:
        x, y = (float(part) for part in parts)
    except ValueError:
        if text in POINTS:
            return text
        raise unknown("point", text, ("X,Y in px", *POINTS)) from None
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
        InvalidInputError: ``similarity`` is no map, ``low`` is not below ``high``, or ``image`` has more than 8 bits.
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
