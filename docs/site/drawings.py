"""Draws the pictures of docs/method.md: what the samplers, the shortcut functions and the shipped model really do.

    python docs/site/drawings.py

Ink is the page's own colour (`currentColor`), so that the drawings can be read by day and by night.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from context_pred import GridPatchSampler, RandomPairSampler, load_pretrained
from context_pred.patches.shortcuts import drop_colors, grayscale_pil, project_colors, resample

DOCS = Path(__file__).resolve().parent.parent
OUT = DOCS / "method"
WIDTH = 640
NEIGHBOR, CENTER = "#2f8fd0", "#e8622c"
AROUND = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2))
"""Row and column of the positions 0 … 7."""


def text(x: float, y: float, words: str, *, size: int = 17, anchor: str = "start", bold: bool = False) -> str:
    """A line of words; x and y are where its baseline begins, ends or has its middle."""
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}"{weight}>{escape(words)}</text>'


def rect(x: float, y: float, w: float, h: float, stroke: str = "currentColor", width: float = 2, more: str = "") -> str:
    """A rectangle, empty unless more is said."""
    more = more or 'fill="none"'
    return f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" stroke="{stroke}" stroke-width="{width:g}" {more}/>'


def line(x1: float, y1: float, x2: float, y2: float, more: str = "") -> str:
    """A straight line of ink."""
    return f'<path d="M{x1:g} {y1:g}L{x2:g} {y2:g}" stroke="currentColor" stroke-width="1.5" fill="none" {more}/>'


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """A line whose tip is a small triangle; lines run along one axis."""
    dx, dy = (x2 > x1) - (x2 < x1), (y2 > y1) - (y2 < y1)
    tip = f"M{x2:g} {y2:g}l{-8 * dx - 4 * dy:g} {-8 * dy + 4 * dx:g}l{8 * dy:g} {-8 * dx:g}z"
    return line(x1, y1, x2 - 6 * dx, y2 - 6 * dy) + f'<path d="{tip}" fill="currentColor"/>'


def span(x1: float, x2: float, y: float, words: str) -> str:
    """A measure: a line between two ticks, and what it says below."""
    ticks = line(x1, y - 5, x1, y + 5) + line(x2, y - 5, x2, y + 5)
    return ticks + line(x1, y, x2, y) + text((x1 + x2) / 2, y + 21, words, size=15, anchor="middle")


def picture(image: Image.Image | torch.Tensor, x: float, y: float, w: float, h: float) -> str:
    """A photograph or a patch, as JPEG inside the drawing."""
    image = image if isinstance(image, Image.Image) else to_pil_image(image)
    memory = io.BytesIO()
    image.save(memory, "JPEG", quality=85)
    data = base64.b64encode(memory.getvalue()).decode()
    size = f'x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}"'
    return f'<image {size} preserveAspectRatio="none" href="data:image/jpeg;base64,{data}"/>'


def chip(x: float, y: float, words: str, color: str) -> str:
    """White words on a coloured disc, to be read on any photograph."""
    disc = f'<circle cx="{x:g}" cy="{y:g}" r="11" fill="{color}"/>'
    return disc + text(x, y + 5, words, size=15, anchor="middle", bold=True).replace("<text", '<text fill="#fff"')


def drawing(name: str, height: int, title: str, parts: Sequence[str]) -> None:
    """Write one drawing; `fill` of plain words is the ink."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="drawing" viewBox="-4 0 {WIDTH + 8} {height}" role="img" '
        f'aria-labelledby="{name}-title" font-family="system-ui, sans-serif" fill="currentColor">'
        f'<title id="{name}-title">{escape(title)}</title>'
        "<style>.drawing{color:#263238}@media(prefers-color-scheme:dark){.drawing{color:#eceff1}}</style>"
    )
    OUT.mkdir(exist_ok=True)
    (OUT / f"{name}.svg").write_text(head + "\n" + "\n".join(parts) + "\n</svg>\n", encoding="utf-8")


def opened(name: str, short: int) -> Image.Image:
    """A photograph, its shorter side so many px."""
    image = Image.open(DOCS / "photos" / f"{name}.jpg").convert("RGB")
    scale = short / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def tensor(image: Image.Image) -> torch.Tensor:
    """A photograph as uint8 (3, H, W)."""
    return pil_to_tensor(image)


