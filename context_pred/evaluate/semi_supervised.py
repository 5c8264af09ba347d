"""Fine-tuning the whole network with few labels (protocol ``semi-supervised``).

A grid of learning rates and of multipliers of the classifier's, each a training of its own; the best is reported.
Sources: METHOD C9; OpenSelfSup and mmselfsup 0.x ``configs/benchmarks/classification/imagenet/imagenet_1percent``.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from context_pred.backbones import Backbone
from context_pred.errors import InvalidInputError, TrainingDivergedError
from context_pred.training.loop import PRECISIONS

from . import _schedule, features
from .augment import Augmentation, Batch, Interpolation, TestImages, TrainImages, check_tests, collate, prepared
from .features import Preprocessing
from .heads import accuracies
from .job import Job, Measurement, Result
from .kept import Kept, digest
from .trained import Training, device_of, head_groups, identity_of, measured_batches, seeded, train

NAME = "semi-supervised"
LAYERS = "none"
TRAINS = True

_HEAD = 12
"""Of the key that the classifier's random weights are drawn from."""

_TEST_BATCH = 256


@dataclass(frozen=True)
class Settings:
    """Every number of the protocol.

    Args:
        labels: Which training images have labels, several with commas: a share, as 1%, drawn in every class (one image
            at least); or a file that lists them, a path or a name a line, as ImageNet's published lists do.
        learning_rates: Each is tried …
        head_multipliers: … with each of these: the classifier learns at so many times the rate.
        epochs: Passes over the images with labels.
        milestones: Epochs after which the rate falls.
        factor: What it is then multiplied by.
        batch: Images a step.
        per_device: Images that batch norm sees together; 0: the whole batch.
        momentum: Of SGD.
        nesterov: Whether it is Nesterov's.
        weight_decay: Of all weights.
        init_std: Standard deviation of the classifier's random weights.
        size: Side of the square that the network sees.
        resize: The shorter side before the centre of a test image is cut out; 0: 8 / 7 of the size.
        resampling: Of crops and of the test's resizing: "pillow" is bilinear, "bicubic"; both antialiased.
        scale: Shares of the area that a training crop has.
        ratio: Width over height that it has.
        flip: Probability of left and right changing places.
        precision: "float32", or "bfloat16" for autocast.

    Raises:
        InvalidInputError: a number out of its range.
    """

    labels: str = "1%,10%"
    learning_rates: tuple[float, ...] = (0.1, 0.01, 0.001)
    head_multipliers: tuple[float, ...] = (1.0, 10.0, 100.0)
    epochs: int = 20
    milestones: tuple[int, ...] = (12, 16)
    factor: float = 0.2
    batch: int = 256
    per_device: int = 0
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    init_std: float = 0.01
    size: int = 224
    resize: int = 0
    resampling: Interpolation = "pillow"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        """Check the ranges."""
        _schedule.check(self.epochs, self.milestones, self.factor, self.batch, self.per_device)
        _schedule.check_sgd(self.momentum, self.nesterov, self.weight_decay, self.init_std)
        for name in ("learning_rates", "head_multipliers"):
            values = getattr(self, name)
            if not values or min(values) <= 0 or len(set(values)) != len(values):
                raise InvalidInputError(f"{name} = {list(values)}: accepted are different numbers above 0.")
        for which in self.label_sets():
            _share(which)
        self.preprocessing()
        self.augmentation("rgb", 3)

    def label_sets(self) -> tuple[str, ...]:
        """Return the shares and files asked for."""
        found = tuple(dict.fromkeys(part.strip() for part in self.labels.split(",") if part.strip()))
        if not found:
            raise InvalidInputError(f"labels = {self.labels!r}: accepted are shares, as 1%,10%, and files.")
        return found

    def preprocessing(self) -> Preprocessing:
        """Return how test images become the network's input."""
        return Preprocessing(self.size, resize=self.resize or None, resampling=self.resampling)

    def augmentation(self, channel_order: str, channels: int) -> Augmentation:
        """Return how training images do."""
        names = ("size", "scale", "ratio", "flip")
        return Augmentation(
            **{name: getattr(self, name) for name in names},
            interpolation=self.resampling,
            channel_order=channel_order,
            channels=channels,
        )


