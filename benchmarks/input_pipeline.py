"""What it costs to get from JPEG files to patches ready for the network, against decoding the same files with Pillow.

    taskset -c 0 python benchmarks/input_pipeline.py [--rounds 15] [--files 128] [--quality 92 95 97] [--exact-grey]

Files of 500×375 px are decoded at full size with Pillow; made into patches as pretraining does, on the same core: a
worker's part (read, decode, resize to 292, draw) and the device's (cut the grids of a batch, grey, normalise), with
`GridPatchSampler()`, of whose images two thirds are grey and are decoded to grey (`--exact-grey`: decoded in colour, as
the recipe `resnet50_8xb64-steplr-70e` has it to equal upstream); and made into patches as upstream does, image by image
with Pillow and torchvision. All three in turn. The bar: 1.35 × the time of the decoding, and at most 1 / 1.8 of
upstream's.

The share of the decoding depends on how dense the files are. Three kinds are written: quality 92 and 95 with halved
colours, as cameras and telephones write, and 97 in full, which comes near the 110 kB of ImageNet's average file.
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
from torchvision import transforms
from torchvision.transforms import functional as F

from context_pred.data.collection import Collection, collect
from context_pred.patches import GridPatchSampler
from context_pred.pretrain.loading import load
from context_pred.pretrain.prepare import ImageOptions, Preparation

PHOTOS = Path(__file__).parents[1] / "docs" / "photos"
BATCH = 64
FULL_COLOR = 96
"""From this quality on the colours are written in full."""

FIRST = transforms.Compose([transforms.Resize(292), transforms.RandomCrop(255), transforms.RandomGrayscale(0.66)])
PATCH = transforms.Compose(
    [
        transforms.RandomCrop(64),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
)
"""mmselfsup 0.x: the pipeline of `relative_loc`, and what its data source does to each cell."""


def write_files(folder: Path, count: int, quality: int) -> None:
    """Write `count` JPEG files of 500×375 or 375×500 px, made from the repository's photographs."""
    photos = sorted(PHOTOS.glob("*.jpg"))
    for number in range(count):
        with Image.open(photos[number % len(photos)]) as photo:
            size = (500, 375) if photo.width >= photo.height else (375, 500)
            fitted = ImageOps.fit(photo.convert("RGB"), size)
        subsampling = "4:4:4" if quality >= FULL_COLOR else "4:2:0"
        fitted.save(folder / f"{number:04d}.jpg", quality=quality, subsampling=subsampling)


def decode(collection: Collection) -> None:
    """Decode every file at full size."""
    for name in collection.names:
        with Image.open(name) as image:
            image.load()


def pipeline(collection: Collection, preparation: Preparation, epoch: int) -> int:
    """Make the patches of every file, batch by batch, and count them."""
    places = [(epoch, image) for image in range(len(collection))]
    batches = [places[start : start + BATCH] for start in range(0, len(places), BATCH)]
    sampler = preparation.sampler
    made = load(collection, preparation, batches, seed=0, workers=0)
    return sum(len(sampler.cut(batch.images, batch.draw).patches) for batch in made)


def upstream(collection: Collection) -> int:
    """Make upstream's samples of every file, (8, 6, 64, 64) each, stacked batch by batch, and count their pairs."""
    pairs, batch = 0, []
    for name in collection.names:
        with Image.open(name) as image:
            square = FIRST(image.convert("RGB"))
        patches = [PATCH(F.crop(square, 85 * row, 85 * column, 85, 85)) for row in range(3) for column in range(3)]
        center = patches.pop(4)
        batch.append(torch.stack([torch.cat([patch, center]) for patch in patches]))
        if len(batch) == BATCH or name == collection.names[-1]:
            pairs += torch.stack(batch).flatten(0, 1).shape[0]
            batch = []
    return pairs


def milliseconds(work: Callable[[], object]) -> float:
    """Return the processor time of one call: on a shared core the time of the others does not count."""
    start = time.process_time()
    work()
    return 1000 * (time.process_time() - start)


def measure(collection: Collection, rounds: int, exact_grey: bool) -> None:
    """Measure the three in turn and print them."""
    preparation = Preparation(ImageOptions(resize=292, exact_grey=exact_grey), GridPatchSampler())
    taken: list[tuple[float, float, float]] = []
    for number in range(-1, rounds):
        times = (
            milliseconds(lambda: decode(collection)),
            milliseconds(lambda number=number: pipeline(collection, preparation, number + 1)),
            milliseconds(lambda: upstream(collection)),
        )
        if number >= 0:  # the first, to warm up, does not count
            taken.append(times)
    size = statistics.mean(Path(name).stat().st_size for name in collection.names) / 1000
    for label, times in zip(
        ("Pillow, decoding", "our pipeline", "upstream's way"), zip(*taken, strict=True), strict=True
    ):
        each = statistics.median(times) / len(collection)
        print(f"{size:4.0f} kB  {label:18s} {1000 * each:6.0f} µs a file, {1000 / each:6,.0f} images/s")
    ratios = sorted(ours / decoding for decoding, ours, _ in taken)
    gain = statistics.median(theirs / ours for _, ours, theirs in taken)
    print(
        f"{size:4.0f} kB  pipeline / decoding {statistics.median(ratios):.2f} ({ratios[0]:.2f} … {ratios[-1]:.2f}; "
        f"bar: 1.35); upstream / pipeline {gain:.1f} (bar: 1.8); medians of {rounds} rounds"
    )


def main() -> None:
    """Measure at each quality."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--files", type=int, default=128)
    parser.add_argument("--quality", type=int, nargs="+", default=[92, 95, 97])
    parser.add_argument("--exact-grey", action="store_true", help="grey exactly as upstream's: decode the colours too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for quality in options.quality:
        with tempfile.TemporaryDirectory() as folder:
            write_files(Path(folder), options.files, quality)
            measure(collect(folder), options.rounds, options.exact_grey)


if __name__ == "__main__":
    main()
