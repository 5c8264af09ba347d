"""Makes the folder of a shipped model out of a finished run of `context-pred pretrain`; then it is measured.

    context-pred pretrain CORPUS/train --held-out CORPUS/heldout --recipe RECIPE --out RUN
    context-pred audit RUN/model BSDS500/… --out AUDIT
    python weights/ship.py RUN --corpus CORPUS --name resnet18_1xb64-coslr-300k.20261123 --audit AUDIT/audit.json
    context-pred evaluate PROTOCOL --model weights/NAME --data DIR --out OUT    # as in docs/results.md
    context-pred zoo results weights/NAME OUT…
    python -m context_pred.zoo.document

writes `weights/NAME/`: the weights in half precision (batch-norm statistics stay float32) and the card. The card is the
run's own, with the name and the corpus, and without the run's own figures. The plain name, without the date, becomes
an alias of this card and is taken from the older one of that name.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from context_pred.card import CARD_FILE, WEIGHTS_FILE, Card, weights_folder
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


def halved(model: ContextPredictionModel) -> dict[str, torch.Tensor]:
    """Return the weights in half precision; running means and variances stay float32, counters whole numbers."""
    return {
        key: value.half() if value.is_floating_point() and "running_" not in key else value
        for key, value in model.state_dict().items()
    }


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


def ship(args: argparse.Namespace) -> Card:
    """Writes the folder; returns the card."""
    model = ContextPredictionModel.from_pretrained(args.run / "model")
    own = model.card
    corpus = json.loads((args.corpus / "corpus.json").read_text(encoding="utf-8"))
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
            *audit,
            "Stored in half precision, batch-norm statistics in float32; loaded as float32; audited before rounding.",
            *args.note,
        ),
        metrics=(),
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
