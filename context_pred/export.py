"""Models as graphs for other programs: ``onnx`` writes an ONNX file, ``program`` makes a ``torch.export`` program.

    from context_pred import export

    export.onnx(model, "features.onnx")

The graphs take RGB, whatever the weights were trained on: a BGR model is turned first (``channel_order.for_rgb``) and
gives the numbers it gives on BGR. The pair layers are not exported: they compare patches in pre-training and audits,
which need the library anyway, and ``torch.export.export(model, (neighbors, centers))`` takes a model with its pairs.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from . import __version__
from .card import fit_channels
from .channel_order import for_rgb
from .errors import InvalidInputError, WeightsError, unknown
from .extras import need
from .graph import Graph, Size, apart, exported, onnx_proto, onnx_session, quiet
from .model import ContextPredictionModel
from .pooling import POOLS
from .weights_file import write_bytes

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["PIXELS", "TOLERANCE", "onnx", "program", "pt2"]

PIXELS = ("normalized", "unit", "uint8")
"""What a graph takes: float32 as ``transform`` makes it; float32 in [0, 1]; uint8 in 0 … 255."""

TOLERANCE = 1e-4
"""How far the features of a written file may lie from the model's, in standard deviations of the layer."""


def onnx(
    model: ContextPredictionModel | str | os.PathLike[str],
    path: str | os.PathLike[str],
    layers: str | Sequence[str] | None = None,
    pool: str = "none",
    *,
    pixels: str = "normalized",
    size: int | tuple[int, int] | None = None,
) -> Path:
    """Write an ONNX file that computes a model's features; ONNX Runtime tries it before it takes its place.

    The graph has one input, ``images`` (N, C, H, W), RGB, and an output a layer, called as the layer is. N is free,
    and so are H and W unless ``size`` fixes them. Batch norms are folded into the convolutions. The file's metadata
    say what else has to be known (JSON values): ``model``, ``backbone_sha256`` (``extract.weights_digest`` of the
    model), ``pixels``, ``channel_order``, ``mean``, ``std``, ``resize``, ``crop``, ``layers``, ``pool``, ``license``
    and ``context_pred``, the version that wrote it.

    Args:
        model: The model (left as it is; exported in eval mode and float32), or what ``load_pretrained`` takes.
        path: The file, ``.onnx``; missing folders are made, and a file of that name is replaced.
        layers: Layers of the backbone; None: feature1 … feature5.
        pool: "none": the maps, (N, C, H/stride, W/stride); "gap": their mean over positions, (N, C); "grid":
            (N, C, n, n), as ``extract.run`` has it.
        pixels: What the graph takes. "normalized": float32, less the metadata's mean and divided by its std, as
            ``transform`` makes it of an RGB model; "unit": float32 in [0, 1]; "uint8": 0 … 255. The graph normalises
            the latter two itself.
        size: Side, or (height, width), of the images in px; None: any. ``pool="grid"`` and contextnet have graphs of
            one size only; None is the card's ``crop`` there.

    Returns:
        The file's path.

    Raises:
        InvalidInputError: onnx, onnxscript or onnxruntime is missing (the error has the line that installs them); a
            size the backbone cannot take; a name that does not end in ``.onnx``.
        UnknownNameError: no such layer, pooling, kind of pixels or model.
        WeightsError: what ONNX Runtime computes differs from the model's features by more than ``TOLERANCE``;
            nothing has been written.
        StorageError: the file cannot be written; one that was there stands.
    """
    for module in ("onnx", "onnxscript", "onnxruntime"):
        need(module, "Writing ONNX", extra="onnx")
    target, export = _target(path, ".onnx"), _Export.of(model, layers, pool, pixels, size)
    proto = onnx_proto(export.program(), export.graph.layers, export.size)
    proto.producer_name, proto.producer_version = "context-pred", __version__
    for key, value in export.metadata().items():
        proto.metadata_props.add(key=key, value=value)
    data: bytes = proto.SerializeToString()
    session = onnx_session(data, "Writing ONNX")
    export.compare(lambda images: session(images.numpy()), "ONNX Runtime")
    write_bytes(data, target)
    return target


def program(
    model: ContextPredictionModel | str | os.PathLike[str],
    layers: str | Sequence[str] | None = None,
    pool: str = "none",
    *,
    pixels: str = "normalized",
    size: int | tuple[int, int] | None = None,
) -> ExportedProgram:
    """Make a ``torch.export`` program of a model's features: RGB ``images`` (N, C, H, W) → {layer: float32}.

    It is what AOTInductor, ExecuTorch and other readers of PyTorch's graphs begin with, and needs PyTorch alone.
    ``program(model).module()(images)`` runs it.

    Args:
        model: As of ``onnx``, like all arguments.
        layers: As of ``onnx``.
        pool: As of ``onnx``.
        pixels: As of ``onnx``.
        size: As of ``onnx``.

    Returns:
        The program.

    Raises:
        InvalidInputError: a size the backbone cannot take.
        UnknownNameError: no such layer, pooling, kind of pixels or model.
    """
    return _Export.of(model, layers, pool, pixels, size).program()


