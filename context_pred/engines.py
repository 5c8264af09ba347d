"""Who computes the features: PyTorch, ONNX Runtime or OpenVINO, with the same numbers.

    from context_pred import engines

    engine = engines.prepare(model, "auto")
    features = engine(batch)  # {"feature1": (N, 64, H/2, W/2), …}, NumPy arrays

``extract.run(…, engine=…)`` and ``context-pred extract --engine`` use the same engines. PyTorch computes on every
device and in every precision; the other two on CPUs and in float32, where they are faster. They read the backbone's
graph (``graph.py``), which is made in memory when the engine is prepared, and are tried against PyTorch first.
"""

from __future__ import annotations

import functools
import importlib.util
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .backbones import Backbone
from .errors import InvalidInputError, WeightsError, unknown
from .extras import need
from .graph import Graph, Size, apart, exported, onnx_proto, onnx_session
from .pooling import POOLS

if TYPE_CHECKING:
    from .data.transforms import EvalTransform
    from .extract import Extractable
    from .model import ContextPredictionModel

__all__ = ["ENGINES", "Engine", "prepare", "resolve"]

ENGINES = ("torch", "openvino", "onnxruntime")
"""Their names. "auto" is the fastest one there is: on a CPU the last of these that is installed, else torch."""

TOLERANCE = 1e-3
"""How far from PyTorch's an engine's features may lie, in standard deviations of the layer; up to 3.2e-5 was seen."""

_MODULES = {"torch": (), "onnxruntime": ("onnxruntime", "onnx", "onnxscript"), "openvino": ("openvino",)}
_EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}

Compute = Callable[[Tensor], dict[str, NDArray[Any]]]
"""Normalised images, float32 (N, C, H, W) on the engine's device, to {layer: (N, …)} in the computer's memory."""


