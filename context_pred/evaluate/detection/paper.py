"""What the rows of the paper's own detection table have in common: VOC2007, the 11-point figure, weights kept."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from context_pred.errors import InvalidInputError, storing

from ..job import Job, Measurement, Result
from . import average_precision
from .average_precision import Detections
from .boxes import BoxedImages

NO_WEIGHTS = "No weights of the paper's tower are published with this library: random ones, or your own, are measured."


def data_of(job: Job) -> BoxedImages:
    """Return VOC2007 of a devkit that has more, or a folder of one's own in VOC's layout, as it is.

    Raises:
        InvalidInputError: COCO, whose boxes and figure are others; or no training image with an object.
    """
    data: BoxedImages = job.data
    if data.kind == "coco":
        raise InvalidInputError(
            f"variant={job.variant!r} takes a folder in VOC's layout, and {data.name} is in COCO's."
        )
    if data.kind == "voc0712":
        data = data.only("VOC2007")
    if not any(len(image) for image in data.train):
        raise InvalidInputError(f"No object is marked in any training image of {data.name}: nothing to learn.")
    return data


def result_of(
    job: Job, data: BoxedImages, found: Sequence[Detections], notes: Sequence[str], details: dict[str, Any]
) -> Result:
    """Measure: mAP by VOC2007's 11-point rule, difficult objects ignored; the area form beside it; AP by class."""
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
    said = [f"No test image shows {', '.join(untested)}: left out of the mean."] if untested else []
    own = [note for note in data.notes if note not in job.data.notes]
    return Result(
        "detection", job.variant, tuple(measured), best=measured[0],
        details={**details, "notes": [*own, *said, *notes, NO_WEIGHTS]},
    )  # fmt: skip


_FORMS = ("11-point", "area")


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a model's weights, whole or not at all."""
    from safetensors.torch import save_file

    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}, draft)
        os.replace(draft, path)


def load_weights(model: nn.Module, path: Path) -> None:
    """Read what ``save_weights`` wrote, onto the model's own device."""
    from safetensors.torch import load_file

    model.load_state_dict(load_file(path))


def device_of_model(model: nn.Module) -> torch.device:
    """Return where a model's weights are."""
    return next(model.parameters()).device
