"""What ``--model`` names: models of the zoo, random weights, pixels, HOG; and any network that gives feature maps."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from context_pred.backbones import BACKBONES, LAYERS, Backbone
from context_pred.card import IMAGENET_MEAN, IMAGENET_STD, Card
from context_pred.data.transforms import EvalTransform
from context_pred.errors import InvalidInputError, UnknownNameError, did_you_mean, unknown
from context_pred.extract import Extractable, weights_digest
from context_pred.extras import need
from context_pred.model import ContextPredictionModel

RANDOM = "random:"
FIXED = ("pixels", "hog")
PIXELS = 32
"""Cells a side of ``pixels``: the image as a thumbnail of 32 × 32 × 3 = 3,072 values."""


@dataclass(frozen=True)
class Source:
    """Where features come from.

    Attributes:
        name: What to call it.
        kind: "network", "random", "pixels" or "hog".
        model: Backbone, transform and card, as extraction takes them.
        digest: SHA-256 of the backbone's keys and numbers; "" of pixels and HOG, which have none.
        file: The zoo's name of the weights (as ``resnet50_8xb64-steplr-70e.20220225``), or "".
        sha256: Of the file of weights, where its card tells.
    """

    name: str
    kind: Literal["network", "random", "pixels", "hog"]
    model: Extractable
    digest: str
    file: str = ""
    sha256: str | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """Every layer that can be evaluated: feature1 … feature5 of the library's own backbones."""
        own = self.model.backbone.layers
        return LAYERS if set(LAYERS) <= set(own) and type(self.model) is ContextPredictionModel else own

    def chosen(self, layers: Sequence[str]) -> tuple[str, ...]:
        """Return the layers asked for in the backbone's order, or raise UnknownNameError."""
        return self.model.backbone.chosen(layers)

    def pool(self, pool: str) -> str:
        """Return how maps are pooled: as the protocol says for a network; pixels and HOG are vectors as they are."""
        return "none" if self.kind in FIXED else pool


