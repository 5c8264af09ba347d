"""A sample as a picture: the image with its boxes, beside it the patches as the network sees them."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from context_pred.errors import InvalidInputError
from context_pred.patches.grid import GridPatchSampler
from context_pred.patches.layout import OFFSETS, POSITIONS
from context_pred.patches.pairs import PatchPairs
from context_pred.patches.random_pairs import RandomPairSampler
from context_pred.pictures import COLORS, FAINT, INK, PAPER, font, save_png

CELL, SPACE, MARGIN, CAPTION = 128, 12, 20, 20
SMALLEST_PHOTO = 600
"""Sides in px: a patch, the space between patches, the rim, a line of text; the least room of the photograph."""


def draw_sample(
    image: Tensor | Image.Image,
    pairs: PatchPairs,
    path: str | Path | None = None,
    *,
    sampler: GridPatchSampler | RandomPairSampler | None = None,
    index: int = 0,
    centers: int = 2,
) -> Image.Image:
    """Draw one image of a sample: on the left its boxes, on the right each center among its neighbors.

    Where a patch is the center of many pairs, as in the authors' sampler, the centers with the most neighbors are
    shown, no patch twice.

    Args:
        image: The image the patches were cut from, as it was given to the sampler: (3, H, W), RGB, uint8 in 0…255 or
            floating in 0…1; or a PIL image.
        pairs: The sample.
        path: A PNG file to write; None writes nothing.
        sampler: The one that made the pairs, which knows how to undo its normalisation. None takes the patches for
            pixels, as with ``normalize=False``.
        index: Which image of the batch this is.
        centers: How many centers to show at most.

    Returns:
        The picture.

    Raises:
        InvalidInputError: no pair lies in that image, boxes reach outside it, or the image is no RGB image.
        StorageError: the file cannot be written.
    """
    photo = _photo(image)
    of_center = _choose(pairs, index, centers)
    if not of_center:
        raise InvalidInputError(f"Image {index} of the sample has no pair to draw.")
    shown = torch.tensor([k for center, around in of_center.items() for k in (center, *around.values())])
    boxes = dict(zip(shown.tolist(), pairs.boxes.cpu()[shown].tolist(), strict=True))
    if any(x2 > photo.width or y2 > photo.height for _, _, x2, y2 in boxes.values()):
        raise InvalidInputError(f"The sample's boxes reach outside this image of {photo.width}×{photo.height} px.")
    patches = dict(zip(shown.tolist(), _pixels(pairs.patches.detach().cpu()[shown], sampler), strict=True))

    right = _arranged([_panel(k, around, patches, _color(i)) for i, (k, around) in enumerate(of_center.items())])
    left = _boxed(photo, of_center, boxes, max(right.height, SMALLEST_PHOTO))
    tall = max(left.height, right.height)
    sheet = Image.new("RGB", (left.width + right.width + 4 * MARGIN, tall + 2 * MARGIN), PAPER)
    sheet.paste(left, (MARGIN, MARGIN + (tall - left.height) // 2))
    sheet.paste(right, (left.width + 3 * MARGIN, MARGIN + (tall - right.height) // 2))
    if path is not None:
        save_png(sheet, path)
    return sheet


def _color(i: int) -> tuple[int, int, int]:
    return COLORS[i % len(COLORS)]


def _photo(image: Tensor | Image.Image) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if image.ndim != 3 or image.shape[0] != 3:
        raise InvalidInputError(f"The image to draw has the shape (3, H, W), not {tuple(image.shape)}.")
    return _picture(image.detach().cpu() if image.dtype == torch.uint8 else image.detach().cpu().float())


def _picture(pixels: Tensor) -> Image.Image:
    if pixels.dtype != torch.uint8:
        pixels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _pixels(patches: Tensor, sampler: GridPatchSampler | RandomPairSampler | None) -> list[Image.Image]:
    if sampler is not None:
        patches = sampler.to_pixels(patches)
    return [_picture(patch) for patch in patches]


def _choose(pairs: PatchPairs, index: int, most: int) -> dict[int, dict[int, int]]:
    """Choose the centers to show: center → {position: neighbor}, the richest first, no patch in two of them."""
    around: dict[int, dict[int, int]] = defaultdict(dict)
    mine = (pairs.image[pairs.center] == index).cpu()
    columns = (pairs.center.cpu()[mine], pairs.position.cpu()[mine], pairs.neighbor.cpu()[mine])
    for center, position, neighbor in zip(*(column.tolist() for column in columns), strict=True):
        around[center][position] = neighbor
    chosen: dict[int, dict[int, int]] = {}
    used: set[int] = set()
    for center in sorted(around, key=lambda c: (-len(around[c]), c)):
        patches = {center, *around[center].values()}
        if len(chosen) < most and not patches & used:
            chosen[center] = around[center]
            used |= patches
    return chosen


def _panel(
    center: int, around: dict[int, int], patches: dict[int, Image.Image], color: tuple[int, int, int]
) -> Image.Image:
    """Draw a center among its neighbors: 3×3 patches, each with its position; faint frames where there is none."""
    step = (CELL + SPACE, CELL + CAPTION + SPACE)
    panel = Image.new("RGB", (3 * step[0] - SPACE, 3 * step[1] - SPACE), PAPER)
    pen = ImageDraw.Draw(panel)
    cells = [(row + 1, column + 1, f"{k}  {POSITIONS[k]}", around.get(k)) for k, (row, column) in enumerate(OFFSETS)]
    for row, column, text, patch in [*cells, (1, 1, "center", center)]:
        x, y = column * step[0], row * step[1]
        frame = (x, y, x + CELL - 1, y + CELL - 1)
        if patch is None:
            pen.rectangle(frame, outline=FAINT)
        else:
            panel.paste(patches[patch].resize((CELL, CELL), Image.Resampling.NEAREST), (x, y))
        if patch == center:
            pen.rectangle(frame, outline=color, width=4)
        ink = color if patch == center else INK if patch is not None else FAINT
        pen.text((x + CELL / 2, y + CELL + 3), text, fill=ink, font=font(14), anchor="ma")
    return panel


def _arranged(panels: list[Image.Image]) -> Image.Image:
    """Put panels of one size below one another, in two columns from three on."""
    columns = 1 if len(panels) < 3 else 2
    rows = -(-len(panels) // columns)
    width, height = panels[0].width + 2 * MARGIN, panels[0].height + MARGIN
    whole = Image.new("RGB", (columns * width - 2 * MARGIN, rows * height - MARGIN), PAPER)
    for i, panel in enumerate(panels):
        whole.paste(panel, (i % columns * width, i // columns * height))
    return whole


def _boxed(
    photo: Image.Image, of_center: dict[int, dict[int, int]], boxes: dict[int, list[int]], tall: int
) -> Image.Image:
    """Draw the photograph, at most ``tall`` px high and half as wide again, with the boxes of the patches shown."""
    scale = min(tall / photo.height, 1.5 * tall / photo.width)
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    boxed = photo.resize(size, Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(boxed)
    for i, (center, around) in enumerate(of_center.items()):
        for patch, text in [*((patch, str(k)) for k, patch in around.items()), (center, "center")]:
            x1, y1, x2, y2 = (round(side * scale) for side in boxes[patch])
            wide = 5 if patch == center else 3
            pen.rectangle((x1, y1, x2 - 1, y2 - 1), outline=PAPER, width=wide + 2)
            pen.rectangle((x1 + 1, y1 + 1, x2 - 2, y2 - 2), outline=_color(i), width=wide)
            _tag(pen, (x1 + wide, y1 + wide), text, _color(i))
    return boxed


def _tag(pen: ImageDraw.ImageDraw, at: tuple[int, int], text: str, color: tuple[int, int, int]) -> None:
    """Write white text on a patch of colour, its corner at ``at``."""
    right, bottom = pen.textbbox((at[0] + 5, at[1] + 3), text, font=font(16))[2:]
    pen.rectangle((at[0], at[1], right + 5, bottom + 4), fill=color)
    pen.text((at[0] + 5, at[1] + 3), text, fill=PAPER, font=font(16))
