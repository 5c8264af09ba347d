"""Matching constellations: against brute force on random features, and what a stopped search leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from context_pred.discover import mining
from context_pred.discover.constellations import CORNERS, SIDES
from context_pred.discover.grid import PatchGrid
from context_pred.discover.mining import Search, draw, match
from context_pred.discover.patches import Patches
from context_pred.errors import InvalidInputError

GRID = PatchGrid(8, sides=(3.0, 4.5))
SIZES = ((30, 30), (30, 44), (50, 30), (30, 30), (30, 44), (90, 70), (40, 40), (33, 55))


def collection(seed: int = 0, width: int = 6) -> Patches:
    """Photographs of several sizes with random features; neighbouring patches' are alike, so that some verify."""
    rng = np.random.default_rng(seed)
    boxes = [GRID.boxes(height, width_) for height, width_ in SIZES]
    starts = np.cumsum([0, *map(len, boxes)])
    everything = np.concatenate(boxes)
    middle = np.concatenate([(box[:, :2] + box[:, 2:]) / 2 / box.max() for box in boxes])
    waves = np.sin(7 * middle @ rng.normal(size=(2, width)) + rng.normal(size=width))
    features = (waves + 0.3 * rng.normal(size=waves.shape)).astype(np.float32)
    names = tuple(f"{number}.png" for number in range(len(SIZES)))
    return Patches(Path("none"), names, np.array(SIZES), starts, features, everything, GRID, {}, {})


def all_constellations(patches: Patches) -> set[tuple[int, ...]]:
    """Every four patches of one photograph and scale that touch, by their boxes."""
    found = set()
    for scales in patches.scales:
        for first, rows, columns in scales:
            box = patches.boxes[first : first + rows * columns].astype(np.float64)
            for a in range(len(box)):
                right = np.flatnonzero(np.isclose(box[:, 0], box[a, 2]) & np.isclose(box[:, 1], box[a, 1]))
                below = np.flatnonzero(np.isclose(box[:, 0], box[a, 0]) & np.isclose(box[:, 1], box[a, 3]))
                both = np.flatnonzero(np.isclose(box[:, 0], box[a, 2]) & np.isclose(box[:, 1], box[a, 3]))
                if len(right) and len(below) and len(both):
                    found.add((first + a, first + int(right[0]), first + int(below[0]), first + int(both[0])))
    return found


def test_constellations_are_four_that_touch_each_once_and_follow_the_seed() -> None:
    patches = collection()
    everything = all_constellations(patches)
    assert {tuple(row) for row in draw(patches, 10**6, 0).tolist()} == everything
    some = draw(patches, 40, 3)
    assert len({tuple(row) for row in some.tolist()}) == 40
    assert {tuple(row) for row in some.tolist()} <= everything
    np.testing.assert_array_equal(some, draw(patches, 40, 3))
    assert not np.array_equal(some, draw(patches, 40, 4))


def by_hand(patches: Patches, rows: np.ndarray, photographs: int, centered: bool) -> list[list[tuple[int, list[int]]]]:
    """Of each constellation the verified photographs with the rows matched there, by loops."""
    features = patches.features.astype(np.float64)
    if centered:
        features = features - features.mean(0)
    features = features - features.mean(1, keepdims=True)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    found = []
    for four in rows:
        strongest = []
        for image in range(len(patches.paths)):
            span = range(patches.starts[image], patches.starts[image + 1])
            at = [max(span, key=lambda row: features[row] @ features[one]) for one in four]
            near = np.mean([features[row] @ features[one] for row, one in zip(at, four, strict=True)])
            strongest.append((-near, image, at))
        kept = []
        for _, image, at in sorted(strongest)[:photographs]:
            box = patches.boxes[at].astype(np.float64)
            points, patch = (box[:, :2] + box[:, 2:]) / 2, (box[:, 2:] - box[:, :2]).mean()
            middle = points.mean(0)
            side = float(np.clip(((points - middle) * CORNERS).sum() / 2, SIDES[0] * patch, SIDES[1] * patch))
            if ((points - middle - side * CORNERS) ** 2).sum() / side**2 < 1:
                kept.append((image, at))
        found.append(kept)
    return found


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("photographs", [3, 100])
def test_matches_are_those_of_brute_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, centered: bool, photographs: int
) -> None:
    monkeypatch.setattr(mining, "_BLOCK", 16)
    monkeypatch.setattr(mining, "_BYTES", 40_000)
    monkeypatch.setattr(mining, "_ROWS", 50)
    patches = collection()
    search = Search(constellations=50, photographs=photographs, centered=centered, seed=1)
    found = match(patches, search, out=tmp_path / "matches", device="cpu", progress=False)
    wanted = by_hand(patches, found.rows, photographs, centered)
    assert found.verified.tolist() == list(map(len, wanted))
    assert 0 < found.verified.mean() < min(photographs, len(SIZES)), "some verify, some do not"
    for number, kept in enumerate(wanted):
        assert found.images[number, : len(kept)].tolist() == [image for image, _ in kept]
        assert found.matched[number, : len(kept)].tolist() == [at for _, at in kept]
        assert (found.images[number, len(kept) :] == -1).all()
    own = patches.image_of(found.rows[:, 0])
    np.testing.assert_array_equal(found.images[:, 0], own)
    np.testing.assert_allclose(found.similarity[:, 0], 1, atol=1e-5)
    np.testing.assert_allclose(found.error[:, 0], 0, atol=1e-3)
    assert not (tmp_path / "matches" / "prepared.npy").exists()


def test_a_stopped_search_goes_on_and_a_damaged_part_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mining, "_BLOCK", 10)
    patches, search = collection(), Search(constellations=50, seed=2)
    whole = match(patches, search, out=tmp_path / "whole", device="cpu", progress=False)
    done, real = 0, mining._Finder.find

    def failing(self: mining._Finder, rows: np.ndarray) -> mining.Matches:
        nonlocal done
        if done == 3:
            raise KeyboardInterrupt
        done += 1
        return real(self, rows)

    with monkeypatch.context() as patched:
        patched.setattr(mining._Finder, "find", failing)
        with pytest.raises(KeyboardInterrupt):
            match(patches, search, out=tmp_path / "out", device="cpu", progress=False)
    parts = sorted((tmp_path / "out").glob("part-*.npz"))
    assert len(parts) == 3
    parts[1].write_bytes(parts[1].read_bytes()[:300])
    untouched = parts[0].stat().st_mtime_ns
    on = match(patches, search, out=tmp_path / "out", device="cpu", progress=False)
    assert parts[0].stat().st_mtime_ns == untouched
    for name in ("rows", "images", "matched", "similarity", "error"):
        np.testing.assert_array_equal(getattr(on, name), getattr(whole, name))


def test_photographs_without_room_are_told() -> None:
    patches = collection()
    patches.__dict__["scales"] = [[(0, 2, 2)]] * len(SIZES)
    with pytest.raises(InvalidInputError, match="room for four"):
        draw(patches, 5, 0)


@pytest.mark.parametrize("wrong", [{"constellations": 0}, {"photographs": 1}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        Search(**wrong)  # type: ignore[arg-type]
