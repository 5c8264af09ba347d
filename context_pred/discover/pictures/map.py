"""A map of a collection: photographs that are alike lie near one another, as one large picture and as a page.

    context-pred picture map docs/photos --out map

The places are t-SNE's (van der Maaten and Hinton, Journal of Machine Learning Research 9, 2008), by scikit-learn, of
the photographs' features by normalised correlation; begun from their principal components, so that what lies far apart
means something too. Then each photograph goes to a cell of a grid of its own, so that none hides another; the sum of
the squared ways is the smallest there is (SciPy's ``linear_sum_assignment``).
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from context_pred import extract
from context_pred.data.images import open_image
from context_pred.discover.patches import loaded
from context_pred.errors import ImageError, InvalidInputError, check_whole_number, storing
from context_pred.extras import need
from context_pred.pictures import save_png
from context_pred.weights_file import write_bytes

from .photographs import Source, check_seed, count, found_in, made, told
from .sheets import small, within

if TYPE_CHECKING:
    from context_pred.model import ContextPredictionModel

__all__ = ["Collection", "run"]

FEWEST, MOST = 3, 4000
"""Photographs that a map needs, and that it can hold."""

ROOM = 1.15
"""Cells of the grid for a photograph: the empty ones let groups stand apart."""

SHAPE = 4 / 3
"""Width of the map over its height."""

_KEPT = 20_000_000  # px of all the thumbnails together
_LARGEST = 480

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Placed:
    """One photograph on the map.

    Attributes:
        path: As given.
        label: The name of its folder, or an empty text where no labels were asked for.
        x: 0 (left) … 1 (right), of the thumbnail's middle.
        y: 0 (top) … 1 (bottom).
        image: The thumbnail, RGB, of the photograph's shape.
    """

    path: str
    label: str
    x: float
    y: float
    image: Image.Image


@dataclass(frozen=True)
class Layout:
    """How the map is laid out: (columns, rows) of its cells, and whether every photograph sits in one."""

    columns: int
    rows: int
    grid: bool

    @property
    def share(self) -> float:
        """A thumbnail's side over a cell's: less where thumbnails lie one over the other."""
        return 0.94 if self.grid else 0.6


@dataclass(frozen=True)
class Collection:
    """What was drawn; ``str()`` says it.

    Attributes:
        picture: ``OUT/map.png``.
        page: ``OUT/map.html``.
        json: ``OUT/map.json``: every photograph's place.
        placed: The photographs.
        layout: The cells.
        labels: The folders' names, the one with most photographs first; none where no labels were asked for.
        skipped: {path: reason} of the files that could not be opened.
        found: How many files there were.
    """

    picture: Path
    page: Path
    json: Path
    placed: tuple[Placed, ...]
    layout: Layout
    labels: tuple[str, ...]
    skipped: dict[str, str]
    found: int

    def __str__(self) -> str:
        """Say it in a paragraph."""
        of = f" (of {self.found:,})" if self.found > len(self.placed) + len(self.skipped) else ""
        return (
            f"{self.picture}: a map of {count(len(self.placed), 'photograph')}{of}. {self.page}: the same, to look at "
            f"each photograph closer.{told(self.skipped)}"
        )


def run(
    images: Source,
    *,
    out: str | Path,
    model: ContextPredictionModel | str | Path,
    layer: str = "feature2",
    grid: bool = True,
    labels: bool = False,
    at_most: int = 1000,
    seed: int = 0,
    batch_size: int = 32,
    workers: int | None = None,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> Collection:
    """Write ``OUT/map.png``, ``OUT/map.html`` and ``OUT/map.json``.

    Args:
        images: As ``find_images`` takes them; three or more.
        out: The folder; made where it is missing. Features lie in a temporary folder inside meanwhile.
        model: The model, or what ``load_pretrained`` takes.
        layer: The layer whose features, averaged over the photograph, are compared; of the shipped model feature2 tells
            groceries apart best.
        grid: Put every photograph into a cell of its own; False leaves them where t-SNE puts them, one over the other.
        labels: Frame the photographs in the colours of their folders.
        at_most: Photographs, 4,000 at the most; of more, so many are chosen at random.
        seed: Of the choice and of t-SNE.
        batch_size: Images a batch.
        workers: As in ``extract.run``.
        device: Where to compute.
        progress: Show a bar.

    Returns:
        The places of the photographs, and where picture, page and numbers lie.

    Raises:
        InvalidInputError: fewer than three images, scikit-learn not installed, or an argument out of its range.
        UnknownNameError: no such model or layer.
        ImageError: fewer than three images can be opened.
        StorageError: ``out`` cannot be written to; earlier files stand.
    """
    from .map_page import page_of
    from .map_sheet import sheet_of

    _check(at_most, seed)
    model = loaded(model)
    (layer,) = model.backbone.chosen((layer,))
    files = found_in(images, out)
    chosen = _some(files, at_most, seed)
    folder = made(out)
    with _temporary(folder) as temporary:
        file = Path(temporary) / "features.safetensors"
        options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "device": device, "progress": progress}
        summary = extract.run(chosen, model, out=file, layers=(layer,), **options)
        paths, arrays = extract.load(file)
        features = np.array(arrays[layer], np.float32)
        del arrays  # a memory map of a file that is about to go
    paths, features, thumbnails, skipped = _thumbnails(paths, features)
    skipped = {**summary.errors, **skipped}
    if len(paths) < FEWEST:
        raise ImageError(f"A map needs {FEWEST} photographs; {len(paths)} could be opened.{told(skipped)}")
    places = embedded(features, seed)
    layout, spots = _laid_out(places, grid)
    named = [Path(path).parent.name or "." for path in paths] if labels else [""] * len(paths)
    placed = tuple(
        Placed(path, label, float(x), float(y), image)
        for path, label, (x, y), image in zip(paths, named, spots, thumbnails, strict=True)
    )
    order = tuple(name for name, _ in Counter(named).most_common() if name)
    collection = Collection(
        folder / "map.png", folder / "map.html", folder / "map.json", placed, layout, order, skipped, len(files)
    )  # fmt: skip
    line = f"{model.card.name}, {layer}; t-SNE of the features' normalised correlation, seed {seed}"
    page, text = sheet_of(collection, line), page_of(collection, line)
    save_png(page, collection.picture)
    write_bytes(text.encode("utf-8", "backslashreplace"), collection.page)
    write_bytes(json.dumps(_record(collection, line), indent=1).encode() + b"\n", collection.json)
    return collection


def _temporary(folder: Path) -> tempfile.TemporaryDirectory[str]:
    with storing(folder):
        return tempfile.TemporaryDirectory(prefix=".features-", dir=folder, ignore_cleanup_errors=True)


def _check(at_most: int, seed: int) -> None:
    check_whole_number("at_most", at_most, FEWEST, MOST)
    check_seed(seed)
    need("sklearn.manifold", "A map", "discover")


def _some(files: Sequence[Path], at_most: int, seed: int) -> list[Path]:
    if len(files) < FEWEST:
        raise InvalidInputError(f"A map needs {FEWEST} photographs; {len(files)} given.")
    if len(files) <= at_most:
        return list(files)
    return [files[k] for k in sorted(np.random.default_rng(seed).choice(len(files), at_most, replace=False))]


def _thumbnails(paths: Sequence[str], features: Floats) -> tuple[list[str], Floats, list[Image.Image], dict[str, str]]:
    """Open the photographs again and keep them small; leave out those that have gone meanwhile."""
    side = max(48, min(_LARGEST, int(math.sqrt(_KEPT / max(1, len(paths))))))
    kept, images, skipped = [], [], {}
    for row, path in enumerate(paths):
        try:
            image = open_image(path)
        except ImageError as error:
            skipped[path] = str(error).removeprefix(f"{path}: ")
            continue
        kept.append(row)
        images.append(small(image, within(image.size, (side, side))))
    return [paths[row] for row in kept], features[kept], images, skipped


def embedded(features: Floats, seed: int = 0) -> NDArray[np.float64]:
    """Place photographs in the plane by t-SNE, PCA-initialised; the perplexity is 30, or a third of fewer.

    Args:
        features: float32 (n, D), n ≥ 3.
        seed: Of t-SNE.

    Returns:
        float64 (n, 2).

    Raises:
        InvalidInputError: fewer than three, or scikit-learn is not installed.
    """
    if len(features) < FEWEST:
        raise InvalidInputError(f"A map needs {FEWEST} photographs; {len(features)} given.")
    centred = features - features.mean(1, keepdims=True)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    perplexity = min(30.0, max(1.0, (len(unit) - 1) / 3))
    tsne = need("sklearn.manifold", "A map", "discover").TSNE
    if not np.ptp(unit, 0).any():  # the same photograph again and again has no principal components
        return np.random.default_rng(seed).normal(size=(len(unit), 2))
    places = tsne(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(unit)
    return np.asarray(places, np.float64)


def _laid_out(places: NDArray[np.float64], grid: bool) -> tuple[Layout, NDArray[np.float64]]:
    """Bring places into 0 … 1, each axis by itself, and into cells where that is asked for."""
    low, high = places.min(0), places.max(0)
    share = (places - low) / np.maximum(high - low, 1e-9)
    columns, rows = cells(len(places))
    if grid:
        return Layout(columns, rows, True), snapped(share, columns, rows)
    # So far from the rims that no thumbnail is cut.
    margin = np.array([0.5 / columns, 0.5 / rows])
    return Layout(columns, rows, False), margin + share * (1 - 2 * margin)


def cells(photographs: int) -> tuple[int, int]:
    """Return (columns, rows) of a grid with some more cells than photographs."""
    wanted = max(photographs, round(ROOM * photographs))
    columns = max(1, math.ceil(math.sqrt(wanted * SHAPE)))
    return columns, math.ceil(wanted / columns)


def snapped(share: NDArray[np.float64], columns: int, rows: int) -> NDArray[np.float64]:
    """Give every place a cell of its own, so that the squares of the ways add up to the least.

    Args:
        share: float64 (n, 2), x and y in 0 … 1; n ≤ columns · rows.
        columns: Of the grid.
        rows: Of the grid.

    Returns:
        float64 (n, 2): the middles of the cells, in 0 … 1.
    """
    y, x = np.mgrid[:rows, :columns]
    middles = np.stack([(x.ravel() + 0.5) / columns, (y.ravel() + 0.5) / rows], 1)
    # In cells, so that a cell's step counts alike on both axes.
    ways = sum(((share[:, None, k] - middles[None, :, k]) * side) ** 2 for k, side in enumerate((columns, rows)))
    taken, cell = need("scipy.optimize", "A map", "discover").linear_sum_assignment(ways)
    found = np.empty_like(share)
    found[taken] = middles[cell]
    return found


def _record(collection: Collection, line: str) -> dict[str, object]:
    return {
        "made": line,
        "columns": collection.layout.columns,
        "rows": collection.layout.rows,
        "grid": collection.layout.grid,
        "photographs": [
            {"path": one.path, "x": round(one.x, 5), "y": round(one.y, 5), "label": one.label or None}
            for one in collection.placed
        ],
        "skipped": collection.skipped,
    }
