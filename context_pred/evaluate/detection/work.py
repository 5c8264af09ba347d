"""A detector's run: training, tests on the way, the test at the end, and what is written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from context_pred.errors import InvalidInputError, storing
from context_pred.evaluate.job import Job
from context_pred.evaluate.trained import Training, check, device_of, identity_of, measured_batches, seeded, train
from context_pred.training.loop import PRECISIONS, Rates
from context_pred.weights_file import write_bytes

from .average_precision import Detections
from .boxes import BoxedImage, BoxedImages
from .examples import DetectionExamples, collate
from .options import DetectorSettings
from .parts import Detector, objective

EVALUATIONS, DETECTIONS = "evaluations.jsonl", "detections.json"
_HEADS = 21  # the key of the heads' random weights

Masks = Callable[[Tensor, Tensor, tuple[int, int]], list[dict[str, Any]]]


@dataclass(frozen=True)
class Work:
    """What one row's detector differs in.

    Attributes:
        build: Makes it, on the CPU.
        rates: As in ``Training``.
        score: From the detections of every test image to figures.
        evaluate_every: Steps between two tests on the way; 0: none.
        masks: From masks (n, 1, m, m), boxes (n, 4) and (height, width) to COCO's run lengths; None: no masks.
    """

    build: Callable[[], Detector]
    rates: Callable[[int], Rates]
    score: Callable[[list[Detections]], dict[str, Any]]
    evaluate_every: int = 0
    masks: Masks | None = None


def trained_and_tested(job: Job, work: Work) -> tuple[dict[str, Any], list[str]]:
    """Train, test, write ``detections.json``; return the figures, and notes."""
    settings: DetectorSettings = job.settings
    data: BoxedImages = job.data
    channels = job.preprocessing.in_channels
    if channels != 3:
        raise InvalidInputError(f"{job.source.name} takes {channels} channels; detection needs RGB, 3.")
    for part, images in (("to learn from", data.train), ("to test with", data.test)):
        if not any(map(len, images)):
            raise InvalidInputError(f"{data.name} has no boxes {part}.")
    check([one.path for one in data.test], job.ranks)
    _record(job, settings)
    with seeded(job.seed, _HEADS):
        model = work.build()
    examples = DetectionExamples(
        data.train, settings.short_sides, settings.max_side, settings.flip, settings.antialias,
        masks=work.masks is not None,
    )  # fmt: skip
    tested = DetectionExamples(
        data.test, (settings.test_short_side,), settings.max_side, antialias=settings.antialias, train=False
    )
    history = _History(job)

    def evaluate(done: int) -> None:
        history.add(done, work.score(detect(job, model, tested, work.masks)))

    trained = train(
        job,
        Training(
            name="detector",
            model=model,
            objective=objective,
            optimizer=lambda module: optimizer(module, settings),
            rates=work.rates,
            examples=examples,
            collate=collate,
            images=settings.batch,
            identity=identity(data, settings, job),
            per_device=settings.per_device,
            sync_batch_norm=True,
            groups=[int(one.size[0] > one.size[1]) for one in data.train],  # mmdetection's: wide ones, and others
            precision=settings.precision,
            checkpoint_every=settings.checkpoint_every,
            evaluate=evaluate,
            evaluate_every=work.evaluate_every,
        ),
    )
    found = detect(job, trained.model, tested, work.masks)
    job.ranks.lead(lambda: write(job.out / DETECTIONS, data, found))
    figures = work.score(found)
    rows = history.rows()
    if rows:
        figures["on the way"] = rows
    notes = [f"Trained for {trained.steps:,} steps on {trained.images:,} images in {trained.seconds:.0f} s."]
    if job.ranks.count > 1 and device_of(job).type == "cpu":
        notes.append("On a CPU the batch norm of each process saw its own images alone.")
    return figures, notes


def optimizer(model: nn.Module, settings: DetectorSettings) -> torch.optim.Optimizer:
    """Make SGD over every weight."""
    return torch.optim.SGD(
        [one for one in model.parameters() if one.requires_grad], lr=settings.learning_rate,
        momentum=settings.momentum, weight_decay=settings.weight_decay,
    )  # fmt: skip


def identity(data: BoxedImages, settings: DetectorSettings, job: Job) -> str:
    """Tell this training from others: its images and boxes, the settings, the model."""
    boxes = hashlib.sha256()
    for one in data.train:
        for part in (one.boxes, one.labels, one.difficult, one.crowd, one.areas):
            boxes.update(part.tobytes())
    told = {k: v for k, v in dataclasses.asdict(settings).items() if k not in ("evaluate_every", "checkpoint_every")}
    return identity_of(
        [one.path for one in data.train], boxes.hexdigest(), told, data.classes, job.source.digest, job.seed
    )


def _record(job: Job, settings: DetectorSettings) -> None:
    own = settings.transform(job.preprocessing)
    sides = settings.short_sides
    learned = f"{sides[0]} … {sides[-1]} px ({len(sides)} sides)" if len(sides) > 1 else f"{sides[0]} px"
    scale = ["(" + ", ".join(f"{255 * value:.6g}" for value in values) + ")" for values in (own.mean, own.std)]
    job.record["images"] = (
        f"shorter side {learned} in training and {settings.test_short_side} px in testing, longer side "
        f"{settings.max_side} px at the most, {own.channel_order.upper()}, mean {scale[0]}, std {scale[1]} of 255."
    )


def detect(job: Job, model: nn.Module, examples: DetectionExamples, masks: Masks | None = None) -> list[Detections]:
    """Run a detector in eval mode over the test images, shared among the ranks; every rank returns all, in order."""
    mine: list[tuple[int, Detections]] = []
    precision = PRECISIONS[job.settings.precision]
    size = job.settings.test_batch
    bar = tqdm(total=len(examples), unit="image", desc="testing", disable=not job.progress, leave=False)
    device = device_of(job)
    with bar, torch.inference_mode(), torch.autocast(device.type, precision, enabled=precision != torch.float32):
        for lot, (images, targets) in measured_batches(job, examples, collate, size):
            for number, target, one in zip(lot, targets, model(images), strict=True):
                mine.append((number, _in_file(one, target, masks)))
            bar.update(len(lot) * job.ranks.count)
    every = dict(pair for part in job.ranks.gather(mine) for pair in part)
    return [every[number] for number in range(len(examples))]


def _in_file(found: dict[str, Tensor], target: dict[str, Tensor], masks: Masks | None) -> Detections:
    """Bring detections from the resized image to the file's own size; labels count from 0."""
    height, width = target["original"].tolist()
    scale = (target["original"] / target["size"]).flip(0).repeat(2).to(found["boxes"])
    boxes = found["boxes"] * scale
    outlines = tuple(masks(found["masks"], boxes, (height, width))) if masks is not None else ()
    return Detections(
        boxes.float().cpu().numpy(), found["scores"].float().cpu().numpy(),
        (found["labels"] - 1).cpu().numpy().astype(np.int64), outlines,
    )  # fmt: skip


