"""Which images are held out: whole images, by their names alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from context_pred.errors import InvalidInputError
from context_pred.pretrain.split import digest, split


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(200):
        (images / f"{number}.jpg").touch()
    return images


def names(collection: object) -> set[str]:
    return {Path(name).name for name in collection.names}  # type: ignore[attr-defined]


def test_a_share_is_held_out_and_adding_images_moves_none(folder: Path, tmp_path: Path):
    kept, held = split(folder, None, share=0.25, seed=0, out=tmp_path / "run")
    assert held is not None
    assert 30 < len(held) < 70
    assert names(kept).isdisjoint(names(held))
    assert len(kept) + len(held) == 200
    for number in range(200, 220):
        (folder / f"{number}.jpg").touch()
    more, more_held = split(folder, None, share=0.25, seed=0, out=tmp_path / "run")
    assert names(kept) <= names(more)
    assert names(held) <= names(more_held)
    assert names(held) != names(split(folder, None, share=0.25, seed=1, out=tmp_path / "run")[1])


def test_an_image_listed_twice_falls_on_one_side(folder: Path, tmp_path: Path):
    twice = [*sorted(folder.iterdir()), *sorted(folder.iterdir())]
    kept, held = split(twice, None, share=0.25, seed=0, out=tmp_path / "run")
    assert held is not None
    assert names(kept).isdisjoint(names(held))
    assert len(kept) + len(held) == 400


def test_given_images_are_held_out_as_they_are(folder: Path, tmp_path: Path):
    files = sorted(folder.iterdir())
    kept, held = split(files[:50], files[50:60], share=0.5, seed=0, out=tmp_path / "run")
    assert held is not None
    assert (len(kept), len(held)) == (50, 10)
    assert split(folder, None, share=0, seed=0, out=tmp_path / "run")[1] is None


def test_what_cannot_be_split(folder: Path, tmp_path: Path):
    with pytest.raises(InvalidInputError, match="run's own folder"):
        split(folder, None, share=0, seed=0, out=tmp_path)
    with pytest.raises(InvalidInputError, match="leaves none of 1 images to train on"):
        split([folder / "1.jpg"], None, share=0.999999, seed=0, out=tmp_path / "run")


def test_collections_are_known_by_their_names_not_their_place(folder: Path, tmp_path: Path):
    first, _ = split(folder, None, share=0, seed=0, out=tmp_path / "run")
    moved = tmp_path / "elsewhere" / "images"
    moved.parent.mkdir()
    folder.rename(moved)
    second, _ = split(moved, None, share=0, seed=0, out=tmp_path / "run")
    assert digest(first) == digest(second)
    (moved / "0.jpg").unlink()
    assert digest(split(moved, None, share=0, seed=0, out=tmp_path / "run")[0]) != digest(first)
