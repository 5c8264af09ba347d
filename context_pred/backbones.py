"""Backbones: images to ``feature1`` … ``feature5``.

A new backbone is one class and one line in ``BACKBONES``.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from .errors import InvalidInputError, UnknownNameError, check_whole_number, unknown
from .folding import folded, folded_block, folds

__all__ = ["BACKBONES", "LAYERS", "Backbone", "ContextNetBackbone", "FeatureInfo", "ResNetBackbone", "build_backbone"]

LAYERS = ("feature1", "feature2", "feature3", "feature4", "feature5")


class FeatureInfo(NamedTuple):
    """One layer of a backbone: its channels, its stride in px of the input, and the module whose output it is."""

    channels: int
    stride: int
    module: str


class RepeatedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that can count each item of the batch ``repeats`` times in its running variance.

    OpenMMLab runs a centre patch through the backbone once for each of its eight neighbours. A batch repeated r times
    has the mean and the (biased) variance of the batch itself; only the unbiased factor n / (n − 1) in the running
    variance differs. With ``repeats = r`` the running variance gets rn / (rn − 1), as if the batch had been repeated.
    """

    repeats: float = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W); in train mode update the running statistics."""
        if not self.training or self.running_mean is None or self.running_var is None:
            return super().forward(x)
        n = x.numel() / x.shape[1]
        factor = (n - 1) / n * (self.repeats * n) / (self.repeats * n - 1) if n > 1 else 1.0
        # (1 − m)·v/f + m·u, then times f, is (1 − m)·v + m·f·u. Copies, since autograd keeps what it is given, and
        # the next pass of the same step changes the buffers.
        mean, var = self.running_mean.clone(), self.running_var / factor
        momentum = 0.1 if self.momentum is None else self.momentum
        y = F.batch_norm(x, mean, var, self.weight, self.bias, True, momentum, self.eps)
        with torch.no_grad():
            self.running_mean.copy_(mean)
            self.running_var.copy_(var * factor)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        return y


class Backbone(nn.Module):
    """What every backbone promises; the concrete ones are ``ResNetBackbone`` and ``ContextNetBackbone``."""

    conv1: nn.Conv2d
    layers: tuple[str, ...]
    in_channels: int
    feature_info: dict[str, FeatureInfo]
    pair_layer: str
    stages: tuple[tuple[str, ...], ...] = ()
    grid_windows = False
    """Whether maps of a ResNet's sizes are pooled to a grid through mmselfsup's windows, as a ResNet's are."""
    frozen = -1
    """The last stage that is frozen; −1: none."""
    frozen_norms = False
    """Whether the batch norms of the other stages are frozen too."""

    def chosen(self, layers: str | Sequence[str] | None) -> tuple[str, ...]:
        """Return the layers asked for, in the backbone's order; None means feature1 … feature5.

        Args:
            layers: A name, names, or None.

        Raises:
            UnknownNameError: a layer this backbone does not have.
            InvalidInputError: no name at all.
        """
        if layers is None:
            return tuple(name for name in LAYERS if name in self.layers)
        asked = (layers,) if isinstance(layers, str) else tuple(layers)
        if not asked:
            raise InvalidInputError(f"No layer asked for; accepted: {', '.join(self.layers)}.")
        for name in asked:
            if name not in self.layers:
                if _meant(name) in self.layers:
                    accepted = ", ".join(self.layers)
                    raise UnknownNameError(
                        f"Unknown layer {name!r}. Did you mean {_meant(name)!r}? Accepted: {accepted}."
                    )
                raise unknown("layer", name, self.layers)
        return tuple(name for name in self.layers if name in asked)

    def check(self, images: object, what: str) -> None:
        """Refuse images that are no floating tensor (N, C, H, W) of the weights' dtype.

        Args:
            images: What a user gave.
            what: Its name, to begin the error with.

        Raises:
            InvalidInputError: another type, shape or dtype.
        """
        if not isinstance(images, Tensor):
            raise InvalidInputError(
                f"{what} must be a tensor (N, {self.in_channels}, H, W), not {type(images).__name__}; "
                f"model.transform(image)[None] makes one of a PIL image."
            )
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            hint = " Add the batch axis: x[None]." if images.ndim == 3 else ""
            if images.ndim == 4 and images.shape[-1] == self.in_channels:
                hint = " Move the channels first: x.permute(0, 3, 1, 2)."
            raise InvalidInputError(
                f"{what} must have shape (N, {self.in_channels}, H, W), not {tuple(images.shape)}.{hint}"
            )
        if not images.is_floating_point():
            raise InvalidInputError(f"{what} must be floating, not {images.dtype}; model.transform normalises uint8.")
        own = self.conv1.weight.dtype
        if images.dtype != own and not torch.is_autocast_enabled(images.device.type):
            raise InvalidInputError(f"{what} are {images.dtype} but the model is {own}: convert one of them.")

    def freeze(self, stages: int, *, norms: bool = False) -> Self:
        """Freeze the stem and the first ``stages`` stages; their batch norms stay in eval mode, also after ``train()``.

        It holds in whatever the backbone becomes a part of: a classifier, a detector, a segmenter.

        Args:
            stages: 0: the stem alone; 4: the whole backbone of a ResNet; −1: nothing (thaws). OpenMMLab counts so
                (``frozen_stages``); torchvision's ``trainable_layers`` = 4 − ``stages``.
            norms: Freeze the batch norms of all other stages too: for batches of few images, as torchvision's
                detectors do (``FrozenBatchNorm2d``) and OpenMMLab's with ``norm_eval``.

        Returns:
            The backbone itself.

        Raises:
            InvalidInputError: the backbone has no such stage.
        """
        last = len(self.stages) - 1
        if isinstance(stages, bool) or not isinstance(stages, int) or not -1 <= stages <= last:
            raise InvalidInputError(f"freeze({stages!r}): accepted are -1 (nothing), 0 (the stem) … {last}.")
        for module in self._frozen():
            module.requires_grad_(True)
        self.frozen, self.frozen_norms = stages, norms
        for module in self._frozen():
            module.requires_grad_(False)
        return self.train(self.training)

    def _frozen(self) -> list[nn.Module]:
        found = [self.get_submodule(name) for stage in self.stages[: self.frozen + 1] for name in stage]
        if self.frozen_norms:
            found += [module for module in self.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        return found

    def train(self, mode: bool = True) -> Self:
        """Set train or eval mode; frozen batch norms stay in eval mode.

        Args:
            mode: True: train.
        """
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def thawed(self) -> Self:
        """Return a copy with nothing frozen and every weight trainable."""
        return copy.deepcopy(self).freeze(-1).requires_grad_(True)

    def upto(self, layer: str) -> Self:
        """Return a copy that ends with ``layer``: deeper stages have no weights any more, deeper layers no names.

        What is frozen stays frozen.

        Args:
            layer: The last that is left.

        Raises:
            UnknownNameError: a layer this backbone does not have.
        """
        kept = self.layers.index(self.chosen(layer)[-1]) + 1
        own = copy.deepcopy(self)
        for name in (name for stage in self.stages[kept:] for name in stage):
            setattr(own, name, nn.Sequential())
        own.layers, own.stages = self.layers[:kept], self.stages[:kept]
        own.feature_info = {name: self.feature_info[name] for name in own.layers}
        own.frozen = min(self.frozen, kept - 1)
        for module in own.modules():
            if isinstance(module, RepeatedBatchNorm2d):
                module.repeats = 1.0
        return own


def _meant(name: object) -> str:
    """Translate what other libraries call a layer, so that the error can name ours: layer3, stage3."""
    text = str(name)
    if text[:-1] in ("layer", "stage") and text[-1:].isdigit():
        return f"feature{int(text[-1]) + 1}"
    return text


class ResNetBackbone(Backbone, ResNet):  # type: ignore[misc]  # torchvision publishes no types
    """torchvision's ResNet without its pooling and classifier; the parameters keep torchvision's names.

    ``feature1`` is the stem after its ReLU, before max-pooling; ``feature2`` … ``feature5`` are the four stages.

    Args:
        block: torchvision's ``BasicBlock`` or ``Bottleneck``.
        blocks: How many of them each of the four stages has.
        in_channels: Channels of the images.
    """

    layers = LAYERS
    grid_windows = True
    bn1: nn.Module
    relu: nn.Module
    maxpool: nn.Module
    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module
    pair_layer = "feature5"
    stages = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))

    def __init__(self, block: type[BasicBlock | Bottleneck], blocks: list[int], in_channels: int = 3) -> None:
        ResNet.__init__(self, block, blocks, norm_layer=RepeatedBatchNorm2d)
        del self.avgpool, self.fc
        self.in_channels = in_channels
        if in_channels != 3:
            self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        width = 64 * block.expansion
        self.feature_info = {
            "feature1": FeatureInfo(64, 2, "relu"),
            "feature2": FeatureInfo(width, 4, "layer1"),
            "feature3": FeatureInfo(2 * width, 8, "layer2"),
            "feature4": FeatureInfo(4 * width, 16, "layer3"),
            "feature5": FeatureInfo(8 * width, 32, "layer4"),
        }

    def forward(self, x: Tensor, layers: str | Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return the layers asked for (None: all five) as {name: (N, C, H/stride, W/stride)}; run nothing deeper.

        Args:
            x: Images (N, C, H, W), floating.
            layers: Names of layers; None: feature1 … feature5.

        Raises:
            UnknownNameError: no such layer.
        """
        asked = self.chosen(layers)
        found: dict[str, Tensor] = {}
        fold = folds(self, x, RepeatedBatchNorm2d)
        x = folded(x, self.conv1, self.bn1).relu_() if fold else self.relu(self.bn1(self.conv1(x)))
        if "feature1" in asked:
            found["feature1"] = x
        if asked == ("feature1",):
            return found
        x = self.maxpool(x)
        for name, stage in zip(LAYERS[1:], (self.layer1, self.layer2, self.layer3, self.layer4), strict=True):
            x = functools.reduce(folded_block, stage.children(), x) if fold else stage(x)
            if name in asked:
                found[name] = x
            if name == asked[-1]:
                break
        return found


class ContextNetBackbone(Backbone):
    """The paper's tower: five convolutions and fc6, as the authors' released code has them.

    fc6 is a 3×3 convolution without padding, so that a 96 px patch gives (N, 4096, 1, 1) and a larger image a map.
    Pooling is Caffe's (ceil mode); local response normalisation follows pool1 and pool2; conv3–conv5 and fc6 have
    batch norm without scale and shift. Source: deepcontext, ``train.py``; Doersch et al. 2015, Fig. 3.

    Args:
        in_channels: Channels of the input.
        conv2: Channels of conv2: 256 in the released code, 384 in the paper's figure.
    """

    layers = (*LAYERS, "fc6")
    pair_layer = "fc6"
    stages = (("conv1",), ("conv2",), ("conv3", "bn3"), ("conv4", "bn4"), ("conv5", "bn5"), ("fc6", "bn6"))

    def __init__(self, in_channels: int = 3, conv2: int = 256) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.conv1 = nn.Conv2d(in_channels, 96, 11, 4, 5)
        self.conv2 = nn.Conv2d(96, conv2, 5, 1, 2)
        self.conv3 = nn.Conv2d(conv2, 384, 3, 1, 1)
        self.conv4 = nn.Conv2d(384, 384, 3, 1, 1)
        self.conv5 = nn.Conv2d(384, 256, 3, 1, 1)
        self.fc6 = nn.Conv2d(256, 4096, 3)
        self.bn3, self.bn4, self.bn5, self.bn6 = (caffe_batch_norm(c) for c in (384, 384, 256, 4096))
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.normalize = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)
        self.feature_info = {
            "feature1": FeatureInfo(96, 4, "conv1"),
            "feature2": FeatureInfo(conv2, 8, "conv2"),
            "feature3": FeatureInfo(384, 16, "bn3"),
            "feature4": FeatureInfo(384, 16, "bn4"),
            "feature5": FeatureInfo(256, 16, "bn5"),
            "fc6": FeatureInfo(4096, 32, "bn6"),
        }
        self.apply(xavier_caffe)

    def forward(self, x: Tensor, layers: str | Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return the layers asked for (None: feature1 … feature5), each after its ReLU and before pooling.

        Args:
            x: Images (N, C, H, W), floating.
            layers: Names of layers; None: feature1 … feature5.

        Raises:
            UnknownNameError: no such layer.
            InvalidInputError: images too small for fc6.
        """
        asked = self.chosen(layers)
        found: dict[str, Tensor] = {}
        steps: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
            ("feature1", self.conv1),
            ("feature2", lambda t: self.conv2(self.normalize(self.pool(t)))),
            ("feature3", lambda t: self.bn3(self.conv3(self.normalize(self.pool(t))))),
            ("feature4", lambda t: self.bn4(self.conv4(t))),
            ("feature5", lambda t: self.bn5(self.conv5(t))),
            ("fc6", lambda t: self.bn6(self.fc6(_fits_fc6(self.pool(t))))),
        )
        for name, step in steps:
            x = F.relu(step(x))
            if name in asked:
                found[name] = x
            if name == asked[-1]:
                break
        return found


