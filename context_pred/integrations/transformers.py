"""A model of this library as a Hugging Face ResNet: for ``AutoBackbone``, ``AutoModel`` and what is built on them.

    from context_pred.integrations.transformers import image_processor, resnet_backbone

    backbone = resnet_backbone("resnet18_1xb64-coslr-300k", out_features=["stage2", "stage4"])
    inputs = image_processor("resnet18_1xb64-coslr-300k")(image, return_tensors="pt")
    maps = backbone(**inputs).feature_maps

``save_pretrained`` writes folders that ``ResNetBackbone``, ``AutoModel``, ``AutoModelForImageClassification`` and
``AutoImageProcessor`` load without this library, and ``AutoBackbone`` once they are on the Hub (in transformers 5 it
asks the Hub for every name, so no folder will do). Hugging Face's "stem" is the stem after max-pooling; our feature1,
which is before it, exists nowhere there; "stage1" … "stage4" are feature2 … feature5. A folder of the timm layout
(``context-pred zoo publish``) loads in transformers too, as ``TimmWrapperModel``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torchvision.models.resnet import Bottleneck

from context_pred.backbones import Backbone, ResNetBackbone
from context_pred.card import fit_channels
from context_pred.errors import InvalidInputError, UnknownNameError, unknown
from context_pred.extras import need

from ._models import Model, turned

if TYPE_CHECKING:
    from context_pred.model import ContextPredictionModel

_transformers = need("transformers", "context_pred.integrations.transformers", extra="transformers")

__all__ = ["image_processor", "resnet_backbone"]

_STAGES = ("stem", "stage1", "stage2", "stage3", "stage4")
_LAYERS = {"feature2": "stage1", "feature3": "stage2", "feature4": "stage3", "feature5": "stage4"}


def resnet_backbone(model: Model, out_features: Sequence[str] = ("stage4",)) -> Any:
    """Make transformers' ``ResNetBackbone`` with a model's weights; one trained on BGR images is turned to take RGB.

    Args:
        model: The model, or what ``load_pretrained`` takes; a ResNet.
        out_features: Which maps it gives, in this order: "stem", "stage1" … "stage4".

    Returns:
        The backbone in eval mode; ``backbone(pixel_values).feature_maps`` are (N, C, H / stride, W / stride) each.

    Raises:
        UnknownNameError: no such model or stage; our names of layers are translated in the message.
        InvalidInputError: no ResNet, or stages in another order.
    """
    own = _resnet(model)
    wanted = (out_features,) if isinstance(out_features, str) else tuple(out_features)
    for name in wanted:
        if name in _LAYERS:
            raise UnknownNameError(f"Unknown stage {name!r}: transformers calls it {_LAYERS[name]!r}.")
        if name not in _STAGES:
            raise unknown("stage", name, _STAGES)
    if not wanted or wanted != tuple(name for name in _STAGES if name in wanted):
        raise InvalidInputError(f"out_features={list(wanted)}; accepted: some of {', '.join(_STAGES)}, in this order.")
    backbone: Any = own.backbone
    stages = [backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4]
    info = own.feature_info
    config = _transformers.ResNetConfig(
        num_channels=backbone.in_channels,
        embedding_size=info["feature1"].channels,
        hidden_sizes=[info[layer].channels for layer in _LAYERS],
        depths=[len(stage) for stage in stages],
        layer_type="bottleneck" if isinstance(stages[0][0], Bottleneck) else "basic",
        out_features=list(wanted),
    )
    made = _transformers.ResNetBackbone(config)
    made.load_state_dict(_renamed(own.backbone), strict=True)
    return made.eval()


def image_processor(model: Model) -> Any:
    """Make the preprocessing of a model as an image processor of transformers (``BitImageProcessor``), for RGB images.

    Args:
        model: The model, or what ``load_pretrained`` takes; of three input channels.

    Returns:
        The processor: ``processor(image, return_tensors="pt")["pixel_values"]`` is (1, 3, crop, crop), within a grey
        level of ``model.transform``.

    Raises:
        InvalidInputError: another number of input channels.
    """
    card = _resnet(model).card
    if card.in_channels != 3:
        raise InvalidInputError(f"{card.name} has {card.in_channels} input channels; image processors give 3.")
    return _transformers.BitImageProcessor(
        size={"shortest_edge": card.resize},
        crop_size={"height": card.crop, "width": card.crop},
        resample=2,  # bilinear
        image_mean=list(fit_channels(card.mean, 3)),
        image_std=list(fit_channels(card.std, 3)),
    )


def _resnet(model: Model) -> ContextPredictionModel:
    own = turned(model)
    if not isinstance(own.backbone, ResNetBackbone):
        raise InvalidInputError(f"{own.card.backbone} has no counterpart in transformers; accepted: a ResNet.")
    return own


_PARTS = (
    (r"^conv1\.", "embedder.embedder.convolution."),
    (r"^bn1\.", "embedder.embedder.normalization."),
    (r"\.downsample\.0\.", ".shortcut.convolution."),
    (r"\.downsample\.1\.", ".shortcut.normalization."),
    (r"\.conv(\d)\.", lambda found: f".layer.{int(found[1]) - 1}.convolution."),
    (r"\.bn(\d)\.", lambda found: f".layer.{int(found[1]) - 1}.normalization."),
    (r"^layer(\d)\.(\d+)\.", lambda found: f"encoder.stages.{int(found[1]) - 1}.layers.{found[2]}."),
)  # fmt: skip


def _renamed(backbone: Backbone) -> dict[str, Tensor]:
    """Rename torchvision's keys to transformers'."""
    state = {}
    for key, value in backbone.state_dict().items():
        for pattern, name in _PARTS:
            key = re.sub(pattern, name, key)
        state[key] = value
    return state
