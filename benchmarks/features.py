"""Feature extraction on a batch in memory: ours beside timm and torchvision, and what stopping early saves.

    pip install timm
    python benchmarks/features.py [--rounds 9] [--threads 2] [--no-compile]

1. ResNet-50, five maps, 224 px, batches of 16, CPU, float32: ``model.features`` against timm's ``features_only`` and
   torchvision's ``create_feature_extractor``. All channels-last, the same weights and threads, each eager and (unless
   ``--no-compile``) compiled; every contender takes its turn in every round. The bar: the better of ours at least .98
   of the best of theirs.
2. ``features(layers=["feature3"])``, eager, against the same network cut by hand after that stage (bar: .98), and
   against all five, at batches of 1 and 16.

The outputs are compared before anything is timed. Medians over the rounds; ratios are medians of the ratios within a
round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from context_pred.backbones import LAYERS
from context_pred.model import ContextPredictionModel

Work = Callable[[], object]


def alternating(contenders: dict[str, Work], rounds: int) -> dict[str, list[float]]:
    """Run every contender once a round; return the seconds of each. One round before is not counted.

    Each round begins with another contender, so that no one always follows the same.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            contenders[name]()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(slow: list[float], fast: list[float]) -> float:
    """Return the median over the rounds of how many times as fast ``fast`` was."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def contenders(model: ContextPredictionModel, compiled: bool) -> dict[str, Callable[[Tensor], object]]:
    """Return ours and the peers' five-map extractors with equal weights, channels-last."""
    state = model.backbone.state_dict()
    theirs = torchvision.models.resnet50(weights=None)
    theirs.load_state_dict(state, strict=False)
    modules = dict(zip(("relu", "layer1", "layer2", "layer3", "layer4"), LAYERS, strict=True))
    timms = timm.create_model("resnet50", pretrained=False, features_only=True)
    timms.load_state_dict(state)
    peers: dict[str, nn.Module] = {
        "timm features_only": timms,
        "torchvision create_feature_extractor": create_feature_extractor(theirs.eval(), modules),
    }
    found: dict[str, Callable[[Tensor], object]] = {"context_pred features": model.features}
    for name, peer in peers.items():
        found[name] = peer.eval().to(memory_format=torch.channels_last)
    eager = dict(found)
    if compiled:
        for name, function in eager.items():
            found[f"{name}, compiled"] = torch.compile(function, fullgraph=True)
    return found


def check_equal(found: dict[str, Callable[[Tensor], object]], images: Tensor) -> None:
    """Stop unless all contenders give the same five maps."""
    outputs = {name: function(images) for name, function in found.items()}
    lists = {name: list(out.values()) if isinstance(out, dict) else list(out) for name, out in outputs.items()}
    reference = lists["context_pred features"]
    for maps in lists.values():
        for a, b in zip(maps, reference, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def against_peers(model: ContextPredictionModel, rounds: int, compiled: bool) -> None:
    """Print the first comparison."""
    images = torch.randn(16, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    found = contenders(model, compiled)
    check_equal(found, images)
    seconds = alternating({name: lambda f=f: f(images) for name, f in found.items()}, rounds)
    print("ResNet-50, five maps, batch of 16, 224 px (median images/s)")
    for name, values in seconds.items():
        print(f"  {name:48s} {16 / statistics.median(values):6.2f}")
    ours = min((n for n in seconds if n.startswith("context_pred")), key=lambda n: statistics.median(seconds[n]))
    best = min((n for n in seconds if not n.startswith("context_pred")), key=lambda n: statistics.median(seconds[n]))
    share = ratio(seconds[best], seconds[ours])
    print(f"  {ours} / {best}: {share:.3f}  (bar: .98)\n")


def stopping_early(model: ContextPredictionModel, rounds: int) -> None:
    """Print the second comparison."""
    b = model.backbone
    cut = nn.Sequential(b.conv1, b.bn1, b.relu, b.maxpool, b.layer1, b.layer2)
    print('features(layers=["feature3"]), eager')
    for batch in (1, 16):
        images = torch.randn(batch, 3, 224, 224).contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(cut(images), model.features(images, ["feature3"])["feature3"], rtol=1e-3, atol=1e-3)
        works: dict[str, Callable[[], object]] = {
            "by hand": lambda x=images: cut(x),
            "ours": lambda x=images: model.features(x, ["feature3"]),
            "five": lambda x=images: model.features(x),
        }
        seconds = alternating({n: lambda w=w, r=16 // batch: [w() for _ in range(r)] for n, w in works.items()}, rounds)
        bar = "  (bar: .98)" if batch == 16 else ""
        hand, five = ratio(seconds["by hand"], seconds["ours"]), ratio(seconds["five"], seconds["ours"])
        print(f"  batch {batch:2d}: {hand:.3f} × the network cut by hand{bar}, {five:.2f} × all five")


def main() -> None:
    """Measure and print both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}, "
        f"{options.threads} threads, {torch.backends.cpu.get_cpu_capability()}, {options.rounds} rounds\n"
    )
    model = ContextPredictionModel("resnet50").eval().to(memory_format=torch.channels_last)
    with torch.inference_mode():
        against_peers(model, options.rounds, not options.no_compile)
        stopping_early(model, options.rounds)


if __name__ == "__main__":
    main()