def _fits_fc6(x: Tensor) -> Tensor:
    if min(x.shape[-2:]) < 3:
        raise InvalidInputError(
            f"fc6 needs a 3×3 map below it, and this input leaves {x.shape[-2]}×{x.shape[-1]}; "
            f"give patches of 96 px (93 px at the least)."
        )
    return x


def caffe_batch_norm(channels: int, kind: type[nn.BatchNorm1d | nn.BatchNorm2d] = RepeatedBatchNorm2d) -> nn.Module:
    """Caffe's BatchNorm layer alone: no scale or shift, moving fraction .999, eps 1e-5."""
    return kind(channels, eps=1e-5, momentum=0.001, affine=False)


def xavier_caffe(module: nn.Module) -> None:
    """Initialise a convolution or linear layer as Caffe's "xavier": uniform ±√(3 / fan_in), zero bias."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        bound = (3 / module.weight[0].numel()) ** 0.5
        nn.init.uniform_(module.weight, -bound, bound)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


BACKBONES: dict[str, Callable[[int], Backbone]] = {
    "resnet18": lambda c: ResNetBackbone(BasicBlock, [2, 2, 2, 2], c),
    "resnet34": lambda c: ResNetBackbone(BasicBlock, [3, 4, 6, 3], c),
    "resnet50": lambda c: ResNetBackbone(Bottleneck, [3, 4, 6, 3], c),
    "resnet101": lambda c: ResNetBackbone(Bottleneck, [3, 4, 23, 3], c),
    "resnet152": lambda c: ResNetBackbone(Bottleneck, [3, 8, 36, 3], c),
    "contextnet": ContextNetBackbone,
    "contextnet-paper": lambda c: ContextNetBackbone(c, conv2=384),
}


def build_backbone(name: str, in_channels: int = 3) -> Backbone:
    """Make a backbone with random weights.

    ResNets are initialised as torchvision and OpenMMLab do (Kaiming normal, fan out), ``contextnet`` as
    the released code does (Caffe's Xavier).

    Args:
        name: Of ``BACKBONES``.
        in_channels: Channels of the images.

    Raises:
        UnknownNameError: no backbone of that name.
        InvalidInputError: ``in_channels`` below 1.

    Examples:
        >>> import torch
        >>> maps = build_backbone("resnet18")(torch.zeros(1, 3, 64, 64), ["feature3", "feature5"])
        >>> {name: tuple(values.shape) for name, values in maps.items()}
        {'feature3': (1, 128, 8, 8), 'feature5': (1, 512, 2, 2)}
    """
    if name not in BACKBONES:
        raise unknown("backbone", name, BACKBONES)
    check_whole_number("in_channels", in_channels)
    return BACKBONES[name](in_channels)


def adapt_stem(weight: Tensor, in_channels: int) -> Tensor:
    """Fit a first convolution (O, I, h, w) to another number of input channels.

    One channel gets the sum of the others' weights; n channels get them cyclically, times I / n. So a grey image, or
    a picture repeated over n channels, gives the same features as before (timm and segmentation-models do the same).
    """
    given = weight.shape[1]
    if in_channels == given:
        return weight
    if in_channels == 1:
        return weight.sum(1, keepdim=True)
    index = torch.arange(in_channels, device=weight.device) % given
    return weight[:, index] * (given / in_channels)
