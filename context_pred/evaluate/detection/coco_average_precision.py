"""COCO's average precision, of boxes and of masks, by faster-coco-eval."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, Literal

from context_pred.extras import need

from .average_precision import Detections
from .boxes import BoxedImage
from .examples import run_lengths

Kind = Literal["bbox", "segm"]
METRICS = ("AP", "AP50", "AP75")


def coco(
    images: Sequence[BoxedImage], found: Sequence[Detections], classes: Sequence[str], kind: Kind
) -> dict[str, float]:
    """Average precision as COCO has it: 101 recalls, overlaps of .5 … .95, 100 detections an image, all sizes.

    Crowds neither count nor are counted as wrong; a difficult object of VOC is treated as one that is ignored.

    Args:
        images: The test images, in order.
        found: What was found in each; with masks where ``kind`` is "segm".
        classes: Their names.
        kind: What overlaps: boxes or masks.

    Returns:
        {"AP": mean over the overlaps, "AP50": …, "AP75": …}, 0 … 1; NaN where nothing is marked.
    """
    package = need("faster_coco_eval", "COCO's average precision")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = package.COCO(_truth(images, classes, kind))
        rows = _rows(found, kind)
        if not rows:
            return dict.fromkeys(METRICS, 0.0 if truth.dataset["annotations"] else float("nan"))
        judge = package.COCOeval_faster(truth, truth.loadRes(rows), iouType=kind, print_function=_silent)
        judge.run()
    values = [float(value) for value in judge.stats[:3]]
    return {name: value if value >= 0 else float("nan") for name, value in zip(METRICS, values, strict=True)}


def _silent(*_: object) -> None:
    pass


def _truth(images: Sequence[BoxedImage], classes: Sequence[str], kind: Kind) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(images, 1):
        for k, (x1, y1, x2, y2) in enumerate(image.boxes.tolist()):
            one = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": int(image.labels[k]) + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": float(image.areas[k]),
                "iscrowd": int(image.crowd[k] or image.difficult[k]),
            }
            if kind == "segm":
                one["segmentation"] = run_lengths(image.outlines[k], image.size[1], image.size[0])
            annotations.append(one)
    return {
        "images": [
            {"id": n, "width": image.size[0], "height": image.size[1], "file_name": image.path.name}
            for n, image in enumerate(images, 1)
        ],
        "categories": [{"id": k, "name": name} for k, name in enumerate(classes, 1)],
        "annotations": annotations,
    }


def _rows(found: Sequence[Detections], kind: Kind) -> list[dict[str, Any]]:
    rows = []
    for number, one in enumerate(found, 1):
        for k, (x1, y1, x2, y2) in enumerate(one.boxes.tolist()):
            row: dict[str, Any] = {
                "image_id": number, "category_id": int(one.labels[k]) + 1, "score": float(one.scores[k])
            }  # fmt: skip
            if kind == "segm":
                row["segmentation"] = one.masks[k]
            else:
                row["bbox"] = [x1, y1, x2 - x1, y2 - y1]
            rows.append(row)
    return rows
