"""Measures frozen features on labelled sets of pictures, beside the same network at random initialisation.

    git clone https://github.com/marcusklasson/GroceryStoreDataset
    apt-get download gcompris-qt-data tuxpaint-stamps-default; dpkg -x … debs/…
    pip install "context-pred[eval]"
    python weights/evaluate.py --model MODEL --model random:resnet18 --seeds 0 1 2 3 4 --out result.json \
        --set grocery=GroceryStoreDataset \
        --set categorization=debs/gcompris-qt-data/usr/share/gcompris-qt/rcc/categorization.rcc \
        --set stamps=debs/tuxpaint-stamps-default/usr/share/tuxpaint/stamps

Every picture goes whole through the network, resized so that its short side is `--size` px, and each layer is averaged
over positions. kNN: the majority of the five nearest by cosine similarity, the lowest class where several have it.
Linear: a support vector machine (squared hinge loss, one class against the rest, scikit-learn's LinearSVC with C =
`--c`) on standardised features. GroceryStoreDataset's train and val lists (2,936 photographs) are the bank, its test
list (2,485) asks, with labels "coarse" and "fine". The sets without a test list: kNN among all others (leave one out),
linear in five stratified folds. `--set folders=DIR` takes any folder of `train/CLASS/*`, optionally `val/CLASS/*`, and
`test/CLASS/*`.

The JSON file is written after every model, seed and set, and the same command goes on where it was stopped; what is in
the file already is not computed again, so the random initialisations can be done first. At the end the table says for
every set, label and method whether each model, at its best layer, is better than the random initialisation at its best
by more than two spreads (standard deviation over the seeds). Four CPU minutes a model and seed for the three sets.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from labelled import READERS, LabelledSet, open_whole
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

import context_pred
from context_pred.model import ContextPredictionModel

BATCH = 64
NEIGHBORS = 5
FOLDS = 5
Row = dict[str, Any]


def batches(images: Sequence[np.ndarray]) -> Iterator[tuple[list[int], torch.Tensor]]:
    """(indices, uint8 (n, 3, H, W)): up to 64 images of one shape each."""
    by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        by_shape[image.shape].append(index)
    for indices in by_shape.values():
        for start in range(0, len(indices), BATCH):
            chosen = indices[start : start + BATCH]
            yield chosen, torch.from_numpy(np.stack([images[i] for i in chosen])).permute(0, 3, 1, 2)


@torch.inference_mode()
def pooled_features(model: ContextPredictionModel, images: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
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


def nearest(bank: np.ndarray, queries: np.ndarray | None = None) -> np.ndarray:
    """The rows of the bank nearest to each query by cosine similarity, int64 (q, 5), nearest first.

    Without queries, each row of the bank asks among all others.
    """
    unit = bank / np.linalg.norm(bank, axis=1, keepdims=True).clip(1e-12)
    if queries is None:
        similarity = unit @ unit.T
        np.fill_diagonal(similarity, -np.inf)
    else:
        similarity = queries / np.linalg.norm(queries, axis=1, keepdims=True).clip(1e-12) @ unit.T
    return np.argsort(-similarity, axis=1, kind="stable")[:, :NEIGHBORS]


def majority(labels: np.ndarray) -> np.ndarray:
    """The most frequent of each row's non-negative labels, int64 (q); the lowest where several are."""
    return np.array([np.bincount(row).argmax() for row in labels])


def linear(c: float) -> LinearSVC:
    """The linear classifier, by the solver of the primal problem: the fastest of liblinear's for these shapes."""
    return LinearSVC(C=c, dual=False, random_state=0, max_iter=3000)


