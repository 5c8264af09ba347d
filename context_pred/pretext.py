"""The pretext task in figures: its loss, its accuracy by position, and how sure the accuracy is.

Pairs of one photograph are not independent: a photograph of a regular façade is easy throughout, one of gravel hard.
So the 95 % interval is taken over whole images. With h_i hits among m_i pairs of image i, n images, and the accuracy
p = Σh / Σm, a ratio of two sums, the variance of p is estimated by linearisation (the ratio estimator of survey
sampling; Cochran, Sampling Techniques, 3rd edition, section 6.4):

    var(p) = n / (n − 1) · Σ (h_i − p m_i)² / (Σm)²

and the interval is Wilson's for the effective number of pairs, p (1 − p) / var(p), with Student's t for n − 1 degrees
of freedom in place of 1.96, so that it stays inside 0 … 1 and does not promise too much for few images.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import InvalidInputError, unknown
from .patches import GridPatchSampler, PatchDraw, PatchPairs, RandomPairSampler

__all__ = ["PretextResult", "measure", "pretext_loss"]

Precision = Literal["float32", "bfloat16", "float16", "float64"]

PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}

CHANCE = 1 / 8
"""The accuracy of guessing."""

_CELLS = 64


def pretext_loss(logits: Tensor, position: Tensor, reduction: Literal["mean", "sum", "none"] = "mean") -> Tensor:
    """Compute the cross entropy of the eight positions.

    Args:
        logits: (M, 8), floating. Half precisions are computed in float32; float64 stays.
        position: int64 (M,), 0…7.
        reduction: "mean" over the pairs, "sum", or "none" for one value a pair.

    Returns:
        A scalar, or (M,) for "none"; float32 or float64.

    Raises:
        UnknownNameError: no such reduction.

    Examples:
        >>> import torch
        >>> pretext_loss(torch.zeros(5, 8), torch.arange(5))  # guessing: log 8
        tensor(2.0794)
    """
    if reduction not in ("mean", "sum", "none"):
        raise unknown("reduction", str(reduction), ("mean", "sum", "none"))
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(wide, position, reduction=reduction)


@dataclass(frozen=True)
class PretextResult:
    """The pretext accuracy of some pairs.

    Attributes:
        accuracy: Share of the pairs whose position is predicted, 0…1; chance is .125.
        low: Lower end of its 95 % interval over whole images, as the module says.
        high: Upper end.
        loss: Mean cross entropy in nats; chance is ln 8 = 2.079.
        pairs: How many pairs.
        images: From how many images.
        by_position: The accuracy among the pairs of each position; NaN (None in ``to_dict``) where there were none.
        confusion: Counts of pairs: row the true position, column the predicted one.
    """

    accuracy: float
    low: float
    high: float
    loss: float
    pairs: int
    images: int
    by_position: tuple[float, ...]
    confusion: tuple[tuple[int, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = dataclasses.asdict(self)
        values["by_position"] = [None if math.isnan(share) else share for share in self.by_position]
        values["confusion"] = [list(row) for row in self.confusion]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PretextResult:
        """Make it again from ``to_dict``'s values.

        Args:
            values: What ``to_dict`` gave.
        """
        by_position = tuple(math.nan if share is None else float(share) for share in values["by_position"])
        confusion = tuple(tuple(int(count) for count in row) for row in values["confusion"])
        return cls(**{**values, "by_position": by_position, "confusion": confusion})

    def __str__(self) -> str:
        """Say it in a line."""
        return (
            f"{self.accuracy:.1%} ({self.low:.1%} … {self.high:.1%}) of {self.pairs:,} pairs of {self.images:,} images"
        )


class Tally:
    """A running count of predictions, batch by batch; tallies of several processes add up.

    One image's pairs must come in one call of ``add``: each call counts its images as new ones.

    The whole state is one float64 tensor of 69 sums, so that ``all_reduce`` of ``state()`` with the sum, given to
    ``load_state``, merges the processes:

    - 0…63: counts of (true position, predicted position), row by row;
    - 64: the sum of the losses;
    - 65: n, the images;
    - 66, 67, 68: over the images, Σ hits², Σ hits · pairs, Σ pairs².

    It lives where the logits do (on the CPU where a device has no float64) and adding waits for no device.
    """

    def __init__(self) -> None:
        self._sums = torch.zeros(_CELLS + 5, dtype=torch.float64)

    def add(self, logits: Tensor, position: Tensor, image: Tensor) -> None:
        """Count a batch of predictions.

        Args:
            logits: (M, 8), floating, any precision.
            position: int64 (M,), 0…7, the truth.
            image: int64 (M,), which image of this batch each pair is from.
        """
        if logits.ndim != 2 or logits.shape[1] != 8 or not position.shape == logits.shape[:1] == image.shape:
            raise InvalidInputError(
                f"Tally.add takes logits (M, 8), position (M,) and image (M,), not {tuple(logits.shape)}, "
                f"{tuple(position.shape)} and {tuple(image.shape)}."
            )
        if not len(logits):
            return
        logits = logits.detach()
        if logits.device.type == "mps":  # has no float64
            logits = logits.cpu()
        position, image = position.to(logits.device), image.to(logits.device)
        predicted = logits.argmax(1)
        hits, pairs, images = _by_image(predicted == position, image)
        cells = torch.arange(8, device=logits.device)
        counts = (position[:, None] == cells).double().T @ (predicted[:, None] == cells).double()
        loss = pretext_loss(logits, position, "none").double().sum()
        squares = torch.stack([loss, images, hits @ hits, hits @ pairs, pairs @ pairs])
        self._sums = self._sums.to(logits.device) + torch.cat([counts.flatten(), squares])

    def state(self) -> Tensor:
        """Return the sums, float64 (69,), a copy."""
        return self._sums.clone()

    def load_state(self, state: Tensor) -> None:
        """Take over sums: those of ``state()``, or the sum of several such."""
        if state.shape != self._sums.shape:
            raise InvalidInputError(f"A tally's state has {len(self._sums)} numbers, not {tuple(state.shape)}.")
        self._sums = state.detach().to(torch.float64).clone()

    def __len__(self) -> int:
        """Return how many pairs were counted."""
        return int(self._sums[:_CELLS].sum())

    def result(self) -> PretextResult:
        """Return the accuracy with its interval.

        Raises:
            InvalidInputError: no pair was counted.
        """
        sums = self._sums.tolist()
        confusion = [[int(v) for v in sums[8 * row : 8 * row + 8]] for row in range(8)]
        rows = [sum(row) for row in confusion]
        hits, pairs = sum(confusion[k][k] for k in range(8)), sum(rows)
        if not pairs:
            raise InvalidInputError("No pair was counted, so there is no accuracy.")
        loss, images, hits_hits, hits_pairs, pairs_pairs = sums[_CELLS:]
        low, high = interval(hits, pairs, int(images), hits_hits, hits_pairs, pairs_pairs)
        return PretextResult(
            accuracy=hits / pairs,
            low=low,
            high=high,
            loss=loss / pairs,
            pairs=pairs,
            images=int(images),
            by_position=tuple(confusion[k][k] / rows[k] if rows[k] else math.nan for k in range(8)),
            confusion=tuple(map(tuple, confusion)),
        )


def _by_image(hit: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return each image's hits and pairs, float64 (M,) padded with zeros, and how many images there are."""
    order = image.argsort()
    image, hit = image[order], hit[order].double()
    begins = torch.ones_like(image, dtype=torch.bool)
    begins[1:] = image[1:] != image[:-1]
    # At most as many images as pairs: sizes that depend on the data would make a GPU's queue wait.
    group = begins.cumsum(0) - 1
    hits = torch.zeros_like(hit).index_add_(0, group, hit)
    pairs = torch.zeros_like(hit).index_add_(0, group, torch.ones_like(hit))
    return hits, pairs, begins.double().sum()


