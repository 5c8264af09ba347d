"""R-CNN on the paper's tower: the first rows of its detection table (variant ``voc07-rcnn``).

Sources: METHOD A5.3 (227 px warps; conv1 … pool5 and fc6, as a 3 × 3 convolution, are transferred; a new 1 × 1
convolution to 1,024, max-pooling, fc7, fc8; batch norm removed, each channel rescaled to mean 0 and variance 1;
fine-tuning; SVMs on fc7; no box regression); Girshick et al. 2014 and its released code (``rcnn``, ``finetuning``,
``rcnn_train.m``, ``rcnn_test.m``) for what the text leaves to it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms
from torchvision.transforms.v2 import functional as TF

from context_pred.backbones import ContextNetBackbone
from context_pred.data.images import open_image
from context_pred.data.transforms import EvalTransform
from context_pred.errors import InvalidInputError
from context_pred.training import keys
from context_pred.training.examples import batches

from ..job import Job, Result
from ..trained import Training, device_of, measured_batches, train
from . import paper, rescaling
from .average_precision import Detections
from .boxes import BoxedImage
from .mining import Detectors, Floats, SvmOptions, train_detectors
from .paper import FineTuning, data_of
from .proposals import Boxes, at_least_one, shares
from .tower import Tower, without_batch_norm
from .windows import Cut, WindowExamples, warped, whole

NAME = "voc07-rcnn"


@dataclass(frozen=True, kw_only=True)
class Settings(FineTuning, SvmOptions):
    """The options; where the text gives no number it is R-CNN's own.

    Args:
        size: Side of the warped windows, in px.
        padding: Context on each side, in px of the warped window.
        windows: A step, over its images.
        foreground: Share of the windows that show an object.
        foreground_overlap: Intersection over union of such a window with its object, at the least; the others are
            background.
        flip: Probability of mirroring a training window.
        channels: Of conv6b.
        width: Of fc7.
        rescale: Give each channel of conv1 … fc7 mean 0 and variance 1 before fine-tuning.
        equalize: Then make these layers learn at one rate (Krähenbühl et al. 2016): layers are scaled against one
            another, the channels of each alike. The text does not ask for it; without, conv1, which sees pixels of
            0 … 255, learns a thousand times as fast as the others, and fine-tuning at R-CNN's rate diverges.
        start_images: What it is computed on.
        start_windows: Of each of those images.
        output_rate: What the rate of fc8 is multiplied by.
        steps: Of the fine-tuning; METHOD does not say, these and the milestones are R-CNN's.
        milestones: Steps before which the rate falls to a tenth; at 2/7, 4/7 and 6/7 of other steps.
        batch: Windows that go through the network at once, when features are computed.

    Raises:
        InvalidInputError: an option out of its range.
    """

    size: int = 227
    padding: int = 16
    images: int = 16
    windows: int = 128
    foreground: float = 0.25
    foreground_overlap: float = 0.5
    flip: float = 0.5
    channels: int = 1024
    width: int = 4096
    frozen: int = 0
    rescale: bool = True
    equalize: bool = True
    start_images: int = 160
    start_windows: int = 4
    output_rate: float = 10.0
    steps: int = 70_000
    milestones: tuple[int, ...] = (20_000, 40_000, 60_000)
    batch: int = 256

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self.check()
        at_least_one(self, "windows", "channels", "width", "start_images", "start_windows", "batch")
        shares(self, "foreground", "foreground_overlap", "flip")
        if pooled(self.size) < 1 or not 0 <= 2 * self.padding < self.size:
            raise InvalidInputError(
                f"size = {self.size}, padding = {self.padding}: accepted are {_smallest()} px or more, and less than "
                "half of that."
            )
        if self.windows % self.images:
            raise InvalidInputError(f"windows = {self.windows}: accepted is a multiple of images, {self.images}.")
        if self.output_rate <= 0:
            raise InvalidInputError(f"output_rate = {self.output_rate}: accepted is above 0.")


def defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the milestones of another number of steps."""
    return paper.milestones_of(given, 2 / 7, 4 / 7, 6 / 7)


