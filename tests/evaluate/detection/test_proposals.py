"""Selective search: its boxes, what is kept of them, and proposals from files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from context_pred.errors import ImageError, InvalidInputError
from context_pred.evaluate.detection import proposals, read
from context_pred.evaluate.detection.average_precision import overlaps
from context_pred.evaluate.detection.boxes import BoxedImage
from context_pred.evaluate.detection.proposals import ProposalOptions, from_file, of_images, search

Marked = Any
SMALL = ProposalOptions(search="single", search_width=80, smallest_box=8)


def picture() -> np.ndarray[Any, Any]:
    """A green field with a red box at x 30…69, y 20…59, and a blue one at x 90…119, y 50…89."""
    image = np.full((100, 150, 3), (60, 140, 60), np.uint8)
    image[20:60, 30:70] = (200, 30, 30)
    image[50:90, 90:120] = (30, 30, 200)
    return image


@pytest.mark.parametrize("width", [150, 300])
def test_search_finds_what_stands_out_in_pixels_of_the_image(width: int) -> None:
    found = search(picture(), ProposalOptions(search_width=width, smallest_box=10))
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert (found[:, [0, 2]] <= 149).all()
    assert (found[:, [1, 3]] <= 99).all()
    objects = np.array([[30, 20, 69, 59], [90, 50, 119, 89]], np.float32)
    best = overlaps(found, objects).max(0)
    assert (best > 0.85).all(), best


class Engine:
    """Finds one box, 30 × 20 px at (4, 6) of the resized image."""

    def process(self) -> list[list[int]]:
        return [[4, 6, 30, 20]]

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def test_the_last_pixel_is_within_also_where_the_image_was_resized(monkeypatch: Any) -> None:
    segmentation = pytest.importorskip("cv2.ximgproc").segmentation
    monkeypatch.setattr(segmentation, "createSelectiveSearchSegmentation", Engine)
    assert search(picture(), ProposalOptions(search_width=150)).tolist() == [[4, 6, 33, 25]]
    assert search(picture(), ProposalOptions(search_width=300)).tolist() == [[2, 3, 16.5, 12.5]]
    assert search(picture(), ProposalOptions(search_width=150, smallest_box=21)).tolist() == []


def test_search_is_the_same_each_time_and_each_box_comes_once() -> None:
    options = ProposalOptions(search_width=150, smallest_box=10)
    first, second = search(picture(), options), search(picture(), options)
    np.testing.assert_array_equal(first, second)
    assert len(np.unique(first, axis=0)) == len(first)


def test_small_boxes_are_left_out_in_pixels_of_the_resized_image() -> None:
    found = search(picture(), ProposalOptions(search_width=300, smallest_box=40))
    sides = found[:, 2:] - found[:, :2] + 1
    assert len(found)
    assert sides.min() >= 19  # 40 of 300 px are 20 of 150, cut off at the border by one at the most


def images_of(marked: Marked) -> tuple[BoxedImage, ...]:
    return read(marked.own()).train


def test_what_was_searched_is_kept_and_gone_on_with(marked: Marked, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(proposals, "CHUNK", 1)
    images = images_of(marked)
    calls: list[str] = []
    real = proposals.search

    def counted(image: Any, options: ProposalOptions) -> Any:
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append("")
        return real(image, options)

    with monkeypatch.context() as patched:
        patched.setattr(proposals, "search", counted)
        with pytest.raises(KeyboardInterrupt):
            of_images(images, SMALL, "train", tmp_path)
    seen: list[str] = []
    monkeypatch.setattr(proposals, "search", lambda *what: seen.append("") or real(*what))
    found = of_images(images, SMALL, "train", tmp_path)
    assert len(seen) == len(images) - 1
    again = of_images(images, SMALL, "train", tmp_path)
    assert len(seen) == len(images) - 1
    for one, two, image in zip(found, again, images, strict=True):
        np.testing.assert_array_equal(one, two)
        assert one.shape[1] == 4
        assert image.size[0] > one[:, 2].max()
    other = ProposalOptions(search="single", search_width=90, smallest_box=8)
    next(tmp_path.rglob("00000.npz")).write_bytes(b"words")
    with pytest.raises(InvalidInputError, match=r"00000\.npz is damaged .*Remove it"):
        of_images(images, SMALL, "train", tmp_path)
    of_images(images, other, "train", tmp_path)
    assert len(seen) == 2 * len(images) - 1  # another width is another search


def test_a_share_is_drawn_by_the_seed(marked: Marked, tmp_path: Path) -> None:
    images = images_of(marked)
    everything = of_images(images, SMALL, "train", tmp_path)
    few = ProposalOptions(search="single", search_width=80, smallest_box=8, proposals=3)
    first, again, other = (of_images(images, few, "train", tmp_path, seed=seed) for seed in (0, 0, 1))
    assert [len(boxes) for boxes in first] == [min(3, len(boxes)) for boxes in everything]
    np.testing.assert_array_equal(np.concatenate(first), np.concatenate(again))
    assert not np.array_equal(np.concatenate(first), np.concatenate(other))
    assert {tuple(box) for box in first[0]} <= {tuple(box) for box in everything[0]}


def test_a_damaged_image_is_named(marked: Marked, tmp_path: Path) -> None:
    images = images_of(marked)
    images[1].path.write_bytes(b"no image")
    with pytest.raises(ImageError, match=images[1].path.name):
        of_images(images, SMALL, "train", tmp_path)


def test_without_opencv_the_extra_is_named(marked: Marked, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "cv2.ximgproc", None)
    with pytest.raises(InvalidInputError, match=r'selective search needs cv2.*pip install "context-pred\[eval\]"'):
        of_images(images_of(marked), SMALL, "train", tmp_path)


def cells(arrays: list[Any]) -> np.ndarray[Any, Any]:
    found = np.empty((1, len(arrays)), object)
    for k, array in enumerate(arrays):
        found[0, k] = array
    return found


def test_published_mat_counts_from_1_with_rows_before_columns(marked: Marked, tmp_path: Path) -> None:
    images = images_of(marked)
    rows = [np.array([[2, 1, 40, 30]], np.uint16), np.array([[5, 7, 9, 11], [1, 1, 3, 4]], np.uint16)]
    path = tmp_path / "voc_2007_trainval.mat"
    scipy.io.savemat(path, {"boxes": cells(rows)})
    found = from_file(path, images)
    np.testing.assert_array_equal(found[0], [[0, 1, 29, 39]])
    np.testing.assert_array_equal(found[1], [[6, 4, 10, 8], [0, 0, 3, 2]])
    names = [image.path.stem for image in images]
    scipy.io.savemat(path, {"boxes": cells(rows), "images": cells(names[::-1]).T})
    np.testing.assert_array_equal(from_file(path, images)[1], [[0, 1, 29, 39]])
    options = ProposalOptions(proposals_train=str(path))
    np.testing.assert_array_equal(of_images(images, options, "train", tmp_path)[1], [[0, 1, 29, 39]])


def test_own_npz_goes_by_names(marked: Marked, tmp_path: Path) -> None:
    images = images_of(marked)
    path = tmp_path / "own.npz"
    np.savez(path, **{image.path.stem: np.full((2, 4), k) for k, image in enumerate(images)})
    np.testing.assert_array_equal(from_file(path, images)[1], np.ones((2, 4)))
    with pytest.raises(InvalidInputError, match="no proposals of 1 of 1 images: c"):
        from_file(path, read(marked.root / "blood").test)


def bad_files(folder: Path) -> dict[str, tuple[str, str]]:
    scipy.io.savemat(folder / "three.mat", {"boxes": cells([np.zeros((1, 4))] * 3)})
    scipy.io.savemat(folder / "nothing.mat", {"other": np.zeros(3)})
    (folder / "broken.mat").write_bytes(b"MATLAB 7.3 MAT-file" + bytes(200))
    (folder / "broken.npz").write_bytes(b"PK nothing")
    return {
        "missing.mat": ("are missing", ""),
        "three.mat": ("of 3 images, and the split has 2", ""),
        "nothing.mat": ("cannot be read as proposals", "boxes"),
        "broken.mat": ("cannot be read as proposals", ""),
        "broken.npz": ("cannot be read as proposals", ""),
    }


def test_files_that_are_no_proposals_are_refused(marked: Marked, tmp_path: Path) -> None:
    images = images_of(marked)
    for name, (message, more) in bad_files(tmp_path).items():
        with pytest.raises(InvalidInputError, match=message) as caught:
            from_file(tmp_path / name, images)
        assert more in str(caught.value)


@pytest.mark.parametrize("given", [{"search_width": 10}, {"proposals": -1}, {"smallest_box": -1}])
def test_options_out_of_range_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="accepted is"):
        ProposalOptions(**given)
