"""The grid sampler: nine jittered patches of a square crop, as OpenMMLab's ``relative_loc`` cuts them.

Source: mmselfsup 0.x ``relative_loc`` data source and pipeline, and 1.x ``RandomPatchWithLabels``; the differences
between the versions are options of one class, named by the presets.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from context_pred.card import IMAGENET_MEAN, IMAGENET_STD, ChannelOrder
from context_pred.errors import InvalidInputError, unknown

from ._random import below, uniform
from .layout import adjacent_pairs, center_pairs
from .pairs import PatchDraw, PatchPairs, check_images, cut_boxes
from .shortcuts import cut_some_gray, luma_mean, luma_pil


@dataclass(frozen=True)
class GridPreset:
    """What differs between upstream's versions.

    ``shared_edge``: a cell's box includes its neighbour's first row and column (1.x: cells of 86, 86, 85 px).
    ``grayscale``: how three channels become one ("pil": Pillow's luma; "mean": the truncated mean of 1.x).
    """

    shared_edge: bool
    grayscale: Literal["pil", "mean"]
    mean: tuple[float, ...]
    std: tuple[float, ...]


PRESETS = {
    "openmmlab-0.x": GridPreset(False, "pil", IMAGENET_MEAN, IMAGENET_STD),
    "openmmlab-1.x": GridPreset(True, "mean", (124 / 255, 117 / 255, 104 / 255), (59 / 255, 58 / 255, 58 / 255)),
}


class GridPatchSampler:
    """Cut a 3×3 grid of jittered patches out of each image and pair them.

    A square of ``crop`` px is taken at random (image by image, where the image is larger), divided into nine cells,
    and a square of ``patch`` px is taken at random inside each cell. Positions are in raster order in every preset.

    Args:
        crop: Side of the square in px; upstream 255.
        patch: Side of a patch in px; upstream 64. At most the cell: ``crop // 3``.
        preset: "openmmlab-0.x" or "openmmlab-1.x".
        grayscale: Probability, per image, that all its patches turn grey (upstream .66).
        normalize: True gives float32 patches, (x − mean) / std with x in [0, 1]; False the input's dtype and range.
        mean: Per channel, for x in [0, 1]; None takes the preset's.
        std: Per channel, for x in [0, 1]; None takes the preset's.
        channel_order: "bgr" swaps the channels of the (RGB) input first, as mmselfsup 0.5–0.6 did.
        pairs: "center" asks about the eight neighbours of the centre; "adjacent" about all 40 directed pairs of
            adjacent cells.
        gap: (lo, hi), px between cells: an integer g is drawn for each image from lo … hi, both included; its cells
            are (crop − 2 g) // 3 px wide, one every cell + g px. (0, 0) is upstream's; preset "openmmlab-1.x", whose
            cells overlap, takes no other.

    Raises:
        InvalidInputError: an option out of its range.
    """

    def __init__(
        self,
        crop: int = 255,
        patch: int = 64,
        *,
        preset: str = "openmmlab-0.x",
        grayscale: float = 0.66,
        normalize: bool = True,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channel_order: ChannelOrder = "rgb",
        pairs: Literal["center", "adjacent"] = "center",
        gap: tuple[int, int] = (0, 0),
    ) -> None:
        if preset not in PRESETS:
            raise unknown("preset", preset, PRESETS)
        if pairs not in ("center", "adjacent"):
            raise unknown("choice of pairs", pairs, ("center", "adjacent"))
        if channel_order not in ("rgb", "bgr"):
            raise unknown("channel order", channel_order, ("rgb", "bgr"))
        if not 0 < patch <= crop // 3:
            raise InvalidInputError(f"patch={patch} does not fit a cell of crop // 3 = {crop // 3} px.")
        self.gap = _checked_gap(gap, crop, patch, PRESETS[preset].shared_edge)
        if not 0 <= grayscale <= 1:
            raise InvalidInputError(f"grayscale={grayscale} is no probability; accepted: 0 … 1.")
        defaults = PRESETS[preset]
        self.crop, self.patch, self.preset = crop, patch, preset
        self.grayscale, self.normalize = grayscale, normalize
        self.mean = tuple(defaults.mean if mean is None else mean)
        self.std = tuple(defaults.std if std is None else std)
        if len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise InvalidInputError(f"mean {self.mean} and std {self.std} need one value a channel, std above 0.")
        self.channel_order, self.pairs = channel_order, pairs

    def draw(self, sizes: Sequence[tuple[int, int]] | Tensor, generator: torch.Generator | None = None) -> PatchDraw:
        """Draw boxes for images of the given sizes; no pixel is needed.

        Args:
            sizes: (height, width) of each of the B images, in px.
            generator: Source of the random numbers; None is torch's own.

        Returns:
            The draw, on the CPU: nine boxes an image in raster order, 8 or 40 pairs an image, image by image.

        Raises:
            InvalidInputError: an image is smaller than ``crop``.
        """
        extent = torch.as_tensor(sizes, dtype=torch.int64).reshape(-1, 2)
        if len(extent) and int(extent.min()) < self.crop:
            height, width = extent[extent.min(1).values.argmin()].tolist()
            raise InvalidInputError(
                f"An image of {width}×{height} px is smaller than the square of {self.crop} px this sampler takes; "
                f"enlarge it (context_pred.data.transforms.resize) or use a smaller crop."
            )
        batch = len(extent)
        crop_at = below(extent - self.crop + 1, generator)  # (B, 2): y, x
        corner_of_cell, room = self._cells(batch, generator)
        top_left = crop_at[:, None] + corner_of_cell + below(room, generator)
        corner = top_left.flip(-1).reshape(-1, 2)
        grey = uniform((batch,), generator) < self.grayscale
        neighbor, center, position = torch.tensor(center_pairs() if self.pairs == "center" else adjacent_pairs()).T
        first = torch.arange(batch)[:, None] * 9
        return PatchDraw(
            boxes=torch.cat([corner, corner + self.patch], 1),
            image=torch.arange(batch).repeat_interleave(9),
            neighbor=(first + neighbor).flatten(),
            center=(first + center).flatten(),
            position=position.repeat(batch),
            grayscale=grey,
        )

    def _cells(self, batch: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return where the cells start in the crop and how many places a patch has in each, (B or 1, 9, 2) of y, x."""
        index = torch.cartesian_prod(torch.arange(3), torch.arange(3))
        lo, hi = self.gap
        if hi == 0:
            cell = self.crop // 3
            start = index * cell
            if PRESETS[self.preset].shared_edge:
                side = (start + cell).clamp(max=self.crop - 1) - start + 1
            else:
                side = torch.full((9, 2), cell)
            return start[None], (side - self.patch + 1).expand(batch, 9, 2)
        gap = lo + below(torch.full((batch, 1, 1), hi - lo + 1), generator)
        cell_side = (self.crop - 2 * gap) // 3
        return index * (cell_side + gap), (cell_side - self.patch + 1).expand(batch, 9, 2)

    def cut(self, images: Tensor, draw: PatchDraw) -> PatchPairs:
        """Cut the drawn boxes out of the images, on the images' device.

        Args:
            images: (B, C, H, W), RGB; uint8 in 0…255 or floating in 0…1.
            draw: From ``draw``, or boxes of one's own.

        Returns:
            The pairs; patches are float32, or as the input with ``normalize=False``.
        """
        check_images(images)
        if self.normalize and images.shape[1] != len(self.mean):
            raise InvalidInputError(f"Images of {images.shape[1]} channels, but a mean of {len(self.mean)} values.")
        draw = draw.to(images.device)
        cut = partial(self._cut, images)
        if draw.grayscale is not None and images.shape[1] == 3:
            luma = luma_pil if PRESETS[self.preset].grayscale == "pil" else luma_mean
            patches = cut_some_gray(cut, draw.boxes, draw.image, draw.grayscale[draw.image], luma)
        else:
            patches = cut(draw.boxes, draw.image)
        if self.normalize:
            patches = _normalized(patches, self.mean, self.std)
        return PatchPairs(patches, draw.neighbor, draw.center, draw.position, draw.boxes, draw.image)

    def _cut(self, images: Tensor, boxes: Tensor, image: Tensor) -> Tensor:
        patches = cut_boxes(images, boxes, image)
        return patches.flip(1) if self.channel_order == "bgr" else patches

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> PatchPairs:
        """Draw and cut: images (B, C, H, W) to pairs. A larger image than ``crop`` is cropped at random."""
        check_images(images)
        sizes = torch.tensor(images.shape[-2:]).expand(len(images), 2)
        return self.cut(images, self.draw(sizes, generator))

    def to_pixels(self, patches: Tensor) -> Tensor:
        """Undo the normalisation, for looking: patches of this sampler to float32 in 0…1, RGB."""
        if self.normalize:
            shape = (-1, 1, 1)
            patches = patches * patches.new_tensor(self.std).reshape(shape) + patches.new_tensor(self.mean).reshape(
                shape
            )
        elif patches.dtype == torch.uint8:
            patches = patches / 255.0
        patches = patches.to(torch.float32).clamp(0, 1)
        return patches.flip(1) if self.channel_order == "bgr" else patches

    def to_config(self) -> dict[str, Any]:
        """Return the sampler as plain values for a card; ``sampler_from_config`` makes it again."""
        names = ("preset", "crop", "patch", "grayscale", "normalize", "mean", "std", "channel_order", "pairs")
        values = {name: getattr(self, name) for name in names}
        if self.gap != (0, 0):
            values["gap"] = self.gap
        return {"type": "GridPatchSampler", **{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}}

    def __repr__(self) -> str:
        """Show every option."""
        options = ", ".join(f"{name}={value!r}" for name, value in self.to_config().items() if name != "type")
        return f"GridPatchSampler({options})"


def _checked_gap(gap: Sequence[int], crop: int, patch: int, shared_edge: bool) -> tuple[int, int]:
    try:
        lo, hi = (operator.index(bound) for bound in gap)
    except (TypeError, ValueError):
        raise InvalidInputError(f"gap={gap!r} must be two integers, (lo, hi), in px.") from None
    if not 0 <= lo <= hi:
        raise InvalidInputError(f"gap=({lo}, {hi}) must be (lo, hi) with 0 <= lo <= hi, in px.")
    if shared_edge and hi:
        raise InvalidInputError(
            f"gap=({lo}, {hi}) contradicts preset='openmmlab-1.x', whose cells share an edge; use 'openmmlab-0.x'."
        )
    cell = (crop - 2 * hi) // 3
    if cell < patch:
        raise InvalidInputError(
            f"gap=({lo}, {hi}) leaves cells of (crop − 2·{hi}) // 3 = {cell} px, less than the patch of {patch} px; "
            f"with crop={crop} the gap can be up to {(crop - 3 * patch) // 2} px."
        )
    return lo, hi


def _normalized(patches: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    top = 255.0 if patches.dtype == torch.uint8 else 1.0
    shape = (1, -1, 1, 1)
    center = torch.tensor(mean, dtype=torch.float32, device=patches.device).reshape(shape) * top
    scale = torch.tensor(std, dtype=torch.float32, device=patches.device).reshape(shape) * top
    return patches.to(torch.float32).sub_(center).div_(scale)
