"""Similarity maps: against NumPy's correlation, a planted patch, the sheet and the page on real photographs."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from context_pred.discover.pictures import heat, similarity, similarity_maps, similarity_page
from context_pred.discover.pictures.dense import FeatureMaps
from context_pred.errors import ContextPredError, ImageError, InvalidInputError, StorageError, UnknownNameError
from context_pred.model import ContextPredictionModel


def opened(folder: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted(folder.rglob("*.png"))]


class TestMaps:
    def test_are_numpys_correlation(self, folder: Path, model: ContextPredictionModel) -> None:
        query, *others = opened(folder)
        point = (70.0, 33.0)
        found = similarity_maps(model, query, point, others, layer="feature3", side=4, finer=1, device="cpu")
        make = FeatureMaps.of(model, "feature3", side=4, device="cpu")
        maps = [make(image).astype(np.float64) for image in (query, *others)]
        mean = sum(one.reshape(-1, one.shape[2]).mean(0) for one in maps) / len(maps)
        rows, columns = maps[0].shape[:2]
        feature = maps[0][int(33 / query.height * rows), int(70 / query.width * columns)] - mean
        for one, values in zip(found, maps[1:], strict=True):
            assert one.dtype == np.float32
            assert one.shape == values.shape[:2]
            assert one.min() >= -1.0001
            assert one.max() <= 1.0001
            for row, column in ((0, 0), (2, 5), (one.shape[0] - 1, one.shape[1] - 1)):
                expected = np.corrcoef(feature, values[row, column] - mean)[0, 1]
                assert abs(one[row, column] - expected) < 1e-4

    def test_finds_a_patch_that_was_put_elsewhere(self, folder: Path, model: ContextPredictionModel) -> None:
        query, *others = opened(folder)
        query, host = query.resize((160, 128)), others[3].resize((160, 128))
        host.paste(query.crop((64, 48, 112, 96)), (100, 16))
        (found,) = similarity_maps(model, query, (88, 72), [host], layer="feature3", side=8, device="cpu")
        row, column = np.unravel_index(found.argmax(), found.shape)
        x, y = (column + 0.5) * 160 / found.shape[1], (row + 0.5) * 128 / found.shape[0]
        assert abs(x - 124) < 10
        assert abs(y - 40) < 10
        assert found.max() > 0.75

    def test_the_photograph_itself_is_most_alike_at_the_point(
        self, folder: Path, model: ContextPredictionModel
    ) -> None:
        query, *others = opened(folder)
        found = similarity_maps(model, query, "bottom-right", [query, *others], layer="feature2", side=3, device="cpu")
        row, column = np.unravel_index(found[0].argmax(), found[0].shape)
        assert abs((column + 0.5) / found[0].shape[1] - 0.75) < 0.1
        assert abs((row + 0.5) / found[0].shape[0] - 0.75) < 0.1
        assert found[0].max() == pytest.approx(1, abs=1e-5)

    def test_an_even_photograph_is_like_nothing(self, model: ContextPredictionModel) -> None:
        even = Image.new("RGB", (64, 64), (9, 9, 9))
        (found,) = similarity_maps(model, even, "center", [even], layer="feature1", side=4, device="cpu")
        assert np.isfinite(found).all()

    @pytest.mark.parametrize("point", [(0, 0), (119.9, 99.9), "center", "top-left"])
    def test_points_inside(self, point: object) -> None:
        x, y = similarity.point_in((120, 100), point)  # type: ignore[arg-type]
        assert 0 <= x < 120
        assert 0 <= y < 100

    @pytest.mark.parametrize("point", [(120, 5), (5, 100), (-1, 5), (float("nan"), 5), (1, 2, 3), 7, None])
    def test_points_outside(self, point: object) -> None:
        with pytest.raises(InvalidInputError, match="accepted"):
            similarity.point_in((120, 100), point)  # type: ignore[arg-type]

    def test_points_by_name(self) -> None:
        assert similarity.read_point("12.5, 7") == (12.5, 7.0)
        assert similarity.read_point("top") == "top"
        for text in ("middle", "centre", "1,2,3", "1;2"):
            with pytest.raises(UnknownNameError, match="center"):
                similarity.read_point(text)

    def test_no_others_and_no_such_layer(self, folder: Path, model: ContextPredictionModel) -> None:
        query = opened(folder)[0]
        with pytest.raises(InvalidInputError, match="at least one"):
            similarity_maps(model, query, "center", [])
        with pytest.raises(UnknownNameError, match="feature9"):
            similarity_maps(model, query, "center", [query], layer="feature9")


class TestHeat:
    def test_lightens_with_the_similarity_and_keeps_the_size(self) -> None:
        image = Image.new("RGB", (200, 40), (128, 128, 128))
        values = np.linspace(-1, 1, 50, dtype=np.float32)[None].repeat(10, 0)
        drawn = heat(image, values, low=0, high=0.8)
        assert drawn.size == image.size
        light = np.asarray(drawn.convert("L"), float)[20]
        assert np.ptp(light[:90]) == 0  # nothing alike: the photograph in grey
        assert np.asarray(drawn)[20, 10].std() == 0
        assert light[190] > light[150] > light[125]

    @pytest.mark.parametrize(
        ("values", "low", "high"), [(np.zeros(4), 0, 1), (np.zeros((0, 3)), 0, 1), (np.zeros((2, 2)), 1, 1)]
    )
    def test_what_is_no_map(self, values: np.ndarray, low: float, high: float) -> None:
        with pytest.raises(InvalidInputError, match=r"takes a map \(h, w\)"):
            heat(Image.new("RGB", (8, 8)), values, low=low, high=high)


def drawn(image: object, others: object, out: Path, model: ContextPredictionModel, **options: object):
    options = {"layer": "feature3", "side": 3, "progress": False, "device": "cpu", **options}
    return similarity.run(image, others, out=out, model=model, **options)  # type: ignore[arg-type]


def data_of(page: Path) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())[1])


class TestRun:
    def test_names_cannot_turn_the_page_round(
        self, folder: Path, tmp_path: Path, model: ContextPredictionModel
    ) -> None:
        (folder / "others" / "flower_red.png").rename(folder / "others" / "\u202e<b>&.png")
        data = data_of(drawn(folder / "animals" / "koala.png", folder, tmp_path / "out", model).page)
        assert "\\u202e<b>&.png" in data["names"]

    def test_sheet_and_page(self, folder: Path, tmp_path: Path, model: ContextPredictionModel) -> None:
        query = folder / "animals" / "koala.png"
        result = drawn(query, folder, tmp_path / "out", model, at=(30, 60))
        assert [Path(path).stem for path, _ in result.found] != ["koala"]
        assert len(result.found) == 5
        assert "koala" not in {Path(path).stem for path, _ in result.found}
        peaks = [peak for _, peak in result.found]
        assert peaks == sorted(peaks, reverse=True)
        assert "(30, 60)" in str(result)
        with Image.open(result.picture) as sheet:
            assert min(sheet.size) > 300
        data = data_of(result.page)
        assert data["columns"] * data["rows"] == len(data["maps"]) <= similarity_page.CELLS
        # The page begins with the very point: its maps are the library's, rounded to 1/127.
        paths = [path for path in sorted(folder.rglob("*.png"), key=str) if path.stem != "koala"]
        images = [Image.open(path).convert("RGB") for path in paths]
        with Image.open(query) as image:
            maps = similarity_maps(model, image, (30, 60), images, layer="feature3", side=3, device="cpu")
        order = [data["names"].index(path.name) for path in paths]
        for number, expected in zip(order, maps, strict=True):
            assert data["peaks"][data["first"]][number] == pytest.approx(float(expected.max()), abs=1e-4)
            values = np.frombuffer(base64.b64decode(data["maps"][data["first"]][number]), np.uint8)
            assert data["sizes"][number] == list(expected.shape)
            assert np.abs((values.reshape(expected.shape) - 127.0) / 127 - expected).max() < 0.0041

    def test_what_cannot_be_opened_is_told(
        self, folder: Path, bomb: Path, tmp_path: Path, model: ContextPredictionModel
    ) -> None:
        (folder / "notes.txt.jpg").write_text("no image")
        result = drawn(folder / "others" / "flower_red.png", [folder, bomb], tmp_path / "out", model)
        assert {Path(path).name for path in result.skipped} == {"bomb.png", "notes.txt.jpg"}
        assert "pixels" in result.skipped[str(bomb)]
        assert "2 files skipped" in str(result)

    def test_names_that_html_would_read(self, folder: Path, tmp_path: Path, model: ContextPredictionModel) -> None:
        # The last is a byte that is no text in UTF-8, as old archives have them.
        strange = folder / "a<script>alert(1)<!--é\udcff.png"
        (folder / "animals" / "koala.png").rename(strange)
        page = drawn(folder / "animals" / "panda.png", [strange], tmp_path / "out", model).page
        assert page.read_text().count("<script") == 2
        assert data_of(page)["names"][1] == strange.name.replace("\udcff", "\\udcff")

    def test_wrong_arguments_leave_what_is_there(
        self, folder: Path, bomb: Path, tmp_path: Path, model: ContextPredictionModel
    ) -> None:
        query, out = folder / "animals" / "koala.png", tmp_path / "out"
        kept = {
            path: path.read_bytes()
            for path in vars(drawn(query, folder, out, model)).values()
            if isinstance(path, Path)
        }
        (tmp_path / "empty").mkdir()
        wrong: list[tuple[dict, object, object, type[ContextPredError], str]] = [
            ({"at": (500, 5)}, query, folder, InvalidInputError, "outside of the photograph"),
            ({"at": "middle"}, query, folder, UnknownNameError, "Unknown point"),
            ({"layer": "feature7"}, query, folder, UnknownNameError, "feature7"),
            ({"at_most": 0}, query, folder, InvalidInputError, "at_most=0"),
            ({"side": 0}, query, folder, InvalidInputError, "side=0"),
            ({}, query, query, InvalidInputError, "itself"),
            ({}, query, tmp_path / "empty", InvalidInputError, "No images"),
            ({}, tmp_path / "none.png", folder, ImageError, "no such file"),
            ({}, bomb, folder, ImageError, "pixels"),
            ({}, query, [bomb], ImageError, "No image could be opened"),
        ]
        for options, image, others, error, text in wrong:
            with pytest.raises(error, match=text):
                drawn(image, others, out, model, **options)
        assert {path: path.read_bytes() for path in kept} == kept
        assert sorted(path.name for path in out.iterdir()) == ["similarity.html", "similarity.png"]

    def test_a_folder_that_cannot_be_made(self, folder: Path, tmp_path: Path, model: ContextPredictionModel) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError, match="file"):
            drawn(folder / "animals" / "koala.png", folder, tmp_path / "file", model)

    @pytest.mark.parametrize("photographs", [2, 13, 100, 3000])
    def test_the_page_is_bounded_however_many(self, photographs: int) -> None:
        positions = photographs * 20 * 30
        columns, rows = similarity_page._cells(720, 480, positions)
        assert 1 <= columns * rows * positions <= similarity_page.MAPS_BYTES
        assert photographs * similarity_page._side(photographs) ** 2 / 2 <= similarity_page.PHOTOGRAPHS
        with pytest.raises(InvalidInputError, match="do not fit"):
            similarity_page._cells(720, 480, 10 * similarity_page.MAPS_BYTES)
