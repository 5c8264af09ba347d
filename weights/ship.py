"""Makes the folder of a shipped model out of a finished run of `context-pred pretrain` and its measurements.

    context-pred pretrain CORPUS/train --held-out CORPUS/heldout --recipe RECIPE --out RUN
    python weights/evaluate.py --model RUN/model --model random:resnet18 --seeds 0 1 2 3 4 … --out evaluation.json
    python weights/pretext_accuracy.py RUN/model --corpus CORPUS --bsds BSDS500 --out pretext.json
    context-pred audit RUN/model BSDS500/… --out AUDIT
    python weights/ship.py RUN --corpus CORPUS --name resnet18_1xb64-coslr-300k.20261123 \
        --evaluation evaluation.json --pretext pretext.json --audit AUDIT/audit.json

writes `weights/NAME/`: the weights in half precision (batch-norm statistics stay float32) and the card. The card is the
run's own, with the name, the corpus, and the measurements in place of the run's. The measurements must be of the run's
weights, known by their SHA-256. The plain name, without the date, becomes an alias of this card and is taken from the
older one of that name.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from context_pred.card import CARD_FILE, WEIGHTS_FILE, Card, Metric, weights_folder
from context_pred.model import ContextPredictionModel
from context_pred.pretrain.recipe import read_recipe
from context_pred.weights_file import write_weights

TITLE = "ResNet-18 on free photographs"
DESCRIPTION = (
    "Small enough to ship with the library: for a first try, for tests and for machines without a network. "
    "It has seen few photographs of few kinds; for real work take a model trained on ImageNet, or your own."
)
KINDS = {
    "grocery": "of GroceryStoreDataset's train and val lists (MIT)",
    "clothing": "of clothing-dataset (CC0)",
    "free": "from Debian packages and budgie-backgrounds (free licences)",
}
METHODS = {"knn": "kNN", "linear": "linear SVM"}
GEOMETRIES = {
    ("recipe", "as trained"): "the recipe's sampler",
    ("paper", "color"): "the paper's geometry, in colour",
    ("paper", "gray"): "the paper's geometry, in grey",
}


def halved(model: ContextPredictionModel) -> dict[str, torch.Tensor]:
    """Return the weights in half precision; running means and variances stay float32, counters whole numbers."""
    return {
        key: value.half() if value.is_floating_point() and "running_" not in key else value
        for key, value in model.state_dict().items()
    }


def pretext_metrics(report: dict[str, Any]) -> list[Metric]:
    """Accuracy with its interval, a row a set and geometry."""
    note = (
        f"{report['repeats']} draws a photograph, dropout off; in brackets the 95 % interval over whole photographs; "
        "the paper's geometry: a gap of half a patch, jitter, 150,000 … 450,000 px scaled to the patch; chance is "
        "12.5 %."
    )
    order = list(GEOMETRIES)
    rows = sorted(report["results"], key=lambda r: (r["set"], order.index((r["geometry"], r["color"]))))
    return [
        Metric(
            benchmark="Pretext accuracy",
            dataset=f"{row['set']} ({row['images']:,} photographs)",
            layer="",
            metric=f"%, {GEOMETRIES[row['geometry'], row['color']]}",
            value=f"{percent(row['accuracy'])} ({percent(row['low'])} … {percent(row['high'])})",
            source="weights/pretext_accuracy.py",
            note=note,
        )
        for row in rows
    ]


def feature_metrics(report: dict[str, Any]) -> list[Metric]:
    """KNN and linear accuracy a layer, and the same network at random initialisation (mean ± spread of its seeds)."""
    protocol, metrics = report["protocol"], []
    labels = {(row["set"], row["label"]): None for row in report["results"]}
    for data, label in labels:
        described = report["sets"][data]
        classes = described["classes"][label]
        asked = f"{described['queries']:,} test" if "queries" in described else f"{described['pictures']:,}"
        kind = "" if label == "class" else f"{label} "
        for method, text in METHODS.items():
            for is_random, what in ((False, "trained"), (True, "random initialisation")):
                rows = [
                    r
                    for r in report["results"]
                    if (r["set"], r["label"], r["method"]) == (data, label, method)
                    and r["model"].startswith("random:") == is_random
                ]
                seeds = len({r["seed"] for r in rows})
                for layer in sorted({r["layer"] for r in rows}):
                    found = [r["accuracy"] for r in rows if r["layer"] == layer]
                    spread = f" ± {percent(statistics.stdev(found))}" if len(found) > 1 else ""
                    metrics.append(
                        Metric(
                            benchmark=f"{text}, {what}" + (f" ({seeds} seeds)" if seeds > 1 else ""),
                            dataset=f"{data}, {asked} pictures, {classes} {kind}classes",
                            layer=layer,
                            metric="top-1 %",
                            value=f"{percent(statistics.mean(found))}{spread}",
                            source="weights/evaluate.py",
                            note=f"Frozen; short side {protocol['short_side']} px, {protocol['pool']}; "
                            f"{protocol[method]}. {described['note']}".strip(),
                        )
                    )
    return metrics


def verdict_notes(report: dict[str, Any]) -> list[str]:
    """One note a method: each set at the model's best layer against random initialisation at its best."""
    notes = []
    for method, text in METHODS.items():
        parts = [
            f"{v['set']}{'' if v['label'] == 'class' else ' ' + v['label']} "
            f"{percent(v['accuracy'])} ({v['layer']}) against "
            f"{percent(v['random_mean'])} ± {percent(v['random_spread'])} ({v['random_layer']})"
            + ("" if v["better_by_two_spreads"] else ", not better by more than two spreads")
            for v in report["verdicts"]
            if v["method"] == method
        ]
        if parts:
            seeds = min(v["random_seeds"] for v in report["verdicts"])
            notes.append(
                f"{text}, top-1 %, each at its best layer against random initialisation (± the standard deviation of "
                f"{seeds} seeds): {'; '.join(parts)}."
            )
    return notes


