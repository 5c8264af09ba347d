"""The layouts of labelled images that archives really have: how each is known, and how it is read."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from context_pred.data.files import find_images, natural_key
from context_pred.errors import InvalidInputError, did_you_mean

from .labelled import ClassSplit, DataOptions, LabelledImages, Split

VOC_TRAIN = "VOCtrainval_06-Nov-2007.tar, http://host.robots.ox.ac.uk/pascal/VOC/voc2007/VOCtrainval_06-Nov-2007.tar"
VOC_TEST = "VOCtest_06-Nov-2007.tar, http://host.robots.ox.ac.uk/pascal/VOC/voc2007/VOCtest_06-Nov-2007.tar"
IMAGENET_LIST = "caffe_ilsvrc12.tar.gz, http://dl.caffe.berkeleyvision.org/caffe_ilsvrc12.tar.gz"
PLACES = "http://places.csail.mit.edu/downloadData.html"
INATURALIST = "https://github.com/visipedia/inat_comp/tree/master/2018"

_PLACES_LISTS = ("train_places205.csv", "val_places205.csv")
_INAT_LISTS = ("train2018.json", "val2018.json")
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
"""What folders of a split are called; those of classes in any case."""
_WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Layout:
    """One layout: what it looks like in a sentence, whether a folder shows it, and its reader."""

    looks: str
    shows: Callable[[Path, DataOptions], bool]
    read: Callable[[Path, DataOptions], LabelledImages]


def accepted() -> str:
    """Return a sentence that lists the layouts."""
    return "Accepted: " + "; ".join(f"{name}: {layout.looks}" for name, layout in LAYOUTS.items()) + "."


def _missing(path: Path, what: str) -> InvalidInputError:
    return InvalidInputError(f"{path} is missing; it is published in {what}.")


def lines_of(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty, or raise InvalidInputError."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} cannot be read as a list: {error}") from error


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")),
        key=lambda path: path.name,
    )


def _asked_lists(options: DataOptions) -> tuple[list[str], list[str]] | None:
    """Read "train.txt+val.txt,test.txt" into the lists of training and those that ask."""
    if not options.lists:
        return None
    parts = [[name.strip() for name in part.split("+") if name.strip()] for part in options.lists.split(",")]
    if len(parts) != 2 or not all(parts):
        raise InvalidInputError(
            f"lists = {options.lists!r}: accepted is TRAIN[+MORE],TEST, as train.txt+val.txt,test.txt."
        )
    return parts[0], parts[1]


# VOC ---------------------------------------------------------------------------------------------------------------


def _voc_root(folder: Path) -> Path | None:
    for path in (folder, folder / "VOC2007", folder / "VOCdevkit" / "VOC2007"):
        if (path / "ImageSets" / "Main").is_dir():
            return path
    return None


def _read_voc(folder: Path, options: DataOptions) -> LabelledImages:
    root = _voc_root(folder)
    if root is None:
        raise _missing(folder / "ImageSets" / "Main", f"{VOC_TRAIN}, and {VOC_TEST}")
    main = root / "ImageSets" / "Main"
    train, test = _asked_lists(options) or (["trainval"], ["test"])
    train, test = ([name.removesuffix(".txt") for name in names] for names in (train, test))
    for names, archive in ((train, VOC_TRAIN), (test, VOC_TEST)):
        for name in names:
            if not (main / f"{name}.txt").is_file():
                raise _missing(main / f"{name}.txt", archive)
    suffix = f"_{train[0]}.txt"
    classes = tuple(sorted(path.name.removesuffix(suffix) for path in main.glob(f"*{suffix}")))
    if not classes:
        raise _missing(main / f"CLASS{suffix}", VOC_TRAIN)
    splits = [_voc_split(root, names, classes, archive) for names, archive in ((train, VOC_TRAIN), (test, VOC_TEST))]
    note = (
        f"{root}: VOC layout, {'+'.join(train)} {len(splits[0].files):,} images, {'+'.join(test)} "
        f"{len(splits[1].files):,}, {len(classes)} classes."
    )
    return LabelledImages(folder.name, "voc2007", classes, splits[0], splits[1], (note,))


def _voc_split(root: Path, names: Sequence[str], classes: Sequence[str], archive: str) -> Split:
    main = root / "ImageSets" / "Main"
    lines = [line for name in names for line in lines_of(main / f"{name}.txt")]
    # A name with spaces; else a flag may stand after it.
    ids = [one if (root / "JPEGImages" / f"{one}.jpg").is_file() else one.split()[0] for one in lines]
    row = {image: k for k, image in enumerate(ids)}
    labels = np.zeros((len(ids), len(classes)), np.int8)
    meaning = {"1": 1, "0": -1, "-1": 0}
    for column, kind in enumerate(classes):
        for name in names:
            path = main / f"{kind}_{name}.txt"
            if not path.is_file():
                raise _missing(path, archive)
            for line in lines_of(path):
                words = line.rsplit(maxsplit=1)
                if len(words) != 2 or words[1] not in meaning or words[0] not in row:
                    raise InvalidInputError(
                        f"{path}: {line!r}; accepted is an image of {name}.txt and 1, 0 (difficult) or -1."
                    )
                labels[row[words[0]], column] = meaning[words[1]]
    files = tuple(root / "JPEGImages" / f"{image}.jpg" for image in ids)
    if files and not files[0].is_file():
        raise _missing(files[0], archive)
    return Split(files, labels)


# One class an image ------------------------------------------------------------------------------------------------

Rows = Sequence[tuple[Path, str]]


def _of_rows(
    folder: Path, kind: str, train: Rows, test: Rows, notes: Sequence[str], names: Mapping[str, str] | None = None
) -> LabelledImages:
    """Make a set of (file, label) rows; classes are those of training, numbers in their order, then names.

    Raises:
        InvalidInputError: a split is empty, or one that asks has a class that training has not.
    """
    for what, rows in (("to learn from", train), ("to ask with", test)):
        if not rows:
            raise InvalidInputError(f"{folder} ({kind} layout) has no images {what}.")
    known = {label for _, label in train}
    strange = sorted({label for _, label in test} - known, key=natural_key)
    if strange:
        shown = ", ".join(strange[:10]) + (" …" if len(strange) > 10 else ".")
        raise InvalidInputError(
            f"{folder}: {len(strange)} of the classes have test images but no training images: {shown}"
            f"{did_you_mean(strange[0], known)} Add some of these, or take those test images out."
        )
    if len(known) < 2:
        raise InvalidInputError(f"{folder} has one class, {next(iter(known))!r}; at least two are needed.")
    labels = sorted(known, key=natural_key) if kind in ("list", "places205") else sorted(known)
    index = {label: k for k, label in enumerate(labels)}
    splits = [
        ClassSplit([path for path, _ in rows], np.array([index[label] for _, label in rows], np.int64), len(labels))
        for rows in (train, test)
    ]
    classes = tuple((names or {}).get(label, label) for label in labels)
    counts = f"{len(train):,} images to learn from, {len(test):,} that ask, {len(classes)} classes."
    return LabelledImages(folder.name, kind, classes, splits[0], splits[1], (*notes, counts))


def _folder_rows(folder: Path) -> list[tuple[Path, str]]:
    """(file, class) of CLASS/…, folder by folder, as torchvision's ImageFolder orders them."""
    rows: list[tuple[Path, str]] = []
    for place in _folders(folder):
        if any(place.iterdir()):
            rows.extend((path, place.name) for path in find_images(place))
    return rows


