"""Linear classifiers on the frozen maps of each layer, all trained together (protocol ``linear``).

With ``pool = "gap"`` one linear layer on the mean over positions of the last layer. Sources: METHOD C4–C7, Q13, Q16;
mmselfsup 0.x ``configs/benchmarks/classification``, after Zhang et al. (ECCV 2016) and Goyal et al. (ICCV 2019); for
the mean over positions He et al. (CVPR 2020).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from context_pred.errors import InvalidInputError
from context_pred.training.examples import Examples
from context_pred.training.loop import PRECISIONS
from context_pred.training.rates import StepRates

from . import _schedule, feature_batches, features, sources
from .augment import (
    Augmentation,
    Batch,
    Crop,
    Interpolation,
    Lighting,
    TestImages,
    TrainImages,
    check_tests,
    collate,
    prepared,
)
from .feature_batches import FeatureBatch, FeatureRows
from .features import Preprocessing
from .heads import Frozen, Heads, SumOfLosses, accuracies
from .job import Job, Measurement, Result
from .kept import Kept, digest
from .settings import bytes_of
from .trained import Training, device_of, identity_of, measured_batches, train

NAME = "linear"
VARIANTS = ("imagenet", "places205", "inat18")

_TEST_BATCH = 256


@dataclass(frozen=True)
class Settings:
    """Every number of the protocol; as they stand here, ImageNet's with all layers (METHOD C4, 0.x).

    Args:
        pool: "grid": each layer's map pooled to a grid (about 9,000 values of a ResNet-50). "gap": the mean over
            positions, of the last layer.
        version: "0.x" or "1.x" of mmselfsup, from which the other defaults follow.
        augment: "full": images are decoded and cut anew in every epoch, as published. "none": features of the test's
            preprocessing are computed once, kept, and read in every epoch. "auto": "full" for a network, "none" for
            pixels and HOG.
        epochs: Passes over the images.
        milestones: Epochs after which the learning rate falls.
        factor: What it is then multiplied by.
        batch: Images a step.
        per_device: Images that batch norm sees together; 0: the whole batch.
        learning_rate: At the start.
        momentum: Of SGD.
        nesterov: Whether it is Nesterov's.
        weight_decay: Of the linear layers.
        init_std: Standard deviation of their random weights.
        norm: Whether batch norm without scale and shift comes first.
        norm_momentum: Of its running statistics.
        size: Side of the square that the network sees.
        resize: The shorter side before the centre is cut out; 0: 8 / 7 of the size.
        resampling: Of crops and of the test's resizing: "pillow" is bilinear, "bicubic"; both antialiased.
        crop: Of training images; see ``Augmentation``, as for those that follow.
        scale: Shares of the area that a crop has.
        ratio: Width over height that it has.
        flip: Probability of left and right changing places.
        jitter: Brightness, contrast, saturation, hue.
        lighting: Standard deviation of the colour components' shares.
        lighting_on: "float" or "uint8".
        evaluate_every: Epochs between two evaluations; 0: at the end alone.
        memory: Bound of stored features in memory (``augment = "none"``), as "1GB".
        precision: "float32", or "bfloat16" for autocast.

    Raises:
        InvalidInputError: a number out of its range.
    """

    pool: Literal["grid", "gap"] = "grid"
    version: Literal["0.x", "1.x"] = "0.x"
    augment: Literal["auto", "full", "none"] = "auto"
    epochs: int = 90
    milestones: tuple[int, ...] = (30, 60)
    factor: float = 0.1
    batch: int = 256
    per_device: int = 0
    learning_rate: float = 0.01
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    init_std: float = 0.01
    norm: bool = True
    norm_momentum: float = 0.1
    size: int = 224
    resize: int = 0
    resampling: Interpolation = "pillow"
    crop: Crop = "resized"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.0)
    lighting: float = 0.1
    lighting_on: Lighting = "float"
    evaluate_every: int = 10
    memory: str = "1GB"
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        """Check the ranges."""
        _schedule.check(self.epochs, self.milestones, self.factor, self.batch, self.per_device, self.evaluate_every)
        _schedule.check_sgd(self.momentum, self.nesterov, self.weight_decay, self.init_std)
        if self.learning_rate <= 0 or not 0 < self.norm_momentum <= 1:
            raise InvalidInputError(
                f"learning_rate = {self.learning_rate}, norm_momentum = {self.norm_momentum}: accepted is a rate above "
                "0, and a momentum above 0 and up to 1."
            )
        bytes_of(self.memory)
        self.preprocessing()
        self.augmentation("rgb", 3)

    def preprocessing(self) -> Preprocessing:
        """Return how test images, and those of stored features, become the network's input."""
        return Preprocessing(self.size, resize=self.resize or None, resampling=self.resampling)

    def augmentation(self, channel_order: str, channels: int) -> Augmentation:
        """Return how training images do."""
        names = ("size", "crop", "scale", "ratio", "flip", "jitter", "lighting", "lighting_on")
        return Augmentation(
            **{name: getattr(self, name) for name in names},
            resize=self.resize or round(self.size * 8 / 7),
            interpolation=self.resampling,
            channel_order=channel_order,
            channels=channels,
        )


