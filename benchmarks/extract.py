"""End-to-end speed of extraction, files in and file out, beside a plain loop; alternating rounds of one run.

    python benchmarks/extract.py                                     # ResNet-18, 256 JPEGs made from docs/photos
    python benchmarks/extract.py --backbone resnet50 --data photos/  # ResNet-50, JPEGs made from another folder

The plain loop is what one writes without the library: the same model in ``inference_mode``, in the default memory
format, over a ``DataLoader`` with batches of 32 and two workers that open, resize, crop and normalise; the features are
saved at the end. Both sides use the same files, the same number of threads, and 32-bit floating point, and their
features are compared. Bar: the median ratio is at least 1.2. With ``--memory`` it measures one long extraction instead
and prints the resident memory as it goes (many small files; the line should be flat).
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import threading
import time
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from context_pred import ContextPredictionModel, extract
from context_pred.data import find_images, open_image

ROOT = Path(__file__).resolve().parent.parent


def make_jpegs(source: Path, folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    """Write ``count`` JPEGs of about ``size`` px, cut differently from the photographs of ``source``."""
    folder.mkdir(parents=True)
    photos = [open_image(path) for path in find_images(source) if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
    made = []
    for k in range(count):
        photo = photos[k % len(photos)]
        shrunk = 1 - 0.3 * (k // len(photos) % 8) / 8  # another part of the photograph each time round
        box = (0, 0, int(photo.width * shrunk), int(photo.height * shrunk))
        wanted = size if photo.width >= photo.height else size[::-1]
        made.append(folder / f"{k:06d}.jpg")
        photo.resize(wanted, Image.Resampling.BICUBIC, box).save(made[-1], quality=90)
    return made


class Files(Dataset[torch.Tensor]):
    """The plain loop's images."""

    def __init__(self, paths: list[Path], model: ContextPredictionModel) -> None:
        self.paths = paths
        self.transform = v2.Compose(
            [
                v2.Resize(model.card.resize, antialias=True),
                v2.CenterCrop(model.card.crop),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(model.card.mean), list(model.card.std)),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, k: int) -> torch.Tensor:
        with Image.open(self.paths[k]) as image:
            tensor: torch.Tensor = self.transform(image.convert("RGB"))
        return tensor


def plain_loop(paths: list[Path], model: ContextPredictionModel, out: Path) -> torch.Tensor:
    """Extract feature5, pooled, without the library's extraction."""
    loader = DataLoader(Files(paths, model), batch_size=32, num_workers=2)
    with torch.inference_mode():
        features = torch.cat([model.backbone(x, "feature5")["feature5"].mean((2, 3)) for x in loader])
    save_file({"feature5": features}, out)
    return features


def ours(paths: list[Path], model: ContextPredictionModel, out: Path, workers: int | None) -> torch.Tensor:
    """Extract feature5, pooled, with the library."""
    extract.run(paths, model, out=out, device="cpu", overwrite=True, progress=False, workers=workers)
    return torch.tensor(extract.load(out)[1]["feature5"])


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    """Alternate the two, and print images/s of both and the ratio."""
    model = ContextPredictionModel(arguments.backbone).eval()
    paths = make_jpegs(arguments.data, folder / "in", arguments.images, (500, 375))
    out = folder / "out.safetensors"
    print(
        f"{arguments.backbone}, {len(paths)} JPEGs of 500×375, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"
    )
    warm = paths[:32]
    difference = (ours(warm, model, out, arguments.workers) - plain_loop(warm, model, out)).abs().max()
    out.unlink()
    print(f"largest difference of the features: {difference:.2e}")
    speeds: dict[str, list[float]] = {"plain": [], "ours": []}
    for k in range(arguments.rounds):
        for name in ("plain", "ours") if k % 2 else ("ours", "plain"):
            start = time.perf_counter()
            if name == "plain":
                plain_loop(paths, model, folder / "plain.safetensors")
            else:
                ours(paths, model, out, arguments.workers)
            speeds[name].append(len(paths) / (time.perf_counter() - start))
        print(
            f"round {k + 1}: plain {speeds['plain'][-1]:.1f}, extract.run {speeds['ours'][-1]:.1f} images/s", flush=True
        )
    ratios = [a / b for a, b in zip(speeds["ours"], speeds["plain"], strict=True)]
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    print(
        f"median: plain {medians['plain']:.1f}, extract.run {medians['ours']:.1f} images/s; "
        f"ratio {statistics.median(ratios):.2f}"
    )


def watch_memory(arguments: argparse.Namespace, folder: Path) -> None:
    """Extract many small files with a small network input, and print the resident memory as it goes."""
    model = ContextPredictionModel(arguments.backbone)
    model.card = model.card.replace(resize=32, crop=32)
    few = make_jpegs(arguments.data, folder / "few", 100, (64, 48))
    many = folder / "many"
    many.mkdir()
    for k in range(arguments.images):
        (many / f"{k}.jpg").hardlink_to(few[k % len(few)])
    stop = threading.Event()

    def report() -> None:
        page, parts = resource.getpagesize(), folder / "out.parts"
        while not stop.wait(arguments.every):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            done = sum(1 for _ in parts.iterdir()) - 1 if parts.is_dir() else 0
            print(f"{done * 32:7d} images: {pages * page / 2**20:.0f} MiB resident", flush=True)

    watcher = threading.Thread(target=report)
    watcher.start()
    try:
        print(extract.run(many, model, out=folder / "out", device="cpu", progress=False))
    finally:
        stop.set()
        watcher.join()
    print(f"largest: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument(
        "--data", type=Path, default=ROOT / "docs" / "photos", help="photographs to make the JPEGs from"
    )
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=None, help="extract.run's; default: its own choice")
    parser.add_argument("--memory", action="store_true", help="measure resident memory over --images small files")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two lines of --memory")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (watch_memory if arguments.memory else compare)(arguments, Path(folder))


if __name__ == "__main__":
    main()
