"""The nearest neighbours of photographs, exact, by normalised correlation of their features.

    context-pred neighbors photos/ photos/ --out neighbors

Source: Doersch, Gupta, Efros, ICCV 2015, section 4.1 and figure 4, which compares 96 px patches by fc6; here whole
images are compared, by any layer.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from context_pred import extract
from context_pred.data.files import find_images
from context_pred.data.images import open_image
from context_pred.errors import ImageError, InvalidInputError, storing
from context_pred.pictures import COLORS, FAINT, INK, PAPER, font, save_png

if TYPE_CHECKING:
    from context_pred.model import ContextPredictionModel

SHOWN_QUERIES, SHOWN_NEIGHBORS = 24, 10
"""The picture's most rows, and most neighbours in a row; the JSON file has them all."""

TILE, SPACE, MARGIN, CAPTION = 160, 10, 24, 30
"""Sides in px: a photograph, the space between two, the rim, the line under a photograph."""

_QUERY_BLOCK, _BANK_BLOCK = 1024, 8192


@dataclass(frozen=True)
class Neighbors:
    """The neighbours of each query; ``str()`` says what was done.

    Attributes:
        picture: The contact sheet, ``OUT/neighbors.png``.
        json: All neighbours with their scores, ``OUT/neighbors.json``.
        queries: The query images, as given.
        neighbors: For each query its neighbours, nearest first: (path, normalised correlation in −1 … 1).
        skipped: {path: reason} of the files that could not be opened.
        shown: How many queries the picture shows.
        candidates: Among how many images the neighbours were sought.
        what: The model, layer and pooling.
    """

    picture: Path
    json: Path
    queries: tuple[str, ...]
    neighbors: tuple[tuple[tuple[str, float], ...], ...]
    skipped: dict[str, str]
    shown: int
    candidates: int
    what: str

    def __str__(self) -> str:
        """Say it in a paragraph."""
        most = max(map(len, self.neighbors))
        text = (
            f"{self.picture}: the {most} nearest of {_count(self.candidates, 'image')} for "
            f"{_count(len(self.queries), 'query', 'queries')} ({self.what}, normalised correlation)."
        )
        if self.shown < len(self.queries):
            text += f" The first {self.shown} are drawn; all are in {self.json}."
        if self.skipped:
            reasons = "; ".join(f"{path} ({reason})" for path, reason in list(self.skipped.items())[:10])
            more = f"; and {len(self.skipped) - 10} more, all in {self.json}" if len(self.skipped) > 10 else ""
            text += f" {_count(len(self.skipped), 'file')} skipped: {reasons}{more}."
        return text


