"""The layouts of label maps: PASCAL VOC 2012 with SBD, Cityscapes, and any folders of images and label maps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from context_pred.data.files import find_images, natural_key
from context_pred.errors import ImageError, InvalidInputError, did_you_mean, unknown
from context_pred.evaluate.layouts import SPLITS

from .label_maps import IGNORED, Coding, DataOptions, LabelMaps, Pair, raw_values

VOC = "VOCtrainval_11-May-2012.tar, http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
SBD = "benchmark.tgz, http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz"
CITYSCAPES = "https://www.cityscapes-dataset.com/downloads/"

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

_USUAL = DataOptions()
_LABELS = ("labels", "annotations", "masks", "label_maps")
_ENDINGS = (".png", ".tif", ".tiff", ".bmp", ".gif")


@dataclass(frozen=True)
class Layout:
    """One layout: what it looks like in a sentence, whether a folder shows it, and its reader."""

    looks: str
    shows: Callable[[Path], bool]
    read: Callable[[Path, DataOptions], LabelMaps]


def read(folder: str | Path, options: DataOptions = _USUAL) -> LabelMaps:
    """Read a set with label maps; its layout is the one the folder shows, or that of its one subfolder that shows one.

    Raises:
        InvalidInputError: no such folder, a layout that is not known or lacks a piece (which is named, with where it
            is published), an image without its label map.
        UnknownNameError: no such layout or split in the options.
        ImageError: a label map that cannot be read, where the classes have to be counted in them.
    """
    root = Path(folder)
    accepted = "Accepted: " + "; ".join(f"{name}: {layout.looks}" for name, layout in LAYOUTS.items()) + "."
    if not root.is_dir():
        raise InvalidInputError(f"--data {str(folder)!r} is no folder. {accepted}")
    if options.layout and options.layout not in LAYOUTS:
        raise unknown("layout", options.layout, LAYOUTS)
    layouts = {options.layout: LAYOUTS[options.layout]} if options.layout else LAYOUTS
    beneath = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    shown = {
        place: next((name for name, layout in layouts.items() if layout.shows(place)), "") for place in (root, *beneath)
    }
    places = [root] if shown[root] else [place for place in beneath if shown[place]]
    if not places and options.layout:
        places, shown[root] = [root], options.layout  # its reader names the piece that is missing
    if len(places) != 1:
        several = f" (several subfolders show one: {', '.join(p.name for p in places)})" if places else ""
        names = sorted(path.name for path in root.iterdir())[:12]
        raise InvalidInputError(
            f"{root} shows no layout of label maps that is known{several}; it holds "
            f"{', '.join(names) or 'nothing'}{' …' if len(names) == 12 else ''}. {accepted}"
        )
    data = layouts[shown[places[0]]].read(places[0], options)
    return dataclasses.replace(data, name=root.resolve().name)


def _missing(path: Path, what: str) -> InvalidInputError:
    return InvalidInputError(f"{path} is missing; it is published in {what}.")


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} cannot be read as a list: {error}") from error


def _first(paths: Iterable[Path]) -> Path | None:
    return next((path for path in paths if path.exists()), None)


# PASCAL VOC 2012 and SBD -------------------------------------------------------------------------------------------


def _voc_root(folder: Path) -> Path | None:
    places = (folder, folder / "VOC2012", folder / "VOCdevkit" / "VOC2012")
    return next((path for path in places if (path / "ImageSets" / "Segmentation").is_dir()), None)


def _sbd_root(voc: Path) -> Path | None:
    """Return SBD's folder with img/ and cls/, beside or within the VOC devkit."""
    near = (voc, *list(voc.resolve().parents)[:2])
    names = ("benchmark_RELEASE/dataset", "VOCaug/dataset", "SBD", "sbd", "dataset")
    return _first(place / name for place in near for name in names if (place / name / "cls").is_dir())


def _read_voc(folder: Path, options: DataOptions) -> LabelMaps:
    root = _voc_root(folder)
    if root is None:
        raise _missing(folder / "ImageSets" / "Segmentation", VOC)
    lists = root / "ImageSets" / "Segmentation"
    for path in (lists / "train.txt", lists / "val.txt", root / "JPEGImages", root / "SegmentationClass"):
        if not path.exists():
            raise _missing(path, VOC)
    train, val = _lines(lists / "train.txt"), _lines(lists / "val.txt")
    images = root / "JPEGImages"
    own = [_pair(images / f"{name}.jpg", root / "SegmentationClass" / f"{name}.png", VOC) for name in train]
    test = [_pair(images / f"{name}.jpg", root / "SegmentationClass" / f"{name}.png", VOC) for name in val]
    more, source = _augmentation(root, {*train, *val}) if options.augmented else ([], "")
    note = (
        f"{root}: VOC 2012, {len(own):,} images of train.txt"
        f"{f' and {len(more):,} of SBD ({source})' if more else ', without SBD'}, {len(test):,} of val.txt."
    )
    coding = Coding(tuple(range(len(VOC_CLASSES))))
    return LabelMaps(folder.name, "voc12aug", VOC_CLASSES, coding, (*own, *more), tuple(test), (note,))


