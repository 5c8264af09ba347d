"""What the rows of the paper's own detection table have in common: VOC2007, the 11-point figure, weights kept."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file
from torch import nn

from context_pred.data.transforms import EvalTransform
from context_pred.errors import InvalidInputError, storing

from ..job import Job, Measurement, Result
from . import average_precision
from .average_precision import Detections
from .boxes import BoxedImages
from .proposals import Boxes
from .work import DETECTIONS, write

NO_WEIGHTS = "No weights of the paper's tower come with this library: these are random ones."


def data_of(variant: str, data: BoxedImages) -> BoxedImages:
    """Return VOC2007 of a devkit that has more, or a folder of one's own in VOC's layout, as it is.

    Raises:
        InvalidInputError: COCO, whose boxes and figure are others; or a split without any object.
    """
    if data.kind == "coco":
        raise InvalidInputError(f"variant={variant!r} takes a folder in VOC's layout, and {data.name} is in COCO's.")
    if data.kind == "voc0712":
        data = data.only("VOC2007")
    for split, images, what in (("training", data.train, "learn"), ("test", data.test, "measure")):
        if not any(len(image) for image in images):
            raise InvalidInputError(f"No object is marked in any {split} image of {data.name}: nothing to {what}.")
    return data


def result_of(
    job: Job, data: BoxedImages, found: Sequence[Detections], notes: Sequence[str], details: dict[str, Any]
) -> Result:
    """Write the detections, and measure: mAP by VOC2007's 11-point rule, difficult objects ignored; AP by class."""
    job.ranks.lead(lambda: write(job.out / DETECTIONS, data, found))
    precision = {form: average_precision.voc(data.test, found, len(data.classes), form=form)[0] for form in _FORMS}
    points = precision["11-point"]
    measured = [
        Measurement("mAP", average_precision.mean(points)),
        Measurement("mAP (area)", average_precision.mean(precision["area"])),
        *(
            Measurement("AP", float(value), at={"class": name})
            for name, value in zip(data.classes, points, strict=True)
            if not np.isnan(value)
        ),
    ]
    untested = [name for name, value in zip(data.classes, points, strict=True) if np.isnan(value)]
    said = [note for note in data.notes if note not in job.data.notes]
    said += [f"No test image shows {', '.join(untested)}: left out of the mean."] if untested else []
    said += [*notes, *_own_weights(job)]
    return Result("detection", job.variant, tuple(measured), details={**details, "notes": said})


def _own_weights(job: Job) -> list[str]:
    return [NO_WEIGHTS] if job.source.kind == "random" else []


_FORMS = ("11-point", "area")


def kept_start(job: Job, name: str, model: nn.Module, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Start a model from data on rank 0, or take over the start that an earlier call kept; return what was done.

    Args:
        job: Its folder keeps the weights.
        name: Of the run's folder, in the job's.
        model: On the CPU; it has the started weights afterwards, on every rank.
        work: Starts the model in place, and says in JSON values what it did.
    """
    weights, said = (job.out / name / f"start.{suffix}" for suffix in ("safetensors", "json"))

    def lead() -> dict[str, Any]:
        if not (weights.is_file() and said.is_file()):
            done = work()
            _save(model, weights)
            with storing(said):
                said.write_text(json.dumps(done), encoding="utf-8")
        found: dict[str, Any] = json.loads(said.read_text(encoding="utf-8"))
        return found

    found = job.ranks.lead(lead)
    model.cpu().load_state_dict(load_file(weights))
    return found


def _save(model: nn.Module, path: Path) -> None:
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}, draft)
        os.replace(draft, path)


def mean_of(proposals: Sequence[Boxes]) -> float:
    """Mean number of proposals an image."""
    return float(np.mean([len(boxes) for boxes in proposals]))


def described(transform: EvalTransform) -> str:
    """Say channel order, mean and standard deviation."""
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (transform.mean, transform.std))
    return f"{transform.channel_order.upper()}, mean ({mean}), std ({std})"