def run(
    query: str | Path | Sequence[str | Path],
    images: str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    model: ContextPredictionModel | str | Path,
    layer: str = "feature5",
    pool: str = "gap",
    k: int = 5,
    batch_size: int = 32,
    workers: int | None = None,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> Neighbors:
    """Find the nearest images of each query image, and draw them.

    Each file is opened once, also where the queries are among the images; a query is not its own neighbour. Features
    lie in a temporary folder inside ``out`` meanwhile.

    Args:
        query: The query images, as ``find_images`` takes them: a folder, a glob pattern, a list file, or paths.
        images: The images to search, likewise.
        out: The folder to write ``neighbors.png`` and ``neighbors.json`` into; made where it is missing.
        model: The model, or what ``load_pretrained`` takes.
        layer: The layer to compare.
        pool: "gap", "grid" or "none", as in ``extract.run``; a feature of several cells is compared cell by cell.
        k: Neighbours of each query; fewer where there are no more images.
        batch_size: Images a batch.
        workers: As in ``extract.run``.
        device: As in ``extract.run``.
        progress: Show a bar.

    Returns:
        The neighbours, and where the files lie.

    Raises:
        InvalidInputError: no images, nothing to compare a query with, or an argument that is not accepted.
        UnknownNameError: an unknown model, layer or pooling.
        ImageError: no query can be opened, or no image.
        StorageError: ``out`` cannot be written to.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InvalidInputError(f"k={k!r}; accepted: a whole number from 1 up.")
    if not isinstance(layer, str):
        raise InvalidInputError(f"layer={layer!r}; accepted: the name of one layer.")
    asked, among = _by_file(find_images(query)), _by_file(find_images(images))
    model = _loaded(model)
    folder = _made(Path(out))
    everything = [*asked.values(), *(path for file, path in among.items() if file not in asked)]
    with _temporary(folder) as temporary:
        summary = extract.run(
            everything,
            model,
            out=Path(temporary) / "features.safetensors",
            layers=(layer,),
            pool=pool,
            batch_size=batch_size,
            workers=workers,
            device=device,
            progress=progress,
        )
        paths, features = extract.load(Path(temporary) / "features.safetensors")
        row = {path: i for i, path in enumerate(paths)}
        queries = [file for file, path in asked.items() if str(path) in row]
        bank = [file for file in among if str(asked.get(file, among[file])) in row]
        _check_found(queries, bank, summary.errors)
        score, index = nearest(
            features[layer],
            [row[str(asked[file])] for file in queries],
            [row[str(asked.get(file, among[file]))] for file in bank],
            k,
        )
        # Neither the picture nor the JSON needs the features; the memory map must be closed before the folder goes.
        del features
    found = tuple(
        tuple((str(among[bank[j]]), float(s)) for s, j in zip(scores, columns, strict=True) if j >= 0)
        for scores, columns in zip(score.tolist(), index.tolist(), strict=True)
    )
    names = tuple(str(asked[file]) for file in queries)
    what = f"{model.card.name}, {layer}, {pool}"
    shown = min(len(names), SHOWN_QUERIES)
    result = Neighbors(
        folder / "neighbors.png", folder / "neighbors.json", names, found, summary.errors, shown, len(bank), what
    )
    _write_json(result, model.card.name, layer, pool, k)
    save_png(_sheet(result), result.picture)
    return result


def nearest(features: Any, queries: Sequence[int], bank: Sequence[int], k: int) -> tuple[Tensor, Tensor]:
    """Find each query's nearest rows by normalised correlation: means subtracted, lengths divided out, dot product.

    All pairs are compared, block by block, so memory stays bounded. A row is not its own neighbour.

    Args:
        features: (rows, …), floating; an array of NumPy's or of ``extract.load``. A row, flattened, is one vector.
        queries: Q row numbers.
        bank: N row numbers: where to search.
        k: Neighbours of each query.

    Returns:
        Scores, float32 (Q, k) in −1 … 1, falling along a row; and int64 (Q, k), indices into ``bank``. Where fewer than
        k rows are there to choose from, the score is −∞ and the index −1.
    """
    query_rows, bank_rows = np.asarray(queries, dtype=np.int64), np.asarray(bank, dtype=np.int64)
    scores = torch.full((len(query_rows), k), -torch.inf)
    indices = torch.full((len(query_rows), k), -1)
    for start in range(0, len(query_rows), _QUERY_BLOCK):
        mine = query_rows[start : start + _QUERY_BLOCK]
        left = _normalized(features[mine])
        best, at = scores[start : start + len(mine)], indices[start : start + len(mine)]
        for first in range(0, len(bank_rows), _BANK_BLOCK):
            theirs = bank_rows[first : first + _BANK_BLOCK]
            correlation = left @ _normalized(features[theirs]).T
            correlation[torch.from_numpy(mine[:, None] == theirs[None])] = -torch.inf
            columns = torch.arange(first, first + len(theirs)).expand(len(mine), -1)
            columns = columns.masked_fill(correlation == -torch.inf, -1)
            both = torch.cat([best, correlation], 1)
            best, order = both.topk(k, dim=1)
            at = torch.cat([at, columns], 1).gather(1, order)
        scores[start : start + len(mine)], indices[start : start + len(mine)] = best, at
    return scores, indices


def _normalized(rows: Any) -> Tensor:
    vectors = torch.from_numpy(np.array(rows, dtype=np.float32)).flatten(1)
    vectors = vectors - vectors.mean(1, keepdim=True)
    return torch.nn.functional.normalize(vectors, dim=1)


def _by_file(paths: Sequence[Path]) -> dict[str, Path]:
    """Name each file once, by where it really lies, so that two ways to one file are one file."""
    found: dict[str, Path] = {}
    for path in paths:
        found.setdefault(os.path.realpath(path), path)
    return found


def _loaded(model: ContextPredictionModel | str | Path) -> ContextPredictionModel:
    if isinstance(model, str | Path):
        from context_pred.zoo import load_pretrained

        return load_pretrained(model)
    return model


def _made(folder: Path) -> Path:
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _temporary(folder: Path) -> tempfile.TemporaryDirectory[str]:
    with storing(folder):
        return tempfile.TemporaryDirectory(prefix=".features-", dir=folder, ignore_cleanup_errors=True)


def _check_found(queries: Sequence[str], bank: Sequence[str], errors: dict[str, str]) -> None:
    for what, files in (("query", queries), ("image to search", bank)):
        if not files:
            path, reason = next(iter(errors.items()))
            raise ImageError(f"No {what} could be opened; the first: {path} ({reason}).")
    if len(bank) == 1 and set(queries) == set(bank):
        raise InvalidInputError(
            f"The only image to search is the query itself ({queries[0]}); at least one other is needed."
        )


def _write_json(result: Neighbors, model: str, layer: str, pool: str, k: int) -> None:
    record = {
        "model": model,
        "layer": layer,
        "pool": pool,
        "measure": "normalised correlation",
        "k": k,
        "images": result.candidates,
        "queries": [
            {"path": query, "neighbors": [{"path": path, "score": round(score, 6)} for path, score in found]}
            for query, found in zip(result.queries, result.neighbors, strict=True)
        ],
        "skipped": result.skipped,
    }
    with storing(result.json):
        result.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _sheet(result: Neighbors) -> Image.Image:
    """Draw a row a query: the query framed, then its neighbours with their scores; the photographs' middle squares."""
    columns = min(SHOWN_NEIGHBORS, max(map(len, result.neighbors)))
    step, left = TILE + SPACE, MARGIN + TILE + 3 * SPACE
    heading = 64
    size = (left + columns * step - SPACE + MARGIN, heading + result.shown * (TILE + CAPTION) + MARGIN)
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    title = f"Nearest neighbors of {result.shown} photographs among {result.candidates}"
    if result.shown < len(result.queries):
        title = f"Nearest neighbors of the first {result.shown} of {len(result.queries)} queries"
    pen.text((MARGIN, 12), _fitted(title, size[0] - 2 * MARGIN, 18), fill=INK, font=font(18))
    line = f"{result.what}; score: normalised correlation"
    pen.text((MARGIN, 34), _fitted(line, size[0] - 2 * MARGIN, 13), fill=(110, 110, 110), font=font(13))
    photo = lru_cache(maxsize=512)(_thumbnail)
    for i in range(result.shown):
        y = heading + i * (TILE + CAPTION)
        sheet.paste(photo(result.queries[i]), (MARGIN, y))
        pen.rectangle((MARGIN - 4, y - 4, MARGIN + TILE + 3, y + TILE + 3), outline=COLORS[0], width=4)
        _caption(pen, (MARGIN, y), "query", result.queries[i], COLORS[0])
        pen.line((left - 1.5 * SPACE, y, left - 1.5 * SPACE, y + TILE), fill=FAINT, width=1)
        for j, (path, score) in enumerate(result.neighbors[i][:columns]):
            sheet.paste(photo(path), (left + j * step, y))
            _caption(pen, (left + j * step, y), f"{score:.3f}", path, INK)
    return sheet


def _thumbnail(path: str) -> Image.Image:
    return ImageOps.fit(open_image(path), (TILE, TILE), Image.Resampling.LANCZOS)


def _caption(pen: ImageDraw.ImageDraw, at: tuple[int, int], text: str, path: str, color: tuple[int, int, int]) -> None:
    pen.text((at[0], at[1] + TILE + 4), text, fill=color, font=font(13))
    used = pen.textlength(text + "  ", font=font(13))
    name = _fitted(Path(path).stem, TILE - used, 12)
    pen.text((at[0] + used, at[1] + TILE + 5), name, fill=(110, 110, 110), font=font(12))


def _fitted(text: str, width: float, size: int) -> str:
    """Cut a text off where it would be wider than ``width`` px."""
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
