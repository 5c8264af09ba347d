"""Semantic segmentation: a fully convolutional network trained from a backbone, by mean intersection over union.

Rows: ``voc12aug``, VOC 2012 with SBD, 512 px, 20,000 steps; ``cityscapes``, 769 px, 40,000 steps. Sources: METHOD C12
and C13; mmselfsup 0.x, ``configs/benchmarks/mmsegmentation``, with mmsegmentation 0.x.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from context_pred.data.transforms import EvalTransform
from context_pred.errors import ImageError, InvalidInputError, storing
from context_pred.evaluate.job import Job, Measurement, Result
from context_pred.evaluate.trained import Training, device_of, head_groups, identity_of, measured_batches, seeded, train
from context_pred.extras import need
from context_pred.training.rates import PolyRates

from .examples import Augmentation, TrainingExamples, WholeExamples, load, single, stacked
from .fcn import FCN, STRIDES, enlarged
from .label_maps import IGNORED, DataOptions, LabelMaps
from .layouts import read
from .pictures import beside

__all__ = ["DataOptions", "Settings", "read", "run"]

NAME = "segmentation"
LAYERS = "none"
TRAINS = True
VARIANTS = ("voc12aug", "cityscapes")

_CITYSCAPES: dict[str, Any] = {
    "scale": (2049, 1025), "crop": 769, "align_corners": True, "batch": 8, "steps": 40_000, "test": "slide",
    "test_crop": 769, "test_stride": 513,
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Every number of the protocol; the defaults are those of ``voc12aug``.

    Args:
        scale: Longer and shorter side in px that images are resized to fit, their shape kept; in the test, too.
        ratio: Of training images: ``scale`` is multiplied by a number drawn from here.
        crop: Side of the square cut from training images, in px.
        largest_share: A crop is drawn again where one class has as large a share of its labelled pixels, or more.
        crop_tries: How often at most.
        flip: Probability of mirroring, left to right.
        distortion: Probability of each of the four changes of colour.
        brightness: Levels of 255 added at most, up or down.
        contrast: Range of the factor.
        saturation: Range of the factor.
        hue: Degrees of 180 turned at most, either way.
        output_stride: 8 dilates stages 3 and 4, 16 stage 4, 32 none (which is several times faster).
        channels: Of the decode head; 0: a quarter of stage 4's, 512 of a ResNet-50.
        auxiliary_channels: Likewise of the auxiliary head on stage 3; 256 of a ResNet-50.
        auxiliary_weight: Of the auxiliary head's loss.
        dropout: Of both heads.
        align_corners: How score maps are enlarged.
        batch: Images a step.
        per_device: Of them, how many are computed (and normalised) together; 0: all that a process has.
        steps: Length of the training.
        learning_rate: At the first step.
        head_rate: What it is multiplied by for the heads; 10 is mmsegmentation's usual other value.
        least_rate: Towards the last.
        power: Of the fall between the two.
        momentum: Of SGD.
        weight_decay: Of every parameter.
        test: "whole": whole images; "slide": squares of ``test_crop``, whose scores are averaged.
        test_crop: Side in px.
        test_stride: From one square to the next, in px.
        precision: "float32", or "bfloat16" for autocast, in the test too.
        checkpoint_every: Steps between two checkpoints.
        pictures: Test images whose prediction is drawn beside the truth, into ``seed-N/pictures``.

    Raises:
        InvalidInputError: a number out of its range.
    """

    scale: tuple[int, int] = (2048, 512)
    ratio: tuple[float, float] = (0.5, 2.0)
    crop: int = 512
    largest_share: float = 0.75
    crop_tries: int = 10
    flip: float = 0.5
    distortion: float = 0.5
    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: int = 18
    output_stride: int = 8
    channels: int = 0
    auxiliary_channels: int = 0
    auxiliary_weight: float = 0.4
    dropout: float = 0.1
    align_corners: bool = False
    batch: int = 16
    per_device: int = 0
    steps: int = 20_000
    learning_rate: float = 0.01
    head_rate: float = 1.0
    least_rate: float = 1e-4
    power: float = 0.9
    momentum: float = 0.9
    weight_decay: float = 5e-4
    test: Literal["whole", "slide"] = "whole"
    test_crop: int = 512
    test_stride: int = 341
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint_every: int = 200
    pictures: int = 4

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("ratio", "contrast", "saturation"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise InvalidInputError(f"{name} = {low}, {high}: accepted are two numbers above 0, the smaller first.")
        least = {
            "crop": 16, "crop_tries": 0, "brightness": 0, "hue": 0, "channels": 0, "auxiliary_channels": 0,
            "auxiliary_weight": 0, "batch": 1, "per_device": 0, "steps": 1, "power": 0, "weight_decay": 0,
            "test_crop": 16, "test_stride": 1, "checkpoint_every": 1, "pictures": 0, "least_rate": 0,
        }  # fmt: skip
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InvalidInputError(f"{name} = {getattr(self, name)}: accepted is {bound} or more.")
        for name in ("largest_share", "flip", "distortion", "dropout", "momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidInputError(f"{name} = {getattr(self, name)}: accepted is 0 … 1.")
        if min(self.scale) < 16:
            raise InvalidInputError(f"scale = {self.scale[0]}, {self.scale[1]}: accepted are sides of 16 px or more.")
        if self.output_stride not in STRIDES:
            raise InvalidInputError(f"output_stride = {self.output_stride}: accepted is 8, 16 or 32.")
        if self.head_rate <= 0:
            raise InvalidInputError(f"head_rate = {self.head_rate}: accepted is above 0.")
        if not self.least_rate <= self.learning_rate or self.learning_rate <= 0:
            raise InvalidInputError(
                f"learning_rate = {self.learning_rate}, least_rate = {self.least_rate}: accepted are a rate above 0 "
                "and a least one up to that."
            )
        if self.per_device and self.batch % self.per_device:
            raise InvalidInputError(f"per_device = {self.per_device}: accepted is what divides batch, {self.batch}.")

    @property
    def augmentation(self) -> Augmentation:
        """What is done to a training image."""
        names = [field.name for field in dataclasses.fields(Augmentation)]
        return Augmentation(**{name: getattr(self, name) for name in names})


def defaults(variant: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a row has otherwise than ``voc12aug``."""
    return _CITYSCAPES if variant == "cityscapes" else {}


def run(job: Job) -> Result:
    """Train from the job's backbone, and measure."""
    for package in ("cv2", "torchmetrics"):
        need(package, "segmentation")
    settings: Settings = job.settings
    data: LabelMaps = job.data
    transform = job.preprocessing
    if transform.in_channels != 3:
        raise InvalidInputError(f"{job.source.name} takes {transform.in_channels} channels; segmentation needs RGB, 3.")
    job.record["images"] = _images(settings, transform)
    _check_tests(job)
    done = train(job, _training(job))
    confusion = _measured(job, done.model)
    notes = _notes(job, confusion, data.classes)
    _draw(job, done.model)
    details = {
        "notes": notes,
        "confusion": confusion.tolist(),
        "steps": done.steps,
        "images": done.images,
        "training_seconds": round(done.seconds, 1),
    }
    return Result(NAME, job.variant, tuple(measurements(confusion, data.classes)), details=details)


def _check_tests(job: Job) -> None:
    """Read the test's photographs and label maps before the training, which else would end at the first bad one."""
    found: list[ImageError] = []
    for pair in job.data.test[job.ranks.rank :: job.ranks.count]:
        try:
            load(pair, job.data.coding)
        except ImageError as error:
            found.append(error)
            break
    bad = [one for part in job.ranks.gather(found) for one in part]
    if bad:
        raise bad[0]


class SegmentationObjective:
    """Cross entropy of both heads over all pixels, of which those without a class count as 0, as mmsegmentation does.

    Args:
        auxiliary_weight: Of the auxiliary head's.
        device: Where the batch goes.
    """

    def __init__(self, auxiliary_weight: float, device: torch.device) -> None:
        self.auxiliary_weight, self.device = auxiliary_weight, device

    def __call__(
        self, model: nn.Module, batch: tuple[Tensor, Tensor], noise: torch.Generator
    ) -> tuple[Tensor, Tensor, int]:
        """Compute the loss; hits are pixels that were labelled right."""
        asked = int((batch[1] != IGNORED).sum())
        images = batch[0].to(self.device, non_blocking=True)
        labels = batch[1].to(self.device, non_blocking=True).long()
        scores, auxiliary = model(images)
        loss = self._loss(scores, labels) + self.auxiliary_weight * self._loss(auxiliary, labels)
        return loss, (scores.detach().argmax(1) == labels).sum(), asked

    @staticmethod
    def _loss(scores: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(scores, labels, ignore_index=IGNORED, reduction="sum") / labels.numel()


def _training(job: Job) -> Training:
    settings: Settings = job.settings
    data: LabelMaps = job.data
    with seeded(job.seed, 20):
        model = FCN(
            job.source.model.backbone.thawed(),
            len(data.classes),
            output_stride=settings.output_stride,
            channels=settings.channels,
            auxiliary_channels=settings.auxiliary_channels,
            dropout=settings.dropout,
            align_corners=settings.align_corners,
        )
    return Training(
        name="segmentation",
        model=model,
        objective=SegmentationObjective(settings.auxiliary_weight, device_of(job)),
        optimizer=lambda trained: torch.optim.SGD(
            head_groups(trained, ("head.", "auxiliary."), settings.head_rate),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        ),
        rates=lambda _: PolyRates(settings.learning_rate, settings.steps, settings.power, settings.least_rate),
        examples=TrainingExamples(data.train, data.coding, settings.augmentation, job.preprocessing),
        collate=stacked,
        images=settings.batch,
        identity=identity_of(
            [path for pair in data.train for path in (pair.image, pair.labels)], data.coding, len(data.classes),
            job.preprocessing,
        ),
        per_device=settings.per_device,
        sync_batch_norm=True,
        whole_epochs=False,
        precision=settings.precision,
        channels_last=True,
        checkpoint_every=settings.checkpoint_every,
    )  # fmt: skip


def scores(model: FCN, image: Tensor, size: tuple[int, int], settings: Settings) -> Tensor:
    """Score every pixel of a test image.

    Args:
        model: In eval mode.
        image: (1, 3, h, w), normalised.
        size: (H, W) of the label map.
        settings: Whole or sliding.

    Returns:
        (1, classes, H, W) float32.
    """
    if settings.test == "whole":
        found: Tensor = model(image)[0]
        return enlarged(found, size, settings.align_corners)
    height, width = image.shape[-2:]
    total: Any = 0
    counts = image.new_zeros(1, 1, height, width)
    for top, left in squares(height, width, settings.test_crop, settings.test_stride):
        part = (..., slice(top, top + settings.test_crop), slice(left, left + settings.test_crop))
        found = model(image[part])[0]
        if isinstance(total, int):
            total = image.new_zeros(1, found.shape[1], height, width)
        total[part] += found
        counts[part] += 1
    return enlarged(total / counts, size, settings.align_corners)


def squares(height: int, width: int, crop: int, stride: int) -> Iterator[tuple[int, int]]:
    """Yield the (top, left) corners of squares that cover an image; the last of a row or column ends at its edge."""
    for top in range(0, max(height - crop, 0) + stride, stride):
        for left in range(0, max(width - crop, 0) + stride, stride):
            yield max(0, min(top, height - crop)), max(0, min(left, width - crop))


def _measured(job: Job, model: nn.Module) -> NDArray[np.int64]:
    """Count (true class, predicted class) of every labelled pixel of the test images, over all ranks."""
    settings: Settings = job.settings
    data: LabelMaps = job.data
    matrix = need("torchmetrics.functional.classification", "segmentation").multiclass_confusion_matrix
    examples = WholeExamples(data.test, data.coding, settings.scale, job.preprocessing)
    total = torch.zeros(len(data.classes), len(data.classes), dtype=torch.int64)
    with torch.inference_mode(), tqdm(total=len(data.test), unit=" images", disable=not job.progress) as bar:
        for lot, (image, labels) in measured_batches(job, examples, single, 1):
            predicted = _predicted(job, model, image, labels)
            total += matrix(
                predicted, labels.long()[None], len(data.classes), ignore_index=IGNORED, validate_args=False
            )
            bar.update(len(lot) * job.ranks.count)
    summed: NDArray[np.int64] = job.ranks.total(total).numpy()
    return summed


def _predicted(job: Job, model: Any, image: Tensor, labels: Tensor) -> Tensor:
    """Return the classes of an image's pixels, (1, H, W) on the CPU."""
    device, size = device_of(job), (labels.shape[0], labels.shape[1])
    on_device = image[None].to(device, memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=job.settings.precision == "bfloat16"):
        return scores(model, on_device, size, job.settings).argmax(1).cpu()


def measurements(confusion: NDArray[np.int64], classes: tuple[str, ...]) -> Iterator[Measurement]:
    """Make the figures of a confusion matrix: mIoU, pixel accuracy, and each class's IoU; absent classes have none."""
    by_class = intersection_over_union(confusion)
    yield Measurement("mIoU", float(np.nanmean(by_class)))
    yield Measurement("pixel accuracy", float(np.trace(confusion) / confusion.sum()))
    for name, value in zip(classes, by_class.tolist(), strict=True):
        if value == value:
            yield Measurement("IoU", value, at={"class": name})


def intersection_over_union(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Compute each class's intersection over union from counts (true, predicted); NaN where a class is in neither.

    The mean over the classes that are not NaN is mmsegmentation's mIoU, over the pixels of the whole set.
    """
    hit = np.diag(confusion).astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - hit
    found: NDArray[np.float64] = np.divide(hit, union, out=np.full(len(hit), np.nan), where=union > 0)
    return found


def _images(settings: Settings, transform: EvalTransform) -> str:
    how = "whole" if settings.test == "whole" else f"squares of {settings.test_crop} px every {settings.test_stride} px"
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (transform.mean, transform.std))
    return (
        f"fitted into {settings.scale[0]} × {settings.scale[1]} px (bilinear, no antialiasing), {how}, "
        f"{transform.channel_order.upper()}, mean ({mean}), std ({std})"
    )


def _notes(job: Job, confusion: NDArray[np.int64], classes: tuple[str, ...]) -> list[str]:
    notes = []
    absent = [name for name, count in zip(classes, confusion.sum(1).tolist(), strict=True) if not count]
    predicted = [name for name, count in zip(classes, confusion.sum(0).tolist(), strict=True) if count]
    if absent:
        wrong = [name for name in absent if name in predicted]
        said = [f"Classes without a pixel in the test images: {', '.join(absent)}"]
        said += [f"{', '.join(wrong)} were predicted all the same and count as 0"] if wrong else []
        said += [f"{'the others' if wrong else 'they'} stay out of the mean"] if len(wrong) < len(absent) else []
        notes.append(f"{'; '.join(said)}.")
    if job.ranks.count > 1 and device_of(job).type == "cpu":
        notes.append("Batch norm saw the images of each process by itself: torch synchronises it on GPUs alone.")
    return notes


def _draw(job: Job, model: nn.Module) -> None:
    """Draw some test images, evenly spread, each beside its truth and the prediction."""
    if job.ranks.rank or not job.settings.pictures:
        return
    data: LabelMaps = job.data
    examples = WholeExamples(data.test, data.coding, job.settings.scale, job.preprocessing)
    count = min(job.settings.pictures, len(data.test))
    folder = job.out / "pictures"
    with storing(folder), torch.inference_mode():
        folder.mkdir(parents=True, exist_ok=True)
        for k in range(count):
            number = k * len(data.test) // count
            image, labels = examples.example(number, torch.Generator())
            predicted = _predicted(job, model, image, labels)[0].numpy()
            pixels, truth = load(data.test[number], data.coding)
            picture: Image.Image = beside(pixels, truth, predicted, data.classes)
            picture.save(folder / f"{data.test[number].image.stem}.png")
