"""The grid sampler: nine jittered patches of a square crop, as OpenMMLab's ``relative_loc`` cuts them.

Source: mmselfsup 0.x ``relative_loc`` data source and pipeline, and 1.x ``RandomPatchWithLabels``; the differences
between the versions are options of one class, named by the presets.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from context_pred.card import IMAGENET_MEAN, IMAGENET_STD, ChannelOrder
from context_pred.errors import InvalidInputError, unknown

from ._random import uniform
from .layout import adjacent_pairs, center_pairs
from .pairs import PatchDraw, PatchPairs, check_images, cut_boxes
from .shortcuts import blank_outside, blur_chroma, cut_some_gray, draw_apertures, luma_mean, luma_pil

if TYPE_CHECKING:
    from numpy.typing import NDArray


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

UPSTREAM = {"gap": (0, 0), "yoked": False, "aperture": 0.0, "chroma_blur": 0.0}
"""The options beyond upstream, off. A card names those that are on."""


class GridPatchSampler:
    """Cut a 3×3 grid of jittered patches out of each image and pair them.

    A square of ``crop`` px is taken at random (image by image, where the image is larger), divided into nine cells,
    and a square of ``patch`` px is taken at random inside each cell. Positions are in raster order in every preset.

    ``yoked``, ``aperture`` and ``chroma_blur`` follow Mundhenk, Ho and Chen, CVPR 2018; ``gap`` and these three are no
    part of upstream. Whatever is off draws no random number, so the others' draws stay as they are.

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
        yoked: True shifts all nine patches of an image alike inside their cells ("yoked jitter"), so that the offsets
            between them are always the same; with overlapping cells, as far as the smallest cell allows.
        aperture: Probability, per patch, that only a square window of it stays, see ``shortcuts.draw_apertures``; the
            rest is the mean: 0 after the normalisation.
        chroma_blur: Probability, per image, that its patches' colours are blurred, see ``shortcuts.blur_chroma``.
            Patches that turn grey have no colours to blur.

    Raises:
        InvalidInputError: an option out of its range.
        UnknownNameError: no such preset or reading.

    Examples:
        >>> import torch
        >>> sampler = GridPatchSampler(crop=126, patch=32)
        >>> pairs = sampler(torch.zeros(2, 3, 160, 140, dtype=torch.uint8), torch.Generator().manual_seed(0))
        >>> pairs.patches.shape, len(pairs)
        (torch.Size([18, 3, 32, 32]), 16)
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
        yoked: bool = False,
        aperture: float = 0.0,
        chroma_blur: float = 0.0,
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
        for name, chance in (("grayscale", grayscale), ("aperture", aperture), ("chroma_blur", chroma_blur)):
            if not 0 <= chance <= 1:
                raise InvalidInputError(f"{name}={chance} is no probability; accepted: 0 … 1.")
        defaults = PRESETS[preset]
        self.crop, self.patch, self.preset = crop, patch, preset
        self.grayscale, self.normalize = grayscale, normalize
        self.yoked, self.aperture, self.chroma_blur = yoked, aperture, chroma_blur
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
        # NumPy's calls cost a third of PyTorch's, which is most of the time of drawing a single image.
        extent = torch.as_tensor(sizes, dtype=torch.int64).reshape(-1, 2).numpy()
        if len(extent) and extent.min() < self.crop:
            height, width = extent[extent.min(1).argmin()].tolist()
            raise InvalidInputError(
                f"An image of {width}×{height} px is smaller than the square of {self.crop} px this sampler takes; "
                f"enlarge it (context_pred.data.transforms.resize) or use a smaller crop."
            )
        batch = len(extent)
        crop_at = _below(extent - (self.crop - 1), generator)  # (B, 2): y, x
        start, room = _cells(self.crop, self.patch, self.gap, PRESETS[self.preset].shared_edge)
        if len(start) > 1:
            drawn = _below(np.full(batch, len(start)), generator)
            start, room = start[drawn], room[drawn]
        shifts = room.min(1, keepdims=True) if self.yoked else room
        shift = _below(np.broadcast_to(shifts, (batch, *shifts.shape[1:])), generator)
        corner = (crop_at[:, None] + start + shift)[..., ::-1].reshape(-1, 2)
        grey = uniform((batch,), generator) < self.grayscale
        aperture = draw_apertures(batch, 9, self.patch, self.aperture, generator) if self.aperture else None
        blur = uniform((batch,), generator) < self.chroma_blur if self.chroma_blur else None
        table, image = (indices.clone() for indices in _indices(self.pairs, batch))
        neighbor, center, position = table.unbind()
        return PatchDraw(
            boxes=torch.from_numpy(np.concatenate([corner, corner + self.patch], 1)),
            image=image,
            neighbor=neighbor,
            center=center,
            position=position,
            grayscale=grey,
            chroma_blur=blur,
            aperture=aperture,
        )

    def cut(self, images: Tensor, draw: PatchDraw) -> PatchPairs:
        """Cut the drawn boxes out of the images, on the images' device.

        Args:
            images: (B, C, H, W), RGB; uint8 in 0…255 or floating in 0…1.
            draw: From ``draw``, or boxes of one's own.

        Returns:
            The pairs; patches are float32, or as the input with ``normalize=False``.

        Raises:
            InvalidInputError: a draw of another number of images, or a box outside of its image.
        """
        check_images(images)
        fitting = images.shape[1] == len(self.mean)
        if not fitting and (self.normalize or draw.aperture is not None):
            raise InvalidInputError(f"Images of {images.shape[1]} channels, but a mean of {len(self.mean)} values.")
        draw = draw.to(images.device)
        patches = self._normalized(self._colored(images, draw))
        if draw.aperture is not None:
            patches = blank_outside(patches, draw.aperture, self._blank(patches.dtype))
        return PatchPairs(patches, draw.neighbor, draw.center, draw.position, draw.boxes, draw.image)

    def _colored(self, images: Tensor, draw: PatchDraw) -> Tensor:
        """Cut the patches, grey or with blurred colours where the draw says so; one channel or five have no colours."""
        cut = partial(self._cut, images)
        if images.shape[1] != 3:
            return cut(draw.boxes, draw.image)
        if draw.grayscale is None:
            patches, grey = cut(draw.boxes, draw.image), torch.zeros_like(draw.image, dtype=torch.bool)
        else:
            grey = draw.grayscale[draw.image]
            luma = luma_pil if PRESETS[self.preset].grayscale == "pil" else luma_mean
            patches = cut_some_gray(cut, draw.boxes, draw.image, grey, luma)
        if draw.chroma_blur is not None:
            (blurred,) = torch.nonzero(draw.chroma_blur[draw.image] & ~grey, as_tuple=True)
            patches = patches.index_copy(0, blurred, blur_chroma(patches[blurred]))
        return patches

    def _cut(self, images: Tensor, boxes: Tensor, image: Tensor) -> Tensor:
        patches = cut_boxes(images, boxes, image)
        return patches.flip(1) if self.channel_order == "bgr" else patches

    def _normalized(self, patches: Tensor) -> Tensor:
        if not self.normalize:
            return patches
        top = 255.0 if patches.dtype == torch.uint8 else 1.0
        mean, std = (patches.new_tensor(v, dtype=torch.float32).reshape(-1, 1, 1) * top for v in (self.mean, self.std))
        if patches.requires_grad:
            return (patches.to(torch.float32) - mean) / std
        block = len(patches)
        if block and patches.device.type == "cpu":
            # Blocks of a megabyte or two stay in the cache while they are changed twice.
            block = max(1, 2**17 // patches[0, 0].numel())
        normal = torch.empty(patches.shape, dtype=torch.float32, device=patches.device)
        for source, target in zip(torch.split(patches, block), torch.split(normal, block), strict=True):
            target.copy_(source).sub_(mean).div_(std)
        return normal

    def _blank(self, dtype: torch.dtype) -> list[float]:
        """Return the mean as a patch of that dtype shows it, one value a channel."""
        if self.normalize:
            return [0.0] * len(self.mean)
        return [round(255 * value) for value in self.mean] if dtype == torch.uint8 else list(self.mean)

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> PatchPairs:
        """Draw and cut: images (B, C, H, W) to pairs. A larger image than ``crop`` is cropped at random."""
        check_images(images)
        sizes = torch.tensor(images.shape[-2:]).expand(len(images), 2)
        return self.cut(images, self.draw(sizes, generator))

    def to_pixels(self, patches: Tensor) -> Tensor:
        """Undo the normalisation, for looking: patches of this sampler to float32 in 0…1, RGB.

        Args:
            patches: (K, C, p, p), as this sampler made them.

        Returns:
            float32 (K, C, p, p) in 0 … 1.
        """
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
        """Return the sampler as plain values for a card; ``sampler_from_config`` makes it again.

        Options beyond upstream are named only where they are on.
        """
        names = ("preset", "crop", "patch", "grayscale", "normalize", "mean", "std", "channel_order", "pairs")
        values = {name: getattr(self, name) for name in names}
        values |= {name: getattr(self, name) for name, usual in UPSTREAM.items() if getattr(self, name) != usual}
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


def _below(limit: NDArray[np.int64], generator: torch.Generator | None) -> NDArray[np.int64]:
    """``_random.below`` on arrays, from the same random numbers."""
    return (uniform(limit.shape, generator, dtype=torch.float64).numpy() * limit).astype(np.int64)


@cache
def _cells(
    crop: int, patch: int, gap: tuple[int, int], shared_edge: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where the cells start in the crop and how many places a patch has in each, for every gap of the range.

    Both are int64 (hi − lo + 1, 9, 2) of y, x; nobody may change them.
    """
    between = torch.arange(gap[0], gap[1] + 1)[:, None]
    side = ((crop - 2 * between) // 3).expand(-1, 3)
    start = torch.arange(3) * (side + between)
    if shared_edge:
        side = (start + side).clamp(max=crop - 1) - start + 1
    cell = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    return start[:, cell].numpy(), (side - patch + 1)[:, cell].numpy()


@lru_cache(8)  # one batch size for training, one for its last batch, and a single image
def _indices(pairs: str, batch: int) -> tuple[Tensor, Tensor]:
    """Return neighbor, center and position of all pairs, (3, batch · M), and the image of each patch, (9 · batch,).

    Nobody may change them.
    """
    table = torch.tensor(center_pairs() if pairs == "center" else adjacent_pairs()).T[:, None]
    first = torch.tensor([9, 9, 0])[:, None, None] * torch.arange(batch)[:, None]
    return (table + first).flatten(1), torch.arange(9 * batch) // 9
