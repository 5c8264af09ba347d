"""Train the first shipped model: a ResNet-18 with its pair layers, on the corpus of ``weights/corpus.py``.

    python weights/corpus.py … --out CORPUS
    python weights/train.py CORPUS --out RUN --images 240000

Squares of random scale are taken from each photograph, resized to the sampler's crop, cut into a 3×3 grid, and all 40
directed pairs of adjacent cells are asked about. ``RUN`` gets ``last.pt`` (a checkpoint: run the command again and it
goes on), ``log.jsonl`` (a line every 100 steps, with the held-out accuracy every ``--evaluate-every`` steps) and at the
end ``model/`` as ``save_pretrained`` writes it. Needs about 2 GB of memory for the decoded corpus.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from context_pred.model import ContextPredictionModel
from context_pred.patches import GridPatchSampler

BATCH = 64
FREE_REPEATS = 3  # the free pictures are few and varied: each is drawn three times as often as a shop photograph
SAMPLER = {"crop": 135, "patch": 32, "pairs": "adjacent", "grayscale": 0.66}


class Squares(Dataset[torch.Tensor]):
    """Decoded photographs; item ``i`` of an epoch is a random square of one of them, uint8 (3, crop, crop)."""

    def __init__(self, folder: Path, crop: int, seed: int, repeats: int = 1) -> None:
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in {".jpg", ".png", ".webp"})
        self.images = [Image.fromarray(np.asarray(Image.open(p).convert("RGB"))) for p in files]
        self.order = [i for i, p in enumerate(files) for _ in range(repeats if p.parent.name == "free" else 1)]
        self.crop, self.seed = crop, seed

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, key: tuple[int, int]) -> torch.Tensor:
        index, epoch = key
        image = self.images[self.order[index]]
        draw = np.random.default_rng((self.seed, epoch, index))
        short = min(image.size)
        side = min(short, math.exp(draw.uniform(math.log(min(self.crop, short)), math.log(short + 1))))
        left, top = draw.uniform(0, image.width - side), draw.uniform(0, image.height - side)
        square = image.resize(
            (self.crop, self.crop), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
        )
        return torch.from_numpy(np.array(square)).permute(2, 0, 1)


class Order:
    """Batches of (index, epoch) from step ``start`` to ``stop``; every epoch is a permutation keyed by the seed."""

    def __init__(self, size: int, seed: int, start: int, stop: int) -> None:
        self.size, self.seed, self.start, self.stop = size, seed, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self):
        steps = self.size // BATCH
        for step in range(self.start, self.stop):
            epoch, batch = divmod(step, steps)
            order = np.random.default_rng((self.seed, epoch)).permutation(self.size)
            yield [(int(i), epoch) for i in order[batch * BATCH : (batch + 1) * BATCH]]


@torch.no_grad()
def held_out(
    model: ContextPredictionModel, folder: Path, sampler: GridPatchSampler, repeats: int, bf16: bool
) -> dict[str, dict[str, float]]:
    """Pretext accuracy on held-out photographs, dropout off: all pairs of the sampler, and the eight centre pairs."""
    model.eval()
    result = {}
    for group in sorted(p for p in folder.iterdir() if p.is_dir()):
        squares = Squares(group, sampler.crop, seed=12345)
        generator = torch.Generator().manual_seed(12345)
        right = {"all": 0, "center": 0}
        asked = {"all": 0, "center": 0}
        keys = [(i, epoch) for epoch in range(repeats) for i in range(len(squares))]
        for start in range(0, len(keys), BATCH):
            pairs = sampler(torch.stack([squares[k] for k in keys[start : start + BATCH]]), generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                hit = model(pairs).argmax(1) == pairs.position
            centered = pairs.center % 9 == 4
            for name, mask in (("all", torch.ones_like(centered)), ("center", centered)):
                right[name] += int(hit[mask].sum())
                asked[name] += int(mask.sum())
        result[group.name] = {name: right[name] / max(asked[name], 1) for name in right} | {"images": len(squares)}
    model.train()
    return result


def main() -> None:
    """Train, or go on where ``--out`` stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=240_000, help="images to see in all")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=100, help="steps")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--evaluate-every", type=int, default=1500, help="steps")
    parser.add_argument("--fp32", action="store_true", help="no bf16 autocast (a CPU without AVX-512 bf16)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    sampler = GridPatchSampler(**SAMPLER)
    model = ContextPredictionModel("resnet18").to(memory_format=torch.channels_last).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": args.weight_decay}, {"params": rest, "weight_decay": 0.0}], lr=args.lr
    )
    generator = torch.Generator().manual_seed(args.seed)
    steps, first, spent = args.images // BATCH, 0, 0.0
    last = args.out / "last.pt"
    if last.exists():
        saved = torch.load(last, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        generator.set_state(saved["generator"])
        torch.set_rng_state(saved["rng"])
        first, spent = saved["step"], saved["spent"]
    squares = Squares(args.corpus / "train", sampler.crop, args.seed, FREE_REPEATS)
    loader = DataLoader(
        squares, batch_sampler=Order(len(squares), args.seed, first, steps), num_workers=args.workers, prefetch_factor=4
    )
    begun, losses, hits = time.time() - spent, [], []
    log = (args.out / "log.jsonl").open("a", encoding="utf-8")
    for step, images in enumerate(loader, first):
        rate = args.lr * min((step + 1) / args.warmup, 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        pairs = sampler(images, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=not args.fp32):
            logits = model(pairs)
        loss = F.cross_entropy(logits.float(), pairs.position)
        if not math.isfinite(loss.item()):
            raise SystemExit(f"The loss is {loss.item()} at step {step}, learning rate {rate:.3g}: lower --lr.")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        hits.append((logits.argmax(1) == pairs.position).float().mean().item())
        done = step + 1
        if done % 100 == 0 or done == steps:
            row = {
                "step": done,
                "images": done * BATCH,
                "seconds": round(time.time() - begun, 1),
                "lr": rate,
                "loss": sum(losses) / len(losses),
                "accuracy": sum(hits) / len(hits),
            }
            losses, hits = [], []
            if done % args.evaluate_every == 0 or done == steps:
                repeats = 10 if done == steps else 1
                row["held_out"] = held_out(model, args.corpus / "heldout", sampler, repeats, not args.fp32)
            log.write(json.dumps(row) + "\n")
            log.flush()
        if done % 500 == 0 or done == steps:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "generator": generator.get_state(),
                "rng": torch.get_rng_state(),
                "step": done,
                "spent": time.time() - begun,
            }
            torch.save(state, last.with_suffix(".tmp"))
            last.with_suffix(".tmp").replace(last)
    model.eval().save_pretrained(args.out / "model")


if __name__ == "__main__":
    main()
