"""What the tabs show, without a browser: neighbours, similarity maps, and what a browser may send."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("gradio", reason='gradio is not installed: pip install "context-pred[app]"')

from context_pred.app import neighbors_tab, similarity_tab
from context_pred.app.album import Album
from context_pred.app.neighbors_tab import PATCH, WHOLE, Query
from context_pred.app.parts import sent, sent_point
from context_pred.app.uploads import open_photo
from context_pred.discover.index import NeighborIndex
from context_pred.errors import InvalidInputError
from context_pred.model import ContextPredictionModel

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def album(tiny: ContextPredictionModel, collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Album:
    out = tmp_path_factory.mktemp("index") / "whole"
    return Album.of(tiny, None, [NeighborIndex.build(collection, tiny, out=out, workers=0, progress=False)], CPU)


def captions(html: str) -> list[tuple[str, str]]:
    return re.findall(r'class="cp-caption"[^>]*><b>([^<]*)</b><span>([^<]*)</span>', html)


def test_neighbours_of_a_photograph_of_the_collection_leave_it_out(album: Album, collection: Path) -> None:
    path = str(collection / "koala.png")
    query = Query(open_photo(path), path)
    same, shown, picture, found, said = neighbors_tab.look(album, query, WHOLE)
    assert (same, said) == (query, "")
    assert path not in shown
    assert [Path(one).name for one in shown] == [name for _, name in captions(found)]
    assert len(shown) == 5
    assert "koala.png" in picture


def test_a_patch_needs_a_point(album: Album, collection: Path) -> None:
    found = neighbors_tab.look(album, Query(open_photo(collection / "koala.png")), PATCH)[3]
    assert "Choose a point" in found
    with pytest.raises(InvalidInputError, match="no patches"):
        neighbors_tab.look(album, Query(open_photo(collection / "koala.png"), point=(0.5, 0.5)), PATCH)


def test_similarity_maps_of_the_image_itself_and_of_its_neighbours(album: Album, collection: Path) -> None:
    path = str(collection / "koala.png")
    view = similarity_tab.seen(album, open_photo(path), path, (), "feature3", (0.5, 0.5))
    near = [Path(match.path).name for match in album.like(view.photo.image, 5, but=path)]
    drawn = captions(similarity_tab.maps(view))
    assert drawn[0] == ("itself", "koala.png")
    assert [name for _, name in drawn[1:]] == near
    assert all(-1 <= float(score) <= 1 for score, _ in drawn[1:])


def test_others_that_are_given_come_instead_and_their_copy_is_likest_of_all(album: Album, collection: Path) -> None:
    photo = open_photo(collection / "koala.png")
    given = (open_photo(collection / "panda.png"), *[open_photo(collection / "koala.png")] * 7)
    view = similarity_tab.seen(album, photo, None, given, "feature3", (0.4, 0.6))
    drawn = captions(similarity_tab.maps(view))
    assert [name for _, name in drawn] == ["koala.png", "panda.png", *["koala.png"] * 7]
    assert float(drawn[2][0]) == 1.0 > float(drawn[1][0])


def test_an_image_alone_has_its_own_map(tiny: ContextPredictionModel, collection: Path) -> None:
    album = Album.of(tiny, None, (), CPU)
    view = similarity_tab.seen(album, open_photo(collection / "koala.png"), None, (), "feature3", (0.5, 0.5))
    assert captions(similarity_tab.maps(view)) == [("itself", "koala.png")]
    assert similarity_tab.maps(similarity_tab.seen(album, view.photo, None, (), "feature3")) == ""


@pytest.mark.parametrize("data", [{}, None, {"number": 6}, {"number": -1}, {"number": True}, {"number": "2"}])
def test_a_number_that_no_button_sends(data: object) -> None:
    with pytest.raises(InvalidInputError, match="0 … 5"):
        sent(SimpleNamespace(_data=data), "number", 6)  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [{}, None, {"x": 0.5}, {"x": float("nan"), "y": 0}, {"x": "0", "y": 0}])
def test_a_point_that_no_click_sends(data: object) -> None:
    with pytest.raises(InvalidInputError, match="x, y < 1"):
        sent_point(SimpleNamespace(_data=data))  # type: ignore[arg-type]


def test_what_a_click_sends() -> None:
    assert sent(SimpleNamespace(_data={"number": 5}), "number", 6) == 5  # type: ignore[arg-type]
    assert sent_point(SimpleNamespace(_data={"x": 0.25, "y": 7})) == (0.25, 0.9999)  # type: ignore[arg-type]
