"""A backbone as one graph, pixels to features, for ``torch.export`` and for the engines that read such graphs."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .backbones import Backbone, ResNetBackbone
from .errors import InvalidInputError
from .extras import need
from .pooling import pool_map

if TYPE_CHECKING:
    from torch.export import ExportedProgram

NAME = "images"
"""What the graphs call their input."""

_LEAST = 32
_LARGEST = 1 << 16


class Graph(nn.Module):
    """What is exported: ``images`` → {layer: features}, of a copy of the backbone in eval mode, float32, on the CPU.

    Args:
        backbone: The backbone; it is left as it is.
        layers: Layers, in the backbone's order.
        pool: As ``pool_map`` has it.
        mean: One value a channel, for images in [0, 1]; None: the images come normalised.
        std: As ``mean``.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        backbone: Backbone,
        layers: tuple[str, ...],
        pool: str,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        self.backbone: Backbone = copy.deepcopy(backbone).requires_grad_(False).to("cpu", torch.float32).eval()
        self.layers = layers
        self.pool = pool
        for name, values in (("mean", mean), ("std", std)):
            value = None if values is None else torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) → the layers, pooled; uint8 images are divided by 255 first."""
        if self.mean is not None and self.std is not None:
            images = images.float() / 255 if images.dtype == torch.uint8 else images
            images = (images - self.mean) / self.std
        maps: dict[str, Tensor] = self.backbone(images, self.layers)
        windows = self.backbone.grid_windows
        return {layer: pool_map(maps[layer], layer, self.pool, windows=windows) for layer in self.layers}


@dataclass(frozen=True)
class Size:
    """Height and width of a graph's images in px, and whether they are no more than an example."""

    height: int
    width: int
    free: bool

    @classmethod
    def of(cls, backbone: Backbone, pool: str, size: int | tuple[int, int] | None, usual: int) -> Size:
        """Return the size asked for; None is any size where the backbone and the pooling have graphs of any size.

        Args:
            backbone: A ResNet's graph takes any size. Contextnet's pools round up, which ``torch.export`` cannot
                follow through for an unknown size.
            pool: "grid" cuts maps into cells by their size.
            size: Side, or (height, width), in px.
            usual: The side where there has to be one.

        Raises:
            InvalidInputError: no size, or one out of the range.
        """
        if size is None:
            free = isinstance(backbone, ResNetBackbone) and pool != "grid"
            return cls(2 * _LEAST, 3 * _LEAST, True) if free else cls(usual, usual, False)
        sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
        if len(sides) != 2 or not all(type(side) is int and _LEAST <= side <= _LARGEST for side in sides):
            raise InvalidInputError(
                f"size={size!r}; accepted: a side, or (height, width), of {_LEAST} to {_LARGEST:,} px; None for any."
            )
        return cls(*sides, False)


def exported(graph: Graph, size: Size, dtype: torch.dtype = torch.float32) -> ExportedProgram:
    """Export a graph; the batch is free, and height and width where ``size`` says so.

    Raises:
        InvalidInputError: the backbone cannot take images of that size.
    """
    example = torch.zeros(2, graph.backbone.in_channels, size.height, size.width, dtype=dtype)
    free: dict[int, Any] = dict.fromkeys((0, 2, 3) if size.free else (0,), torch.export.Dim.DYNAMIC)
    with quiet(), torch.no_grad():
        return torch.export.export(graph, (example,), dynamic_shapes={NAME: free})


def onnx_proto(program: ExportedProgram, layers: tuple[str, ...], size: Size) -> Any:
    """Translate an exported graph to ONNX, optimised, without notes on where in the source each node came from.

    Returns:
        An ``onnx.ModelProto``: input ``images``, an output a layer; free sizes are called batch, height and width.
    """
    free = {0: "batch", **({2: "height", 3: "width"} if size.free else {})}
    with quiet():
        made = torch.onnx.export(
            program,
            input_names=[NAME],
            output_names=list(layers),
            dynamic_shapes={NAME: free},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    if made is None:
        raise InvalidInputError("torch.onnx.export returned nothing.")
    proto = made.model_proto
    for part in (proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    return proto


def onnx_session(data: bytes, what: str) -> Callable[[NDArray[Any]], Sequence[NDArray[Any]]]:
    """Run an ONNX file's bytes with ONNX Runtime: float32 or uint8 images (N, C, H, W) to its outputs, in their order.

    It uses ``torch.get_num_threads()`` threads.

    Args:
        data: The file.
        what: What needs it, for the error where ONNX Runtime is missing.
    """
    runtime = need("onnxruntime", what, extra="onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda images: cast("Sequence[NDArray[Any]]", session.run(None, {NAME: images}))


def apart(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Return the largest difference of two arrays in standard deviations of ``wanted``; NaN is equal to NaN."""
    difference = np.abs(np.subtract(found, wanted, dtype=np.float64))
    same = (np.isnan(found) & np.isnan(wanted)) | (found == wanted)
    largest = float(np.where(same, 0, difference).max(initial=0))
    return largest / max(float(np.std(wanted)), 1e-12) if np.isfinite(largest) else float("inf")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' deprecation notices and progress to themselves; errors come through."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
