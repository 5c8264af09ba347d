"""What each option beyond upstream brings: short runs that differ in one option, measured alike.

    python weights/corpus.py … --out CORPUS
    python benchmarks/pretrain_options.py CORPUS --bsds BSDS500 --out options.json

Every run starts from the same random weights and sees as many images in the same order. The pretext accuracy is then
measured with one preparation and one sampler, the baseline's, on the corpus's held-out photographs and on BSDS500, and
on BSDS500 in the paper's geometry too. Runs that are in OPTIONS.json already are not repeated. Short runs tell what
helps early; differences below two points are within what another seed changes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import context_pred
from context_pred.pretrain import read_recipe, run
from weights.pretext_accuracy import as_in_training, bsds_files, held_out_files, in_papers_geometry, merged

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
    held_out, bsds = held_out_files(args.corpus), bsds_files(args.bsds)
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
        kinds = [as_in_training(model, files, baseline.images, 1) for files in held_out.values()]
        paper = in_papers_geometry(model, bsds, 1, gray=False)
        found = {
            "held out": merged(kinds).result(),
            "BSDS500": as_in_training(model, bsds, baseline.images, 1).result(),
            "BSDS500, paper's geometry": paper.result() if paper is not None else None,
        }
        results[name] = {key: str(result) for key, result in found.items()}
        args.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        print(f"{name} ({time.perf_counter() - begun:.0f} s): {results[name]}", flush=True)


if __name__ == "__main__":
    main()
