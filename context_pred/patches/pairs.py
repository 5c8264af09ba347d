"""What every sampler draws and returns, and the one way boxes are cut out of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from context_pred.errors import InvalidInputError


@dataclass(frozen=True)
class PatchDraw:
    """A sample before any pixel is touched: what a sampler's ``draw`` returns and its ``cut`` takes.

    Attributes:
        boxes: int64 (K, 4), x1, y1, x2, y2, half-open, in the coordinates of the image given.
        image: int64 (K,), which image of the batch.
        neighbor: int64 (M,), index into the K patches.
        center: int64 (M,), index into the K patches.
        position: int64 (M,), 0…7 in raster order: where the neighbour lies, seen from the centre.
        grayscale: bool (B,), which images turn grey, or None where the sampler never does that.
        chroma_blur: bool (B,), which images have their colours blurred, or None where the sampler never does that.
        aperture: int64 (K, 4), what stays of each patch (x1, y1, x2, y2, half-open, in px of the patch; the rest is
            blank), or None where the sampler blanks nothing.
    """

    boxes: Tensor
    image: Tensor
    neighbor: Tensor
    center: Tensor
    position: Tensor
    grayscale: Tensor | None = None
    chroma_blur: Tensor | None = None
    aperture: Tensor | None = None

    def to(self, device: torch.device | str) -> PatchDraw:
        """Return the sample with every tensor on ``device``.

        Args:
            device: Where to.
        """
        return dataclasses.replace(self, **_moved(self, device))


@dataclass(frozen=True)
class PatchPairs:
    """Patches and which of them are compared: the one result of every sampler.

    Attributes:
        patches: (K, C, p, p); float32, normalised as the sampler says, or with ``normalize=False`` the input's dtype
            and range.
        neighbor: int64 (M,), index into ``patches``.
        center: int64 (M,), index into ``patches``. Pair m asks where ``patches[neighbor[m]]`` lies, seen from
            ``patches[center[m]]``.
        position: int64 (M,), 0…7: the neighbour's cell of the 3×3 grid in raster order, the centre skipped.
        boxes: int64 (K, 4), x1, y1, x2, y2, half-open, in the image given.
        image: int64 (K,), which image of the batch.

    Examples:
        >>> import torch
        >>> from context_pred import GridPatchSampler
        >>> pairs = GridPatchSampler(crop=126, patch=32)(torch.zeros(1, 3, 126, 126))
        >>> pairs.position.tolist()
        [0, 1, 2, 3, 4, 5, 6, 7]
        >>> pairs.center.unique().tolist()  # all ask about the middle patch
        [4]
    """

    patches: Tensor
    neighbor: Tensor
    center: Tensor
    position: Tensor
    boxes: Tensor
    image: Tensor

    def __len__(self) -> int:
        """Return M, the number of pairs."""
        return len(self.neighbor)

    def to(self, device: torch.device | str) -> PatchPairs:
        """Return the pairs with every tensor on ``device``.

        Args:
            device: Where to.
        """
        return dataclasses.replace(self, **_moved(self, device))


def _moved(record: Any, device: torch.device | str) -> dict[str, Tensor]:
    values = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    return {name: value.to(device) for name, value in values.items() if value is not None}


def cut_boxes(images: Tensor, boxes: Tensor, image: Tensor) -> Tensor:
    """Cut equally large boxes out of a batch of images, all at once.

    Args:
        images: (B, C, H, W), any dtype and device.
        boxes: int64 (K, 4), x1, y1, x2, y2, half-open, inside the images and all of one size.
        image: int64 (K,), which image each box is cut from, 0…B−1.

    Returns:
        (K, C, y2 − y1, x2 − x1), the images' dtype and device, contiguous.

    Raises:
        InvalidInputError: the boxes differ in size, or reach outside the images.
    """
    check_images(images)
    channels, rows, columns = images.shape[1:]
    on_cpu = boxes.cpu()
    check_boxes(on_cpu, image.cpu(), len(images), rows, columns)
    if not len(on_cpu):
        return images.new_empty(0, channels, 0, 0)
    width, height = (on_cpu[0, 2:] - on_cpu[0, :2]).tolist()
    boxes, image = boxes.to(images.device), image.to(images.device)
    if images.device.type == "cpu" and not images.requires_grad:
        # Every window as a row of an overlapping view; index_select copies its rows whole, 8 × faster than indexing.
        per_image, per_channel, per_row, per_column = images.stride()
        start = image * per_image + boxes[:, 1] * per_row + boxes[:, 0] * per_column
        view = (int(start.max()) + 1, channels, height, width)
        windows = images.as_strided(view, (1, per_channel, per_row, per_column))
        return windows.index_select(0, start)
    row = (boxes[:, 1, None] + torch.arange(height, device=images.device))[:, :, None]
    column = (boxes[:, 0, None] + torch.arange(width, device=images.device))[:, None, :]
    return images[image[:, None, None], :, row, column].permute(0, 3, 1, 2).contiguous()


def check_images(images: object) -> None:
    """Raise InvalidInputError unless ``images`` is a uint8 or floating (B, C, H, W) tensor."""
    if not isinstance(images, Tensor):
        raise InvalidInputError(f"A sampler takes a tensor (B, C, H, W), not {type(images).__name__}.")
    if images.ndim != 4:
        hint = " Add the batch axis: images[None]." if images.ndim == 3 else ""
        raise InvalidInputError(f"A sampler takes images of shape (B, C, H, W), not {tuple(images.shape)}.{hint}")
    if not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise InvalidInputError(f"A sampler takes uint8 (0…255) or floating (0…1) images, not {images.dtype}.")


def check_boxes(boxes: Tensor, image: Tensor, batch: int, rows: int, columns: int) -> None:
    """Raise InvalidInputError unless all boxes have one size and lie inside the images."""
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.is_floating_point() or image.shape != boxes.shape[:1]:
        raise InvalidInputError(
            f"Boxes must be integers (K, 4) with an image index (K,), not {boxes.dtype} {tuple(boxes.shape)} "
            f"and {tuple(image.shape)}."
        )
    if not len(boxes):
        return
    sizes = boxes[:, 2:] - boxes[:, :2]
    if bool((sizes != sizes[0]).any()) or bool((sizes <= 0).any()):
        raise InvalidInputError("Boxes cut together must have one size, at least 1 px a side.")
    if bool((boxes[:, :2] < 0).any()) or bool((boxes[:, 2:] > boxes.new_tensor([columns, rows])).any()):
        raise InvalidInputError(f"A box reaches outside its image of {columns}×{rows} px (width×height).")
    if bool((image < 0).any()) or bool((image >= batch).any()):
        raise InvalidInputError(f"An image index is outside the batch of {batch} images.")


def joined(draws: Iterable[PatchDraw]) -> PatchDraw:
    """Join the draws of single images, in order, into the draw of their batch.

    Each draw's image indices must all be 0: it was drawn for one image. So samples can be drawn one image at a time,
    each with a generator of its own, and cut together.

    Args:
        draws: One an image, in the order of the batch.

    Returns:
        One draw for all images.

    Raises:
        InvalidInputError: no draws, one of several images, or draws of different kinds.
    """
    parts = list(draws)
    if not parts:
        raise InvalidInputError("No draws to join.")
    patches = torch.tensor([len(part.boxes) for part in parts])
    pairs = torch.tensor([len(part.position) for part in parts])
    first = (patches.cumsum(0) - patches).repeat_interleave(pairs)
    return PatchDraw(
        boxes=torch.cat([part.boxes for part in parts]),
        image=torch.cat([part.image for part in parts]) + torch.arange(len(parts)).repeat_interleave(patches),
        neighbor=torch.cat([part.neighbor for part in parts]) + first,
        center=torch.cat([part.center for part in parts]) + first,
        position=torch.cat([part.position for part in parts]),
        grayscale=_cat([part.grayscale for part in parts]),
        chroma_blur=_cat([part.chroma_blur for part in parts]),
        aperture=_cat([part.aperture for part in parts]),
    )


def _cat(parts: list[Tensor | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.cat(there) if len(there) == len(parts) else None
