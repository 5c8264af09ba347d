"""Measures a model's pretext accuracy on photographs it has not seen, dropout off, with 95 % intervals.

    git clone https://github.com/BIDS/BSDS500
    python weights/pretext_accuracy.py RUN/model --corpus CORPUS --bsds BSDS500 --out pretext.json

- On the held-out photographs of the corpus (`CORPUS/heldout/KIND/`), a row for each kind and one for all, and on the
  500 photographs of BSDS500: with the recipe's own preparation and sampler (`RUN/recipe.toml`, or `--recipe`).
- On BSDS500 and all held-out photographs also in the paper's geometry scaled to the patch, in colour and in grey:
  the photograph scaled to (p / 96)² of 150,000 … 450,000 pixels for patches of p px, a gap of half a patch, jitter;
  at most 256 pairs a draw, chosen at random, as in the paper (BSDS500's photographs have about 90); the same code as
  `context-pred audit` uses.

Each photograph is asked `--repeats` times with other draws. The intervals are over whole photographs: all draws of one
count as one. Six CPU minutes for a ResNet-18 with 32 px patches and the corpus's
937 held-out photographs. Chance is 12.5 %.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import context_pred
from context_pred.data.collection import collect
from context_pred.data.images import open_image
from context_pred.geometry import papers
from context_pred.model import ContextPredictionModel
from context_pred.patches import PatchPairs
from context_pred.pretext import PretextResult, Tally, cut_batch
from context_pred.pretrain.audit.pairs import Photos
from context_pred.pretrain.loading import load
from context_pred.pretrain.prepare import ImageOptions, Preparation
from context_pred.pretrain.recipe import read_recipe
from context_pred.training import keys

AT_ONCE = 16  # photographs, each with all its repeats
SEED = 20150505  # no run's


@torch.inference_mode()
def tally_of(model: ContextPredictionModel, parts: Iterable[Sequence[tuple[PatchPairs, torch.Tensor]]]) -> Tally:
    """Count predictions; a part is (pairs, photograph of each pair) that share photographs with no other part."""
    tally = Tally()
    for part in parts:
        logits = torch.cat([model(pairs) for pairs, _ in part])
        position = torch.cat([pairs.position for pairs, _ in part])
        tally.add(logits, position, torch.cat([photograph for _, photograph in part]))
    return tally


def as_in_training(model: ContextPredictionModel, files: Sequence[Path], options: ImageOptions, repeats: int) -> Tally:
    """Count predictions with the recipe's preparation and the model's own sampler."""
    sampler = model.patch_sampler
    preparation = Preparation(options, sampler, model.card.in_channels)
    asked = [[(r, i) for i in chunk for r in range(repeats)] for chunk in chunks(len(files))]
    noise = keys.generator(SEED)

    def parts() -> Iterator[list[tuple[PatchPairs, torch.Tensor]]]:
        for batch in load(collect(list(files)), preparation, asked, seed=SEED):
            if batch.damaged:
                raise SystemExit(f"unreadable: {batch.damaged}")
            pairs = cut_batch(sampler, batch, torch.device("cpu"), noise)
            yield [(pairs, pairs.image[pairs.center] // repeats)]

    return tally_of(model, parts())


def in_papers_geometry(
    model: ContextPredictionModel, files: Sequence[Path], repeats: int, *, gray: bool
) -> Tally | None:
    """Count predictions in the paper's geometry, all in colour or all in grey; None where it is the model's own."""
    paper = papers(model.patch_sampler)
    if paper is None:
        return None

    def parts() -> Iterator[list[tuple[PatchPairs, torch.Tensor]]]:
        for chunk in chunks(len(files)):
            opened, part = [open_image(files[i]) for i in chunk], []
            for repeat in range(repeats):
                seed = keys.seed(SEED, repeat)
                photos = Photos(chunk, opened, seed=seed, channels=model.card.in_channels, device=torch.device("cpu"))
                images = photos.scaled(paper.size)
                draws = [
                    dataclasses.replace(draw, grayscale=torch.tensor([gray]))
                    for draw in photos.draws(paper.sampler, images)
                ]
                pairs = photos.cut(model.patch_sampler, images, draws)
                part.append((pairs, pairs.image[pairs.center]))
            yield part

    return tally_of(model, parts())


def merged(tallies: Iterable[Tally]) -> Tally:
    """Add tallies of different photographs up."""
    total = Tally()
    total.load_state(torch.stack([tally.state() for tally in tallies]).sum(0))
    return total


def chunks(count: int) -> list[range]:
    """0 … count − 1 in runs of `AT_ONCE`."""
    return [range(start, min(start + AT_ONCE, count)) for start in range(0, count, AT_ONCE)]


def bsds_files(folder: Path) -> list[Path]:
    """The photographs of BSDS500: named by a number; its repository holds a few of them twice."""
    found = {path.name: path for path in sorted(folder.rglob("*.jpg"), reverse=True) if path.stem.isdigit()}
    return [found[name] for name in sorted(found)]


def held_out_files(corpus: Path) -> dict[str, list[Path]]:
    """Kind → the held-out photographs of the corpus."""
    kinds = sorted(path for path in (corpus / "heldout").iterdir() if path.is_dir())
    return {path.name: sorted(path.glob("*.jpg")) for path in kinds}


def measured(
    model: ContextPredictionModel, options: ImageOptions, corpus: Path | None, bsds: Path | None, repeats: int
) -> Iterator[dict[str, Any]]:
    """Yield a row for each set, geometry and colour."""

    def row(name: str, geometry: str, color: str, tally: Tally) -> dict[str, Any]:
        return {"set": name, "geometry": geometry, "color": color, **tally.result().to_dict()}

    model.eval()
    whole: dict[str, list[Path]] = {}
    if corpus:
        kinds = held_out_files(corpus)
        tallies = {kind: as_in_training(model, files, options, repeats) for kind, files in kinds.items()}
        for kind, tally in {**tallies, "all": merged(tallies.values())}.items():
            yield row(f"held out, {kind}", "recipe", "as trained", tally)
        whole["held out, all"] = [file for files in kinds.values() for file in files]
    if bsds:
        whole["BSDS500"] = bsds_files(bsds)
        yield row("BSDS500", "recipe", "as trained", as_in_training(model, whole["BSDS500"], options, repeats))
    for name, files in whole.items():
        for color, gray in (("color", False), ("gray", True)):
            counted = in_papers_geometry(model, files, repeats, gray=gray)
            if counted is not None:
                yield row(name, "paper", color, counted)


def main() -> None:
    """Parses the command line, measures, writes the JSON file and prints a line a row."""
    parser = argparse.ArgumentParser(description="Pretext accuracy on photographs that the model has not seen.")
    parser.add_argument("model", help="name or path, with pair layers")
    parser.add_argument("--recipe", help="name or path (default: recipe.toml beside the model's folder)")
    parser.add_argument("--corpus", type=Path, help="what weights/corpus.py made")
    parser.add_argument("--bsds", type=Path, help="clone of BIDS/BSDS500, or a folder of its photographs")
    parser.add_argument("--repeats", type=int, default=5, help="draws of each photograph (default 5)")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if not args.corpus and not args.bsds:
        parser.error("nothing to measure on: give --corpus, --bsds, or both")
    recipe = read_recipe(args.recipe or Path(args.model).parent / "recipe.toml")
    model = context_pred.load_pretrained(args.model)
    started, rows = time.perf_counter(), []
    for row in measured(model, recipe.images, args.corpus, args.bsds, args.repeats):
        rows.append(row)
        print(
            f"{row['set']}, {row['geometry']}, {row['color']}: {PretextResult.from_dict(values_of(row))} "
            f"({time.perf_counter() - started:.0f} s)",
            flush=True,
        )
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    report = {
        "model": model.card.name,
        "weights": model.card.sha256,
        "recipe": recipe.name,
        "repeats": args.repeats,
        "corpus": json.loads((args.corpus / "corpus.json").read_text())["digest"] if args.corpus else None,
        "commit": commit.stdout.strip(),
        "results": rows,
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n")


def values_of(row: dict[str, Any]) -> dict[str, Any]:
    """The row's values that make a `PretextResult`."""
    return {field.name: row[field.name] for field in dataclasses.fields(PretextResult)}


if __name__ == "__main__":
    main()
