"""The network as extraction runs it: a private copy, folded and laid out for speed, with the same numbers."""

from __future__ import annotations

import copy
import os

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from context_pred.backbones import Backbone, ResNetBackbone
from context_pred.data.transforms import EvalTransform
from context_pred.errors import InvalidInputError, unknown
from context_pred.pooling import pool_map

DTYPES = ("float32", "float16", "bfloat16")


class Network:
    """uint8 pixels in, pooled features out.

    The backbone is copied in eval mode. Of a ResNet the batch norms are folded into the convolutions and the copy is
    laid out channels-last: on a CPU 1.4 times the speed of the network as it stands, or more. The numbers stay within
    5e-5 standard deviations.

    Args:
        backbone: The backbone; it is left as it is.
        transform: Its preprocessing; only ``normalize`` is used here.
        layers: Layers to compute, in the backbone's order.
        pool: "gap", "grid" or "none", as ``pool_map`` has them.
        device: Where to compute.
        dtype: "float32", "float16" or "bfloat16". A CPU computes float16 in float32, which is faster there and no
            less exact; the result is float16 all the same.
    """

    def __init__(
        self,
        backbone: Backbone,
        transform: EvalTransform,
        layers: tuple[str, ...],
        pool: str,
        device: torch.device,
        dtype: str,
    ) -> None:
        self.transform = transform
        self.layers = layers
        self.pool = pool
        self.device = device
        self.stored = torch.float16 if dtype == "float16" else torch.float32
        self.computed = torch.float32 if dtype == "float16" and device.type == "cpu" else getattr(torch, dtype)
        self.windows = backbone.grid_windows
        own: nn.Module = copy.deepcopy(backbone).eval().requires_grad_(False)
        if isinstance(backbone, ResNetBackbone):
            own = fold_batch_norms(own).to(memory_format=torch.channels_last)
        self.backbone = own.to(device, self.computed)

    def __call__(self, pixels: Tensor) -> dict[str, NDArray[np.floating]]:
        """(N, C, H, W) uint8, RGB → {layer: (N, …) float32 or float16, in the computer's memory}."""
        return self.features(self.transform.normalize(pixels.to(self.device, non_blocking=True)))

    @torch.inference_mode()
    def features(self, images: Tensor) -> dict[str, NDArray[np.floating]]:
        """Do the same of normalised images, floating and on the device."""
        maps: dict[str, Tensor] = self.backbone(images.to(self.computed), self.layers)
        return {
            layer: pool_map(maps[layer].float(), layer, self.pool, windows=self.windows)
            .to(self.stored)
            .contiguous()
            .cpu()
            .numpy()
            for layer in self.layers
        }


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """Fold every batch norm of a torchvision ResNet in eval mode into the convolution before it, in place."""
    for module in list(network.modules()):
        children = dict(module.named_children())
        for name, conv in children.items():
            # torchvision's names: bn1 follows conv1, and in a downsampling branch 1 follows 0.
            after = str(int(name) + 1) if name.isdigit() else name.replace("conv", "bn")
            norm = children.get(after)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(conv, norm))
                setattr(module, after, nn.Identity())
    return network


def find_device(name: str | torch.device) -> torch.device:
    """Return the device of that name; "auto" is this rank's CUDA device, else Apple's, else the CPU.

    Raises:
        InvalidInputError: no device is called so, or this machine or installation has none of the kind.
    """
    if str(name) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    # NotImplementedError and AssertionError: what torch raises where it was built without the kind of device.
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidInputError(
            f"device={str(name)!r} cannot be used here: {reason} Accepted: auto, cpu, cuda, cuda:1, mps, …"
        ) from error
    if device.type == "meta":
        raise InvalidInputError("device='meta' computes nothing; accepted: auto, cpu, cuda, cuda:1, mps, …")
    return device


def check_dtype(dtype: str) -> str:
    """Return the dtype's name, or raise UnknownNameError."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise unknown("dtype", name, DTYPES)
    return name
