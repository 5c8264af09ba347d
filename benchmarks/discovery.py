"""Time and memory of ``context-pred discover`` on a thousand photographs, with the paper's 16,384 constellations.

    taskset -c 0,1 python benchmarks/discovery.py PHOTOS [--count 1000] [--seed 0] [-- --side 4 --side 6]

PHOTOS is a folder; of its photographs so many are chosen at random, no two with the same bytes. What follows ``--``
goes to the command. Peak memory is that of the largest process, pages of the features mapped from the disk included.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from context_pred.data.files import find_images


def distinct(folder: Path, count: int, seed: int) -> list[Path]:
    """Choose photographs of which no two have the same bytes."""
    paths = [Path(path) for path in find_images(folder)]
    random.Random(seed).shuffle(paths)
    chosen: dict[bytes, Path] = {}
    for path in paths:
        chosen.setdefault(hashlib.sha256(path.read_bytes()).digest(), path)
        if len(chosen) == count:
            return list(chosen.values())
    raise SystemExit(f"{folder} has {len(chosen)} distinct photographs, {count} were asked for.")


def main() -> None:
    """Choose, discover, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, metavar="PHOTOS")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("more", nargs="*", metavar="-- OPTIONS")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        given = Path(place) / "photographs"
        given.mkdir()
        for number, path in enumerate(distinct(args.photographs, args.count, args.seed)):
            (given / f"{number:04d}{path.suffix}").symlink_to(path.resolve())
        out = Path(place) / "out"
        command = [sys.executable, "-m", "context_pred.cli", "discover", str(given), "--out", str(out), *args.more]
        start = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        found = json.loads((out / "clusters.json").read_text(encoding="utf-8"))
        clusters = len(found["clusters"])
        print(f"{args.count} photographs: {seconds / 60:.1f} minutes, {peak / 2**30:.2f} GiB, {clusters} clusters")


if __name__ == "__main__":
    main()
