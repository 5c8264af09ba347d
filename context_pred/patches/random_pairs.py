"""The authors' sampler: pairs of adjacent patches with a gap and jitter, anywhere in a photograph.

Sources: Doersch, Gupta, Efros, ICCV 2015, sections 3 and 4.1 (preset "paper"); the authors' released code,
cdoersch/deepcontext at 5307282 (preset "deepcontext"), which differs from the paper's text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from context_pred.errors import InvalidInputError, unknown

from ._random import below, uniform
from .layout import OFFSETS
from .pairs import PatchDraw, PatchPairs, check_images, cut_boxes
from .shortcuts import CODE_RMS, Dropping, cut_some_gray, down_and_up, drop_colors, luma_pil, project_colors

FEWEST_PIXELS, MOST_PIXELS = 150_000, 450_000
"""The authors scale each photograph to a number of pixels drawn from this range."""

DROPPINGS = ("code", "paper", "none")
CAFFE_MEAN = (123 / 255, 117 / 255, 104 / 255)


@dataclass(frozen=True)
class RandomPairPreset:
    """What differs between the released code and the paper's text.

    ``layout``: "grids" pairs every patch of a jittered grid with its neighbours, in both directions; "single" draws
    each pair by itself. ``dropping``: the reading of colour dropping. ``resample_first``: down-and-up sampling comes
    before the colours are dropped (code) or after (paper). ``count``: grids or pairs an image.
    """

    layout: Literal["grids", "single"]
    dropping: Dropping
    resample_first: bool
    count: int


PRESETS = {
    "deepcontext": RandomPairPreset("grids", "code", True, 4),
    "paper": RandomPairPreset("single", "paper", False, 8),
}


class RandomPairSampler:
    """Cut pairs of adjacent patches, a gap apart and jittered, anywhere in each image.

    Preset "deepcontext" lays grids over the image: origin uniform in 0 … 143 px an axis, a cell every 144 px, each
    patch jittered by ±7 px and clamped into the image. Each patch is paired with the up-left, up, up-right and left
    ones, each pair in both directions, so one patch serves up to eight pairs; the number of pairs varies. A grid of a
    single cell gives a patch without a pair, as upstream.

    Preset "paper" draws each pair by itself: the position uniform among the eight, then the first patch uniform
    among the places where that neighbour fits, both jittered.

    ``normalize=True`` gives float32 patches in grey levels: with ``dropping="code"`` the kept channel's own mean
    subtracted and a root mean square of 50; otherwise ``mean`` subtracted, in −123 … 151.

    Args:
        preset: "deepcontext" (the released code) or "paper".
        patch: Side of a patch in px.
        gap: Between neighbouring patches, in px, before the jitter.
        jitter: Largest shift of a patch, in px an axis.
        count: Grids an image ("deepcontext", 4) or pairs an image ("paper", 8); None takes the preset's.
        dropping: "code", "paper" or "none", see ``shortcuts.drop_colors``; None takes the preset's, or "none" with
            ``projection=True``.
        projection: Remove the green–magenta axis instead, see ``shortcuts.project_colors``.
        grayscale: Probability, per image, that all its patches turn grey as Pillow's "L"; the authors never do.
        down_and_up: Probability, per patch, of down-and-up sampling, see ``shortcuts.down_and_up``.
        normalize: False returns the input's dtype and range; not with colour dropping or projection.
        mean: Per channel, for x in [0, 1]; None takes (123, 117, 104) / 255, which the released code declares.

    Raises:
        InvalidInputError: an option out of its range, or options that exclude one another.
        UnknownNameError: no such preset or reading.
    """

    def __init__(
        self,
        preset: str = "deepcontext",
        *,
        patch: int = 96,
        gap: int = 48,
        jitter: int = 7,
        count: int | None = None,
        dropping: str | None = None,
        projection: bool = False,
        grayscale: float = 0.0,
        down_and_up: float = 0.33,
        normalize: bool = True,
        mean: Sequence[float] | None = None,
    ) -> None:
        if preset not in PRESETS:
            raise unknown("preset", preset, PRESETS)
        defaults = PRESETS[preset]
        if dropping is None:
            dropping = "none" if projection else defaults.dropping
        if dropping not in DROPPINGS:
            raise unknown("reading of colour dropping", dropping, DROPPINGS)
        self.preset, self.patch, self.gap, self.jitter = preset, patch, gap, jitter
        self.count = defaults.count if count is None else count
        self.dropping, self.projection = dropping, projection
        self.grayscale, self.down_and_up, self.normalize = grayscale, down_and_up, normalize
        self.mean = tuple(CAFFE_MEAN if mean is None else mean)
        self._check_options()

    def _check_options(self) -> None:
        if self.patch <= 10 or self.gap < 0 or self.jitter < 0 or self.count < 1:
            raise InvalidInputError(
                f"patch={self.patch}, gap={self.gap}, jitter={self.jitter}, count={self.count}: a patch has more than "
                "10 px a side, gap and jitter are not negative, the count is at least 1."
            )
        for name in ("grayscale", "down_and_up"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidInputError(f"{name}={getattr(self, name)} is no probability; accepted: 0 … 1.")
        if len(self.mean) != 3:
            raise InvalidInputError(f"mean {self.mean} needs three values, one a channel.")
        if self.projection and self.dropping != "none":
            raise InvalidInputError(
                f"projection=True and dropping={self.dropping!r} exclude one another; with projection leave dropping "
                "out or pass dropping='none'."
            )
        if not self.normalize and (self.projection or self.dropping != "none"):
            used = "projection=True" if self.projection else f"colour dropping (dropping={self.dropping!r})"
            raise InvalidInputError(
                f"normalize=False returns pixels as they were given, which {used} cannot: its values are signed. "
                "Pass normalize=True, or dropping='none' and projection=False."
            )

    @property
    def smallest(self) -> int:
        """Every side of an image must exceed this many px: two patches, the gap and the jitter (247)."""
        return 2 * self.patch + self.gap + self.jitter

    def draw(self, sizes: Sequence[tuple[int, int]] | Tensor, generator: torch.Generator | None = None) -> PatchDraw:
        """Draw boxes and pairs for images of the given sizes; no pixel is needed.

        Args:
            sizes: (height, width) of each of the B images, in px; they may differ.
            generator: Source of the random numbers; None is torch's own.

        Returns:
            The draw, on the CPU, image by image. It can hold no pair where every grid has a single cell.

        Raises:
            InvalidInputError: an image that has a side of ``smallest`` px or fewer.
        """
        extent = torch.as_tensor(sizes, dtype=torch.int64).reshape(-1, 2)
        if len(extent) and int(extent.min()) <= self.smallest:
            height, width = extent[extent.min(1).values.argmin()].tolist()
            raise InvalidInputError(
                f"An image of {width}×{height} px (width×height) is too small: RandomPairSampler needs more than "
                f"{self.smallest} px a side (two patches of {self.patch}, a gap of {self.gap}, a jitter of "
                f"{self.jitter}). Enlarge it with context_pred.data.transforms.resize, to "
                f"{FEWEST_PIXELS:,} … {MOST_PIXELS:,} pixels as the authors do (patches.random_pairs.draw_size)."
            )
        drawn = self._draw_grids if PRESETS[self.preset].layout == "grids" else self._draw_single
        draw = drawn(extent, generator)
        if not self.grayscale:
            return draw
        grey = uniform((len(extent),), generator) < self.grayscale
        return PatchDraw(draw.boxes, draw.image, draw.neighbor, draw.center, draw.position, grey)

    def _draw_grids(self, extent: Tensor, generator: torch.Generator | None) -> PatchDraw:
        pitch = self.patch + self.gap
        image = torch.arange(len(extent)).repeat_interleave(self.count)
        extent = extent[image]  # (G, 2), one row a grid
        origin = below(torch.full_like(extent, pitch), generator)
        cells = (extent + self.gap - origin) // pitch
        rows, columns = cells.amax(0).tolist() if len(cells) else (0, 0)
        # Grids differ in size: shifts are drawn for the largest, and those of cells that a grid lacks are left out.
        there = (torch.arange(rows)[:, None] < cells[:, :1, None]) & (torch.arange(columns) < cells[:, 1:, None])
        shift = below(torch.full((len(cells), rows, columns, 2), 2 * self.jitter + 1), generator) - self.jitter
        cell = there.nonzero()  # (K, 3): grid, row, column
        grid, row, column = cell.unbind(1)
        corner = (origin[grid] + pitch * cell[:, 1:] + shift[there]).clamp_(min=0)
        corner = torch.minimum(corner, (extent - self.patch)[grid])
        # Every patch's number at its cell, in grids with a rim of −1 above, left and right.
        wide = columns + 2
        place = (grid * (rows + 1) + row + 1) * wide + column + 1
        number = torch.full((len(cells) * (rows + 1) * wide,), -1)
        number[place] = torch.arange(len(cell))
        # Up-left, up, up-right and left are positions 0 … 3; the same pair seen the other way is position 7 − k.
        visited = number[place[:, None] + torch.tensor([dy * wide + dx for dy, dx in OFFSETS[:4]])]
        later, position = (visited >= 0).nonzero().unbind(1)
        earlier = visited[later, position]
        return PatchDraw(
            boxes=self._boxes(corner),
            image=image[grid],
            neighbor=torch.stack([earlier, later], 1).flatten(),
            center=torch.stack([later, earlier], 1).flatten(),
            position=torch.stack([position, 7 - position], 1).flatten(),
        )

    def _draw_single(self, extent: Tensor, generator: torch.Generator | None) -> PatchDraw:
        image = torch.arange(len(extent)).repeat_interleave(self.count)
        room = extent[image] - self.patch  # (N, 2), the largest corner
        position = below(torch.full((len(image),), 8), generator)
        step = torch.tensor(OFFSETS)[position] * (self.patch + self.gap)
        lowest = (-step).clamp(min=0)
        first = lowest + below(room - step.abs() + 1, generator)
        corner = torch.stack([first, first + step], 1)  # (N, 2 patches, 2 axes)
        shift = below(torch.full_like(corner, 2 * self.jitter + 1), generator) - self.jitter
        corner = torch.minimum((corner + shift).clamp(min=0), room[:, None])
        first_index = torch.arange(len(image)) * 2
        return PatchDraw(self._boxes(corner), image.repeat_interleave(2), first_index + 1, first_index, position)

    def _boxes(self, corner: Tensor) -> Tensor:
        """Turn corners (…, 2) of y, x into boxes (K, 4) of x1, y1, x2, y2."""
        start = corner.reshape(-1, 2).flip(-1)
        return torch.cat([start, start + self.patch], 1)

    def cut(
        self, images: Tensor | Sequence[Tensor], draw: PatchDraw, generator: torch.Generator | None = None
    ) -> PatchPairs:
        """Cut the drawn boxes out of the images and prepare them, on the images' device.

        Args:
            images: (B, 3, H, W), or B tensors (3, H, W) of differing sizes; RGB, uint8 in 0…255 or floating in 0…1.
            draw: From ``draw``, or boxes of one's own.
            generator: Source of the noise, of the channels kept and of the sides sampled down to; on the CPU or on
                the images' device.

        Returns:
            The pairs; patches as the class says.

        Raises:
            InvalidInputError: images of another shape or dtype, boxes outside them.
        """
        batch = _checked(images)
        draw = draw.to(batch[0].device if len(batch) else "cpu")
        cut = partial(self._cut, batch)
        if draw.grayscale is None:
            patches = cut(draw.boxes, draw.image)
        else:
            patches = cut_some_gray(cut, draw.boxes, draw.image, draw.grayscale[draw.image], luma_pil)
        return PatchPairs(
            self._prepared(patches, generator), draw.neighbor, draw.center, draw.position, draw.boxes, draw.image
        )

    def _cut(self, images: Tensor | Sequence[Tensor], boxes: Tensor, image: Tensor) -> Tensor:
        if not len(image):
            return (images[0] if len(images) else torch.empty(0)).new_empty(0, 3, self.patch, self.patch)
        if isinstance(images, Tensor):
            return cut_boxes(images, boxes, image)
        if not 0 <= int(image.min()) <= int(image.max()) < len(images):
            raise InvalidInputError(f"An image index is outside the list of {len(images)} images.")
        mine = [torch.nonzero(image == i, as_tuple=True)[0] for i in range(len(images))]
        parts = [
            cut_boxes(one[None], boxes[index], torch.zeros_like(index))
            for one, index in zip(images, mine, strict=True)
            if len(index)
        ]
        return torch.cat(parts).index_select(0, torch.cat(mine).argsort())

    def _prepared(self, patches: Tensor, generator: torch.Generator | None) -> Tensor:
        if not self.normalize:
            return down_and_up(patches, self.down_and_up, generator)
        values = patches.to(torch.float32)
        if patches.dtype == torch.uint8:
            values = values / 255.0
        if PRESETS[self.preset].resample_first:
            return self._colored(down_and_up(values, self.down_and_up, generator), generator)
        return down_and_up(self._colored(values, generator), self.down_and_up, generator)

    def _colored(self, values: Tensor, generator: torch.Generator | None) -> Tensor:
        """Normalise patches in 0…1 to grey levels and drop, project or keep their colours."""
        if self.dropping == "code":
            return drop_colors(values, "code", generator)
        levels = (values - values.new_tensor(self.mean).reshape(3, 1, 1)) * 255.0
        if self.dropping == "paper":
            return drop_colors(levels, "paper", generator)
        return project_colors(levels) if self.projection else levels

    def __call__(self, images: Tensor | Sequence[Tensor], generator: torch.Generator | None = None) -> PatchPairs:
        """Draw and cut: a tensor (B, 3, H, W), or a list of (3, H, W) of differing sizes, to pairs.

        In a ``Dataset`` a single photograph is a list of one, or ``image[None]``.
        """
        batch = _checked(images)
        sizes = torch.tensor([image.shape[-2:] for image in batch]).reshape(-1, 2)
        return self.cut(batch, self.draw(sizes, generator), generator)

    def to_pixels(self, patches: Tensor) -> Tensor:
        """Undo the normalisation, for looking: patches of this sampler to float32 in 0…1, RGB.

        After ``dropping="code"`` the patch's brightness is unknown: mid-grey stands for the mean, and 0 … 1 spans four
        standard deviations of the kept channel.

        Args:
            patches: (K, C, p, p), as this sampler made them.

        Returns:
            float32 (K, C, p, p) in 0 … 1.
        """
        if not self.normalize:
            return patches.to(torch.float32) / (255.0 if patches.dtype == torch.uint8 else 1.0)
        if self.dropping == "code":
            return (patches / (4 * CODE_RMS * 3**0.5) + 0.5).clamp(0, 1)
        return (patches / 255.0 + patches.new_tensor(self.mean).reshape(3, 1, 1)).clamp(0, 1)

    def to_config(self) -> dict[str, Any]:
        """Return the sampler as plain values for a card; ``sampler_from_config`` makes it again."""
        names = ("preset", "patch", "gap", "jitter", "count", "dropping", "projection", "grayscale", "down_and_up")
        values = {name: getattr(self, name) for name in names}
        return {"type": "RandomPairSampler", **values, "normalize": self.normalize, "mean": list(self.mean)}

    def __repr__(self) -> str:
        """Show every option."""
        options = ", ".join(f"{name}={value!r}" for name, value in self.to_config().items() if name != "type")
        return f"RandomPairSampler({options})"


def draw_size(
    height: int,
    width: int,
    generator: torch.Generator | None = None,
    pixels: tuple[int, int] = (FEWEST_PIXELS, MOST_PIXELS),
) -> tuple[int, int]:
    """Draw the size that the authors scale a photograph to before they sample it.

    A number of pixels T is drawn uniformly from 150,000 … 450,000; each side becomes int(side · √(T / area)).

    Args:
        height: Of the photograph, in px.
        width: Of the photograph, in px.
        generator: Source of the random number; None is torch's own.
        pixels: The fewest and the most pixels; the authors' by default.

    Returns:
        (height, width); a photograph longer than about 2.5 : 1 can still have a side too short to sample.
    """
    if height < 1 or width < 1:
        raise InvalidInputError(f"A photograph has at least 1×1 px, not {width}×{height}.")
    fewest, most = pixels
    target = fewest + int(below(torch.tensor(most - fewest + 1), generator))
    scale = (target / (height * width)) ** 0.5
    return int(height * scale), int(width * scale)


def _checked(images: Tensor | Sequence[Tensor]) -> Tensor | Sequence[Tensor]:
    """Return the images if they are RGB and of one dtype and device; raise InvalidInputError otherwise."""
    if isinstance(images, Tensor):
        check_images(images)
        if images.shape[1] != 3:
            raise InvalidInputError(f"RandomPairSampler takes RGB images (B, 3, H, W), not {tuple(images.shape)}.")
        return images
    if not isinstance(images, Sequence) or not all(isinstance(image, Tensor) for image in images):
        raise InvalidInputError("RandomPairSampler takes a tensor (B, 3, H, W) or a list of tensors (3, H, W).")
    for image in images:
        if image.ndim != 3 or image.shape[0] != 3:
            raise InvalidInputError(f"Each image of a list has the shape (3, H, W), not {tuple(image.shape)}.")
        check_images(image[None])
        if (image.dtype, image.device) != (images[0].dtype, images[0].device):
            raise InvalidInputError("All images of a list need one dtype and one device.")
    return images