# ImageNet


def _shows_imagenet(folder: Path, options: DataOptions) -> bool:
    names = [path.name for path in _folders(folder / "train")]
    return len(names) > 1 and all(_WNID.fullmatch(name) for name in names) and (folder / "val").is_dir()


def _read_imagenet(folder: Path, options: DataOptions) -> LabelledImages:
    train = _folder_rows(folder / "train")
    val = folder / "val"
    if _folders(val):
        how = f"{folder}: ImageNet layout, train/WNID and val/WNID."
        return _of_rows(folder, "imagenet", train, _folder_rows(val), [how])
    path = next((p for p in (folder / "meta" / "val.txt", folder / "val.txt", val / "val.txt") if p.is_file()), None)
    if path is None:
        raise _missing(folder / "meta" / "val.txt", f"{IMAGENET_LIST} (val/ holds images without folders of classes)")
    wnids = sorted({label for _, label in train})
    test = []
    for line in lines_of(path):
        name, _, label = line.rpartition(" ")
        if not label.isdigit() or int(label) >= len(wnids):
            raise InvalidInputError(
                f"{path}: {line!r}; accepted is FILE and a number below {len(wnids)}, the folders of train/ in order."
            )
        test.append((val / name.strip(), wnids[int(label)]))
    return _of_rows(folder, "imagenet", train, test, [f"{folder}: ImageNet layout, train/WNID and {path}."])


