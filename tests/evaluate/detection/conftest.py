"""Miniature sets of images with boxes, in the formats that archives really have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Mini = Any
Object = tuple[str, tuple[float, float, float, float], bool]
"""(name, (xmin, ymin, xmax, ymax) as shares of the image, difficult)"""

CAT: Object = ("cat", (0.1, 0.1, 0.6, 0.7), False)
DOG: Object = ("dog", (0.4, 0.3, 0.95, 0.9), False)
HARD: Object = ("dog", (0.7, 0.0, 1.0, 0.3), True)

_HEAD = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"


class Marked:
    """Builds the sets."""

    def __init__(self, mini: Mini) -> None:
        self.mini, self.root = mini, mini.root

    def annotated(
        self, folder: str, name: str, objects: Sequence[Object], suffix: str = ".jpg", more: str = ""
    ) -> Path:
        """An image and its annotation in VOC's format; boxes count pixels from 1."""
        path: Path = self.mini.photo(folder, "JPEGImages", f"{name}{suffix}")
        with Image.open(path) as image:
            width, height = image.size
        marks = []
        for kind, (x1, y1, x2, y2), difficult in objects:
            edges = {"xmin": x1 * width, "ymin": y1 * height, "xmax": x2 * width, "ymax": y2 * height}
            box = "".join(f"<{edge}>{max(1, round(value))}</{edge}>" for edge, value in edges.items())
            marks.append(
                f"<object><name>{kind}</name><pose>Left</pose><truncated>0</truncated>"
                f"<difficult>{int(difficult)}</difficult><bndbox>{box}</bndbox>{more}</object>"
            )
        self.mini.lines(
            f"{folder}/Annotations/{name}.xml",
            [
                f"<annotation><folder>{Path(folder).name}</folder><filename>other name.jpg</filename>"
                f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
                f"<segmented>0</segmented>{''.join(marks)}</annotation>"
            ],
        )
        return path

    def voc(self, years: Sequence[str] = ("2007", "2012"), test: bool = True) -> Path:
        """VOCdevkit: 2007 with four images of trainval and three of test, 2012 with two of trainval."""
        for year in years:
            folder = f"VOCdevkit/VOC{year}"
            splits = {"trainval": 4 if year == "2007" else 2, **({"test": 3} if test and year == "2007" else {})}
            for k, (split, count) in enumerate(splits.items()):
                names = [f"{'2008_' if year == '2012' else ''}{100 * k + n:06}" for n in range(1, count + 1)]
                for n, name in enumerate(names):
                    objects = [(CAT,), (DOG, HARD), (CAT, DOG)][n % 3]
                    self.annotated(folder, name, objects, more=_HEAD if year == "2012" else "")
                self.mini.lines(f"{folder}/ImageSets/Main/{split}.txt", names)
                self.mini.lines(f"{folder}/ImageSets/Main/cat_{split}.txt", [f"{name}  1" for name in names])
        return self.root / "VOCdevkit"

    def own(self) -> Path:
        """A folder laid out like a year of VOC, with its own classes: BCCD's, say."""
        for name, kinds in (("a", ("WBC", "RBC")), ("b", ("RBC",)), ("c", ("RBC", "Platelets"))):
            self.annotated("blood", name, [(kind, CAT[1] if k else DOG[1], False) for k, kind in enumerate(kinds)])
        for split, names in (("train", "a"), ("val", "b"), ("test", "c")):
            self.mini.lines(f"blood/ImageSets/Main/{split}.txt", list(names))
        return self.root / "blood"

    def coco(self) -> Path:
        """COCO 2017: five training images (one without annotations, one of 31 px) and three of val; a crowd."""
        for part, count in (("train2017", 5), ("val2017", 3)):
            images, annotations = [], []
            for n in range(1, count + 1):
                path = self.mini.photo("coco", part, f"{n:012}.jpg")
                if part == "train2017" and n == 5:
                    Image.open(path).resize((60, 31)).save(path)
                with Image.open(path) as image:
                    width, height = image.size
                images.append({"id": 10 * n, "file_name": path.name, "width": width, "height": height})
                for category, x, y in ((3, 0.1, 0.1), (90, 0.4, 0.3)) if n != 4 else ():
                    box = [x * width, y * height, 0.5 * width, 0.5 * height]
                    corners = [box[0], box[1], box[0] + box[2], box[1], box[0] + box[2], box[1] + box[3]]
                    annotations.append(
                        {"id": len(annotations) + 1, "image_id": 10 * n, "category_id": category, "bbox": box,
                         "area": box[2] * box[3] / 2, "iscrowd": 0, "segmentation": [corners]}
                    )  # fmt: skip
                if n == 1:
                    counts = [0, height * (width // 2), height * (width - width // 2)]
                    annotations.append(
                        {"id": len(annotations) + 1, "image_id": 10 * n, "category_id": 3, "iscrowd": 1,
                         "bbox": [0, 0, width // 2, height], "area": height * (width // 2),
                         "segmentation": {"size": [height, width], "counts": counts}}
                    )  # fmt: skip
            record = {
                "images": images,
                "annotations": annotations,
                "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}],
            }
            self.mini.lines(f"coco/annotations/instances_{part}.json", [json.dumps(record)])
        return self.root / "coco"


@pytest.fixture
def marked(mini: Mini) -> Marked:
    return Marked(mini)
