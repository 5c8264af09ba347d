"""The patches of photographs and their features: a grid of patches at several scales, computed once, kept on disk.

Source: Doersch, Gupta, Efros, ICCV 2015, section 4.4: patches are compared by normalised correlation, and are not
degraded when features are extracted (METHOD A5.1, A5.5). How densely they lie is not stated; here a patch begins at
every half patch, so that each has touching neighbours.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from tqdm import tqdm

from context_pred.data.files import find_images
from context_pred.data.images import open_image
from context_pred.errors import ImageError, InvalidInputError, check_whole_number, unknown
from context_pred.extract import weights_digest
from context_pred.extract.loading import usual_workers
from context_pred.extract.network import Network, find_device
from context_pred.extract.storage import (
    Names,
    assemble,
    part_is_there,
    read_header,
    read_records,
    read_settings,
    remove_parts,
    write_part,
    write_settings,
)  # fmt: skip
from context_pred.extract.work import differences, digest_of_files
from context_pred.geometry import scaled

from .grid import Floats, PatchGrid, too_long, usual_grid

if TYPE_CHECKING:
    from context_pred.model import ContextPredictionModel

__all__ = ["Patches", "extract_patches", "load_patches", "patch_features"]

LAYER = "feature3"
POOLS = ("gap", "quarters", "none")
POOL = "quarters"

_AT_ONCE = 256  # patches


def loaded(model: ContextPredictionModel | str | Path) -> ContextPredictionModel:
    """Return the model, or load the one of that name or path."""
    if isinstance(model, str | os.PathLike):
        from context_pred.zoo import load_pretrained

        return load_pretrained(str(model))
    return model


def normalized(rows: NDArray[Any]) -> Floats:
    """Prepare vectors for normalised correlation, which then is the dot product.

    Args:
        rows: (n, …); a row, flattened, is one vector.

    Returns:
        float32 (n, D): each with its mean subtracted and divided by its length; one of equal values becomes 0.
    """
    vectors = torch.from_numpy(np.array(rows, dtype=np.float32)).flatten(1)
    # By their largest first: equal values then have an exact mean, and no square leaves the range of float32.
    largest = vectors.abs().amax(1, keepdim=True)
    vectors /= torch.where(largest == 0, 1, largest)
    return torch.nn.functional.normalize(vectors - vectors.mean(1, keepdim=True), dim=1).numpy()


class _Quarters(Network):
    """The mean over each quarter of a patch: a little of how it is laid out, for four times the numbers of its mean."""

    def __call__(self, pixels: Tensor) -> dict[str, NDArray[np.floating]]:
        maps = super().__call__(pixels)
        return {layer: adaptive_avg_pool2d(torch.from_numpy(one), 2).numpy() for layer, one in maps.items()}


def network_of(
    model: ContextPredictionModel, layer: str = LAYER, pool: str = "gap", device: str | torch.device = "auto"
) -> Network:
    """Return a private copy of the model's backbone, laid out for speed, that gives one layer pooled over a patch.

    Raises:
        UnknownNameError: an unknown layer or pooling.
    """
    if pool not in POOLS:
        raise unknown("pooling of a patch", pool, POOLS)
    layers, place = model.backbone.chosen((layer,)), find_device(device)
    kind = _Quarters if pool == "quarters" else Network
    return kind(model.backbone, model.transform, layers, "gap" if pool == "gap" else "none", place, "float32")


def patch_features(
    model: ContextPredictionModel,
    image: Image.Image,
    grid: PatchGrid,
    *,
    layer: str = LAYER,
    pool: str = "gap",
    device: str | torch.device = "auto",
    network: Network | None = None,
) -> tuple[Floats, Floats]:
    """Compute the features of all patches of one photograph.

    Args:
        model: The model.
        image: The photograph, RGB.
        grid: Where its patches lie.
        layer: The layer.
        pool: "gap": the mean over the patch, (n, C); "quarters": over each of its quarters, (n, 4 C); "none": every
            cell, flattened.
        device: Where to compute.
        network: What ``network_of`` made of the same arguments, so that it is made once.

    Returns:
        Features float32 (n, D), not normalised, and boxes float32 (n, 4): x1, y1, x2, y2 in px of the photograph.

    Raises:
        UnknownNameError: no such layer or pooling.
        InvalidInputError: a device that is not here.
    """
    network = network or network_of(model, layer, pool, device)
    pixels = cut_all(image, grid, model.transform.in_channels)
    return features_of(network, pixels), grid.boxes(image.height, image.width)


def cut_all(image: Image.Image, grid: PatchGrid, channels: int) -> Tensor:
    """Cut every patch of the grid out of a photograph: uint8 (n, C, patch, patch)."""
    parts = []
    for size in grid.sizes(image.height, image.width):
        pixels = scaled(image, size, channels)
        windows = pixels.unfold(1, grid.patch, grid.stride).unfold(2, grid.patch, grid.stride)
        parts.append(windows.permute(1, 2, 0, 3, 4).flatten(0, 1))
    return torch.cat(parts)


def features_of(network: Network, pixels: Tensor) -> Floats:
    """Run patches, uint8 (n, C, patch, patch), through the network in lots: float32 (n, D)."""
    lots = [network(lot)[network.layers[0]] for lot in torch.split(pixels, _AT_ONCE)]
    return np.concatenate([lot.reshape(len(lot), -1) for lot in lots])


@dataclass(frozen=True)
class Patches:
    """The patches of many photographs, memory-mapped.

    Attributes:
        folder: Where they lie.
        paths: The photographs.
        sizes: int64 (photographs, 2): height and width in px.
        starts: int64 (photographs + 1): the rows of photograph i are ``starts[i]`` … ``starts[i + 1]``.
        features: float32 (n, D), as they came out of the network.
        boxes: float32 (n, 4): x1, y1, x2, y2 in px of the photograph.
        grid: Where patches lie.
        settings: What they were made with.
        errors: {path: reason} of the files that could not be opened.
    """

    folder: Path
    paths: tuple[str, ...]
    sizes: NDArray[np.int64]
    starts: NDArray[np.int64]
    features: Floats
    boxes: Floats
    grid: PatchGrid
    settings: dict[str, Any]
    errors: dict[str, str]

    def __len__(self) -> int:
        """Return how many patches."""
        return len(self.features)

    def image_of(self, rows: NDArray[np.integer] | Sequence[int]) -> NDArray[np.int64]:
        """Return the number of the photograph of each row.

        Args:
            rows: Numbers of patches, int (n,).
        """
        return np.searchsorted(self.starts, np.asarray(rows), side="right") - 1

    @cached_property
    def scales(self) -> list[list[tuple[int, int, int]]]:
        """Of each photograph and scale: (first row, rows of patches, columns of patches)."""
        found = []
        for (height, width), start in zip(self.sizes.tolist(), self.starts.tolist(), strict=False):
            cells = self.grid.cells(height, width)
            firsts = np.cumsum([start, *(rows * columns for rows, columns in cells)])
            found.append([(int(first), *cell) for first, cell in zip(firsts, cells, strict=False)])
        return found


def extract_patches(
    images: str | Path | Sequence[str | Path],
    model: ContextPredictionModel,
    *,
    out: str | Path,
    grid: PatchGrid | None = None,
    layer: str = LAYER,
    pool: str = "gap",
    batch_size: int = 8,
    workers: int | None = None,
    device: str | torch.device = "auto",
    overwrite: bool = False,
    progress: bool = True,
) -> Patches:
    """Compute the features of all patches of photographs, and keep them; a stopped call goes on when made again.

    Args:
        images: As ``find_images`` takes them.
        model: The model.
        out: The folder to write into.
        grid: Where patches lie; None: ``usual_grid``.
        layer: The layer.
        pool: As in ``patch_features``.
        batch_size: Photographs that are kept at once.
        workers: Threads that open photographs; None: as in ``extract.run``.
        device: Where to compute.
        overwrite: Replace what was made otherwise.
        progress: Show a bar.

    Raises:
        InvalidInputError: no images, an argument that is not accepted, or ``out`` holds what was made otherwise.
        ImageError: no file can be opened.
        StorageError: the disk is full or cannot be written to. What was computed is kept.
    """
    check_whole_number("batch_size", batch_size)
    if workers is not None:
        check_whole_number("workers", workers, 0)
    grid = grid or usual_grid(model)
    network = network_of(model, layer, pool, device)
    names = Names.of(Path(out) / "patches")
    paths = [str(path) for path in find_images(images) if Path(out).resolve() not in path.resolve().parents]
    if not paths:
        raise InvalidInputError(f"No images in {images!r} but what lies in {out}.")
    settings = {
        "images": len(paths),
        "files": digest_of_files(paths),
        "model": model.card.name,
        "weights": weights_digest(model),
        "layer": layer,
        "pool": pool,
        "grid": asdict(grid) | {"sides": list(grid.sides)},
        "batch_size": batch_size,
    }
    if not _ready(names, settings, overwrite):
        lots = [paths[first : first + batch_size] for first in range(0, len(paths), batch_size)]
        threads = usual_workers(network.device) if workers is None else workers
        _compute(lots, names, network, grid, model.transform.in_channels, max(threads, 1), progress)
        _finish(lots, names, settings)
    return load_patches(out)


def _ready(names: Names, settings: dict[str, Any], overwrite: bool) -> bool:
    """Tell whether all has been done before; else make room for it, or go on with what is there."""
    undone = read_settings(names)
    try:
        done = _settings(names.out) if names.out.is_file() and not overwrite else None
    except InvalidInputError as error:
        raise InvalidInputError(f"{error} Make the patches anew with overwrite=True (--overwrite).") from error
    if done == settings:
        return True
    if undone != settings:
        before = undone or done
        if before is not None and not overwrite:
            raise InvalidInputError(
                f"{names.out.parent} holds patches made with other settings: {differences(before, settings)}. "
                "Overwrite them with overwrite=True (--overwrite), or choose another folder."
            )
        remove_parts(names)
        write_settings(names, settings)
    return False


def _settings(path: Path) -> dict[str, Any]:
    metadata = read_header(path)[1]
    try:
        settings: dict[str, Any] = json.loads(metadata["context_pred"])
    except (KeyError, ValueError) as error:
        raise InvalidInputError(f"{path} holds no patches of context_pred.") from error
    return settings


def _compute(
    lots: Sequence[Sequence[str]],
    names: Names,
    network: Network,
    grid: PatchGrid,
    channels: int,
    threads: int,
    progress: bool,
) -> None:
    missing = [number for number in range(len(lots)) if not part_is_there(names.part(number))]
    left = sum(len(lots[number]) for number in missing)
    total = sum(map(len, lots))
    with tqdm(total=total, initial=total - left, unit=" images", desc="patches", disable=not progress) as bar:
        for number, opened in _opened(lots, missing, grid, channels, threads):
            good = [one for one in opened if isinstance(one, _Cut)]
            arrays = {}
            if good:
                features = features_of(network, torch.cat([one.pixels for one in good]))
                boxes = np.concatenate([grid.boxes(one.height, one.width) for one in good])
                arrays = {"features": features, "boxes": boxes}
            records = [{"height": one.height, "width": one.width, "rows": len(one.pixels)} if isinstance(one, _Cut)
                       else {"error": one} for one in opened]  # fmt: skip
            write_part(names.part(number), arrays, records)
            bar.update(len(opened))


@dataclass(frozen=True)
class _Cut:
    pixels: Tensor
    height: int
    width: int


def _opened(
    lots: Sequence[Sequence[str]], numbers: Sequence[int], grid: PatchGrid, channels: int, threads: int
) -> Iterator[tuple[int, list[_Cut | str]]]:
    """Open the photographs of some lots in threads, at most two lots ahead; of a damaged one, say why."""

    def cut(path: str) -> _Cut | str:
        try:
            image = open_image(path)
        except ImageError as error:
            return str(error).removeprefix(f"{path}: ")
        problem = too_long(*image.size)
        if problem:
            return problem
        return _Cut(cut_all(image, grid, channels), image.height, image.width)

    Image.init()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="context-pred-open")
    coming: deque[tuple[int, list[Future[_Cut | str]]]] = deque()
    try:
        for number in numbers:
            coming.append((number, [pool.submit(cut, path) for path in lots[number]]))
            if len(coming) > 2:
                first, futures = coming.popleft()
                yield first, [future.result() for future in futures]
        for first, futures in coming:
            yield first, [future.result() for future in futures]
    finally:
        pool.shutdown(cancel_futures=True)


def _finish(lots: Sequence[Sequence[str]], names: Names, settings: dict[str, Any]) -> None:
    lines = [
        {"path": path, **record}
        for number, lot in enumerate(lots)
        for path, record in zip(lot, read_records(names.part(number)), strict=True)
    ]
    errors = [line for line in lines if "error" in line]
    if len(errors) == len(lines):
        remove_parts(names)
        raise ImageError(f"None of {len(lines)} files could be opened. {errors[0]['path']}: {errors[0]['error']}")
    assemble(names, len(lots), lines, ("features", "boxes"), None, {"context_pred": json.dumps(settings)})


def load_patches(folder: str | Path) -> Patches:
    """Open what ``extract_patches`` left in a folder.

    Args:
        folder: The ``out`` of that call.

    Raises:
        InvalidInputError: there are no patches, or they are damaged.
    """
    names = Names.of(Path(folder) / "patches")
    try:
        stored, _ = read_header(names.out)
        settings = _settings(names.out)
        lines = [json.loads(line) for line in names.index.read_text(encoding="utf-8").splitlines()]
        good = [line for line in lines if "error" not in line]
        starts = np.cumsum([0, *(line["rows"] for line in good)])
        grid = PatchGrid(**settings["grid"])
        maps = {
            name: np.memmap(names.out, "<f4", "r", stored[name].begin, stored[name].shape)
            for name in ("features", "boxes")
        }
    except FileNotFoundError as error:
        raise InvalidInputError(f"{folder} holds no patches: {error.filename} is missing.") from error
    except (KeyError, ValueError, TypeError) as error:
        raise InvalidInputError(f"{folder} holds patches that are damaged: {error!r}.") from error
    if starts[-1] != len(maps["features"]) or starts[-1] != len(maps["boxes"]):
        raise InvalidInputError(
            f"{folder}: {len(maps['features'])} features, and {names.index.name} names {starts[-1]}."
        )
    return Patches(
        Path(folder),
        tuple(line["path"] for line in good),
        np.array([(line["height"], line["width"]) for line in good], np.int64).reshape(-1, 2),
        starts.astype(np.int64),
        maps["features"],
        maps["boxes"],
        grid,
        settings,
        {line["path"]: line["error"] for line in lines if "error" in line},
    )
