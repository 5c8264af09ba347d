"""The detection protocol (C4) beside torchvision's own Faster R-CNN: the same backbone, start weights and time.

    git clone https://github.com/Shenggan/BCCD_Dataset BCCD
    python benchmarks/detection.py BCCD [--seconds 600] [--seeds 3] [--threads 1] [--theirs map|fpn]

Ours is `context-pred evaluate detection --variant voc0712-c4` with settings for a CPU (`OURS`; `--set` changes them).
Torchvision's has its own parts, losses and recipe (`references/detection`: SGD, momentum .9, weight decay 1e-4, flip,
linear warm-up, the rate divided by ten at 16/26 and 22/26 of the run) on its ResNet-18, at the same image sizes, batch,
precision and numbers of proposals, with anchors that fit, and batch norm that is trained, as in ours:

- `map`: its `FasterRCNN` on one map of stride 16, as ours has, with its usual head of two linear layers: the stronger
  of the two in a short run, and so the one to be held against;
- `fpn`: what its `fasterrcnn_resnet50_fpn` is made of, the one Faster R-CNN with a ResNet that it publishes.

Both start from the weights of `--model` (random ones differ with the seed). Steps are as many as fit into `--seconds`
of processor time a thread, measured on a few steps of each before; tests do not count. Both are tested on the whole
test list: AP50 by VOC2007's rule, mean over the classes.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import same_budget
import torch
from same_budget import Step, seconds_a_step
from torch import Tensor, nn
from torchvision import models
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import MultiScaleRoIAlign

from context_pred import evaluate
from context_pred.evaluate import settings as options
from context_pred.evaluate import sources
from context_pred.evaluate.detection import average_precision, c4, defaults, read
from context_pred.evaluate.detection.average_precision import Detections
from context_pred.evaluate.detection.boxes import BoxedImage, BoxedImages
from context_pred.evaluate.detection.examples import DetectionExamples, collate
from context_pred.evaluate.detection.parts import objective
from context_pred.training import keys

OURS: dict[str, Any] = {
    "short_sides": (240, 256, 272, 288), "batch": 4, "learning_rate": 0.04, "anchor_scales": (1, 2, 4, 8), "rois": 24,
    "roi_positive_share": 0.5, "roi_size": 5, "proposals_before": 1000, "proposals": 300,
    "test_proposals_before": 1000, "test_proposals": 100, "precision": "bfloat16", "evaluate_every": 0,
}  # fmt: skip

THEIR_ROIS = 48
"""Proposals an image that torchvision's head is trained on: its linear layers are cheap, so it can have more."""


def autocast(own: c4.Settings) -> torch.autocast:
    """The precision of both."""
    return torch.autocast("cpu", torch.bfloat16, enabled=own.precision == "bfloat16")


def our_step(start: sources.Source, data: BoxedImages, own: c4.Settings) -> Step:
    """A step of ours, to be timed; the training itself is the protocol's."""
    model = c4.build(start.model.backbone, len(data.classes), own, start.model.transform, start.name).train()
    examples = DetectionExamples(data.train, own.short_sides, own.max_side, own.flip)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def step(number: int) -> None:
        places = [(number * own.batch + k) % len(examples) for k in range(own.batch)]
        batch = collate([examples.example(place, keys.generator(0, number, place)) for place in places])
        optimizer.zero_grad()
        with autocast(own):
            loss = objective(model, batch, torch.Generator())[0]
        loss.backward()
        optimizer.step()

    return step


class OneMap(nn.Module):
    """A ResNet up to stride 16, as torchvision's FasterRCNN takes backbones."""

    def __init__(self, resnet: models.ResNet) -> None:
        super().__init__()
        names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")
        self.body = nn.Sequential(OrderedDict((name, getattr(resnet, name)) for name in names))
        self.out_channels = 256

    def forward(self, x: Tensor) -> Tensor:
        """One map."""
        return self.body(x)


