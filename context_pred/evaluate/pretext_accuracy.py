"""The pretext task itself: how often a model with its neck and head tells where a patch lies, on photographs.

Random pairs of each photograph, dropout off, by position, and where the photographs have boxes also the pairs that lie
within one of them. Source: Doersch, Gupta, Efros, ICCV 2015, section 4.4 (METHOD A5.6).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from context_pred.backbones import ResNetBackbone
from context_pred.data.collection import Collection as Photographs
from context_pred.data.collection import Files, collect
from context_pred.data.images import open_image
from context_pred.errors import ImageError, InvalidInputError, unknown
from context_pred.extract.network import fold_batch_norms
from context_pred.geometry import (
    Geometry,
    Sampler,
    as_trained,
    cut_each,
    papers,
    scaled,
    smallest,
    some_pairs,
)
from context_pred.model import ContextPredictionModel
from context_pred.patches import PatchDraw
from context_pred.pretext import PretextResult, Tally
from context_pred.training import keys

from .features import DamagedImagesError
from .job import Job, Measurement, Result
from .trained import device_of, measured_batches

NAME = "pretext"
LAYERS = "none"

POSITIONS = ("up left", "up", "up right", "left", "right", "down left", "down", "down right")
LAYOUTS = ("images", "boxes")
SPLITS = ("all", "train", "test")

_AT_ONCE = 16
_CHOICE = 21  # the key of the choice of photographs


@dataclass(frozen=True)
class Settings:
    """Every number of the protocol.

    Args:
        geometry: "model": photographs scaled and patches drawn as in the model's training; "paper": a gap of half a
            patch, jitter, photographs of 150,000 … 450,000 px for patches of 96 px, all scaled to the model's patch.
        size: Of geometry "model" and a grid sampler: the photographs' shorter side in px; 0: 292/255 of its crop.
        pairs: Pairs asked of a photograph at most (the paper: 256), chosen at random; the draws share them evenly.
        draws: How often patches are drawn in a photograph, each time with other places and sizes.
        grey: "model": as often as in training photographs turn grey; "none"; "all".
        images: Photographs chosen at random where there are more; 0: all of them (the paper: 500).
        least_box: Shorter side in px that a box needs to count, as the photograph is scaled; 0: any.

    Raises:
        InvalidInputError: a number out of its range.
    """

    geometry: Literal["model", "paper"] = "model"
    size: int = 0
    pairs: int = 256
    draws: int = 5
    grey: Literal["model", "none", "all"] = "model"
    images: int = 0
    least_box: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, least in (("size", 0), ("pairs", 1), ("draws", 1), ("images", 0), ("least_box", 0)):
            if getattr(self, name) < least:
                raise InvalidInputError(f"{name} = {getattr(self, name)}: accepted is {least} or more.")
        if self.pairs < self.draws:
            raise InvalidInputError(f"pairs = {self.pairs}, draws = {self.draws}: accepted is a pair a draw or more.")


@dataclass(frozen=True)
class DataOptions:
    """How the photographs are found; the command's ``--set`` gives them.

    Args:
        layout: "boxes": VOC's or COCO's; "images": any images, whatever lies beside them; empty: what there is.
        split: Of layout "boxes": "train", "test", or "all".
        skip_damaged: Leave damaged images out and say so, in place of an error.

    Raises:
        UnknownNameError: another layout or split.
    """

    layout: str = ""
    split: str = "all"
    skip_damaged: bool = False

    def __post_init__(self) -> None:
        """Check the names."""
        if self.layout and self.layout not in LAYOUTS:
            raise unknown("layout", self.layout, LAYOUTS)
        if self.split not in SPLITS:
            raise unknown("split", self.split, SPLITS)


@dataclass(frozen=True, eq=False)
class PretextImages:
    """Photographs, with boxes or without.

    Attributes:
        name: What to call them, as the folder is called.
        kind: "images" or "boxes".
        photographs: The photographs.
        boxes: Of each, float32 (n, 4): x1, y1, x2, y2 in px of the file; None where there are no boxes at all.
        notes: What was found, in sentences to print.
    """

    name: str
    kind: str
    photographs: Photographs
    boxes: tuple[NDArray[np.float32], ...] | None
    notes: tuple[str, ...] = ()

    def described(self) -> dict[str, Any]:
        """Return what a result says of its data."""
        return {
            "name": self.name,
            "kind": self.kind,
            "train": 0,
            "test": len(self.photographs),
            "classes": 0,
            "notes": list(self.notes),
        }

    def every_file(self) -> tuple[Path, ...]:
        """Return the photographs."""
        return tuple(map(Path, self.photographs.names))

    def without(self, damaged: Collection[str]) -> PretextImages:
        """Return the photographs without some, given as text, and a note that says so."""
        left = [name for name in self.photographs.names if name in damaged]
        note = f"{len(left):,} damaged images were left out: {', '.join(left[:10])}{' …' if len(left) > 10 else '.'}"
        kept = [k for k, name in enumerate(self.photographs.names) if name not in damaged]
        if not kept:
            raise InvalidInputError(f"{self.name}: every image is damaged; nothing is left.")
        return dataclasses.replace(self.chosen(kept), notes=(*self.notes, note))

    def chosen(self, numbers: Sequence[int]) -> PretextImages:
        """Return some of the photographs, given by their numbers."""
        boxes = None if self.boxes is None else tuple(self.boxes[k] for k in numbers)
        return dataclasses.replace(self, photographs=self.photographs.subset(numbers), boxes=boxes)


def read(folder: str | Path, options: DataOptions) -> PretextImages:
    """Find photographs: a folder, a list, shards, as ``collect`` takes them; in VOC's or COCO's layout with boxes.

    Raises:
        InvalidInputError: no images there, or a layout with boxes that lacks a piece (which is named).
    """
    from .detection import boxes, coco, voc

    root = Path(folder)
    inside = [root, *sorted(path for path in root.iterdir() if path.is_dir())] if root.is_dir() else []
    shown = options.layout == "boxes" or any(voc.shows(path) or coco.shows(path) for path in inside)
    if options.layout == "images" or not shown:
        found = collect(folder)
        note = f"{folder}: {len(found):,} images, without boxes."
        return PretextImages(root.resolve().name, "images", found, None, (note,))
    data = boxes.read(root, boxes.DataOptions())
    parts = {"all": (*data.train, *data.test), "train": data.train, "test": data.test}[options.split]
    marked = tuple(image.boxes[~image.crowd] for image in parts)
    which = "" if options.split == "all" else f"; of these {options.split}, {len(parts):,}"
    note = f"{sum(map(len, marked)):,} boxes{which}."
    return PretextImages(
        data.name, "boxes", Files([image.path for image in parts]), marked, (*data.notes, note)
    )  # fmt: skip


def run(job: Job) -> Result:
    """Ask the model about every photograph."""
    settings: Settings = job.settings
    model, data = _model(job), _some(job)
    sampler = model.patch_sampler
    geometry = _geometry(sampler, settings, model.card.name)
    questions = Questions(data, geometry, sampler, settings, model.card.in_channels)
    job.record["images"] = _described(model, geometry, settings)
    tallies = {"accuracy": Tally(), "accuracy inside boxes": Tally()}
    damaged: dict[str, str] = {}
    total, size = len(questions), min(_AT_ONCE, max(1, len(questions) // job.ranks.count))
    with torch.inference_mode(), tqdm(total=total, unit=" images", disable=not job.progress) as bar:
        for lot, batch in measured_batches(job, questions, list, size):
            asked = [one for one in batch if isinstance(one, Asked)]
            damaged |= {name: reason for one in batch if not isinstance(one, Asked) for name, reason in [one]}
            if asked:
                noise = keys.generator(job.seed, 5, lot[0])
                _count(model, sampler, asked, noise, device_of(job), tallies)
            bar.update(len(lot) * job.ranks.count)
    for part in job.ranks.gather(damaged):
        damaged |= part
    if damaged:
        raise DamagedImagesError(damaged)
    for tally in tallies.values():
        tally.load_state(job.ranks.total(tally.state().cpu()))
    return _result(job, {name: tally.result() for name, tally in tallies.items() if len(tally)}, data)


@dataclass(frozen=True)
class Asked:
    """What is asked of one photograph: a scaled copy and a draw for each time that patches are drawn.

    Attributes:
        pixels: uint8 (C, H, W) each.
        draws: One each.
        inside: bool (pairs,) each: both patches lie within one box.
    """

    pixels: tuple[Tensor, ...]
    draws: tuple[PatchDraw, ...]
    inside: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Questions:
    """Photographs opened, scaled and drawn in, by worker processes."""

    data: PretextImages
    geometry: Geometry
    sampler: Sampler
    settings: Settings
    channels: int

    def __len__(self) -> int:
        """Return how many photographs there are."""
        return len(self.data.photographs)

    def example(self, image: int, generator: torch.Generator) -> Asked | tuple[str, str]:
        """Prepare one, or return its name and what is wrong with it."""
        name = self.data.photographs.names[image]
        try:
            opened = open_image(self.data.photographs.read(image), name=name)
        except ImageError as error:
            return name, str(error).removeprefix(f"{name}: ")
        pixels, draws, inside = [], [], []
        pairs, count = self.settings.pairs, self.settings.draws
        for number in range(count):
            size = self.geometry.size(opened.height, opened.width, generator)
            most = pairs * (number + 1) // count - pairs * number // count
            draw, within = self._drawn(size, (opened.height, opened.width), image, generator, most)
            pixels.append(scaled(opened, size, self.channels))
            draws.append(draw)
            inside.append(within)
        return Asked(tuple(pixels), tuple(draws), tuple(inside))

    def _drawn(
        self, size: tuple[int, int], original: tuple[int, int], image: int, generator: torch.Generator, most: int
    ) -> tuple[PatchDraw, Tensor]:
        draw = some_pairs(self.geometry.sampler.draw([size], generator), generator, most)
        draw = dataclasses.replace(draw, grayscale=self._turned(draw, size, generator))
        inside = torch.zeros(len(draw.position), dtype=torch.bool)
        if self.data.boxes is not None:
            factor = torch.tensor([size[1] / original[1], size[0] / original[0]]).repeat(2)
            boxes = torch.from_numpy(self.data.boxes[image]) * factor
            inside = _within(draw, boxes, self.settings.least_box)
        return draw, inside

    def _turned(self, draw: PatchDraw, size: tuple[int, int], generator: torch.Generator) -> Tensor | None:
        """Whether the photograph turns grey."""
        if self.settings.grey != "model":
            return torch.tensor([self.settings.grey == "all"])
        if self.geometry.sampler is self.sampler:
            return draw.grayscale
        return torch.rand(1, generator=generator) < self.sampler.grayscale


def _within(draw: PatchDraw, boxes: Tensor, least: int) -> Tensor:
    """Tell which pairs of a draw have both patches within one box, bool (pairs,)."""
    if not len(boxes):
        return torch.zeros(len(draw.position), dtype=torch.bool)
    boxes = boxes[(boxes[:, 2:] - boxes[:, :2]).amin(1) >= least]
    patches = draw.boxes[:, None].float()
    held = ((patches[..., :2] >= boxes[None, :, :2]) & (patches[..., 2:] <= boxes[None, :, 2:])).all(2)
    return (held[draw.neighbor] & held[draw.center]).any(1)


def _count(
    model: ContextPredictionModel,
    sampler: Sampler,
    asked: Sequence[Asked],
    noise: torch.Generator,
    device: torch.device,
    tallies: dict[str, Tally],
) -> None:
    """Ask about some photographs; all draws of one count as one image."""
    logits, position, image, inside = [], [], [], []
    for number, one in enumerate(asked):
        pairs = cut_each(sampler, [pixels.to(device) for pixels in one.pixels], one.draws, noise)
        if len(pairs):
            logits.append(model(pairs).float().cpu())
            position.append(pairs.position.cpu())
            image.append(torch.full((len(pairs),), number))
            inside.append(torch.cat(one.inside))
    if not logits:
        return
    columns = torch.cat(logits), torch.cat(position), torch.cat(image)
    kept = torch.cat(inside)
    tallies["accuracy"].add(*columns)
    tallies["accuracy inside boxes"].add(*(column[kept] for column in columns))


def _model(job: Job) -> ContextPredictionModel:
    """Return a private copy on the job's device, laid out for speed.

    Raises:
        InvalidInputError: no model of pairs.
    """
    model = job.source.model
    if not isinstance(model, ContextPredictionModel) or model.neck is None:
        raise InvalidInputError(
            f"{job.source.name} is a backbone alone, without the neck and head that compare patches; pretext needs a "
            "model that was saved with its pair layers, as resnet18_1xb64-coslr-300k."
        )
    if model.card.in_channels not in (1, 3) or (model.card.in_channels == 1 and job.settings.geometry == "paper"):
        raise InvalidInputError(
            f"{job.source.name} takes {model.card.in_channels} channels; accepted are 3, or 1 in its own geometry."
        )
    own = copy.deepcopy(model).eval().requires_grad_(False)
    if isinstance(own.backbone, ResNetBackbone):
        fold_batch_norms(own.backbone)
        own = own.to(memory_format=torch.channels_last)
    return own.to(device_of(job))


def _geometry(sampler: Sampler, settings: Settings, name: str) -> Geometry:
    if settings.size and (settings.geometry == "paper" or settings.size < smallest(sampler)):
        raise InvalidInputError(
            f"size = {settings.size}: accepted, in the model's geometry alone, is what leaves room for the patches of "
            f"{name}, {smallest(sampler)} px or more."
        )
    found = papers(sampler) if settings.geometry == "paper" else None
    return found or as_trained(sampler, settings.size or None)


def _some(job: Job) -> PretextImages:
    """Return the photographs that are asked about: all, or so many chosen at random."""
    data: PretextImages = job.data
    count = len(data.photographs)
    if not 0 < job.settings.images < count:
        return data
    order = torch.randperm(count, generator=keys.generator(job.seed, _CHOICE))
    return data.chosen(sorted(order[: job.settings.images].tolist()))


def _described(model: ContextPredictionModel, geometry: Geometry, settings: Settings) -> str:
    grey = {"none": "in colour", "all": "in grey"}.get(
        settings.grey, f"grey with probability {model.patch_sampler.grayscale:g}, as in training"
    )
    where = "the paper's geometry" if geometry.name == "paper" else "the geometry of training"
    return f"{where}, {geometry.sampler!r}, {grey}"


def _result(job: Job, results: dict[str, PretextResult], data: PretextImages) -> Result:
    if "accuracy" not in results:
        raise InvalidInputError(f"{data.name}: no pair of patches found room in any image.")
    measured, notes = [], []
    for metric, result in results.items():
        measured.append(Measurement(metric, result.accuracy))
        for position, accuracy in zip(POSITIONS, result.by_position, strict=True):
            if accuracy == accuracy:
                measured.append(Measurement(metric, accuracy, at={"position": position}))
        notes.append(
            f"{metric.capitalize()} {100 * result.accuracy:.1f} %, 95 % interval over whole images "
            f"{100 * result.low:.1f} … {100 * result.high:.1f} %: {result.pairs:,} pairs of {result.images:,} images, "
            f"seed {job.seed}; chance is 12.5 %."
        )
    if data.boxes is not None and "accuracy inside boxes" not in results:
        notes.append("No pair lay within a box; more pairs and more draws of each photograph may find some.")
    details = {"notes": notes, **{name.replace(" ", "_"): result.to_dict() for name, result in results.items()}}
    return Result(NAME, job.variant, tuple(measured), details=details)