class _History:
    """Figures on the way, kept in a file, so that a run that goes on has them all."""

    def __init__(self, job: Job) -> None:
        self.path, self.lead = job.out / EVALUATIONS, job.ranks.rank == 0

    def add(self, step: int, figures: dict[str, Any]) -> None:
        rows = [row for row in self.rows() if row["step"] < step]
        if self.lead:
            plain = {name: value for name, value in figures.items() if isinstance(value, float)}
            lines = [json.dumps(row) for row in (*rows, {"step": step, **plain})]
            write_bytes(("\n".join(lines) + "\n").encode(), self.path)

    def rows(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines() if line]


def as_coco(images: Sequence[BoxedImage], found: Sequence[Detections], categories: Sequence[int]) -> list[Any]:
    """Return detections as COCO's results: image_id, category_id, bbox (x, y, width, height), score, segmentation."""
    rows = []
    for image, one in zip(images, found, strict=True):
        for k, (box, score, label) in enumerate(zip(one.boxes.tolist(), one.scores, one.labels, strict=True)):
            row: dict[str, Any] = {
                "image_id": image.number,
                "category_id": categories[label],
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "score": float(score),
            }
            if one.masks:
                row["segmentation"] = one.masks[k]
            rows.append(row)
    return rows


def write(path: Path, data: BoxedImages, found: Sequence[Detections]) -> None:
    """Write what was found in COCO's format of results, with the classes and the images that the numbers stand for."""
    rows = as_coco(data.test, found, data.categories or range(len(data.classes)))
    record = {
        "categories": [
            {"id": k, "name": name}
            for k, name in zip(data.categories or range(len(data.classes)), data.classes, strict=True)
        ],
        "images": [{"id": image.number, "file_name": image.path.name} for image in data.test],
        "annotations": rows,
    }
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, default=_text) + "\n", encoding="utf-8")


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