def defaults(variant: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return milestones at the same shares of other epochs."""
    return _schedule.scaled(Settings.epochs, Settings.milestones, given)


def _share(which: str) -> float | None:
    """Read "1%" as .01; None of a file's name."""
    if not which.endswith("%"):
        return None
    try:
        share = float(which[:-1]) / 100
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise InvalidInputError(f"labels = {which!r}: accepted is a share from above 0 up to 100%, or a file.")
    return share


class Classifier(nn.Module):
    """A backbone, the mean over positions of its last layer, and one linear layer.

    Args:
        backbone: Trained in place, all of it.
        layer: The layer to classify on.
        channels: Of that layer.
        classes: How many there are.
        init_std: Of the linear layer's random weights; its bias begins at 0.
        seed: Of these.
    """

    def __init__(self, backbone: Backbone, layer: str, channels: int, classes: int, init_std: float, seed: int) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(True)
        self.layer = layer
        with seeded(seed, _HEAD):
            self.fc = nn.Linear(channels, classes)
            nn.init.normal_(self.fc.weight, std=init_std)
            nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) → (N, classes)."""
        logits: Tensor = self.fc(self.backbone(images, self.layer)[self.layer].mean((-2, -1)))
        return logits


@dataclass(frozen=True)
class Trial:
    """One training of the grid: which images have labels, and the rates."""

    shown: str
    images: NDArray[np.int64]
    rate: float
    multiplier: float

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.shown.replace(' ', '').replace('%', 'pct')}-lr{self.rate:g}-head{self.multiplier:g}"


def run(job: Job) -> Result:
    """Train and measure every setting of the grid; the best of each set of labels is reported."""
    settings: Settings = job.settings
    data = job.data
    features.note(job, settings.preprocessing().transform(job.preprocessing), "gap")
    measured, grid, notes = [], [], []
    open_tests = cache(partial(check_tests, job))  # once, and only where something is left to train
    for shown, which, images in labelled(data.train.files, data.train.single, settings.label_sets(), job.seed):
        rates = itertools.product(settings.learning_rates, settings.head_multipliers)
        trials = [Trial(shown, images, rate, multiplier) for rate, multiplier in rates]
        found = [_figure(job, trial, open_tests) for trial in trials]
        grid += [_row(trial, figure) for trial, figure in zip(trials, found, strict=True)]
        finished = [(figure, trial) for figure, trial in zip(found, trials, strict=True) if figure is not None]
        if not finished:
            raise TrainingDivergedError(
                f"Every training with {shown} of the labels diverged; try lower learning_rates."
            )
        (first, fifth), best = max(finished, key=lambda pair: pair[0][0])
        at = {"labels": shown}
        measured += [Measurement("top-1", first, None, at), Measurement("top-5", fifth, None, at)]
        notes.append(
            f"{shown} of the labels ({which}): {len(images):,} images; seed {job.seed} best with learning_rate "
            f"{best.rate:g}, head × {best.multiplier:g}, of {len(trials)} tried, chosen on the test images."
        )
    if job.ranks.count > 1 and device_of(job).type == "cpu":
        notes.append(f"Batch norm saw the batch in {job.ranks.count} parts, one a process, not whole.")
    return Result(NAME, job.variant, tuple(measured), details={"grid": grid, "notes": notes})


def _row(trial: Trial, figure: tuple[float, float] | None) -> dict[str, Any]:
    row = {"labels": trial.shown, "learning_rate": trial.rate, "head_multiplier": trial.multiplier}
    return {**row, "diverged": True} if figure is None else {**row, "top-1": figure[0], "top-5": figure[1]}


def labelled(
    files: Sequence[Path], classes: NDArray[np.int64], sets: Sequence[str], seed: int
) -> Iterator[tuple[str, str, NDArray[np.int64]]]:
    """Find which images have labels: (the share as the table shows it, what was asked for, int64 numbers of images).

    Raises:
        InvalidInputError: a list that is not there, is empty, or names what is no training image.
    """
    taken: set[str] = set()
    for which in sets:
        share = _share(which)
        images = _listed(files, Path(which)) if share is None else _drawn(classes, share, seed)
        percent = 100 * len(images) / len(files) if share is None else 100 * share
        shown = f"{percent if share is not None else float(f'{percent:.2g}'):g} %"
        if shown in taken:
            shown = f"{shown} ({Path(which).stem})"
        taken.add(shown)
        yield shown, which, images


def _drawn(classes: NDArray[np.int64], share: float, seed: int) -> NDArray[np.int64]:
    """Draw a share of every class, one image at least; a larger share holds the smaller one of the same seed."""
    drawn = []
    for number in np.unique(classes):
        mine = np.flatnonzero(classes == number)
        order = np.random.default_rng((seed, int(number))).permutation(mine)
        drawn.append(order[: max(1, round(share * len(mine)))])
    return np.sort(np.concatenate(drawn))


def _listed(files: Sequence[Path], path: Path) -> NDArray[np.int64]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"labels = {str(path)!r}: accepted is a share, as 1%, or a list: {error}.") from error
    if not lines:
        raise InvalidInputError(f"{path} lists nothing.")
    of_name: dict[str, list[int]] = {}
    for number, file in enumerate(files):
        of_name.setdefault(file.name, []).append(number)
    found = [_number(line, files, of_name, path) for line in lines]
    return np.unique(np.array(found, np.int64))


def _number(line: str, files: Sequence[Path], of_name: dict[str, list[int]], path: Path) -> int:
    """Find the image that a line names, by its path's end or by its name alone; a label after it is not looked at."""
    for text in (line, *(line.rpartition(separator)[0].rstrip(" ,\t") for separator in " ,\t")):
        near = of_name.get(Path(text).name, []) if text else []
        exact = [number for number in near if files[number].as_posix().endswith("/" + text.lstrip("./"))]
        if len(exact or near) == 1:
            return (exact or near)[0]
        if near:
            raise InvalidInputError(f"{path}: {line!r} could be {len(exact or near)} of the training images.")
    raise InvalidInputError(f"{path}: {line!r} is no training image; accepted is a path or a name a line.")