def interval(
    hits: float, pairs: float, images: int, hits_hits: float, hits_pairs: float, pairs_pairs: float
) -> tuple[float, float]:
    """Compute the 95 % interval of hits / pairs over whole images; the module says how.

    Where the images' hit rates cannot be compared, the interval is that of as many independent pairs as there are
    images: for one image, and where every pair is a hit, or none is. So one image alone promises next to nothing.

    Args:
        hits: Σh.
        pairs: Σm, above 0.
        images: n.
        hits_hits: Σh².
        hits_pairs: Σhm.
        pairs_pairs: Σm².

    Returns:
        (low, high), within 0…1.
    """
    p = hits / pairs
    if images < 2 or p in (0.0, 1.0):
        effective = float(images)
    else:
        residuals = max(hits_hits - 2 * p * hits_pairs + p * p * pairs_pairs, 0.0)
        variance = images / (images - 1) * residuals / pairs**2
        # By chance the images can agree better than independent pairs would; that is not counted as knowledge.
        effective = min(p * (1 - p) / variance, pairs) if variance > 0 else pairs
    return _wilson(p, effective, student_t(images - 1) if images > 1 else 1.959964)


def _wilson(p: float, n: float, t: float) -> tuple[float, float]:
    middle = (p + t * t / (2 * n)) / (1 + t * t / n)
    half = t * math.sqrt(p * (1 - p) / n + t * t / (4 * n * n)) / (1 + t * t / n)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def student_t(freedom: int) -> float:
    """Return Student's t that 2.5 % exceed, within 1 % from two degrees of freedom on (Abramowitz & Stegun 26.7.5)."""
    z = 1.959964
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / float(freedom) ** k for k, term in enumerate(terms))