def pooled(size: int) -> int:
    """Side of the map that fc7 sees, for a window of so many px: 2 of 227; below 1: too small."""
    side = (size - 1) // 4 + 1  # conv1
    for _ in range(3):  # pool1, pool2, pool5, in ceil mode
        side = -(-(side - 3) // 2) + 1
    return (side - 2 - 3) // 2 + 1  # conv6, pool6


def _smallest() -> int:
    return next(size for size in range(1, 1000) if pooled(size) >= 1)


class RCNN(nn.Module):
    """conv1 … conv6 of the tower, conv6b, pooling, fc7, fc8; batch norm is gone.

    Args:
        backbone: Where the weights come from; it is left as it is.
        classes: Without the background.
        settings: The protocol's.
    """

    def __init__(self, backbone: ContextNetBackbone, classes: int, settings: Settings) -> None:
        super().__init__()
        self.tower = Tower(backbone)
        self.pool5 = nn.MaxPool2d(3, 2, ceil_mode=True)
        norm: Any = backbone.bn6
        self.conv6 = without_batch_norm(backbone.fc6, norm)
        self.conv6b = nn.Conv2d(self.conv6.out_channels, settings.channels, 1)
        self.pool6 = nn.MaxPool2d(3, 2)
        self.fc7 = nn.Linear(settings.channels * pooled(settings.size) ** 2, settings.width)
        self.fc8 = nn.Linear(settings.width, classes + 1)
        self.dropout = nn.Dropout(settings.dropout)
        for layer in (self.conv6b, self.fc7, self.fc8):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.get_parameter("bias"), 0)

    @property
    def layers(self) -> list[rescaling.Layer]:
        """conv1 … fc7."""
        return [*self.tower.convolutions, self.conv6, self.conv6b, self.fc7]

    def features(self, windows: Tensor) -> Tensor:
        """fc7 after its ReLU: (N, 3, size, size) → (N, width)."""
        x = F.relu(self.conv6(self.pool5(self.tower(windows))))
        x = self.pool6(F.relu(self.conv6b(x))).flatten(1)
        return F.relu(self.fc7(self.dropout(x)))

    def forward(self, windows: Tensor) -> Tensor:
        """Return class scores (N, classes + 1), background first."""
        scores: Tensor = self.fc8(self.dropout(self.features(windows)))
        return scores


@dataclass(frozen=True)
class Objective:
    """Softmax loss over the windows of a step."""

    transform: EvalTransform
    device: torch.device
    settings: Settings

    def windows(self, batch: Sequence[Cut]) -> Tensor:
        """Cut the windows of some images, on the device."""
        return torch.cat(
            [
                warped(
                    self.transform.normalize(one.pixels.to(self.device)), one.boxes.to(self.device),
                    self.settings.size, self.settings.padding, one.flip.to(self.device) if len(one.flip) else None,
                )
                for one in batch
            ]
        )  # fmt: skip

    def __call__(self, model: nn.Module, batch: list[Cut], noise: torch.Generator) -> tuple[Tensor, Tensor, int]:
        """Compute (loss, windows classified right, windows) of a batch."""
        labels = torch.cat([one.labels for one in batch]).to(self.device)
        scores = model(self.windows(batch)).float()
        loss = F.cross_entropy(scores, labels, reduction="sum") / max(1, len(labels))
        return loss, (scores.argmax(1) == labels).sum(), len(labels)


def built(job: Job, classes: int) -> RCNN:
    """Make the network, before its channels are rescaled."""
    return paper.build(job, NAME, lambda backbone: RCNN(backbone, classes, job.settings))


def start(job: Job, model: RCNN, examples: WindowExamples) -> dict[str, Any]:
    """Rescale channels and layers on windows of training images, on the job's device; return what was done."""
    settings: Settings = job.settings
    objective = Objective(job.preprocessing, device_of(job), settings)
    chosen = torch.randperm(len(examples), generator=keys.generator(job.seed, 5))[: settings.start_images].tolist()
    places = [[(0, image) for image in chosen[first : first + 16]] for first in range(0, len(chosen), 16)]
    sampled = dataclasses.replace(examples, windows=settings.start_windows, flip=0.0)
    loaded = list(batches(sampled, places, paper.as_list, seed=keys.seed(job.seed, 6)))

    def forward(batch: list[Cut]) -> Tensor:
        return model.features(objective.windows(batch))

    model.to(objective.device)
    if settings.rescale:
        rescaling.normalize(model, model.layers, forward, loaded)
    seed = keys.seed(job.seed, 8)
    left = rescaling.equalize(model, model.layers, forward, loaded, seed=seed) if settings.equalize else None
    model.cpu()
    return {"rescaled": settings.rescale, "rates equal to within": left}


