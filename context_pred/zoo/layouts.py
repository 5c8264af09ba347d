"""The two folders a model is published as: ``full``, everything, and ``timm``, the backbone as timm reads it.

``full`` is what ``save_pretrained`` writes. ``timm`` has torchvision's keys and a ``config.json`` of timm's form, which
transformers (``TimmWrapperModel``, ``TimmWrapperImageProcessor``) reads too. Both hold ``golden.safetensors``: an input
and what the model makes of it, by which anyone can check a copy.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor, nn

from context_pred.backbones import LAYERS, ResNetBackbone
from context_pred.card import CARD_FILE, WEIGHTS_FILE, Card, fit_channels
from context_pred.channel_order import for_rgb
from context_pred.errors import ContextPredError, InvalidInputError, WeightsError
from context_pred.extras import need
from context_pred.hub_readme import hub_readme, timm_readme
from context_pred.model import ContextPredictionModel
from context_pred.weights_file import read_weights, write_bytes, write_weights

Kind = Literal["full", "timm"]

GOLDEN_FILE = "golden.safetensors"
CONFIG_FILE = "config.json"
README_FILE = "README.md"
FILES: dict[Kind, tuple[str, ...]] = {
    "full": (README_FILE, CARD_FILE, CONFIG_FILE, GOLDEN_FILE, WEIGHTS_FILE),
    "timm": (README_FILE, CONFIG_FILE, GOLDEN_FILE, WEIGHTS_FILE),
}
TAG = "context_pred"
"""timm's tag of our weights."""

_SEED = 20150507
_CLOSE = 1e-4  # of the largest value: what other processors and versions of PyTorch may differ by


def write_full(
    model: ContextPredictionModel,
    folder: Path,
    *,
    weights: Path | None = None,
    repository: str | None = None,
    timm_repository: str | None = None,
) -> Card:
    """Write the whole model to a folder that is not there yet or empty.

    Args:
        model: In eval mode.
        folder: Where to.
        weights: The verified file it was loaded from, of all its keys: kept byte for byte, and with it its digest
            and its precision. None writes the model's own float32.
        repository: ``owner/name`` for the README.
        timm_repository: The same of the timm layout, where there is one.

    Returns:
        The card as written.
    """
    model.save_pretrained(folder)
    card = Card.read(folder / CARD_FILE)
    if weights is not None:
        shutil.copyfile(weights, folder / WEIGHTS_FILE)
        card = card.replace(sha256=_sha256(folder / WEIGHTS_FILE), file_size=weights.stat().st_size)
    # What the Hub holds cannot name its own commit, and must not name an older one.
    card = card.replace(hub=None)
    card.write(folder / CARD_FILE)
    write_bytes(hub_readme(card, repository, timm_repository).encode(), folder / README_FILE)
    write_weights(golden(model), folder / GOLDEN_FILE)
    return card


def write_timm(
    model: ContextPredictionModel, folder: Path, *, repository: str, full_repository: str | None = None
) -> Card:
    """Write the backbone to a folder in timm's layout, in float32; a BGR model is turned to take RGB.

    Args:
        model: In eval mode; left as it is.
        folder: Where to.
        repository: ``owner/name`` for the README.
        full_repository: The same of the whole model, where it is published too.

    Returns:
        The card of what was written.

    Raises:
        InvalidInputError: the backbone is none that timm has.
    """
    must_be_resnet(model.card)
    turned = for_rgb(model)
    state = {key: value.detach().float().contiguous() if value.is_floating_point() else value
             for key, value in sorted(turned.backbone.state_dict().items())}  # fmt: skip
    # transformers refuses files whose header does not say which library's tensors they are.
    write_bytes(safetensors.torch.save(state, metadata={"format": "pt"}), folder / WEIGHTS_FILE)
    config = timm_config(turned.card, model.feature_info["feature5"].channels, model.card)
    write_bytes((json.dumps(config, indent=2) + "\n").encode(), folder / CONFIG_FILE)
    reversed_ = turned.card.channel_order != model.card.channel_order
    write_bytes(timm_readme(turned.card, repository, full_repository, reversed_).encode(), folder / README_FILE)
    golden_values = {key: value for key, value in golden(turned).items() if key in ("images", *LAYERS)}
    write_weights(golden_values, folder / GOLDEN_FILE)
    return turned.card


def must_be_resnet(card: Card) -> None:
    """Refuse a backbone that timm does not have."""
    if not card.backbone.startswith("resnet"):
        raise InvalidInputError(
            f"{card.backbone} has no timm layout: of this library's backbones timm has the ResNets. Publish the whole "
            "model alone: --layout full."
        )


