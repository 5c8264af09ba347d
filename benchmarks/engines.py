"""Features of tensors in memory on a CPU: the engines of extraction beside timm and beside bare ONNX Runtime.

    pip install "context-pred[timm,onnx,openvino]"
    python benchmarks/engines.py [--backbone resnet50 resnet18] [--rounds 9] [--threads 1] [--clock wall] [--pool none]

Batches of 16 normalised images of 224 px, random weights, five layers: each engine as ``engines.prepare`` makes it;
timm's ``features_only``, channels-last, eager, with the same weights; and ONNX Runtime on the file that ``export.onnx``
writes, with nothing but the number of threads set. All share one process and take their turn in every round; each round
begins with another. The bars are for the engine that "auto" takes: 1.3 × timm, and .9 × bare ONNX Runtime.

With ``--pool gap`` all give means over positions, timm's by PyTorch. ``--clock cpu`` counts the process's own seconds,
which on a machine that others share are steadier by far; with one thread they are what a free core would need.

The outputs are compared before anything is timed. Ratios are medians of the ratios within a round, with the quartiles.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import timm
import torch

from context_pred import engines, export
from context_pred.backbones import LAYERS
from context_pred.model import ContextPredictionModel

Work = Callable[[], object]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def alternating(contenders: dict[str, Work], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Run every contender once a round; return the seconds of each. One round before is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            start = clock()
            contenders[name]()
            if number:
                seconds[name].append(clock() - start)
    return seconds


def ratio(slow: list[float], fast: list[float]) -> str:
    """Say how many times as fast ``fast`` was, and between which quartiles."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return f"{middle:.2f} × ({low:.2f} to {high:.2f})"


def timms(backbone: str, model: ContextPredictionModel, images: torch.Tensor, pool: str) -> Work:
    """Return timm's features of the images, with the model's weights."""
    network = timm.create_model(backbone, pretrained=False, features_only=True).eval()
    network.load_state_dict(model.backbone.state_dict())
    network = network.to(memory_format=torch.channels_last)
    laid_out = images.contiguous(memory_format=torch.channels_last)

    def work() -> list[torch.Tensor]:
        with torch.inference_mode():
            maps = network(laid_out)
            return [one.mean((-2, -1)) for one in maps] if pool == "gap" else maps

    return work


def bare(model: ContextPredictionModel, images: torch.Tensor, pool: str) -> Work:
    """Return ONNX Runtime's features of the images, from the exported file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = export.onnx(model, Path(folder) / "features.onnx", pool=pool)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = {"images": images.numpy()}
    return lambda: session.run(None, given)


def compare(backbone: str, options: argparse.Namespace) -> None:
    """Measure one backbone and print the table."""
    model = ContextPredictionModel(backbone, pair_layers=False).eval()
    images = torch.randn(options.batch, 3, 224, 224)
    contenders: dict[str, Work] = {
        "timm": timms(backbone, model, images, options.pool),
        "bare ONNX Runtime": bare(model, images, options.pool),
    }
    for name in options.engines:
        engine = engines.prepare(model, name, pool=options.pool, device="cpu")
        contenders[f"engine {name}"] = lambda engine=engine: engine(images)
    reference = contenders["timm"]()
    for work in contenders.values():
        found = work()
        for a, b in zip(found.values() if isinstance(found, dict) else found, reference, strict=True):
            np.testing.assert_allclose(np.asarray(a), b.numpy(), rtol=1e-3, atol=1e-3 * float(b.std()))
    seconds = alternating(contenders, options.rounds, CLOCKS[options.clock])
    print(f"{backbone}, {', '.join(LAYERS)}, pool={options.pool}, batch of {options.batch}, 224 px")
    for name, values in seconds.items():
        against = [f"{ratio(seconds[peer], values)} {peer}" for peer in ("timm", "bare ONNX Runtime") if peer != name]
        print(
            f"  {name:20s} {options.batch / statistics.median(values):6.1f} images/s; {', '.join(against)}", flush=True
        )
    best = engines.resolve("auto", "cpu")[0]
    print(f'  "auto" is {best}; bars: 1.30 × timm, .90 × bare ONNX Runtime\n', flush=True)


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", nargs="+", default=["resnet50", "resnet18"])
    parser.add_argument("--engines", nargs="+", default=list(engines.ENGINES))
    parser.add_argument("--pool", choices=["none", "gap"], default="none")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    capability = torch.backends.cpu.get_cpu_capability()
    print(
        f"torch {torch.__version__}, timm {timm.__version__}, onnxruntime {onnxruntime.__version__}, "
        f"{options.threads} threads, {capability}, {options.rounds} rounds, {options.clock} clock\n"
    )
    for backbone in options.backbone:
        compare(backbone, options)


if __name__ == "__main__":
    main()
