"""What cutting the patch grids of a batch costs, against decoding the batch's photographs, on one core.

    python benchmarks/grid_sampling.py [--rounds 15] [--batch 64]

One side is `GridPatchSampler` (preset openmmlab-0.x, grey included, uint8 out) on a batch of 255 px images in memory,
the other Pillow decoding as many JPEGs of 500×375; both are run in turn. The bar: at most 20 % of the time.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from context_pred.patches import GridPatchSampler

PHOTOS = Path(__file__).parents[1] / "docs" / "photos"


def jpegs(batch: int) -> list[bytes]:
    """Return `batch` JPEG files of 500×375 px, quality 90, made from the repository's photographs."""
    files = []
    for path in sorted(PHOTOS.glob("*.jpg")):
        with Image.open(path) as photo, io.BytesIO() as file:
            ImageOps.fit(photo.convert("RGB"), (500, 375)).save(file, "JPEG", quality=90)
            files.append(file.getvalue())
    return [files[i % len(files)] for i in range(batch)]


def decode(file: bytes) -> Image.Image:
    """Decode one file with Pillow."""
    image = Image.open(io.BytesIO(file))
    image.load()
    return image


def seconds(work: Callable[[], object]) -> float:
    """Return the wall-clock time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measure both sides alternately and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    files = jpegs(options.batch)
    images = torch.stack(
        [torch.from_numpy(np.array(decode(file).crop((0, 0, 255, 255)))).permute(2, 0, 1) for file in files]
    )
    sampler = GridPatchSampler(normalize=False)
    generator = torch.Generator().manual_seed(0)

    def sampling() -> object:
        return sampler(images, generator)

    def decoding() -> object:
        return [decode(file) for file in files]

    sampling(), decoding()
    rounds = [(seconds(sampling), seconds(decoding)) for _ in range(options.rounds)]
    ours, pillow = (1000 * statistics.median(side) for side in zip(*rounds, strict=True))
    share = 100 * statistics.median(a / b for a, b in rounds)
    size = sum(map(len, files)) / len(files) / 1000
    print(f"{options.batch} JPEGs of 500×375 ({size:.0f} kB each), Pillow   {pillow:8.1f} ms")
    print(f"{options.batch} grids of nine 64 px patches, uint8      {ours:8.1f} ms")
    print(f"grids / JPEGs   {share:.1f} %  (bar: 20 %; one thread, median of {options.rounds} rounds)")


if __name__ == "__main__":
    main()
