"""torchvision's detectors and a segmenter on a model of this library.

    from context_pred.integrations.torchvision import faster_rcnn

    detector = faster_rcnn("resnet18_1xb64-coslr-300k", num_classes=3)  # the background and two kinds of objects
    losses = detector.train()(images, targets)

All of them take images as torchvision's own do, RGB in [0, 1], and normalise them as the model's card says; a model
trained on BGR images is turned first. The backbone is a copy. What the model has frozen is frozen in it, and so are all
its batch norms, as torchvision does by default.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from inspect import signature
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from context_pred.backbones import Backbone, ResNetBackbone
from context_pred.card import fit_channels
from context_pred.errors import InvalidInputError, check_options, check_whole_number
from context_pred.evaluate.detection.c4 import SharedHead
from context_pred.evaluate.segmentation.fcn import FCN

from ._models import Model, loaded, turned

__all__ = [
    "DetectorBackbone",
    "FPNBackbone",
    "Segmenter",
    "c4_detector",
    "faster_rcnn",
    "fcn",
    "mask_rcnn",
    "retinanet",
    "with_fpn",
]

_RATIOS = (0.5, 1.0, 2.0)
_GIVEN = {"backbone", "num_classes", "kwargs"}


class DetectorBackbone(nn.Module):
    """What a detector of torchvision's sees of a model: maps, their channels, and how its images are normalised.

    Args:
        model: The model, or what ``load_pretrained`` takes; copied, and turned to take RGB.
        deepest: The last layer that is needed.
        frozen_norms: As in ``with_fpn``.

    Attributes:
        body: The library's backbone, up to the deepest layer.
        out_channels: Of every map.
        image_mean: How images are normalised, in RGB order, for images in [0, 1]; one value a channel.
        image_std: As ``image_mean``.
    """

    out_channels: int
    image_mean: list[float]
    image_std: list[float]

    def __init__(self, model: Model, deepest: str, frozen_norms: bool) -> None:
        super().__init__()
        own = turned(model)
        card = own.card
        self.body: Backbone = own.backbone.upto(deepest)
        self.body.train().freeze(self.body.frozen, norms=frozen_norms or self.body.frozen_norms)
        fitted = (list(fit_channels(values, card.in_channels)) for values in (card.mean, card.std))
        self.image_mean, self.image_std = fitted

    @property
    def normalization(self) -> dict[str, list[float]]:
        """``image_mean`` and ``image_std`` for a detector of torchvision's: ``FasterRCNN(b, 2, **b.normalization)``."""
        return {"image_mean": self.image_mean, "image_std": self.image_std}

    def freeze(self, stages: int, *, norms: bool = True) -> Self:
        """Freeze the first stages of the backbone; see ``Backbone.freeze``.

        Args:
            stages: 0: the stem alone; −1: nothing (thaws).
            norms: Freeze the batch norms of all other stages too.

        Returns:
            The module itself.

        Raises:
            InvalidInputError: the backbone has no such stage.
        """
        self.body.freeze(stages, norms=norms)
        return self


