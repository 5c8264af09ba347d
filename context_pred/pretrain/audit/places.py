"""The audit's question about single patches: do their features tell where in the photograph they were seen?

The paper's experiment (Doersch, Gupta, Efros, ICCV 2015, section 4.2 and figure 5) trained a network to regress the
absolute place, and found that chromatic aberration tells it. Here the network is frozen and a ridge regression reads
its features, so that the question is what *this* network has learned to see.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from context_pred.geometry import Geometry
from context_pred.model import ContextPredictionModel
from context_pred.patches import PatchDraw
from context_pred.patches._random import below
from context_pred.patches.shortcuts import grayscale_pil, project_colors
from context_pred.pretext import student_t

from .pairs import PLACES, Photos

PER_IMAGE = 16
"""Patches of each photograph."""

FOLDS = 5
STRENGTHS = tuple(10.0**k for k in range(-4, 3))
"""Ridge penalties tried, per patch and standardised feature."""

BEST = 0.1
"""Share of the photographs that the paper reports: those placed best."""


@dataclass(frozen=True)
class Distance:
    """How far predicted places are from the true ones.

    Attributes:
        rmse: Root of the mean squared distance; the photograph's reachable places run from 0 to 1 an axis.
        chance: The same for the mean of the training places: about .289 an axis, .408 for both.
        below: 1 − rmse / chance: 0 for chance, 1 for every place known.
        low: Lower end of its 95 % interval over whole images.
        high: Upper end.
    """

    rmse: float
    chance: float
    below: float
    low: float
    high: float


@dataclass(frozen=True)
class Places:
    """The absolute places of patches, predicted from their features under one treatment of colour.

    Attributes:
        name: "color", "projected" (no green–magenta axis) or "gray".
        title: The same in words.
        both: Over both axes, as the paper has it.
        x: Left to right: a photograph's content says little about it, the lens much.
        y: Top to bottom: skies are above, which is no cheating.
        best: Mean RMSE over the 10 % of the images placed best (the paper: .255 in colour, .321 projected).
        chance_best: The mean place's, over the 10 % of images where that is best (the paper's chance: .371, with
            another normalisation of the places).
        images: How many images.
        patches: How many patches.
    """

    name: str
    title: str
    both: Distance
    x: Distance
    y: Distance
    best: float
    chance_best: float
    images: int
    patches: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dataclasses.asdict(self)


class PlaceAudit:
    """Collects features of patches at random places of whole photographs.

    Args:
        model: In eval mode.
        geometry: As trained: how photographs are scaled and patches cut.
    """

    def __init__(self, model: ContextPredictionModel, geometry: Geometry) -> None:
        self.model, self.geometry = model, geometry
        self.features: dict[str, list[Tensor]] = {}
        self.examples: dict[str, list[Tensor]] = {}
        self.places: list[Tensor] = []

    @torch.no_grad()
    def add(self, photos: Photos) -> None:
        """Take patches of some photographs, the same under each treatment."""
        images = photos.scaled(self.geometry.size)
        draws = []
        for number, image in zip(photos.numbers, images, strict=True):
            draw, place = self._draw(image, photos.generator(PLACES, number))
            draws.append(draw)
            self.places.append(place)
        treated = {"color": images}
        if photos.channels == 3:
            treated["projected"] = [project_colors(image) for image in images]
            treated["gray"] = [grayscale_pil(image) for image in images]
        sampler, layer = self.geometry.sampler, self.model.backbone.pair_layer
        dtype = next(self.model.parameters()).dtype
        for name, pixels in treated.items():
            patches = photos.cut(sampler, pixels, draws).patches
            vectors = self.model.embed(patches.to(dtype), layer).double().cpu()
            vectors = vectors.reshape(len(images), PER_IMAGE, -1)
            self.features.setdefault(name, []).extend(vectors)
            if name not in self.examples:
                shown = sampler.to_pixels(patches[:: PER_IMAGE // 4][:6].float())
                self.examples[name] = list(shown.mul(255).round().to(torch.uint8).cpu())

    def _draw(self, image: Tensor, generator: torch.Generator) -> tuple[PatchDraw, Tensor]:
        """Draw boxes anywhere in an image, and their places: (PER_IMAGE, 2), x and y in 0…1."""
        patch = self.geometry.sampler.patch
        room = torch.tensor([image.shape[2] - patch, image.shape[1] - patch])
        corner = below((room + 1).expand(PER_IMAGE, 2), generator)
        none = torch.empty(0, dtype=torch.int64)
        draw = PatchDraw(
            torch.cat([corner, corner + patch], 1), torch.zeros(PER_IMAGE, dtype=torch.int64), none, none, none
        )
        return draw, corner / room.clamp(min=1).double()

    def results(self, seed: int, *, colorless: bool = False) -> tuple[Places, ...]:
        """Fit and test under each treatment; ``seed`` decides which images are fitted together.

        Of ``colorless`` photographs, as they are alone: there is nothing to project away.
        """
        titles = {"color": "in colour", "projected": "green-magenta projected away", "gray": "in grey"}
        treated = self.features
        if colorless:
            titles, treated = {"color": "as they are: grey"}, {"color": self.features["color"]}
        places = torch.stack(self.places)
        order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))
        fold = torch.empty_like(order)
        fold[order] = torch.arange(len(order)) % FOLDS
        return tuple(
            _result(name, titles[name], places, *cross_fitted(torch.stack(features), places, fold))
            for name, features in treated.items()
        )


def cross_fitted(features: Tensor, places: Tensor, fold: Tensor) -> tuple[Tensor, Tensor]:
    """Predict the places of each image by a ridge regression fitted to images of other folds.

    The penalty is chosen for each fold on the next one, by regressions on the remaining three; the regression on all
    four then predicts. Features are standardised over all patches, which uses no place.

    Args:
        features: float64 (n, q, D): q patches of n images.
        places: float64 (n, q, 2).
        fold: int64 (n,), 0 … 4.

    Returns:
        The predictions and, for chance, the mean place of the training images: both (n, q, 2).
    """
    flat = features.flatten(0, 1)
    spread = flat.std(0)
    x = (features - flat.mean(0)) / torch.where(spread > 1e-9 * (1 + flat.abs().max()), spread, torch.inf)
    sums = [_Sums.of(x[fold == k].flatten(0, 1), places[fold == k].flatten(0, 1)) for k in range(FOLDS)]
    predicted, mean = torch.empty_like(places), torch.empty_like(places)
    for k in range(FOLDS):
        following = (k + 1) % FOLDS
        inner = _Sums.total([sums[j] for j in range(FOLDS) if j not in (k, following)])
        held = fold == following
        errors = [(inner.fit(s)(x[held]) - places[held]).square().mean().item() for s in STRENGTHS]
        fitted = _Sums.total([sums[j] for j in range(FOLDS) if j != k])
        predicted[fold == k] = fitted.fit(STRENGTHS[errors.index(min(errors))])(x[fold == k])
        mean[fold == k] = fitted.y / fitted.n
    return predicted, mean


@dataclass(frozen=True)
class _Sums:
    """What a ridge regression needs of its rows, so that folds are added instead of fitted anew."""

    n: int
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> _Sums:
        return cls(len(x), x.sum(0), y.sum(0), x.T @ x, x.T @ y)

    @classmethod
    def total(cls, parts: list[_Sums]) -> _Sums:
        tensors = [torch.stack([getattr(part, name) for part in parts]).sum(0) for name in ("x", "y", "xx", "xy")]
        return cls(sum(part.n for part in parts), *tensors)

    def fit(self, strength: float) -> _Line:
        """Solve (XᵀX + n · strength · 1) W = XᵀY, both centred, so that the mean is not penalised."""
        mean_x, mean_y = self.x / self.n, self.y / self.n
        xx = self.xx - self.n * torch.outer(mean_x, mean_x)
        xx.diagonal().add_(self.n * strength)
        weight = torch.cholesky_solve(self.xy - self.n * torch.outer(mean_x, mean_y), torch.linalg.cholesky(xx))
        return _Line(mean_x, mean_y, weight)


@dataclass(frozen=True)
class _Line:
    mean_x: Tensor
    mean_y: Tensor
    weight: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.mean_x) @ self.weight + self.mean_y


def _result(name: str, title: str, places: Tensor, predicted: Tensor, mean: Tensor) -> Places:
    error, chance = ((each - places).square().mean(1) for each in (predicted, mean))  # (n, 2)
    best = max(1, math.ceil(BEST * len(places)))
    best_rmse, best_chance = (float(each.sum(1).sqrt().sort().values[:best].mean()) for each in (error, chance))
    both, x, y = (_distance(error[:, axes].sum(1), chance[:, axes].sum(1)) for axes in ([0, 1], [0], [1]))
    return Places(name, title, both, x, y, best_rmse, best_chance, len(places), places.shape[0] * places.shape[1])


def _distance(error: Tensor, chance: Tensor) -> Distance:
    """Compare mean squared errors (n,) with chance's; the interval is that of their ratio over images."""
    n, ratio = len(error), float(error.sum() / chance.sum())
    residuals = (error - ratio * chance).square().sum()
    half = student_t(n - 1) * math.sqrt(n / (n - 1) * float(residuals)) / float(chance.sum())
    low, high = (1 - math.sqrt(max(bound, 0.0)) for bound in (ratio + half, ratio - half))
    return Distance(
        rmse=float(error.mean().sqrt()),
        chance=float(chance.mean().sqrt()),
        below=1 - math.sqrt(ratio),
        low=low,
        high=high,
    )
