"""A map of a collection: cells against every assignment there is, places of known groups, and the whole run."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from context_pred.discover.pictures import map as collection_map
from context_pred.errors import ContextPredError, ImageError, InvalidInputError, UnknownNameError
from context_pred.model import ContextPredictionModel


class TestCells:
    @pytest.mark.parametrize("seed", range(4))
    def test_no_other_assignment_is_nearer(self, seed: int) -> None:
        share = np.random.RandomState(seed).rand(4, 2)
        found = collection_map.snapped(share, 3, 2)
        middles = [((x + 0.5) / 3, (y + 0.5) / 2) for y in range(2) for x in range(3)]

        def way(cells: tuple[tuple[float, float], ...]) -> float:
            return float(((np.array(cells) - share) ** 2 * np.array([9, 4])).sum())

        best = min(way(cells) for cells in itertools.permutations(middles, 4))
        assert way(tuple(map(tuple, found))) == pytest.approx(best)

    @pytest.mark.parametrize("photographs", [1, 3, 19, 220, 1000])
    def test_everybody_has_a_cell(self, photographs: int) -> None:
        columns, rows = collection_map.cells(photographs)
        assert photographs <= columns * rows <= 1.5 * photographs + 6
        share = np.random.RandomState(0).rand(photographs, 2)
        found = collection_map.snapped(share, columns, rows)
        assert len(np.unique(found.round(6), axis=0)) == photographs
        assert found.min() > 0
        assert found.max() < 1


class TestPlaces:
    def test_groups_stand_apart(self) -> None:
        random = np.random.RandomState(0)
        groups = np.repeat(np.arange(3), 15)
        features = random.randn(3, 40)[groups] + 0.3 * random.randn(45, 40)
        places = collection_map.embedded(features.astype(np.float32), 1)
        way = np.linalg.norm(places[:, None] - places[None], axis=2) + np.diag(np.full(45, np.inf))
        assert (groups[way.argmin(1)] == groups).all()

    def test_a_seed_gives_the_same_places(self) -> None:
        features = np.random.RandomState(0).randn(12, 6).astype(np.float32)
        first, again = (collection_map.embedded(features, 3) for _ in range(2))
        assert np.array_equal(first, again)

    @pytest.mark.parametrize("photographs", [3, 4, 5])
    def test_few(self, photographs: int) -> None:
        features = np.random.RandomState(0).randn(photographs, 6).astype(np.float32)
        places = collection_map.embedded(features)
        assert places.shape == (photographs, 2)
        assert np.isfinite(places).all()

    def test_the_same_photograph_again_and_again(self) -> None:
        places = collection_map.embedded(np.ones((6, 8), np.float32))
        assert np.isfinite(places).all()

    def test_too_few(self) -> None:
        with pytest.raises(InvalidInputError, match="needs 3"):
            collection_map.embedded(np.ones((2, 8), np.float32))


def drawn(images: object, out: Path, model: ContextPredictionModel, **options: object):
    options = {"progress": False, "device": "cpu", "workers": 0, **options}
    return collection_map.run(images, out=out, model=model, **options)  # type: ignore[arg-type]


class TestRun:
    def test_picture_page_and_record(
        self, folder: Path, bomb: Path, tmp_path: Path, model: ContextPredictionModel
    ) -> None:
        out = tmp_path / "out"
        result = drawn([folder, bomb], out, model, labels=True)
        assert sorted(path.name for path in out.iterdir()) == ["map.html", "map.json", "map.png"]
        assert result.labels == ("animals", "others")
        assert list(result.skipped) == [str(bomb)]
        record = json.loads(result.json.read_text())
        assert {one["label"] for one in record["photographs"]} == {"animals", "others"}
        assert len({(one["x"], one["y"]) for one in record["photographs"]}) == 6
        # Each thumbnail lies where the record says: its middle has the colours of its photograph's middle.
        with Image.open(result.picture) as sheet:
            pixels = np.asarray(sheet.convert("RGB"), float)
        side, left, top = 150, 24, 68 + 30
        for one in record["photographs"]:
            x, y = left + one["x"] * record["columns"] * side, top + one["y"] * record["rows"] * side
            with Image.open(one["path"]) as image:
                cut = (image.width - image.height) // 2
                square = np.asarray(image.crop((cut, 0, cut + image.height, image.height)).resize((141, 141)), float)
            seen = pixels[round(y) - 40 : round(y) + 40, round(x) - 40 : round(x) + 40].mean((0, 1))
            assert np.abs(seen - square[30:110, 30:110].mean((0, 1))).max() < 8, one["path"]

    def test_left_where_they_are(self, folder: Path, tmp_path: Path, model: ContextPredictionModel) -> None:
        free = drawn(folder, tmp_path / "free", model, grid=False)
        places = np.array([(one.x, one.y) for one in free.placed])
        assert not free.layout.grid
        middles = (places * [free.layout.columns, free.layout.rows]) % 1
        assert np.abs(middles - 0.5).max() > 0.05
        half = free.layout.share / 2
        assert (places * [free.layout.columns, free.layout.rows]).min() >= half
        assert "labels" not in free.page.read_text().lower().split("<script")[0] or not free.labels

    def test_as_many_as_asked_for(self, folder: Path, tmp_path: Path, model: ContextPredictionModel) -> None:
        runs = [drawn(folder, tmp_path / str(k), model, at_most=4, seed=seed) for k, seed in enumerate((0, 0, 3))]
        paths = [{one.path for one in run.placed} for run in runs]
        assert paths[0] == paths[1] != paths[2]
        assert runs[0].json.read_bytes() == runs[1].json.read_bytes()
        assert "4 photographs (of 6)" in str(runs[0])

    def test_wrong_arguments_leave_what_is_there(
        self, folder: Path, bomb: Path, tmp_path: Path, model: ContextPredictionModel
    ) -> None:
        out = tmp_path / "out"
        drawn(folder, out, model)
        kept = {path: path.read_bytes() for path in out.iterdir()}
        two = sorted(folder.rglob("*.png"))[:2]
        wrong: list[tuple[object, dict, type[ContextPredError], str]] = [
            (two, {}, InvalidInputError, "needs 3 photographs; 2 given"),
            ([*two, bomb, tmp_path / "gone.png"], {}, ImageError, "2 could be opened"),
            (folder, {"layer": "feature6"}, UnknownNameError, "feature6"),
            (folder, {"at_most": 2}, InvalidInputError, "at_most=2"),
            (folder, {"at_most": 4001}, InvalidInputError, "4,000"),
            (folder, {"seed": -1}, InvalidInputError, "seed"),
        ]
        for images, options, error, text in wrong:
            with pytest.raises(error, match=text):
                drawn(images, out, model, **options)
        assert {path: path.read_bytes() for path in out.iterdir()} == kept

    def test_without_scikit_learn(
        self, folder: Path, tmp_path: Path, model: ContextPredictionModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import sys

        monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
        with pytest.raises(InvalidInputError, match=r'pip install "context-pred\[discover\]"'):
            drawn(folder, tmp_path / "out", model)