def _augmentation(root: Path, known: Collection[str]) -> tuple[list[Pair], str]:
    """Return SBD's pairs beyond VOC's own train and val: as mmsegmentation converts them, or SBD's own files."""
    lists, images = root / "ImageSets" / "Segmentation", root / "JPEGImages"
    listed = _first((lists / "aug.txt", lists / "trainaug.txt"))
    if listed is not None and (root / "SegmentationClassAug").is_dir():
        names = [line.split()[0].rpartition("/")[2].removesuffix(".jpg") for line in _lines(listed)]
        converted = root / "SegmentationClassAug"
        pairs = [_pair(images / f"{n}.jpg", converted / f"{n}.png", SBD) for n in names if n not in known]
        return pairs, f"{listed.name}, SegmentationClassAug"
    sbd = _sbd_root(root)
    if sbd is None:
        raise InvalidInputError(
            f"{root.parent / 'VOCaug' / 'dataset'} (SBD) is missing, and so is {root / 'SegmentationClassAug'}; it is "
            f"published in {SBD}. --set augmented=false trains without it."
        )
    for name in ("train.txt", "val.txt"):
        if not (sbd / name).is_file():
            raise _missing(sbd / name, SBD)
    names = sorted({name for part in ("train.txt", "val.txt") for name in _lines(sbd / part)} - set(known))
    pairs = []
    for name in names:
        image = images / f"{name}.jpg"
        pairs.append(_pair(image if image.exists() else sbd / "img" / f"{name}.jpg", sbd / "cls" / f"{name}.mat", SBD))
    return pairs, str(sbd)


def _pair(image: Path, labels: Path, archive: str) -> Pair:
    for path in (image, labels):
        if not path.is_file():
            raise _missing(path, archive)
    return Pair(image, labels)


# Cityscapes --------------------------------------------------------------------------------------------------------


def _read_cityscapes(folder: Path, options: DataOptions) -> LabelMaps:
    from torchvision.datasets import Cityscapes

    kinds = sorted((k for k in Cityscapes.classes if 0 <= k.train_id < 19), key=lambda kind: kind.train_id)
    images, fine = f"leftImg8bit_trainvaltest.zip, {CITYSCAPES}", f"gtFine_trainvaltest.zip, {CITYSCAPES}"
    parts: dict[str, list[tuple[Path, Path]]] = {}
    for split in ("train", "val"):
        place = folder / "leftImg8bit" / split
        files = sorted(place.glob("*/*_leftImg8bit.png"))
        if not files:
            raise _missing(place / "CITY" / "…_leftImg8bit.png", images)
        labels = folder / "gtFine" / split
        parts[split] = [
            (f, labels / f.parent.name / f.name.replace("_leftImg8bit.png", "_gtFine_labelIds.png")) for f in files
        ]
    converted = {
        split: [(image, label.with_name(label.name.replace("labelIds", "labelTrainIds"))) for image, label in pairs]
        for split, pairs in parts.items()
    }
    if all(label.is_file() for pairs in converted.values() for _, label in pairs):
        parts, what, coding = converted, "labelTrainIds", Coding(tuple(range(19)))
    else:
        what = "labelIds"
        others = tuple(k.id for k in Cityscapes.classes if k.id >= 0 and not 0 <= k.train_id < 19)
        coding = Coding(tuple(kind.id for kind in kinds), others)
    train, val = (tuple(_pair(image, label, fine) for image, label in parts[split]) for split in ("train", "val"))
    note = f"{folder}: Cityscapes, fine, {len(train):,} images of train, {len(val):,} of val, {what}."
    return LabelMaps(folder.name, "cityscapes", tuple(k.name for k in kinds), coding, train, val, (note,))


# Folders of images and label maps ----------------------------------------------------------------------------------


