"""A corpus as one numbered sequence: names, reading, parts."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from context_pred.data import find_images
from context_pred.data.collection import Texts, collect
from context_pred.errors import InvalidInputError


def test_files_are_those_that_find_images_finds(photos: Path) -> None:
    for source in (photos, f"{photos}/*.jpg", [photos / "koala.jpg", str(photos / "moose.jpg")]):
        collection = collect(source)
        expected = find_images(source)
        assert len(collection) == len(expected)
        assert list(collection.names) == [str(path) for path in expected]
        assert [collection.read(i) for i in range(len(collection))] == expected


def test_a_sequence_opens_its_folders_and_keeps_its_order(tmp_path: Path) -> None:
    for name in ("f/2.jpg", "f/10.jpg", "z.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    collection = collect([tmp_path / "z.jpg", tmp_path / "f", tmp_path / "missing.jpg"])
    assert [Path(name).name for name in collection.names] == ["z.jpg", "2.jpg", "10.jpg", "missing.jpg"]


def test_a_list_is_a_file_inside_a_sequence_only_as_an_image(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.jpg\n")
    (tmp_path / "a.jpg").write_bytes(b"")
    assert [Path(name).name for name in collect(tmp_path / "list.txt").names] == ["a.jpg"]
    assert [Path(name).name for name in collect([tmp_path / "list.txt"]).names] == ["list.txt"]


def test_nothing_found_is_find_images_error(tmp_path: Path) -> None:
    for source, message in (
        (tmp_path, "No images in the folder"),
        ([], "list of images is empty"),
        (3, "given as int"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            collect(source)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="holds a int"):
        collect([3])  # type: ignore[list-item]


def test_parts_are_numbered_anew(photos: Path) -> None:
    whole = collect(photos)
    part = whole.subset([5, 2, 5])
    assert list(part.names) == [whole.names[5], whole.names[2], whole.names[5]]
    assert part.read(1) == whole.read(2)
    nested = part.subset([1])
    assert (len(nested), nested.read(0)) == (1, whole.read(2))
    assert len(whole.subset([])) == 0
    for wrong in ([len(whole)], [-1]):
        with pytest.raises(InvalidInputError, match=f"numbers 0 … {len(whole) - 1}"):
            whole.subset(wrong)


def test_texts_are_a_sequence(tmp_path: Path) -> None:
    given = ["", "a", "日本", "x" * 300, os.fsdecode(b"bad\xff.jpg"), ""]
    texts = Texts(given)
    assert list(texts) == given
    assert [texts[i] for i in range(-6, 6)] == given + given
    assert texts[1:3] == given[1:3]
    assert texts[::-1] == given[::-1]
    assert "日本" in texts
    for outside in (6, -7):
        with pytest.raises(IndexError):
            texts[outside]
    assert len(Texts([])) == 0


def test_a_large_collection_is_cheap_to_send(tmp_path: Path) -> None:
    texts = Texts(f"/data/corpus/{n // 1000:04d}/{n:08d}.jpg" for n in range(100_000))
    sent = pickle.dumps(texts)
    assert len(sent) < 5_000_000  # a list of paths would be three times that, and a hundred thousand objects
    assert pickle.loads(sent)[99_999] == "/data/corpus/0099/00099999.jpg"
