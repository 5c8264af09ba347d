"""Fast R-CNN on the paper's tower: the "-rescale" rows of its detection table (variant ``voc07-fast-rcnn``).

Sources: METHOD A5.3 (only the convolutions are transferred, the fully connected layers start from k-means, the weights
are rescaled by Krähenbühl et al. 2016); Girshick, "Fast R-CNN" (ICCV 2015) and its released code with CaffeNet
(``fast-rcnn``, ``models/CaffeNet``, ``lib/fast_rcnn/config.py``) for everything else. Boxes are (x1, y1, x2, y2) in px,
counted from 0, the last pixel within, as there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms, roi_pool

from context_pred.data.transforms import EvalTransform
from context_pred.errors import InvalidInputError
from context_pred.training import keys
from context_pred.training.examples import batches

from ..job import Job, Result
from ..trained import Training, device_of, measured_batches, train
from . import paper, rescaling
from .average_precision import Detections
from .paper import FineTuning, data_of
from .proposals import at_least_one, shares
from .regions import Examples, Loaded, RegionOptions, coder_of, edges, packed, stored_size
from .tower import Tower

NAME = "voc07-fast-rcnn"


@dataclass(frozen=True, kw_only=True)
class Settings(RegionOptions, FineTuning):
    """The options; the defaults are Fast R-CNN's with CaffeNet where the text does not say else.

    Args:
        pool: RoI max-pooling: cells a side.
        pool_padding: Of pool1 and pool2.
        width: Of fc6 and fc7.
        start: What starts from k-means: "auto", the fully connected layers, and the convolutions too where the
            model's weights are random (row K-means-rescale); "fc"; "all"; "none": they are Gaussian, standard
            deviation .005.
        normalize: Whose channels get mean 0 and variance 1 on data: "new", those of the layers that start from
            k-means, as magic_init does with a model that it loads; "all", the transferred ones too.
        equalize: Make all layers learn at one rate.
        start_images: What k-means, normalisation and rates are computed on; magic_init's 10 batches of 16.
        start_rois: Of each of those images.
        start_samples: Patches of a layer's input that k-means sees, at the most.
        score: Detections below are left out.
        test_images: Images a batch in the test.

    Raises:
        InvalidInputError: an option out of its range.
    """

    pool: int = 6
    pool_padding: int = 1
    width: int = 4096
    frozen: int = 1
    start: Literal["auto", "fc", "all", "none"] = "auto"
    normalize: Literal["new", "all"] = "new"
    equalize: bool = True
    start_images: int = 160
    start_rois: int = 64
    start_samples: int = 20_000
    steps: int = 40_000
    milestones: tuple[int, ...] = (30_000,)
    score: float = 0.05
    test_images: int = 1

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        at_least_one(self, "pool", "width", "start_images", "start_rois", "start_samples", "test_images")
        shares(self, "score")
        if self.pool_padding not in (0, 1):
            raise InvalidInputError(f"pool_padding = {self.pool_padding}: accepted are 0 and 1.")


def defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the milestone of another number of steps: 3/4 of them."""
    return paper.milestones_of(given, 3 / 4)


