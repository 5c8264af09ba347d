"""VOC's layout: the devkit of 2007 and 2012, and any folder that is laid out like one of its years."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from context_pred.errors import InvalidInputError, did_you_mean
from context_pred.evaluate.layouts import VOC_TEST, VOC_TRAIN, lines_of

from .boxes import BoxedImage, BoxedImages, DataOptions

VOC2012 = "VOCtrainval_11-May-2012.tar, http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""VOC's own, in its order."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG", ".bmp", ".tif", ".tiff", ".webp")

_YEAR = re.compile(r"VOC20\d\d")
_FLAG = re.compile(r"\s+(1|0|-1)$")
_NAMED = 5


@dataclass(frozen=True)
class _Marked:
    """One object of an annotation, as it stands there."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


def shows(folder: Path) -> bool:
    """Tell whether a folder has VOC's layout."""
    return _devkit(folder) is not None or _is_year(folder)


def _is_year(folder: Path) -> bool:
    return (folder / "Annotations").is_dir() and (folder / "ImageSets" / "Main").is_dir()


def _devkit(folder: Path) -> Path | None:
    """The folder that holds VOC2007: the one given, its VOCdevkit, or the one above where VOC2007 itself was given."""
    above = [folder.resolve().parent] if folder.resolve().name == "VOC2007" else []
    return next((path for path in (folder, folder / "VOCdevkit", *above) if _is_year(path / "VOC2007")), None)


def read(folder: Path, options: DataOptions) -> BoxedImages:
    """Read a folder in VOC's layout.

    A devkit is learned from trainval of 2007 and 2012 (16,551 images) and tested on test of 2007 (4,952); other
    folders as their lists say. Boxes without an area, and those outside their image, are left out and counted in the
    notes. Classes are VOC's twenty in a devkit, else the names found, in alphabetical order.

    Raises:
        InvalidInputError: a list, an annotation or an image is missing (and where it is published), an annotation
            that cannot be read, or an object of a class that is none of VOC's in a devkit.
    """
    devkit = _devkit(folder)
    if devkit is None:
        return _read_own(folder, options)
    first, second = devkit / "VOC2007", devkit / "VOC2012"
    missing = f"{second} is missing; it is published in {VOC2012}. Train on 2007 alone with --set years=2007."
    both = second.is_dir() if not options.years else options.years == "2007+2012"
    if both and not _is_year(second):
        raise InvalidInputError(missing)
    train, test = options.lists.split(",") if _asked(options) else ("trainval", "test")
    gap = _Gaps()
    learned = _split(first, train, VOC_TRAIN, options, gap)
    if both:
        learned += _split(second, train, VOC2012, options, gap)
    tested = _split(first, test, VOC_TEST, options, gap)
    strange = sorted({one.name for _, _, marks in learned + tested for one in marks} - set(CLASSES))
    if strange:
        raise InvalidInputError(
            f"{devkit}: {strange[0]!r} is none of VOC's twenty classes.{did_you_mean(strange[0], CLASSES)}"
        )
    parts = [_images(part, CLASSES, options, gap) for part in (learned, tested)]
    years = "2007+2012" if both else "2007"
    note = f"{devkit}: VOC {years} {train} {len(parts[0]):,} images, 2007 {test} {len(parts[1]):,}, 20 classes."
    lacks = "" if both or options.years else missing
    kind = "voc0712" if both else "voc2007"
    return BoxedImages(folder.name, kind, CLASSES, parts[0], parts[1], (note, *gap.notes()), lacks)


def _read_own(folder: Path, options: DataOptions) -> BoxedImages:
    main = folder / "ImageSets" / "Main"
    there = {path.stem for path in main.glob("*.txt")}
    if _asked(options):
        train, test = options.lists.split(",")
    else:
        test = "val" if "val" in there and "test" not in there else "test"
        train = "trainval" if "trainval" in there and test == "test" else "train"
        train += "+val" if train == "train" and test == "test" and "val" in there else ""
    gap = _Gaps()
    learned, tested = (_split(folder, names, "", options, gap) for names in (train, test))
    classes = tuple(sorted({one.name for _, _, marks in learned + tested for one in marks}))
    if not classes:
        raise InvalidInputError(f"{folder / 'Annotations'}: no object is marked in any image.")
    parts = [_images(part, classes, options, gap) for part in (learned, tested)]
    note = (
        f"{folder}: VOC layout, {train} {len(parts[0]):,} images with {sum(map(len, parts[0])):,} boxes, {test} "
        f"{len(parts[1]):,} with {sum(map(len, parts[1])):,}, classes {', '.join(classes)}."
    )
    return BoxedImages(folder.name, "voc", classes, parts[0], parts[1], (note, *gap.notes()))


def _asked(options: DataOptions) -> bool:
    if options.lists and (options.lists.count(",") != 1 or not all(options.lists.split(","))):
        raise InvalidInputError(f"lists = {options.lists!r}: accepted is TRAIN[+MORE],TEST, as train+val,test.")
    return bool(options.lists)