def grid() -> None:
    """The square, the nine cells, a patch somewhere in each; beside it the eight questions."""
    image, (x0, y0) = opened("koala", 292), (14, 20)
    square = image.crop((x0, y0, x0 + 255, y0 + 255))
    pairs = GridPatchSampler(normalize=False, grayscale=0)(tensor(square)[None], torch.Generator().manual_seed(4))
    boxes = (pairs.boxes + torch.tensor([x0, y0, x0, y0])).tolist()
    scale, top = 330 / image.width, 34
    parts = [text(0, 18, "In the photograph", bold=True), picture(image, 0, top, 330, image.height * scale)]
    for row in range(3):
        for column in range(3):
            dashed = 'fill="none" stroke-dasharray="5 4"'
            at = (x0 + 85 * column) * scale, top + (y0 + 85 * row) * scale
            parts.append(rect(*at, 85 * scale, 85 * scale, "#fff", 1.5, dashed))
    centers = set(pairs.center.tolist())
    position = dict(zip(pairs.neighbor.tolist(), pairs.position.tolist(), strict=True))
    for k, (x1, y1, x2, y2) in enumerate(boxes):
        color = CENTER if k in centers else NEIGHBOR
        parts.append(rect(x1 * scale, top + y1 * scale, (x2 - x1) * scale, (y2 - y1) * scale, color, 3))
    parts += [text(372, 18, "Cut out: eight questions", bold=True)]
    side, pitch = 74, 90
    for k in range(9):
        row, column = AROUND[position[k]] if k in position else (1, 1)
        x, y = 372 + column * pitch, top + row * pitch
        color = CENTER if k in centers else NEIGHBOR
        parts += [picture(pairs.patches[k], x, y, side, side), rect(x, y, side, side, color, 3)]
        if k in position:
            parts.append(chip(x + 13, y + 13, str(position[k]), NEIGHBOR))
    below = top + 3 * pitch + 12
    parts += [
        text(372, below, "Seen from the centre, in which"),
        text(372, below + 23, "place does this patch lie?"),
        text(0, top + image.height * scale + 24, "A square of 255 px, nine cells of 85 px,"),
        text(0, top + image.height * scale + 47, "in each a patch of 64 px at a random place."),
    ]
    drawing("grid", max(below + 36, int(top + image.height * scale + 60)), "The 3×3 grid on a photograph", parts)


def gap() -> None:
    """How far two neighbours lie apart, in OpenMMLab's grid and in the paper's, to scale."""
    parts = [text(0, 18, "OpenMMLab's grid", bold=True), text(350, 18, "The paper's grid", bold=True)]
    scale, top = 1.6, 38
    for k, (color, at) in enumerate(((CENTER, (6, 14)), (NEIGHBOR, (12, 3)))):
        x = 85 * k * scale
        parts += [
            rect(x, top, 85 * scale, 85 * scale, "currentColor", 1.2, 'fill="none" stroke-dasharray="5 4"'),
            rect(
                x + at[0] * scale,
                top + at[1] * scale,
                64 * scale,
                64 * scale,
                color,
                3,
                f'fill="{color}" fill-opacity=".18"',
            ),
        ]
    bottom = top + 85 * scale
    parts += [
        span(0, 85 * scale, bottom + 18, "cell 85 px"),
        span((85 + 12) * scale, (85 + 12 + 64) * scale, bottom + 18, "patch 64 px"),
        text(0, bottom + 72, "Each patch lies anywhere in its cell:", size=16),
        text(0, bottom + 94, "0 to 42 px between two patches.", size=16),
        text(0, bottom + 116, "gap=(lo, hi) leaves more.", size=16),
    ]
    scale = 1.1
    for k, (color, shift) in enumerate(((CENTER, (3, -3)), (NEIGHBOR, (-5, 6)))):
        x = 350 + (144 * k + 7) * scale
        grown = 'fill="none" stroke-dasharray="2 3"'
        parts += [
            rect(x - 7 * scale, top, (96 + 14) * scale, (96 + 14) * scale, "currentColor", 1, grown),
            rect(
                x + shift[0] * scale,
                top + (7 + shift[1]) * scale,
                96 * scale,
                96 * scale,
                color,
                3,
                f'fill="{color}" fill-opacity=".18"',
            ),
        ]
    bottom = top + 110 * scale
    parts += [
        span(350 + 7 * scale, 350 + 103 * scale, bottom + 18, "96 px"),
        span(350 + 103 * scale, 350 + 151 * scale, bottom + 18, "48 px"),
        text(350, bottom + 72, "Patches of 96 px, 48 px apart, each", size=16),
        text(350, bottom + 94, "shifted by up to 7 px (dotted):", size=16),
        text(350, bottom + 116, "34 to 62 px between two patches.", size=16),
    ]
    drawing("gap", 300, "Gap and jitter, to scale", parts)


