"""Feature maps in colour: the first three principal components of each layer as red, green and blue.

    context-pred picture features docs/photos --out features

What has one colour in a column is alike to that layer, also in different photographs: the components and their scale
are those of all the photographs together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from context_pred.backbones import LAYERS
from context_pred.discover.patches import loaded
from context_pred.errors import InvalidInputError
from context_pred.pictures import INK, font, save_png

from .dense import FeatureMaps
from .photographs import Photographs, Source, count, found_in, made, opened, told
from .sheets import GRAY, HEADING, MARGIN, SPACE, fitted, sheet, small, within

if TYPE_CHECKING:
    from context_pred.model import ContextPredictionModel

__all__ = ["FeatureSheet", "pca_colors", "run"]

SIDE = 8.0
"""The photographs' shorter side in patches: finer than for comparing, since here shapes are to be seen."""

TILE, CAPTION = 232, 20
"""px: a photograph's largest side on the sheet, and the line under it."""

_FITTED = 200_000  # positions that the components are computed from
_COARSE = 16  # px of stride from which maps are computed at every half stride

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class FeatureSheet:
    """What was drawn; ``str()`` says it.

    Attributes:
        picture: ``OUT/features.png``.
        paths: The photographs, a row each.
        layers: A column each.
        skipped: {path: reason} of the files that could not be opened.
        found: Among how many photographs those drawn were chosen.
    """

    picture: Path
    paths: tuple[str, ...]
    layers: tuple[str, ...]
    skipped: dict[str, str]
    found: int

    def __str__(self) -> str:
        """Say it in a paragraph."""
        of = f" (of {self.found:,})" if self.found > len(self.paths) + len(self.skipped) else ""
        text = f"{self.picture}: {', '.join(self.layers)} of {count(len(self.paths), 'photograph')}{of} in colour."
        return text + told(self.skipped)