def work_of(job: Job, model: RCNN, examples: WindowExamples) -> Training:
    """Describe the fine-tuning."""
    settings: Settings = job.settings
    objective = Objective(job.preprocessing, device_of(job), settings)
    paths = [image.path for image in examples.images]
    return paper.training_of(job, NAME, model, objective, examples, paths, {"fc8": settings.output_rate})


def features_of(
    model: nn.Module, cut: Cut, transform: EvalTransform, settings: Settings, device: torch.device
) -> Floats:
    """fc7 of every window of an image: float32 (n, width)."""
    image = transform.normalize(cut.pixels.to(device))
    found = [np.zeros((0, settings.width), np.float32)]
    extract: Any = model.features
    with torch.inference_mode():
        for boxes in torch.split(cut.boxes, settings.batch):
            windows = warped(image, boxes.to(device), settings.size, settings.padding)
            found.append(extract(windows).float().cpu().numpy())
    return np.concatenate(found)


def run(job: Job) -> Result:
    """Search proposals, fine-tune, train the SVMs, test them."""
    settings: Settings = job.settings
    data = data_of(str(job.variant), job.data)
    model = built(job, len(data.classes))
    train_boxes, test_boxes = paper.proposals_of(job, data)
    examples = WindowExamples(
        data.train, train_boxes, settings.windows // settings.images, settings.foreground,
        settings.foreground_overlap, settings.flip,
    )  # fmt: skip
    started = paper.kept_start(job, NAME, model, lambda: start(job, model, examples))
    trained = train(job, work_of(job, model, examples))
    device = device_of(job)

    def features(image: BoxedImage, boxes: Boxes) -> Floats:
        cut = whole(TF.pil_to_tensor(open_image(image.path)), boxes)
        return features_of(trained.model, cut, job.preprocessing, settings, device)

    detectors = train_detectors(
        data.train, train_boxes, len(data.classes), features, settings, kept=job.out / NAME, ranks=job.ranks,
        seed=job.seed, workers=job.workers, progress=job.progress,
    )  # fmt: skip
    found = _tested(job, trained.model, detectors, WindowExamples(data.test, test_boxes))
    job.record["images"] = (
        f"windows warped to {settings.size} × {settings.size} px, {settings.padding} px of them context on each side, "
        f"{paper.described(job.preprocessing)}."
    )
    counts, said = paper.counted(train_boxes, test_boxes)
    details = {
        "start": started,
        "proposals": counts,
        "positives": dict(zip(data.classes, detectors.positives, strict=True)),
        "negatives at last": dict(zip(data.classes, detectors.negatives, strict=True)),
    }
    left = started["rates equal to within"]
    equal = "" if left is None else f"; rates of all layers equal to within {100 * math.expm1(left):.1f} %"
    notes = [
        said,
        f"Start: channels {'rescaled' if started['rescaled'] else 'as they were'}{equal}.",
    ]
    return paper.result_of(job, data, found, notes, details)


def _tested(job: Job, model: nn.Module, detectors: Detectors, examples: WindowExamples) -> list[Detections]:
    settings: Settings = job.settings
    mine: list[tuple[int, Detections]] = []
    for numbers, batch in measured_batches(job, examples, paper.as_list, 1):
        for number, cut in zip(numbers, batch, strict=True):
            scores = detectors.scores(features_of(model, cut, job.preprocessing, settings, device_of(job)))
            mine.append((number, detections_of(cut.boxes, torch.from_numpy(scores), settings)))
    return paper.in_order(job, mine)


def detections_of(boxes: Tensor, scores: Tensor, settings: Settings) -> Detections:
    """Take the best windows of each class, and of those that overlap the best alone.

    Args:
        boxes: (n, 4), the last pixel within.
        scores: (n, classes); a class whose scores are no numbers is left out.
        settings: The protocol's.
    """
    best, places = scores.nan_to_num(-torch.inf).topk(min(settings.detections, len(scores)), dim=0)
    known = best.isfinite()
    labels = torch.arange(scores.shape[1]).expand_as(places)[known]
    chosen, strength = boxes[places[known]], best[known]
    edges = chosen + torch.tensor([0.0, 0.0, 1.0, 1.0])
    kept = batched_nms(edges, strength, labels, settings.nms)
    return Detections(chosen[kept].numpy(), strength[kept].numpy(), labels[kept].numpy())