class FastRCNN(nn.Module):
    """Tower, RoI max-pooling, fc6, fc7, and the two outputs.

    Args:
        tower: The convolutions.
        classes: Without the background.
        settings: The protocol's.
    """

    def __init__(self, tower: Tower, classes: int, settings: Settings) -> None:
        super().__init__()
        self.tower, self.pool = tower, settings.pool
        self.fc6 = nn.Linear(tower.channels * settings.pool**2, settings.width)
        self.fc7 = nn.Linear(settings.width, settings.width)
        self.score = nn.Linear(settings.width, classes + 1)
        self.shift = nn.Linear(settings.width, 4 * (classes + 1))
        self.dropout = nn.Dropout(settings.dropout)
        for layer, std in ((self.fc6, 0.005), (self.fc7, 0.005), (self.score, 0.01), (self.shift, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def hidden(self, images: Tensor, rois: Tensor) -> Tensor:
        """fc7 before its ReLU: images (N, 3, H, W), rois (R, 5) of image and box in its px → (R, width)."""
        pooled = roi_pool(self.tower(images).float(), rois, self.pool, 1 / Tower.stride)
        x: Tensor = self.fc7(self.dropout(F.relu(self.fc6(pooled.flatten(1)))))
        return x

    def forward(self, images: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
        """Return class scores (R, classes + 1), background first, and box shifts (R, classes + 1, 4)."""
        x = self.dropout(F.relu(self.hidden(images, rois)))
        shift = self.shift(x)
        return self.score(x), shift.view(len(shift), self.score.out_features, 4)


@dataclass(frozen=True)
class Objective:
    """Softmax loss over all RoIs, and smooth L1 of the right class's shift over the foreground, both by all RoIs."""

    transform: EvalTransform
    device: torch.device

    def __call__(self, model: nn.Module, batch: list[Loaded], noise: torch.Generator) -> tuple[Tensor, Tensor, int]:
        """Compute (loss, RoIs classified right, RoIs) of a batch."""
        images, rois = packed(batch, self.transform, self.device)
        labels = torch.cat([one.labels for one in batch]).to(self.device)
        wanted = torch.cat([one.targets for one in batch]).to(self.device)
        scores, shifts = model(images, rois)
        scores, shifts = scores.float(), shifts.float()
        front = (labels > 0).nonzero()[:, 0]
        moved = F.smooth_l1_loss(shifts[front, labels[front]], wanted[front], reduction="sum") / max(1, len(labels))
        loss = F.cross_entropy(scores, labels, reduction="sum") / max(1, len(labels)) + moved
        return loss, (scores.argmax(1) == labels).sum(), len(labels)


def built(job: Job, classes: int) -> FastRCNN:
    """Make the detector, before its data-dependent start."""
    settings: Settings = job.settings
    return paper.build(job, NAME, lambda backbone: FastRCNN(Tower(backbone, settings.pool_padding), classes, settings))


def new_layers(job: Job, model: FastRCNN) -> list[rescaling.Layer]:
    """Return the layers that start from k-means."""
    settings: Settings = job.settings
    if settings.start == "none":
        return []
    everything = settings.start == "all" or (settings.start == "auto" and job.source.kind == "random")
    return [*(model.tower.convolutions if everything else ()), model.fc6, model.fc7]


def start(job: Job, model: FastRCNN, examples: Examples) -> dict[str, Any]:
    """Initialise, normalise and equalise on training images, on the job's device; return what was done."""
    settings: Settings = job.settings
    device = device_of(job)
    chosen = torch.randperm(len(examples), generator=keys.generator(job.seed, 5))[: settings.start_images].tolist()
    whole = dataclasses.replace(examples, training=False)
    places = [[(0, image)] for image in chosen]
    loaded = [
        [_some(one, settings.start_rois, job.seed, number) for one in batch]
        for number, batch in enumerate(batches(whole, places, paper.as_list, seed=job.seed))
    ]
    model.to(device)

    def forward(batch: list[Loaded]) -> Tensor:
        return model.hidden(*packed(batch, job.preprocessing, device))

    layers: list[rescaling.Layer] = [*model.tower.convolutions, model.fc6, model.fc7]
    new = new_layers(job, model)
    few = []
    for number, layer in enumerate(layers):
        if layer in new:
            enough = rescaling.initialize(
                model, [layer], forward, loaded, samples=settings.start_samples, seed=keys.seed(job.seed, 7, number)
            )
            few += [] if enough[0] else [_name_of(model, layer)]
        elif settings.normalize == "all":
            rescaling.normalize(model, [layer], forward, loaded)
    left = (
        rescaling.equalize(model, layers, forward, loaded, seed=keys.seed(job.seed, 8)) if settings.equalize else None
    )
    model.cpu()
    return {
        "k-means": [_name_of(model, layer) for layer in new],
        "gaussian for want of patches": few,
        "rates equal to within": left,
    }


def _some(one: Loaded, most: int, *key: int) -> Loaded:
    order = torch.randperm(len(one.rois), generator=keys.generator(*key))[:most]
    return dataclasses.replace(one, rois=one.rois[order])


def _name_of(model: nn.Module, layer: nn.Module) -> str:
    names = {module: name for name, module in model.named_modules()}
    name: str = names[layer].rpartition(".")[2]
    return name


def work_of(job: Job, model: FastRCNN, examples: Examples) -> Training:
    """Describe the training."""
    objective = Objective(job.preprocessing, device_of(job))
    return paper.training_of(job, NAME, model, objective, examples, [image.path for image in examples.images])


def detect(
    model: nn.Module, batch: Sequence[Loaded], transform: EvalTransform, sizes: Sequence[tuple[int, int]],
    settings: Settings, device: torch.device,
) -> list[Detections]:  # fmt: skip
    """Detect in a batch of images, each with all its proposals.

    Args:
        model: In eval mode, on the device.
        batch: Of a test.
        transform: Channel order, mean and standard deviation.
        sizes: (height, width) of each image as it is stored.
        settings: The protocol's.
        device: Where the model is.
    """
    with torch.inference_mode():
        scores, shifts = model(*packed(batch, transform, device))
        scores = scores.float().softmax(1)
    found = []
    counts = [len(one.rois) for one in batch]
    for one, size, score, shift in zip(batch, sizes, scores.split(counts), shifts.float().split(counts), strict=True):
        rois = (one.rois / one.scale).to(device)
        moved: Tensor = coder_of(settings).decode(shift.flatten(1), [edges(rois)])
        moved = moved.view(len(rois), shift.shape[1], 4)
        moved[..., 0::2].clamp_(0, size[1])
        moved[..., 1::2].clamp_(0, size[0])
        places, labels = (score[:, 1:] > settings.score).nonzero(as_tuple=True)
        chosen, strength = moved[places, labels + 1], score[places, labels + 1]
        kept = batched_nms(chosen, strength, labels, settings.nms)[: settings.detections]
        boxes = chosen[kept] - torch.tensor([0.0, 0.0, 1.0, 1.0], device=device)
        found.append(Detections(boxes.cpu().numpy(), strength[kept].cpu().numpy(), labels[kept].cpu().numpy()))
    return found


def run(job: Job) -> Result:
    """Search proposals, start the detector from data, train it, test it."""
    settings: Settings = job.settings
    data = data_of(str(job.variant), job.data)
    model = built(job, len(data.classes))
    train_boxes, test_boxes = paper.proposals_of(job, data)
    examples = Examples(data.train, train_boxes, settings, training=True)
    started = paper.kept_start(job, NAME, model, lambda: start(job, model, examples))
    trained = train(job, work_of(job, model, examples))
    found = _tested(job, trained.model, Examples(data.test, test_boxes, settings, training=False))
    job.record["images"] = (
        f"shorter side {settings.short_side} px, longer at most {settings.long_side} px, "
        f"{paper.described(job.preprocessing)}."
    )
    counts, said = paper.counted(train_boxes, test_boxes)
    return paper.result_of(job, data, found, [said, said_of(started)], {"start": started, "proposals": counts})


def said_of(started: Mapping[str, Any]) -> str:
    """Say how the weights started."""
    few, left = started["gaussian for want of patches"], started["rates equal to within"]
    parts = [f"Start: k-means of {', '.join(started['k-means']) or 'no layer'}"]
    parts += [f"{', '.join(few)} Gaussian, since there were fewer patches than channels"] if few else []
    parts += [f"rates of all layers equal to within {100 * math.expm1(left):.1f} %"] if left is not None else []
    return "; ".join(parts) + "."


def _tested(job: Job, model: nn.Module, examples: Examples) -> list[Detections]:
    settings: Settings = job.settings
    mine: list[tuple[int, Detections]] = []
    for numbers, batch in measured_batches(job, examples, paper.as_list, settings.test_images):
        sizes = [stored_size(one) for one in batch]
        found = detect(model, batch, job.preprocessing, sizes, settings, device_of(job))
        mine += zip(numbers, found, strict=True)
    return paper.in_order(job, mine)
