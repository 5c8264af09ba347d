"""COCO's layout: folders of images, and a JSON file of annotations for each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from context_pred.errors import InvalidInputError

from .boxes import BoxedImage, BoxedImages, DataOptions

SMALLEST = 32
"""Training images with a side below this many px are left out, as mmdetection does (``CocoDataset._filter_imgs``)."""

ARCHIVES = {
    "annotations": "annotations_trainval2017.zip, http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
    "train2017": "train2017.zip, http://images.cocodataset.org/zips/train2017.zip",
    "val2017": "val2017.zip, http://images.cocodataset.org/zips/val2017.zip",
}


def shows(folder: Path) -> bool:
    """Tell whether a folder has COCO's layout."""
    return any((folder / "annotations").glob("instances_*.json"))


def read(folder: Path, options: DataOptions) -> BoxedImages:
    """Read COCO 2017, or other data in its format and under its names; an object without an area has its box's.

    Training images without annotations, or smaller than 32 px, are left out (117,266 of COCO's 118,287 stay); test
    images are all kept. Boxes that are less than a pixel wide or high, have no area or lie outside of their image are
    left out of training, and kept in the test, which its own rules judge.

    Raises:
        InvalidInputError: a file or a folder is missing (and where it is published), or a file is not COCO's format.
    """
    splits = []
    names: dict[int, str] = {}
    for part in ("train2017", "val2017"):
        path = folder / "annotations" / f"instances_{part}.json"
        if not path.is_file():
            raise InvalidInputError(f"{path} is missing; it is published in {ARCHIVES['annotations']}.")
        if not (folder / part).is_dir():
            raise InvalidInputError(f"{folder / part} is missing; it is published in {ARCHIVES[part]}.")
        record = _load(path)
        try:
            found = {int(one["id"]): str(one["name"]) for one in record["categories"]}
            if names and found != names:
                raise InvalidInputError(f"{path} has other categories than instances_train2017.json.")
            names = found
            splits.append(_images(folder / part, record, sorted(names)))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            if isinstance(error, InvalidInputError):
                raise
            raise InvalidInputError(f"{path} is not in COCO's format: {error!r}.") from error
    train = tuple(_trained(image) for image in splits[0] if len(image) and min(image.size) >= SMALLEST)
    test = tuple(splits[1])
    for part, images in (("train2017", train), ("val2017", test)):
        if not images:
            raise InvalidInputError(f"{folder / part}: no image has annotations.")
        if not images[0].path.is_file():
            raise InvalidInputError(f"{images[0].path} is missing; it is published in {ARCHIVES[part]}.")
    note = (
        f"{folder}: COCO layout, train2017 {len(train):,} images ({len(splits[0]) - len(train):,} without annotations "
        f"or below {SMALLEST} px were left out), val2017 {len(test):,}, {len(names)} classes."
    )
    ids = tuple(sorted(names))
    classes = tuple(names[one] for one in ids)
    return BoxedImages(folder.name, "coco", classes, train, test, (note,), categories=ids)


def _load(path: Path) -> Mapping[str, Any]:
    try:
        record: Mapping[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path} cannot be read as JSON: {error}") from error
    return record


def _images(folder: Path, record: Mapping[str, Any], categories: list[int]) -> list[BoxedImage]:
    index = {category: k for k, category in enumerate(categories)}
    marked: dict[int, list[Mapping[str, Any]]] = {}
    for one in record["annotations"]:
        if one["category_id"] in index:
            marked.setdefault(one["image_id"], []).append(one)
    images = []
    for image in record["images"]:
        mine = marked.get(image["id"], [])
        boxes = np.array([one["bbox"] for one in mine], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        images.append(
            BoxedImage(
                path=folder / image["file_name"],
                size=(int(image["width"]), int(image["height"])),
                boxes=boxes.astype(np.float32),
                labels=np.array([index[one["category_id"]] for one in mine], np.int64),
                difficult=np.zeros(len(mine), bool),
                crowd=np.array([bool(one.get("iscrowd", 0)) for one in mine], bool),
                areas=np.array([one.get("area", one["bbox"][2] * one["bbox"][3]) for one in mine], np.float64),
                outlines=tuple(_outline(one.get("segmentation")) for one in mine),
                source=folder.name,
                number=int(image["id"]),
            )
        )
    return images


def _outline(segmentation: Any) -> Any:
    """Polygons as arrays, a tenth of the memory of lists; run lengths as they are."""
    if isinstance(segmentation, list):
        return tuple(np.asarray(polygon, np.float64) for polygon in segmentation)
    return segmentation


def _trained(image: BoxedImage) -> BoxedImage:
    """Leave out boxes that nothing can be learned from, as mmdetection does (``CocoDataset._parse_ann_info``)."""
    width, height = (image.boxes[:, 2:] - image.boxes[:, :2]).T
    inside = np.minimum(image.boxes[:, 2:], image.size) - np.maximum(image.boxes[:, :2], 0)
    keep = (image.areas > 0) & (width >= 1) & (height >= 1) & (inside > 0).all(1)
    return image if keep.all() else image.chosen(keep)
