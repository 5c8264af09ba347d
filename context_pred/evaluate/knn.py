"""k nearest neighbours among frozen features, weighted by similarity.

The mean over positions of a layer, L2-normalised; of each test image the k training images with the highest cosine
similarity s vote for their class with weight exp(s / 0.07). Source: mmselfsup 0.8, ``tools/benchmarks/classification/
knn_imagenet``, after Wu et al. (CVPR 2018, section 3.4); METHOD C8.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from context_pred.errors import InvalidInputError
from context_pred.extract.network import find_device

from .features import Preprocessing, Resampling, read_rows
from .job import Job, Measurement, Result
from .settings import bytes_of

NAME = "knn"
LAYERS = "last"
DRAWS = False


@dataclass(frozen=True)
class Settings:
    """Every number of the protocol.

    Args:
        k: Neighbours that vote; numbers above the count of training images are left out.
        temperature: Of the weights exp(similarity / temperature).
        size: Side of the square that the network sees, cut from the centre after resizing to 8 / 7 of it.
        resampling: "pillow" (mmselfsup 0.x) or "opencv" (1.x); see ``Preprocessing``.
        chunk: Test images compared at once.
        memory: Bound of the features and similarities in memory, as "1GB".

    Raises:
        InvalidInputError: a number out of its range.
    """

    k: tuple[int, ...] = (10, 20, 100, 200)
    temperature: float = 0.07
    size: int = 224
    resampling: Resampling = "pillow"
    chunk: int = 500
    memory: str = "1GB"

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.k or min(self.k) < 1 or len(set(self.k)) != len(self.k):
            raise InvalidInputError(f"k = {list(self.k)}: accepted are different whole numbers from 1 up.")
        if self.temperature <= 0 or self.chunk < 1:
            raise InvalidInputError(
                f"temperature = {self.temperature}, chunk = {self.chunk}: accepted is a temperature above 0 and a "
                "chunk of 1 or more."
            )
        bytes_of(self.memory)
        Preprocessing(self.size)


def run(job: Job) -> Result:
    """Run the protocol on every layer of the job."""
    settings: Settings = job.settings
    bank_labels, labels = job.data.train.single, job.data.test.single
    ks = [k for k in settings.k if k <= len(bank_labels)]
    if not ks:
        raise InvalidInputError(
            f"k = {list(settings.k)}, but there are {len(bank_labels)} images to learn from; accepted are numbers up "
            f"to that, as --set k=1,{min(5, len(bank_labels))}."
        )
    preprocessing = Preprocessing(settings.size, resampling=settings.resampling)
    measured = []
    for layer in job.layers:
        bank = job.features("train", layer, preprocessing, "gap")
        queries = job.features("test", layer, preprocessing, "gap")
        similarity, index = job.ranks.lead(
            partial(
                nearest,
                bank,
                queries,
                max(ks),
                chunk=settings.chunk,
                memory=bytes_of(settings.memory),
                device=job.device,
                progress=job.progress,
            )
        )
        neighbors = torch.from_numpy(bank_labels)[index]
        for k in ks:
            first, fifth = accuracies(
                similarity[:, :k], neighbors[:, :k], labels, len(job.data.classes), settings.temperature
            )
            measured += [Measurement("top-1", first, layer, {"k": k}), Measurement("top-5", fifth, layer, {"k": k})]
    best = max((m for m in measured if m.metric == "top-1"), key=lambda m: m.value)
    left_out = [k for k in settings.k if k not in ks]
    notes = [f"k = {k} is left out: {len(bank_labels)} images to learn from." for k in left_out]
    return Result(NAME, job.variant, tuple(measured), best=best, details={"notes": notes} if notes else {})


def nearest(
    bank: NDArray[np.float32],
    queries: NDArray[np.float32],
    k: int,
    *,
    chunk: int = 500,
    memory: int = 10**9,
    device: str = "cpu",
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """Find the k rows of the bank with the highest cosine similarity to each query, exactly.

    The bank is read once, in blocks, and against each block the queries in chunks. What is in memory at once stays
    below ``memory`` bytes, but for the result and what the process has anyway; a quarter is left to the pages that
    the file is read through and to what the allocator holds on to.

    Args:
        bank: (n, …) float32, flattened row by row; memory-mapped or not.
        queries: (q, …) float32.
        k: At most n.
        chunk: Queries compared at once, fewer where memory is short.
        memory: In bytes.
        device: Where the products are computed.
        progress: Show a bar.

    Returns:
        Similarities float32 (q, k) in −1 … 1, falling along a row, and int64 (q, k) rows of the bank; of equal
        similarities the lowest row first.

    Raises:
        InvalidInputError: not even one row fits into the memory.
    """
    place = find_device(device)
    values = max(1, int(np.prod(bank.shape[1:])))
    rows, chunk = _blocks(len(bank), min(chunk, len(queries)), values, k, memory)
    best = torch.full((len(queries), k), -torch.inf)
    at = torch.full((len(queries), k), len(bank))
    bar = tqdm(total=len(bank) * len(queries), unit=" pairs", unit_scale=True, disable=not progress, leave=False)
    with bar:
        for first in range(0, len(bank), rows):
            block = _unit(bank, first, first + rows, place)
            for start in range(0, len(queries), chunk):
                asked = _unit(queries, start, start + chunk, place)
                mine = slice(start, start + len(asked))
                similarity, row = _top(asked @ block.T, k)
                both = torch.cat([best[mine], similarity.cpu()], 1)
                which = torch.cat([at[mine], row.cpu() + first], 1)
                # Stable: rows of earlier blocks stand first, and within a block lower rows do.
                order = both.sort(dim=1, descending=True, stable=True).indices[:, :k]
                best[mine], at[mine] = both.gather(1, order), which.gather(1, order)
                bar.update(len(asked) * len(block))
            del block  # before the next is read
    return best, at


def _blocks(bank: int, chunk: int, values: int, k: int, memory: int) -> tuple[int, int]:
    """Return the rows of a block of the bank, and of a chunk of queries, that take three quarters of the memory."""
    usable = memory - memory // 4
    while True:
        # Rows, normalised in place; similarities; one row of these as it is sorted; the candidates.
        fixed = chunk * (8 * values + 48 * k)
        rows = (usable - fixed) // (4 * values + 4 * chunk + 24)
        if rows >= min(bank, max(k, 256)) or (chunk == 1 and rows >= 1):
            return min(bank, rows), chunk
        if chunk == 1:
            raise InvalidInputError(
                f"memory = {memory:,} bytes: rows of {values:,} values need {16 * values + 64 * k + 40:,} at least."
            )
        chunk = max(1, chunk // 2)


def _unit(features: NDArray[np.float32], start: int, stop: int, device: torch.device) -> Tensor:
    rows = torch.from_numpy(read_rows(features, start, stop)).to(device)
    return rows.div_(rows.norm(dim=1, keepdim=True).clamp_min_(1e-12))


def _top(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest of each row, falling; of equal ones the lowest columns, and these first."""
    k = min(k, similarity.shape[1])
    values, columns = similarity.topk(min(k + 1, similarity.shape[1]), dim=1)
    # topk promises nothing of equal values: where the k-th and the next are equal, sort those rows whole.
    tied = values[:, k - 1] == values[:, k] if values.shape[1] > k else torch.zeros(len(values), dtype=torch.bool)
    columns = columns[:, :k].clone()
    for row in tied.nonzero().flatten().tolist():
        columns[row] = similarity[row].sort(descending=True, stable=True).indices[:k]
    columns = columns.sort(dim=1).values
    values = similarity.gather(1, columns)
    order = values.sort(dim=1, descending=True, stable=True)
    return order.values, columns.gather(1, order.indices)


