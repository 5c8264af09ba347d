"""Which files a folder, a pattern and a list stand for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from context_pred.data import find_images
from context_pred.errors import InvalidInputError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def names(found: list[Path], folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in found]


def test_a_folder_is_recursive_in_natural_order_and_hidden_files_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "img10.jpg", "img2.jpg", "IMG3.JPG", "b/1.png", "a/11.png", "a/9.png", "notes.txt", "noending")
    touch(tmp_path, ".DS_Store", ".cache/x.jpg", "Thumbs.db", "desktop.ini", "a/²3.png")
    expected = ["a/9.png", "a/11.png", "a/²3.png", "b/1.png", "img2.jpg", "IMG3.JPG", "img10.jpg", "noending"]
    assert names(find_images(tmp_path), tmp_path) == [*expected, "notes.txt"]
    assert find_images(str(tmp_path)) == find_images(tmp_path)


def test_equal_but_for_case_and_zeros_keeps_one_order(tmp_path: Path) -> None:
    touch(tmp_path, "a01.jpg", "a1.jpg", "A1.jpg")
    assert names(find_images(tmp_path), tmp_path) == ["A1.jpg", "a01.jpg", "a1.jpg"]


def test_a_link_to_itself_is_a_file_that_whoever_opens_it_reports(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    assert names(find_images(tmp_path), tmp_path) == ["a.jpg", "round"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "closed/b.jpg")
    scandir = os.scandir

    def refusing(folder: Path) -> object:
        if folder.name == "closed":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(InvalidInputError, match=r"closed.*cannot be read: Permission denied\. Make it readable"):
        find_images(tmp_path)
    monkeypatch.undo()  # pytest walks its folders too


def test_links_are_followed_and_a_loop_ends(tmp_path: Path) -> None:
    touch(tmp_path, "real/1.jpg", "photos/2.jpg")
    (tmp_path / "photos" / "more").symlink_to(tmp_path / "real")
    (tmp_path / "photos" / "again").symlink_to(tmp_path / "photos")
    assert names(find_images(tmp_path / "photos"), tmp_path / "photos") == ["2.jpg", "more/1.jpg"]


def test_patterns(tmp_path: Path) -> None:
    touch(tmp_path, "x10.jpg", "x9.jpg", "deep/er/x1.jpg", "y.png")
    assert names(find_images(f"{tmp_path}/*.jpg"), tmp_path) == ["x9.jpg", "x10.jpg"]
    assert names(find_images(f"{tmp_path}/**/*.jpg"), tmp_path) == ["deep/er/x1.jpg", "x9.jpg", "x10.jpg"]


def test_a_path_with_brackets_that_exists_is_no_pattern(tmp_path: Path) -> None:
    touch(tmp_path, "shoot [1]/a.jpg", "one [2].jpg")
    assert names(find_images(tmp_path / "shoot [1]"), tmp_path) == ["shoot [1]/a.jpg"]
    assert names(find_images(f"{tmp_path}/one [2].jpg"), tmp_path) == ["one [2].jpg"]


def test_a_list_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "sets/b.jpg", "here.jpg")
    listing = tmp_path / "sets" / "train.txt"
    listing.write_text(
        f"# a comment\n\nb.jpg\r\nhere.jpg\n{tmp_path}/absolute.jpg\nmissing.jpg\n", encoding="utf-8-sig"
    )
    monkeypatch.chdir(tmp_path)
    expected = [tmp_path / "sets/b.jpg", Path("here.jpg"), tmp_path / "absolute.jpg", tmp_path / "sets/missing.jpg"]
    assert find_images(listing) == expected


def test_a_sequence_keeps_its_order_and_opens_folders(tmp_path: Path) -> None:
    touch(tmp_path, "z.jpg", "f/2.jpg", "f/10.jpg")
    given = [str(tmp_path / "z.jpg"), tmp_path / "f", tmp_path / "not there.jpg"]
    assert names(find_images(given), tmp_path) == ["z.jpg", "f/2.jpg", "f/10.jpg", "not there.jpg"]


def test_one_file(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    assert find_images(tmp_path / "a.jpg") == [tmp_path / "a.jpg"]


def test_nothing_found_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "empty" / "below").mkdir(parents=True)
    touch(tmp_path, "empty/.hidden.jpg", "list.txt")
    (tmp_path / "list.txt").write_text("# nothing\n")
    table = [
        (tmp_path / "empty", "in the folder .*empty"),
        (tmp_path / "emty", r"no file or folder .*emty.*'emty' in it is not"),
        ("nowhere/at/all", "no file or folder 'nowhere/at/all'"),
        (f"{tmp_path}/*.jpeg", r"matches the pattern .*\*\.jpeg"),
        (tmp_path / "list.txt", "list .*list.txt.* holds no paths"),
        ([], "list of images is empty"),
        ([3], "holds a int"),
        (3, "given as int"),
    ]
    for source, message in table:
        with pytest.raises(InvalidInputError, match=message):
            find_images(source)  # type: ignore[arg-type]


def test_a_binary_file_called_txt(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xff\xd8\xff\xe0\x00")
    with pytest.raises(InvalidInputError, match="UTF-8"):
        find_images(tmp_path / "list.txt")
