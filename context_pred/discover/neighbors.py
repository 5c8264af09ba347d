"""The nearest neighbours of photographs, or of patches of them, by normalised correlation of their features.

    context-pred neighbors photos/ photos/ --out neighbors
    context-pred neighbors photos/ photos/ --patches --layer feature4 --index photos.index --out neighbors

Source: Doersch, Gupta, Efros, ICCV 2015, section 4.1 and figure 4: 96 px patches compared by fc6. Here patches have the
size that the model was trained with, or whole images are compared, by any layer.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from context_pred import extract
from context_pred.data.images import open_image
from context_pred.errors import ImageError, InvalidInputError, check_whole_number, storing
from context_pred.extract.network import Network
from context_pred.pictures import save_png

from .grid import PatchGrid, too_long
from .index import Match, NeighborIndex
from .index_folder import MANIFEST
from .index_source import check_enough
from .neighbors_sheet import page_of, sheet
from .patches import cut_all, features_of, loaded, network_of
from .pictures.photographs import by_file, count, lies_in, made

if TYPE_CHECKING:
    from context_pred.model import ContextPredictionModel

__all__ = ["Neighbors", "run"]

PICTURE, PAGE, JSON = "neighbors.png", "index.html", "neighbors.json"

SHOWN_QUERIES, SHOWN_NEIGHBORS = 24, 10
"""The picture's most rows, and most neighbours in a row; the JSON file has them all."""

USUAL_K, USUAL_QUERIES = 5, 24


@dataclass(frozen=True)
class Neighbors:
    """The neighbours of each query; ``str()`` says what was done.

    Attributes:
        picture: The contact sheet, ``OUT/neighbors.png``.
        page: The same as a page, ``OUT/index.html``.
        json: All neighbours with their scores, ``OUT/neighbors.json``.
        asked: The queries: path, and of a patch its box; their scores are 1.
        matches: For each query its neighbours, nearest first.
        skipped: {path: reason} of the files that could not be opened, or that the index has and that are gone.
        shown: How many queries the picture shows.
        candidates: Among how many images the neighbours were sought.
        what: The model, layer and pooling.
    """

    picture: Path
    page: Path
    json: Path
    asked: tuple[Match, ...]
    matches: tuple[tuple[Match, ...], ...]
    skipped: dict[str, str]
    shown: int
    candidates: int
    what: str

    @property
    def queries(self) -> tuple[str, ...]:
        """The query images, as given."""
        return tuple(query.path for query in self.asked)

    @property
    def neighbors(self) -> tuple[tuple[tuple[str, float], ...], ...]:
        """For each query its neighbours, nearest first: (path, normalised correlation in −1 … 1)."""
        return tuple(tuple((match.path, match.score) for match in row) for row in self.matches)

    def __str__(self) -> str:
        """Say it in a paragraph."""
        most = max(map(len, self.matches))
        text = (
            f"{self.picture}: the {most} nearest of {count(self.candidates, 'image')} for "
            f"{count(len(self.asked), 'query', 'queries')} ({self.what}, normalised correlation); "
            f"as a page: {self.page}."
        )
        if self.shown < len(self.asked):
            text += f" The first {self.shown} are drawn; all are in {self.json}."
        if self.skipped:
            reasons = "; ".join(f"{path} ({reason})" for path, reason in list(self.skipped.items())[:10])
            more = f"; and {len(self.skipped) - 10} more, all in {self.json}" if len(self.skipped) > 10 else ""
            text += f" {count(len(self.skipped), 'file')} skipped: {reasons}{more}."
        return text


