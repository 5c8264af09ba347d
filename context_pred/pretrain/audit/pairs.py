"""The audit's questions about pairs: accuracy as trained, and after something that could give the answer away is gone.

Each question changes one thing. Questions of one geometry ask about the same boxes of the same photographs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from context_pred.geometry import (
    Geometry,
    Sampler,
    Size,
    as_trained,
    cut_each,
    papers,
    scaled,
    size_of,
    smallest,
    some_pairs,
)
from context_pred.model import ContextPredictionModel
from context_pred.patches import PatchDraw, PatchPairs, RandomPairSampler, sampler_from_config
from context_pred.pretext import CHANCE, PretextResult, Tally, student_t
from context_pred.training import keys

SIZES, BOXES, NOISE, PLACES = range(4)
"""What a random number of the audit is for: the second part of every key."""

EXAMPLES = 3


@dataclass(frozen=True)
class Treatment:
    """The pretext accuracy under one treatment.

    Attributes:
        name: "as_trained", "color", "gray", "borders", "middle", "inner", "two_images", "gap_none", "gap_half",
            "gap_whole" or "paper".
        title: The same in words.
        result: Accuracy, interval, confusion.
        against: The treatment it is compared with; None for those that stand alone.
        change: Accuracy minus the other's, both over the same photographs.
        change_low: Lower end of the change's 95 % interval over whole images.
        change_high: Upper end.
        lost: Which share of the other's accuracy above chance is gone; None where the other has none.
    """

    name: str
    title: str
    result: PretextResult
    against: str | None = None
    change: float | None = None
    change_low: float | None = None
    change_high: float | None = None
    lost: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**values, "result": self.result.to_dict()}


def wider_gaps(sampler: Sampler, size: int | None) -> list[Geometry]:
    """Return three geometries that differ in the gap alone, on photographs large enough for the widest."""
    half = round(sampler.patch / 2)
    config = sampler.to_config()
    gaps = {"gap_none": 0, "gap_half": half, "gap_whole": sampler.patch}
    samplers: dict[str, Sampler] = {}
    for name, gap in gaps.items():
        if isinstance(sampler, RandomPairSampler):
            samplers[name] = sampler_from_config({**config, "gap": sampler.gap + gap})
        else:
            least = sampler.gap[0]
            cell, apart = (sampler.crop - 2 * least) // 3, least + gap
            # Cells of 1.x overlap by a pixel, which leaves no room for a gap; 0.x' differ in nothing else.
            changed = {"preset": "openmmlab-0.x", "crop": 3 * cell + 2 * apart, "gap": (apart, apart)}
            samplers[name] = sampler_from_config({**config, **changed})
    large = size_of(sampler, size, smallest(samplers["gap_whole"]))
    return [Geometry(name, made, large) for name, made in samplers.items()]


class Photos:
    """Some opened photographs, scaled as a geometry asks, each with a draw of its own generator."""

    def __init__(
        self, numbers: Sequence[int], images: Sequence[Image.Image], *, seed: int, channels: int, device: torch.device
    ) -> None:
        self.numbers, self.images = list(numbers), list(images)
        self.seed, self.channels, self.device = seed, channels, device

    def generator(self, what: int, number: int) -> torch.Generator:
        """Return the generator of one photograph for one thing."""
        return keys.generator(self.seed, what, number)

    def scaled(self, size: Size) -> list[Tensor]:
        """Return each as uint8 (C, H, W) on the device: aspect kept, bilinear, averaging over the source's pixels."""
        found = []
        for number, image in zip(self.numbers, self.images, strict=True):
            sides = size(image.height, image.width, self.generator(SIZES, number))
            found.append(scaled(image, sides, self.channels).to(self.device))
        return found

    def draws(self, sampler: Sampler, images: Sequence[Tensor]) -> list[PatchDraw]:
        """Draw pairs in each, 256 at most; the same photograph and sampler give the same draw."""
        drawn = []
        for number, image in zip(self.numbers, images, strict=True):
            generator = self.generator(BOXES, number)
            drawn.append(some_pairs(sampler.draw([(image.shape[1], image.shape[2])], generator), generator))
        return drawn

    def cut(self, sampler: Sampler, images: Sequence[Tensor], draws: Sequence[PatchDraw]) -> PatchPairs:
        """Cut each photograph's draw and join the pairs; noise is the same whenever the same photographs are cut."""
        return cut_each(sampler, images, draws, self.generator(NOISE, self.numbers[0]))