def timm_config(card: Card, channels: int, source: Card | None = None) -> dict[str, Any]:
    """Return timm's ``config.json`` (timm ≥ 1.0, also ``TimmWrapperConfig`` of transformers).

    Args:
        card: Of a model that takes RGB.
        channels: Of its last stage.
        source: The card of the published model, whose name and digest it notes; None: ``card``.
    """
    source = source or card
    mean, std = (list(fit_channels(values, card.in_channels)) for values in (card.mean, card.std))
    config: dict[str, Any] = {
        "architecture": card.backbone,
        "num_classes": 0,
        "num_features": channels,
        "pretrained_cfg": {
            "tag": TAG,
            "custom_load": False,
            "input_size": [card.in_channels, card.crop, card.crop],
            "fixed_input_size": False,
            "interpolation": "bilinear",
            "crop_pct": crop_pct(card.crop, card.resize),
            "crop_mode": "center",
            "mean": mean,
            "std": std,
            "num_classes": 0,
            "pool_size": [math.ceil(card.crop / 32)] * 2,
            "first_conv": "conv1",
            "classifier": "fc",
            "license": card.license,
            "paper_name": "Unsupervised Visual Representation Learning by Context Prediction",
            "paper_ids": "arXiv:1505.05192",
        },
        "context_pred": {"name": source.name, "channel_order": source.channel_order},
    }
    if card.in_channels != 3:
        config["model_args"] = {"in_chans": card.in_channels}
    return config


def timm_entries(folder: Path) -> dict[str, Any]:
    """Return what timm's ``config.json`` in a folder says of the input, as entries of a card; {} without one."""
    try:
        values = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        told, entries = values["pretrained_cfg"], values.get("context_pred", {})
        crop = int(told["input_size"][-1])
        return {
            "name": str(entries.get("name", f"{values['architecture']}.{told.get('tag') or 'timm'}")),
            "mean": tuple(float(value) for value in told["mean"]),
            "std": tuple(float(value) for value in told["std"]),
            "resize": math.floor(crop / float(told["crop_pct"])),
            "crop": crop,
            "license": str(told.get("license") or ""),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def crop_pct(crop: int, resize: int) -> float:
    """Return the fraction from which timm computes ``resize`` again: floor(crop / fraction) == resize."""
    fraction = crop / resize
    while math.floor(crop / fraction) < resize:
        fraction = math.nextafter(fraction, 0.0)
    return fraction


@torch.no_grad()
def golden(model: ContextPredictionModel) -> dict[str, Tensor]:
    """Return an input and what the model gives for it.

    Returns:
        "images" float32 (1, C, s, s), as ``model.transform`` would give them, s = 64 px (96 for contextnet), and each
        layer's features; for a model with pair layers "neighbors" and "centers" (1, C, s, s) and "logits" (1, 8).
    """
    side = 64 if isinstance(model.backbone, ResNetBackbone) else 96
    channels = model.card.in_channels
    random = torch.randn(3, channels, side, side, generator=torch.Generator().manual_seed(_SEED))
    if channels == 3 and model.card.channel_order == "rgb":
        random = random.flip(1)  # so that a BGR model and its RGB copy see the same picture
    images, neighbors, centers = random.contiguous()[:, None]
    found = {"images": images, **_features(model.backbone, images)}
    if model.neck is not None:
        found |= {"neighbors": neighbors, "centers": centers, "logits": model(neighbors, centers)}
    return {key: value.contiguous() for key, value in found.items()}


def _features(backbone: nn.Module, images: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = backbone(images)
    return found


@torch.no_grad()
def check(folder: Path, kind: Kind) -> float:
    """Load a published folder by the library it is for, and compare with its golden tensors.

    Returns:
        The largest difference found, as a fraction of the largest value of its tensor.

    Raises:
        WeightsError: it does not load, or gives other numbers.
        InvalidInputError: the timm layout, and timm is not installed.
    """
    expected = read_weights(folder / GOLDEN_FILE)
    try:
        found = _by_this_library(folder, expected) if kind == "full" else _by_timm(folder, expected)
    except ContextPredError:
        raise
    except Exception as error:  # timm's own, of whatever kind
        raise WeightsError(f"{folder} does not load in timm: {type(error).__name__}: {error}") from error
    worst, where = 0.0, ""
    for key, value in found.items():
        reference = expected[key]
        fits = value.shape == reference.shape and bool(value.isfinite().all())
        apart = float((value - reference).abs().max() / reference.abs().max().clamp_min(1e-12)) if fits else math.inf
        worst, where = max((worst, where), (apart, key))
    if not worst <= _CLOSE:
        raise WeightsError(
            f"{folder} gives other numbers than its {GOLDEN_FILE}: {where} differs by {worst:.2g} of its largest "
            f"value, where {_CLOSE:g} is allowed. The copy is damaged or incomplete: make it again."
        )
    return worst


def _by_this_library(folder: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    model = ContextPredictionModel.from_pretrained(folder)
    found = _features(model.backbone, expected["images"])
    if model.neck is not None:
        found["logits"] = model(expected["neighbors"], expected["centers"])
    return found


def _by_timm(folder: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    timm = need("timm", "Checking the timm layout", extra="timm")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, features_only=True).eval()
    return dict(zip(LAYERS, model(expected["images"]), strict=True))


def _sha256(path: Path) -> str:
    from .download import file_sha256

    return file_sha256(path)