# Places205 and iNaturalist


def _find(folder: Path, name: str, *within: str) -> Path | None:
    return next((p for p in (folder / place / name for place in ("", *within)) if p.is_file()), None)


def _read_places(folder: Path, options: DataOptions) -> LabelledImages:
    lists = [_find(folder, name, "trainvalsplit_places205") for name in _PLACES_LISTS]
    rows: list[list[tuple[str, str]]] = []
    for path, name in zip(lists, _PLACES_LISTS, strict=True):
        if path is None:
            raise _missing(folder / "trainvalsplit_places205" / name, f"trainvalsplit_places205.tar.gz, {PLACES}")
        rows.append([_places_row(path, line) for line in lines_of(path)])
        if not rows[-1]:
            raise InvalidInputError(f"{path} lists nothing.")
    first = rows[0][0][0]
    archive = "data/vision/torralba/deeplearning/images256"  # as imagesPlaces205_resize.tar.gz unpacks
    root = next((folder / p for p in ("", "images256", archive) if (folder / p / first).is_file()), None)
    if root is None:
        raise _missing(folder / "images256" / first, f"imagesPlaces205_resize.tar.gz, {PLACES}")
    train, test = ([(root / name, label) for name, label in part] for part in rows)
    return _of_rows(folder, "places205", train, test, [f"{folder}: Places205 layout, images in {root}."])


def _places_row(path: Path, line: str) -> tuple[str, str]:
    name, _, label = line.rpartition(" ")
    if not name.strip() or not label.isdecimal():
        raise InvalidInputError(f"{path}: {line!r}; accepted is FILE and the number of its class.")
    return name.strip(), label