def run(
    query: str | Path | Sequence[str | Path],
    images: str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    model: ContextPredictionModel | str | Path,
    layer: str = "feature5",
    pool: str = "gap",
    k: int | None = None,
    patches: bool = False,
    grid: PatchGrid | None = None,
    queries: int | None = USUAL_QUERIES,
    seed: int = 0,
    index: str | Path | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> Neighbors:
    """Find the nearest images of each query image, or of patches of it, and draw them.

    Each file is opened once for its features, also where the queries are among the images; a query's own photograph is
    not its neighbour, and of each other one the nearest patch counts. Without ``index``, features lie in a temporary
    folder inside ``out`` meanwhile.

    Args:
        query: The query images, as ``find_images`` takes them: a folder, a glob pattern, a list file, or paths.
        images: The images to search, likewise.
        out: The folder to write ``neighbors.png``, ``neighbors.json`` and ``index.html`` into; made where it is
            missing.
        model: The model, or what ``load_pretrained`` takes.
        layer: The layer to compare.
        pool: "gap", "grid" or "none", as in ``extract.run``; a feature of several cells is compared cell by cell. Of
            patches "gap", "quarters" or "none", as in ``patch_features``.
        k: Neighbours of each query, no more than there are other images; None: 5, or as many as there are.
        patches: Compare patches of a grid instead of whole images.
        grid: Where patches lie; None: ``usual_grid``.
        queries: How many patches are drawn at random from the query images; None: every patch of their grids.
        seed: Of that draw.
        index: A folder where the index is kept: built of ``images`` the first time, and later brought up to date with
            those that it does not have; all that it has and that is still there is searched.
        batch_size: Images a batch; None: as in ``NeighborIndex.build``.
        workers: As in ``extract.run``.
        device: As in ``extract.run``.
        progress: Show a bar.

    Returns:
        The neighbours, and where the files lie.

    Raises:
        InvalidInputError: no images, nothing to compare a query with, fewer images than neighbours asked for, an index
            that was made otherwise or is damaged, or an argument that is not accepted.
        UnknownNameError: an unknown model, layer or pooling.
        ImageError: no query can be opened, or no image.
        StorageError: ``out`` or ``index`` cannot be written to.
    """
    for name, value, least in (("k", k, 1), ("queries", queries, 1), ("seed", seed, 0)):
        if value is not None:
            check_whole_number(name, value, least)
    if not isinstance(layer, str):
        raise InvalidInputError(f"layer={layer!r}; accepted: the name of one layer.")
    asked, among = (_by_file(source, out, index) for source in (query, images))
    model = loaded(model)
    folder = made(out)
    options: dict[str, Any] = {"workers": workers, "device": device, "progress": progress}
    with _temporary(folder) as temporary:
        searched = NeighborIndex.build(
            list(among.values()),
            model,
            out=Path(temporary) / "index" if index is None else index,
            layer=layer,
            pool=pool,
            patches=patches,
            grid=grid,
            batch_size=batch_size,
            **options,
        )
        if searched.grid is not None:
            network = network_of(model, searched.settings["layer"], pool, device)
            found, vectors, errors = _patch_queries(asked, network, searched.grid, queries, seed)
        else:
            found, vectors, errors = _image_queries(asked, searched, Path(temporary), batch_size or 32, options)
        if not found:
            path, reason = next(iter(errors.items()))
            raise ImageError(f"No query could be opened; the first: {path} ({reason}).")
        gone = {path for path in searched.paths if not os.path.exists(path)}
        errors = searched.errors | dict.fromkeys(sorted(gone), "in the index, and no longer there") | errors
        own = _own(found, searched)
        count = _count_of(k, searched, own, len(gone))
        shown = {file: str(path) for file, path in among.items()}  # as the caller names them
        matches = tuple(
            tuple(replace(match, path=shown.get(os.path.realpath(match.path), match.path)) for match in row)[:count]
            for row in _there(searched.nearest_images(vectors, count + len(gone), without=own), gone)
        )
        candidates = len(searched.paths) - len(gone)
    result = Neighbors(
        folder / PICTURE,
        folder / PAGE,
        folder / JSON,
        tuple(found),
        matches,
        {shown.get(os.path.realpath(path), path): reason for path, reason in errors.items()},
        min(len(found), SHOWN_QUERIES),
        candidates,
        f"{model.card.name}, {searched.settings['layer']}, {pool}",
    )
    _write_json(result, model.card.name, layer, pool, count)
    save_png(sheet(result, SHOWN_NEIGHBORS), result.picture)
    with storing(result.page):
        result.page.write_text(page_of(result, SHOWN_NEIGHBORS), encoding="utf-8")
    return result


Queries = tuple[list[Match], NDArray[np.float32], dict[str, str]]
"""Where the queries lie, their features, and {path: reason} of the files that could not be opened."""


def _image_queries(
    asked: Mapping[str, Path], index: NeighborIndex, folder: Path, batch_size: int, options: Mapping[str, Any]
) -> Queries:
    """Take the features of whole images from the index where it has them, and compute the others."""
    known = {os.path.realpath(path): row for row, path in enumerate(index.paths)}
    broken = {os.path.realpath(path): reason for path, reason in index.errors.items()}
    vectors: dict[str, NDArray[np.float32]] = {}
    there = [file for file in asked if file in known]
    vectors |= dict(zip(there, index.vectors([known[file] for file in there]), strict=True))
    errors = {str(asked[file]): broken[file] for file in asked if file in broken}
    others = {str(path): file for file, path in asked.items() if file not in known and file not in broken}
    if others and index.model is not None:
        layer, pool = index.settings["layer"], index.settings["pool"]
        try:
            summary = extract.run(
                list(others), index.model, out=folder / "queries", layers=(layer,), pool=pool, batch_size=batch_size,
                **options,
            )  # fmt: skip
        except ImageError:  # none of them can be opened
            return _only_known(asked, vectors, errors | {path: _why_not(path) for path in others})
        rows = extract.load(folder / "queries")[1][layer]
        vectors |= {others[path]: np.array(rows[i]).ravel() for i, path in enumerate(summary.paths)}
        errors |= summary.errors
    return _only_known(asked, vectors, errors)


def _why_not(path: str) -> str:
    """Say why a photograph cannot be opened; empty where it can."""
    try:
        open_image(path)
    except ImageError as error:
        return str(error).removeprefix(f"{path}: ")
    return ""


def _only_known(
    asked: Mapping[str, Path], vectors: Mapping[str, NDArray[np.float32]], errors: dict[str, str]
) -> Queries:
    files = [file for file in asked if file in vectors]
    stacked = np.stack([vectors[file] for file in files]) if files else np.zeros((0, 1), np.float32)
    return [Match(str(asked[file]), None, 1.0) for file in files], stacked, errors


def _patch_queries(
    asked: Mapping[str, Path], network: Network, grid: PatchGrid, most: int | None, seed: int
) -> Queries:
    """Compute the features of patches of the query images: drawn at random, images first, or all of their grids."""
    rng = np.random.default_rng(seed)
    paths = [str(path) for path in asked.values()]
    order = rng.permutation(len(paths)).tolist() if most is not None else range(len(paths))
    found: list[Match] = []
    vectors: list[NDArray[np.float32]] = []
    errors: dict[str, str] = {}
    for place, number in enumerate(order):
        path = paths[number]
        try:
            image = open_image(path)
        except ImageError as error:
            errors[path] = str(error).removeprefix(f"{path}: ")
            continue
        if too_long(*image.size):
            errors[path] = too_long(*image.size)
            continue
        boxes = grid.boxes(image.height, image.width)
        rows = np.arange(len(boxes))
        if most is not None:
            share = -(-(most - len(found)) // (len(paths) - place))  # so that each image left has about as many
            rows = np.sort(rng.choice(len(boxes), min(share, len(boxes)), replace=False))
        vectors.append(features_of(network, cut_all(image, grid, network.transform.in_channels)[rows]))
        found += [Match(path, tuple(boxes[row].tolist()), 1.0) for row in rows]
        if most is not None and len(found) >= most:
            break
    return found, np.concatenate(vectors) if vectors else np.zeros((0, 1), np.float32), errors


def _own(found: Sequence[Match], index: NeighborIndex) -> list[int]:
    numbers = {os.path.realpath(path): number for number, path in enumerate(index.paths)}
    return [numbers.get(os.path.realpath(query.path), -1) for query in found]


def _there(matches: Sequence[Sequence[Match]], gone: Collection[str]) -> Iterator[list[Match]]:
    """Leave out the photographs that the index still has and that are gone: what is drawn can be looked at."""
    return ([match for match in row if match.path not in gone] for row in matches)


def _count_of(k: int | None, index: NeighborIndex, own: Sequence[int], gone: int) -> int:
    """Return how many neighbours each query gets; raise InvalidInputError where there are none or fewer than asked."""
    there = len(index.paths) - gone
    if not there:
        raise InvalidInputError(
            f"None of the {len(index.paths)} images in the index in {index.folder} is there any more."
        )
    if there == 1 and max(own) >= 0:
        raise InvalidInputError(
            f"The only image to search is the query itself ({index.paths[max(own)]}); at least one other is needed."
        )
    if k is None:
        return min(USUAL_K, there)
    check_enough(k, there, max(own) >= 0)
    return k


def _by_file(source: str | Path | Sequence[str | Path], out: str | Path, index: str | Path | None) -> dict[str, Path]:
    """Name each file once, by where it really lies, so that two ways to one file are one file.

    What an earlier call wrote, into ``out`` or its index, is left out where it lies among the photographs.
    """
    kept = os.path.realpath(index) + os.sep if index is not None and Path(index, MANIFEST).exists() else None

    def written(path: Path, real: str) -> bool:
        return lies_in(path, out, (PICTURE, PAGE, JSON)) or (kept is not None and real.startswith(kept))

    found = by_file(source, written)
    if not found:
        raise InvalidInputError(f"No images in {source!r} but what was written there before.")
    return found


def _temporary(folder: Path) -> tempfile.TemporaryDirectory[str]:
    with storing(folder):
        return tempfile.TemporaryDirectory(prefix=".features-", dir=folder, ignore_cleanup_errors=True)


def _write_json(result: Neighbors, model: str, layer: str, pool: str, k: int) -> None:
    record = {
        "model": model,
        "layer": layer,
        "pool": pool,
        "measure": "normalised correlation",
        "k": k,
        "images": result.candidates,
        "queries": [
            {**_place(query), "neighbors": [{**_place(match), "score": round(match.score, 6)} for match in row]}
            for query, row in zip(result.asked, result.matches, strict=True)
        ],
        "skipped": result.skipped,
    }
    with storing(result.json):
        result.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _place(match: Match) -> dict[str, Any]:
    box = {} if match.box is None else {"box": [round(v, 2) for v in match.box]}
    return {"path": match.path, **box}
