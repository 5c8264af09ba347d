"""What it costs to get from JPEG files to patches ready for the network, against decoding the same files with Pillow.

    taskset -c 0 python benchmarks/input_pipeline.py [--rounds 15] [--files 64]

One side decodes files of about 500×375 px at full size to RGB with Pillow. The other is what pretraining does with
them, on the same core: a worker's part (read, decode, resize to 292, draw) and the device's (cut the grids of a batch,
grey, normalise), with `GridPatchSampler()` as the published recipe has it. Both are run in turn; the bar: 1.35 × the
time of the decoding. Upstream's pipeline takes 2.45 ×.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image, ImageOps

from context_pred.data.collection import Collection, collect
from context_pred.patches import GridPatchSampler
from context_pred.pretrain.loading import load
from context_pred.pretrain.prepare import ImageOptions, Preparation

PHOTOS = Path(__file__).parents[1] / "docs" / "photos"


def write_files(folder: Path, count: int) -> None:
    """Write `count` JPEG files of 500×375 or 375×500 px, quality 92, made from the repository's photographs."""
    photos = sorted(PHOTOS.glob("*.jpg"))
    for number in range(count):
        with Image.open(photos[number % len(photos)]) as photo:
            size = (500, 375) if photo.width >= photo.height else (375, 500)
            ImageOps.fit(photo.convert("RGB"), size).save(folder / f"{number:04d}.jpg", quality=92)


def decode(collection: Collection) -> None:
    """Decode every file at full size."""
    for name in collection.names:
        with Image.open(name) as image:
            image.load()


def pipeline(collection: Collection, preparation: Preparation, batch: int, epoch: int) -> int:
    """Make the patches of every file, batch by batch, and count them."""
    places = [(epoch, image) for image in range(len(collection))]
    batches = [places[start : start + batch] for start in range(0, len(places), batch)]
    sampler = preparation.sampler
    made = load(collection, preparation, batches, seed=0, workers=0)
    return sum(len(sampler.cut(batch.images, batch.draw).patches) for batch in made)


def milliseconds(work: Callable[[], object]) -> float:
    """Return the processor time of one call: on a shared core the time of the others does not count."""
    start = time.process_time()
    work()
    return 1000 * (time.process_time() - start)


def main() -> None:
    """Measure both sides alternately and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--files", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    preparation = Preparation(ImageOptions(resize=292), GridPatchSampler())
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), options.files)
        collection = collect(folder)
        size = statistics.mean(Path(name).stat().st_size for name in collection.names) / 1000
        decode(collection)
        pipeline(collection, preparation, options.batch, 0)
        rounds = []
        for number in range(options.rounds):
            decoding = milliseconds(lambda: decode(collection))
            ours = milliseconds(lambda: pipeline(collection, preparation, options.batch, number))  # noqa: B023
            rounds.append((decoding, ours))
            print(f"round {number + 1:2d}  decoding {decoding:6.1f} ms  pipeline {ours:6.1f} ms  {ours / decoding:.2f}")
    ratio = statistics.median(ours / decoding for decoding, ours in rounds)
    each = statistics.median(ours for _, ours in rounds) / options.files
    print(f"{options.files} JPEG files of 500×375 px, {size:.0f} kB each; one core: {1000 / each:,.0f} images/s")
    print(f"pipeline / decoding   {ratio:.2f}  (bar: 1.35; median of {options.rounds} rounds)")


if __name__ == "__main__":
    main()
