"""Opening photographs for a picture: as many as asked for, the damaged replaced, large ones made smaller."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from context_pred.discover.pictures.photographs import LARGEST, found_in, moderate, opened, told
from context_pred.discover.pictures.sheets import drawable, fitted
from context_pred.errors import ImageError, InvalidInputError


def test_a_choice_is_the_seeds(folder: Path) -> None:
    choices = [opened(folder, at_most=3, seed=seed).paths for seed in (0, 0, 1, 2, 3)]
    assert choices[0] == choices[1]
    assert len(set(choices)) > 1
    assert all(len(paths) == 3 and list(paths) == sorted(paths) for paths in choices)
    assert opened(folder, at_most=3).found == 6


def test_others_take_the_place_of_the_damaged(folder: Path, bomb: Path) -> None:
    for k in range(6):
        (folder / f"damaged{k}.jpg").write_bytes(b"\xff\xd8\xff nothing")
    found = opened([folder, bomb], at_most=6, seed=4)
    assert len(found) == 6
    assert not any("damaged" in path or "bomb" in path for path in found.paths)
    assert all(reason for reason in found.skipped.values())
    everything = opened([folder, bomb], at_most=100)
    assert len(everything) == 6
    assert len(everything.skipped) == 7
    assert "7 files skipped" in told(everything.skipped)
    assert "pixels" in told({str(bomb): everything.skipped[str(bomb)]})


def test_one_file_counts_once_and_what_was_drawn_is_none(folder: Path) -> None:
    first = min(folder.rglob("*.png"))
    (folder / "link.png").symlink_to(first)
    (folder / "map.png").symlink_to(first)
    (folder / "similarity.html").write_text("drawn")
    assert len(found_in(folder, folder)) == len(found_in([folder, folder], folder)) == 6
    with pytest.raises(InvalidInputError, match="drawn there before"):
        found_in(folder / "similarity.html", folder)


@pytest.mark.parametrize(
    ("name", "drawn"), [("Łódź ü", "Łodz u"), ("a\nb", "a b"), ("\udcff\u202egpj", "??gpj"), ("½…−", "1\u20442...−")]
)
def test_names_are_drawn_in_a_line_of_plain_letters(name: str, drawn: str) -> None:
    assert drawable(name) == drawn
    assert fitted(name, 400, 12) == drawn


def test_large_photographs_become_smaller() -> None:
    image, size = moderate(Image.new("RGB", (3 * LARGEST, 2 * LARGEST)))
    assert size == (3 * LARGEST, 2 * LARGEST)
    assert image.size == (1.5 * LARGEST, LARGEST)
    little = Image.new("RGB", (30, 20))
    assert moderate(little)[0] is little
    panorama, _ = moderate(Image.new("RGB", (9000, 3)))
    assert panorama.size == (9000, 3)


def test_nothing_to_open(bomb: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"No image could be opened; the first: .*bomb.png"):
        opened(bomb, at_most=3)
    with pytest.raises(InvalidInputError, match="No images"):
        opened(tmp_path / "none", at_most=3)
    for wrong in (0, -1, 101, 2.0, True, None):
        with pytest.raises(InvalidInputError, match="at_most"):
            opened(bomb, at_most=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, None])
def test_a_seed_that_no_generator_takes(folder: Path, seed: object) -> None:
    with pytest.raises(InvalidInputError, match="seed="):
        opened(folder, at_most=1, seed=seed)  # type: ignore[arg-type]
