"""The published figures, each with the file it was measured on. Source: METHOD 0 and C1 (mmselfsup, OpenSelfSup).

Where several files were published the README's tables mix them; which figure belongs to which file was established from
the repository's history: the README's tables were printed in v0.5.0, two months before the second file was trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from context_pred.backbones import LAYERS

from .job import Published

_FIRST = "resnet50_8xb64-steplr-70e.20211213"
_SECOND = "resnet50_8xb64-steplr-70e.20220225"
_THIRD = "resnet50_8xb64-steplr-70e.20220825"
_README = "mmselfsup 0.5 README"
_OPEN = "OpenSelfSup"
_PRESUMED = "not stated on which file; first printed after 20220225, presumably on it"
_OPEN_FILE = "OpenSelfSup's own file, of 2020"
_SHOTS = (1, 2, 4, 8, 16, 32, 64, 96)
_RANDOM, _SUPERVISED = "random initialisation", "ImageNet supervised"


def _low_shot(values: str, layer: str, source: str, file: str, note: str = "", of: str = "") -> list[Published]:
    return [
        _one("mAP", value, layer, {"k": k}, source, file, note, "VOC2007", of)
        for k, value in zip(_SHOTS, values.split(), strict=True)
    ]


def _by_layer(values: str, source: str, file: str, note: str, data: str, of: str = "") -> list[Published]:
    return [
        _one("top-1", value, layer, {}, source, file, note, data, of)
        for layer, value in zip(LAYERS, values.split(), strict=True)
    ]


def _one(
    metric: str,
    value: str,
    layer: str | None,
    at: Mapping[str, float | str],
    source: str,
    file: str,
    note: str = "",
    data: str = "",
    of: str = "",
) -> Published:
    percent = float(value) / 100
    return Published(metric, percent, layer, at, source, file, note, data, of or "relative location")


def _by_class(values: str, source: str) -> list[Published]:
    note = "by class, not confirmed; the values average to the mAP"
    return [
        _one("AP", value, None, {"class": name}, source, "", note, "VOC2007")
        for name, value in zip(_VOC_CLASSES, values.split(), strict=True)
    ]


_VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_VOC = "VOC2007"
_IMAGENET = "ImageNet-1k"

_FIGURES: dict[tuple[str, str | None], tuple[Published, ...]] = {
    ("svm", None): (
        _one("mAP", "65.52", "feature4", {}, _README, _FIRST, "best layer", _VOC),
        _one("mAP", "64.78", "feature4", {}, _OPEN, "", _OPEN_FILE, _VOC),
        _one("mAP", "30.54", "feature2", {}, _OPEN, "", "best layer", _VOC, _RANDOM),
        _one("mAP", "87.17", "feature5", {}, _OPEN, "", "best layer", _VOC, _SUPERVISED),
    ),
    ("low-shot-svm", None): (
        *_low_shot("20.36 23.12 30.66 37.02 42.55 50.00 55.58 59.28", "feature4", _README, _FIRST),
        *_low_shot("18.17 22.08 29.37 35.58 41.80 48.73 55.55 58.33", "feature4", _OPEN, "", _OPEN_FILE),
        *_low_shot("9.15 9.39 11.09 12.30 14.30 17.41 21.32 23.77", "feature2", _OPEN, "", of=_RANDOM),
        *_low_shot("52.99 63.55 73.70 78.79 81.76 83.75 85.18 85.97", "feature5", _OPEN, "", of=_SUPERVISED),
    ),
    ("linear", "imagenet"): (
        *_by_layer("15.11 30.47 42.83 51.20 40.96", _README, _FIRST, "", _IMAGENET),
        *_by_layer("14.76 31.29 45.77 49.31 40.20", _OPEN, "", _OPEN_FILE, _IMAGENET),
        *_by_layer("11.37 16.21 13.47 9.07 6.54", _OPEN, "", "", _IMAGENET, _RANDOM),
        *_by_layer("15.18 33.96 47.86 67.56 76.17", _OPEN, "", "", _IMAGENET, _SUPERVISED),
        _one("top-1", "39.65", "feature5", {"pool": "gap"}, _README, _FIRST, "", _IMAGENET),
        _one("top-1", "38.78", "feature5", {"pool": "gap"}, "mmselfsup 0.7 model zoo", _SECOND, "", _IMAGENET),
        _one("top-1", "40.4", "feature5", {"pool": "gap"}, "mmselfsup 1.0 metafile", _THIRD, "", _IMAGENET),
        _one("top-1", "38.83", "feature5", {"pool": "gap"}, _OPEN, "", _OPEN_FILE, _IMAGENET),
        _one("top-1", "4.35", "feature5", {"pool": "gap"}, _OPEN, "", "", _IMAGENET, _RANDOM),
        _one("top-1", "74.12", "feature5", {"pool": "gap"}, _OPEN, "", "", _IMAGENET, _SUPERVISED),
    ),
    ("linear", "places205"): (
        *_by_layer("20.69 34.72 43.01 45.97 41.96", "mmselfsup 0.7 README", "", _PRESUMED, "Places205"),
        *_by_layer("21.07 34.86 42.84 45.71 41.45", _OPEN, "", _OPEN_FILE, "Places205"),
        *_by_layer("17.19 21.70 19.23 14.59 11.73", _OPEN, "", "", "Places205", _RANDOM),
        *_by_layer("21.27 36.10 43.03 51.38 53.05", _OPEN, "", "", "Places205", _SUPERVISED),
    ),
    ("linear", "inat18"): (),
    ("knn", None): tuple(
        _one("top-1", value, "feature5", {"k": k}, "mmselfsup 0.8 README", "", _PRESUMED, _IMAGENET)
        for k, value in ((10, "14.5"), (20, "15.0"), (100, "15.0"), (200, "14.2"))
    ),
    ("semi-supervised", None): tuple(
        _one(metric, value, None, {"labels": share}, _OPEN, "", note, _IMAGENET, of)
        for share, metric, value, note, of in (
            ("1 %", "top-1", "16.48", _OPEN_FILE, ""),
            ("1 %", "top-5", "40.37", _OPEN_FILE, ""),
            ("10 %", "top-1", "53.86", _OPEN_FILE, ""),
            ("10 %", "top-5", "79.62", _OPEN_FILE, ""),
            ("1 %", "top-1", "1.56", "", _RANDOM),
            ("1 %", "top-5", "4.99", "", _RANDOM),
            ("10 %", "top-1", "21.78", "", _RANDOM),
            ("10 %", "top-5", "44.24", "", _RANDOM),
        )
    ),
    ("detection", "voc0712-c4"): (
        _one("AP50", "79.70", None, {}, _README, _FIRST, "logged value, rounded to 79.7", "VOC07+12"),
        *(
            _one(metric, value, None, {}, _OPEN, "", "detectron2", "VOC07+12", of)
            for of, values in (
                ("", ("80.36", "55.13", "61.18")),
                (_RANDOM, ("59.02", "32.83", "31.60")),
                (_SUPERVISED, ("81.58", "54.19", "59.80")),
            )
            for metric, value in zip(("AP50", "AP", "AP75"), values, strict=True)
        ),
    ),
    ("detection", "coco-fpn"): tuple(
        _one(metric, value, None, {}, _README, _FIRST, "Mask R-CNN FPN 1x", "COCO2017")
        for metric, value in zip(
            ("box AP", "box AP50", "box AP75", "mask AP", "mask AP50", "mask AP75"),
            ("37.5", "56.2", "41.3", "33.7", "53.3", "36.1"),
            strict=True,
        )
    ),
    ("detection", "voc07-fast-rcnn"): (
        _one("mAP", "51.1", None, {}, "Doersch et al. 2015, Ours-rescale", "", "", _VOC),
        _one("mAP", "51.4", None, {}, "deepcontext README", "", "the authors' released code", _VOC),
        _one("mAP", "45.6", None, {}, "Doersch et al. 2015, K-means-rescale", "", "", _VOC, "K-means"),
        _one("mAP", "56.5", None, {}, "Doersch et al. 2015, ImageNet-rescale", "", "", _VOC, _SUPERVISED),
        *_by_class(
            "61.9 63.3 35.8 32.6 17.2 68.0 67.9 54.8 29.6 52.4 62.9 51.3 67.1 64.3 50.5 24.4 43.7 54.9 67.1 52.7",
            "Doersch et al. 2015, Ours-rescale",
        ),
    ),
    ("detection", "voc07-rcnn"): (
        _one("mAP", "46.3", None, {}, "Doersch et al. 2015, Ours-color-dropping", "", "", _VOC),
        _one("mAP", "45.7", None, {}, "Doersch et al. 2015, Ours-projection", "", "", _VOC),
        _one("mAP", "39.8", None, {}, "Doersch et al. 2015, Scratch-Ours", "", "", _VOC, _RANDOM),
        _one("mAP", "54.2", None, {}, "Doersch et al. 2015, ImageNet-R-CNN", "", "", _VOC, _SUPERVISED),
        *_by_class(
            "60.5 66.5 29.6 28.5 26.3 56.1 70.4 44.8 24.6 45.5 45.4 35.1 52.2 60.2 50.0 28.1 46.7 42.6 54.8 58.6",
            "Doersch et al. 2015, Ours-color-dropping",
        ),
        *_by_class(
            "58.4 62.8 33.5 27.7 24.4 58.5 68.5 41.2 26.3 49.5 42.6 37.3 55.7 62.5 49.4 29.0 47.5 28.4 54.7 56.8",
            "Doersch et al. 2015, Ours-projection",
        ),
    ),
    ("segmentation", "voc12aug"): (_one("mIoU", "63.49", None, {}, _README, _FIRST, "", "VOC12 + Aug"),),
    ("segmentation", "cityscapes"): (),
    ("pretext", None): tuple(
        _one(metric, value, None, {}, "Doersch et al. 2015, section 4.4", "", note, data)
        for metric, value, note, data in (
            ("accuracy", "38.4", "500 random images, 256 pairs each", _VOC),
            ("accuracy", "39.5", "training images", _IMAGENET),
            ("accuracy", "40.3", "validation images", _IMAGENET),
            ("accuracy inside boxes", "39.2", "", _VOC),
            ("accuracy inside boxes", "45.6", "cars alone", _VOC),
        )
    ),
}


def figures(protocol: str, variant: str | None = None) -> tuple[Published, ...]:
    """Return what was published of a protocol (and of one of its variants), in the order of the tables."""
    return _FIGURES.get((protocol, variant), ())


def of_model(published: Iterable[Published], file: str) -> Sequence[Published]:
    """Return the figures of relative location that stand beside a measured one: those of this file where there are any.

    Args:
        published: Figures of one cell of a table.
        file: The zoo's name of the weights that were measured, or "".
    """
    ours = [figure for figure in published if figure.of == "relative location"]
    return [figure for figure in ours if file and figure.file == file] or ours