class FPNBackbone(DetectorBackbone):
    """A backbone with a feature pyramid, in the place of torchvision's ``BackboneWithFPN``; ``with_fpn`` makes it.

    Args:
        model: As in ``with_fpn``.
        layers: As in ``with_fpn``.
        out_channels: As in ``with_fpn``.
        extra_blocks: As torchvision's; None: no further levels.
        norm_layer: As in ``with_fpn``.
        frozen_norms: As in ``with_fpn``.

    Attributes:
        body: The library's backbone, up to the deepest of the layers.
        fpn: torchvision's feature pyramid.
        out_channels: Of every level.
        strides: Of every level, in px.
        image_mean: How images are normalised, in RGB order, for images in [0, 1]; one value a channel.
        image_std: As ``image_mean``.

    Raises:
        UnknownNameError: no such layer or model.
        InvalidInputError: layers whose strides do not double.
    """

    def __init__(
        self,
        model: Model,
        layers: Sequence[str],
        *,
        out_channels: int,
        extra_blocks: ExtraFPNBlock | None,
        norm_layer: Callable[..., nn.Module] | None,
        frozen_norms: bool,
    ) -> None:
        model = loaded(model)
        names = model.backbone.chosen(layers)
        super().__init__(model, names[-1], frozen_norms)
        info = [self.body.feature_info[name] for name in names]
        self.layers, self.out_channels = names, out_channels
        strides = [one.stride for one in info]
        if any(2 * first != second for first, second in pairwise(strides)):
            raise InvalidInputError(
                f"layers={list(names)} have strides {', '.join(map(str, strides))} px; a feature pyramid needs each "
                "twice the one before, as feature2, feature3, feature4, feature5 of a ResNet."
            )
        extra = {LastLevelMaxPool: 1, LastLevelP6P7: 2}.get(type(extra_blocks), 0)
        self.strides = (*strides, *(strides[-1] * 2 ** (k + 1) for k in range(extra)))
        self.fpn = FeaturePyramidNetwork(
            [one.channels for one in info], out_channels, extra_blocks=extra_blocks, norm_layer=norm_layer
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the pyramid.

        Args:
            images: (N, C, H, W) floating, RGB, normalised with ``image_mean`` and ``image_std``.

        Returns:
            "0", "1" … as torchvision names them, and what the extra blocks add ("pool"; "p6" and "p7"):
            (N, out_channels, H / stride, W / stride) each.
        """
        maps = self.body(images, self.layers)
        levels: dict[str, Tensor] = self.fpn(OrderedDict((str(k), maps[name]) for k, name in enumerate(self.layers)))
        return levels


_LAYERS = ("feature2", "feature3", "feature4", "feature5")


def with_fpn(
    model: Model,
    layers: Sequence[str] = _LAYERS,
    *,
    out_channels: int = 256,
    extra_blocks: ExtraFPNBlock | None = None,
    norm_layer: Callable[..., nn.Module] | None = None,
    frozen_norms: bool = True,
) -> FPNBackbone:
    """Make a backbone with a feature pyramid, for any detector of torchvision's.

    Args:
        model: The model, or what ``load_pretrained`` takes.
        layers: Whose maps the pyramid is built on; each has twice the stride of the one before.
        out_channels: Of every level.
        extra_blocks: As torchvision's: further levels; None: ``LastLevelMaxPool()``.
        norm_layer: Of the pyramid's convolutions, as ``nn.BatchNorm2d``; None: none.
        frozen_norms: Keep the batch norms of the backbone as they are.

    Returns:
        The backbone: ``FasterRCNN(b, num_classes=2, **b.normalization)``.

    Raises:
        UnknownNameError: no such layer or model.
        InvalidInputError: layers whose strides do not double.
    """
    return FPNBackbone(
        model, layers, out_channels=out_channels, extra_blocks=extra_blocks or LastLevelMaxPool(),
        norm_layer=norm_layer, frozen_norms=frozen_norms,
    )  # fmt: skip


def faster_rcnn(
    model: Model, num_classes: int, *, layers: Sequence[str] = _LAYERS, frozen_norms: bool = True, **options: Any
) -> FasterRCNN:
    """Make torchvision's Faster R-CNN on a feature pyramid.

    Args:
        model: The model, or what ``load_pretrained`` takes.
        num_classes: As torchvision counts, with the background: one more than there are kinds of objects.
        layers: As in ``with_fpn``; anchors are eight strides wide on each level, torchvision's own for the usual ones.
        frozen_norms: As in ``with_fpn``.
        options: Of ``torchvision.models.detection.FasterRCNN``, as ``min_size=480``.

    Raises:
        UnknownNameError: no such layer, model or option.
        InvalidInputError: ``num_classes`` below 2, or layers whose strides do not double.
    """
    return _on_pyramid(FasterRCNN, model, num_classes, layers, frozen_norms, options)


def mask_rcnn(
    model: Model, num_classes: int, *, layers: Sequence[str] = _LAYERS, frozen_norms: bool = True, **options: Any
) -> MaskRCNN:
    """Make torchvision's Mask R-CNN on a feature pyramid.

    Args:
        model: The model, or what ``load_pretrained`` takes.
        num_classes: As torchvision counts, with the background.
        layers: As in ``with_fpn``; anchors as in ``faster_rcnn``.
        frozen_norms: As in ``with_fpn``.
        options: Of ``torchvision.models.detection.MaskRCNN``.

    Raises:
        UnknownNameError: no such layer, model or option.
        InvalidInputError: ``num_classes`` below 2, or layers whose strides do not double.
    """
    return _on_pyramid(MaskRCNN, model, num_classes, layers, frozen_norms, options)


def _on_pyramid(
    kind: Callable[..., Any],
    model: Model,
    num_classes: int,
    layers: Sequence[str],
    frozen_norms: bool,
    options: dict[str, Any],
) -> Any:
    _check(kind, num_classes, options)
    backbone = with_fpn(model, layers, frozen_norms=frozen_norms)
    names = [str(k) for k in range(len(backbone.layers))]
    usual: dict[str, Any] = {
        "rpn_anchor_generator": AnchorGenerator(
            tuple((8 * stride,) for stride in backbone.strides), (_RATIOS,) * len(backbone.strides)
        ),
        "box_roi_pool": MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2),
    }
    if kind is MaskRCNN:
        usual["mask_roi_pool"] = MultiScaleRoIAlign(names, output_size=14, sampling_ratio=2)
    counted = None if "box_predictor" in options else num_classes  # torchvision wants one or the other
    return kind(backbone, counted, **{**usual, **backbone.normalization, **options})


def retinanet(
    model: Model,
    num_classes: int,
    *,
    layers: Sequence[str] = ("feature3", "feature4", "feature5"),
    frozen_norms: bool = True,
    **options: Any,
) -> RetinaNet:
    """Make torchvision's RetinaNet, with its two further levels.

    Anchors begin at four strides, with three sizes a level: torchvision's own for the usual layers.

    Args:
        model: The model, or what ``load_pretrained`` takes.
        num_classes: As torchvision counts, with the background.
        layers: As in ``with_fpn``.
        frozen_norms: As in ``with_fpn``.
        options: Of ``torchvision.models.detection.RetinaNet``.

    Raises:
        UnknownNameError: no such layer, model or option.
        InvalidInputError: ``num_classes`` below 2, or layers whose strides do not double.
    """
    _check(RetinaNet, num_classes, options)
    backbone = with_fpn(model, layers, extra_blocks=LastLevelP6P7(256, 256), frozen_norms=frozen_norms)
    sizes = tuple(tuple(int(4 * stride * 2 ** (k / 3)) for k in range(3)) for stride in backbone.strides)
    usual = {"anchor_generator": AnchorGenerator(sizes, (_RATIOS,) * len(sizes)), **backbone.normalization}
    return RetinaNet(backbone, num_classes, **{**usual, **options})


class _C4(DetectorBackbone):
    """A ResNet whose detector sees its fourth map; the last stage is there for the box head."""

    def __init__(self, model: Model, frozen_norms: bool) -> None:
        super().__init__(model, "feature5", frozen_norms)
        self.out_channels = self.body.feature_info["feature4"].channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) → {"0": (N, out_channels, H / 16, W / 16)}."""
        return {"0": self.body(images, "feature4")["feature4"]}


class _LastStage(nn.Module):
    """The last stage of a backbone that is a part of something else: its weights, keys and freezing are there."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self._body = (body,)  # in a tuple, so that it is no part of this module too

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, 14, 14) → (n, 2 C, 7, 7)."""
        found: Tensor = self._body[0].layer4(x)
        return found


def c4_detector(model: Model, num_classes: int, *, frozen_norms: bool = True, **options: Any) -> FasterRCNN:
    """Make Faster R-CNN on a ResNet's fourth map (C4), its last stage looking at each proposal.

    As in the VOC benchmark of ``context-pred evaluate detection``, on torchvision's own training rules.

    Args:
        model: The model, or what ``load_pretrained`` takes; a ResNet.
        num_classes: As torchvision counts, with the background.
        frozen_norms: As in ``with_fpn``; the one batch norm after the last stage, which is new, learns.
        options: Of ``torchvision.models.detection.FasterRCNN``.

    Raises:
        UnknownNameError: no such model or option.
        InvalidInputError: ``num_classes`` below 2, or no ResNet.
    """
    _check(FasterRCNN, num_classes, options)
    model = loaded(model)
    if not isinstance(model.backbone, ResNetBackbone):
        raise InvalidInputError(f"The C4 detector stands on a ResNet, and this is {model.card.backbone}.")
    backbone = _C4(model, frozen_norms)
    channels = backbone.body.feature_info["feature5"].channels
    usual: dict[str, Any] = {
        "rpn_anchor_generator": AnchorGenerator(((32, 64, 128, 256, 512),), (_RATIOS,)),
        "rpn_pre_nms_top_n_train": 12_000,
        "rpn_pre_nms_top_n_test": 6000,
        "box_roi_pool": MultiScaleRoIAlign(["0"], output_size=14, sampling_ratio=2),
        "box_head": SharedHead(_LastStage(backbone.body), channels),
        "box_predictor": FastRCNNPredictor(channels, num_classes),
    }
    return FasterRCNN(backbone, **{**usual, **backbone.normalization, **options})


def _check(kind: Callable[..., Any], num_classes: object, options: dict[str, Any]) -> None:
    """Refuse a wrong number of classes, and options that do not exist: torchvision would swallow them."""
    accepted = {*signature(kind).parameters, *signature(GeneralizedRCNNTransform).parameters}
    check_options(options, accepted - _GIVEN)
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 2:
        raise InvalidInputError(
            f"num_classes={num_classes!r}; accepted: a whole number from 2 up. torchvision counts the background too: "
            "one more than there are kinds of objects."
        )


class Segmenter(nn.Module):
    """The fully convolutional network of ``context-pred evaluate segmentation``, for a user's own training.

    ``fcn`` makes it. ``network`` is the FCN: backbone, decode head, auxiliary head.

    Args:
        model: As in ``fcn``.
        num_classes: As in ``fcn``.
        frozen_norms: As in ``fcn``.
        options: Of ``FCN``, as in ``fcn``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Model, num_classes: int, frozen_norms: bool, options: dict[str, Any]) -> None:
        super().__init__()
        own = turned(model)
        card = own.card
        self.network = FCN(own.backbone, num_classes, **options)
        backbone = self.network.backbone
        backbone.freeze(backbone.frozen, norms=frozen_norms or backbone.frozen_norms)
        for name, values in (("mean", card.mean), ("std", card.std)):
            fitted = torch.tensor(fit_channels(values, card.in_channels)).view(-1, 1, 1)
            self.register_buffer(name, fitted, persistent=False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Score every pixel.

        Args:
            images: (N, C, H, W) floating, RGB in [0, 1].

        Returns:
            As torchvision's segmenters: "out", logits (N, num_classes, H, W), and in train mode "aux", likewise.

        Raises:
            InvalidInputError: images of another shape or dtype.
        """
        if isinstance(images, Tensor) and images.dtype == torch.uint8:
            raise InvalidInputError("images must be floating, in [0, 1], not torch.uint8; images / 255 is.")
        self.network.backbone.check(images, "images")
        scores, auxiliary = self.network((images - self.mean) / self.std)
        return OrderedDict(out=scores, aux=auxiliary) if self.training else OrderedDict(out=scores)

    def freeze(self, stages: int, *, norms: bool = True) -> Self:
        """Freeze the first stages of the backbone; see ``Backbone.freeze``.

        Args:
            stages: 0: the stem alone; −1: nothing (thaws).
            norms: Freeze the batch norms of all other stages too.

        Returns:
            The module itself.

        Raises:
            InvalidInputError: the backbone has no such stage.
        """
        self.network.backbone.freeze(stages, norms=norms)
        return self


def fcn(model: Model, num_classes: int, *, frozen_norms: bool = False, **options: Any) -> Segmenter:
    """Make a fully convolutional segmenter: dilated stages, a decode head, and in training an auxiliary head.

    Args:
        model: The model, or what ``load_pretrained`` takes; a ResNet.
        num_classes: How many, the background counted if it is one of them.
        frozen_norms: Keep the batch norms of the backbone as they are; what stages the model has frozen always do.
        options: ``output_stride`` (8, 16 or 32), ``channels``, ``auxiliary_channels``, ``dropout``, ``align_corners``;
            see ``context_pred.evaluate.segmentation.fcn.FCN``.

    Raises:
        UnknownNameError: no such model or option.
        InvalidInputError: no ResNet, an output stride that does not exist, or ``num_classes`` below 1.
    """
    check_whole_number("num_classes", num_classes)
    check_options(options, {*signature(FCN).parameters} - {"backbone", "classes"})
    return Segmenter(model, num_classes, frozen_norms, options)