def accuracies(features: np.ndarray, data: LabelledSet, c: float) -> dict[str, dict[str, float]]:
    """method → kind of label → accuracy, on the test pictures or, without a test list, on all in turn."""
    found: dict[str, dict[str, float]] = {"knn": {}, "linear": {}}
    if data.is_test is not None:
        bank, queries = features[~data.is_test], features[data.is_test]
        near, scale = nearest(bank, queries), StandardScaler().fit(bank)
        bank, queries = scale.transform(bank), scale.transform(queries)
        for kind, labels in data.labels.items():
            known, asked = labels[~data.is_test], labels[data.is_test]
            found["knn"][kind] = float((majority(known[near]) == asked).mean())
            found["linear"][kind] = float(linear(c).fit(bank, known).score(queries, asked))
        return found
    near = nearest(features)
    for kind, labels in data.labels.items():
        found["knn"][kind] = float((majority(labels[near]) == labels).mean())
        right = 0
        for known, asked in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(features, labels):
            scale = StandardScaler().fit(features[known])
            classifier = linear(c).fit(scale.transform(features[known]), labels[known])
            right += int((classifier.predict(scale.transform(features[asked])) == labels[asked]).sum())
        found["linear"][kind] = right / len(labels)
    return found


def load(name: str, seed: int | None) -> ContextPredictionModel:
    """A model of the zoo, a path, or `random:BACKBONE`: that backbone at random initialisation."""
    if name.startswith("random:"):
        torch.manual_seed(seed or 0)
        return ContextPredictionModel(name.removeprefix("random:"), pair_layers=False).eval()
    return context_pred.load_pretrained(name)


def key(row: Row) -> tuple[str, str, str, str]:
    """What one bar is measured on: set, label and method; and the model."""
    return row["set"], row["label"], row["method"], row["model"]


