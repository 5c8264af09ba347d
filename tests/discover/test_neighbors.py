"""Nearest neighbours of whole images and patches: the whole run on real photographs."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from browser import open_page
from click.testing import CliRunner
from PIL import Image

from context_pred.card import Card
from context_pred.cli import main
from context_pred.discover import neighbors, neighbors_sheet
from context_pred.discover.grid import PatchGrid
from context_pred.discover.index import Match, NeighborIndex
from context_pred.discover.neighbors_sheet import tile
from context_pred.discover.patches import normalized, patch_features
from context_pred.errors import ContextPredError, ImageError, InvalidInputError, StorageError, UnknownNameError
from context_pred.model import ContextPredictionModel

NAMES = ("koala", "panda", "moose", "polar_bear", "opera_sydney", "flower_red")


@pytest.fixture(scope="module")
def model() -> ContextPredictionModel:
    torch.manual_seed(0)
    card = Card("tiny-input", "resnet18", pair_layers=False, resize=64, crop=56)
    return ContextPredictionModel.from_card(card).eval()


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    """Six photographs, one of them twice (the copy a little smaller), and a file that is no image."""
    (tmp_path / "photos").mkdir()
    for name in NAMES:
        with Image.open(photos / f"{name}.jpg") as image:
            image.convert("RGB").resize((120, 100)).save(tmp_path / "photos" / f"{name}.png")
            if name == "panda":
                image.convert("RGB").resize((118, 98)).save(tmp_path / "photos" / "panda copy.png")
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


def found(query: object, images: object, out: Path, model: ContextPredictionModel, **options: object):
    options = {"layer": "feature2", "progress": False, "workers": 0, "device": "cpu", **options}
    return neighbors.run(query, images, out=out, model=model, **options)  # type: ignore[arg-type]


class TestRun:
    def test_a_folder_with_itself(self, folder: Path, tmp_path: Path, model: ContextPredictionModel) -> None:
        result = found(folder, folder, tmp_path / "out", model, k=3)
        names = [Path(path).stem for path in result.queries]
        assert sorted(names) == sorted([*NAMES, "panda copy"])
        near = {name: [Path(path).stem for path, _ in row] for name, row in zip(names, result.neighbors, strict=True)}
        assert near["panda"][0] == "panda copy"
        assert near["panda copy"][0] == "panda"
        for name, row in near.items():
            assert len(row) == 3
            assert name not in row
        assert [Path(path).name for path in result.skipped] == ["notes.txt"]
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
            "index.html",
            "neighbors.json",
            "neighbors.png",
        ]
        text = str(result)
        assert "the 3 nearest of 7 images for 7 queries" in text
        assert "1 file skipped" in text
        assert "notes.txt" in text

    def test_scores_are_those_of_embed(self, folder: Path, tmp_path: Path, model: ContextPredictionModel) -> None:
        result = found(folder / "koala.png", folder, tmp_path / "out", model, k=6, layer="feature3")
        images = {}
        for path in [folder / "koala.png", *(Path(path) for path, _ in result.neighbors[0])]:
            with Image.open(path) as image, torch.no_grad():
                images[path.name] = model.embed(model.transform(image)[None], layer="feature3")[0].numpy()
        for path, score in result.neighbors[0]:
            expected = np.corrcoef(images["koala.png"], images[Path(path).name])[0, 1]
            assert abs(score - expected) < 1e-4

    def test_the_files_say_the_same(self, folder: Path, tmp_path: Path, model: ContextPredictionModel) -> None:
        result = found([folder / "moose.png", folder / "panda.png"], folder, tmp_path / "out", model, k=2)
        record = json.loads(result.json.read_text())
        assert (record["layer"], record["pool"], record["k"], record["images"]) == ("feature2", "gap", 2, 7)
        assert record["model"] == model.card.name
        assert [query["path"] for query in record["queries"]] == list(result.queries)
        for query, row in zip(record["queries"], result.neighbors, strict=True):
            assert [(each["path"], each["score"]) for each in query["neighbors"]] == [(p, round(s, 6)) for p, s in row]
        with Image.open(result.picture) as sheet:
            assert sheet.format == "PNG"
            pixels = np.array(sheet)
        tile = neighbors_sheet.TILE
        # Each tile holds its photograph: the same square that a user would cut by hand.
        for row, (query, near) in enumerate(zip(result.queries, result.neighbors, strict=True)):
            for path in (query, *[path for path, _ in near]):
                with Image.open(path) as image:
                    side = min(image.size)
                    left, above = (image.width - side) // 2, (image.height - side) // 2
                    middle = np.array(image)[above : above + side, left : left + side].mean((0, 1))
                top = 64 + row * (tile + neighbors_sheet.CAPTION)
                lefts = [
                    neighbors_sheet.MARGIN,
                    *(neighbors_sheet.MARGIN + tile + 30 + j * (tile + 10) for j in range(2)),
                ]
                means = [pixels[top + 4 : top + tile - 4, x + 4 : x + tile - 4].mean((0, 1)) for x in lefts]
                assert min(np.abs(mean - middle).max() for mean in means) < 6, path

    def test_another_folder_and_another_way_to_the_same_file(
        self, folder: Path, tmp_path: Path, model: ContextPredictionModel
    ) -> None:
        (tmp_path / "link").symlink_to(folder, target_is_directory=True)
        query = tmp_path / "link" / "panda.png"
        result = found(query, [folder / "panda.png", folder / "moose.png"], tmp_path / "out", model)
        assert result.queries == (str(query),)
        assert [path for path, _ in result.neighbors[0]] == [str(folder / "moose.png")]
        shutil.copy(folder / "panda.png", tmp_path / "elsewhere.png")
        result = found(tmp_path / "elsewhere.png", folder, tmp_path / "out", model, k=1)
        ((path, score),) = result.neighbors[0]
        assert path == str(folder / "panda.png")
        assert abs(score - 1) < 1e-5

    def test_many_queries_make_a_bounded_sheet(
        self, folder: Path, tmp_path: Path, model: ContextPredictionModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = found(folder, folder, tmp_path / "one", model, k=6)
        monkeypatch.setattr(neighbors, "SHOWN_QUERIES", 2)
        monkeypatch.setattr(neighbors, "SHOWN_NEIGHBORS", 3)
        part = found(folder, folder, tmp_path / "two", model, k=6)
        assert part.neighbors == whole.neighbors
        assert (whole.shown, part.shown) == (7, 2)
        assert "The first 2 are drawn" in str(part)
        with Image.open(whole.picture) as one, Image.open(part.picture) as two:
            assert one.height - two.height == 5 * (neighbors_sheet.TILE + neighbors_sheet.CAPTION)
            assert one.width - two.width == 3 * (neighbors_sheet.TILE + neighbors_sheet.SPACE)

    def test_cells_are_compared_one_by_one(self, folder: Path, tmp_path: Path, model: ContextPredictionModel) -> None:
        result = found(folder / "panda.png", folder, tmp_path / "out", model, k=1, pool="grid")
        assert Path(result.neighbors[0][0][0]).stem == "panda copy"
        assert "grid" in str(result)

    def test_what_an_earlier_call_wrote_is_no_photograph(
        self, folder: Path, tmp_path: Path, model: ContextPredictionModel
    ) -> None:
        (folder / "notes.txt").unlink()
        for _ in range(2):
            result = found(folder, folder, folder, model, index=folder / "kept.index")
            assert result.candidates == len(result.queries) == 7
            assert result.skipped == {}

    def test_queries_that_cannot_be_opened_each_have_their_reason(
        self, folder: Path, tmp_path: Path, model: ContextPredictionModel
    ) -> None:
        (tmp_path / "empty.png").touch()
        queries = [folder / "koala.png", tmp_path / "empty.png", tmp_path / "gone.png"]
        result = found(queries, sorted(folder.glob("*.png")), tmp_path / "out", model)
        assert [result.skipped[str(path)] for path in queries[1:]] == ["empty file", "no such file"]

    @pytest.mark.parametrize("name", ["żółw 亀.png", "a%sb{c}.png", "x" * 200 + ".png", "\udcff.png"])
    def test_awkward_names(self, folder: Path, tmp_path: Path, model: ContextPredictionModel, name: str) -> None:
        shutil.copy(folder / "panda.png", folder / name)
        result = found(folder / "moose.png", [folder / name, folder / "koala.png"], tmp_path / "out", model)
        assert str(folder / name) in [path for path, _ in result.neighbors[0]]
        record = json.loads(result.json.read_text())
        assert str(folder / name) in [each["path"] for each in record["queries"][0]["neighbors"]]

    @pytest.mark.parametrize(
        ("query", "images", "options", "error", "message"),
        [
            ("panda.png", "panda.png", {}, InvalidInputError, "at least one other"),
            ("notes.txt", ".", {}, ContextPredError, "notes"),
            ("absent.png", ".", {}, InvalidInputError, "absent.png"),
            (".", ".", {"layer": "feature6"}, UnknownNameError, "feature5"),
            (".", ".", {"layer": ("feature5",)}, InvalidInputError, "one layer"),
            (".", ".", {"pool": "max"}, UnknownNameError, "gap"),
            (".", ".", {"k": 0}, InvalidInputError, "k=0"),
            (".", ".", {"k": 7}, InvalidInputError, "k=7 .* 6 other images"),
            (".", ".", {"queries": 0}, InvalidInputError, "queries=0"),
            (".", ".", {"seed": -1}, InvalidInputError, "seed=-1"),
            (".", ".", {"patches": True, "pool": "grid"}, InvalidInputError, "none"),
            (".", ".", {"index": "photos"}, InvalidInputError, "other files"),
        ],
    )
    def test_refusals(
        self,
        folder: Path,
        tmp_path: Path,
        model: ContextPredictionModel,
        query: str,
        images: str,
        options,
        error,
        message,
    ) -> None:
        options = {name: tmp_path / v if name == "index" else v for name, v in options.items()}
        with pytest.raises(error, match=message):
            found(folder / query, folder / images, tmp_path / "out", model, **options)

    def test_a_query_that_is_no_image(self, folder: Path, tmp_path: Path, model: ContextPredictionModel) -> None:
        with pytest.raises(ImageError, match=r"No query could be opened.*notes\.txt"):
            found([folder / "notes.txt"], folder, tmp_path / "out", model)

    def test_a_file_where_the_folder_should_be(
        self, folder: Path, tmp_path: Path, model: ContextPredictionModel
    ) -> None:
        (tmp_path / "out").write_text("")
        with pytest.raises(StorageError, match="out"):
            found(folder, folder, tmp_path / "out", model)


GRID = PatchGrid(16, sides=(2.0, 3.0))


class TestPatches:
    def test_boxes_scores_and_files_say_the_same(
        self, folder: Path, tmp_path: Path, model: ContextPredictionModel
    ) -> None:
        options = {"patches": True, "grid": GRID, "layer": "feature3", "k": 3, "queries": 5, "seed": 3}
        result = found(folder, folder, tmp_path / "out", model, **options)
        assert len(result.asked) == len(result.matches) == 5
        features = {}
        for path in {match.path for row in (result.asked, *result.matches) for match in row}:
            with Image.open(path) as image:
                vectors, boxes = patch_features(model, image.convert("RGB"), GRID, layer="feature3", device="cpu")
            features[path] = dict(zip(map(tuple, boxes.tolist()), normalized(vectors), strict=True))
        for query, row in zip(result.asked, result.matches, strict=True):
            own = features[query.path][query.box]
            best = sorted((max(own @ v for v in each.values()) for p, each in features.items() if p != query.path))
            for match, score in zip(row, best[::-1], strict=False):
                assert abs(own @ features[match.path][match.box] - match.score) < 1e-5
                assert abs(match.score - score) < 1e-5
            assert len({query.path, *(match.path for match in row)}) == 4
        record = json.loads(result.json.read_text())
        assert [query["box"] for query in record["queries"]] == [[round(v, 2) for v in q.box] for q in result.asked]
        assert record["queries"][0]["neighbors"][0]["box"] == [round(v, 2) for v in result.matches[0][0].box]
        again = found(folder, folder, tmp_path / "again", model, **options)
        assert again.asked == result.asked
        assert found(folder, folder, tmp_path / "other", model, **{**options, "seed": 4}).asked != result.asked

    def test_every_patch_of_a_query(self, folder: Path, tmp_path: Path, model: ContextPredictionModel) -> None:
        result = found(
            folder / "koala.png", folder, tmp_path / "out", model, patches=True, grid=GRID, queries=None, k=1
        )
        assert len(result.asked) == len(GRID.boxes(100, 120))
        assert result.shown == neighbors.SHOWN_QUERIES

    def test_pictures_that_cannot_be_opened(
        self, folder: Path, tmp_path: Path, model: ContextPredictionModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 19_000)  # twice as many are an error
        Image.new("1", (200, 200)).save(folder / "vast.png")
        options = {"patches": True, "grid": GRID, "k": 2, "queries": 4}
        result = found([folder / "vast.png", folder / "koala.png"], folder, tmp_path / "out", model, **options)
        assert len(result.asked) == 4
        assert {Path(path).name for path in result.skipped} == {"vast.png", "notes.txt"}
        with pytest.raises(ImageError, match=r"No query could be opened.*vast\.png.*pixels"):
            found([folder / "vast.png"], folder, tmp_path / "out", model, **options)

    def test_a_query_without_end(self, folder: Path, tmp_path: Path, model: ContextPredictionModel) -> None:
        Image.new("RGB", (400, 2)).save(tmp_path / "line.png")
        options = {"patches": True, "grid": GRID, "k": 2, "queries": None}
        with pytest.raises(ImageError, match=r"No query.*line\.png.*at most 16 times"):
            found(tmp_path / "line.png", folder, tmp_path / "out", model, **options)

    def test_the_patch_is_drawn_in_place(self, tmp_path: Path) -> None:
        pixels = np.zeros((100, 200, 3), np.uint8)
        pixels[40:60, 20:40] = 255
        Image.fromarray(pixels).save(tmp_path / "a.png")
        square = np.array(tile(Match(str(tmp_path / "a.png"), (20.0, 40.0, 40.0, 60.0), 0), 200, (255, 0, 0)))
        assert (square[92:108, 22:38] == 255).all()  # the patch, the photograph lying in the square's middle
        assert (square[92:108, 18] == (255, 0, 0)).all()  # its frame
        assert (square[-60:-20, -60:-20] == 255).all()  # the patch, enlarged, in the farthest corner
        assert (square[75:85, 60:100] == 0).all()


class TestIndex:
    def test_is_kept_added_to_and_searched(self, folder: Path, tmp_path: Path, model: ContextPredictionModel) -> None:
        first, index = sorted(folder.glob("*.png"))[:3], tmp_path / "index"
        found(folder / "koala.png", first, tmp_path / "out", model, index=index)
        kept = found(folder / "koala.png", folder, tmp_path / "out", model, index=index, k=6)
        fresh = found(folder / "koala.png", folder, tmp_path / "fresh", model, k=6)
        assert [path for path, _ in kept.neighbors[0]] == [path for path, _ in fresh.neighbors[0]]
        np.testing.assert_allclose([s for _, s in kept.neighbors[0]], [s for _, s in fresh.neighbors[0]], atol=1e-5)
        assert kept.skipped == fresh.skipped != {}
        (folder / "moose.png").unlink()  # the index has it still, and what is gone is nobody's neighbour
        gone = found(folder / "koala.png", folder, tmp_path / "out", model, index=index, k=5)
        assert gone.neighbors[0] == tuple(one for one in kept.neighbors[0] if not one[0].endswith("moose.png"))
        assert gone.skipped[str(folder / "moose.png")] == "in the index, and no longer there"
        with pytest.raises(InvalidInputError, match="k=6 neighbours, and there are 5 other"):
            found(folder / "koala.png", folder, tmp_path / "out", model, index=index, k=6)
        with pytest.raises(InvalidInputError, match=r"'feature2'.*'feature3'"):
            found(folder / "koala.png", folder, tmp_path / "out", model, index=index, layer="feature3")
        assert len(NeighborIndex.load(index)) == 7

    def test_by_the_command(self, folder: Path, photos: Path, tmp_path: Path) -> None:
        line = [
            "neighbors",
            folder / "koala.png",
            folder,
            "--out",
            tmp_path / "out",
            "--patches",
            "--layer",
            "feature2",
        ]
        line += ["--queries", "3", "-k", "2", "--index", tmp_path / "index", "--no-progress", "--workers", 0]
        for _ in range(2):
            result = CliRunner().invoke(main, [str(a) for a in line])
            assert result.exit_code == 0, result.output
            assert "the 2 nearest of 7 images for 3 queries" in result.output
        record = json.loads((tmp_path / "out" / "neighbors.json").read_text())
        assert [len(query["neighbors"]) for query in record["queries"]] == [2, 2, 2]
        assert all(len(query["box"]) == 4 for query in record["queries"])
        quarters = CliRunner().invoke(main, [*map(str, line), "--pool", "quarters"])
        assert "index made with other settings: pool was 'gap' and is 'quarters'" in quarters.output
        for bad in ("0", "some"):
            result = CliRunner().invoke(main, [*map(str, line), "--queries", bad])
            assert result.exit_code == 2
            assert "or all" in result.output


class TestPage:
    @pytest.mark.parametrize("patches", [False, True])
    def test_needs_nothing_but_itself(
        self, folder: Path, tmp_path: Path, model: ContextPredictionModel, patches: bool
    ) -> None:
        (folder / "a b#c?.png").write_bytes((folder / "moose.png").read_bytes())
        options = {"patches": True, "grid": GRID, "queries": 3} if patches else {}
        result = found(folder, folder, tmp_path / "out", model, k=7, **options)
        text = result.page.read_text()
        assert not re.search(r"<script|<link|src=\"(?!data:image/jpeg;base64,)|url\(|@import", text)
        images = re.findall(r"<img [^>]*>", text)
        assert len(images) == result.shown * 8
        assert all(re.search(r'alt="(Query|Neighbour) ', image) for image in images)
        for link in re.findall(r'<a href="([^"#]+)"', text):
            assert (result.page.parent / unquote(html.unescape(link))).is_file(), link
        data = base64.b64decode(re.findall(r"data:image/jpeg;base64,([^\"]+)", text)[0])
        assert Image.open(io.BytesIO(data)).size == (320, 320)
        for match in result.matches[0]:
            assert f"{match.score:.3f}" in text

    @pytest.mark.browser
    @pytest.mark.parametrize("width", [390, 1440])
    def test_in_a_browser(self, folder: Path, tmp_path: Path, model: ContextPredictionModel, width: int) -> None:
        (folder / "koala.png").rename(folder / ("x" * 200 + ".png"))
        result = found(folder, folder, tmp_path / "out", model, k=6, patches=True, grid=GRID, queries=7)
        with open_page(width, result.page) as opened:
            assert opened.overflow() == 0
            seen = set()
            for _ in range(6):  # the first leads to the list
                opened.page.keyboard.press("Tab")
                seen.add(opened.page.evaluate("document.activeElement.querySelector('img')?.alt"))
            assert len(seen - {None}) == 5
            assert opened.errors == []
            assert len(opened.requests) == 1