class Engine:
    """Features of images in memory; ``prepare`` makes one.

    Args:
        name: "torch", "onnxruntime" or "openvino"; an attribute, as the next three are.
        device: Where it computes.
        layers: What it computes, in the backbone's order.
        pool: How it pools: "none", "gap" or "grid".
        transform: Normalises uint8 images, and has their number of channels.
        compute: Normalised images to features.
    """

    def __init__(
        self,
        name: str,
        device: torch.device,
        layers: tuple[str, ...],
        pool: str,
        transform: EvalTransform,
        compute: Compute,
    ) -> None:
        self.name = name
        self.device = device
        self.layers = layers
        self.pool = pool
        self._transform = transform
        self._compute = compute

    def __call__(self, images: Tensor | NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Compute the features of a batch.

        Args:
            images: (N, C, H, W): uint8, RGB, 0 … 255, which are normalised here; or floating point as the model's
                ``transform`` makes them. A tensor on any device, or an array.

        Returns:
            {layer: float32 array}, (N, channels, H/stride, W/stride) or as the pooling shapes it; float16 where that
            dtype was asked for. The arrays are the caller's own.

        Raises:
            InvalidInputError: images of another kind, shape or dtype, or without a pixel.
        """
        x = self._checked(images).detach().to(self.device, non_blocking=True)
        return self._compute(self._transform.normalize(x) if x.dtype == torch.uint8 else x.float())

    def _checked(self, images: object) -> Tensor:
        channels, x = self._transform.in_channels, images
        if isinstance(x, np.ndarray) and x.dtype.kind in "iuf":
            x = torch.from_numpy(np.require(x, x.dtype.newbyteorder("="), ["C", "W"]))
        given = f"given as {type(x).__name__}"
        if isinstance(x, (Tensor, np.ndarray)):
            given = f"of shape {tuple(x.shape)}, {x.dtype}"
        pixels = isinstance(x, Tensor) and (x.dtype == torch.uint8 or x.is_floating_point())
        if isinstance(x, Tensor) and pixels and x.ndim == 4 and x.shape[1] == channels and 0 not in x.shape[2:]:
            return x
        raise InvalidInputError(
            f"Images {given}; accepted: a tensor or an array (N, {channels}, H, W), uint8 in 0 … 255 or floating point "
            f"as model.transform makes them."
        )

    def __repr__(self) -> str:
        """Name the engine, what it computes and where."""
        return f"Engine({self.name!r}, {self.device}, layers={self.layers}, pool={self.pool!r})"


def prepare(
    model: ContextPredictionModel | Extractable,
    engine: str = "torch",
    layers: str | Sequence[str] | None = None,
    pool: str = "none",
    *,
    device: str | torch.device = "auto",
    dtype: str = "float32",
    transform: EvalTransform | None = None,
) -> Engine:
    """Make ready to compute a model's features; the model is left as it is, and later changes of it do not count.

    Args:
        model: The model.
        engine: "torch", "onnxruntime", "openvino", or "auto": on a CPU and in float32 the fastest that is installed
            (ONNX Runtime, else OpenVINO, else PyTorch), elsewhere PyTorch. Each uses ``torch.get_num_threads()``
            threads, as they are when this is called.
        layers: Layers of the backbone; None: feature1 … feature5.
        pool: "none": the maps; "gap": (N, C), their mean over positions; "grid": (N, C, n, n), as ``extract.run``.
        device: "auto": a GPU where there is one and the engine can use it, else the CPU; or a device of PyTorch's.
        dtype: As of ``extract.run``: "float32", "float16" or, with PyTorch, "bfloat16".
        transform: Another preprocessing than the model's.

    Returns:
        The engine; calling it with a batch of images computes their features.

    Raises:
        UnknownNameError: no such engine, layer, pooling or dtype.
        InvalidInputError: no model, the engine's package is missing (the error has the line that installs it), or the
            engine cannot compute there, in that dtype or with that backbone.
        WeightsError: the engine's numbers are not PyTorch's.
    """
    from .extract.network import Network, check_dtype

    if not isinstance(getattr(model, "backbone", None), Backbone):
        raise InvalidInputError(
            f"A model given as {type(model).__name__}; accepted: a ContextPredictionModel, as "
            "context_pred.load_pretrained makes of a name or a path."
        )
    if pool not in POOLS:
        raise unknown("pooling", pool, POOLS)
    name, place = resolve(engine, device, dtype)
    dtype = check_dtype(dtype)
    asked = model.backbone.chosen(layers)
    own = model.transform if transform is None else transform
    if name == "torch":
        network = Network(model.backbone, own, asked, pool, place, dtype)
        return Engine(name, place, asked, pool, own, network.features)
    start = _onnxruntime if name == "onnxruntime" else _OpenVINO
    compute = _Graphs(name, model.backbone, asked, pool, own.crop, start)
    return Engine(name, place, asked, pool, own, _halved(compute) if dtype == "float16" else compute)


def resolve(
    engine: str = "torch", device: str | torch.device = "auto", dtype: str = "float32"
) -> tuple[str, torch.device]:
    """Return the engine that "auto" stands for here, or the one named, and the device it computes on.

    Args:
        engine: As of ``prepare``.
        device: As of ``prepare``.
        dtype: As of ``prepare``.

    Returns:
        One of ``ENGINES``, and a device.

    Raises:
        UnknownNameError: no such engine or dtype.
        InvalidInputError: its package is missing, or it cannot compute on that device or in that dtype.
    """
    from .extract.network import check_dtype, find_device

    dtype = check_dtype(dtype)
    if engine not in (*ENGINES, "auto"):
        raise unknown("engine", engine, (*ENGINES, "auto"))
    if engine == "torch":
        return engine, find_device(device)
    if engine == "auto":
        place = find_device(device)
        able = place.type == "cpu" and dtype != "bfloat16"
        return next((name for name in reversed(ENGINES) if able and _installed(name)), "torch"), place
    place = torch.device("cpu") if str(device) == "auto" else find_device(device)
    if place.type != "cpu":
        raise InvalidInputError(
            f"engine={engine!r} computes on the CPU, not on {place}; give device='cpu', or engine='torch' for {place}."
        )
    if dtype == "bfloat16":
        raise InvalidInputError(f"engine={engine!r} computes in float32; dtype='bfloat16' needs engine='torch'.")
    for module in _MODULES[engine]:
        _need(module, engine)
    return engine, place


def _installed(name: str) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in _MODULES[name])


def _need(module: str, engine: str) -> Any:
    return need(module, f"engine={engine!r}", extra=_EXTRAS[engine])


# Engines that read graphs ---------------------------------------------------------------------------------------

Run = Callable[[NDArray[Any]], Sequence[NDArray[Any]]]
Start = Callable[[Graph, Size], Run]


class _Graphs:
    """A backbone on an engine that reads graphs: one graph, or one a size where the graph has a size.

    Args:
        name: The engine's name, for errors.
        backbone: The backbone; it is copied.
        layers: What to compute.
        pool: How to pool.
        side: The usual side of the images; its graph is made, and tried, at once.
        start: Makes the engine of a graph.
    """

    def __init__(
        self, name: str, backbone: Backbone, layers: tuple[str, ...], pool: str, side: int, start: Start
    ) -> None:
        self.name = name
        self.graph = Graph(backbone, layers, pool)
        self.start = start
        self.usual = Size.of(backbone, pool, None, side)
        self.runs: dict[tuple[int, int] | None, Run] = {}
        self._run(side, side)

    def __call__(self, x: Tensor) -> dict[str, NDArray[Any]]:
        height, width = x.shape[-2:]
        found = self._run(height, width)(x.contiguous().numpy())
        return dict(zip(self.graph.layers, found, strict=True))

    def _run(self, height: int, width: int) -> Run:
        key = None if self.usual.free else (height, width)
        if key not in self.runs:
            size = self.usual if key is None else Size(*key, free=False)
            self.runs[key] = self._tried(self.start(self.graph, size), size)
        return self.runs[key]

    def _tried(self, run: Run, size: Size) -> Run:
        """Return the engine if its numbers are PyTorch's.

        Raises:
            WeightsError: they are not.
        """
        shape = (2, self.graph.backbone.in_channels, size.height, size.width)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = self.graph(x)
        for layer, found in zip(self.graph.layers, run(x.numpy()), strict=True):
            difference = apart(found, expected[layer].numpy())
            if difference > TOLERANCE:
                raise WeightsError(
                    f"engine={self.name!r} computes another {layer} than PyTorch does, {difference:.2g} standard "
                    f"deviations away (accepted: {TOLERANCE:g}). Use engine='torch'."
                )
        return run


def _halved(compute: Compute) -> Compute:
    return lambda x: {layer: values.astype(np.float16) for layer, values in compute(x).items()}


def _onnxruntime(graph: Graph, size: Size) -> Run:
    data = onnx_proto(exported(graph, size), graph.layers, size).SerializeToString()
    return onnx_session(data, "engine='onnxruntime'")


@functools.cache
def _core() -> Any:
    """Return OpenVINO's core, one a process and never given up.

    A core sets the stack that signals are handled on, and gives the memory back at its end. Of two cores, the first to
    go leaves the second with a stack to restore that is gone (seen in 2026.4.1); the next signal with a handler, as
    SIGCHLD has one after a DataLoader, then ends the process.
    """
    return _need("openvino", "openvino").Core()


class _OpenVINO:
    """A graph on OpenVINO, on the CPU and in float32."""

    def __init__(self, graph: Graph, size: Size) -> None:
        model = _need("openvino", "openvino").convert_model(exported(graph, size))
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 on the CPUs that have it
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
        }
        self.compiled = _core().compile_model(model, "CPU", settings)
        self.request = self.compiled.create_infer_request()
        self.count = len(graph.layers)
        self.lock = threading.Lock()

    def __call__(self, x: NDArray[Any]) -> Sequence[NDArray[Any]]:
        some = x if len(x) else np.zeros((1, *x.shape[1:]), x.dtype)  # of no images it would return features of one
        with self.lock:
            found = self.request.infer([some])  # copies on both sides: no array of ours is OpenVINO's memory
        return [found[k][: len(x)] for k in range(self.count)]
