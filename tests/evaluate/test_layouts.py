"""Labelled sets as they lie on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from context_pred.errors import ContextPredError, InvalidInputError, UnknownNameError
from context_pred.evaluate.labelled import ClassSplit, DataOptions, Split, read

Mini = Any


def names(split: Split) -> list[str]:
    return [file.name for file in split.files]


def test_voc_labels_order_and_difficult_images(mini: Mini) -> None:
    root = mini.voc()
    for folder in (root.parent, root, root / "VOC2007"):
        data = read(folder)
        assert (data.kind, data.classes) == ("voc2007", ("bird", "cat", "dog"))
        assert names(data.train) == [f"{k:06}.jpg" for k in range(1, 5)]
        assert names(data.test) == [f"{k:06}.jpg" for k in range(5, 9)]
        expected = [[1, 1, -1], [0, 1, 0], [0, 0, 1], [1, 0, 0]]
        assert data.train.labels.tolist() == data.test.labels.tolist() == expected
        assert data.train.labels.dtype == np.int8
    with pytest.raises(InvalidInputError, match=r"000001\.jpg has 2 classes \(so have 1 of 4 images"):
        _ = data.train.single


def test_voc_without_the_test_archive_names_it_and_where_it_is(mini: Mini) -> None:
    with pytest.raises(InvalidInputError, match=r"Main/test\.txt is missing.*VOCtest_06-Nov-2007\.tar, http"):
        read(mini.voc(test=False))


def test_voc_with_lists_but_no_images_of_the_test_archive(mini: Mini) -> None:
    root = mini.voc()
    (root / "VOC2007" / "JPEGImages" / "000005.jpg").unlink()
    with pytest.raises(InvalidInputError, match=r"000005\.jpg is missing.*VOCtest"):
        read(root)


def test_voc_lacks_the_list_of_a_class(mini: Mini) -> None:
    root = mini.voc()
    (root / "VOC2007" / "ImageSets" / "Main" / "dog_test.txt").unlink()
    with pytest.raises(InvalidInputError, match=r"dog_test\.txt is missing"):
        read(root)


def test_voc_line_of_another_image(mini: Mini) -> None:
    root = mini.voc()
    mini.lines("VOCdevkit/VOC2007/ImageSets/Main/dog_test.txt", ["000099 1"])
    with pytest.raises(InvalidInputError, match=r"dog_test\.txt: '000099 1'"):
        read(root)


def test_voc_other_sets_by_name(mini: Mini) -> None:
    data = read(mini.voc(), DataOptions(lists="test,trainval"))
    assert names(data.train) == [f"{k:06}.jpg" for k in range(5, 9)]


@pytest.mark.parametrize("flat", [False, True])
def test_imagenet(mini: Mini, flat: bool) -> None:
    root = mini.imagenet_flat() if flat else mini.folders("train", "val", classes=("n01440764", "n01443537"))
    data = read(root)
    assert data.kind == "imagenet"
    assert data.train.single.tolist() == ([0, 0, 1, 1, 2, 2] if flat else [0, 0, 1, 1])
    assert data.test.single.tolist() == ([2, 0, 1] if flat else [0, 0, 1, 1])


def test_imagenet_flat_without_its_list_says_where_that_is(mini: Mini) -> None:
    root = mini.imagenet_flat()
    (root / "meta" / "val.txt").unlink()
    with pytest.raises(InvalidInputError, match=r"meta/val\.txt is missing.*caffe_ilsvrc12"):
        read(root)


@pytest.mark.parametrize("within", ["data/vision/torralba/deeplearning/images256", "images256", ""])
def test_places205(mini: Mini, within: str) -> None:
    data = read(mini.places(within))
    assert (data.kind, data.classes) == ("places205", ("0", "1"))
    assert data.train.single.tolist() == [0, 1, 0, 1]
    assert all(file.is_file() for file in (*data.train.files, *data.test.files))


def test_places205_lacks_a_list_or_the_images(mini: Mini) -> None:
    root = mini.places("images256")
    (root / "trainvalsplit_places205" / "val_places205.csv").rename(root / "kept.csv")
    with pytest.raises(InvalidInputError, match=r"val_places205\.csv is missing.*places\.csail"):
        read(root)
    (root / "kept.csv").rename(root / "trainvalsplit_places205" / "val_places205.csv")
    (root / "images256").rename(root / "elsewhere")
    with pytest.raises(InvalidInputError, match=r"gsun_0\.jpg is missing.*imagesPlaces205_resize"):
        read(root)


@pytest.mark.parametrize("content", [b"\xd6\xff\x00", b'a,"' + b"x" * 200_000])
def test_names_of_classes_that_cannot_be_read(mini: Mini, content: bytes) -> None:
    folder = mini.lists()
    next(folder.rglob("classes.csv")).write_bytes(content)
    with pytest.raises(InvalidInputError, match=r"classes\.csv cannot be read"):
        read(folder)


@pytest.mark.parametrize(("text", "words"), [("a/abbey/gsun_0.jpg\n", "accepted is FILE"), ("", "lists nothing")])
def test_places205_lists_that_are_broken(mini: Mini, text: str, words: str) -> None:
    root = mini.places("images256")
    (root / "trainvalsplit_places205" / "train_places205.csv").write_text(text)
    with pytest.raises(InvalidInputError, match=rf"train_places205\.csv.*{words}"):
        read(root)


def test_inaturalist_takes_numbers_and_names_from_the_json(mini: Mini) -> None:
    data = read(mini.inat())
    assert (data.kind, data.classes) == ("inat18", ("Parus major", "Parus ater"))
    assert data.train.single.tolist() == [0, 1, 0, 1]
    assert names(data.test) == ["4.jpg", "5.jpg"]


def test_inaturalist_lacks_a_json_or_has_a_broken_one(mini: Mini) -> None:
    root = mini.inat()
    (root / "val2018.json").write_text("{}")
    with pytest.raises(InvalidInputError, match=r"val2018\.json is not a list"):
        read(root)
    (root / "val2018.json").unlink()
    with pytest.raises(InvalidInputError, match=r"val2018\.json is missing.*inat_comp"):
        read(root)


def test_grocery_lists_with_two_labels(mini: Mini) -> None:
    fine, coarse = read(mini.lists()), read(mini.root, DataOptions(label=2))
    assert (fine.kind, fine.classes) == ("list", ("Gala", "Fuji", "Anjou"))
    assert fine.train.single.tolist() == [0, 1, 2, 0, 0, 1]
    assert fine.test.single.tolist() == [0, 1, 2]
    assert coarse.classes == ("Apple", "Pear")
    assert coarse.train.single.tolist() == [0, 0, 1, 0, 0, 0]
    assert names(fine.train)[0] == "0 ripe.jpg"
    assert "train.txt+val.txt to learn from and test.txt to ask with" in fine.notes[0]


def test_lists_asked_for(mini: Mini) -> None:
    data = read(mini.lists(), DataOptions(lists="train.txt,test.txt"))
    assert len(data.train.files) == 4
    with pytest.raises(InvalidInputError, match=r"accepted is TRAIN\[\+MORE\],TEST"):
        read(mini.root, DataOptions(lists="train.txt"))


def test_list_of_path_space_label_where_paths_have_spaces(mini: Mini) -> None:
    for name in ("train", "test"):
        rows = [f"{mini.photo(name, f'my {kind}.jpg').relative_to(mini.root)} {kind}" for kind in ("pear", "fig")]
        mini.lines(f"{name}.txt", rows)
    data = read(mini.root)
    assert data.classes == ("fig", "pear")
    assert names(data.train) == ["my pear.jpg", "my fig.jpg"]
    assert data.train.single.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("form", "heading"),
    [("{},{}", ""), ('"{}",{}', ""), ('"{}", "{}"', "path,label"), ("{}\t{}", "image\tclass"), ("{} {}", "")],
)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_lists_with_quotes_headings_and_commas_in_paths(mini: Mini, form: str, heading: str, ending: str) -> None:
    folder = "images" if form == "{},{}" else "pie, apple"
    for name, labels in (("train", ("red", "green")), ("test", ("green", "red"))):
        rows = [heading] if heading else []
        for k, label in enumerate(labels):
            mini.photo(folder, f"{name} {k}.jpg")
            rows.append(form.format(f"{folder}/{name} {k}.jpg", label))
        (mini.root / f"{name}.txt").write_bytes(b"\xef\xbb\xbf" + ending.join(rows).encode())
    data = read(mini.root)
    assert (data.kind, data.classes) == ("list", ("green", "red"))
    assert (names(data.train), data.train.single.tolist()) == (["train 0.jpg", "train 1.jpg"], [1, 0])


@pytest.mark.parametrize("called", ["Train Valid", "training validation", "TRAIN TESTING"])
def test_splits_by_other_names(mini: Mini, called: str) -> None:
    for split in called.split():
        for kind in ("cat", "dog"):
            mini.photo(split, kind, "0.jpg")
    data = read(mini.root)
    assert (data.kind, data.classes) == ("folder", ("cat", "dog"))
    assert f"{called.split()[0]} to learn from and {called.split()[1]} to ask" in data.notes[0]


def test_numbers_of_a_list_are_classes_in_order_of_number(mini: Mini) -> None:
    for name in ("train", "test"):
        mini.lines(f"{name}.txt", [f"{mini.photo(name, f'{k}.jpg').relative_to(mini.root)} {k}" for k in (10, 9, 2)])
    assert read(mini.root).classes == ("2", "9", "10")


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("train/0.jpg", "has 0 labels"),  # a path alone
        ("train/0.jpg, 1", "has 1 labels, and label 2"),  # one label of two
        ("train/missing.jpg, 1, 2", "first image .*missing.jpg is not there"),
    ],
)
def test_a_broken_list_is_named(mini: Mini, line: str, error: str) -> None:
    mini.photo("train", "0.jpg")
    mini.lines("train.txt", [line])
    mini.lines("test.txt", ["train/0.jpg, 1, 2"])
    with pytest.raises(InvalidInputError, match=error):
        read(mini.root, DataOptions(layout="list", lists="train.txt,test.txt", label=2))


def test_folders_of_classes(mini: Mini) -> None:
    data = read(mini.folders("train", "test"))
    assert (data.kind, data.classes) == ("folder", ("bird", "cat", "dog"))
    assert data.train.single.tolist() == [0, 0, 1, 1, 2, 2]


def test_folders_with_val_and_test_learn_from_both_first(mini: Mini) -> None:
    data = read(mini.folders("train", "val", "test"))
    assert (len(data.train.files), len(data.test.files)) == (12, 6)
    assert {file.parts[-3] for file in data.test.files} == {"test"}


def test_a_class_that_only_the_test_has(mini: Mini) -> None:
    mini.folders("train", "test")
    mini.photo("test", "catt", "0.jpg")
    with pytest.raises(
        InvalidInputError,
        match=r"1 of the classes have test images but no training images: catt.* Did you mean 'cat'.* Add",
    ):
        read(mini.root)
    mini.photo("test", "cow", "0.jpg")
    with pytest.raises(InvalidInputError, match="2 of the classes have test images but no training images: catt, cow"):
        read(mini.root)


def test_one_folder_is_split_by_class_with_a_seed(mini: Mini) -> None:
    mini.folders("", each=5)
    first, again = read(mini.root, DataOptions(test_share=0.4)), read(mini.root, DataOptions(test_share=0.4))
    other = read(mini.root, DataOptions(test_share=0.4, split_seed=1))
    assert first.kind == "single"
    assert first.test.files == again.test.files != other.test.files
    assert np.bincount(first.test.single).tolist() == [2, 2, 2]
    assert set(first.train.files).isdisjoint(first.test.files)
    assert len(first.train.files) == 9
    assert "seed 0" in first.notes[0]


def test_one_folder_with_a_class_of_one_image(mini: Mini) -> None:
    mini.folders("")
    mini.photo("emu", "0.jpg")
    with pytest.raises(InvalidInputError, match="'emu' has one image"):
        read(mini.root)


def test_unrecognised_says_what_is_there_and_what_is_accepted(mini: Mini) -> None:
    mini.photo("holiday.jpg")
    with pytest.raises(InvalidInputError, match=r"it holds holiday\.jpg\. Accepted: voc2007: .*single: "):
        read(mini.root)
    with pytest.raises(InvalidInputError, match="is no folder"):
        read(mini.root / "nowhere")
    with pytest.raises(UnknownNameError, match=r"Unknown layout 'voc2077'\. Did you mean 'voc2007'"):
        read(mini.root, DataOptions(layout="voc2077"))


@pytest.mark.parametrize("options", [{"label": 0}, {"test_share": 0.0}, {"test_share": 1.0}, {"split_seed": -1}])
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ContextPredError, match=next(iter(options))):
        DataOptions(**options)


def test_labels_of_one_class_an_image_become_a_matrix_when_asked_for() -> None:
    split = ClassSplit([Path("a"), Path("b"), Path("c")], np.array([1, 0, 1]), 3)
    assert split.labels.tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0]]
    assert split.labels.dtype == np.int8
    assert Split(split.files, split.labels).single.tolist() == split.single.tolist() == [1, 0, 1]


@pytest.mark.parametrize("single", [False, True])
def test_leaving_files_out_keeps_labels_beside_files(single: bool) -> None:
    split: Split = ClassSplit([Path("a"), Path("b"), Path("c")], np.array([1, 0, 2]), 3)
    if not single:
        split = Split(split.files, split.labels)
    left = split.without({"b"}).without({"a"})
    assert left.files == (Path("c"),)
    assert left.single.tolist() == [2]
    assert left.original == split.files


@pytest.mark.parametrize("empty", ["train.txt", "test.txt"])
def test_an_empty_list_is_named(mini: Mini, empty: str) -> None:
    (mini.lists() / "dataset" / empty).write_text("\n")
    with pytest.raises(InvalidInputError, match=rf"{empty} lists nothing.*--set lists="):
        read(mini.root)


def test_lists_that_are_not_there_are_named(mini: Mini) -> None:
    with pytest.raises(InvalidInputError, match=r"tset\.txt is missing; lists names it"):
        read(mini.lists(), DataOptions(lists="train.txt,tset.txt"))


def test_a_layout_asked_for_names_the_piece_that_is_missing(mini: Mini) -> None:
    mini.folders("train")
    pieces = {
        "imagenet": r"val\.txt is missing",
        "folder": "no train/CLASS beside",
        "inat18": r"train2018\.json is missing",
        "voc2007": r"Main is missing.*VOCtrainval",
    }
    for layout, words in pieces.items():
        with pytest.raises(InvalidInputError, match=words):
            read(mini.root, DataOptions(layout=layout))


def test_classes_whose_images_lie_deeper_are_read_when_asked_for(mini: Mini) -> None:
    for kind in ("fig", "pear"):
        for number in range(2):
            mini.photo(kind, "taken in may", f"{number}.jpg")
    with pytest.raises(InvalidInputError, match="shows no layout"):
        read(mini.root)
    assert read(mini.root, DataOptions(layout="single")).classes == ("fig", "pear")


@pytest.mark.parametrize("first", [0, 1])
def test_names_of_classes_counted_from_nought_or_from_one(mini: Mini, first: int) -> None:
    for name in ("train", "test"):
        rows = [f"{mini.photo(name, f'{k}.jpg').relative_to(mini.root)} {k + first}" for k in range(3)]
        mini.lines(f"{name}.txt", rows)
    mini.lines("classes.txt", ["fig", "pear", "plum"])
    assert read(mini.root).classes == ("fig", "pear", "plum")


def test_voc_names_with_spaces(mini: Mini) -> None:
    root = mini.voc()
    main = root / "VOC2007" / "ImageSets" / "Main"
    for path in main.glob("*.txt"):
        path.write_text(path.read_text().replace("000005", "my cat 5"))
    (root / "VOC2007" / "JPEGImages" / "000005.jpg").rename(root / "VOC2007" / "JPEGImages" / "my cat 5.jpg")
    data = read(root)
    assert names(data.test)[0] == "my cat 5.jpg"
    assert data.test.labels[0].tolist() == [1, 1, -1]


def test_folders_of_label_maps_are_no_classes(mini: Mini) -> None:
    mini.folders("", classes=("train", "trainannot", "test", "testannot"))
    with pytest.raises(InvalidInputError, match="shows no layout"):
        read(mini.root)


def test_lists_of_a_layout_without_any_are_refused(mini: Mini) -> None:
    with pytest.raises(InvalidInputError, match=r"lists = 'a\.txt,b\.txt'.*the layout folder, which has no lists"):
        read(mini.folders("train", "test"), DataOptions(lists="a.txt,b.txt"))
