"""Measures frozen features on a labelled set of photographs, beside the same network at random initialisation.

    git clone https://github.com/marcusklasson/GroceryStoreDataset
    pip install "context-pred[eval]"
    python weights/evaluate.py --data GroceryStoreDataset --model MODEL --model random:resnet18 --seeds 0 1 2 \
        --out result.json

Every photograph goes whole through the network, resized so that its short side is `--size` px, and each layer is
averaged over positions. The train and val lists (2,936 photographs) are the labelled bank, the test list (2,485) asks.
kNN: five neighbours by cosine similarity, plain majority. Linear: scikit-learn's LinearSVC on standardised features.
The table prints accuracy (of all test photographs) a layer, in the mean over the seeds; the JSON file has each seed.

`--data` is a clone of GroceryStoreDataset (labels "coarse" and "fine"), or any folder of `train/CLASS/*`, optionally
`val/CLASS/*`, and `test/CLASS/*` (label "class").
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

import context_pred
from context_pred.data.images import open_image
from context_pred.model import ContextPredictionModel

BATCH = 64


@dataclass(frozen=True)
class LabelledSet:
    """Photographs with one or more kinds of labels; `is_test` tells the queries from the bank."""

    name: str
    paths: list[Path]
    labels: dict[str, np.ndarray]  # kind → int64 (n)
    is_test: np.ndarray  # bool (n)


def read_grocery(root: Path) -> LabelledSet:
    """The lists of GroceryStoreDataset: lines of `path, fine label, coarse label`."""
    rows = [
        (root / "dataset" / path.strip(), int(fine), int(coarse), name == "test")
        for name in ("train", "val", "test")
        for path, fine, coarse in (
            line.split(",") for line in (root / "dataset" / f"{name}.txt").read_text().splitlines() if line.strip()
        )
    ]
    paths, fine, coarse, is_test = zip(*rows, strict=True)
    labels = {"coarse": np.array(coarse), "fine": np.array(fine)}
    return LabelledSet("GroceryStoreDataset", list(paths), labels, np.array(is_test))


def read_folders(root: Path) -> LabelledSet:
    """Folders `train/CLASS`, `val/CLASS` (may be absent) and `test/CLASS`."""
    files = [(p, name) for name in ("train", "val", "test") for p in sorted((root / name).glob("*/*")) if p.is_file()]
    if {name for _, name in files} < {"train", "test"}:
        raise SystemExit(f"{root} is neither a clone of GroceryStoreDataset nor a folder of train/CLASS and test/CLASS")
    classes = sorted({path.parent.name for path, _ in files})
    labels = {"class": np.array([classes.index(path.parent.name) for path, _ in files])}
    return LabelledSet(root.name, [path for path, _ in files], labels, np.array([name == "test" for _, name in files]))


class WholeImages(torch.utils.data.Dataset[torch.Tensor]):
    """Whole photographs with a short side of `size` px (Pillow's antialiased bilinear), uint8 (3, H, W)."""

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self.paths, self.size = paths, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = open_image(self.paths[index])
        width, height = (round(side * self.size / min(image.size)) for side in image.size)
        small = image.resize((width, height), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(small)).permute(2, 0, 1)


def batches(images: Sequence[torch.Tensor]) -> Iterator[tuple[list[int], torch.Tensor]]:
    """(indices, uint8 (n, 3, H, W)): up to 64 images of one shape each."""
    by_shape: dict[torch.Size, list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        by_shape[image.shape].append(index)
    for indices in by_shape.values():
        for start in range(0, len(indices), BATCH):
            chosen = indices[start : start + BATCH]
            yield chosen, torch.stack([images[i] for i in chosen])


@torch.inference_mode()
def pooled_features(model: ContextPredictionModel, images: Sequence[torch.Tensor]) -> dict[str, np.ndarray]:
    """Every layer averaged over positions: layer → float32 (n, channels)."""
    card = model.card
    mean = torch.tensor(card.mean).view(-1, 1, 1)
    std = torch.tensor(card.std).view(-1, 1, 1)
    model = model.eval().to(memory_format=torch.channels_last)
    out = {name: np.empty((len(images), info.channels), np.float32) for name, info in model.feature_info.items()}
    for indices, batch in batches(images):
        if card.channel_order == "bgr":
            batch = batch.flip(1)
        x = ((batch / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
        for name, features in model.features(x, list(out)).items():
            out[name][indices] = features.mean((2, 3)).numpy()
    return out


def accuracies(features: np.ndarray, data: LabelledSet, c: float) -> dict[str, dict[str, float]]:
    """method → kind of label → accuracy on the test photographs."""
    bank, queries = features[~data.is_test], features[data.is_test]
    methods = {
        "knn": KNeighborsClassifier(5, metric="cosine", algorithm="brute"),
        "linear": make_pipeline(StandardScaler(), LinearSVC(C=c, dual=True, random_state=0, max_iter=3000)),
    }
    return {
        method: {
            kind: float(classifier.fit(bank, labels[~data.is_test]).score(queries, labels[data.is_test]))
            for kind, labels in data.labels.items()
        }
        for method, classifier in methods.items()
    }


def load(name: str, seed: int) -> ContextPredictionModel:
    """A model of the zoo, a path, or `random:BACKBONE`: that backbone at random initialisation."""
    if name.startswith("random:"):
        torch.manual_seed(seed)
        return ContextPredictionModel(name.removeprefix("random:"), pair_layers=False).eval()
    return context_pred.load_pretrained(name)


def table(results: list[dict[str, object]]) -> str:
    """Markdown: a row a model, label and method; a column a layer; means over the seeds."""
    cells: dict[tuple[str, str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for r in results:
        cells[str(r["label"]), str(r["method"]), str(r["model"])][str(r["layer"])].append(float(str(r["accuracy"])))
    layers = list(next(iter(cells.values())))
    lines = ["| " + " | ".join(["label", "method", "model", *layers]) + " |", "|" + " --- |" * (3 + len(layers))]
    rows = [[*key, *(f"{np.mean(cells[key][layer]):.3f}" for layer in layers)] for key in sorted(cells)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def main() -> None:
    """Parses the command line, measures, writes the JSON file and prints the table."""
    parser = argparse.ArgumentParser(description="Accuracy of frozen features on a labelled set of photographs.")
    parser.add_argument("--model", action="append", required=True, help="name, path or random:BACKBONE; several")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the random initialisations")
    parser.add_argument("--size", type=int, default=160, help="short side of the photographs, px (default 160)")
    parser.add_argument("--c", type=float, default=0.01, help="LinearSVC's C (default .01)")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    data = read_grocery(args.data) if (args.data / "dataset/test.txt").is_file() else read_folders(args.data)
    start = time.perf_counter()
    loader = torch.utils.data.DataLoader(WholeImages(data.paths, args.size), batch_size=None, num_workers=args.workers)
    images = [image.clone() for image in loader]
    print(f"{data.name}: {len(images)} photographs read in {time.perf_counter() - start:.0f} s", flush=True)
    results: list[dict[str, object]] = []
    for name in args.model:
        for seed in args.seeds if name.startswith("random:") else [None]:
            model = load(name, seed or 0)
            shown = name if seed is not None else model.card.name
            for layer, features in pooled_features(model, images).items():
                for method, by_kind in accuracies(features, data, args.c).items():
                    results += [
                        {"model": shown, "seed": seed, "layer": layer, "method": method, "label": kind, "accuracy": a}
                        for kind, a in by_kind.items()
                    ]
            print(f"{shown}, seed {seed}: done after {time.perf_counter() - start:.0f} s", flush=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    report = {
        "data": data.name,
        "bank": int((~data.is_test).sum()),
        "queries": int(data.is_test.sum()),
        "classes": {kind: len(np.unique(labels)) for kind, labels in data.labels.items()},
        "protocol": {
            "short_side": args.size,
            "pool": "mean over positions",
            "knn": "k=5, cosine",
            "linear_svc_c": args.c,
        },
        "commit": commit.stdout.strip(),
        "results": results,
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
