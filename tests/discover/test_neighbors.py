"""Nearest neighbours: the search against NumPy's correlation, and the whole run on real photographs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from context_pred.card import Card
from context_pred.discover import neighbors
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


class TestNearest:
    features = np.random.RandomState(0).randn(40, 6, 2, 2).astype(np.float32) + 3

    def by_numpy(self, queries: list[int], bank: list[int], k: int) -> tuple[list[list[int]], list[list[float]]]:
        correlation = np.corrcoef(self.features.reshape(40, -1).astype(np.float64))
        order = [
            sorted((j for j in range(len(bank)) if bank[j] != q), key=lambda j: -correlation[q, bank[j]])[:k]
            for q in queries
        ]
        return order, [[correlation[q, bank[j]] for j in row] for q, row in zip(queries, order, strict=True)]

    @pytest.mark.parametrize("blocks", [(1024, 8192), (3, 7), (1, 1)])
    @pytest.mark.parametrize("k", [1, 4, 29])
    def test_is_numpys_correlation(self, monkeypatch: pytest.MonkeyPatch, blocks: tuple[int, int], k: int) -> None:
        monkeypatch.setattr(neighbors, "_QUERY_BLOCK", blocks[0])
        monkeypatch.setattr(neighbors, "_BANK_BLOCK", blocks[1])
        queries, bank = [5, 39, 0, 17, 38], list(range(39, 9, -1))
        order, correlation = self.by_numpy(queries, bank, k)
        score, index = neighbors.nearest(self.features, queries, bank, k)
        assert index.tolist() == order
        np.testing.assert_allclose(score.numpy(), correlation, rtol=0, atol=1e-6)

    def test_a_row_is_not_its_own_neighbour_and_gaps_are_marked(self) -> None:
        score, index = neighbors.nearest(self.features, [3, 4], [3, 9], 5)
        assert index.tolist()[0] == [1, -1, -1, -1, -1]
        assert set(index.tolist()[1][:2]) == {0, 1}
        assert torch.isinf(score[index < 0]).all()

    def test_brightness_and_contrast_of_a_vector_do_not_matter(self) -> None:
        scaled = np.concatenate([self.features, 5 * self.features[:1] + 7])
        score, index = neighbors.nearest(scaled, [0], list(range(41)), 1)
        assert index.tolist() == [[40]]
        assert abs(score.item() - 1) < 1e-6

    def test_constant_vectors_correlate_with_nothing(self) -> None:
        score, _ = neighbors.nearest(np.ones((3, 4), np.float32), [0], [0, 1, 2], 2)
        assert score.tolist() == [[0.0, 0.0]]


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
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["neighbors.json", "neighbors.png"]
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
        tile = neighbors.TILE
        # Each tile holds its photograph: the same square that a user would cut by hand.
        for row, (query, near) in enumerate(zip(result.queries, result.neighbors, strict=True)):
            for path in (query, *[path for path, _ in near]):
                with Image.open(path) as image:
                    side = min(image.size)
                    left, above = (image.width - side) // 2, (image.height - side) // 2
                    middle = np.array(image)[above : above + side, left : left + side].mean((0, 1))
                top = 64 + row * (tile + neighbors.CAPTION)
                lefts = [neighbors.MARGIN, *(neighbors.MARGIN + tile + 30 + j * (tile + 10) for j in range(2))]
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
            assert one.height - two.height == 5 * (neighbors.TILE + neighbors.CAPTION)
            assert one.width - two.width == 3 * (neighbors.TILE + neighbors.SPACE)

    def test_cells_are_compared_one_by_one(self, folder: Path, tmp_path: Path, model: ContextPredictionModel) -> None:
        result = found(folder / "panda.png", folder, tmp_path / "out", model, k=1, pool="grid")
        assert Path(result.neighbors[0][0][0]).stem == "panda copy"
        assert "grid" in str(result)

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