def _figure(job: Job, trial: Trial, open_tests: Callable[[], None]) -> tuple[float, float] | None:
    """Train one setting and measure top-1 and top-5, None where it diverged; that is kept, its checkpoint removed."""
    own, data = job.preprocessing, job.data
    learned = dataclasses.replace(job.settings, labels="1%", learning_rates=(1.0,), head_multipliers=(1.0,))
    identity = identity_of(
        data.every_file(), digest(trial.images, data.train.single, data.test.single), trial.rate, trial.multiplier,
        job.source.name, job.source.digest, own, learned,
    )  # fmt: skip
    kept = Kept(job.out / NAME / "grid.jsonl", digest(identity))
    known: list[list[float] | None] = job.ranks.lead(lambda: [kept[what] for what in [(trial.name,)] if what in kept])
    if known:
        return _pair(known[0])
    open_tests()
    try:
        top: tuple[float, float] | None = _measured(job, trial, identity)
    except TrainingDivergedError:
        top = None
    if job.ranks.rank == 0:
        kept.keep((trial.name,), top)
        shutil.rmtree(job.out / trial.name / "checkpoints", ignore_errors=True)
    return top


def _pair(figure: list[float] | None) -> tuple[float, float] | None:
    return None if figure is None else (figure[0], figure[1])


def _measured(job: Job, trial: Trial, identity: str) -> tuple[float, float]:
    settings: Settings = job.settings
    own, device, data = job.preprocessing, device_of(job), job.data
    classifier = make(job)
    examples = TrainImages(
        [data.train.files[number] for number in trial.images],
        data.train.single[trial.images],
        settings.augmentation(own.channel_order, own.in_channels),
    )

    def objective(model: nn.Module, batch: Batch, noise: torch.Generator) -> tuple[Tensor, Tensor, int]:
        images, classes = prepared(batch, own, device)
        try:
            logits = model(images).float()
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise InvalidInputError(
                f"size = {settings.size}, batch = {settings.batch}: a step of one image with a map of 1 × 1 leaves "
                "batch norm nothing to average; accepted is a larger size, or a batch that leaves more over."
            ) from error
        return F.cross_entropy(logits, classes), (logits.argmax(1) == classes).sum(), len(classes)

    train(
        job,
        Training(
            trial.name,
            classifier,
            objective,
            partial(optimizer, settings, trial),
            lambda steps: _schedule.step_rates(
                trial.rate, settings.epochs, settings.milestones, settings.factor, steps
            ),
            examples,
            collate,
            settings.batch,
            identity,
            per_device=settings.per_device,
            sync_batch_norm=True,
            precision=settings.precision,
            channels_last=device.type == "cuda",
        ),
    )
    return accuracies(_outputs(job, classifier), (NAME,), job.ranks)[NAME]


def make(job: Job) -> Classifier:
    """Make what a setting of the grid begins with."""
    settings: Settings = job.settings
    backbone, layer = job.source.model.backbone.thawed().cpu().eval(), job.source.layers[-1]
    with torch.no_grad():
        blank = torch.zeros(1, job.preprocessing.in_channels, settings.size, settings.size)
        channels = backbone(blank, layer)[layer].shape[1]
    return Classifier(backbone, layer, channels, len(job.data.classes), settings.init_std, job.seed)


def optimizer(settings: Settings, trial: Trial, classifier: nn.Module) -> torch.optim.Optimizer:
    """Make the optimiser: the classifier in a group of its own, at a multiple of the rate."""
    return torch.optim.SGD(
        head_groups(classifier, ("fc.",), trial.multiplier),
        trial.rate,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )


def _outputs(job: Job, classifier: nn.Module) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    settings: Settings = job.settings
    own, device = job.preprocessing, device_of(job)
    tests = TestImages(job.data.test.files, job.data.test.single, settings.preprocessing().transform(own))
    low = torch.autocast(device.type, PRECISIONS[settings.precision], enabled=settings.precision != "float32")
    for _, batch in measured_batches(job, tests, collate, min(settings.batch, _TEST_BATCH)):
        with torch.no_grad(), low:
            images, classes = prepared(batch, own, device)
            yield {NAME: classifier(images)}, classes
