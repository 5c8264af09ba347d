"""What a ``NeighborIndex`` is made of: the model and its settings, which files are new, and their features."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from context_pred import extract
from context_pred.errors import ImageError, InvalidInputError
from context_pred.extract.work import digest_of_files

from .grid import PatchGrid
from .index_folder import ADDING, Source
from .patches import extract_patches

if TYPE_CHECKING:
    from context_pred.model import ContextPredictionModel


def settings_of(
    model: ContextPredictionModel, layer: str, pool: str, grid: PatchGrid | None, kind: str
) -> dict[str, Any]:
    """Return what tells indices apart: the kind, the model by its weights, and what is compared."""
    return {
        "kind": kind,
        "model": model.card.name,
        "weights": extract.weights_digest(model),
        "transform": repr(model.transform),
        "layer": layer,
        "pool": pool,
        "patches": grid is not None,
        "grid": None if grid is None else asdict(grid) | {"sides": list(grid.sides)},
    }


def check_model(folder: Path, settings: Mapping[str, Any], model: ContextPredictionModel) -> None:
    """Raise InvalidInputError where an index was made with other weights or another preprocessing."""
    now = {"weights": extract.weights_digest(model), "transform": repr(model.transform)}
    if any(settings.get(name) != value for name, value in now.items()):
        raise InvalidInputError(
            f"The index in {folder} was made with another model: {settings.get('model', 'none')}, and not these "
            f"weights and preprocessing of {model.card.name}."
        )


def check_enough(k: int, images: int, own: bool) -> None:
    """Raise InvalidInputError where there are fewer than k images beside the query's own."""
    there = images - own
    if k > there:
        raise InvalidInputError(
            f"k={k} neighbours, and there {'is' if there == 1 else 'are'} {there} "
            f"{'other ' if own else ''}image{'' if there == 1 else 's'} to search; accepted: at most that many."
        )


def check_picture(one: object) -> None:
    """Raise InvalidInputError unless something is the path of a file, or a Pillow image of a pixel or more."""
    if isinstance(one, str | os.PathLike) or (isinstance(one, Image.Image) and 0 not in one.size):
        return
    size = getattr(one, "shape", None) or getattr(one, "size", None)
    large = f" and size {tuple(size)}" if isinstance(size, tuple) else ""
    raise InvalidInputError(
        f"A picture of type {type(one).__name__}{large}; accepted: the path of a file, or a Pillow image of a pixel or "
        "more; of a uint8 array (h, w, 3) Image.fromarray(array)."
    )


def new_files(found: Iterable[Path], known: Iterable[Mapping[str, Any]], folder: Path) -> list[str]:
    """Return the files that an index does not have, once each, absolute; what lies in its own folder is none.

    Args:
        found: The files asked for.
        known: The index' records: {"path", "size", "time"}, "error" in those that could not be opened.
        folder: The index' folder.

    Raises:
        InvalidInputError: files that are in the index have changed since.
    """
    records = {os.path.realpath(line["path"]): line for line in known}
    own = os.path.realpath(folder) + os.sep
    new: dict[str, str] = {}
    changed = []
    for path in found:
        at = os.path.realpath(path)
        record = records.get(at)
        if record is None or ("error" in record and not _unchanged(record)):
            if not at.startswith(own):
                new.setdefault(at, os.path.abspath(path))
        elif not _unchanged(record):
            changed.append(path)
    if changed:
        raise InvalidInputError(
            f"{len(changed)} of the images in the index in {folder} have changed since, {changed[0]} first; "
            "build it anew with overwrite=True, or remove it."
        )
    return list(new.values())


def extracted(
    new: Sequence[str],
    model: ContextPredictionModel,
    folder: Path,
    *,
    layer: str,
    pool: str,
    grid: PatchGrid | None,
    batch_size: int,
    workers: int | None,
    device: str | torch.device,
    progress: bool,
) -> Source:
    """Compute the features of files, or of their patches, into a folder of their own inside the index'.

    The folder's name tells the files and the options, so that the same call goes on with what a stopped one left.

    Raises:
        ImageError: no file can be opened.
        StorageError: the folder cannot be written to.
    """
    stamps = {path: _stamp(path) for path in new}
    told = f"{digest_of_files(new)} {batch_size} {device}"
    work = folder / f"{ADDING}{hashlib.sha256(told.encode()).hexdigest()[:16]}"
    options: dict[str, Any] = {"pool": pool, "workers": workers, "device": device, "progress": progress}
    counts: Sequence[int]
    vectors: Any
    try:
        if grid is not None:
            patches = extract_patches(new, model, out=work, grid=grid, layer=layer, batch_size=batch_size, **options)
            good, errors, counts = patches.paths, patches.errors, np.diff(patches.starts).tolist()
            vectors, boxes = patches.features, patches.boxes
        else:
            summary = extract.run(new, model, out=work / "features", layers=(layer,), batch_size=batch_size, **options)
            good, errors, counts = summary.paths, summary.errors, [1] * summary.rows
            vectors, boxes = extract.load(work / "features")[1][layer], None
    except ImageError:
        shutil.rmtree(work, ignore_errors=True)
        raise
    images = [{"path": path, "rows": rows, **stamps[path]} for path, rows in zip(good, counts, strict=True)]
    images += [{"path": path, "error": reason, **stamps[path]} for path, reason in errors.items()]
    return Source(vectors, boxes, images)


def remove_extracted(folder: Path) -> None:
    """Remove what ``extracted`` left in an index' folder, finished or not."""
    for path in folder.glob(f"{ADDING}*"):
        shutil.rmtree(path, ignore_errors=True)


def _stamp(path: str | Path) -> dict[str, int | None]:
    """Size and time of change of a file, so that one that changes is noticed."""
    try:
        found = os.stat(path)
        return {"size": found.st_size, "time": found.st_mtime_ns}
    except OSError:
        return {"size": None, "time": None}


def _unchanged(record: Mapping[str, Any]) -> bool:
    return all(record.get(name) == value for name, value in _stamp(record["path"]).items())
