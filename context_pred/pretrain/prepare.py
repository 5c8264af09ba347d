"""From an image file to the pixels and boxes that the network's patches are cut from: what a worker does."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from context_pred.data.decode import Photo
from context_pred.data.resampling import resize_window
from context_pred.errors import ImageError, InvalidInputError, unknown
from context_pred.patches import GridPatchSampler, PatchDraw, RandomPairSampler
from context_pred.patches._random import below, uniform
from context_pred.patches.grid import PRESETS
from context_pred.patches.random_pairs import draw_size
from context_pred.patches.shortcuts import luma_pil

MODES = ("resize", "pixels", "squares")


@dataclass(frozen=True)
class ImageOptions:
    """How a photograph is brought to the size that the sampler cuts at: a recipe's table ``[images]``.

    Args:
        mode: "resize": to one size (OpenMMLab); "pixels": to a random number of pixels (Doersch et al., section 4.1;
            ``patches.random_pairs.draw_size``); "squares": a random square of it, resized to the sampler's crop.
        resize: Of mode "resize": the shorter side in px.
        keep_ratio: Of mode "resize": False squashes to a square of ``resize`` px, as mmselfsup 1.x does.
        antialias: Of mode "resize": True averages over source pixels as Pillow does (mmselfsup 0.x); False samples
            bilinearly, as OpenCV's INTER_LINEAR (1.x).
        pixels: Of mode "pixels": the fewest and the most pixels.
        squares: Of mode "squares": the side's smallest and largest share of the photograph's shorter side; the
            logarithm of the side is uniform.
        flip: Probability that the image is mirrored, left to right, before the patches are drawn.
        exact_grey: True takes the grey of an image from its decoded and resized colours, as upstream does. False takes
            the brightness that a JPEG file stores, which makes loading about a seventh faster and differs by up to a
            dozen levels where colours were clipped (about a pixel of a hundred), elsewhere by one.

    Raises:
        UnknownNameError: another mode.
        InvalidInputError: a value out of its range.
    """

    mode: str = "resize"
    resize: int = 292
    keep_ratio: bool = True
    antialias: bool = True
    pixels: tuple[int, int] = (150_000, 450_000)
    squares: tuple[float, float] = (0.35, 1.0)
    flip: float = 0.0
    exact_grey: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise unknown("mode of the images", str(self.mode), MODES)
        for name, kind in (("pixels", int), ("squares", float)):  # lists, as TOML gives them, become tuples
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(_is_number(v) for v in value):
                raise InvalidInputError(f"{name}={value!r}; accepted: two numbers, the smaller first.")
            if any(kind(v) != v for v in value):
                raise InvalidInputError(f"{name}={value!r}; accepted: two whole numbers, the smaller first.")
            object.__setattr__(self, name, tuple(kind(v) for v in value))
        for name in ("keep_ratio", "antialias", "exact_grey"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidInputError(f"{name}={getattr(self, name)!r}; accepted: true or false.")
        if isinstance(self.resize, bool) or not isinstance(self.resize, int) or self.resize < 1:
            raise InvalidInputError(f"resize={self.resize!r}; accepted: a whole number of px from 1 up.")
        if not 1 <= self.pixels[0] <= self.pixels[1]:
            raise InvalidInputError(f"pixels={self.pixels}; accepted: 1 ≤ fewest ≤ most pixels.")
        if not 0 < self.squares[0] <= self.squares[1] <= 1:
            raise InvalidInputError(f"squares={self.squares}; accepted: 0 < smallest ≤ largest ≤ 1, of the short side.")
        if not _is_number(self.flip) or not 0 <= self.flip <= 1:
            raise InvalidInputError(f"flip={self.flip!r} is no probability; accepted: 0 … 1.")
        object.__setattr__(self, "flip", float(self.flip))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class Prepared:
    """One image, ready to be cut.

    Attributes:
        pixels: uint8 (C, H, W), RGB, or grey where the model has one input channel; no more than the boxes need.
        draw: What the sampler drew; boxes in ``pixels``' coordinates, image indices 0.
    """

    pixels: Tensor
    draw: PatchDraw


@dataclass(frozen=True)
class _Plan:
    """What is to be done to a photograph: cut a square (top, left, side) or take it whole; resize to height × width."""

    height: int
    width: int
    square: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Begun:
    """An image whose file is read and whose patches are drawn, but which is not decoded.

    Attributes:
        photo: The image.
        plan: What is to be done to it.
        window: (left, top, width, height) of the resized (and mirrored) image that is shipped.
        flip: Whether it is mirrored.
        grey: Whether it is decoded grey.
        draw: What the sampler drew, boxes in the window's coordinates.
    """

    photo: Photo
    plan: _Plan
    window: tuple[int, int, int, int]
    flip: bool
    grey: bool
    draw: PatchDraw


class Preparation:
    """Decode an image, bring it to size, mirror it, draw its patches, and keep the pixels that the patches need.

    Every random number of an image comes from the one generator given, in this order: those of the mode ("pixels": the
    number of pixels; "squares": the side, then the corner), one for the flip, those of the sampler's ``draw``. The flip
    is drawn whatever its probability, so that the same boxes come with and without.

    With a ``GridPatchSampler`` the pixels are a window of ``crop`` × ``crop``, so that images stack; with a
    ``RandomPairSampler`` they are the whole resized image. An image that the sampler turns grey is decoded grey where
    that saves time (unless ``exact_grey``), its three channels alike, and no longer marked as one to turn grey.

    Args:
        options: The recipe's.
        sampler: Whose ``draw`` is used.
        in_channels: 3, or 1: images become grey (Pillow's "L").

    Raises:
        InvalidInputError: sizes at which the sampler finds no room, another number of channels, squares for a sampler
            without a crop.
    """

    def __init__(
        self, options: ImageOptions, sampler: GridPatchSampler | RandomPairSampler, in_channels: int = 3
    ) -> None:
        self.options, self.sampler, self.in_channels = options, sampler, in_channels
        self.crop = sampler.crop if isinstance(sampler, GridPatchSampler) else None
        self.least = sampler.crop if isinstance(sampler, GridPatchSampler) else sampler.smallest + 1
        accepted = (1, 3) if isinstance(sampler, GridPatchSampler) else (3,)
        if in_channels not in accepted:
            raise InvalidInputError(
                f"in_channels={in_channels}; accepted for images from files with a {type(sampler).__name__}: "
                f"{' or '.join(map(str, accepted))}."
            )
        # Grey by the brightness that a JPEG file stores, where the sampler's grey is the same one: of red, green, blue.
        preset = PRESETS[sampler.preset].grayscale if isinstance(sampler, GridPatchSampler) else "pil"
        same = preset == "pil" and getattr(sampler, "channel_order", "rgb") == "rgb"
        self._grey_early = same and not options.exact_grey
        if options.mode == "resize" and options.resize < self.least:
            raise InvalidInputError(
                f"resize={options.resize} px leaves the sampler no room; accepted: from {self.least} px up."
            )
        if options.mode == "squares" and self.crop is None:
            raise InvalidInputError(
                "mode='squares' resizes to a sampler's crop, and RandomPairSampler has none; accepted: "
                "mode='pixels' or 'resize', or a GridPatchSampler."
            )

    def __call__(self, source: Path | bytes, generator: torch.Generator, name: str | None = None) -> Prepared:
        """Prepare one image.

        Args:
            source: The file, or its bytes.
            generator: Source of every random number of this image.
            name: What errors call it.

        Raises:
            ImageError: a damaged file, or none; or so long a strip that resizing it would take more pixels than Pillow
                allows an image.
        """
        (begun,) = self.begin([Photo(source, name)], [generator])
        return self.finish(begun)

    def begin(self, photos: Sequence[Photo], generators: Sequence[torch.Generator]) -> list[Begun]:
        """Do the first half, all but the pixels, for some images: plan and draw, with each image's own generator."""
        plans = [self._plan(photo, generator) for photo, generator in zip(photos, generators, strict=True)]
        flips = [torch.rand((), generator=generator).item() < self.options.flip for generator in generators]
        draws = [
            self.sampler.draw([(plan.height, plan.width)], generator)
            for plan, generator in zip(plans, generators, strict=True)
        ]
        return [self._begun(*parts) for parts in zip(photos, plans, flips, draws, strict=True)]

    def _begun(self, photo: Photo, plan: _Plan, flip: bool, draw: PatchDraw) -> Begun:
        flagged = self._grey_early and draw.grayscale is not None and bool(draw.grayscale)
        left, top, width, height, boxes = 0, 0, plan.width, plan.height, draw.boxes
        if self.crop is not None:
            corners = boxes.numpy()
            first = corners.min(0).tolist()
            width = height = self.crop
            left, top = min(first[0], plan.width - width), min(first[1], plan.height - height)
            boxes = torch.from_numpy(corners - (left, top, left, top))
        turned = torch.zeros(1, dtype=torch.bool) if flagged else draw.grayscale
        draw = dataclasses.replace(draw, boxes=boxes, grayscale=turned)
        grey = flagged or (self.in_channels == 1 and not self.options.exact_grey)
        return Begun(photo, plan, (left, top, width, height), flip, grey, draw)

    def finish(self, begun: Begun) -> Prepared:
        """Do the second half: decode and resize.

        Raises:
            ImageError: the file is damaged, or too long a strip.
        """
        plan = begun.plan
        left, top, width, height = begun.window
        if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
            raise ImageError(
                f"{begun.photo.name}: a strip of {begun.photo.width}×{begun.photo.height} px, which would become "
                f"{plan.width}×{plan.height} px, more than PIL.Image.MAX_IMAGE_PIXELS"
            )
        taken = (plan.width - left - width if begun.flip else left, top, width, height)
        size = (plan.height, plan.width)
        if plan.square is None:
            pixels = resize_window(begun.photo.pixels(grey=begun.grey), size, taken, self.options.antialias)
        else:
            pixels = resize_window(_square(begun.photo, plan.square, plan.height, begun.grey), size, taken)
        if begun.flip:
            pixels = pixels.flip(-1)
        if self.in_channels == 1 and len(pixels) == 3:
            pixels = luma_pil(pixels)[None]
        return Prepared(pixels.expand(self.in_channels, -1, -1), begun.draw)

    def enlarged(self, height: int, width: int) -> float:
        """Return by how much an image of this size is enlarged at most; 1 or less where it never is."""
        options, short = self.options, min(height, width)
        if options.mode == "resize":
            return options.resize / short
        if options.mode == "squares":
            return self.least / max(1, round(options.squares[0] * short))
        most = math.sqrt(options.pixels[1] / (height * width))
        return max(most, self.least / short)

    def _plan(self, photo: Photo, generator: torch.Generator) -> _Plan:
        height, width = photo.height, photo.width
        short = min(height, width)
        options = self.options
        if options.mode == "squares":
            low, high = (math.log(share) for share in options.squares)
            share = math.exp(low + (high - low) * float(uniform((), generator, dtype=torch.float64)))
            side = min(short, max(1, round(share * short)))
            top, left = below(torch.tensor([height - side + 1, width - side + 1]), generator).tolist()
            return _Plan(self.least, self.least, (top, left, side))
        if options.mode == "pixels":
            height, width = draw_size(height, width, generator, options.pixels)
            if min(height, width) < self.least:  # a strip, or few pixels: the short side decides
                scale = self.least / short
                height, width = (max(self.least, round(side * scale)) for side in (photo.height, photo.width))
            return _Plan(height, width)
        if not options.keep_ratio:
            return _Plan(options.resize, options.resize)
        # As torchvision's Resize: the longer side is truncated.
        target = options.resize
        return _Plan(target * height // short, target * width // short)


def _square(photo: Photo, square: tuple[int, int, int], least: int, grey: bool) -> Tensor:
    """Decode a square (top, left, side) of a photograph, at a fraction of its size as long as ``least`` px remain."""
    top, left, side = square
    pixels, divisor = photo.reduced(side // least, grey=grey)
    rows, columns = pixels.shape[1:]
    side = min(max(1, round(side / divisor)), rows, columns)
    top, left = min(top // divisor, rows - side), min(left // divisor, columns - side)
    return pixels[:, top : top + side, left : left + side]
