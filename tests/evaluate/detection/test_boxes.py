"""Images with boxes on disk: VOC's devkit, folders laid out like it, and COCO."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from context_pred.errors import InvalidInputError, UnknownNameError
from context_pred.evaluate.detection import voc
from context_pred.evaluate.detection.boxes import DataOptions, read

Marked = Any


def test_devkit_of_both_years(marked: Marked) -> None:
    data = read(marked.voc())
    assert (data.kind, len(data.train), len(data.test)) == ("voc0712", 6, 3)
    assert [image.source for image in data.train] == ["VOC2007"] * 4 + ["VOC2012"] * 2
    assert {image.source for image in data.test} == {"VOC2007"}
    assert data.classes == voc.CLASSES
    assert len(data.classes) == 20
    assert data.lacks == ""
    assert data.described()["train"] == 6


def test_boxes_count_from_0_and_parts_of_objects_are_none(marked: Marked) -> None:
    data = read(marked.voc())
    second = data.train[1]
    width, height = Image.open(second.path).size
    assert second.size == (width, height)
    shares = [0.4 * width, 0.3 * height, 0.95 * width, 0.9 * height]
    np.testing.assert_array_equal(second.boxes[0], [round(share) - 1 for share in shares])
    assert second.boxes[1, 1] == 0  # ymin = 1
    assert [data.classes[label] for label in second.labels] == ["dog", "dog"]
    assert second.difficult.tolist() == [False, True]
    assert (second.boxes.dtype, second.labels.dtype) == (np.float32, np.int64)
    assert len(data.train[4]) == 1  # of 2012, whose cat has a head
    from_0 = read(marked.root / "VOCdevkit", DataOptions(first_pixel=0))
    np.testing.assert_array_equal(from_0.train[1].boxes, second.boxes + 1)


@pytest.mark.parametrize("given", ["VOCdevkit", ".", "VOCdevkit/VOC2007"])
def test_devkit_is_found_from_above_and_from_within(marked: Marked, given: str) -> None:
    marked.voc()
    assert len(read(marked.root / given).train) == 6


def test_2007_alone_says_what_is_missing_for_the_row_of_both(marked: Marked) -> None:
    folder = marked.voc(years=("2007",))
    data = read(folder)
    assert (data.kind, len(data.train)) == ("voc2007", 4)
    assert "VOCtrainval_11-May-2012.tar" in data.lacks
    assert read(folder, DataOptions(years="2007")).lacks == ""
    with pytest.raises(InvalidInputError, match=r"VOC2012 is missing.*VOCtrainval_11-May-2012\.tar"):
        read(folder, DataOptions(years="2007+2012"))
    marked.voc()
    alone = read(folder).only("VOC2007")
    assert (alone.kind, len(alone.train), len(alone.test)) == ("voc2007", 4, 3)
    assert "VOC2007 alone" in alone.notes[-1]
    with pytest.raises(InvalidInputError, match="VOC2012"):
        read(folder).only("VOC2012")


@pytest.mark.parametrize(
    ("gone", "archive"),
    [
        ("VOC2007/ImageSets/Main/test.txt", "VOCtest_06-Nov-2007.tar"),
        ("VOC2007/Annotations/000102.xml", "VOCtest_06-Nov-2007.tar"),
        ("VOC2007/JPEGImages/000002.jpg", "VOCtrainval_06-Nov-2007.tar"),
        ("VOC2012/Annotations/2008_000001.xml", "VOCtrainval_11-May-2012.tar"),
        ("VOC2012/ImageSets/Main/trainval.txt", "VOCtrainval_11-May-2012.tar"),
    ],
)
def test_a_missing_piece_is_named_with_its_archive(marked: Marked, gone: str, archive: str) -> None:
    folder = marked.voc()
    (folder / gone).unlink()
    with pytest.raises(InvalidInputError, match=rf"{Path(gone).name}.* is missing.*{archive}"):
        read(folder)


def test_own_folder_has_its_own_classes_and_all_lists(marked: Marked) -> None:
    data = read(marked.own())
    assert (data.kind, data.classes) == ("voc", ("Platelets", "RBC", "WBC"))
    assert [image.path.stem for image in data.train] == ["a", "b"]
    assert [image.path.stem for image in data.test] == ["c"]
    asked = read(marked.root / "blood", DataOptions(lists="train+test,val"))
    assert [image.path.stem for image in asked.train] == ["a", "c"]
    with pytest.raises(InvalidInputError, match=r"trainval\.txt is missing; lists there are: test, train, val"):
        read(marked.root / "blood", DataOptions(lists="trainval,test"))
    with pytest.raises(InvalidInputError, match=r"TRAIN\[\+MORE\],TEST"):
        read(marked.root / "blood", DataOptions(lists="train"))


def test_boxes_without_area_or_outside_are_left_out_and_said_so(marked: Marked) -> None:
    folder = marked.own()
    empty, outside = (0.5, 0.5, 0.5, 0.9), (1.2, 0.1, 1.4, 0.5)
    marked.annotated("blood", "b", [("RBC", empty, False), ("WBC", outside, False), ("RBC", (0, 0, 1, 1), False)])
    data = read(folder)
    assert len(data.train[1]) == 1
    notes = "\n".join(data.notes)
    assert "Boxes without an area, left out: 1, of b RBC." in notes
    assert "Boxes outside of their image, left out: 1, of b WBC." in notes


def test_images_may_have_another_ending(marked: Marked) -> None:
    folder = marked.own()
    (folder / "JPEGImages" / "c.jpg").unlink()
    path = marked.annotated("blood", "c", [("RBC", (0, 0, 1, 1), False)], suffix=".png")
    assert read(folder).test[0].path == path


def test_annotations_that_cannot_be_read_are_named(marked: Marked) -> None:
    folder = marked.own()
    (folder / "Annotations" / "a.xml").write_text("<annotation><object><name>RBC</name></object></annotation>")
    with pytest.raises(InvalidInputError, match=r"a\.xml is no annotation in VOC's format: .*without a name or a box"):
        read(folder)
    (folder / "Annotations" / "a.xml").write_text("<annotation>")
    with pytest.raises(InvalidInputError, match=r"a\.xml is no annotation"):
        read(folder)


def test_a_class_that_is_none_of_vocs_is_refused(marked: Marked) -> None:
    folder = marked.voc()
    marked.annotated("VOCdevkit/VOC2007", "000001", [("birds", (0, 0, 1, 1), False)])
    with pytest.raises(InvalidInputError, match=r"'birds' is none of VOC's twenty classes\. Did you mean 'bird'"):
        read(folder)


def test_coco(marked: Marked) -> None:
    data = read(marked.coco())
    assert (data.kind, data.classes, data.categories) == ("coco", ("car", "toothbrush"), (3, 90))
    assert [image.number for image in data.train] == [10, 20, 30]  # one has no annotation, one is 31 px high
    assert len(data.test) == 3
    first = data.train[0]
    assert first.labels.tolist() == [0, 1, 0]
    assert first.crowd.tolist() == [False, False, True]
    width, height = first.size
    np.testing.assert_allclose(first.boxes[0], [0.1 * width, 0.1 * height, 0.6 * width, 0.6 * height], rtol=1e-5)
    assert first.outlines[0][0].shape == (6,)
    assert isinstance(first.outlines[2], dict)
    assert "2 without annotations or below 32 px were left out" in data.notes[0]


def test_coco_boxes_that_teach_nothing_are_left_out_of_training_alone(marked: Marked) -> None:
    folder = marked.coco()
    for part in ("train2017", "val2017"):
        path = folder / "annotations" / f"instances_{part}.json"
        record = json.loads(path.read_text())
        for number, box in enumerate(([5, 5, 0.5, 9], [5000, 5, 20, 20], [5, 5, 20, 20])):
            record["annotations"].append(
                {"id": 90 + number, "image_id": 10, "category_id": 3, "bbox": box, "area": number % 2 + (number == 0),
                 "iscrowd": 0, "segmentation": [[5, 5, 25, 5, 25, 25]]}
            )  # fmt: skip
        path.write_text(json.dumps(record))
    data = read(folder)
    assert len(data.train[0]) == 3
    assert len(data.train[0].outlines) == 3
    assert len(data.test[0]) == 6


@pytest.mark.parametrize(
    ("gone", "archive"),
    [
        ("annotations/instances_val2017.json", "annotations_trainval2017.zip"),
        ("val2017", "val2017.zip"),
        ("train2017/000000000001.jpg", "train2017.zip"),
    ],
)
def test_a_missing_piece_of_coco_is_named_with_its_archive(marked: Marked, gone: str, archive: str) -> None:
    folder = marked.coco()
    shutil.rmtree(folder / gone) if (folder / gone).is_dir() else (folder / gone).unlink()
    with pytest.raises(InvalidInputError, match=rf"{Path(gone).name} is missing.*{archive}"):
        read(folder)


def test_json_that_is_not_cocos(marked: Marked) -> None:
    folder = marked.coco()
    path = folder / "annotations" / "instances_train2017.json"
    path.write_text('{"images": []}')
    with pytest.raises(InvalidInputError, match="is not in COCO's format: KeyError"):
        read(folder)
    path.write_text("{")
    with pytest.raises(InvalidInputError, match="cannot be read as JSON"):
        read(folder)


def test_what_is_no_set_of_boxes(marked: Marked, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"is no folder.*VOCdevkit"):
        read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInputError, match="shows no layout of images with boxes that is known; it holds nothing"):
        read(tmp_path / "empty")
    with pytest.raises(InvalidInputError, match=r"instances_train2017\.json is missing"):
        read(marked.own(), DataOptions(layout="coco"))
    with pytest.raises(UnknownNameError, match="'voc'"):
        DataOptions(layout="vok")


def test_damaged_images_can_be_left_out(marked: Marked) -> None:
    data = read(marked.voc())
    less = data.without([str(data.train[0].path), str(data.test[2].path)])
    assert (len(less.train), len(less.test)) == (5, 2)
    assert "2 damaged images were left out" in less.notes[-1]


def test_names_with_spaces(marked: Marked) -> None:
    folder = marked.own()
    for place, suffix in (("JPEGImages", "jpg"), ("Annotations", "xml")):
        (folder / place / f"c.{suffix}").rename(folder / place / f"drop of blood.{suffix}")
    marked.mini.lines("blood/ImageSets/Main/test.txt", ["drop of blood"])
    assert read(folder).test[0].path.name == "drop of blood.jpg"
    marked.mini.lines("blood/ImageSets/Main/test.txt", ["a  1"])
    assert read(folder).test[0].path.name == "a.jpg"


def test_an_image_without_its_annotation_says_who_names_it_and_what_to_write(marked: Marked) -> None:
    folder = marked.own()
    (folder / "Annotations" / "b.xml").unlink()
    with pytest.raises(InvalidInputError, match=r"b\.xml is missing; val\.txt names it; an image without objects"):
        read(folder)


def test_lists_in_another_coding_are_named(marked: Marked) -> None:
    (marked.own() / "ImageSets" / "Main" / "train.txt").write_bytes("b 1".encode("utf-16"))
    with pytest.raises(InvalidInputError, match=r"train\.txt cannot be read as a list"):
        read(marked.root / "blood")


def test_a_folder_with_nothing_to_test_on_says_so(marked: Marked) -> None:
    main = marked.own() / "ImageSets" / "Main"
    for path in main.glob("*.txt"):
        path.rename(main / "trainval.txt")
    with pytest.raises(InvalidInputError, match=r"test\.txt is missing; lists there are: trainval"):
        read(main.parent.parent)


def test_coco_objects_without_an_area_have_their_boxes(marked: Marked) -> None:
    path = marked.coco() / "annotations" / "instances_train2017.json"
    record = json.loads(path.read_text())
    for one in record["annotations"]:
        del one["area"]
    path.write_text(json.dumps(record))
    image = read(marked.root / "coco").train[0]
    np.testing.assert_allclose(image.areas, np.prod(image.boxes[:, 2:] - image.boxes[:, :2], axis=1), rtol=1e-5)
