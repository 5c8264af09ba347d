"""Where patches lie in whole photographs: as a model was trained, or in the paper's geometry scaled to its patch.

The audit and the protocol ``pretext`` both ask about photographs brought to size in this way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from .patches import GridPatchSampler, PatchDraw, PatchPairs, RandomPairSampler, joined
from .patches.random_pairs import draw_size

Sampler = GridPatchSampler | RandomPairSampler
Size = Callable[[int, int, torch.Generator], tuple[int, int]]
"""(height, width, generator) of a photograph → (height, width) it is scaled to."""

PAPER_PATCH, PAPER_JITTER = 96, 7
MOST_PAIRS = 256
"""The paper asks about so many pairs of each photograph; without a limit, one panorama outweighs all the others."""

ROOM = 292 / 255
"""OpenMMLab's shorter side of a photograph over the side of the square taken from it."""


@dataclass(frozen=True)
class Geometry:
    """Where patches lie: the sampler that draws them, and the size that photographs are scaled to before."""

    name: str
    sampler: Sampler
    size: Size


def as_trained(sampler: Sampler, size: int | None) -> Geometry:
    """Return the geometry of the card's own sampler; ``size`` is the photograph's shorter side."""
    return Geometry("as_trained", sampler, size_of(sampler, size))


def papers(sampler: Sampler) -> Geometry | None:
    """Return the paper's geometry scaled to the patch: a gap of half a patch, jitter, the photograph's pixels.

    None for a ``RandomPairSampler``, whose own geometry it is.
    """
    if isinstance(sampler, RandomPairSampler):
        return None
    patch = sampler.patch
    drawn = RandomPairSampler(
        "deepcontext",
        patch=patch,
        gap=round(patch / 2),
        jitter=round(PAPER_JITTER * patch / PAPER_PATCH),
        count=2,
        dropping="none",
        down_and_up=0.0,
    )
    return Geometry("paper", drawn, size_of(drawn, None))


def smallest(sampler: Sampler) -> int:
    """Return the shorter side in px that a photograph needs at least."""
    return sampler.crop if isinstance(sampler, GridPatchSampler) else sampler.smallest + 1


def size_of(sampler: Sampler, short: int | None, at_least: int = 0) -> Size:
    """Scale photographs as in training: to one shorter side, or to a random number of pixels as the authors do."""
    at_least = max(at_least, smallest(sampler))

    def of_grid(height: int, width: int, generator: torch.Generator) -> tuple[int, int]:
        target = short if short is not None else round(sampler.crop * ROOM)  # type: ignore[union-attr]
        return _to_short(height, width, max(target, at_least))

    def of_pairs(height: int, width: int, generator: torch.Generator) -> tuple[int, int]:
        if short is None:
            scale = sampler.patch / PAPER_PATCH
            height, width = (max(1, round(side * scale)) for side in draw_size(height, width, generator))
        return _to_short(height, width, max(short or min(height, width), at_least))

    return of_grid if isinstance(sampler, GridPatchSampler) else of_pairs


def _to_short(height: int, width: int, short: int) -> tuple[int, int]:
    scale = short / min(height, width)
    return max(short, round(height * scale)), max(short, round(width * scale))


def scaled(image: Image.Image, size: tuple[int, int], channels: int) -> Tensor:
    """Return a photograph as uint8 (C, height, width): bilinear, averaging over the source's pixels; grey for one."""
    height, width = size
    image = image.convert("L") if channels == 1 else image
    small = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
    return pixels.reshape(height, width, channels).permute(2, 0, 1).contiguous()


def some_pairs(draw: PatchDraw, generator: torch.Generator, most: int = MOST_PAIRS) -> PatchDraw:
    """Keep so many pairs of one image, chosen at random, and the boxes they need; a draw of fewer is not touched."""
    if len(draw.position) <= most:
        return draw
    return kept_pairs(draw, torch.randperm(len(draw.position), generator=generator)[:most].sort().values)


def kept_pairs(draw: PatchDraw, kept: Tensor) -> PatchDraw:
    """Keep some pairs, given by their numbers or as a mask, and the boxes they need."""
    ends = torch.stack([draw.neighbor[kept], draw.center[kept]])
    used = torch.zeros(len(draw.boxes), dtype=torch.bool)
    used[ends] = True
    number = used.cumsum(0) - 1
    return dataclasses.replace(
        draw,
        boxes=draw.boxes[used],
        image=draw.image[used],
        neighbor=number[ends[0]],
        center=number[ends[1]],
        position=draw.position[kept],
    )


def cut_each(
    sampler: Sampler, images: Sequence[Tensor], draws: Sequence[PatchDraw], noise: torch.Generator
) -> PatchPairs:
    """Cut each image's draw, whoever drew it, as ``sampler`` prepares patches, and join the pairs.

    Args:
        sampler: The model's own.
        images: (C, H, W) uint8, sizes may differ.
        draws: One for each image.
        noise: Of colour dropping.
    """
    draw = joined(draws).to(images[0].device)
    if isinstance(sampler, RandomPairSampler):
        return sampler.cut(list(images), draw, noise)
    parts = [sampler.cut(image[None], one).patches for image, one in zip(images, draws, strict=True)]
    return PatchPairs(torch.cat(parts), draw.neighbor, draw.center, draw.position, draw.boxes, draw.image)
