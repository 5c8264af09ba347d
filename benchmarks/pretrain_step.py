"""A training step of the published recipe: ours beside upstream's way, from the same weights and the same patches.

    python benchmarks/pretrain_step.py [--images 8] [--rounds 5] [--threads 2]
    python benchmarks/pretrain_step.py --device cuda --images 64 --bfloat16 --compile

ResNet-50, 3×3 grids of 64 px patches, SGD. Upstream (mmselfsup 0.x and 1.x) runs the neighbours and then the centre of
each pair through the backbone, 16 passes an image, and multiplies the joined pair by the neck's whole weight, in
float32; that is written out below on torchvision's network. Ours is the training loop itself: nine passes, the neck's
weight in two halves, channels-last. The losses of the first step are compared before anything is timed (in float32
they agree within 1e-5). Medians over alternating rounds.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from context_pred.model import ContextPredictionModel
from context_pred.patches import PatchPairs
from context_pred.pretext import pretext_loss
from context_pred.ranks import Ranks
from context_pred.training.loop import Loop
from context_pred.training.optimizer import OptimizerOptions, make_optimizer
from context_pred.training.order import Order

AROUND = [0, 1, 2, 3, 5, 6, 7, 8]


class Upstream(nn.Module):
    """Backbone, neck and head as upstream's forward pass uses them."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = torchvision.models.resnet50()
        del self.backbone.fc
        self.fc, self.bn = nn.Linear(4096, 4096), nn.BatchNorm1d(4096, momentum=0.003)
        self.fc_cls = nn.Linear(4096, 8)

    def maps(self, x: Tensor) -> Tensor:
        """The last stage's maps."""
        net = self.backbone
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        return net.layer4(net.layer3(net.layer2(net.layer1(x))))

    def forward(self, neighbors: Tensor, centers: Tensor) -> Tensor:
        """(M, 3, 64, 64) twice to logits (M, 8)."""
        joined = torch.cat([self.maps(neighbors), self.maps(centers)], 1)
        return self.fc_cls(F.relu(self.bn(self.fc(joined.mean((2, 3))))))


def upstream_step(patches: Tensor, state: dict[str, Tensor]) -> Callable[[], float]:
    """Upstream's step on (N, 9, 3, 64, 64) patches."""
    model = Upstream().to(patches.device)
    model.load_state_dict({key.removeprefix("neck.").removeprefix("head."): value for key, value in state.items()})
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    position = torch.arange(8, device=patches.device).repeat(len(patches))

    def step() -> float:
        neighbors = patches[:, AROUND].flatten(0, 1)
        centers = patches[:, 4].repeat_interleave(8, 0)
        loss = F.cross_entropy(model(neighbors, centers), position)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def our_step(patches: Tensor, model: ContextPredictionModel, bfloat16: bool, compiled: bool) -> Callable[[], float]:
    """The training loop's step on the same patches."""
    images, device = len(patches), patches.device
    first = torch.arange(images)[:, None] * 9
    pairs = PatchPairs(
        patches.flatten(0, 1).contiguous(memory_format=torch.channels_last),
        neighbor=(first + torch.tensor(AROUND)).flatten().to(device),
        center=(first + 4).expand(images, 8).flatten().to(device),
        position=torch.arange(8).repeat(images).to(device),
        boxes=torch.zeros(9 * images, 4, dtype=torch.int64),
        image=torch.arange(images).repeat_interleave(9),
    )
    model = model.to(device).to(memory_format=torch.channels_last)
    if compiled:
        model.backbone.compile()

    def objective(network: nn.Module, batch: PatchPairs, noise: torch.Generator) -> tuple[Tensor, Tensor, int]:
        logits = network(batch)
        return pretext_loss(logits, batch.position), (logits.argmax(1) == batch.position).sum(), len(batch)

    class Endless:
        steps = 10**9

        def rate(self, step: int) -> float:
            return 1e-3

    options = OptimizerOptions("sgd", 1e-3, momentum=0.9, weight_decay=1e-4)
    loop = Loop(
        model, objective, make_optimizer(model, options), Endless(), Order(images, images, images, seed=0),
        lambda first: itertools.repeat(pairs), Ranks(), device=device, precision="bfloat16" if bfloat16 else "float32",
    )  # fmt: skip
    steps = loop.steps()
    return lambda: next(steps).loss


def main() -> None:
    """Compare, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bfloat16", action="store_true", help="ours with bf16 autocast")
    parser.add_argument("--compile", action="store_true", help="ours compiled")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    patches = torch.randn(args.images, 9, 3, 64, 64, device=args.device)
    model = ContextPredictionModel("resnet50", dropout=0.0)
    theirs = upstream_step(patches, {k: v.clone() for k, v in model.state_dict().items()})
    ours = our_step(patches, model, args.bfloat16, args.compile)
    one, other = ours(), theirs()
    print(f"loss of the first step: ours {one:.7f}, upstream's way {other:.7f}, {abs(one - other) / other:.1e} apart")
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in range(args.rounds + 2):  # two rounds to warm up
        contenders = {"ours": ours, "theirs": theirs}
        for name in list(contenders)[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            contenders[name]()
            if number > 1:
                seconds[name].append(time.perf_counter() - start)
    for name, found in seconds.items():
        print(f"{name}: {args.images / statistics.median(found):.2f} images/s")
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)]
    print(f"ours is {statistics.median(ratios):.2f} × as fast ({min(ratios):.2f} … {max(ratios):.2f})")


if __name__ == "__main__":
    main()
