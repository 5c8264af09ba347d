"""Features of many images, on disk: ``run`` writes them, ``load`` opens them.

From the shell, on one machine and one GPU or CPU:

    context-pred extract photos/ --out photos.safetensors

On one node with eight GPUs, and on two nodes (the same command on each, ``photos/`` and the output on a shared disk):

    torchrun --nproc-per-node 8 --no-python context-pred extract photos/ --out photos.safetensors
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
        --no-python context-pred extract photos/ --out photos.safetensors

The images are divided into fixed batches of ``batch_size``, and each rank takes every n-th batch; a damaged image keeps
its place in the batch. So the file has the same bytes however many ranks wrote it and however often it was stopped.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from context_pred.data.images import WHITE, check_options
from context_pred.errors import ImageError, InvalidInputError, check_whole_number, unknown
from context_pred.pooling import POOLS
from context_pred.ranks import joined

from .loading import Loader, usual_workers
from .network import check_dtype
from .storage import Names, Rows, load
from .summary import Summary, summarize
from .work import begin, compute, finish

if TYPE_CHECKING:
    from context_pred.backbones import Backbone
    from context_pred.card import Card
    from context_pred.data.transforms import EvalTransform
    from context_pred.model import ContextPredictionModel

__all__ = ["Extractable", "Rows", "Summary", "load", "run", "weights_digest"]


class Extractable(Protocol):
    """What features can be extracted of: a ``ContextPredictionModel``, or anything with these three."""

    @property
    def backbone(self) -> Backbone:
        """Images to named maps."""

    @property
    def transform(self) -> EvalTransform:
        """The preprocessing the weights expect."""

    @property
    def card(self) -> Card:
        """Its ``name`` tells models apart, beside the numbers of the backbone."""


def run(
    images: str | Path | Sequence[str | Path],
    model: ContextPredictionModel | Extractable | str | Path,
    *,
    out: str | Path,
    transform: EvalTransform | None = None,
    layers: str | Sequence[str] = ("feature5",),
    pool: str = "gap",
    batch_size: int = 32,
    workers: int | None = None,
    engine: str = "torch",
    device: str | torch.device = "auto",
    dtype: str = "float32",
    strict: bool = False,
    background: tuple[int, int, int] = WHITE,
    value_range: tuple[float, float] | None = None,
    shard_rows: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Summary:
    """Compute the features of images and write them to disk, rows in the order of ``find_images``.

    A call that was stopped goes on where it ended when it is made again; one that had finished returns its summary at
    once. Both need the same settings and the same files (names, sizes, times of change): anything else is an error
    until ``overwrite`` is given.

    Args:
        images: As ``find_images`` takes them: a folder, a glob pattern, a list file, or a sequence of paths.
        model: The model (its weights, card and preprocessing; it is left as it is), or what ``load_pretrained`` takes.
        out: The file to write, ``.safetensors``; the index ``.index.jsonl`` lies beside it, and during the run the
            folder ``.parts``. Missing folders are made.
        transform: Another preprocessing than the model's; one that subclasses ``EvalTransform`` may cut images its own
            way. It has the model's number of channels.
        layers: Layers of the backbone.
        pool: "gap": (rows, C); "grid": (rows, C, n, n) with 12, 6, 4, 3, 2 cells a side for feature1 … feature5 (the
            windows of mmselfsup's ``MultiPooling`` for a ResNet at 224 px, adaptive elsewhere); "none": the maps,
            (rows, C, H, W).
        batch_size: Images a batch.
        workers: Threads that open images; 0: none beside the caller's; None: two beside a network on the CPU, up to
            16 beside any other.
        engine: Who computes: "torch", "onnxruntime", "openvino", or "auto", the fastest for the device that is
            installed; see ``engines.prepare``. The numbers are the same to 5e-5 standard deviations, not to the
            bit, so a run goes on with the engine it was begun with.
        device: "auto" (this rank's GPU, else the CPU) or a device of PyTorch's.
        dtype: Precision of the computation: "float32", "float16" (stored so too; a CPU computes in float32) or
            "bfloat16" (stored as float32, since NumPy has no bfloat16). Pooling is in float32 always.
        strict: Stop at the first file that cannot be opened, instead of listing it.
        background: As in ``open_image``: the colour under transparency.
        value_range: As in ``open_image``: the values of files of more than 8 bits that become black and white.
        shard_rows: Write ``OUT-00001-of-00004.safetensors`` … of that many rows each, instead of one file.
        overwrite: Replace an output or drop an unfinished run that other settings made, or compute anew.
        progress: Show a bar with images/s.

    Returns:
        The summary (equal on all ranks but for what each has computed).

    Raises:
        InvalidInputError: no images, or an argument that is not accepted; an engine that is not installed or cannot
            do what is asked; or ``out`` is there, made otherwise.
        UnknownNameError: an unknown layer, pooling, engine, dtype or model.
        ImageError: with ``strict``, the first file that cannot be opened; else only if none can.
        StorageError: the disk is full or cannot be written to. What was computed is kept.
    """
    check_options(background, value_range)
    _check_counts(batch_size=(batch_size, 1), workers=(workers, 0), shard_rows=(shard_rows, 1))
    if pool not in POOLS:
        raise unknown("pooling", pool, POOLS)
    from context_pred import engines  # they stand above the network, and this package is where it is

    dtype, names = check_dtype(dtype), Names.of(out)
    engine, place = engines.resolve(engine, device, dtype)
    model = _loaded(model)
    asked = model.backbone.chosen(layers)
    transform = model.transform if transform is None else transform
    if transform.in_channels != model.transform.in_channels:
        raise InvalidInputError(
            f"The transform gives {transform.in_channels} channels, and the model takes {model.transform.in_channels}."
        )
    if transform.in_channels not in (1, 3):
        raise InvalidInputError(
            f"The model has {transform.in_channels} input channels, and files give 1 or 3; "
            f"call model.features on tensors instead."
        )
    options = {
        "model": model.card.name,
        "weights": weights_digest(model),
        "layers": list(asked),
        "pool": pool,
        "batch_size": batch_size,
        "device": place.type,
        "dtype": dtype,
        "background": list(background),
        "value_range": None if value_range is None else list(value_range),
        "shard_rows": shard_rows,
        "transform": repr(transform),
        # Features from before there were engines are PyTorch's, and stay usable.
        **({} if engine == "torch" else {"engine": engine}),
    }
    with joined("What was computed is kept; the same command goes on from there.") as ranks:
        plan = ranks.lead(lambda: begin(images, names, options, overwrite))
        computed, seconds = 0, 0.0
        if not plan.finished:
            network = engines.prepare(model, engine, asked, pool, device=place, dtype=dtype, transform=transform)
            threads = usual_workers(place) if workers is None else workers
            loader = Loader(transform, background, value_range, threads)
            computed, seconds = compute(plan, network, loader, ranks, strict=strict, progress=progress)
            ranks.wait()
            ranks.lead(lambda: finish(plan, asked, shard_rows, strict))
        summary = ranks.lead(lambda: summarize(names))
    if strict and summary.errors:
        path, reason = next(iter(summary.errors.items()))
        raise ImageError(f"{path}: {reason}")
    return replace(summary, computed=computed, seconds=seconds)


def _loaded(model: ContextPredictionModel | Extractable | str | Path) -> ContextPredictionModel | Extractable:
    if not isinstance(model, (str, os.PathLike)):
        return model
    import context_pred  # the zoo stands above extraction, so it is asked through the front door and only for a name

    return context_pred.load_pretrained(str(model))


def weights_digest(model: ContextPredictionModel | Extractable) -> str:
    """Return the SHA-256 of a backbone's keys and numbers: models are told apart by it, whatever they are called.

    Args:
        model: Anything with a ``backbone``.
    """
    digest = hashlib.sha256()
    for name, value in model.backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_counts(**counts: tuple[int | None, int]) -> None:
    for name, (value, least) in counts.items():
        if value is not None:
            check_whole_number(name, value, least)
