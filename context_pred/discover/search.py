"""The nearest rows of many vectors: by comparing all, or those that an inverted file holds in the nearest lists.

The inverted file is faiss' IVF with 4-bit product codes of residuals; the rows that seem best by their codes are then
compared by the vectors themselves. So only the codes are held in memory, and scores are exact: a row can be missed, but
none is scored wrongly.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from context_pred.errors import InvalidInputError
from context_pred.extras import need

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

EXACT_ROWS = 50_000
"""Below so many rows all are compared."""

PROBES = 64
"""Lists that a search of an inverted file looks into."""

FEWEST_CODED = 1024
"""Rows that an inverted file needs at least."""

ANEW = "Build the index anew with overwrite=True, or remove its folder."

_BLOCK, _QUERIES = 8192, 512
_MOST_LISTS, _ROWS_A_LIST, _SAMPLE_BYTES = 8192, 32, 256 << 20


def numbers_of(vectors: Any) -> Any:
    """Return vectors as an array, memory-mapped where they are; raise InvalidInputError for anything but numbers."""
    if isinstance(vectors, torch.Tensor):
        vectors = vectors.detach().cpu()
        vectors = (vectors.float() if vectors.dtype == torch.bfloat16 else vectors).numpy()
    try:
        array = np.asanyarray(vectors)
    except ValueError as error:
        raise InvalidInputError(f"Vectors that are no array: {error}") from error
    if array.ndim < 2 or array.dtype.kind not in "fiu":
        raise InvalidInputError(
            f"Vectors of shape {array.shape} and type {array.dtype}; accepted: numbers (n, …), a row a vector; of a "
            "single one vector[None]."
        )
    return array


def nearest(queries: Floats, bank: Floats, k: int) -> tuple[Floats, Rows]:
    """Find the rows of the bank with the largest dot product with each query, by comparing all, block by block.

    Args:
        queries: float32 (Q, D).
        bank: float32 (N, D), memory-mapped or not.
        k: How many.

    Returns:
        Scores, float32 (Q, k), falling along a row, and row numbers, int64 (Q, k); −∞ and −1 where N < k.
    """
    scores = torch.full((len(queries), k), -torch.inf)
    rows = torch.full((len(queries), k), -1)
    for start in range(0, len(queries), _QUERIES):
        asked = torch.from_numpy(np.ascontiguousarray(queries[start : start + _QUERIES]))
        best, at = scores[start : start + len(asked)], rows[start : start + len(asked)]
        for first in range(0, len(bank), _BLOCK):
            similarity = asked @ _tensor(bank[first : first + _BLOCK]).T
            found, columns = similarity.topk(min(k, similarity.shape[1]), dim=1)
            both = torch.cat([best, found], 1)
            best, order = both.topk(k, dim=1)
            at = torch.cat([at, columns + first], 1).gather(1, order)
        scores[start : start + len(asked)], rows[start : start + len(asked)] = best, at
    return scores.numpy(), rows.numpy()


def best_of_groups(query: Floats, bank: Floats, starts: Rows) -> tuple[Floats, Rows]:
    """Find the row with the largest dot product in each group of rows: ``starts[i]`` … ``starts[i + 1]``.

    Returns:
        Scores, float32 (groups,), and row numbers, int64 (groups,); −∞ and −1 for a group without rows.
    """
    similarity = np.concatenate(
        [(_tensor(bank[i : i + _BLOCK]) @ torch.from_numpy(query)).numpy() for i in range(0, len(bank), _BLOCK)]
    )
    rows = np.array([a + similarity[a:b].argmax() if b > a else -1 for a, b in pairwise(starts)])
    return np.where(rows < 0, -np.inf, similarity[rows]).astype(np.float32), rows.astype(np.int64)


def merged(found: list[tuple[Floats, Rows]], k: int) -> tuple[Floats, Rows]:
    """Merge what several banks gave, each (Q, …), into the k best of each query."""
    if len(found) == 1:
        return found[0]
    scores, rows = (np.concatenate(each, 1) for each in zip(*found, strict=True))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def write_codes(bank: Floats, path: Path, seed: int = 0) -> None:
    """Make the inverted file of a bank: lists and codes learned from a sample, then the rows added block by block.

    Args:
        bank: float32 (N, D), rows of length 1 (or 0), ``FEWEST_CODED`` or more.
        path: The file to write.
        seed: Of the sample.

    Raises:
        InvalidInputError: faiss is not installed.
    """
    faiss = _faiss()
    codes = min(256, -(-bank.shape[1] // 2))
    width = codes * -(-bank.shape[1] // codes)
    most = max(FEWEST_CODED, _SAMPLE_BYTES // (4 * width))
    lists = min(round(4 * math.sqrt(len(bank))), min(len(bank), most) // _ROWS_A_LIST, _MOST_LISTS)
    index = faiss.index_factory(width, f"IVF{lists},PQ{codes}x4fsr", faiss.METRIC_INNER_PRODUCT)
    index.cp.niter, index.cp.seed, index.cp.min_points_per_centroid = 10, seed, 1
    sample = np.random.default_rng(seed).choice(len(bank), lists * _ROWS_A_LIST, replace=False)
    index.train(_padded(bank[np.sort(sample)], width))
    for first in range(0, len(bank), _BLOCK):
        index.add(_padded(bank[first : first + _BLOCK], width))
    faiss.write_index(index, str(path))


class Codes:
    """An inverted file, opened.

    Args:
        path: What ``write_codes`` wrote.
        rows: How many rows it must have.

    Raises:
        InvalidInputError: faiss is not installed, or the file is none of its, or of other rows.
    """

    def __init__(self, path: Path, rows: int) -> None:
        faiss = _faiss()
        try:
            self._index: Any = faiss.read_index(str(path))
            found = self._index.ntotal, self._index.nlist
        except (RuntimeError, AttributeError) as error:
            raise InvalidInputError(f"{path} is damaged, or not of faiss. {ANEW}") from error
        if found[0] != rows:
            raise InvalidInputError(
                f"{path} is damaged: it has {found[0]:,} rows, and there are {rows:,} vectors. {ANEW}"
            )
        self._parameters = faiss.SearchParametersIVF
        self.lists: int = found[1]

    def search(self, queries: Floats, bank: Floats, k: int, probes: int) -> tuple[Floats, Rows]:
        """Find the rows that ``nearest`` finds, as far as they lie in the ``probes`` lists nearest to each query.

        Where these lists have too few rows, or a query of zeros is near to none, all rows are compared.
        """
        among = min(12 * k + 80, len(bank))
        parameters = self._parameters(nprobe=min(probes, self.lists))
        _, candidates = self._index.search(_padded(queries, self._index.d), among, params=parameters)
        candidates = np.sort(candidates, axis=1)  # as they lie on the disk
        exact = _compared(queries, bank, candidates)
        order = np.argsort(-exact, axis=1, kind="stable")[:, :k]
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        scores[:, : order.shape[1]] = np.take_along_axis(exact, order, 1)
        rows[:, : order.shape[1]] = np.take_along_axis(candidates, order, 1)
        short = np.flatnonzero(rows[:, min(k, len(bank)) - 1] < 0)
        if len(short):
            scores[short], rows[short] = nearest(queries[short], bank, k)
        return scores, rows


def _compared(queries: Floats, bank: Floats, candidates: Rows) -> Floats:
    """Dot products of each query with its candidates, (Q, among); −∞ where a candidate is −1."""
    exact = np.empty(candidates.shape, np.float32)
    bank = np.asarray(bank)  # NumPy's class of memory maps takes its time at every index
    for query, rows, found in zip(queries, candidates, exact, strict=True):
        np.dot(bank[rows], query, out=found)  # one query at a time stays in the processor's cache
    exact[candidates < 0] = -np.inf
    return exact


def _padded(rows: Floats, width: int) -> Floats:
    padded = np.zeros((len(rows), width), np.float32)
    padded[:, : rows.shape[1]] = rows
    return padded


def _tensor(rows: Floats) -> torch.Tensor:
    """Share the memory of rows; of read-only ones, copy them, since PyTorch has no read-only tensors."""
    return torch.from_numpy(rows if rows.flags.writeable else rows.copy())


def _faiss() -> Any:
    return need("faiss", f"An index of {EXACT_ROWS:,} vectors or more", extra="discover")