def by_layer(rows: Sequence[Row]) -> dict[tuple[str, str, str, str], dict[str, list[float]]]:
    """(set, label, method, model) → layer → accuracies, one a seed."""
    cells: dict[tuple[str, str, str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        cells[key(row)][row["layer"]].append(row["accuracy"])
    return cells


def spread(values: Sequence[float]) -> float:
    """The standard deviation over seeds; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def verdicts(rows: Sequence[Row]) -> list[Row]:
    """Each trained model at its best layer against the random initialisation at its best (in the mean of the seeds)."""
    cells, found = by_layer(rows), []
    for (data, label, method, model), layers in sorted(cells.items()):
        if model.startswith("random:"):
            continue
        layer, values = max(layers.items(), key=lambda item: statistics.mean(item[1]))
        for other in sorted({name for *_, name in cells if name.startswith("random:")}):
            other_layers = cells.get((data, label, method, other), {})
            if not other_layers:
                continue
            random_layer, random_values = max(other_layers.items(), key=lambda item: statistics.mean(item[1]))
            mean = statistics.mean(random_values)
            found.append(
                {
                    "set": data,
                    "label": label,
                    "method": method,
                    "model": model,
                    "layer": layer,
                    "accuracy": statistics.mean(values),
                    "random": other,
                    "random_layer": random_layer,
                    "random_mean": mean,
                    "random_spread": spread(random_values),
                    "random_seeds": len(random_values),
                    "better_by_two_spreads": len(random_values) > 1
                    and statistics.mean(values) - mean > 2 * spread(random_values),
                }
            )
    return found


def table(rows: Sequence[Row]) -> str:
    """Markdown: a row a set, label, method and model; a column a layer: mean ± spread over the seeds."""
    cells = by_layer(rows)
    layers = sorted({layer for row in cells.values() for layer in row})
    lines = ["| " + " | ".join(["set", "label", "method", "model", *layers]) + " |", "|" + " --- |" * (4 + len(layers))]
    for head, row in sorted(cells.items()):
        values = [row.get(layer, []) for layer in layers]
        texts = [
            f"{statistics.mean(v):.3f}" + (f" ± {spread(v):.3f}" if len(v) > 1 else "") if v else "" for v in values
        ]
        lines.append("| " + " | ".join([*head, *texts]) + " |")
    return "\n".join(lines)


def verdict_lines(found: Sequence[Row]) -> str:
    """One line a verdict."""
    return "\n".join(
        f"{v['set']}, {v['label']}, {v['method']}: {v['model']} {v['accuracy']:.3f} ({v['layer']}), {v['random']} "
        f"{v['random_mean']:.3f} ± {v['random_spread']:.3f} ({v['random_layer']}, {v['random_seeds']} seeds): "
        + ("better by more than two spreads" if v["better_by_two_spreads"] else "not better by more than two spreads")
        for v in found
    )


def start_report(out: Path, protocol: Row) -> Row:
    """The report so far, or an empty one; refuses a file measured otherwise."""
    if not out.exists():
        return {"protocol": protocol, "commit": "", "sets": {}, "results": [], "verdicts": []}
    report: Row = json.loads(out.read_text())
    if report["protocol"] != protocol:
        raise SystemExit(f"{out} was measured with {report['protocol']}, not {protocol}: give another --out")
    return report


def write_report(out: Path, report: Row) -> None:
    """Replaces the file in one step."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    report["commit"] = commit.stdout.strip()
    report["verdicts"] = verdicts(report["results"])
    draft = out.with_name(out.name + ".tmp")
    draft.write_text(json.dumps(report, indent=1) + "\n")
    draft.replace(out)


def measure(name: str, seed: int | None, sets: dict[str, tuple[LabelledSet, list[np.ndarray]]], args: Any) -> None:
    """Adds to `args.out` what it lacks of one model and seed."""
    model = load(name, seed)
    shown, digest = (name, None) if seed is not None else (model.card.name, model.card.sha256)
    for data, images in sets.values():
        report = start_report(args.out, args.protocol)
        mine = {"model": shown, "seed": seed, "weights": digest, "set": data.name}
        if any(mine.items() <= row.items() for row in report["results"]):
            continue
        started = time.perf_counter()
        # An older measurement under the same name, of other weights, goes.
        report["results"] = [r for r in report["results"] if {**r, "weights": digest} != {**r, **mine}]
        for layer, features in pooled_features(model, images).items():
            for method, by_kind in accuracies(features, data, args.c).items():
                report["results"] += [
                    {**mine, "layer": layer, "method": method, "label": kind, "accuracy": accuracy}
                    for kind, accuracy in by_kind.items()
                ]
        report["sets"][data.name] = data.describe()
        write_report(args.out, report)
        print(f"{shown}, seed {seed}, {data.name}: {time.perf_counter() - started:.0f} s", flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Accuracy of frozen features on labelled sets of pictures.")
    parser.add_argument("--model", action="append", required=True, help="name, path or random:BACKBONE; several")
    parser.add_argument("--set", action="append", required=True, help=f"KIND=PATH, kinds: {', '.join(READERS)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the random initialisations")
    parser.add_argument("--size", type=int, default=160, help="short side of the pictures, px (default 160)")
    parser.add_argument("--c", type=float, default=0.01, help="LinearSVC's C (default .01)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; goes on where it was stopped")
    args = parser.parse_args()
    for entry in args.set:
        kind, _, path = entry.partition("=")
        if kind not in READERS or not Path(path).exists():
            parser.error(f"--set {entry}: accepted are KIND=PATH of a path that exists, KIND {', '.join(READERS)}")
    args.protocol = {
        "short_side": args.size,
        "pool": "mean over positions",
        "knn": "k=5, cosine; leave one out where a set has no test list",
        "linear": f"squared-hinge SVM, C = {args.c:g}, standardised; 5 stratified folds where a set has no test list",
    }
    return args


def main() -> None:
    """Parses the command line, measures what is missing, prints the table and the verdicts."""
    args = parse()
    sets: dict[str, tuple[LabelledSet, list[np.ndarray]]] = {}
    for entry in args.set:
        kind, _, path = entry.partition("=")
        data = READERS[kind](Path(path))
        started = time.perf_counter()
        sets[data.name] = (data, [open_whole(picture, args.size) for picture in data.pictures])
        print(f"{data.name}: {len(data.pictures)} pictures read in {time.perf_counter() - started:.0f} s", flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for name in args.model:
        for seed in args.seeds if name.startswith("random:") else [None]:
            measure(name, seed, sets, args)
    report = start_report(args.out, args.protocol)
    print(table(report["results"]))
    print("\n".join(f"{name}: {described['note']}" for name, described in report["sets"].items() if described["note"]))
    print(verdict_lines(report["verdicts"]))


if __name__ == "__main__":
    main()
