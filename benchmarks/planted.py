"""Are objects found that were pasted into photographs? Discovery on composed images, whose objects are known.

    apt-get download tuxpaint-stamps-default; dpkg -x tuxpaint-stamps-default_*.deb stamps
    git clone https://github.com/BIDS/BSDS500
    python benchmarks/planted.py stamps/usr/share/tuxpaint/stamps BSDS500/BSDS500/data/images --out planted

Ten classes, each pasted into twenty photographs that no other has, at .8 to 1.25 of its size, at a random place, with
different cut-outs of the class where there are several. Printed are the clusters and, of the planted classes, the share
that some cluster among the first twenty shows with a purity of .8 or more.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from context_pred.discover import objects

CLASSES = {
    "apple": ("food/fruit/apple_*.png",),
    "banana": ("food/fruit/banana.png",),
    "strawberry": ("food/fruit/strawberry.png", "food/fruit/Strawberry2.png"),
    "orange": ("food/fruit/orange*.png",),
    "daffodil": ("plants/flowers/daffodil.png",),
    "rose": ("plants/flowers/rose.png",),
    "penguin": ("animals/birds/*penguin.png",),
    "owl": ("animals/birds/owl.png",),
    "guitar": ("hobbies/music/string/guitar*.png",),
    "clownfish": ("animals/fish/clownfish.png",),
}


def compose(stamps: Path, photographs: Path, out: Path, pastes: int, share: float, seed: int) -> None:
    """Write ``out/CLASS/NUMBER.jpg``.

    Args:
        stamps: Of Tux Paint.
        photographs: Of BSDS500.
        out: The folder to make.
        pastes: Of each class.
        share: The cut-out's longer side, in shorter sides of the photograph, before it is scaled.
        seed: Of every choice.
    """
    generator = np.random.default_rng(seed)
    files = sorted(photographs.rglob("*.jpg"))
    files = [files[k] for k in generator.permutation(len(files))]
    for number, (name, patterns) in enumerate(CLASSES.items()):
        cut_outs = sorted(path for pattern in patterns for path in stamps.glob(pattern))
        (out / name).mkdir(parents=True)
        for k in range(pastes):
            photo = Image.open(files[number * pastes + k]).convert("RGB")
            cut_out = Image.open(cut_outs[k % len(cut_outs)]).convert("RGBA")
            cut_out = cut_out.crop(cut_out.getchannel("A").getbbox())
            scale = min(photo.size) * share * generator.uniform(0.8, 1.25) / max(cut_out.size)
            size = tuple(max(1, round(side * scale)) for side in cut_out.size)
            at = tuple(int(generator.integers(0, w - c + 1)) for w, c in zip(photo.size, size, strict=True))
            photo.paste(small := cut_out.resize(size, Image.Resampling.LANCZOS), at, small)
            photo.save(out / name / f"{k:02d}.jpg", quality=92)


def main() -> None:
    """Compose, discover, print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stamps", type=Path, help="tuxpaint's folder of stamps")
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="resnet18_1xb64-coslr-300k")
    parser.add_argument("--pastes", type=int, default=20, help="of each class")
    parser.add_argument("--share", type=float, default=0.5, help="a cut-out's longer side, in shorter sides")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not (args.out / "composed").exists():
        compose(args.stamps, args.photographs, args.out / "composed", args.pastes, args.share, args.seed)
    found = objects.run(
        args.out / "composed",
        out=args.out / "discovered",
        model=args.model,
        labels="folders",
        selection=objects.Selection(clusters=20),
        search=objects.Search(seed=args.seed),
    )
    print(found)
    for rank, cluster in enumerate(found.clusters, 1):
        print(f"{rank:3d} {cluster.label:12s} purity {cluster.purity:.2f}, {cluster.verified} verified")
    pure = {cluster.label for cluster in found.clusters if (cluster.purity or 0) >= 0.8}
    print(f"{len(pure)} of {len(CLASSES)} planted classes in the first 20 clusters with purity >= .8: {sorted(pure)}")


if __name__ == "__main__":
    main()