def percent(share: float) -> str:
    """A share in per cent, one decimal."""
    return f"{100 * share:.1f}"


def corpus_texts(corpus: dict[str, Any]) -> tuple[str, list[str]]:
    """What the card says of the corpus: `dataset`, and notes on the evaluation sets inside."""
    counts = {kind: corpus["counts"].get(f"train/{kind}", 0) for kind in KINDS}
    parts = [f"{counts[kind]:,} {text}" for kind, text in KINDS.items() if counts[kind]]
    dataset = (
        f"{sum(counts.values()):,} photographs without labels: {', '.join(parts)}; made by weights/corpus.py, digest "
        f"{corpus['digest'][:16]}"
    )
    inside = corpus["evaluation_sets_inside"]
    return dataset, [
        f"Of evaluation sets, the corpus holds without their labels: GroceryStoreDataset, "
        f"{inside['GroceryStoreDataset']}; {inside['gcompris categorization.rcc']} pictures of gcompris' "
        f"categorization and {inside['gcompris explore_monuments.rcc']} of its explore_monuments."
    ]


def training_note(run: Path) -> str:
    """On what the run was made, from its recipe and `run.json`."""
    recipe, about = read_recipe(run / "recipe.toml"), json.loads((run / "run.json").read_text(encoding="utf-8"))
    machine = about["cpu"] if about["device"] == "cpu" else about["device"]
    cores = f", {about['threads']} thread{'s' if about['threads'] > 1 else ''}" if about["device"] == "cpu" else ""
    return (
        f"{machine}{cores}; {recipe.optimizer.kind} with learning rate {recipe.optimizer.learning_rate:g}, "
        f"{recipe.run.precision}, seed {recipe.run.seed}, {about['count']:,} entries in the list of images."
    )