def siamese() -> None:
    """One pair through the network, with what the shipped model says of it."""
    model = load_pretrained("resnet18_1xb64-coslr-300k", local_files_only=True)
    image = opened("koala", 160)
    sampler = model.patch_sampler
    raw = GridPatchSampler(**{**_config(sampler), "normalize": False, "grayscale": 0.0})
    draw = raw.draw([(image.height, image.width)], torch.Generator().manual_seed(11))
    patches = raw.cut(tensor(image)[None], draw)
    pairs = GridPatchSampler(**{**_config(sampler), "grayscale": 0.0}).cut(tensor(image)[None], draw)
    with torch.inference_mode():
        said = model(pairs).softmax(1)
    right = said.gather(1, pairs.position[:, None])[:, 0]
    pair = int(right.argmax())
    shown = (patches.patches[int(pairs.neighbor[pair])], patches.patches[int(pairs.center[pair])])
    parts = []
    for k, (patch, color, name) in enumerate(zip(shown, (NEIGHBOR, CENTER), ("neighbour", "centre"), strict=True)):
        y = 34 + 150 * k
        parts += [
            text(48, y - 12, name, anchor="middle"),
            picture(patch, 0, y, 96, 96), rect(0, y, 96, 96, color, 3),
            arrow(104, y + 48, 140, y + 48),
            rect(142, y + 12, 118, 72, "currentColor", 2, 'rx="8" fill="currentColor" fill-opacity=".07"'),
            text(201, y + 53, "backbone", anchor="middle"),
            arrow(266, y + 48, 302, y + 48),
            rect(306, y + 4, 16, 88, color, 2, f'fill="{color}" fill-opacity=".35"'),
        ]  # fmt: skip
    parts += [
        line(201, 118, 201, 196, 'stroke-dasharray="4 4"'),
        text(210, 162, "the same weights", size=15),
        line(330, 82, 346, 82), line(330, 232, 346, 232), line(346, 82, 346, 232), arrow(346, 157, 366, 157),
        rect(368, 122, 96, 70, "currentColor", 2, 'rx="8" fill="currentColor" fill-opacity=".07"'),
        text(416, 151, "neck", anchor="middle"), text(416, 174, "and head", anchor="middle"),
        arrow(466, 157, 490, 157),
        text(566, 68, "where?", anchor="middle"),
    ]  # fmt: skip
    answer, truth = said[pair], int(pairs.position[pair])
    for k in range(8):
        row, column = AROUND[k]
        x, y = 496 + 48 * column, 86 + 48 * row
        share = float(answer[k])
        shade = f'fill="{NEIGHBOR}" fill-opacity="{0.06 + 0.94 * share:.2f}"'
        parts += [
            rect(x, y, 44, 44, "currentColor" if k != truth else CENTER, 1 if k != truth else 3, shade),
            text(x + 22, y + 28, f"{100 * share:.0f} %", size=14, anchor="middle"),
        ]
    parts += [
        rect(544, 134, 44, 44, CENTER, 2, f'fill="{CENTER}" fill-opacity=".18"'),
        text(496, 260, "What the shipped", size=15), text(496, 280, "model says; framed,", size=15),
        text(496, 300, "the truth.", size=15),
        text(0, 322, "Feature maps are averaged over positions, the two vectors laid", size=16),
        text(0, 344, "end to end; the neck mixes them, the head has eight outputs.", size=16),
    ]  # fmt: skip
    drawing("siamese", 358, "Two patches, one backbone, eight answers", parts)


def _config(sampler: GridPatchSampler | RandomPairSampler) -> dict[str, object]:
    config = sampler.to_config()
    config.pop("type")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}