def run(
    images: Source,
    *,
    out: str | Path,
    model: ContextPredictionModel | str | Path,
    layers: Sequence[str] = LAYERS,
    at_most: int = 12,
    seed: int = 0,
    side: float = SIDE,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> FeatureSheet:
    """Draw ``OUT/features.png``: a row a photograph, a column a layer.

    Args:
        images: As ``find_images`` takes them.
        out: The folder; made where it is missing.
        model: The model, or what ``load_pretrained`` takes.
        layers: Their names; a column each, in the backbone's order.
        at_most: Photographs, 100 at the most; of more, so many are chosen at random.
        seed: Of the choice.
        side: The photographs' shorter side in patches of the model's training.
        device: Where to compute.
        progress: Show a bar.

    Returns:
        What was drawn.

    Raises:
        InvalidInputError: no images, or an argument out of its range.
        UnknownNameError: no such model or layer.
        ImageError: no image can be opened.
        StorageError: ``out`` cannot be written to; an earlier picture stands.
    """
    model = loaded(model)
    chosen = model.backbone.chosen(tuple(layers))
    makers = [
        FeatureMaps.of(
            model, layer, side=side, finer=2 if model.feature_info[layer].stride >= _COARSE else 1, device=device
        )
        for layer in chosen
    ]
    photographs = opened(found_in(images, out), at_most=at_most, seed=seed)
    folder = made(out)
    columns = []
    with tqdm(total=len(makers) * len(photographs), unit=" maps", disable=not progress, leave=False) as bar:
        for make in makers:
            maps = []
            for image in photographs.images:
                maps.append(make(image))
                bar.update()
            columns.append(pca_colors(maps))
    notes = [f"{model.feature_info[layer].channels} channels, every {_step(make)} px" for layer, make in _named(makers)]
    line = f"{model.card.name}; first three principal components of each layer as red, green and blue"
    page = _sheet(photographs, chosen, notes, columns, line)
    result = FeatureSheet(folder / "features.png", photographs.paths, chosen, photographs.skipped, photographs.found)
    save_png(page, result.picture)
    return result


def pca_colors(maps: Sequence[Floats], seed: int = 0) -> list[NDArray[np.uint8]]:
    """Colour feature maps of one layer by their first three principal components.

    Each position's feature is first brought to length 1, so that strong edges do not take all the colours. The
    components are those of all the maps together; each runs from its 1st to its 99th percentile, cut off beyond. The
    sign of a component, which is arbitrary, makes its largest weight positive.

    Args:
        maps: float32 (h, w, channels) each, at least one; the sizes may differ.
        seed: Of the choice of positions (200,000 at most) and of ``torch.pca_lowrank``.

    Returns:
        uint8 (h, w, 3) each, RGB.

    Raises:
        InvalidInputError: no maps, or of fewer than three channels.
    """
    if not maps or any(one.ndim != 3 or one.shape[2] < 3 for one in maps):
        raise InvalidInputError(f"pca_colors takes maps (h, w, channels) of 3 channels or more, not {len(maps)} such.")
    some = np.concatenate([_some(one, _FITTED // len(maps), seed) for one in maps])
    mean = some.mean(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        centred = torch.from_numpy(some - mean)
        weights = torch.pca_lowrank(centred, q=min(6, *centred.shape), center=False, niter=6)[2].numpy()
    weights = np.pad(weights, ((0, 0), (0, max(0, 3 - weights.shape[1]))))[:, :3]
    weights = weights * np.where(weights[np.abs(weights).argmax(0), range(3)] < 0, -1, 1)
    parts = [(_unit(one) - mean) @ weights for one in maps]
    low, high = np.percentile(np.concatenate([part.reshape(-1, 3) for part in parts]), (1, 99), axis=0)
    scale = 255 / np.maximum(high - low, 1e-6)
    return [np.rint(np.clip((part - low) * scale, 0, 255)).astype(np.uint8) for part in parts]


def _some(features: Floats, most: int, seed: int) -> Floats:
    """Return the features of some positions, (n, channels), of length 1."""
    vectors = features.reshape(-1, features.shape[2])
    if len(vectors) > most:
        vectors = vectors[np.random.default_rng(seed).choice(len(vectors), most, replace=False)]
    return _unit(vectors)


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return unit


def over(image: Image.Image, colors: NDArray[np.uint8], size: tuple[int, int]) -> Image.Image:
    """Lay a coloured map over its photograph, whose light and dark show through a little; RGB of (width, height)."""
    colored = Image.fromarray(colors).resize(size, Image.Resampling.BICUBIC)
    return Image.blend(colored, small(image, size).convert("L").convert("RGB"), 0.22)


def _named(makers: Sequence[FeatureMaps]) -> list[tuple[str, FeatureMaps]]:
    return [(make.layer, make) for make in makers]


def _step(make: FeatureMaps) -> int:
    return make.stride // make.finer


def _sheet(
    photographs: Photographs,
    layers: Sequence[str],
    notes: Sequence[str],
    columns: Sequence[Sequence[NDArray[np.uint8]]],
    line: str,
) -> Image.Image:
    sizes = [within(image.size, (TILE, TILE)) for image in photographs.images]
    tall = [height + CAPTION + SPACE for _, height in sizes]
    head = HEADING + 44
    step = TILE + SPACE
    width = 2 * MARGIN + (1 + len(layers)) * step - SPACE
    page, pen = sheet(width, head + sum(tall) + MARGIN, f"Features of {count(len(sizes), 'photograph')}", line)
    for k, (name, note) in enumerate(zip(("photograph", *layers), ("", *notes), strict=True)):
        x = MARGIN + k * step
        pen.text((x, HEADING), name, fill=INK, font=font(16))
        pen.text((x, HEADING + 20), fitted(note, TILE, 12), fill=GRAY, font=font(12))
    y = head
    for i, (image, size) in enumerate(zip(photographs.images, sizes, strict=True)):
        page.paste(small(image, size), (MARGIN, y))
        pen.text((MARGIN, y + size[1] + 2), fitted(Path(photographs.paths[i]).stem, TILE, 12), fill=GRAY, font=font(12))
        for k, column in enumerate(columns):
            page.paste(over(image, column[i], size), (MARGIN + (k + 1) * step, y))
        y += tall[i]
    return page
