"""What the pretext task saw: pairs of patches where they lie, what the model said of each, and its mistakes.

    context-pred picture pretext docs/photos --out pretext --seed 0

Source of the task: Doersch, Gupta, Efros, ICCV 2015, section 3. The patches are drawn as in the model's training, from
photographs brought to the size of training, grey where training turned patches grey.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from context_pred.discover.patches import loaded
from context_pred.errors import InvalidInputError
from context_pred.extract.network import find_device
from context_pred.geometry import Geometry, as_trained, kept_pairs, scaled
from context_pred.patches import PatchPairs, RandomPairSampler
from context_pred.patches.layout import POSITIONS
from context_pred.pictures import save_png
from context_pred.pretext import PretextResult, Tally
from context_pred.weights_file import write_bytes

from .dense import LONGEST
from .photographs import Photographs, Source, check_seed, count, found_in, made, opened, told

if TYPE_CHECKING:
    from context_pred.model import ContextPredictionModel

__all__ = ["PretextSheet", "run"]

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Guess:
    """What the model said of one pair.

    Attributes:
        position: Where the neighbour lies, seen from the centre, 0 … 7 in raster order.
        predicted: Where the model says it lies.
        probability: That it gives its prediction, 0 … 1.
        of_truth: That it gives the truth.
        box: The neighbour's, x1, y1, x2, y2 in px of the scaled photograph.
        patch: The neighbour as the network saw it, RGB.
    """

    position: int
    predicted: int
    probability: float
    of_truth: float
    box: Box
    patch: Image.Image

    @property
    def right(self) -> bool:
        """Whether the prediction is the truth."""
        return self.position == self.predicted


@dataclass(frozen=True)
class Drawn:
    """One photograph: the patches drawn in it around one centre.

    Attributes:
        path: As given.
        image: The photograph.
        size: (width, height) in px that it was scaled to.
        center: The centre's box, px of the scaled photograph.
        patch: The centre as the network saw it.
        guesses: One a neighbour, by position.
    """

    path: str
    image: Image.Image
    size: tuple[int, int]
    center: Box
    patch: Image.Image
    guesses: tuple[Guess, ...]


@dataclass(frozen=True)
class PretextSheet:
    """What was drawn; ``str()`` says it.

    Attributes:
        picture: ``OUT/pretext.png``.
        json: ``OUT/pretext.json``: every shown pair.
        drawn: The photographs shown.
        result: The accuracy over every pair that was drawn in them, shown or not.
        skipped: {path: reason} of files that could not be opened, or had no room for a pair.
    """

    picture: Path
    json: Path
    drawn: tuple[Drawn, ...]
    result: PretextResult
    skipped: dict[str, str]

    def __str__(self) -> str:
        """Say it in a paragraph."""
        guesses = [guess for one in self.drawn for guess in one.guesses]
        wrong = sum(not guess.right for guess in guesses)
        return (
            f"{self.picture}: {count(len(guesses), 'pair')} of {count(len(self.drawn), 'photograph')} shown, "
            f"{count(wrong, 'mistake')}; of every pair drawn in them {self.result} right, chance is 12.5%. "
            f"{self.json} has each pair.{told(self.skipped)}"
        )


def run(
    images: Source,
    *,
    out: str | Path,
    model: ContextPredictionModel | str | Path,
    seed: int = 0,
    at_most: int = 8,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> PretextSheet:
    """Draw patches in photographs, ask the model about them, and write ``OUT/pretext.png`` and ``OUT/pretext.json``.

    Args:
        images: As ``find_images`` takes them.
        out: The folder; made where it is missing.
        model: The model with its neck and head, or what ``load_pretrained`` takes.
        seed: Of the patches and of the choice of photographs.
        at_most: Photographs, 100 at the most; of more, so many are chosen at random.
        device: Where to compute.
        progress: Show a bar.

    Returns:
        What the model was asked and said, and where it lies.

    Raises:
        InvalidInputError: a backbone alone, no images, no room for a pair in any, or an argument out of its range.
        UnknownNameError: no such model.
        ImageError: no image can be opened.
        StorageError: ``out`` cannot be written to; earlier files stand.
    """
    from .pretext_sheet import sheet_of

    check_seed(seed)
    asker = Asker.of(loaded(model), device)
    photographs = opened(found_in(images, out), at_most=at_most, seed=seed)
    folder = made(out)
    drawn, result, without = _asked(asker, photographs, seed, progress)
    skipped = {**photographs.skipped, **without}
    if result is None:
        raise InvalidInputError(f"No pair of patches found room in any image: {told(skipped).strip()}")
    sheet = PretextSheet(folder / "pretext.png", folder / "pretext.json", drawn, result, skipped)
    page = sheet_of(drawn, result, f"{asker.model.card.name}; patches drawn as in its training, seed {seed}")
    save_png(page, sheet.picture)
    write_bytes(json.dumps(_record(sheet, asker.model.card.name, seed), indent=1).encode() + b"\n", sheet.json)
    return sheet


@dataclass(frozen=True)
class Asker:
    """A model with its own geometry, on a device."""

    model: ContextPredictionModel
    geometry: Geometry
    device: torch.device

    @classmethod
    def of(cls, model: ContextPredictionModel, device: str | torch.device = "auto") -> Asker:
        """Take a private copy of the model, in eval mode.

        Raises:
            InvalidInputError: a backbone alone, a model of other than 1 or 3 channels, or no such device.
        """
        if model.neck is None or model.head is None:
            raise InvalidInputError(
                f"{model.card.name} is a backbone alone, without the neck and head that compare patches; the pretext "
                "task needs a model that was saved with its pair layers, as resnet18_1xb64-coslr-300k."
            )
        if model.card.in_channels not in (1, 3):
            raise InvalidInputError(
                f"{model.card.name} takes {model.card.in_channels} channels; pictures are made of photographs, 3 or 1."
            )
        found = find_device(device)
        own = copy.deepcopy(model).eval().requires_grad_(False).to(found)
        return cls(own, as_trained(model.patch_sampler, None), found)

    @torch.inference_mode()
    def ask(self, image: Image.Image, generator: torch.Generator) -> tuple[PatchPairs, Tensor, Tensor, tuple[int, int]]:
        """Draw the patches of one photograph and ask about them.

        Returns:
            The pairs, on the CPU; the probabilities, float32 (pairs, 8); the patches as they look, float32
            (patches, 3, p, p) in 0 … 1; and (width, height) that the photograph was scaled to.
        """
        sampler = self.geometry.sampler
        height, width = self.geometry.size(image.height, image.width, generator)
        pixels = scaled(image, (height, width), self.model.card.in_channels).to(self.device)
        draw = sampler.draw([(height, width)], generator)
        if isinstance(sampler, RandomPairSampler):
            draw = kept_pairs(draw, torch.arange(len(draw.position)))
            pairs = sampler.cut([pixels], draw, generator)
        else:
            pairs = sampler.cut(pixels[None], draw)
        chances = self.model(pairs).float().softmax(1).cpu() if len(pairs) else torch.zeros(0, 8)
        looks = sampler.to_pixels(pairs.patches).cpu().expand(-1, 3, -1, -1)
        return pairs.to("cpu"), chances, looks, (width, height)


def _asked(
    asker: Asker, photographs: Photographs, seed: int, progress: bool
) -> tuple[tuple[Drawn, ...], PretextResult | None, dict[str, str]]:
    tally, drawn, without = Tally(), [], {}
    shown = zip(photographs.paths, photographs.images, strict=True)
    for number, (path, whole) in enumerate(
        tqdm(shown, total=len(photographs), unit=" photographs", disable=not progress, leave=False)
    ):
        generator = torch.Generator().manual_seed(1_000_003 * seed + number)
        image = _middle(whole)
        pairs, chances, looks, size = asker.ask(image, generator)
        if not len(pairs):
            without[path] = "no pair of patches found room"
            continue
        tally.add(chances.log(), pairs.position, torch.zeros_like(pairs.position))
        drawn.append(_around_one(path, image, size, pairs, chances, looks))
    return tuple(drawn), tally.result() if len(tally) else None, without


def _middle(image: Image.Image) -> Image.Image:
    """Return the middle of a panorama that would be gigabytes when scaled by its shorter side; others as they are."""
    width, height = (min(side, LONGEST * min(image.size)) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height)) if (width, height) != image.size else image


def _around_one(
    path: str, image: Image.Image, size: tuple[int, int], pairs: PatchPairs, chances: Tensor, looks: Tensor
) -> Drawn:
    """Keep the pairs of the centre that has most neighbours, the first of such."""
    centers = Counter(pairs.center.tolist())
    center = max(centers, key=lambda patch: (centers[patch], -patch))
    rows = sorted((int(pairs.position[row]), row) for row in torch.nonzero(pairs.center == center)[:, 0].tolist())
    guesses = []
    for position, row in rows:
        predicted = int(chances[row].argmax())
        neighbor = int(pairs.neighbor[row])
        guesses.append(
            Guess(
                position,
                predicted,
                float(chances[row, predicted]),
                float(chances[row, position]),
                _box(pairs.boxes[neighbor]),
                _picture(looks[neighbor]),
            )
        )
    return Drawn(path, image, size, _box(pairs.boxes[center]), _picture(looks[center]), tuple(guesses))


def _box(box: Tensor) -> Box:
    x1, y1, x2, y2 = box.tolist()
    return x1, y1, x2, y2


def _picture(look: Tensor) -> Image.Image:
    pixels = (look.clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _record(sheet: PretextSheet, model: str, seed: int) -> dict[str, object]:
    return {
        "model": model,
        "seed": seed,
        "result": sheet.result.to_dict(),
        "positions": list(POSITIONS),
        "photographs": [
            {
                "path": one.path,
                "scaled_to": list(one.size),
                "center": list(one.center),
                "pairs": [_pair(guess) for guess in one.guesses],
            }
            for one in sheet.drawn
        ],
        "skipped": sheet.skipped,
    }


def _pair(guess: Guess) -> dict[str, object]:
    return {
        "position": POSITIONS[guess.position],
        "predicted": POSITIONS[guess.predicted],
        "right": guess.right,
        "probability": round(guess.probability, 4),
        "probability_of_truth": round(guess.of_truth, 4),
        "box": list(guess.box),
    }


def mistakes(guesses: Sequence[Guess]) -> list[str]:
    """Say each mistake, the surest first."""
    wrong = sorted((guess for guess in guesses if not guess.right), key=lambda guess: -guess.probability)
    return [
        f"{POSITIONS[guess.position]} taken for {POSITIONS[guess.predicted]} "
        f"({guess.probability:.0%}; the truth {guess.of_truth:.0%})"
        for guess in wrong
    ]