class Theirs:
    """Torchvision's Faster R-CNN and recipe."""

    def __init__(
        self, start: sources.Source, data: BoxedImages, own: c4.Settings, seed: int, kind: str, rate: float
    ) -> None:
        torch.manual_seed(keys.seed(seed, 1))
        resnet = models.resnet18(weights=None)
        resnet.load_state_dict({**resnet.state_dict(), **start.model.backbone.state_dict()})
        transform = start.model.transform
        common = {
            "num_classes": len(data.classes) + 1, "min_size": own.short_sides, "max_size": own.max_side,
            "image_mean": transform.mean, "image_std": transform.std, "box_batch_size_per_image": THEIR_ROIS,
            "rpn_pre_nms_top_n_train": own.proposals_before, "rpn_post_nms_top_n_train": own.proposals,
            "rpn_pre_nms_top_n_test": own.test_proposals_before, "rpn_post_nms_top_n_test": own.test_proposals,
        }  # fmt: skip
        ratios = (0.5, 1.0, 2.0)
        if kind == "fpn":
            backbone = _resnet_fpn_extractor(resnet, trainable_layers=5)
            anchors = AnchorGenerator(tuple((16 * 2**k,) for k in range(5)), (ratios,) * 5)
            self.model = FasterRCNN(backbone, rpn_anchor_generator=anchors, **common)
        else:
            anchors = AnchorGenerator((tuple(int(16 * scale) for scale in own.anchor_scales),), (ratios,))
            pool = MultiScaleRoIAlign(["0"], output_size=7, sampling_ratio=2)
            self.model = FasterRCNN(OneMap(resnet), rpn_anchor_generator=anchors, box_roi_pool=pool, **common)
        self.data, self.own, self.seed, self.rate = data, own, seed, rate
        # sizes are torchvision's to draw and to resize to
        self.examples, self.tests = (
            _AtOwnSize(part, own.flip * (part is data.train)) for part in (data.train, data.test)
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4)
        self.images = self._endless()

    def _endless(self) -> Iterator[tuple[int, int]]:
        epoch = 0
        while True:
            for image in torch.randperm(len(self.examples), generator=keys.generator(self.seed, epoch)).tolist():
                yield epoch, image
            epoch += 1

    def step(self, number: int) -> None:
        """Take one step at the rate that the optimiser has."""
        self.model.train()
        places = [next(self.images) for _ in range(self.own.batch)]
        batch = [self.examples.example(image, keys.generator(self.seed, epoch, image)) for epoch, image in places]
        self.optimizer.zero_grad()
        with autocast(self.own):
            losses = self.model([pixels for pixels, _ in batch], [target for _, target in batch])
        sum(losses.values()).backward()  # type: ignore[union-attr]
        self.optimizer.step()

    def train(self, steps: int) -> None:
        """Train to the end of the schedule."""
        warmup = max(1, round(steps / 10))
        for number in range(steps):
            rate = self.rate * 0.1 ** sum(number >= steps * part / 26 for part in (16, 22))
            for group in self.optimizer.param_groups:
                group["lr"] = rate * min(1.0, (number + 1) / warmup)
            self.step(number)

    @torch.inference_mode()
    def found(self) -> list[Detections]:
        """What is found in every test image."""
        self.model.eval()
        self.model.transform.min_size = (self.own.test_short_side,)
        every = []
        for image in range(len(self.tests)):
            pixels, _ = self.tests.example(image, torch.Generator())
            with autocast(self.own):
                (one,) = self.model([pixels])
            every.append(
                Detections(one["boxes"].float().numpy(), one["scores"].float().numpy(), one["labels"].numpy() - 1)
            )
        return every


class _AtOwnSize:
    """Images in 0 … 1 at their own size, mirrored or not."""

    def __init__(self, images: tuple[BoxedImage, ...], flip: float) -> None:
        self.images, self.flip = images, flip

    def __len__(self) -> int:
        return len(self.images)

    def example(self, image: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        one = self.images[image]
        plain = DetectionExamples((one,), (min(one.size),), max(one.size), self.flip)
        pixels, target = plain.example(0, generator)
        return pixels / 255, target


def main() -> None:
    """Run both for every seed."""
    parser = same_budget.parser(
        "Detection: ours (C4) beside torchvision's Faster R-CNN.", "BCCD, or any folder of images with boxes"
    )
    parser.add_argument("--theirs", choices=("map", "fpn"), default="map")
    parser.add_argument("--rate", type=float, default=0.02, help="torchvision's learning rate; .005 is its recipe's")
    args = parser.parse_args()
    asked = same_budget.given(args, OURS)
    own: c4.Settings = options.part("detection", c4.Settings, {**defaults("voc0712-c4", asked), **asked})
    data = read(args.data)

    def row(who: str, start: sources.Source, seed: int) -> dict[str, Any]:
        if who == "ours":
            each = seconds_a_step(our_step(start, data, own))
        else:
            each = seconds_a_step(Theirs(start, data, own, seed, args.theirs, 1e-4).step)
        steps = max(1, round(args.seconds / each))
        if who == "ours":
            value, by_class = of_ours(start, data, own, seed, steps)
        else:
            theirs = Theirs(start, data, own, seed, args.theirs, args.rate)
            theirs.train(steps)
            values = average_precision.voc(data.test, theirs.found(), len(data.classes), form=own.form)[0]
            value, by_class = average_precision.mean(values), dict(zip(data.classes, values.tolist(), strict=True))
        return {"AP50": value, **by_class, "steps": steps, "step": each}

    same_budget.compare(args, "AP50", own, row)


def of_ours(
    start: sources.Source, data: BoxedImages, own: c4.Settings, seed: int, steps: int
) -> tuple[float, dict[str, float]]:
    """AP50 of the protocol, and by class."""
    asked = {f.name: getattr(own, f.name) for f in dataclasses.fields(own)} | {"steps": steps}
    asked |= {name: defaults("voc0712-c4", {"steps": steps})[name] for name in ("milestones", "warmup_steps")}
    with tempfile.TemporaryDirectory() as out:
        result = evaluate.run(
            "detection", start, data, variant="voc0712-c4", out=out, settings=asked, seeds=(seed,), workers=1,
            progress=False, device="cpu",
        )  # fmt: skip
    return result.measured[0].value, {
        str(m.at["class"]): m.value for m in result.measured if m.metric == "AP50" and m.at
    }


if __name__ == "__main__":
    main()