def pt2(
    model: ContextPredictionModel | str | os.PathLike[str],
    path: str | os.PathLike[str],
    layers: str | Sequence[str] | None = None,
    pool: str = "none",
    *,
    pixels: str = "normalized",
    size: int | tuple[int, int] | None = None,
) -> Path:
    """Write ``program`` to a file that ``torch.export.load`` reads, tried as ``onnx`` tries its own.

    Args:
        model: As of ``onnx``, like all arguments.
        path: The file, ``.pt2``; ``onnx``'s metadata lie in it under ``metadata.json``.
        layers: As of ``onnx``.
        pool: As of ``onnx``.
        pixels: As of ``onnx``.
        size: As of ``onnx``.

    Returns:
        The file's path.

    Raises:
        InvalidInputError: a size the backbone cannot take; a name that does not end in ``.pt2``.
        UnknownNameError: no such layer, pooling, kind of pixels or model.
        WeightsError: the program's features differ from the model's; nothing has been written.
        StorageError: the file cannot be written; one that was there stands.
    """
    target, export = _target(path, ".pt2"), _Export.of(model, layers, pool, pixels, size)
    written = io.BytesIO()
    with quiet():
        torch.export.save(export.program(), written, extra_files={"metadata.json": json.dumps(export.metadata())})
        written.seek(0)
        read = torch.export.load(written).module()
    with torch.inference_mode():
        export.compare(lambda images: [found.numpy() for found in read(images).values()], "PyTorch")
    write_bytes(written.getvalue(), target)
    return target


class _Export:
    """One export: the model as it was given, the same for RGB, and the latter's graph."""

    def __init__(
        self,
        model: ContextPredictionModel,
        rgb: ContextPredictionModel,
        graph: Graph,
        size: Size,
        pixels: str,
    ) -> None:
        self.model = model
        self.rgb = rgb
        self.graph = graph
        self.size = size
        self.pixels = pixels

    @classmethod
    def of(
        cls,
        model: ContextPredictionModel | str | os.PathLike[str],
        layers: str | Sequence[str] | None,
        pool: str,
        pixels: str,
        size: int | tuple[int, int] | None,
    ) -> _Export:
        if pool not in POOLS:
            raise unknown("pooling", pool, POOLS)
        if pixels not in PIXELS:
            raise unknown("kind of pixels", pixels, PIXELS)
        from .integrations._models import loaded

        model = loaded(model)
        asked = model.backbone.chosen(layers)
        rgb = for_rgb(model)
        card = rgb.card
        statistics = (fit_channels(values, card.in_channels) for values in (card.mean, card.std))
        graph = Graph(rgb.backbone, asked, pool, *(() if pixels == "normalized" else statistics))
        return cls(model, rgb, graph, Size.of(model.backbone, pool, size, card.crop), pixels)

    def program(self) -> ExportedProgram:
        return exported(self.graph, self.size, torch.uint8 if self.pixels == "uint8" else torch.float32)

    def metadata(self) -> dict[str, str]:
        """What a user of the file has to know, by name, as JSON."""
        from .extract import weights_digest

        card = self.rgb.card
        mean, std = (fit_channels(values, card.in_channels) for values in (card.mean, card.std))
        values: dict[str, Any] = {
            "context_pred": __version__,
            "model": card.name,
            "backbone_sha256": weights_digest(self.model),
            "pixels": self.pixels,
            "channel_order": {1: "grey", 3: "rgb"}.get(card.in_channels, "as trained"),
            "mean": mean,
            "std": std,
            "resize": card.resize,
            "crop": card.crop,
            "layers": self.graph.layers,
            "pool": self.graph.pool,
            "license": card.license,
        }
        return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}

    def _given(self, images: Tensor) -> Tensor:
        """Turn uint8 images into what the graph takes."""
        if self.pixels == "normalized":
            return self.rgb.transform.normalize(images)
        return images / 255 if self.pixels == "unit" else images

    def compare(self, run: Callable[[Tensor], Sequence[NDArray[Any]]], who: str) -> None:
        """Stop unless ``run`` gives the features of the model itself, for batches of two shapes.

        Raises:
            WeightsError: it does not.
        """
        whole = Graph(self.model.backbone, self.graph.layers, self.graph.pool)
        generator = torch.Generator().manual_seed(0)
        for count, height, width in ((1, self.size.height, self.size.width), (2, self.size.width, self.size.height)):
            sides = (height, width) if self.size.free else (self.size.height, self.size.width)
            shape = (count, self.model.card.in_channels, *sides)
            images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
            with torch.inference_mode():
                expected = whole(self.model.transform.normalize(images))
            for layer, found in zip(self.graph.layers, run(self._given(images)), strict=True):
                difference = apart(found, expected[layer].numpy())
                if difference > TOLERANCE:
                    raise WeightsError(
                        f"{who} computes another {layer} of {self.model.card.name} than the model, {difference:.2g} "
                        f"standard deviations away (accepted: {TOLERANCE:g}); nothing has been written."
                    )


def _target(path: str | os.PathLike[str], suffix: str) -> Path:
    target = Path(path)
    if target.suffix.lower() != suffix or target.is_dir():
        raise InvalidInputError(f"path={str(path)!r}; accepted: the name of a {suffix} file to write.")
    return target
