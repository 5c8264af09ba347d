"""Where objects may be: selective search's boxes, computed once and kept, or read from a file.

Source: Uijlings et al., "Selective Search for Object Recognition" (IJCV 2013), as R-CNN uses it (``rcnn``,
``selective_search/selective_search_boxes.m``, fast mode): the image 500 px wide; HSV and Lab; Felzenszwalb and
Huttenlocher's segmentation with k = 50 and 100, its smallest segment k, σ .8; merged by colour + texture + size + fill,
and by texture + size + fill; boxes below 20 px a side left out. OpenCV contrib computes it; its boxes are not those of
the authors' program to the pixel.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from context_pred.data.images import open_image
from context_pred.errors import InvalidInputError, storing
from context_pred.extract.work import digest_of_files
from context_pred.extras import need
from context_pred.ranks import Ranks
from context_pred.training import keys

from ..features import opening
from ..kept import arrays, digest
from ..parallel import run_jobs
from .boxes import BoxedImage


def at_least_one(options: Any, *names: str) -> None:
    """Raise InvalidInputError where one of these options is below 1."""
    for name in names:
        if getattr(options, name) < 1:
            raise InvalidInputError(f"{name} = {getattr(options, name)}: accepted is 1 or more.")


def shares(options: Any, *names: str) -> None:
    """Raise InvalidInputError where one of these options is no share."""
    for name in names:
        if not 0 <= getattr(options, name) <= 1:
            raise InvalidInputError(f"{name} = {getattr(options, name)}: accepted is a share from 0 to 1.")


Boxes = NDArray[np.float32]
"""(n, 4): x1, y1, x2, y2 in px of the image, counted from 0; x2 and y2 are the last pixel within."""

CHUNK = 16
"""Images whose boxes are kept together."""

_MODES: dict[str, tuple[tuple[str, ...], tuple[int, ...], tuple[str, ...]]] = {
    "fast": (("HSV", "Lab"), (50, 100), ("CTZF", "TZF")),
    "single": (("HSV",), (100,), ("CTZF",)),
}
"""Mode → colour spaces, k, and strategies of merging: Colour, Texture, siZe, Fill."""

_STRATEGY = {"C": "Color", "T": "Texture", "Z": "Size", "F": "Fill"}


@dataclass(frozen=True, kw_only=True)
class ProposalOptions:
    """Where proposals come from.

    Args:
        proposals_train: A file of them for the training images: ``voc_2007_trainval.mat``, as Fast R-CNN and R-CNN
            publish it, or an .npz of arrays named as the images, without suffix: (n, 4) x1, y1, x2, y2, counted from 0,
            the last pixel within. Empty: selective search.
        proposals_test: The same for the test images, as ``voc_2007_test.mat``.
        search: "fast" as R-CNN; "single": one segmentation in one colour space, with a tenth of the boxes.
        search_width: Width that an image is resized to for the search, in px.
        smallest_box: Sides below are left out, in px of the resized image.
        proposals: Boxes an image, at the most, drawn at random where there are more; 0: all, about 2,000.

    Raises:
        InvalidInputError: an option out of its range.
    """

    proposals_train: str = ""
    proposals_test: str = ""
    search: Literal["fast", "single"] = "fast"
    search_width: int = 500
    smallest_box: int = 20
    proposals: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.search_width < 50:
            raise InvalidInputError(f"search_width = {self.search_width}: accepted is 50 px or more.")
        if self.proposals < 0 or self.smallest_box < 0:
            raise InvalidInputError(
                f"proposals = {self.proposals}, smallest_box = {self.smallest_box}: accepted is 0 or more."
            )


def of_images(
    images: Sequence[BoxedImage],
    options: ProposalOptions,
    split: str,
    kept: Path,
    *,
    workers: int = 1,
    progress: bool = False,
    ranks: Ranks | None = None,
    seed: int = 0,
) -> list[Boxes]:
    """Return the proposals of every image, from a file or by selective search.

    Args:
        images: A split.
        options: Where from.
        split: "train" or "test".
        kept: A folder that keeps what was searched, a few images at a time, so that the same call goes on after an
            interruption and returns at once after the end. Other splits and options may share it.
        workers: Processes.
        progress: Show a bar on stderr.
        ranks: Rank 0 searches, the others wait; None: one process.
        seed: Of the choice where there are too many.

    Raises:
        InvalidInputError: OpenCV contrib is not installed; a file that cannot be read, or is of other images.
        ImageError: an image cannot be opened.
        StorageError: the folder cannot be written to.
    """
    file = options.proposals_train if split == "train" else options.proposals_test
    if file:
        found = from_file(Path(file), images)
    else:
        need("cv2.ximgproc", "selective search")
        files = _files(images, options, kept / "proposals", split)
        (ranks or Ranks()).lead(lambda: _compute(images, options, files, workers, progress, split))
        found = _loaded(files)
    return [_some(boxes, options.proposals, seed, number) for number, boxes in enumerate(found)]


def _some(boxes: Boxes, most: int, *key: int) -> Boxes:
    if not most or len(boxes) <= most:
        return boxes
    chosen = np.random.default_rng(keys.seed(*key)).permutation(len(boxes))[:most]
    return boxes[np.sort(chosen)]


def search(image: NDArray[np.uint8], options: ProposalOptions = ProposalOptions()) -> Boxes:  # it is frozen
    """Selective search in one image.

    OpenCV orders the boxes by the C library's random numbers; here they come sorted, so that the same image gives the
    same array.

    Args:
        image: (height, width, 3), RGB.
        options: Mode, width, smallest box.

    Returns:
        (n, 4), each once, sorted by their edges.
    """
    cv2 = need("cv2", "selective search")
    tools = need("cv2.ximgproc", "selective search").segmentation
    cv2.setNumThreads(1)
    height, width = image.shape[:2]
    size = (options.search_width, max(1, round(height * options.search_width / width)))
    resized = cv2.resize(np.ascontiguousarray(image[..., ::-1]), size, interpolation=cv2.INTER_LINEAR)
    spaces, sizes, strategies = _MODES[options.search]
    engine = tools.createSelectiveSearchSegmentation()
    engine.setBaseImage(resized)
    for space in spaces:
        engine.addImage(cv2.cvtColor(resized, getattr(cv2, f"COLOR_BGR2{space}")))
    for k in sizes:
        engine.addGraphSegmentation(tools.createGraphSegmentation(0.8, k, k))
    for names in strategies:
        parts = [getattr(tools, f"createSelectiveSearchSegmentationStrategy{_STRATEGY[name]}")() for name in names]
        engine.addStrategy(tools.createSelectiveSearchSegmentationStrategyMultiple(*parts))
    found = np.asarray(engine.process(), np.int64).reshape(-1, 4)
    found = np.unique(found[(found[:, 2:] >= options.smallest_box).all(1)], axis=0)
    corners = np.concatenate([found[:, :2], found[:, :2] + found[:, 2:] - 1], axis=1)
    scale = np.array([width / size[0], height / size[1]] * 2)
    boxes: Boxes = np.minimum(corners * scale, np.array([width - 1, height - 1] * 2)).astype(np.float32)
    return boxes


def _searched(paths: Sequence[str], options: ProposalOptions, target: str) -> None:
    """Search some images, and keep their boxes in a file."""
    found = []
    for path in paths:
        with opening(Path(path)):
            image = np.asarray(open_image(path))
        found.append(search(image, options))
    draft = Path(f"{target}.{os.getpid()}.tmp")
    with storing(Path(target)):
        with open(draft, "wb") as file:
            np.savez(file, boxes=np.concatenate([np.zeros((0, 4), np.float32), *found]), counts=[len(b) for b in found])
        os.replace(draft, target)


def _files(images: Sequence[BoxedImage], options: ProposalOptions, kept: Path, split: str) -> list[Path]:
    """Where the boxes of each lot of images are kept: the digest of the images and of how they are searched tells."""
    how = (options.search, options.search_width, options.smallest_box, need("cv2", "selective search").__version__)
    folder = kept / f"{split}-{digest(digest_of_files([str(image.path) for image in images]), how)}"
    return [folder / f"{number:05}.npz" for number in range(-(-len(images) // CHUNK))]


def _compute(
    images: Sequence[BoxedImage],
    options: ProposalOptions,
    files: Sequence[Path],
    workers: int,
    progress: bool,
    split: str,
) -> None:
    with storing(files[0].parent):
        files[0].parent.mkdir(parents=True, exist_ok=True)
    paths = [str(image.path) for image in images]
    lots = [(paths[k * CHUNK : (k + 1) * CHUNK], options, str(file)) for k, file in enumerate(files)]
    jobs = [lot for lot, file in zip(lots, files, strict=True) if not file.is_file()]
    title = f"selective search, {split}, lots of {CHUNK} images"
    done = len(lots) - len(jobs)
    for _ in run_jobs(_searched, jobs, workers, title=title, done=done, progress=progress, unit=" lots"):
        pass


def _loaded(files: Sequence[Path]) -> list[Boxes]:
    found: list[Boxes] = []
    for file in files:
        stored = arrays(file)
        found += np.split(stored["boxes"], np.cumsum(stored["counts"])[:-1])
    return found


def from_file(path: Path, images: Sequence[BoxedImage]) -> list[Boxes]:
    """Read proposals that were published, or computed elsewhere.

    Fast R-CNN's and R-CNN's ``selective_search_data`` (``voc_2007_trainval.mat`` …) hold a cell array ``boxes``, a cell
    an image: columns y1, x1, y2, x2, counted from 1, the last pixel within. Source: ``fast-rcnn``,
    ``lib/datasets/pascal_voc.py``, ``_load_selective_search_roidb``. Where the file has ``images`` too, the names are
    held against those of the split; else its order must be the list's.

    Args:
        path: A .mat up to version 7, or an .npz as ``ProposalOptions`` says.
        images: A split, in the order of its list.

    Raises:
        InvalidInputError: no such file, one that cannot be read, or one of other images.
    """
    if not path.is_file():
        raise InvalidInputError(f"The proposals {path} are missing.")
    names = [image.path.stem for image in images]
    try:
        by_name, rows = _published(path) if path.suffix == ".mat" else (_own(path), None)
    except (ValueError, KeyError, OSError, NotImplementedError, IndexError) as error:
        raise InvalidInputError(
            f"{path} cannot be read as proposals: {error}. Accepted: a .mat with boxes (y1, x1, y2, x2 from 1), or an "
            ".npz of arrays (n, 4) named as the images."
        ) from error
    if rows is not None:
        if len(rows) != len(names):
            raise InvalidInputError(f"{path} has proposals of {len(rows):,} images, and the split has {len(names):,}.")
        return rows
    missing = [name for name in names if name not in by_name]
    if missing:
        raise InvalidInputError(
            f"{path} has no proposals of {len(missing):,} of {len(names):,} images: {', '.join(missing[:5])}"
            f"{' …' if len(missing) > 5 else '.'}"
        )
    return [by_name[name] for name in names]


def _published(path: Path) -> tuple[dict[str, Boxes], list[Boxes] | None]:
    """Boxes by name where the file names its images, else in its order."""
    content: dict[str, Any] = need("scipy.io", "reading .mat").loadmat(path)
    rows = [np.asarray(cell, np.float32).reshape(-1, 4)[:, [1, 0, 3, 2]] - 1 for cell in content["boxes"].ravel()]
    if "images" not in content:
        return {}, rows
    names = [str(np.asarray(cell).ravel()[0]) for cell in content["images"].ravel()]
    return dict(zip(names, rows, strict=True)), None


def _own(path: Path) -> dict[str, Boxes]:
    with np.load(path) as stored:
        return {name: np.asarray(stored[name], np.float32).reshape(-1, 4) for name in stored.files}