def checked(path: Path, digests: Sequence[str | None], expected: str | None) -> None:
    """Refuses a measurement of other weights than the run's."""
    wrong = [digest for digest in digests if digest != expected]
    if not digests or wrong:
        raise SystemExit(f"{path} measured weights {wrong or 'of no trained model'}; the run's are {expected}")


def ship(args: argparse.Namespace) -> Card:
    """Writes the folder; returns the card."""
    model = ContextPredictionModel.from_pretrained(args.run / "model")
    own = model.card
    corpus = json.loads((args.corpus / "corpus.json").read_text(encoding="utf-8"))
    evaluation = json.loads(args.evaluation.read_text(encoding="utf-8"))
    pretext = json.loads(args.pretext.read_text(encoding="utf-8"))
    trained = [row["weights"] for row in evaluation["results"] if not row["model"].startswith("random:")]
    checked(args.evaluation, trained, own.sha256)
    checked(args.pretext, [pretext["weights"]], own.sha256)
    if pretext["corpus"] not in (None, corpus["digest"]):
        raise SystemExit(f"{args.pretext} is of the corpus {pretext['corpus'][:16]}, not {corpus['digest'][:16]}")
    audit = []
    if args.audit:
        found = json.loads(args.audit.read_text(encoding="utf-8"))
        audit = [f"Audit on {found['images']:,} photographs: {finding['text']}" for finding in found["findings"]]
    dataset, inside = corpus_texts(corpus)
    plain = args.name.rsplit(".", 1)[0]
    folder = args.weights / args.name
    state = halved(model)
    digest = write_weights(state, folder / WEIGHTS_FILE)
    card = own.replace(
        name=args.name,
        file=WEIGHTS_FILE,
        sha256=digest,
        file_size=(folder / WEIGHTS_FILE).stat().st_size,
        title=args.title,
        description=args.description,
        dataset=dataset,
        license="Apache-2.0",
        authors="the context-pred developers; method by Doersch, Gupta and Efros",
        notes=(
            *own.notes,
            training_note(args.run),
            *inside,
            *verdict_notes(evaluation),
            *audit,
            "Stored in half precision, batch-norm statistics in float32; loaded as float32. Measured before rounding.",
            *args.note,
        ),
        metrics=tuple(
            dataclasses.replace(metric, measured_on=args.name)
            for metric in (*pretext_metrics(pretext), *feature_metrics(evaluation))
        ),
        aliases=(plain,),
    )
    for other in args.weights.glob(f"*/{CARD_FILE}"):
        older = Card.read(other)
        if plain in older.aliases and older.name != card.name:
            older.replace(aliases=tuple(a for a in older.aliases if a != plain)).write(other)
    card.write(folder / CARD_FILE)
    return card


def main() -> None:
    """Parses the command line and writes the folder."""
    parser = argparse.ArgumentParser(description="Make the folder of a shipped model out of a finished run.")
    parser.add_argument("run", type=Path, help="folder that `context-pred pretrain` made")
    parser.add_argument("--corpus", type=Path, required=True, help="what weights/corpus.py made")
    parser.add_argument("--evaluation", type=Path, required=True, help="what weights/evaluate.py wrote")
    parser.add_argument("--pretext", type=Path, required=True, help="what weights/pretext_accuracy.py wrote")
    parser.add_argument("--audit", type=Path, help="the audit.json of `context-pred audit`")
    parser.add_argument("--name", required=True, help="BACKBONE_SCHEDULE.DATE")
    parser.add_argument("--title", default=TITLE)
    parser.add_argument("--description", default=DESCRIPTION)
    parser.add_argument("--note", action="append", default=[], help="what else the card must say; may be repeated")
    parser.add_argument("--weights", type=Path, default=weights_folder(), help="folder of the shipped models")
    args = parser.parse_args()
    if "." not in args.name:
        parser.error(f"--name {args.name}: accepted is a name with its date, as resnet18_1xb64-coslr-300k.20261123")
    ship(args)


if __name__ == "__main__":
    main()
