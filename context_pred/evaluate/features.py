"""Features of a split with a protocol's preprocessing: computed once, kept on disk, memory-mapped."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from context_pred import extract
from context_pred.data.transforms import EvalTransform, resize
from context_pred.errors import ImageError, InvalidInputError
from context_pred.extract.loading import usual_workers
from context_pred.extract.network import find_device
from context_pred.extract.storage import Names, finished
from context_pred.extract.work import digest_of_files

from .job import Job
from .sources import Source

logger = logging.getLogger("context_pred")

Resampling = Literal["pillow", "opencv", "bicubic"]

_PIECE = 4 << 20  # bytes of a mapped file read at once
_NAMED = 10  # damaged files that an error names
_VERY_LONG = 16  # longer side over shorter side


class DamagedImagesError(ImageError):
    """Images of a labelled set that cannot be opened; ``errors`` is {path: reason}."""

    def __init__(self, errors: dict[str, str]) -> None:
        self.errors = errors
        named = "; ".join(f"{path} ({reason})" for path, reason in list(errors.items())[:_NAMED])
        more = f"; and {len(errors) - _NAMED} more" if len(errors) > _NAMED else ""
        super().__init__(
            f"{len(errors):,} of the images cannot be opened: {named}{more}. Mend or remove them, or leave "
            "them out, said so in the result, with --set skip_damaged=true."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Survive the way from a process that loads images."""
        return type(self), (self.errors,)


@contextlib.contextmanager
def opening(path: Path) -> Iterator[None]:
    """Turn the error of an image that cannot be opened into a DamagedImagesError, which says what may be done."""
    try:
        yield
    except ImageError as error:
        raise DamagedImagesError({str(path): str(error).removeprefix(f"{path}: ")}) from error


@dataclass(frozen=True)
class Preprocessing:
    """From an image file to the square that a network sees; channel order, mean and std are the model's.

    Args:
        size: Side of the square, in px.
        squash: True: the shorter side to ``resize``, then the whole image squashed to the square (VOC SVMs). False:
            the shorter side to ``resize``, then the centre cut out.
        resize: The shorter side, in px; None: ``size`` · 8 / 7, which is 256 for 224.
        resampling: "pillow": bilinear with antialiasing, as mmselfsup 0.x; "opencv": bilinear without, as its 1.x;
            "bicubic": with antialiasing, as 1.x in the linear protocol; only with a centre.

    Raises:
        InvalidInputError: a size below 1, a centre larger than the resized side, or a bicubic squash.
    """

    size: int = 224
    squash: bool = False
    resize: int | None = None
    resampling: Resampling = "pillow"

    def __post_init__(self) -> None:
        """Check the sizes."""
        if self.size < 1:
            raise InvalidInputError(f"size = {self.size}: accepted is 1 px or more.")
        if self.resize is not None and self.resize < (1 if self.squash else self.size):
            raise InvalidInputError(f"resize = {self.resize}: accepted is the size, {self.size} px, or more.")
        if self.squash and self.resampling == "bicubic":
            raise InvalidInputError("resampling = 'bicubic': accepted for squashed images are 'pillow' and 'opencv'.")

    def transform(self, own: EvalTransform) -> ProtocolTransform:
        """Make the transform for a model whose own is ``own``."""
        return ProtocolTransform(
            resize=round(self.size * 8 / 7) if self.resize is None else self.resize,
            crop=self.size,
            mean=own.mean,
            std=own.std,
            channel_order=own.channel_order,
            in_channels=own.in_channels,
            squash=self.squash,
            resampling=self.resampling,
        )


@dataclass(frozen=True)
class ProtocolTransform(EvalTransform):
    """An ``EvalTransform`` that may also squash, and resize without antialiasing; see ``Preprocessing``."""

    squash: bool = False
    resampling: Resampling = "pillow"

    def cut(self, image: Image.Image | Tensor) -> Tensor:
        """Do the first half: resize, then cut the centre or squash; as in ``EvalTransform``."""
        if self.resampling == "opencv":
            pixels = F.pil_to_tensor(self._channels(image)) if isinstance(image, Image.Image) else image
            pixels = F.resize(pixels, [self.resize], antialias=False)
            side = [self.crop, self.crop]
            cut: Tensor = F.resize(pixels, side, antialias=False) if self.squash else F.center_crop(pixels, side)
            return cut
        if self.resampling == "bicubic" and not (isinstance(image, Image.Image) and _very_long(image)):
            image = self._channels(image) if isinstance(image, Image.Image) else image
            resized = F.resize(image, [self.resize], F.InterpolationMode.BICUBIC, antialias=True)
            centre = F.center_crop(resized, [self.crop, self.crop])
            middle: Tensor = F.pil_to_tensor(centre) if isinstance(centre, Image.Image) else centre
            return middle
        if not self.squash:
            return super().cut(image)
        if isinstance(image, Image.Image):
            squashed: Tensor = F.pil_to_tensor(self._squash_pillow(self._channels(image)))
            return squashed
        return resize(resize(image, self.resize), (self.crop, self.crop))

    def _squash_pillow(self, image: Image.Image) -> Image.Image:
        if not _very_long(image):  # a panorama would be enlarged to gigabytes on its way
            image = F.resize(image, [self.resize], antialias=True)
        return image.resize((self.crop, self.crop), Image.Resampling.BILINEAR)


