"""Which images are held out: whole images, by their names alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from context_pred.errors import InvalidInputError
from context_pred.pretrain.split import Split, split


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(200):
        (images / f"{number}.jpg").touch()
    return images


def names(collection: object) -> set[str]:
    return {Path(name).name for name in collection.names}  # type: ignore[attr-defined]


def divided(
    images: object, held_out: object = None, share: float = 0, seed: int = 0, out: str = "/nowhere/run"
) -> Split:
    return split(images, held_out, share=share, seed=seed, out=Path(out))  # type: ignore[arg-type]


def test_a_share_is_held_out_and_adding_images_moves_none(folder: Path):
    first = divided(folder, share=0.25)
    assert first.held_out is not None
    assert 30 < len(first.held_out) < 70
    assert names(first.training).isdisjoint(names(first.held_out))
    assert len(first.training) + len(first.held_out) == 200
    for number in range(200, 220):
        (folder / f"{number}.jpg").touch()
    more = divided(folder, share=0.25)
    assert names(first.training) <= names(more.training)
    assert names(first.held_out) <= names(more.held_out)
    assert names(first.held_out) != names(divided(folder, share=0.25, seed=1).held_out)


def test_an_image_listed_twice_falls_on_one_side(folder: Path):
    found = divided([*sorted(folder.iterdir()), *sorted(folder.iterdir())], share=0.25)
    assert found.held_out is not None
    assert names(found.training).isdisjoint(names(found.held_out))
    assert len(found.training) + len(found.held_out) == 400


def test_given_images_are_held_out_as_they_are(folder: Path):
    files = sorted(folder.iterdir())
    found = divided(files[:50], files[50:60], share=0.5)
    assert found.held_out is not None
    assert (len(found.training), len(found.held_out), found.notes) == (50, 10, ())
    assert divided(folder).held_out is None


def test_what_is_held_out_is_not_trained_on_however_it_is_reached(folder: Path, tmp_path: Path):
    inside = folder / "val"
    inside.mkdir()
    for number in range(3):
        (folder / f"{number}.jpg").rename(inside / f"{number}.jpg")
    (folder / "link.jpg").symlink_to(inside / "0.jpg")
    found = divided(folder, inside)
    assert names(found.training) == {f"{number}.jpg" for number in range(3, 200)}
    assert found.notes == ("4 images are held out and so not trained on.",)
    (tmp_path / "other").symlink_to(inside)
    assert names(divided(folder, tmp_path / "other").training) == names(found.training)
    with pytest.raises(InvalidInputError, match="All 201 images are held out"):
        divided(folder, folder)


def test_a_run_among_its_images_is_refused_before_it_begins(folder: Path, monkeypatch: pytest.MonkeyPatch):
    for images, held_out in ((folder, None), ([folder], None), (sorted(folder.iterdir()), folder)):
        with pytest.raises(InvalidInputError, match="lies in the folder of images"):
            divided(images, held_out, out=str(folder / "runs" / "one"))
    monkeypatch.chdir(folder)
    with pytest.raises(InvalidInputError, match="lies in the folder of images"):
        divided(".", out="run")
    with pytest.raises(InvalidInputError, match="run's own folder"):
        divided([folder / "1.jpg"], out=str(folder))


def test_nothing_left_to_train_on(folder: Path):
    with pytest.raises(InvalidInputError, match="leaves none of 1 images to train on"):
        divided([folder / "1.jpg"], share=0.999999)


def test_a_folder_is_known_by_what_is_in_it_not_by_its_place_or_spelling(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = divided(folder, share=0.25)
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    monkeypatch.chdir(moved)
    for spelt in (moved, ".", "../elsewhere", "./"):
        again = divided(spelt, share=0.25)
        assert (again.training_digest, again.held_out_digest) == (first.training_digest, first.held_out_digest)
        assert names(again.held_out) == names(first.held_out)
    whole = divided(moved).training_digest
    (moved / "0.jpg").unlink()
    assert divided(moved).training_digest != whole


def test_a_list_is_known_however_its_paths_are_spelt(folder: Path, monkeypatch: pytest.MonkeyPatch):
    files = sorted(folder.iterdir())
    first = divided(files, share=0.25)
    monkeypatch.chdir(folder)
    assert divided([path.name for path in files], share=0.25).training_digest == first.training_digest