def _read_inat(folder: Path, options: DataOptions) -> LabelledImages:
    splits: list[list[tuple[Path, str]]] = []
    names: dict[str, str] = {}
    for name in _INAT_LISTS:
        path = _find(folder, name, "annotations")
        if path is None:
            raise _missing(folder / name, f"{name.partition('.')[0]}.json.tar.gz, {INATURALIST}")
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            files = {image["id"]: folder / image["file_name"] for image in record["images"]}
            rows = [(files[a["image_id"]], f"{a['category_id']:05d}") for a in record["annotations"]]
            names |= {f"{c['id']:05d}": str(c["name"]) for c in record.get("categories", [])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidInputError(f"{path} is not a list of iNaturalist 2018: {error!r}.") from error
        if rows and not rows[0][0].is_file():
            raise _missing(rows[0][0], f"train_val2018.tar.gz, {INATURALIST}")
        splits.append(rows)
    return _of_rows(folder, "inat18", splits[0], splits[1], [f"{folder}: iNaturalist 2018 layout."], names)


# Lists of path and label


def _usual_lists(folder: Path) -> tuple[list[str], list[str]] | None:
    """The lists there are; one of paths alone is passed over, and an empty one is not, so that its reader says so."""
    there = [f"{name}.txt" for name in ("train", "val", "test") if (folder / f"{name}.txt").is_file()]
    lines = {name: lines_of(folder / name) for name in there}
    there = [name for name in there if not lines[name] or len(_fields(lines[name][:2], folder)[0]) > 1]
    labelled = any(lines[name] for name in there)
    return (there[:-1], there[-1:]) if labelled and len(there) > 1 and there[0] == "train.txt" else None


def _fields(lines: Sequence[str], folder: Path) -> list[list[str]]:
    """Split ``path, label[, label]`` by tabs or commas (a path in quotes may have them), or ``path label``.

    The separator is the one by which the first line, or the second beneath a heading, names a file: paths may have
    spaces and commas.
    """
    ways = ["\t", ",", " "]
    usual = next((way for way in ways if way in lines[0]), " ")
    found = [way for way in ways for line in lines[:2] if (folder / _split(line, way)[0]).is_file()]
    return [_split(line, found[0] if found else usual) for line in lines]


def _split(line: str, separator: str) -> list[str]:
    if separator == " ":
        return line.rsplit(maxsplit=1)
    try:
        return [field.strip() for field in next(csv.reader([line], delimiter=separator, skipinitialspace=True))]
    except csv.Error:  # longer than any path
        return [line]


def _shows_list(folder: Path, options: DataOptions) -> bool:
    asked = _asked_lists(options)
    if asked:
        return any((folder / name).is_file() for name in (*asked[0], *asked[1]))
    return _usual_lists(folder) is not None


def _read_list(folder: Path, options: DataOptions) -> LabelledImages:
    asked = _asked_lists(options) or _usual_lists(folder)
    if asked is None:
        raise InvalidInputError(f"{folder} has no lists train.txt and test.txt (or val.txt) of path and label.")
    train, test = ([row for name in names for row in _list_rows(folder / name, options)] for names in asked)
    first, second = ("+".join(names) for names in asked)
    note = f"{folder}: lists, {first} to learn from and {second} to ask with, label {options.label}."
    names = _class_names(folder, options.label, {label for _, label in (*train, *test)})
    return _of_rows(folder, "list", train, test, [note], names)


def _list_rows(path: Path, options: DataOptions) -> list[tuple[Path, str]]:
    if not path.is_file():
        raise InvalidInputError(f"{path} is missing; lists names it.")
    rows = []
    lines = lines_of(path)
    if not lines:
        raise InvalidInputError(
            f"{path} lists nothing; fill it, or name other lists, as --set lists=train.txt,val.txt."
        )
    split = _fields(lines, path.parent)
    first = path.parent / split[0][0]
    heading = len(lines) > 1 and not first.suffix and not first.exists() and (path.parent / split[1][0]).is_file()
    for number, (line, fields) in list(enumerate(zip(lines, split, strict=True), 1))[heading:]:
        if len(fields) <= options.label:
            raise InvalidInputError(
                f"{path}, line {number}: {line!r} has {len(fields) - 1} labels, and label {options.label} is asked "
                "for; accepted is PATH LABEL, or PATH, LABEL, LABEL …"
            )
        rows.append((path.parent / fields[0], fields[options.label]))
    if not rows[0][0].is_file():
        raise InvalidInputError(
            f"{path}: its first image {rows[0][0]} is not there; paths are taken from the list's folder."
        )
    return rows


def _class_names(folder: Path, label: int, labels: Collection[str]) -> dict[str, str]:
    """Read names of numbered classes: classes.csv (name, number, name, number …) or classes.txt (a name a line).

    The lines of classes.txt count from 0; from 1 where no image has the label 0 and some have the last line's number.
    """
    if (folder / "classes.csv").is_file():
        try:
            with open(folder / "classes.csv", encoding="utf-8-sig", newline="") as file:
                rows = list(csv.reader(file))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise InvalidInputError(f"{folder / 'classes.csv'} cannot be read as a list: {error}") from error
        column = 2 * label - 1
        return {row[column].strip(): row[column - 1].strip() for row in rows[1:] if len(row) > column}
    if (folder / "classes.txt").is_file():
        names = lines_of(folder / "classes.txt")
        from_one = "0" not in labels and str(len(names)) in labels
        return {str(k): name for k, name in enumerate(names, int(from_one))}
    return {}


# Folders of classes


def _splits_there(folder: Path) -> dict[str, Path]:
    """Return the splits that hold folders of classes: train, val, test → their folder, in this order."""
    places = {place.name.lower(): place for place in _folders(folder)}
    called = {split: next((places[name] for name in names if name in places), None) for split, names in SPLITS.items()}
    return {split: place for split, place in called.items() if place and len(_folders(place)) > 1}


def _shows_folder(folder: Path, options: DataOptions) -> bool:
    there = _splits_there(folder)
    return len(there) > 1 and "train" in there


def _read_folder(folder: Path, options: DataOptions) -> LabelledImages:
    if not _shows_folder(folder, options):
        raise InvalidInputError(f"{folder} has no train/CLASS beside test/CLASS or val/CLASS.")
    *learn, ask = _splits_there(folder).values()
    train = [row for place in learn for row in _folder_rows(place)]
    names = "+".join(place.name for place in learn)
    how = f"{folder}: folders of classes, {names} to learn from and {ask.name} to ask with."
    return _of_rows(folder, "folder", train, _folder_rows(ask), [how])


def _shows_single(folder: Path, options: DataOptions) -> bool:
    full = {place.name.lower() for place in _folders(folder) if any(path.is_file() for path in place.iterdir())}
    train, *others = (full & set(names) for names in SPLITS.values())
    return len(full) > 1 and not (train and any(others)) and not full <= {*train, *others[0], *others[1]}


def _read_single(folder: Path, options: DataOptions) -> LabelledImages:
    rows = _folder_rows(folder)
    asks = _drawn([label for _, label in rows], options)
    train, test = ([row for row, ask in zip(rows, asks, strict=True) if ask == side] for side in (False, True))
    how = (
        f"{folder}: one folder a class and no splits; of each class {options.test_share:.0%} were drawn to ask with, "
        f"seed {options.split_seed} (test_share, split_seed)."
    )
    return _of_rows(folder, "single", train, test, [how])


def _drawn(labels: Sequence[str], options: DataOptions) -> NDArray[np.bool_]:
    """Draw the images that ask: of each class its share, at least one, and at least one left to learn from."""
    generator = np.random.default_rng(options.split_seed)
    names, of = np.unique(labels, return_inverse=True)
    asks = np.zeros(len(labels), bool)
    for k, name in enumerate(names):
        mine = np.flatnonzero(of == k)
        if len(mine) < 2:
            raise InvalidInputError(
                f"Class {str(name)!r} has one image; two are needed, to learn from and to ask with. Add one, or take "
                "its folder out."
            )
        count = min(max(round(options.test_share * len(mine)), 1), len(mine) - 1)
        asks[generator.permutation(mine)[:count]] = True
    return asks


LAYOUTS: dict[str, Layout] = {
    "voc2007": Layout(
        "VOCdevkit/VOC2007 with JPEGImages and ImageSets/Main/CLASS_trainval.txt, CLASS_test.txt",
        lambda folder, options: _voc_root(folder) is not None,
        _read_voc,
    ),
    "inat18": Layout(
        "train2018.json and val2018.json beside the images",
        lambda folder, options: any(_find(folder, name, "annotations") for name in _INAT_LISTS),
        _read_inat,
    ),
    "places205": Layout(
        "trainvalsplit_places205/train_places205.csv and val_places205.csv, images in images256",
        lambda folder, options: any(_find(folder, name, "trainvalsplit_places205") for name in _PLACES_LISTS),
        _read_places,
    ),
    "imagenet": Layout("train/WNID and val/WNID, or val/ with meta/val.txt", _shows_imagenet, _read_imagenet),
    "list": Layout(
        "train.txt and test.txt (or val.txt) beside the images, lines of path and label", _shows_list, _read_list
    ),
    "folder": Layout("train/CLASS and test/CLASS (or val/CLASS)", _shows_folder, _read_folder),
    "single": Layout("CLASS/ alone, split at random", _shows_single, _read_single),
}