def shortcuts() -> None:
    """The cues that need no understanding, and what takes them away, by the library's own functions."""
    side, parts = 112, []
    image = opened("opera_sydney", 300)
    wide = image.crop((96, 120, 96 + 192, 120 + 96))
    parts += [
        text(0, 18, "Lines run on", bold=True), text(330, 18, "… a gap and jitter part them", bold=True),
        picture(wide.crop((0, 0, 96, 96)), 0, 32, side, side),
        picture(wide.crop((96, 0, 192, 96)), side, 32, side, side),
        rect(0, 32, side, side, CENTER, 3), rect(side, 32, side, side, NEIGHBOR, 3),
        picture(image.crop((84, 112, 180, 208)), 330, 32, side, side),
        picture(image.crop((230, 126, 326, 222)), 330 + side + 56, 32, side, side),
        rect(330, 32, side, side, CENTER, 3), rect(330 + side + 56, 32, side, side, NEIGHBOR, 3),
    ]  # fmt: skip
    lens = _aberration(opened("gate_berlin", 300), 0.02)
    patch = tensor(lens.crop((lens.width - 130, 60, lens.width - 34, 156)))
    generator = torch.Generator().manual_seed(1)
    dropped = drop_colors(patch[None], "paper", generator)[0]
    dropped = ((dropped - dropped.amin()) / (dropped.amax() - dropped.amin())).clamp(0, 1)
    projected = project_colors(patch[None])[0]
    top = 32 + side + 44
    parts += [
        text(0, top - 14, "Colours tell the place", bold=True),
        text(264, top - 14, "… so they go", bold=True),
    ]
    shown = [(patch, "a lens, drawn stronger", 0.0), (grayscale_pil(patch[None])[0], "grey", 264.0)]
    shown += [(projected.clamp(0, 1), "projected", 264.0 + side + 18), (dropped, "dropped", 264.0 + 2 * (side + 18))]
    for content, words, x in shown:
        parts += [
            picture(content, x, top, side, side),
            text(x, top + side + 20, words, size=15),
        ]
    parts.append(arrow(side + 24, top + side / 2, 240, top + side / 2))
    top += side + 66
    fine = tensor(opened("forest_stream", 300).crop((150, 100, 246, 196)))
    coarse = resample(fine[None].float() / 255, torch.tensor([24]))[0].clamp(0, 1)
    parts += [
        text(0, top - 14, "The lattice of single pixels", bold=True),
        text(264, top - 14, "… some patches lose it", bold=True),
        picture(fine, 0, top, side, side), arrow(side + 24, top + side / 2, 240, top + side / 2),
        picture(coarse, 264, top, side, side),
        text(264, top + side + 20, "reduced to 24 px, enlarged", size=15),
    ]  # fmt: skip
    drawing("shortcuts", int(top + side + 32), "Three shortcuts and their cures", parts)


def _aberration(image: Image.Image, share: float) -> Image.Image:
    """Enlarge red and blue about the middle against green, as a lens does, but more."""
    red, green, blue = image.split()

    def grown(band: Image.Image, by: float) -> Image.Image:
        w, h = image.size
        box = (by * w / 2, by * h / 2, w - by * w / 2, h - by * h / 2)
        return band.resize(image.size, Image.Resampling.BICUBIC, box=box)

    return Image.merge("RGB", (grown(red, share), green, grown(blue, share)))


def passes() -> None:
    """Which patches go through the backbone together."""

    def patch(x: float, y: float, color: str) -> str:
        return rect(x, y, 20, 20, color, 2, f'fill="{color}" fill-opacity=".45"')

    def row(y: float, groups: Sequence[tuple[int, str, str]]) -> list[str]:
        made, x = [], 0.0
        for count, color, words in groups:
            width = count * 26 + 14
            frame = 'rx="6" fill="currentColor" fill-opacity=".07"'
            made.append(rect(x, y, max(width, 40), 44, "currentColor", 1.5, frame))
            made += [patch(x + 10 + 26 * k, y + 12, color) for k in range(count)]
            made.append(text(x, y + 66, words, size=15))
            x += max(width, 40) + 26
        return made

    parts = [
        text(0, 18, "Upstream: sixteen patches an image", bold=True),
        *row(30, [(8, NEIGHBOR, "eight neighbours, one pass"), (8, CENTER, "the centre eight times, another")]),
        text(0, 142, "Here: nine, with the same loss and the same gradients", bold=True),
        *row(154, [(8, NEIGHBOR, "eight neighbours, one pass"), (1, CENTER, "the centre once, counted eight times")]),
        text(0, 266, "The authors' sampler, and 40 pairs a grid: each patch is both", bold=True),
        *row(278, [(5, NEIGHBOR, "all patches together, one pass")]),
    ]
    parts += [patch(10 + 26 * k, 290, CENTER) for k in (1, 3)]
    parts.append(text(300, 306, "A frame is a batch that the batch", size=15))
    parts.append(text(300, 327, "norms take mean and variance of.", size=15))
    drawing("passes", 356, "Passes through the backbone, and the batches of its batch norms", parts)


if __name__ == "__main__":
    for make in (grid, gap, siamese, shortcuts, passes):
        make()
