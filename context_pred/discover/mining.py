"""What recurs in a collection: constellations of four patches, matched in every photograph, verified, ranked, selected.

Source: Doersch, Gupta, Efros, ICCV 2015, section 4.4 ("Visual Data Mining"); METHOD A5.5.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from context_pred.errors import InvalidInputError, storing
from context_pred.extract.network import find_device

from .constellations import fit_squares
from .grid import Floats
from .patches import Patches, normalized

Ints = NDArray[np.int64]

_BLOCK = 256  # constellations that are matched at once, and kept as one part
_BYTES = 32 << 20  # of similarities at once: they are looked through while a cache has most of them
_ROWS = 65_536  # that are prepared at once


@dataclass(frozen=True)
class Search:
    """The numbers of the search; the defaults are the paper's.

    Args:
        constellations: How many are drawn, at random, of all that there are.
        photographs: The strongest matches that are verified, the constellation's own photograph among them.
        centered: Subtract the collection's mean feature before correlating; the paper does not.
        seed: Of the draw.

    Raises:
        InvalidInputError: a number out of its range.
    """

    constellations: int = 16_384
    photographs: int = 100
    centered: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, least in (("constellations", 1), ("photographs", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise InvalidInputError(f"{name}={getattr(self, name)}; accepted: {least} or more.")


@dataclass(frozen=True)
class Matches:
    """What was found for each constellation, the most similar photograph first; −1 stands where fewer verify.

    Attributes:
        rows: int64 (n, 4): its patches, as rows of ``Patches``; upper left, upper right, lower left, lower right.
        images: int64 (n, photographs): the photographs that keep its layout.
        matched: int64 (n, photographs, 4): the rows of the patches that matched there.
        similarity: float32 (n, photographs): the mean of the four correlations, −1 … 1.
        error: float32 (n, photographs): of the fitted square, as ``fit_squares`` has it.
    """

    rows: Ints
    images: Ints
    matched: Ints
    similarity: Floats
    error: Floats

    @property
    def verified(self) -> Ints:
        """How many photographs keep the layout, (n)."""
        found: Ints = (self.images >= 0).sum(1)
        return found

    @property
    def score(self) -> Floats:
        """The mean similarity of those photographs, (n); 0 where there are none."""
        found: Floats = self.similarity.sum(1) / np.maximum(self.verified, 1)
        return found


def draw(patches: Patches, count: int, seed: int) -> Ints:
    """Draw constellations: int64 (n, 4), rows of four patches of one scale that touch, two by two.

    Raises:
        InvalidInputError: no photograph has room for one.
    """
    step = patches.grid.touching
    places = [
        (first, columns, rows - step, columns - step)
        for scales in patches.scales
        for first, rows, columns in scales
        if min(rows, columns) > step
    ]
    counts = np.cumsum([down * right for _, _, down, right in places])
    if not len(counts):
        raise InvalidInputError(
            "No photograph has room for four patches that touch, two by two: its shorter side must be 2 patches or "
            f"more at one scale, and sides={patches.grid.sides}."
        )
    generator = np.random.default_rng(seed)
    total = int(counts[-1])
    chosen = np.sort(generator.choice(total, min(count, total), replace=False))
    place = np.searchsorted(counts, chosen, side="right")
    first, columns, down, right = np.array(places)[place].T
    within = chosen - (counts[place] - down * right)
    corner = first + within // right * columns + within % right
    found: Ints = np.stack([corner, corner + step, corner + step * columns, corner + step * columns + step], 1)
    return found


def match(
    patches: Patches, search: Search, *, out: Path, device: str | torch.device = "auto", progress: bool = True
) -> Matches:
    """Match every constellation in every photograph; what was found is kept in ``out``, and a stopped call goes on.

    For each of the four patches the most similar patch of each photograph counts, wherever it lies; the photographs
    with the highest mean of the four are verified by the layout of these matches.
    """
    rows = draw(patches, search.constellations, search.seed)
    blocks = [rows[first : first + _BLOCK] for first in range(0, len(rows), _BLOCK)]
    parts = [out / f"part-{number:05d}.npz" for number in range(len(blocks))]
    with storing(out):
        out.mkdir(parents=True, exist_ok=True)
    missing = [number for number, part in enumerate(parts) if not _is_there(part)]
    if missing:
        finder = _Finder(patches, search, out / "prepared.npy", find_device(device))
        done = sum(len(block) for number, block in enumerate(blocks) if number not in set(missing))
        with tqdm(total=len(rows), initial=done, unit=" constellations", desc="matching", disable=not progress) as bar:
            for number in missing:
                _keep(finder.find(blocks[number]), parts[number])
                bar.update(len(blocks[number]))
        (out / "prepared.npy").unlink(missing_ok=True)
    loaded = [np.load(part) for part in parts]
    return Matches(**{field.name: np.concatenate([part[field.name] for part in loaded]) for field in fields(Matches)})


def _is_there(part: Path) -> bool:
    try:
        with np.load(part) as stored:
            return {field.name for field in fields(Matches)} <= set(stored.files)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return False


def _keep(found: Matches, part: Path) -> None:
    with storing(part, " What was matched before is kept: make room, and the same command goes on."):
        temporary = part.with_name(f"{part.stem}.{os.getpid()}.tmp.npz")
        try:
            np.savez(temporary, **{field.name: getattr(found, field.name) for field in fields(Matches)})
            os.replace(temporary, part)
        finally:
            temporary.unlink(missing_ok=True)


class _Finder:
    """A collection's features, prepared for normalised correlation; photographs with equally many patches together.

    Args:
        patches: The collection.
        search: The numbers of the search.
        file: Where the prepared features lie, memory-mapped.
        device: Where to correlate.
    """

    def __init__(self, patches: Patches, search: Search, file: Path, device: torch.device) -> None:
        self.patches, self.search, self.device = patches, search, device
        self.counts = np.diff(patches.starts)
        self.groups = [np.flatnonzero(self.counts == count) for count in np.unique(self.counts[self.counts > 0])]
        self.features = self._prepare(file)

    def _prepare(self, file: Path) -> Floats:
        features = self.patches.features
        spans = [slice(first, first + _ROWS) for first in range(0, len(features), _ROWS)]
        mean = np.sum([features[span].sum(0, dtype=np.float64) for span in spans], 0) / len(features)
        with storing(file):
            prepared: Floats = np.lib.format.open_memmap(file, "w+", np.float32, features.shape)
            for span in spans:
                prepared[span] = normalized(features[span] - mean if self.search.centered else features[span])
        return prepared

    def prepared(self, rows: Ints) -> Tensor:
        """Features of some rows, (n, D), on the device."""
        return torch.from_numpy(self.features[rows]).to(self.device)

    def lots(self, queries: int) -> Iterator[tuple[Ints, int]]:
        """Yield photographs with equally many patches, as many as memory is for, and that number of patches."""
        for group in self.groups:
            count = int(self.counts[group[0]])
            size = max(1, _BYTES // (4 * queries * count))
            for first in range(0, len(group), size):
                yield group[first : first + size], count

    @torch.inference_mode()
    def find(self, rows: Ints) -> Matches:
        unique, inverse = np.unique(rows, return_inverse=True)
        queries = self.prepared(unique)
        best = torch.empty(len(unique), len(self.counts), device=self.device)
        where = torch.empty(len(unique), len(self.counts), dtype=torch.int64, device=self.device)
        best.fill_(-torch.inf)
        for photographs, count in self.lots(len(unique)):
            starts = self.patches.starts[photographs]
            theirs = self.prepared((starts[:, None] + np.arange(count)).ravel())
            found = (queries @ theirs.T).view(len(unique), len(photographs), count).max(-1)
            at = torch.from_numpy(photographs).to(self.device)
            best[:, at] = found.values
            where[:, at] = found.indices + torch.from_numpy(starts).to(self.device)
        return self.verified(rows, best, where, torch.from_numpy(inverse.reshape(rows.shape)).to(self.device))

    def verified(self, rows: Ints, best: Tensor, where: Tensor, patch: Tensor) -> Matches:
        """Take the strongest photographs of each constellation, and keep those that hold its layout."""
        similarity = torch.stack([best[patch[:, corner]] for corner in range(4)]).mean(0)
        most = min(self.search.photographs, similarity.shape[1])
        strongest = similarity.topk(most, dim=1)
        places = [where[patch[:, corner, None], strongest.indices] for corner in range(4)]
        matched = torch.stack(places, 2).cpu().numpy()
        boxes = self.patches.boxes[matched.ravel()].reshape(*matched.shape, 4).astype(np.float64)
        centers, sides = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]).mean((-2, -1))
        squares = fit_squares(centers, sides)
        near = strongest.values.cpu().numpy()
        holds = squares.verified & np.isfinite(near)
        order = np.argsort(~holds, axis=1, kind="stable")
        kept = np.take_along_axis(holds, order, 1)

        def verified(values: NDArray[Any], missing: int) -> NDArray[Any]:
            more = [1] * (values.ndim - 2)
            taken = np.take_along_axis(values, order.reshape(*order.shape, *more), 1)
            return np.where(kept.reshape(*kept.shape, *more), taken, missing).astype(values.dtype)

        images = strongest.indices.cpu().numpy()
        error = squares.error.astype(np.float32)
        return Matches(rows, verified(images, -1), verified(matched, -1), verified(near, 0), verified(error, 0))
