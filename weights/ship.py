"""Makes the folder of a shipped model out of a finished run of ``weights/train.py`` and its measurements.

    python weights/evaluate.py --data GroceryStoreDataset --model RUN/model --model random:resnet18 --seeds 0 1 2 \
        --out RUN/grocery.json
    python weights/ship.py RUN --corpus CORPUS --name resnet18_1xb64-coslr-66e.20261123

writes ``weights/NAME/``: the weights in half precision (batch-norm statistics stay float32) and the card. The plain
name, without the date, becomes an alias of this card and is taken from the older one of that name.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from context_pred.card import CARD_FILE, WEIGHTS_FILE, Card, Metric, weights_folder
from context_pred.model import ContextPredictionModel
from context_pred.patches import GridPatchSampler
from context_pred.weights_file import write_weights
from weights.train import BATCH, FREE_REPEATS, SAMPLER


def halved(model: ContextPredictionModel) -> dict[str, torch.Tensor]:
    """Return the weights in half precision; running means and variances stay float32, counters whole numbers."""
    return {
        key: value.half() if value.is_floating_point() and "running_" not in key else value
        for key, value in model.state_dict().items()
    }


def pretext_metrics(held_out: dict[str, dict[str, float]]) -> list[Metric]:
    """Accuracy on the held-out photographs of the corpus, by kind of photograph and of pairs."""
    names = {"grocery": "photographs in shops", "free": "other photographs"}
    pairs = {"all": "all 40 directed pairs of adjacent cells", "center": "the eight neighbours of the centre"}
    return [
        Metric(
            benchmark="Pretext accuracy, held out",
            dataset=f"{names[kind]} ({int(found['images'])})",
            layer="",
            metric=f"%, {text}",
            value=f"{100 * found[key]:.1f}",
            source="weights/train.py",
            note="The training's own sampler, ten squares a photograph, dropout off; chance is 12.5 %.",
        )
        for kind, found in held_out.items()
        for key, text in pairs.items()
    ]


def grocery_metrics(result: dict[str, Any]) -> list[Metric]:
    """KNN and linear accuracy a layer, and the same network at random initialisation (mean over its seeds)."""
    protocol = result["protocol"]
    texts = {
        "knn": f"kNN ({protocol['knn']})",
        "linear": f"linear SVM (C = {protocol['linear_svc_c']}, standardised)",
    }
    metrics = []
    for label in ("coarse", "fine"):
        for method, text in texts.items():
            for start, what in (("", "trained"), ("random:", "random initialisation")):
                rows = [r for r in result["results"] if r["label"] == label and r["method"] == method]
                rows = [r for r in rows if r["model"].startswith("random:") == bool(start)]
                seeds = len({r["seed"] for r in rows})
                for layer in sorted({r["layer"] for r in rows}):
                    found = [100 * r["accuracy"] for r in rows if r["layer"] == layer]
                    spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
                    metrics.append(
                        Metric(
                            benchmark=f"{text}, {what}" + (f" ({seeds} seeds)" if seeds > 1 else ""),
                            dataset=f"GroceryStoreDataset test, {result['classes'][label]} {label} classes",
                            layer=layer,
                            metric="top-1 %",
                            value=f"{statistics.mean(found):.1f}{spread}",
                            source="weights/evaluate.py",
                            note=f"Frozen; short side {protocol['short_side']} px, {protocol['pool']}.",
                        )
                    )
    return metrics


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--note", action="append", default=[], help="what else the card must say; may be repeated")
    args = parser.parse_args()
    model = ContextPredictionModel.from_pretrained(args.run / "model")
    plain, date = args.name.rsplit(".", 1)
    folder = weights_folder() / args.name
    state = halved(model)
    digest = write_weights(state, folder / WEIGHTS_FILE)
    corpus = json.loads((args.corpus / "corpus.json").read_text())
    rows = [json.loads(line) for line in (args.run / "log.jsonl").read_text().splitlines()]
    last, counts = rows[-1], corpus["counts"]
    inside = corpus["evaluation_sets_inside"]
    shop, free = counts["train/grocery"], counts["train/free"]
    epochs = last["images"] / (shop + FREE_REPEATS * free)
    card = Card(
        name=args.name,
        backbone=model.card.backbone,
        patch_sampler=GridPatchSampler(**SAMPLER).to_config(),
        file=WEIGHTS_FILE,
        sha256=digest,
        file_size=(folder / WEIGHTS_FILE).stat().st_size,
        num_params=sum(p.numel() for p in model.parameters()),
        title="ResNet-18 on free photographs",
        description=(
            "Small enough to ship with the library: for a first try, for tests and for machines without a network. "
            "It has seen few photographs of few kinds; for real work take a model trained on ImageNet, or your own."
        ),
        dataset=(
            f"{shop + free:,} photographs without labels: {shop:,} of GroceryStoreDataset's train and val lists (MIT) "
            f"and {free} from Debian packages and budgie-backgrounds (free licences), made by weights/corpus.py; "
            f"digest of the corpus {corpus['digest'][:16]}"
        ),
        recipe="weights/train.py",
        trained=datetime.strptime(date, "%Y%m%d").date().isoformat(),
        license="Apache-2.0",
        paper="https://arxiv.org/abs/1505.05192",
        authors="the context-pred developers; method by Doersch, Gupta and Efros",
        notes=(
            f"{last['images']:,} squares at random scales in {last['step']:,} steps of {BATCH} ({epochs:.0f} epochs, "
            f"the {free} other photographs {FREE_REPEATS} times each), AdamW 1e-3, weight decay .05, cosine to 0 after "
            f"100 steps of warm-up, bf16 autocast, seed 0.",
            f"{last['seconds'] / 60:.0f} minutes on one core of a shared CPU with AVX-512 bf16.",
            f"Training accuracy at the end {100 * last['accuracy']:.1f} % of all 40 pairs (dropout on).",
            f"Of evaluation sets, the corpus holds without their labels: GroceryStoreDataset, "
            f"{inside['GroceryStoreDataset']}; {inside['gcompris categorization.rcc']} pictures of gcompris' "
            f"categorization and {inside['gcompris explore_monuments.rcc']} of its explore_monuments.",
            "Stored in half precision, batch-norm statistics in float32; loaded as float32.",
            *args.note,
        ),
        metrics=tuple(
            dataclasses.replace(metric, measured_on=args.name)
            for metric in (
                *pretext_metrics(last["held_out"]),
                *grocery_metrics(json.loads((args.run / "grocery.json").read_text())),
            )
        ),
        aliases=(plain,),
    )
    for other in weights_folder().glob(f"*/{CARD_FILE}"):
        older = Card.read(other)
        if plain in older.aliases and older.name != card.name:
            older.replace(aliases=tuple(a for a in older.aliases if a != plain)).write(other)
    card.write(folder / CARD_FILE)


if __name__ == "__main__":
    main()
