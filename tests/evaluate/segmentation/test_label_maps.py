"""Label maps of every layout, what is missing, and bad ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from context_pred.errors import ImageError, InvalidInputError, UnknownNameError
from context_pred.evaluate.segmentation.examples import load
from context_pred.evaluate.segmentation.label_maps import Coding, DataOptions, Pair
from context_pred.evaluate.segmentation.layouts import read

Maps = Any


def test_voc_is_train_and_what_sbd_adds_to_train_and_val(maps: Maps) -> None:
    data = read(maps.voc())
    assert data.kind == "voc12aug"
    assert [pair.labels.name for pair in data.train] == [
        "2007_000000.png", "2007_000001.png", "2007_000002.png", "2007_000005.mat", "2007_000006.mat"
    ]  # fmt: skip
    assert [pair.image.stem for pair in data.test] == ["2007_000003", "2007_000004"]
    assert len(data.classes) == 21
    assert "2 of SBD" in data.notes[0]
    _, labels = load(data.train[0], data.coding)
    assert set(np.unique(labels[0])) == {255}
    assert labels[1:].max() <= 3
    _, labels = load(data.train[3], data.coding)
    brightness = np.asarray(Image.open(data.train[3].image).convert("L")).astype(int) // 64
    assert (labels == brightness).mean() > 0.9


def test_voc_as_mmsegmentation_converts_it(maps: Maps) -> None:
    data = read(maps.voc("converted"))
    assert [(pair.labels.parent.name, pair.labels.stem[-1]) for pair in data.train] == [
        ("SegmentationClass", "0"), ("SegmentationClass", "1"), ("SegmentationClass", "2"),
        ("SegmentationClassAug", "5"), ("SegmentationClassAug", "6"),
    ]  # fmt: skip
    assert load(data.train[4], data.coding)[1].max() <= 3


def test_missing_pieces_are_named_with_their_archives(maps: Maps, more_maps: Callable[[str], Maps]) -> None:
    folder = maps.voc("none")
    with pytest.raises(InvalidInputError, match=r"SBD.*benchmark\.tgz.*augmented=false"):
        read(folder)
    assert len(read(folder, DataOptions(augmented=False)).train) == 3
    (folder / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(InvalidInputError, match=r"val\.txt is missing.*VOCtrainval_11-May-2012\.tar"):
        read(folder)
    sbd = more_maps("sbd").voc()
    (sbd / "benchmark_RELEASE/dataset/cls/2007_000006.mat").unlink()
    with pytest.raises(InvalidInputError, match=r"2007_000006\.mat is missing.*benchmark\.tgz"):
        read(sbd)
    city = more_maps("city").cityscapes()
    (city / "gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(InvalidInputError, match=r"labelIds\.png is missing.*gtFine_trainvaltest\.zip.*cityscapes-data"):
        read(city)


@pytest.mark.parametrize("converted", [False, True])
def test_cityscapes_ids_become_the_nineteen_classes(maps: Maps, converted: bool) -> None:
    data = read(maps.cityscapes(converted))
    assert (data.kind, len(data.train), len(data.test), len(data.classes)) == ("cityscapes", 2, 1, 19)
    assert data.classes[:3] == ("road", "sidewalk", "building")
    assert data.classes[-1] == "bicycle"
    assert ("labelTrainIds" if converted else "labelIds") in data.notes[0]
    _, labels = load(data.train[0], data.coding)
    assert set(np.unique(labels)) <= {0, 1, 2, 255}
    if not converted:
        # cityscapesScripts, labels.py: id → train id
        table = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13,
                 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}  # fmt: skip
        values = np.arange(34, dtype=np.uint8)[None]
        path = maps.labels(values, "all.png")
        assert data.coding.read(path)[0].tolist() == [table.get(k, 255) for k in range(34)]


@pytest.mark.parametrize("style", ["annot", "labels"])
def test_any_folders_with_a_void_of_their_own(maps: Maps, style: str) -> None:
    folder = maps.camvid(style=style)
    data = read(folder, DataOptions(ignore=(3,)))
    assert (data.kind, len(data.train), len(data.test)) == ("folder", 6, 2)
    assert data.classes == ("class0", "class1", "class2")
    assert 3 not in {v for pair in data.train for v in np.unique(load(pair, data.coding)[1])}
    assert read(folder).classes[-1] == "class3"
    maps.lines("classes.txt", ["dark", "grey", "light"])
    assert read(folder, DataOptions(ignore=(3,))).classes == ("dark", "grey", "light")
    named = read(folder, DataOptions(ignore=(0,), classes="a, b, c", splits="val,train"))
    assert (named.classes, named.coding.values, len(named.train), len(named.test)) == (("a", "b", "c"), (1, 2, 3), 2, 4)


def test_a_folder_within_is_found_and_others_are_refused(maps: Maps, tmp_path: Path) -> None:
    maps.camvid()
    assert read(maps.root.parent).name == maps.root.parent.name
    with pytest.raises(InvalidInputError, match="is no folder"):
        read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInputError, match=r"shows no layout.*voc12aug: .*cityscapes: .*folder: "):
        read(tmp_path / "empty")
    with pytest.raises(UnknownNameError, match="Did you mean 'val'"):
        read(maps.root, DataOptions(splits="train,vall"))
    with pytest.raises(UnknownNameError, match="'folder'"):
        read(maps.root, DataOptions(layout="folders"))
    (maps.root / "trainannot/002.png").unlink()
    with pytest.raises(InvalidInputError, match=r"1 images of .*train have no label map .*: 002\."):
        read(maps.root)


def test_bad_label_maps_are_errors_that_say_what_is_wrong(maps: Maps) -> None:
    maps.photo("a.png")
    image, coding = maps.root / "a.png", Coding((0, 1, 2), (3,))
    good = np.zeros((48, 64), np.uint8)
    cases = {
        "size": (Image.fromarray(good[:40]), r"64×40 px for an image of 64×48 px"),
        "colours": (Image.new("RGB", (64, 48)), r"colours in place of numbers \(Pillow's mode RGB\)"),
        "values": (Image.fromarray(good + 9), r"with the value 9; accepted are 0 … 2, and 3, 255"),
        "high": (Image.fromarray(good.astype(np.int32) + 300), r"with the value 300"),
        "negative": (Image.fromarray(good.astype(np.int32) - 5), r"with the value -5"),
    }
    for name, (map_, words) in cases.items():
        path = maps.root / f"{name}.tif"
        map_.save(path)
        with pytest.raises(ImageError, match=words):
            load(Pair(image, path), coding)
    (maps.root / "torn.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(ImageError, match=r"torn\.png"):
        load(Pair(image, maps.root / "torn.png"), coding)
    (maps.root / "torn.mat").write_bytes(b"nothing")
    with pytest.raises(ImageError, match="no label map of SBD"):
        load(Pair(image, maps.root / "torn.mat"), coding)
    one_bit = Image.fromarray(good + 1).convert("L").point(lambda v: 255 * v).convert("1")
    one_bit.save(maps.root / "one.png")
    assert set(np.unique(load(Pair(image, maps.root / "one.png"), coding)[1])) == {1}
