"""Does a network cheat? Its pretext accuracy with one cue after another taken away, and where its patches say they lie.

    context-pred audit MODEL photos/ --out audit

A network can solve context prediction without knowing what it sees: by chromatic aberration, which tells a patch's
place in the lens, or by lines and textures that run on from one patch to the next (Doersch, Gupta, Efros, ICCV 2015,
sections 3 and 4.2). Each figure here removes one such cue, over the same photographs and where possible the same boxes.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from context_pred.backbones import ResNetBackbone
from context_pred.data.collection import Collection, collect
from context_pred.data.images import open_image
from context_pred.errors import ImageError, InvalidInputError, check_whole_number, storing
from context_pred.extract.network import find_device, fold_batch_norms
from context_pred.geometry import MOST_PAIRS, smallest
from context_pred.model import ContextPredictionModel
from context_pred.pictures import save_png
from context_pred.training import keys

from .findings import Finding, colorless, findings
from .pairs import PairAudit, Photos, Treatment, border
from .picture import sheet
from .places import PER_IMAGE, Distance, PlaceAudit, Places

__all__ = ["AuditResult", "Distance", "Finding", "Places", "Treatment", "run"]

FEWEST = 10
"""Photographs that are needed at least: two a fold of the regression."""

_AT_ONCE = 16
_CHOICE = 99  # the key of the choice of photographs, beside those of the draws


@dataclass(frozen=True)
class AuditResult:
    """What the audit found; ``str()`` says it in lines.

    Attributes:
        model: The model's name.
        images: How many photographs were looked at.
        of: Among how many files they were chosen.
        gray: How many of those looked at have no colour, of a model that takes colours; else 0.
        skipped: {path: reason} of the files that could not be opened.
        seed: Of every draw.
        settings: Sizes in px: the patch, the blanked border, the photographs' shorter side; patches an image.
        treatments: The pretext accuracy under each treatment; the first is as trained.
        places: Absolute places predicted from features, in colour, projected and in grey.
        findings: The figures in words, with their thresholds.
        json: All of this, ``OUT/audit.json``.
        picture: ``OUT/audit.png``.
    """

    model: str
    images: int
    of: int
    gray: int
    skipped: dict[str, str]
    seed: int
    settings: dict[str, Any]
    treatments: tuple[Treatment, ...]
    places: tuple[Places, ...]
    findings: tuple[Finding, ...]
    json: Path
    picture: Path

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without the two paths."""
        return {
            "model": self.model,
            "images": self.images,
            "of": self.of,
            "gray": self.gray,
            "seed": self.seed,
            "settings": self.settings,
            "signs": [finding.question for finding in self.findings if finding.sign],
            "findings": [finding.to_dict() for finding in self.findings],
            "treatments": [treatment.to_dict() for treatment in self.treatments],
            "places": [places.to_dict() for places in self.places],
            "skipped": self.skipped,
        }

    def __str__(self) -> str:
        """Say it in lines, the signs of cheating marked."""
        signs = sum(bool(finding.sign) for finding in self.findings)
        if self.findings[0].sign is None:
            head = "it does not solve the pretext task on these photographs"
        else:
            head = "no sign of cheating" if not signs else f"{signs} sign{'s' if signs > 1 else ''} of cheating"
            head += ", as far as these photographs tell" * any(finding.sign is None for finding in self.findings)
        lines = [f"{self.model} on {self.images:,} photographs: {head}."]
        lines += [f"{'! ' if finding.sign else '  '}{finding.text}" for finding in self.findings]
        if self.skipped:
            path, reason = next(iter(self.skipped.items()))
            lines.append(f"  {len(self.skipped):,} skipped, listed in {self.json}; the first: {path} ({reason})")
        return "\n".join([*lines, f"{self.picture}, {self.json}"])


