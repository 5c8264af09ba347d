"""What each option beyond upstream brings: short runs that differ in one option, measured alike.

    python weights/corpus.py … --out CORPUS
    python benchmarks/pretrain_options.py CORPUS --bsds BSDS500/BSDS500/data/images --out options.json

Every run starts from the same random weights and sees as many images in the same order. The pretext accuracy is then
measured by `evaluate pretext` with one sampler, the baseline's, on the corpus's held-out photographs and on BSDS500
(the folder of its images), and there in the paper's geometry too. Runs that are in OPTIONS.json are not repeated. Short
runs tell what helps early; differences below two points are within what another seed changes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import context_pred
from context_pred import evaluate
from context_pred.pretrain import read_recipe, run

RECIPE = "resnet18_1xb64-coslr-300k"
BASELINE = {"sampler.gap": "[0, 0]", "images.flip": "0.0", "images.squares": "[0.5, 1.0]"}
VARIANTS = {
    "baseline: 40 pairs, squares .5–1, no gap, no flip, grey .66": {},
    "the 8 pairs of the centre": {"sampler.pairs": "center"},
    "gap of 0–12 px": {"sampler.gap": "[0, 12]"},
    "flips": {"images.flip": "0.5"},
    "squares of the whole short side": {"images.squares": "[1.0, 1.0]"},
    "yoked jitter": {"sampler.yoked": "true"},
    "aperture 2/3": {"sampler.aperture": "0.67"},
    "no grey, chroma blur .66": {"sampler.grayscale": "0.0", "sampler.chroma_blur": "0.66"},
}


def accuracy(model: context_pred.ContextPredictionModel, images: Path, **settings: Any) -> str:
    """Measure the pretext accuracy; return it with its interval as the protocol's note says them."""
    with tempfile.TemporaryDirectory() as out:
        result = evaluate.run("pretext", model, images, out=out, settings=settings, progress=False)
    return str(result.details["notes"][0])


def main() -> None:
    """Train, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--bsds", type=Path, required=True)
    parser.add_argument("--images", type=int, default=12_800, help="seen by each run")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    baseline = read_recipe(RECIPE).override(BASELINE)
    length = {"schedule.images": str(args.images), "schedule.warmup_images": "3200", "run.held_out": "0"}
    for name, changes in VARIANTS.items():
        if name in results:
            continue
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            settings = {**BASELINE, **length, **changes}
            run(args.corpus / "train", RECIPE, out=Path(folder) / "run", settings=settings, workers=0, progress=False)
            model = context_pred.load_pretrained(Path(folder) / "run" / "model")
            model.card = model.card.replace(patch_sampler=baseline.make_sampler().to_config())
            results[name] = {
                "held out": accuracy(model, args.corpus / "heldout"),
                "BSDS500": accuracy(model, args.bsds),
                "BSDS500, paper's geometry": accuracy(model, args.bsds, geometry="paper"),
            }
        args.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        print(f"{name} ({time.perf_counter() - begun:.0f} s): {results[name]}", flush=True)


if __name__ == "__main__":
    main()