_PLAIN = {"jitter": (0.0, 0.0, 0.0, 0.0), "lighting": 0.0}
_ROWS: dict[str, dict[str, Any]] = {
    "imagenet": {},
    "places205": {"epochs": 28, "milestones": (7, 14, 21), "crop": "window", **_PLAIN},
    "inat18": {"epochs": 84, "milestones": (24, 48, 72), **_PLAIN},
}
_GAP: dict[str, Any] = {
    "epochs": 100, "milestones": (60, 80), "learning_rate": 30.0, "nesterov": False, "weight_decay": 0.0,
    "norm": False, "evaluate_every": 1, **_PLAIN,
}  # fmt: skip
_LATER = {"resampling": "bicubic", "milestones": (60, 80), "lighting_on": "uint8", "evaluate_every": 1}


def defaults(variant: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return where a row's settings differ from ImageNet's; milestones stand at the same shares of other epochs.

    Raises:
        InvalidInputError: version "1.x" of a row whose upstream settings do not run.
    """
    gap, later = given.get("pool") == "gap", given.get("version") == "1.x"
    if later and not gap and variant != "imagenet":
        raise InvalidInputError(
            f"version = '1.x' with variant {variant}: mmselfsup 1.x's file for it does not run; accepted is '0.x'."
        )
    found = dict(_GAP if gap else _LATER if later else _ROWS[variant or "imagenet"])
    usual = Settings(**found)
    return found | _schedule.scaled(usual.epochs, usual.milestones, given)


def row_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what asks for a published row: the mean over positions, which 1.x measures as 0.x does."""
    names = ("pool", "version") if given.get("pool") == "gap" else ("pool",)
    return {name: given[name] for name in names if name in given}


def usual_layers(settings: Settings) -> str:
    """All layers; with "gap" the last; mmselfsup 1.x has no head on the stem."""
    return "last" if settings.pool == "gap" else "all but first" if settings.version == "1.x" else "all"


def opens_every_file(settings: Settings) -> bool:
    """Tell whether damaged images must be looked for before the training."""
    return settings.augment != "none"


@dataclass(frozen=True)
class Inputs:
    """What the heads learn from and are measured with: images through a frozen network, or stored features.

    Attributes:
        shapes: {layer: shape of one image's pooled map}.
        examples: Of training.
        collate: From these to a batch.
        tests: Of the test; ``collate_tests`` likewise.
        pooled: From a batch of either to pooled maps and classes, on the device.
        test_batch: Images of the test at once.
        job: With as many loading processes as these examples need.
    """

    shapes: dict[str, tuple[int, ...]]
    examples: Examples
    collate: Callable[[list[Any]], Any]
    tests: Examples
    collate_tests: Callable[[list[Any]], Any]
    pooled: Callable[[Any], tuple[dict[str, Tensor], Tensor]]
    test_batch: int
    job: Job


def run(job: Job) -> Result:
    """Train the heads of the job's layers, and measure them after the last epoch; the best layer is named."""
    settings: Settings = job.settings
    inputs = _features(job) if _stored(job) else _images(job)
    curve = fit(inputs, settings)
    at: dict[str, float | str] = {"pool": "gap"} if settings.pool == "gap" else {}
    last = curve[-1]["layers"]
    measured = tuple(
        Measurement(metric, last[layer][metric], layer, at) for layer in job.layers for metric in ("top-1", "top-5")
    )
    best = max((one for one in measured if one.metric == "top-1"), key=lambda one: one.value)
    return Result(NAME, job.variant, measured, best=best, details={"curve": curve, "notes": _notes(job)})


def _stored(job: Job) -> bool:
    """Tell whether features are computed once and kept.

    Raises:
        InvalidInputError: pixels or HOG, and images anew in every epoch.
    """
    fixed = job.source.kind in sources.FIXED
    if fixed and job.settings.augment == "full":
        raise InvalidInputError(
            f"augment = 'full' with model {job.source.name}: accepted is 'none', since pixels and HOG are stored once."
        )
    return fixed or bool(job.settings.augment == "none")


def _notes(job: Job) -> list[str]:
    notes = []
    if _stored(job):
        notes.append("Heads trained on stored features of images that were not augmented.")
    if job.settings.norm and job.ranks.count > 1 and device_of(job).type == "cpu":
        notes.append(f"Batch norm saw the batch in {job.ranks.count} parts, one a process, not whole.")
    return notes


def _images(job: Job) -> Inputs:
    """Images decoded and cut anew in every epoch, through the frozen network."""
    settings: Settings = job.settings
    own, device, data = job.preprocessing, device_of(job), job.data
    test = settings.preprocessing().transform(own)
    features.note(job, test, settings.pool)
    frozen = Frozen(job.source.model.backbone, job.layers, settings.pool, device)
    augmentation = settings.augmentation(own.channel_order, own.in_channels)

    def pooled(batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        images, classes = prepared(batch, own, device)
        return frozen(images), classes

    return Inputs(
        shapes=frozen.shapes(own.in_channels, settings.size),
        examples=TrainImages(data.train.files, data.train.single, augmentation),
        collate=collate,
        tests=TestImages(data.test.files, data.test.single, test),
        collate_tests=collate,
        pooled=pooled,
        test_batch=min(settings.batch, _TEST_BATCH),
        job=job,
    )


def _features(job: Job) -> Inputs:
    """Features of the test's preprocessing, computed once and read from their files.

    Raises:
        InvalidInputError: a batch does not fit into the memory that the settings allow.
    """
    settings: Settings = job.settings
    data, pool = job.data, job.source.pool(settings.pool)
    train, test = data.train.single, data.test.single
    frozen = Frozen(job.source.model.backbone, job.layers, pool, torch.device("cpu"))
    shapes = frozen.shapes(job.preprocessing.in_channels, settings.size)
    share = -(-min(settings.batch, len(train)) // job.ranks.count)
    feature_batches.check(shapes, share, bytes_of(settings.memory))
    stored = [
        {layer: job.features(name, layer, settings.preprocessing(), settings.pool) for layer in job.layers}
        for name in ("train", "test")
    ]
    return of_features(job, FeatureRows(stored[0], train), FeatureRows(stored[1], test))


def of_features(job: Job, rows: FeatureRows, tests: FeatureRows) -> Inputs:
    """Return what to learn from and measure with of stored features."""
    device, memory = device_of(job), bytes_of(job.settings.memory)

    def pooled(batch: FeatureBatch) -> tuple[dict[str, Tensor], Tensor]:
        found, classes = batch
        return {layer: one.to(device, non_blocking=True) for layer, one in found.items()}, classes.to(device)

    return Inputs(
        shapes=rows.shapes,
        examples=rows,
        collate=rows.collate,
        tests=tests,
        collate_tests=tests.collate,
        pooled=pooled,
        test_batch=max(1, min(_TEST_BATCH, feature_batches.rows_within(rows.shapes, memory))),
        job=dataclasses.replace(job, workers=0),  # a batch from another process would be a copy more
    )


def fit(inputs: Inputs, settings: Settings) -> list[dict[str, Any]]:
    """Train, with evaluations in between; every evaluation is kept as soon as it is made.

    Returns:
        [{"epoch", "layers": {layer: {"top-1", "top-5"}}}], the last after the last epoch.
    """
    job, classes = inputs.job, len(inputs.job.data.classes)
    heads = Heads(
        inputs.shapes,
        classes,
        norm_momentum=settings.norm_momentum if settings.norm else None,
        init_std=settings.init_std,
        seed=job.seed,
    )
    identity = _identity(job, inputs.shapes)
    kept = Kept(job.out / NAME / "curve.jsonl", digest(identity))
    epochs = range(1, settings.epochs + 1)
    known: dict[int, Any] = job.ranks.lead(lambda: {epoch: kept[epoch,] for epoch in epochs if (epoch,) in kept})

    def measure(epoch: int) -> None:
        found = accuracies(_outputs(inputs, heads), heads.layers, job.ranks)
        known[epoch] = {layer: dict(zip(("top-1", "top-5"), pair, strict=True)) for layer, pair in found.items()}
        if job.ranks.rank == 0:
            kept.keep((epoch,), known[epoch])

    if settings.epochs not in known:
        if isinstance(inputs.tests, TestImages):
            check_tests(job)
        per_epoch = [1]  # steps, as the loop counts them

        def rates(steps: int) -> StepRates:
            per_epoch[0] = steps
            return _schedule.step_rates(
                settings.learning_rate, settings.epochs, settings.milestones, settings.factor, steps
            )

        train(
            job,
            Training(
                NAME,
                heads,
                SumOfLosses(inputs.pooled),
                partial(optimizer, settings),
                rates,
                inputs.examples,
                inputs.collate,
                settings.batch,
                identity,
                per_device=settings.per_device,
                sync_batch_norm=settings.norm,
                precision=settings.precision,
                evaluate=lambda done: measure(done // per_epoch[0]),
                evaluate_epochs=settings.evaluate_every,
            ),
        )
        measure(settings.epochs)
    return [{"epoch": epoch, "layers": known[epoch]} for epoch in sorted(known)]


def optimizer(settings: Settings, heads: nn.Module) -> torch.optim.Optimizer:
    """Make the heads' optimiser; the batch norms have nothing to learn."""
    return torch.optim.SGD(
        heads.parameters(),
        settings.learning_rate,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )


def _outputs(inputs: Inputs, heads: nn.Module) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    settings, device = inputs.job.settings, device_of(inputs.job)
    low = torch.autocast(device.type, PRECISIONS[settings.precision], enabled=settings.precision != "float32")
    for _, batch in measured_batches(inputs.job, inputs.tests, inputs.collate_tests, inputs.test_batch):
        with torch.no_grad(), low:
            maps, classes = inputs.pooled(batch)
            yield heads(maps), classes


def _identity(job: Job, shapes: Mapping[str, Any]) -> str:
    """Tell this training from one of other images, labels, weights or settings."""
    files = job.data.every_file()
    labels = [digest(split.single) for split in (job.data.train, job.data.test)]
    learned = dataclasses.replace(job.settings, memory="1GB", evaluate_every=0)
    return identity_of(files, labels, job.source.name, job.source.digest, job.preprocessing, learned, dict(shapes))