def run(
    model: ContextPredictionModel | str | Path,
    images: str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    size: int | None = None,
    at_most: int = 500,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> AuditResult:
    """Measure whether a network cheats, and write ``audit.json`` and ``audit.png``.

    Photographs are used whole: scaled to a shorter side of 292/255 of the sampler's crop, as OpenMMLab does, or for a
    ``RandomPairSampler`` to a random number of pixels, as its authors do. The questions about gaps use photographs
    large enough for the widest gap, all three the same. The same call gives the same figures; the draws of a
    photograph depend on ``seed`` and its number alone.

    Args:
        model: A model with pair layers, or what ``load_pretrained`` takes.
        images: Photographs, as ``collect`` takes them (a folder, files, a pattern, a list, tar shards); best ones
            that the model has not seen.
        out: The folder to write into; made where it is missing.
        size: Another shorter side, in px; as large as the sampler needs at least.
        at_most: Take so many photographs at most, chosen at random.
        seed: Of the choice and of every draw.
        device: "auto", or a device of PyTorch's.
        progress: Show a bar on stderr.

    Returns:
        The figures and what they say.

    Raises:
        InvalidInputError: a model without pair layers or of other channels than 1 and 3, fewer than ten photographs,
            or an argument that is not accepted.
        ImageError: fewer than ten photographs could be opened.
        StorageError: ``out`` cannot be written to.
    """
    _check_arguments(size, at_most, seed)
    found = collect(images)
    network = _loaded(model)
    _check_size(size, network)
    folder = Path(out)
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    place = find_device(device)
    chosen = _chosen(found, at_most, seed)
    network = _prepared(network, place)
    pairs = PairAudit(network, network.patch_sampler, size)
    places = PlaceAudit(network, pairs.own)
    skipped = _fill(pairs, places, chosen, network.card.in_channels, seed, place, progress)
    looked_at = len(places.places)
    if looked_at < FEWEST:
        path, reason = next(iter(skipped.items()))
        raise ImageError(f"Only {looked_at} photographs could be opened, {FEWEST} are needed; {path} ({reason}).")
    gray = pairs.gray / looked_at
    treatments, told = pairs.results(), places.results(seed, colorless=colorless(gray))
    result = AuditResult(
        model=network.card.name,
        images=looked_at,
        of=len(found),
        gray=pairs.gray,
        skipped=skipped,
        seed=seed,
        settings=_settings(pairs, size),
        treatments=treatments,
        places=told,
        findings=findings(treatments, told, gray),
        json=folder / "audit.json",
        picture=folder / "audit.png",
    )
    with storing(result.json):
        result.json.write_text(json.dumps(result.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    examples = {name: row.examples for name, row in pairs.rows.items()}
    save_png(sheet(str(result), treatments, told, examples, places.examples), result.picture)
    return result


def _check_arguments(size: int | None, at_most: int, seed: int) -> None:
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise InvalidInputError(f"size={size!r}; accepted: the photographs' shorter side in px, from 1 up.")
    check_whole_number("at_most", at_most, FEWEST)
    check_whole_number("seed", seed, 0)


def _check_size(size: int | None, model: ContextPredictionModel) -> None:
    sampler = model.patch_sampler
    if size is not None and size < smallest(sampler):
        raise InvalidInputError(
            f"size={size} px leaves no room for the patches of {model.card.name}; accepted: the photographs' shorter "
            f"side from {smallest(sampler)} px up, or nothing for that of training."
        )


def _loaded(model: ContextPredictionModel | str | Path) -> ContextPredictionModel:
    if isinstance(model, str | Path):
        from context_pred.zoo import load_pretrained

        model = load_pretrained(model)
    if model.neck is None:
        raise InvalidInputError(
            f"{model.card.name} is a backbone alone: without its neck and head there is no pretext accuracy to audit. "
            "Give a model that was saved with its pair layers."
        )
    if model.card.in_channels not in (1, 3):
        raise InvalidInputError(
            f"{model.card.name} takes images of {model.card.in_channels} channels; photographs have 3, or 1 in grey."
        )
    if model.card.in_channels == 1 and model.card.patch_sampler.get("type") == "RandomPairSampler":
        raise InvalidInputError(f"{model.card.name} takes grey images, which its RandomPairSampler does not cut.")
    return model


def _prepared(model: ContextPredictionModel, device: torch.device) -> ContextPredictionModel:
    """Return a private copy in eval mode on the device, laid out for speed as extraction does."""
    own = copy.deepcopy(model).eval().requires_grad_(False)
    if isinstance(own.backbone, ResNetBackbone):
        fold_batch_norms(own.backbone)
        own = own.to(memory_format=torch.channels_last)
    return own.to(device)


def _chosen(found: Collection, at_most: int, seed: int) -> Collection:
    if len(found) < FEWEST:
        raise InvalidInputError(f"{len(found)} photographs; at least {FEWEST} are needed, a few hundred are better.")
    if len(found) <= at_most:
        return found
    order = torch.randperm(len(found), generator=keys.generator(seed, _CHOICE))
    return found.subset(sorted(order[:at_most].tolist()))


def _fill(
    pairs: PairAudit,
    places: PlaceAudit,
    chosen: Collection,
    channels: int,
    seed: int,
    device: torch.device,
    progress: bool,
) -> dict[str, str]:
    """Show every photograph to both audits; return what could not be opened."""
    skipped: dict[str, str] = {}
    share = len(chosen) / math.ceil(len(chosen) / _AT_ONCE)  # equal parts: a last one alone has no other image
    with tqdm(total=len(chosen), unit=" images", disable=not progress) as bar:
        for part in range(round(len(chosen) / share)):
            numbers: list[int] = []
            opened: list[Image.Image] = []
            for number in range(round(part * share), round((part + 1) * share)):
                name = chosen.names[number]
                try:
                    opened.append(open_image(chosen.read(number), name=name))
                    numbers.append(number)
                except ImageError as error:
                    skipped[name] = str(error).removeprefix(f"{name}: ")
            if numbers:
                photos = Photos(numbers, opened, seed=seed, channels=channels, device=device)
                pairs.add(photos)
                places.add(photos)
            bar.update(round((part + 1) * share) - round(part * share))
    return skipped


def _settings(pairs: PairAudit, size: int | None) -> dict[str, Any]:
    patch = pairs.sampler.patch
    return {
        "patch": patch,
        "blanked_border": border(patch),
        "size": size,
        "most_pairs_per_image": MOST_PAIRS,
        "patches_placed_per_image": PER_IMAGE,
        "samplers": {
            geometry.name: geometry.sampler.to_config()
            for geometry in (pairs.own, *pairs.gaps, *([pairs.paper] if pairs.paper else []))
        },
    }