def _very_long(image: Image.Image) -> bool:
    return max(image.size) >= _VERY_LONG * min(image.size)


def of_split(job: Job, split_name: str, layer: str, preprocessing: Preprocessing, pool: str) -> NDArray[np.float32]:
    """Return the features of one layer of a split; see ``Job.features``."""
    split = {"train": job.data.train, "test": job.data.test}[split_name]
    files = split.original or split.files
    layers = job.layers if layer in job.layers else job.source.chosen([layer])
    transform = preprocessing.transform(job.preprocessing)
    pool = job.source.pool(pool)
    folder = job.kept or job.out / "features"
    device = find_device(job.device)
    out = _place(folder, split_name, job.source, files, layer, layers, transform, pool, device.type)
    damaged_file = out.exists() and finished(Names.of(out)) is None
    if damaged_file:
        logger.warning("%s is damaged; its features are computed anew.", out)
    summary = extract.run(
        files,
        job.source.model,
        out=out,
        transform=transform,
        layers=_layers_of(out),
        pool=pool,
        workers=min(job.workers, usual_workers(device)),
        device=device,
        overwrite=damaged_file,
        progress=job.progress,
    )
    kept = set(split.files) if summary.errors else set()
    damaged = {path: reason for path, reason in summary.errors.items() if Path(path) in kept}
    if damaged:
        raise DamagedImagesError(damaged)
    note(job, transform, pool)
    array: NDArray[np.float32] = extract.load(out)[1][layer]  # type: ignore[assignment]  # one file, no shards
    return array


def note(job: Job, transform: ProtocolTransform, pool: str) -> None:
    """Record what images and maps went through, for the result."""
    job.record["transform"] = {
        "size": transform.crop,
        "resize": transform.resize,
        "squash": transform.squash,
        "resampling": transform.resampling,
        "channel_order": transform.channel_order,
        "mean": list(transform.mean),
        "std": list(transform.std),
    }
    job.record["pool"] = pool


def _place(
    folder: Path,
    split_name: str,
    source: Source,
    files: Sequence[Path],
    layer: str,
    layers: Sequence[str],
    transform: EvalTransform,
    pool: str,
    device: str,
) -> Path:
    """Return the file of these features: one that has the layer already, whatever others it has, or a new one."""
    parts = [source.name, source.digest, digest_of_files([str(file) for file in files]), repr(transform), pool]
    parts += [] if device == "cpu" else [device]  # extraction takes another device's numbers for another run's
    key = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:12]
    stem = f"{split_name}-{key}"
    for found in sorted(folder.glob(f"{stem}-*.safetensors")):
        if layer in _layers_of(found):
            return found
    return Names.of(folder / f"{stem}-{'+'.join(layers)}").out


def _layers_of(out: Path) -> tuple[str, ...]:
    return tuple(out.stem.split("-", 2)[2].split("+"))


def read_rows(features: NDArray[np.float32], start: int, stop: int) -> NDArray[np.float32]:
    """Read rows of memory-mapped features and give back the pages that they were read through.

    Args:
        features: (n, …), memory-mapped or not.
        start: The first row.
        stop: The row after the last; may lie beyond the end.

    Returns:
        (rows, values) float32: a copy, each row flattened.
    """
    stop = min(stop, len(features))
    values = math.prod(features.shape[1:])
    rows = np.empty((stop - start, values), np.float32)
    mapped = _mapping(features)
    step = max(1, _PIECE // (4 * values))
    for first in range(start, stop, step):
        last = min(first + step, stop)
        rows[first - start : last - start] = features[first:last].reshape(last - first, -1)
        if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)
    return rows


def _mapping(array: Any) -> mmap.mmap | None:
    while array is not None:
        if isinstance(array, np.memmap):
            found: mmap.mmap | None = array._mmap  # type: ignore[attr-defined]
            return found
        array = getattr(array, "base", None)
    return None