class PairAudit:
    """Asks the model about every chunk of photographs under every treatment, and adds up.

    Args:
        model: In eval mode, with pair layers.
        sampler: The card's.
        size: Shorter side of the photographs in px; None: as the sampler's authors scaled them.
    """

    def __init__(self, model: ContextPredictionModel, sampler: Sampler, size: int | None) -> None:
        self.model, self.sampler = model, sampler
        self.own, self.gaps, self.paper = as_trained(sampler, size), wider_gaps(sampler, size), papers(sampler)
        self.rows: dict[str, _Row] = {}
        self.gray = 0
        """How many photographs have no colour."""

    @torch.no_grad()
    def add(self, photos: Photos) -> None:
        """Ask about some photographs."""
        images = photos.scaled(self.own.size)
        draws = photos.draws(self.own.sampler, images)
        pairs = photos.cut(self.sampler, images, draws)
        self._ask("as_trained", "as trained", photos, pairs)
        if photos.channels == 3:
            self.gray += sum(is_gray(image) for image in images)
            against = "as_trained"
            if self.sampler.grayscale:  # some of the photographs were grey already
                against = "color"
                colored = photos.cut(self.sampler, images, [_turned(draw, gray=False) for draw in draws])
                self._ask("color", "in colour", photos, colored, "as_trained")
            gray = photos.cut(self.sampler, images, [_turned(draw, gray=True) for draw in draws])
            self._ask("gray", "colour removed", photos, gray, against)
        for name, title, change in (
            ("borders", "borders blanked", blank_borders),
            ("middle", "middle blanked, as many pixels", blank_middle),
            ("inner", "inner 3/4, enlarged", only_inner),
        ):
            patches = change(pairs.patches)
            self._ask(name, title, photos, dataclasses.replace(pairs, patches=patches), "as_trained")
        self._ask("two_images", "centre from another image", photos, from_two_images(pairs))
        self._add_gaps(photos)
        if self.paper is not None:
            images = photos.scaled(self.paper.size)
            spread = photos.draws(self.paper.sampler, images)
            # As many photographs turn grey as in training, and the same ones.
            same = [dataclasses.replace(new, grayscale=own.grayscale) for new, own in zip(spread, draws, strict=True)]
            pairs = photos.cut(self.sampler, images, same)
            self._ask("paper", "the paper's geometry", photos, pairs, "as_trained")

    def _add_gaps(self, photos: Photos) -> None:
        images = photos.scaled(self.gaps[0].size)
        titles = {
            "gap_none": "larger photograph",
            "gap_half": "gap + 1/2 patch",
            "gap_whole": "gap + 1 patch",
        }
        for geometry in self.gaps:
            pairs = photos.cut(self.sampler, images, photos.draws(geometry.sampler, images))
            against = None if geometry.name == "gap_none" else "gap_none"
            self._ask(geometry.name, titles[geometry.name], photos, pairs, against)

    def _ask(self, name: str, title: str, photos: Photos, pairs: PatchPairs, against: str | None = None) -> None:
        row = self.rows.setdefault(name, _Row(title, against, {}, Tally(), []))
        if not len(pairs):
            return
        dtype = next(self.model.parameters()).dtype
        logits = self.model(dataclasses.replace(pairs, patches=pairs.patches.to(dtype)))
        image = pairs.image[pairs.neighbor]
        row.tally.add(logits, pairs.position, image)
        hit = (logits.argmax(1) == pairs.position).double().cpu()
        image = image.cpu()
        count = len(photos.numbers)
        hits = torch.zeros(count, dtype=torch.float64).index_add_(0, image, hit)
        asked = torch.zeros(count, dtype=torch.float64).index_add_(0, image, torch.ones_like(hit))
        for number, h, m in zip(photos.numbers, hits.tolist(), asked.tolist(), strict=True):
            row.by_image[number] = (h, m)
        if not row.examples:
            row.examples = self._examples(pairs)

    def _examples(self, pairs: PatchPairs) -> list[tuple[Tensor, Tensor, int]]:
        """Choose a pair of each of the first images, another position each: center, neighbor uint8, position."""
        found = []
        for i in range(EXAMPLES):
            mine = (pairs.image[pairs.neighbor] == i) & (pairs.position == (1, 4, 5)[i % 3])
            for pair in mine.nonzero()[:1, 0].tolist():
                both = pairs.patches[torch.stack([pairs.center[pair], pairs.neighbor[pair]])]
                center, neighbor = self.sampler.to_pixels(both.float()).mul(255).round().to(torch.uint8).cpu()
                found.append((center, neighbor, int(pairs.position[pair])))
        return found

    def results(self) -> tuple[Treatment, ...]:
        """Return every treatment that had pairs, compared with the one it is to be compared with."""
        results = {name: row.tally.result() for name, row in self.rows.items() if len(row.tally)}
        return tuple(self._compared(name, result, results) for name, result in results.items())

    def _compared(self, name: str, result: PretextResult, results: dict[str, PretextResult]) -> Treatment:
        row = self.rows[name]
        if row.against is None or row.against not in results:
            return Treatment(name, row.title, result)
        other = results[row.against].accuracy
        half = half_width(row.by_image, self.rows[row.against].by_image)
        change = result.accuracy - other
        # Below one point above chance a share of it is a share of noise.
        lost = -change / (other - CHANCE) if other > CHANCE + 0.01 else None
        return Treatment(name, row.title, result, row.against, change, change - half, change + half, lost)