class _Gaps:
    """What was left out, to be said in notes."""

    def __init__(self) -> None:
        self.empty: list[str] = []
        self.outside: list[str] = []

    def notes(self) -> list[str]:
        kinds = ((self.empty, "without an area"), (self.outside, "outside of their image"))
        return [
            f"Boxes {what}, left out: {len(found):,}, of {', '.join(found[:_NAMED])}"
            f"{' …' if len(found) > _NAMED else '.'}"
            for found, what in kinds
            if found
        ]


_Read = tuple[Path, tuple[int, int], tuple[_Marked, ...]]


def _split(root: Path, lists: str, archive: str, options: DataOptions, gap: _Gaps) -> list[_Read]:
    """Read the images of lists, joined by +: (path, (width, height), objects)."""
    found: list[_Read] = []
    names = list(dict.fromkeys(name.strip().removesuffix(".txt") for name in lists.split("+")))
    find = _finder(root / "JPEGImages", archive)
    for name in names:
        path = root / "ImageSets" / "Main" / f"{name}.txt"
        if not path.is_file():
            there = sorted(p.stem for p in path.parent.glob("*.txt") if "_" not in p.stem)
            where = f"it is published in {archive}" if archive else f"lists there are: {', '.join(there) or 'none'}"
            raise InvalidInputError(f"{path} is missing; {where}.")
        lines = lines_of(path)
        if not lines:
            raise InvalidInputError(f"{path} lists no image.")
        for line in lines:
            flagged = _FLAG.search(line)  # unless the name itself ends so
            one = line[: flagged.start()] if flagged and not (root / "Annotations" / f"{line}.xml").is_file() else line
            named = f"{path.name} names it; an image without objects needs one, too, without any object in it"
            where = f"it is published in {archive}" if archive else named
            size, marks = _annotation(root / "Annotations" / f"{one}.xml", where)
            found.append((find(one), size, tuple(mark for mark in marks if _sound(one, size, mark, options, gap))))
    return found


def _finder(folder: Path, archive: str) -> Callable[[str], Path]:
    def find(name: str) -> Path:
        """The image of an id: what the annotations call the file is often another's name, so it is not looked at."""
        for suffix in SUFFIXES:
            path = folder / f"{name}{suffix}"
            if path.is_file():
                return path
        where = f"; it is published in {archive}." if archive else f", nor is there one of {', '.join(SUFFIXES[1:3])}."
        raise InvalidInputError(f"{folder / name}.jpg is missing{where}")

    return find


def _annotation(path: Path, where: str) -> tuple[tuple[int, int], list[_Marked]]:
    """Read (width, height) and objects; parts of objects (VOC2012's heads and hands) are none."""
    try:
        root = ET.parse(path).getroot()
        size = (int(root.findtext("size/width") or 0), int(root.findtext("size/height") or 0))
        return size, [_object(one) for one in root.findall("object")]
    except FileNotFoundError as error:
        raise InvalidInputError(f"{path} is missing; {where}.") from error
    except (ET.ParseError, ValueError, TypeError, OSError) as error:
        raise InvalidInputError(f"{path} is no annotation in VOC's format: {error}") from error


def _object(one: ET.Element) -> _Marked:
    name, box = (one.findtext("name") or "").strip(), one.find("bndbox")
    if not name or box is None:
        raise ValueError("an object without a name or a box")
    x1, y1, x2, y2 = (float(box.findtext(edge) or "") for edge in ("xmin", "ymin", "xmax", "ymax"))
    return _Marked(name, (x1, y1, x2, y2), (one.findtext("difficult") or "0").strip() == "1")


def _sound(image: str, size: tuple[int, int], mark: _Marked, options: DataOptions, gap: _Gaps) -> bool:
    x1, y1, x2, y2 = mark.box
    if not (x2 > x1 and y2 > y1):
        gap.empty.append(f"{image} {mark.name}")
        return False
    if all(size) and (x1 > size[0] or y1 > size[1] or x2 < 0 or y2 < 0):
        gap.outside.append(f"{image} {mark.name}")
        return False
    return True


def _images(rows: Sequence[_Read], classes: Sequence[str], options: DataOptions, gap: _Gaps) -> tuple[BoxedImage, ...]:
    index = {name: k for k, name in enumerate(classes)}
    images = []
    for number, (path, size, marks) in enumerate(rows):
        boxes = np.array([one.box for one in marks], np.float64).reshape(-1, 4) - options.first_pixel
        images.append(
            BoxedImage(
                path=path,
                size=size,
                boxes=boxes.astype(np.float32),
                labels=np.array([index[one.name] for one in marks], np.int64),
                difficult=np.array([one.difficult for one in marks], bool),
                crowd=np.zeros(len(marks), bool),
                areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
                source=path.parent.parent.name,
                number=number,
            )
        )
    return tuple(images)