def _splits(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Return split → (images, label maps): SPLIT/ and SPLITannot/, or images/SPLIT and labels/SPLIT."""
    found = {}
    for split, names in SPLITS.items():
        for name in names:
            beside = [(folder / name, folder / f"{name}{end}") for end in ("annot", *(f"_{word}" for word in _LABELS))]
            within = [(folder / "images" / name, folder / word / name) for word in _LABELS]
            for images, labels in (*beside, *within):
                if split not in found and images.is_dir() and labels.is_dir():
                    found[split] = (images, labels)
    return found


def _asked(splits: str, there: Collection[str], folder: Path) -> tuple[list[str], list[str]]:
    if not splits:
        names = [name for name in ("train", "val", "test") if name in there]
        if len(names) < 2 or names[0] != "train":
            raise InvalidInputError(
                f"{folder} has the splits {', '.join(names) or 'none'}; accepted: train and at least one of val and "
                "test, or --set splits=TRAIN[+MORE],TEST."
            )
        return names[:-1], names[-1:]
    parts = [[name.strip() for name in part.split("+") if name.strip()] for part in splits.split(",")]
    if len(parts) != 2 or not all(parts):
        raise InvalidInputError(f"splits = {splits!r}: accepted is TRAIN[+MORE],TEST, as train+val,test.")
    for name in (*parts[0], *parts[1]):
        if name not in there:
            raise unknown("split", name, there)
    return parts[0], parts[1]


def _read_folder(folder: Path, options: DataOptions) -> LabelMaps:
    there = _splits(folder)
    asked = _asked(options.splits, there, folder)
    train, test = (tuple(pair for name in names for pair in _matched(*there[name])) for names in asked)
    names = _names(folder, options)
    left = [value for value in range(IGNORED) if value not in options.ignore]
    how = f"{len(names)} named"
    if not names:
        highest = _highest((*train, *test), {*options.ignore, IGNORED}, options.skip_damaged)
        values = left[: left.index(highest) + 1]
        names = tuple(f"class{value}" for value in values)
        how = f"values up to {highest}, named after them (classes.txt would name them)"
    if not 2 <= len(names) <= len(left):
        raise InvalidInputError(
            f"{folder} has {len(names)} classes; accepted are 2 … {len(left)}. 255 is no class: masks of 0 and 255 "
            "need 1 in place of 255."
        )
    note = (
        f"{folder}: {'+'.join(asked[0])} {len(train):,} images to learn from, {'+'.join(asked[1])} {len(test):,} that "
        f"ask, {len(names)} classes ({how}), no class: {', '.join(map(str, sorted({*options.ignore, IGNORED})))}."
    )
    coding = Coding(tuple(left[: len(names)]), tuple(options.ignore))
    return LabelMaps(folder.name, "folder", names, coding, train, test, (note,))


def _matched(images: Path, labels: Path) -> list[Pair]:
    """Match images and label maps by their names, without endings; subfolders are gone through alike."""
    maps = {
        path.relative_to(labels).with_suffix("").as_posix(): path
        for path in sorted(labels.rglob("*"))
        if path.suffix.lower() in _ENDINGS
    }
    pairs, lacking = [], []
    for image in find_images(images):
        name = image.relative_to(images).with_suffix("").as_posix()
        if name in maps:
            pairs.append(Pair(image, maps[name]))
        else:
            lacking.append(name)
    if lacking:
        raise InvalidInputError(
            f"{len(lacking):,} images of {images} have no label map of their name in {labels}: "
            f"{', '.join(lacking[:5])}{' …' if len(lacking) > 5 else '.'}{did_you_mean(lacking[0], maps)}"
        )
    return sorted(pairs, key=lambda pair: natural_key(str(pair.image)))


def _names(folder: Path, options: DataOptions) -> tuple[str, ...]:
    given = options.classes
    if "," in given:
        return tuple(name.strip() for name in given.split(",") if name.strip())
    if given and not Path(given).is_file():
        raise InvalidInputError(f"classes = {given!r}: accepted are names with commas, or a file with a name a line.")
    path = Path(given) if given else folder / "classes.txt"
    return tuple(_lines(path)) if path.is_file() else ()


def _highest(pairs: Sequence[Pair], ignored: Collection[int], skip: bool) -> int:
    seen = np.zeros(256, bool)
    for pair in pairs:
        try:
            found = raw_values(pair.labels)
        except ImageError:
            if skip:
                continue
            raise
        if found.min(initial=0) < 0 or found.max(initial=0) > 255:
            raise ImageError(f"{pair.labels}: values {found.min()} … {found.max()}; accepted are 0 … 255.")
        seen |= np.bincount(found.ravel(), minlength=256) > 0
    classes = [value for value in np.flatnonzero(seen).tolist() if value not in ignored]
    if not classes:
        raise InvalidInputError("The label maps hold no class at all, only values that are ignored.")
    return int(classes[-1])


LAYOUTS: dict[str, Layout] = {
    "voc12aug": Layout(
        "VOCdevkit/VOC2012 with JPEGImages, SegmentationClass, ImageSets/Segmentation, and SBD",
        lambda folder: _voc_root(folder) is not None,
        _read_voc,
    ),
    "cityscapes": Layout(
        "leftImg8bit/SPLIT/CITY and gtFine/SPLIT/CITY",
        lambda folder: (folder / "leftImg8bit").is_dir(),
        _read_cityscapes,
    ),
    "folder": Layout(
        "train/ and trainannot/, test/ and testannot/ (or val), or images/SPLIT and labels/SPLIT",
        lambda folder: bool(_splits(folder)),
        _read_folder,
    ),
}
"""Every layout, in the order in which a folder is looked at."""
