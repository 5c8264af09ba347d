"""What the rows of the paper's detection table have in common: VOC2007, its tower, Caffe's SGD, the 11-point figure."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors.torch import load_file, save_file
from torch import nn

from context_pred.backbones import ContextNetBackbone
from context_pred.data.transforms import EvalTransform
from context_pred.errors import InvalidInputError, storing
from context_pred.training.examples import Examples
from context_pred.training.loop import Objective
from context_pred.training.rates import StepRates

from ..job import Job, Measurement, Result
from ..trained import Training, identity_of, seeded
from . import average_precision
from .average_precision import Detections
from .boxes import BoxedImages
from .proposals import Boxes, ProposalOptions, at_least_one, of_images, shares
from .tower import Tower, caffe_sgd, tower_of
from .work import DETECTIONS, write

Model = TypeVar("Model", bound=nn.Module)

NO_WEIGHTS = "No weights of the paper's tower come with this library: these are random ones."


@dataclass(frozen=True, kw_only=True)
class FineTuning(ProposalOptions):
    """How the tower and the layers on it learn, and which of their detections count.

    Args:
        images: A step.
        dropout: Between the fully connected layers.
        frozen: Convolutions that are not trained, from the first on.
        learning_rate: Of the weights; biases learn at twice the rate, without decay.
        momentum: Of SGD.
        weight_decay: Of SGD.
        steps: Of the whole run.
        milestones: Steps before which the rate falls to a tenth.
        nms: Intersection over union above which the weaker of two boxes of a class goes.
        detections: At the most; of an image, or of a class in it.
        precision: "float32", or "bfloat16" for autocast.

    Raises:
        InvalidInputError: an option out of its range.
    """

    images: int
    dropout: float = 0.5
    frozen: int
    learning_rate: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 5e-4
    steps: int
    milestones: tuple[int, ...]
    nms: float = 0.3
    detections: int = 100
    precision: str = "float32"

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        at_least_one(self, "images", "steps", "detections")
        shares(self, "nms")
        if not 0 <= self.dropout < 1 or not 0 <= self.frozen <= 5:
            raise InvalidInputError(
                f"dropout = {self.dropout}, frozen = {self.frozen}: accepted are 0 up to 1, and 0 … 5."
            )
        if self.learning_rate <= 0 or self.weight_decay < 0 or not 0 <= self.momentum < 1:
            raise InvalidInputError(
                f"learning_rate = {self.learning_rate}, momentum = {self.momentum}, weight_decay = "
                f"{self.weight_decay}: accepted are above 0, 0 up to 1, and 0 or more."
            )


def milestones_of(given: Mapping[str, Any], *shares: float) -> dict[str, Any]:
    """Return the milestones at shares of a number of steps that was given, as defaults."""
    steps = given.get("steps")
    if steps is None or not str(steps).isdecimal():
        return {}
    return {"milestones": tuple(int(int(steps) * share) for share in shares)}


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


def build(job: Job, variant: str, make: Callable[[ContextNetBackbone], Model]) -> Model:
    """Make a detector on the job's backbone, seeded, its first convolutions frozen; not yet started from data.

    Args:
        job: Its backbone and settings are used.
        variant: Said in the error.
        make: Puts the detector, which has a ``tower``, on the backbone.

    Raises:
        InvalidInputError: a backbone that is not the paper's tower.
    """
    settings: FineTuning = job.settings
    backbone = tower_of(job.source.model.backbone, job.source.model.card.backbone or job.source.name, variant)
    with seeded(job.seed, 1):
        model = make(backbone)
    tower: Tower = model.get_submodule("tower")  # type: ignore[assignment]
    for layer in tower.convolutions[: settings.frozen]:
        layer.requires_grad_(False)
    return model


def proposals_of(job: Job, data: BoxedImages) -> tuple[list[Boxes], list[Boxes]]:
    """Return the proposals of the training and of the test images, searched or from files."""
    train, test = (
        of_images(
            images, job.settings, split, job.kept or job.out,
            workers=job.workers, progress=job.progress, ranks=job.ranks,
        )
        for images, split in ((data.train, "train"), (data.test, "test"))
    )  # fmt: skip
    return train, test


def training_of(
    job: Job, name: str, model: nn.Module, objective: Objective, examples: Examples, paths: Sequence[Path],
    multipliers: dict[str, float] | None = None,
) -> Training:  # fmt: skip
    """Describe the fine-tuning: Caffe's SGD, the rate divided by ten at the milestones.

    Args:
        job: Its settings are used.
        name: Of the run's folder.
        model: Started.
        objective: The loss.
        examples: One an image; a step has lists of them.
        paths: Of the images.
        multipliers: Of the rate, by the beginning of a parameter's name.
    """
    settings: FineTuning = job.settings
    rates = StepRates(settings.learning_rate, settings.steps, settings.milestones)
    return Training(
        name=name,
        model=model,
        objective=objective,
        optimizer=lambda trained: caffe_sgd(
            trained, settings.learning_rate, settings.momentum, settings.weight_decay, multipliers
        ),
        rates=lambda _: rates,
        examples=examples,
        collate=as_list,
        images=settings.images,
        identity=identity_of(paths, settings.proposals_train),
        whole_epochs=False,
        precision=settings.precision,
    )


def as_list(loaded: list[Any]) -> list[Any]:
    """Leave the examples of a batch apart: they are of different sizes."""
    return loaded


def in_order(job: Job, mine: list[tuple[int, Detections]]) -> list[Detections]:
    """Bring together what the ranks found, by the number of the image."""
    everything = [one for part in job.ranks.gather(mine) for one in part]
    return [found for _, found in sorted(everything, key=lambda one: one[0])]


def result_of(
    job: Job, data: BoxedImages, found: Sequence[Detections], notes: Sequence[str], details: dict[str, Any]
) -> Result:
    """Write the detections, and measure: mAP by VOC2007's 11-point rule, difficult objects ignored; AP by class.

    Args:
        job: What was run.
        data: As ``data_of`` gave it.
        found: In the test images, in their order.
        notes: Sentences about this run.
        details: JSON values about it.
    """
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


def counted(train: Sequence[Boxes], test: Sequence[Boxes]) -> tuple[dict[str, float], str]:
    """Return the mean number of proposals an image of both splits, and a sentence on it."""
    means = {
        split: float(np.mean([len(boxes) for boxes in proposals]))
        for split, proposals in (("train", train), ("test", test))
    }
    return means, f"Proposals an image: {means['train']:,.0f} in training, {means['test']:,.0f} in the test."


def described(transform: EvalTransform) -> str:
    """Say channel order, mean and standard deviation."""
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (transform.mean, transform.std))
    return f"{transform.channel_order.upper()}, mean ({mean}), std ({std})"
