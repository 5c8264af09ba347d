"""Detection: a detector trained on the backbone, in the rows of the published tables.

context-pred evaluate detection --model resnet50_8xb64-steplr-70e --data VOCdevkit --out detection
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .boxes import BoxedImages, DataOptions, read

if TYPE_CHECKING:
    from context_pred.evaluate.job import Job, Result

__all__ = ["LAYERS", "NAME", "TRAINS", "VARIANTS", "DataOptions", "defaults", "of_row", "read", "run", "settings_of"]

NAME = "detection"
LAYERS = "none"
TRAINS = True

_ROWS = {
    "voc0712-c4": "c4",
    "coco-fpn": "fpn",
    "voc07-fast-rcnn": "fast_rcnn",
    "voc07-rcnn": "rcnn",
}
"""Variant → module, which has Settings and run(job), and may have defaults(given)."""

VARIANTS = tuple(_ROWS)


def _module(variant: str) -> Any:
    return import_module(f".{_ROWS[variant]}", __name__)


def settings_of(variant: str) -> type:
    """Return a row's Settings."""
    kind: type = _module(variant).Settings
    return kind


def defaults(variant: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that follow from those given, as milestones from a number of steps."""
    module = _module(variant)
    return module.defaults(given) if hasattr(module, "defaults") else {}


def of_row(variant: str, data: BoxedImages) -> BoxedImages:
    """Return what a row takes of the data: VOC2007 alone where the paper's rows find a devkit with more."""
    module = _module(variant)
    return module.data_of(variant, data) if hasattr(module, "data_of") else data


def run(job: Job) -> Result:
    """Train and test the row's detector."""
    result: Result = _module(str(job.variant)).run(job)
    return result
