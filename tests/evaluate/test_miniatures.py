"""The script that writes a miniature of every format: each is read as what it stands for."""

from __future__ import annotations

from pathlib import Path

from miniatures import write_all

from context_pred.evaluate import detection, labelled, segmentation
from context_pred.evaluate.labelled import DataOptions


def test_every_format_is_read_as_what_it_is(tmp_path: Path, photos: Path) -> None:
    folders = {path.relative_to(tmp_path).parts[0]: path for path in write_all(tmp_path, photos)}
    kinds = {}
    for name, folder in folders.items():
        if name.endswith("boxes"):
            data = detection.read(folder, detection.DataOptions())
        elif name.endswith("maps"):
            data = segmentation.read(folder, segmentation.DataOptions())
        else:
            data = labelled.read(folder, DataOptions())
        described = data.described()
        assert min(described["train"], described["test"], described["classes"]) > 0, name
        kinds[name] = described["kind"]
    assert kinds == {
        "voc2007-classes": "voc2007",
        "voc0712-boxes": "voc0712",
        "own-boxes": "voc",
        "coco-boxes": "coco",
        "voc12aug-maps": "voc12aug",
        "cityscapes-maps": "cityscapes",
        "own-maps": "folder",
        "imagenet": "imagenet",
        "places205": "places205",
        "inat18": "inat18",
        "lists": "list",
        "folders": "folder",
    }