@dataclass
class _Row:
    title: str
    against: str | None
    by_image: dict[int, tuple[float, float]]
    tally: Tally
    examples: list[tuple[Tensor, Tensor, int]]


def half_width(one: dict[int, tuple[float, float]], other: dict[int, tuple[float, float]]) -> float:
    """Compute half the 95 % interval of the difference of two accuracies, over whole images, paired.

    With h hits of m pairs an image and accuracies p = Σh / Σm: var = n / (n − 1) Σ (r_i − s_i)², where
    r_i = (h_i − p m_i) / Σm, and s_i likewise of the other.

    Args:
        one: {image: (hits, pairs)}.
        other: Likewise; an image that one of them lacks counts as without a pair there.
    """
    numbers = sorted({*one, *other})
    residuals = []
    for counts in (one, other):
        hits, pairs = torch.tensor([counts.get(number, (0.0, 0.0)) for number in numbers], dtype=torch.float64).T
        residuals.append((hits - hits.sum() / pairs.sum() * pairs) / pairs.sum())
    n = len(numbers)
    if n < 2:
        return 1.0
    variance = n / (n - 1) * (residuals[0] - residuals[1]).square().sum()
    return student_t(n - 1) * math.sqrt(float(variance))


def _turned(draw: PatchDraw, *, gray: bool) -> PatchDraw:
    return dataclasses.replace(draw, grayscale=torch.tensor([gray]))


def is_gray(image: Tensor) -> bool:
    """Tell whether a photograph (3, H, W), uint8, has no colour: in all but a thousandth of it none above 8 levels."""
    spread = image.amax(0) - image.amin(0)
    return bool((spread > 8).double().mean() <= 0.001)


def blank_borders(patches: Tensor) -> Tensor:
    """Set a frame of an eighth of the side to zero, which in normalised patches is the mean of all images."""
    width = border(patches.shape[-1])
    blanked = torch.zeros_like(patches)
    blanked[..., width:-width, width:-width] = patches[..., width:-width, width:-width]
    return blanked


def blank_middle(patches: Tensor) -> Tensor:
    """Set a square in the middle to zero that has as many pixels as the frame of ``blank_borders``."""
    side = patches.shape[-1]
    kept = side - 2 * border(side)
    middle = round(math.sqrt(side * side - kept * kept))
    start = (side - middle) // 2
    blanked = patches.clone()
    blanked[..., start : start + middle, start : start + middle] = 0
    return blanked


def only_inner(patches: Tensor) -> Tensor:
    """Cut the frame off and enlarge what is left to the whole side, bilinearly."""
    side = patches.shape[-1]
    width = border(side)
    inner = patches[..., width:-width, width:-width]
    return F.interpolate(inner, size=(side, side), mode="bilinear", align_corners=False)


def border(side: int) -> int:
    """Return the frame's width in px: an eighth of the patch."""
    return max(1, round(side / 8))


def from_two_images(pairs: PatchPairs) -> PatchPairs:
    """Give each pair the centre of another image's pair of the same position; pairs without such are left out."""
    neighbors, centers, positions = [], [], []
    for position in range(8):
        pair = (pairs.position == position).nonzero()[:, 0]
        if not len(pair):
            continue
        image = pairs.image[pairs.center[pair]]
        # Pairs come image by image, so a shift by the longest run leads every pair to another image.
        other = pair.roll(-int(image.bincount().max()))
        differs = pairs.image[pairs.center[other]] != image
        neighbors.append(pairs.neighbor[pair[differs]])
        centers.append(pairs.center[other[differs]])
        positions.append(pairs.position[pair[differs]])
    if not neighbors:
        return pairs
    return dataclasses.replace(
        pairs, neighbor=torch.cat(neighbors), center=torch.cat(centers), position=torch.cat(positions)
    )