class FeatureMaps:
    """Any network that gives named feature maps, so that it can be evaluated beside the library's own.

    Fits what torchvision's ``create_feature_extractor`` and timm's ``features_only=True`` make:

        FeatureMaps(timm.create_model("resnet50", features_only=True), "timm resnet50")
        FeatureMaps(create_feature_extractor(resnet50(), {"layer3": "feature4", "layer4": "feature5"}), "resnet50")

    Args:
        module: Called with (N, 3, H, W) float32 (one channel where ``mean`` has one), it returns a dict or a sequence
            of maps, shallow to deep: (N, C, h, w), or (N, h, w, C) as timm's Swin has them, which are turned.
        name: What to call it.
        mean: One value a channel, for images in [0, 1], in the order that ``channel_order`` names.
        std: As ``mean``.
        channel_order: "rgb" or "bgr".
        layers: Names of the maps, in their order; None: the dict's keys, or feature1, feature2 … of a sequence.

    Raises:
        InvalidInputError: the module returns something else, or another number of maps than there are names.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        *,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        channel_order: Literal["rgb", "bgr"] = "rgb",
        layers: Sequence[str] | None = None,
    ) -> None:
        self.transform = EvalTransform(
            mean=tuple(mean), std=tuple(std), channel_order=channel_order, in_channels=len(tuple(mean))
        )
        self.backbone: Backbone = _Maps(module, layers, self.transform.in_channels)
        self.card = Card(name=name, backbone=name)


class _Maps(Backbone):
    """Gives the maps of another network as a backbone of ours does."""

    grid_windows = True

    def __init__(self, module: nn.Module, names: Sequence[str] | None, channels: int) -> None:
        super().__init__()
        self.module = module
        self.in_channels = channels
        was_training = module.training
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        try:
            with torch.inference_mode():
                maps = module.eval()(torch.zeros(1, channels, 224, 224, device=device))
        except Exception as error:  # a stranger's network may raise anything
            raise InvalidInputError(
                f"The module does not take an image of {channels} × 224 × 224 (mean and std have {channels} "
                f"value{'s' * (channels > 1)}): {' '.join(str(error).split())[:200]}"
            ) from error
        finally:
            module.train(was_training)
        found = list(maps.values()) if isinstance(maps, Mapping) else maps
        if not isinstance(found, (list, tuple)) or not all(isinstance(m, Tensor) and m.ndim == 4 for m in found):
            raise InvalidInputError(
                "The module gives no feature maps; accepted: one that returns a dict or a sequence of tensors "
                "(N, C, h, w), as torchvision's create_feature_extractor and timm's features_only=True make."
            )
        # Of a square image h = w, so that the third of three unlike sides is the channels.
        self.last = [one.shape[1] == one.shape[2] != one.shape[3] for one in found]
        given = tuple(maps) if isinstance(maps, Mapping) else tuple(f"feature{k + 1}" for k in range(len(found)))
        self.layers = given if names is None else tuple(names)
        if len(self.layers) != len(found) or len(set(self.layers)) != len(found):
            raise InvalidInputError(f"layers={list(self.layers)}; accepted are {len(found)} different names.")

    def forward(self, x: Tensor, layers: str | Sequence[str] | None = None) -> dict[str, Tensor]:
        asked = self.chosen(self.layers if layers is None else layers)
        maps = self.module(x)
        found = list(maps.values()) if isinstance(maps, Mapping) else maps
        turned = [one.movedim(-1, 1) if last else one for one, last in zip(found, self.last, strict=True)]
        return {name: one for name, one in zip(self.layers, turned, strict=True) if name in asked}


class _Pixels(Backbone):
    """The image itself, averaged to 32 × 32."""

    layers = ("pixels",)
    in_channels = 3

    def forward(self, x: Tensor, layers: str | Sequence[str] | None = None) -> dict[str, Tensor]:
        return {"pixels": F.adaptive_avg_pool2d(x, PIXELS)}


class _Hog(Backbone):
    """Histograms of oriented gradients (Dalal and Triggs, CVPR 2005), by scikit-image.

    9 orientations, 14 cells a side, blocks of 2 × 2 cells, L2-Hys; of the three channels the strongest gradient.
    """

    layers = ("hog",)
    in_channels = 3

    def forward(self, x: Tensor, layers: str | Sequence[str] | None = None) -> dict[str, Tensor]:
        hog = need("skimage.feature", "--model hog").hog
        cell = max(1, min(x.shape[-2:]) // 14)
        rows = [
            hog(image, orientations=9, pixels_per_cell=(cell, cell), cells_per_block=(2, 2), channel_axis=-1)
            for image in (x * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        ]
        vectors = torch.from_numpy(np.stack(rows).astype(np.float32)).to(x.device)
        return {"hog": vectors[..., None, None]}


@dataclass(frozen=True)
class _Made:
    backbone: Backbone
    transform: EvalTransform
    card: Card


def find(model: Any, seed: int = 0) -> Source:
    """Find what a user means by a model.

    Args:
        model: A name of the zoo, a path or a Hub id, as ``load_pretrained`` takes them; ``random:BACKBONE``;
            ``pixels``; ``hog``; a ``ContextPredictionModel``, a ``FeatureMaps`` or a Source.
        seed: Of random weights.

    Raises:
        UnknownNameError: nothing is called so; the nearest names are given.
        InvalidInputError: something else than a model.
    """
    if isinstance(model, Source):
        return model
    if isinstance(model, (str, os.PathLike)):
        return _by_name(str(model), seed)
    if all(hasattr(model, name) for name in ("backbone", "transform", "card")):
        return _network(cast(Extractable, model), model.card.name)
    raise InvalidInputError(
        f"A model given as {type(model).__name__}; accepted: a name, a path, a ContextPredictionModel, or any network "
        "that gives feature maps in a context_pred.evaluate.FeatureMaps."
    )


def _by_name(name: str, seed: int) -> Source:
    if name.startswith(RANDOM):
        return _random(name, seed)
    if name in FIXED:
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if name == "pixels" else ((0.0,) * 3, (1.0,) * 3)
        if name == "hog":
            need("skimage.feature", "--model hog")
        backbone: Backbone = _Pixels() if name == "pixels" else _Hog()
        made = _Made(backbone, EvalTransform(mean=mean, std=std), Card(name=name, backbone=name))
        return Source(name, cast(Literal["pixels", "hog"], name), made, digest="")
    import context_pred  # the zoo is asked through the front door

    try:
        model = context_pred.load_pretrained(name)
    except UnknownNameError as error:
        others = [*FIXED, *(RANDOM + backbone for backbone in BACKBONES)]
        hint = did_you_mean(name, others) if not Path(name).exists() else ""
        more = "Also accepted: pixels, hog, random:BACKBONE; from Python any network in a FeatureMaps."
        raise UnknownNameError(f"{error}{hint} {more}") from error
    return _network(model, name)


def _network(model: Extractable, name: str) -> Source:
    card = model.card
    known = card.sha256 is not None or card.url is not None
    return Source(name, "network", model, weights_digest(model), card.name if known else "", card.sha256)


def _random(name: str, seed: int) -> Source:
    backbone = name.removeprefix(RANDOM)
    if backbone not in BACKBONES:
        raise unknown("backbone", backbone, BACKBONES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ContextPredictionModel(backbone, pair_layers=False).eval()
    return Source(name, "random", model, weights_digest(model))
