"""Shared by `detection.py` and `segmentation.py`: the same processor time for both sides, each seed, means, spreads."""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from context_pred.evaluate import sources

Step = Callable[[int], None]


def parser(description: str, data: str) -> argparse.ArgumentParser:
    """The options of both scripts."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("data", type=Path, help=data)
    options.add_argument("--model", default="resnet18_1xb64-coslr-300k", help="start weights (a ResNet-18)")
    options.add_argument("--seconds", type=float, default=600, help="of training, processor time a thread")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--only", choices=("ours", "theirs"), help="run one of the two")
    options.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another setting of ours")
    options.add_argument("--out", type=Path, help="JSON file for the figures")
    return options


def given(args: argparse.Namespace, ours: dict[str, Any]) -> dict[str, Any]:
    """Our settings, with those of the command line; the threads are set too."""
    torch.set_num_threads(args.threads)
    return ours | dict(s.split("=", 1) for s in args.set)


def seconds_a_step(step: Step, count: int = 6) -> float:
    """Processor time of a step, a thread: the median of a few after the first two."""
    times = []
    for number in range(count + 2):
        begun = time.process_time()
        step(number)
        times.append((time.process_time() - begun) / torch.get_num_threads())
    return statistics.median(times[2:])


def compare(
    args: argparse.Namespace, metric: str, settings: Any, row: Callable[[str, sources.Source, int], dict[str, Any]]
) -> None:
    """Run both sides for every seed, and print a line each, then means and spreads.

    Args:
        args: Of ``parser``.
        metric: The figure of a row that counts.
        settings: Ours, a dataclass, for the record.
        row: Trains and tests one of the two: ("ours" or "theirs", start weights, seed) → its figures.
    """
    rows = []
    for seed in range(args.seeds):
        start = sources.find(args.model, seed)
        for who in ("ours", "theirs") if args.only is None else (args.only,):
            begun = time.perf_counter()
            figures = row(who, start, seed)
            rows.append({"who": who, "seed": seed, **figures, "wall": time.perf_counter() - begun})
            said = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items())
            print("  ".join(said), flush=True)
    for who in dict.fromkeys(r["who"] for r in rows):
        values = [r[metric] for r in rows if r["who"] == who]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{who}: {metric} {100 * statistics.fmean(values):.2f} ± {100 * spread:.2f} % over {len(values)} seeds")
    if args.out:
        record = {"asked": {k: v for k, v in vars(args).items() if k not in ("data", "out")}, "runs": rows}
        args.out.write_text(json.dumps(record | {"settings": dataclasses.asdict(settings)}, indent=1) + "\n")
