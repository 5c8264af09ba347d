"""What the page looks things up in: a collection, and its index of whole images or patches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from context_pred.app.album import SAMPLES, Album
from context_pred.app.uploads import open_photo
from context_pred.discover.grid import PatchGrid
from context_pred.discover.index import NeighborIndex
from context_pred.errors import InvalidInputError
from context_pred.model import ContextPredictionModel

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def indices(
    tiny: ContextPredictionModel, collection: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[NeighborIndex, NeighborIndex]:
    out = tmp_path_factory.mktemp("indices")
    options = {"layer": "feature3", "device": "cpu", "workers": 0, "progress": False}
    grid = PatchGrid(32, (2.0, 3.0))
    return (
        NeighborIndex.build(collection, tiny, out=out / "whole", **options),  # type: ignore[arg-type]
        NeighborIndex.build(collection, tiny, out=out / "patches", patches=True, grid=grid, **options),  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def album(tiny: ContextPredictionModel, indices: tuple[NeighborIndex, NeighborIndex]) -> Album:
    return Album.of(tiny, None, indices, CPU)


def test_the_collection_is_the_indexs(album: Album, collection: Path) -> None:
    assert sorted(album.paths) == sorted(str(path) for path in collection.iterdir())
    assert album.samples == album.paths


def test_images_given_are_offered_instead(
    tiny: ContextPredictionModel, indices: tuple[NeighborIndex, NeighborIndex], photos: Path
) -> None:
    album = Album.of(tiny, photos, indices, CPU)
    assert len(album.paths) == len([path for path in photos.iterdir() if not path.name.startswith(".")])
    assert len(album.samples) == SAMPLES
    assert not any(path.endswith(".md") for path in album.samples)
    assert album.whole is indices[0]


def test_a_photograph_is_nearest_to_itself_unless_it_is_left_out(album: Album, collection: Path) -> None:
    path = str(collection / "panda.png")
    image = open_photo(path).image
    found = album.like(image, 3)
    assert (found[0].path, found[0].score) == (path, pytest.approx(1, abs=1e-5))
    without = album.like(image, 50, but=path)
    assert sorted(match.path for match in without) == sorted(set(album.paths) - {path})
    scores = [match.score for match in without]
    assert scores == sorted(scores, reverse=True)


def test_a_photograph_reached_by_a_link_is_left_out_too(album: Album, collection: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(collection)
    path = str(tmp_path / "link" / "panda.png")
    found = album.like(open_photo(path).image, 50, but=path)
    assert sorted(match.path for match in found) == sorted(set(album.paths) - {str(collection / "panda.png")})


def test_the_patch_at_a_point_is_found_where_it_lies(album: Album, collection: Path) -> None:
    """A patch of the grid, asked for by its middle: the best match is itself, box and all."""
    path = str(collection / "moose.png")
    photo = open_photo(path)
    width, height = photo.size
    side = min(width, height) / 2
    found, box = album.like_patch(photo.image, (0.75 * side / width, 0.75 * side / height), 4)
    assert box == pytest.approx((0.25 * side / width, 0.25 * side / height, 1.25 * side / width, 1.25 * side / height))
    assert found[0].path == path
    assert found[0].box is not None
    x1, y1, x2, y2 = found[0].box
    assert ((x1 + x2) / 2, (y1 + y2) / 2) == pytest.approx((0.75 * side, 0.75 * side), abs=0.3 * side)
    assert len({match.path for match in found}) == len(found) == 4
    others, _ = album.like_patch(photo.image, (0.5, 0.5), 9, but=path)
    assert path not in {match.path for match in others}


@pytest.mark.parametrize("point", [(0.0, 0.0), (0.9999, 0.9999), (0.0, 0.5)])
def test_a_patch_at_the_rim_lies_within(album: Album, collection: Path, point: tuple[float, float]) -> None:
    _, (x1, y1, x2, y2) = album.like_patch(open_photo(collection / "koala.png").image, point, 1)
    assert 0 <= x1 < x2 <= 1 + 1e-9
    assert 0 <= y1 < y2 <= 1 + 1e-9


def test_two_indices_of_one_kind_are_refused(
    tiny: ContextPredictionModel, indices: tuple[NeighborIndex, NeighborIndex]
) -> None:
    with pytest.raises(InvalidInputError, match="Two indices of patches"):
        Album.of(tiny, None, (indices[1], indices[1]), CPU)


def test_without_an_index_nothing_is_alike(tiny: ContextPredictionModel, collection: Path) -> None:
    album = Album.of(tiny, collection, (), CPU)
    assert album.like(open_photo(collection / "koala.png").image, 3) == []
    with pytest.raises(InvalidInputError, match="no patches"):
        album.like_patch(open_photo(collection / "koala.png").image, (0.5, 0.5), 3)
