"""Purity and coverage by hand, and labels from folders, lists and annotations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from context_pred.discover.labels import only, read_labels
from context_pred.discover.purity import curve, purity
from context_pred.errors import InvalidInputError, UnknownNameError

LABELS = tuple(frozenset(text.split()) for text in ("a", "a", "b", "a b", "", "c"))


def test_purity_is_the_commonest_labels_share() -> None:
    assert purity([0, 1, 2], LABELS) == (pytest.approx(2 / 3), "a")
    assert purity([0, 1, 3], LABELS) == (1.0, "a")
    assert purity([2, 3], LABELS) == (1.0, "b")
    assert purity([4], LABELS) == (0.0, "")
    assert purity([0, 2], LABELS) == (0.5, "a")


def test_the_curve_by_hand() -> None:
    clusters = [np.array([0, 2]), np.array([0, 1]), np.array([2, 3, 4]), np.array([4])]
    found = curve(clusters, LABELS)
    # Purities .5, 1, 2/3, 0: the order is 1, 2, 0, 3.
    assert found.order.tolist() == [1, 2, 0, 3]
    np.testing.assert_allclose(found.coverage, [2 / 6, 5 / 6, 5 / 6, 5 / 6])
    np.testing.assert_allclose(found.purity, [1, 5 / 6, (1 + 2 / 3 + 0.5) / 3, (1 + 2 / 3 + 0.5) / 4])
    # From 0 to 1/3 level at 1, then a trapezium to (5/6, 5/6).
    assert found.area() == pytest.approx(1 / 3 + 0.5 * (1 + 5 / 6) / 2)
    assert found.area(0.5) == pytest.approx(1 / 3 + (1 / 6) * (1 + (1 - (1 / 6) * (1 / 3))) / 2)
    assert found.area(0.2) == pytest.approx(0.2)
    assert found.to_dict()["area"] == pytest.approx(found.area(), abs=1e-6)


def test_labels_of_folders_lists_and_annotations(tmp_path: Path) -> None:
    paths = [str(tmp_path / folder / name) for folder, name in (("cat", "1.jpg"), ("dog", "2.jpg"), ("dog", "3.jpg"))]
    assert read_labels("folders", paths) == (frozenset({"cat"}), frozenset({"dog"}), frozenset({"dog"}))
    (tmp_path / "cat").mkdir()
    (tmp_path / "store.jpg").touch()
    (tmp_path / "cat" / "1.jpg").symlink_to(tmp_path / "store.jpg")
    assert read_labels("folders", paths[:1]) == (frozenset({"cat"}),)
    (tmp_path / "cat" / "1.jpg").unlink()
    (tmp_path / "plain.txt").write_text("cat/1.jpg 7\n\ndog/2.jpg 8\n")
    assert read_labels(tmp_path / "plain.txt", paths) == (frozenset({"7"}), frozenset({"8"}), frozenset())
    (tmp_path / "commas.txt").write_text("cat/1.jpg, 7, x y\ndog/2.jpg, 8, z\n")
    assert read_labels(tmp_path / "commas.txt", paths, 2) == (frozenset({"x y"}), frozenset({"z"}), frozenset())
    spaced = [str(tmp_path / name) for name in ("my  photo 1.jpg", "a, b.jpg")]
    (tmp_path / "spaced.txt").write_text('my  photo 1.jpg cat\n"a, b.jpg", dog\n')
    assert read_labels(tmp_path / "spaced.txt", spaced) == (frozenset({"cat"}), frozenset({"dog"}))
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "1.xml").write_text(
        "<annotation><object><name>sofa</name></object><object><name>person</name></object></annotation>"
    )
    found = read_labels(tmp_path / "Annotations", paths)
    assert found == (frozenset({"sofa", "person"}), frozenset(), frozenset())
    assert only(found, ["sofa"]) == [0]


def test_labels_that_do_not_fit_are_named(tmp_path: Path) -> None:
    paths = [str(tmp_path / "1.jpg")]
    with pytest.raises(InvalidInputError, match="nonesuch"):
        read_labels("nonesuch", paths)
    (tmp_path / "list.txt").write_text("other.jpg a\n")
    with pytest.raises(InvalidInputError, match="names none of the 1"):
        read_labels(tmp_path / "list.txt", paths)
    with pytest.raises(InvalidInputError, match=r"line 1.*column 2"):
        read_labels(tmp_path / "list.txt", paths, 2)
    (tmp_path / "A").mkdir()
    (tmp_path / "A" / "1.xml").write_text("<annotation")
    with pytest.raises(InvalidInputError, match=r"1\.xml"):
        read_labels(tmp_path / "A", paths)
    with pytest.raises(UnknownNameError, match=r"sofas.*sofa"):
        only((frozenset({"sofa"}),), ["sofas"])
