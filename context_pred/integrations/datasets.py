"""Features as columns of a Hugging Face dataset.

    from context_pred.integrations.datasets import with_features

    dataset = with_features(dataset, "resnet18_1xb64-coslr-300k", layers=["feature3"])
    dataset[0]["feature3"]

A column has the name of its layer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from context_pred.data.transforms import EvalTransform
from context_pred.engines import Engine, prepare
from context_pred.errors import InvalidInputError, unknown
from context_pred.extract import weights_digest
from context_pred.extract.loading import usual_workers
from context_pred.extras import need

from ._models import Model, check_counts, cut_batches, loaded

_datasets = need("datasets", "context_pred.integrations.datasets", extra="datasets")

__all__ = ["with_features"]

_POOLS = ("gap", "grid")


def with_features(
    dataset: Any,
    model: Model,
    *,
    layers: str | Sequence[str] = ("feature5",),
    image_column: str = "image",
    pool: str = "gap",
    batch_size: int = 32,
    workers: int | None = None,
    device: str | torch.device = "auto",
    dtype: str = "float32",
    engine: str = "torch",
) -> Any:
    """Add a column of vectors for each layer, computed in batches as ``extract.run`` does.

    A dataset on disk is written to the cache of the datasets library, and read from it when the same model, weights
    and options are asked for again; a streamed dataset is computed as it is read.

    Args:
        dataset: A ``datasets.Dataset``, ``DatasetDict``, ``IterableDataset`` or ``IterableDatasetDict``.
        model: The model, or what ``load_pretrained`` takes.
        layers: The columns are called as the layers are.
        image_column: Images, as the ``Image`` feature stores them, or paths; files are opened as
            ``context_pred.data.open_image`` does (orientation, transparency, 16 bits), but for streamed datasets, which
            open them themselves. The column stays as it is.
        pool: "gap": lists of C float32; "grid": of C·n·n.
        batch_size: Images a batch.
        workers: Threads that open images; None: as in ``extract.run``.
        device: "auto" (a GPU, else the CPU) or a device of PyTorch's.
        dtype: Precision of the computation: "float32", "float16" or "bfloat16".
        engine: Who computes: "torch", "onnxruntime", "openvino", or "auto", the fastest that is installed.

    Returns:
        A dataset of the same kind with the further columns.

    Raises:
        InvalidInputError: no dataset, no such column, or one that is there already; an image that is none.
        UnknownNameError: no such model, layer, pooling, dtype or engine.
        ImageError: an image that cannot be opened.
    """
    check_counts(batch_size, workers)
    if pool not in _POOLS:
        raise unknown("pooling", pool, _POOLS)
    model = loaded(model)
    asked = model.backbone.chosen(layers)
    made = prepare(model, engine, asked, pool, device=device, dtype=dtype)
    options = (weights_digest(model), repr(model.transform), asked, pool, dtype, made.name, made.device.type)
    threads = usual_workers(made.device) if workers is None else workers
    add = _Adding(made, model.transform, image_column, batch_size, threads, repr((*options, image_column)))
    if isinstance(dataset, dict):
        return type(dataset)({name: add(split) for name, split in dataset.items()})
    return add(dataset)


class _Adding:
    """Adds the columns to one split."""

    def __init__(
        self, engine: Engine, transform: EvalTransform, column: str, batch_size: int, workers: int, identity: str
    ) -> None:
        self.engine, self.transform, self.column, self.layers = engine, transform, column, engine.layers
        self.batch_size, self.workers, self.identity = batch_size, workers, identity

    def __call__(self, split: Any) -> Any:
        if not isinstance(split, (_datasets.Dataset, _datasets.IterableDataset)):
            raise InvalidInputError(
                f"A dataset given as {type(split).__name__}; accepted: one of the datasets library."
            )
        columns = split.column_names
        if columns is not None and self.column not in columns:
            raise unknown("column", self.column, columns)
        taken = [layer for layer in self.layers if columns is not None and layer in columns]
        if taken:
            raise InvalidInputError(f"The dataset has a column {taken[0]!r} already; rename or remove it first.")
        if isinstance(split, _datasets.IterableDataset):
            return self._mapped(split)
        # Neither formatted nor decoded, so that files are opened as everywhere in this library.
        plain, kind = split.with_format(None), split.features[self.column]
        if isinstance(kind, _datasets.Image):
            stored = plain.cast_column(self.column, _datasets.Image(mode=kind.mode, decode=False))
            made = self._mapped(stored).cast_column(self.column, kind)
        else:
            made = self._mapped(plain)
        shown = split.format
        columns = None if shown["columns"] == split.column_names else [*shown["columns"], *self.layers]
        return made.with_format(shown["type"], columns, shown["output_all_columns"], **shown["format_kwargs"])

    def _mapped(self, split: Any) -> Any:
        common = {"with_indices": True, "input_columns": [self.column], "batched": True, "batch_size": self.batch_size}
        vector = _datasets.List(_datasets.Value("float32"))
        if split.features is not None:
            common["features"] = _datasets.Features({**split.features, **dict.fromkeys(self.layers, vector)})
        if isinstance(split, _datasets.IterableDataset):
            return split.map(self.features, **common)
        # The fingerprint is told, since hashing the function would mean hashing the network each time.
        if not len(split):  # map would leave the columns out
            for layer in self.layers:
                split = split.add_column(layer, [], feature=vector)
            return split
        fingerprint = hashlib.sha256(f"{split._fingerprint}\0{self.identity}".encode()).hexdigest()[:16]
        return split.map(self.features, new_fingerprint=fingerprint, desc="features", **common)

    def features(self, images: list[Any], numbers: list[int]) -> dict[str, Any]:
        """Compute the columns of a batch."""
        (pixels,) = cut_batches(images, self.transform, len(images), self.workers, first=numbers[0])
        return {layer: values.reshape(len(images), -1) for layer, values in self.engine(pixels).items()}