class Batch(Protocol):
    """What ``measure`` takes: images with the boxes drawn in them."""

    @property
    def images(self) -> Tensor | Sequence[Tensor]:
        """uint8 (B, 3, H, W), or B tensors (3, H, W) where the sampler takes such."""

    @property
    def draw(self) -> PatchDraw:
        """What a sampler's ``draw`` returned for these images."""


class Cutter(Protocol):
    """What cuts: ``RandomPairSampler``, or anything else that takes the noise's generator."""

    def cut(self, images: Tensor | Sequence[Tensor], draw: PatchDraw, generator: torch.Generator | None) -> PatchPairs:
        """Cut the drawn boxes out of the images."""


def tallied(
    model: nn.Module,
    batches: Iterable[Batch],
    sampler: GridPatchSampler | RandomPairSampler | Cutter,
    *,
    device: torch.device | str = "cpu",
    precision: str = "float32",
    seed: int = 0,
) -> Tally:
    """Count the predictions of a model in eval mode; ``measure`` with the sums, for merging processes.

    Args:
        model: Takes ``PatchPairs`` on ``device`` and returns logits (M, 8); a ``ContextPredictionModel``. Give the
            model itself, not its ``DistributedDataParallel``, whose processes would wait for one another.
        batches: Images with their draws; moved to ``device`` as they are and cut there.
        sampler: Cuts the patches.
        device: Where to compute.
        precision: "bfloat16" and "float16" compute with autocast; otherwise patches take the model's precision.
        seed: Of the noise in colour dropping, the same for every call.

    Returns:
        The counts. The modules' training modes are as before.
    """
    if precision not in PRECISIONS:
        raise unknown("precision", str(precision), PRECISIONS)
    device = torch.device(device)
    low = precision in ("bfloat16", "float16")
    dtype = torch.float32 if low else next((p.dtype for p in model.parameters()), torch.float32)
    noise = torch.Generator().manual_seed(seed)
    tally = Tally()
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, dtype=PRECISIONS[precision], enabled=low):
            for batch in batches:
                pairs = cut_batch(sampler, batch, device, noise)
                if len(pairs):
                    pairs = dataclasses.replace(pairs, patches=pairs.patches.to(dtype))
                    tally.add(model(pairs), pairs.position, pairs.image[pairs.center])
    finally:
        for module, training in modes:
            module.training = training
    return tally


def cut_batch(
    sampler: GridPatchSampler | RandomPairSampler | Cutter, batch: Batch, device: torch.device, noise: torch.Generator
) -> PatchPairs:
    """Move a batch's pixels to the device and cut its patches there; ``noise`` is colour dropping's."""
    images: Tensor | list[Tensor]
    if isinstance(batch.images, Tensor):
        images = batch.images.to(device, non_blocking=True)
    else:
        images = [image.to(device, non_blocking=True) for image in batch.images]
    if isinstance(sampler, GridPatchSampler):
        if not isinstance(images, Tensor):
            raise InvalidInputError("GridPatchSampler cuts a tensor (B, 3, H, W), not a list of images.")
        return sampler.cut(images, batch.draw)
    return sampler.cut(images, batch.draw, noise)


def measure(
    model: nn.Module,
    batches: Iterable[Batch],
    sampler: GridPatchSampler | RandomPairSampler | Cutter,
    *,
    device: torch.device | str = "cpu",
    precision: str = "float32",
    seed: int = 0,
) -> PretextResult:
    """Measure the pretext accuracy of a model in eval mode (dropout off); arguments as in ``tallied``.

    Args:
        model: As in ``tallied``: takes ``PatchPairs``, returns logits (M, 8).
        batches: Images with their draws.
        sampler: Cuts the patches.
        device: Where to compute.
        precision: "float32", "float64", "bfloat16" or "float16".
        seed: Of the noise in colour dropping.

    Returns:
        Accuracy with its 95 % interval over whole images, by position, and the confusion.

    Raises:
        InvalidInputError: no pair at all, or an unknown precision.
    """
    return tallied(model, batches, sampler, device=device, precision=precision, seed=seed).result()
