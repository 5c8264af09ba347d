"""Peak memory of extraction, ``knn`` and ``linear`` with features four times as large as the memory they are given.

    python benchmarks/memory.py [--memory 64MB] [--times 4]

Each runs in a process of its own, on pictures made up with a seed. The baseline is the same call on a hundredth of the
images: what Python, PyTorch and the network take anyway.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

# Values an image: the map after the stem on a grid; a thumbnail of 32 × 32, three quarters of them in the bank.
VALUES = {"extract": 9216, "knn": 3072 * 0.75, "linear": 3072 * 0.75}

CHILD = """
import resource, sys
from context_pred.cli import main
try:
    main(sys.argv[1:], standalone_mode=False)
finally:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def pictures(folder: Path, count: int, classes: int = 10) -> Path:
    """Write small pictures, a folder a class: train/ (three quarters) and test/."""
    rng = np.random.default_rng(0)
    for number in range(count):
        split = "test" if number % 4 == 3 else "train"
        path = folder / split / str(number % classes) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path, compress_level=1)
    return folder


def peak(arguments: list[str]) -> int:
    """Return the peak resident bytes of a command in a process of its own."""
    done = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    lines = [line for line in done.stderr.splitlines() if line.startswith("peak ")]
    return int(lines[-1].split()[1]) * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Measure each, and print peak, baseline and their difference beside the bound."""
    from context_pred.evaluate.settings import bytes_of

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", default="64MB")
    parser.add_argument("--times", type=float, default=4, help="features over memory")
    parser.add_argument("--protocols", nargs="*", default=["extract", "knn", "linear"])
    args = parser.parse_args()
    bound = bytes_of(args.memory)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for name in args.protocols:
            images = int(args.times * bound / VALUES[name] / 4)
            sets = [pictures(root / f"{name}-{count}", count) for count in (max(400, images // 100), images)]
            print(f"{name}: {images:,} images, features of {args.times:g} × {args.memory}", flush=True)
            peaks = [peak(command(name, data, data.with_suffix(".out"), args.memory)) for data in sets]
            more = peaks[1] - peaks[0]
            print(
                f"{name}: peak {peaks[1] / 1e6:,.0f} MB, baseline {peaks[0] / 1e6:,.0f} MB: {more / 1e6:,.0f} MB more, "
                f"{more / bound:.2f} of the bound",
                flush=True,
            )


def command(name: str, data: Path, out: Path, memory: str) -> list[str]:
    """Return a command's arguments."""
    common = ["--no-progress", "--device", "cpu"]
    if name == "extract":
        return ["extract", str(data), "--model", "resnet18_1xb64-coslr-300k", "--layer", "feature1", "--pool", "grid",
                "--out", str(out), *common]  # fmt: skip
    chosen = ["--set", "k=10"] if name == "knn" else ["--set", "epochs=2", "--set", "milestones=1"]
    return ["evaluate", name, "--model", "pixels", "--data", str(data), "--out", str(out), "--set", "size=32",
            "--memory", memory, *chosen, *common]  # fmt: skip


if __name__ == "__main__":
    main()