def accuracies(
    similarity: Tensor, neighbors: Tensor, labels: NDArray[np.int64], classes: int, temperature: float
) -> tuple[float, float]:
    """Return top-1 and top-5 accuracy of the weighted vote.

    Args:
        similarity: float32 (q, k).
        neighbors: int64 (q, k): the neighbours' classes.
        labels: int64 (q,): the right ones.
        classes: How many there are; of classes with equal sums the lowest stands first, and one without a vote is no
            answer.
        temperature: Of the weights.
    """
    right = torch.from_numpy(labels)
    hits = torch.zeros(2, dtype=torch.int64)
    step = max(1, 10**7 // classes)
    for start in range(0, len(right), step):
        part = slice(start, start + step)
        votes = torch.zeros(len(right[part]), classes, dtype=torch.float64)
        weights = similarity[part].double()
        weights = ((weights - weights.amax(1, keepdim=True)) / temperature).exp()
        votes.scatter_add_(1, neighbors[part], weights)
        own = votes.gather(1, right[part, None])
        columns = torch.arange(classes)
        before = (votes > own).sum(1) + ((votes == own) & (columns < right[part, None])).sum(1)
        voted = (neighbors[part] == right[part, None]).any(1)
        hits += torch.stack([(voted & (before < 1)).sum(), (voted & (before < 5)).sum()])
    first, fifth = (hits.double() / len(right)).tolist()
    return first, fifth
