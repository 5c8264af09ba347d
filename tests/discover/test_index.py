"""The index of neighbours: what it finds, what it keeps on disk, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from growth import STATUS, growth
from PIL import Image

from context_pred.card import Card
from context_pred.discover import index as module
from context_pred.discover import index_folder
from context_pred.discover.grid import PatchGrid
from context_pred.discover.index import NeighborIndex
from context_pred.discover.patches import normalized, patch_features
from context_pred.engines import Engine
from context_pred.errors import ContextPredError, ImageError, InvalidInputError, StorageError, UnknownNameError
from context_pred.model import ContextPredictionModel

NAMES = ("koala", "panda", "moose", "polar_bear", "opera_sydney", "flower_red")
QUIET = {"progress": False, "workers": 0, "device": "cpu"}
GRID = PatchGrid(16, sides=(2.0, 3.0))


def tiny(seed: int = 0) -> ContextPredictionModel:
    torch.manual_seed(seed)
    card = Card("tiny-input", "resnet18", pair_layers=False, resize=64, crop=56)
    return ContextPredictionModel.from_card(card).eval()


@pytest.fixture(scope="module")
def model() -> ContextPredictionModel:
    return tiny()


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    """Six small photographs."""
    (tmp_path / "photos").mkdir()
    for name in NAMES:
        with Image.open(photos / f"{name}.jpg") as image:
            image.convert("RGB").resize((60, 50)).save(tmp_path / "photos" / f"{name}.png")
    return tmp_path / "photos"


@pytest.fixture
def index(folder: Path, tmp_path: Path, model: ContextPredictionModel) -> NeighborIndex:
    return NeighborIndex.build(folder, model, out=tmp_path / "index", layer="feature2", **QUIET)


def rows(count: int, width: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def brute(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    both = [a.reshape(len(a), -1).astype(np.float64) for a in (vectors, queries)]
    bank, asked = ((a - a.mean(1, keepdims=True)) / a.std(1, keepdims=True) / a.shape[1] ** 0.5 for a in both)
    order = np.argsort(-(asked @ bank.T), axis=1)[:, :k]
    return np.take_along_axis(asked @ bank.T, order, 1), order


class TestOfVectors:
    @pytest.mark.parametrize("shape", [(300, 12), (50, 3, 2, 2)])
    def test_exact_is_brute_force(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        vectors = np.random.default_rng(0).normal(2, 3, shape).astype(np.float32)
        index = NeighborIndex.of(vectors, out=tmp_path / "index")
        scores, found = index.search(vectors[:7], 5)
        expected, order = brute(vectors, vectors[:7], 5)
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)
        assert (found == order).all()
        assert (scores.dtype, found.dtype) == (np.float32, np.int64)
        np.testing.assert_allclose(index.vectors([3, 1]), normalized(vectors[[3, 1]]), atol=1e-7)

    def test_loaded_is_built(self, tmp_path: Path) -> None:
        vectors = rows(100)
        built = NeighborIndex.of(vectors, out=tmp_path / "index", names=[f"{i}.jpg" for i in range(100)])
        loaded = NeighborIndex.load(tmp_path / "index")
        assert len(loaded) == len(built) == 100
        assert loaded.paths == built.paths
        assert isinstance(loaded._parts[0].vectors, np.memmap)
        for one, other in zip(built.search(vectors[:5], 9), loaded.search(vectors[:5], 9), strict=True):
            assert (one == other).all()
        assert loaded.match(7, 0.5) == module.Match("7.jpg", None, 0.5)

    def test_fewer_vectors_than_asked_for(self, tmp_path: Path) -> None:
        scores, found = NeighborIndex.of(rows(3), out=tmp_path / "index").search(rows(2, seed=1), 5)
        assert (found[:, 3:] == -1).all()
        assert np.isneginf(scores[:, 3:]).all()

    def test_inverted_file_when_there_are_many(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("faiss")
        monkeypatch.setattr(module, "KINDS", {**module.KINDS, "auto": 2000})
        vectors = rows(2500)
        for kind, coded in (("auto", True), ("exact", False), ("ivf", True)):
            NeighborIndex.of(vectors, out=tmp_path / kind, kind=kind)
            index = NeighborIndex.load(tmp_path / kind)
            assert any(path.name == "codes.faiss" for path in (tmp_path / kind).rglob("*")) == coded
            expected, order = brute(vectors, vectors[:50] + 0.1, 5)
            scores, found = index.search(vectors[:50] + 0.1, 5)
            assert (found == order).mean() > (0.9 if coded else 0.999)
            scores, found = index.search(vectors[:50] + 0.1, 5, probes=0)  # compares all
            np.testing.assert_allclose(scores, expected, atol=1e-6)
        assert "2,500 of them in inverted files" in str(NeighborIndex.load(tmp_path / "ivf"))

    @pytest.mark.parametrize(
        ("vectors", "options", "message"),
        [
            (rows(0), {}, r"\(0, 12\)"),
            (rows(3, 0), {}, r"\(3, 0\)"),
            (rows(3), {"names": ["a"]}, "as many names"),
            (rows(3), {"names": "abc"}, "as many names"),
            (rows(3)[0], {}, "a row a vector"),
            ("abc", {}, "a row a vector"),
            ([[1, 2], [3]], {}, "no array"),
            (rows(3) + 1j, {}, "complex"),
            (rows(3), {"kind": "hnws"}, "exact"),
        ],
    )
    def test_refusals(self, tmp_path: Path, vectors: np.ndarray, options: dict, message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            NeighborIndex.of(vectors, out=tmp_path / "index", **options)
        assert not (tmp_path / "index").exists()

    def test_tensors_are_vectors_too(self, tmp_path: Path) -> None:
        vectors = torch.from_numpy(rows(9))
        index = NeighborIndex.of(vectors, out=tmp_path / "index", names=[Path(f"{row}.png") for row in range(9)])
        expected, order = brute(vectors.numpy(), vectors[:2].numpy(), 3)
        scores, found = index.search(vectors[:2].clone().requires_grad_(), 3)
        np.testing.assert_array_equal(found, order)
        np.testing.assert_allclose(scores, expected, atol=1e-6)
        assert (index.search(vectors[:2].bfloat16(), 1)[1][:, 0] == [0, 1]).all()

    def test_vectors_of_equal_values_correlate_with_nothing(self, tmp_path: Path) -> None:
        vectors = np.concatenate([rows(1500), np.full((500, 12), 0.1, np.float32)])
        index = NeighborIndex.of(vectors, out=tmp_path / "index", kind="ivf")
        scores, found = index.search(np.full((1, 12), 7.3), 5)
        assert not scores.any()
        assert (found >= 0).all()
        scores, found = index.search(1e30 * vectors[:3], 1)
        assert found[:, 0].tolist() == [0, 1, 2]
        np.testing.assert_allclose(scores, 1, atol=1e-5)

    def test_search_refuses(self, tmp_path: Path) -> None:
        index = NeighborIndex.of(rows(9), out=tmp_path / "index")
        nan = np.where(np.eye(2, 12) > 0, np.nan, rows(2))
        with pytest.raises(InvalidInputError, match="finite"):
            NeighborIndex.of(nan, out=tmp_path / "nan")
        for bad, options in (
            (nan, {"k": 1}),
            (rows(2, 13), {"k": 1}),
            (rows(2), {"k": 0}),
            (rows(2), {"k": 1, "probes": -1}),
        ):
            with pytest.raises(InvalidInputError):
                index.search(bad, **options)
        with pytest.raises(InvalidInputError, match="vectors alone"):
            index.query(Image.new("RGB", (9, 9)), 1)


class TestOfImages:
    def test_scores_are_those_of_embed(self, index: NeighborIndex, folder: Path, model: ContextPredictionModel) -> None:
        (matches,) = index.query(folder / "koala.png", 5)
        vectors = {}
        for path in sorted(folder.iterdir()):
            with Image.open(path) as image, torch.no_grad():
                vectors[str(path)] = model.embed(model.transform(image)[None], layer="feature2")[0].numpy()
        own = vectors.pop(str(folder / "koala.png"))
        expected = sorted(((np.corrcoef(own, v)[0, 1], path) for path, v in vectors.items()), reverse=True)
        assert [match.path for match in matches] == [path for _, path in expected]
        np.testing.assert_allclose([m.score for m in matches], [score for score, _ in expected], atol=1e-4)
        assert {match.box for match in matches} == {None}

    def test_a_picture_and_a_list_of_pictures(self, index: NeighborIndex, folder: Path) -> None:
        with Image.open(folder / "moose.png") as image:
            one, two = index.query([image.copy(), str(folder / "panda.png")], 2)
        assert one[0].path == str(folder / "moose.png")
        assert abs(one[0].score - 1) < 1e-5
        assert len(two) == 2
        assert str(folder / "panda.png") not in {match.path for match in two}

    def test_adding_equals_building(
        self, folder: Path, tmp_path: Path, model: ContextPredictionModel, index: NeighborIndex
    ) -> None:
        files = sorted(folder.iterdir())
        grown = NeighborIndex.build(files[:2], model, out=tmp_path / "grown", layer="feature2", **QUIET)
        assert grown.add(files[1:3], **QUIET) == 1
        assert grown.add(folder, **QUIET) == 3
        assert grown.add(folder, **QUIET) == 0
        for each in (grown, NeighborIndex.load(tmp_path / "grown", model)):
            assert len(each) == 6
            for path in files:
                mine, theirs = each.query(path, 5)[0], index.query(path, 5)[0]
                assert [m.path for m in mine] == [m.path for m in theirs]
                np.testing.assert_allclose([m.score for m in mine], [m.score for m in theirs], atol=1e-5)
        assert sorted(path.name for path in (tmp_path / "grown").glob("part-*")) == ["part-000002"]

    def test_many_small_additions_make_few_parts(self, tmp_path: Path) -> None:
        vectors = rows(40)
        index = NeighborIndex.of(vectors[:20], out=tmp_path / "index")
        for row in range(20, 40):
            with index_folder.locked(index.folder):
                source = index_folder.Source(vectors[row : row + 1], None, [{"path": str(row), "rows": 1}])
                index._open(index_folder.commit(index.folder, index._manifest, index._parts, source, None))
        assert len(list(index.folder.glob("part-*"))) <= 4
        scores, found = NeighborIndex.load(index.folder).search(vectors, 3)
        expected, order = brute(vectors, vectors, 3)
        assert (found == order).all()
        np.testing.assert_allclose(scores, expected, atol=1e-6)

    def test_damaged_pictures_are_listed_and_not_tried_again(
        self, folder: Path, tmp_path: Path, model: ContextPredictionModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (folder / "notes.txt").write_text("no image")
        (folder / "cut.png").write_bytes((folder / "koala.png").read_bytes()[:900])
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
        Image.new("1", (200, 200)).save(folder / "vast.png")
        index = NeighborIndex.build(folder, model, out=tmp_path / "index", layer="feature2", **QUIET)
        assert {Path(path).name for path in index.errors} == {"notes.txt", "cut.png", "vast.png"}
        assert "pixels" in index.errors[str(folder / "vast.png")]
        assert len(index) == 6
        assert index.add(folder, **QUIET) == 0
        shutil.copy(folder / "koala.png", folder / "cut.png")  # mended
        assert index.add(folder, **QUIET) == 1
        assert {Path(path).name for path in index.errors} == {"notes.txt", "vast.png"}
        with pytest.raises(ImageError, match=r"vast\.png.*pixels"):
            index.query(folder / "vast.png", 1)

    def test_what_cannot_be_added_leaves_the_index_as_it_was(
        self, index: NeighborIndex, folder: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "bad").mkdir()
        (tmp_path / "bad" / "no.jpg").write_text("no image")
        before = index.query(folder / "koala.png", 3)
        with pytest.raises(ImageError, match=r"no\.jpg"):
            index.add(tmp_path / "bad", **QUIET)
        with pytest.raises(InvalidInputError, match="nowhere"):
            index.add(tmp_path / "nowhere", **QUIET)
        assert index.query(folder / "koala.png", 3) == before
        assert len(NeighborIndex.load(index.folder)) == 6

    def test_a_full_disk_leaves_the_index_as_it_was(
        self, index: NeighborIndex, photos: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(index_folder, "_write_part", full)
        with pytest.raises(StorageError, match="No space left"):
            index.add(photos / "gate_berlin.jpg", **QUIET)
        monkeypatch.undo()
        assert len(NeighborIndex.load(index.folder)) == 6
        assert index.add(photos / "gate_berlin.jpg", **QUIET) == 1

    def test_changed_files_are_noticed(self, index: NeighborIndex, folder: Path, model: ContextPredictionModel) -> None:
        Image.new("RGB", (70, 70)).save(folder / "koala.png")
        with pytest.raises(InvalidInputError, match=r"1 of the images .* changed .*koala"):
            index.add(folder, **QUIET)
        again = NeighborIndex.build(folder, model, out=index.folder, layer="feature2", overwrite=True, **QUIET)
        assert len(again) == 6
        assert len(list(index.folder.glob("part-*"))) == 1

    def test_rows_and_vectors_that_cannot_be(self, index: NeighborIndex, tmp_path: Path) -> None:
        for row in (-1, 6):
            for call in (index.vectors, lambda rows: index.match(rows[0], 0.0)):
                with pytest.raises(InvalidInputError, match=rf"Row {row} of an index of 6 .*0 … 5"):
                    call([row])
        for wrong in (np.ones(128), np.array([["a"]]), 3):
            with pytest.raises(InvalidInputError, match="a row a vector"):
                index.search(wrong, 1)
        with pytest.raises(InvalidInputError, match="k=0"):
            index.nearest_images(index.vectors([0]), 0)
        with pytest.raises(InvalidInputError, match="has an index already"):
            NeighborIndex.of(rows(3), out=index.folder)
        assert NeighborIndex.of([[1, 2, 9], [5, 4, 1]], out=tmp_path / "list").search([[1, 2, 8]], 1)[1] == [[0]]

    def test_what_is_replaced_stays_until_the_new_is_whole(
        self, index: NeighborIndex, photos: Path, model: ContextPredictionModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(index_folder, "_write_part", full)
        options = {"out": index.folder, "layer": "feature3", "overwrite": True, **QUIET}
        with pytest.raises(StorageError, match="The index is as it was"):
            NeighborIndex.build(photos, model, **options)  # type: ignore[arg-type]
        monkeypatch.undo()
        assert len(NeighborIndex.load(index.folder, model)) == 6
        assert len(NeighborIndex.build(photos, model, **options)) > 6  # type: ignore[arg-type]
        assert len(list(index.folder.glob("part-*"))) == 1

    def test_what_another_process_has_added_stays(
        self, index: NeighborIndex, photos: Path, model: ContextPredictionModel
    ) -> None:
        other = NeighborIndex.load(index.folder, model)
        assert index.add(photos / "gate_berlin.jpg", **QUIET) == 1
        assert other.add([photos / "forest_path.jpg", photos / "gate_berlin.jpg"], **QUIET) == 1
        assert len(other) == len(NeighborIndex.load(index.folder)) == 8
        NeighborIndex.build(photos, model, out=index.folder, layer="feature3", overwrite=True, **QUIET)
        with pytest.raises(InvalidInputError, match=r"replaced.*'feature3'"):
            other.add(photos / "dandelions.jpg", **QUIET)

    def test_another_process_is_adding(self, index: NeighborIndex, photos: Path) -> None:
        with index_folder.locked(index.folder), pytest.raises(StorageError, match="Another process"):
            index.add(photos / "gate_berlin.jpg", **QUIET)


class TestOfPatches:
    @pytest.fixture
    def patches(self, folder: Path, tmp_path: Path, model: ContextPredictionModel) -> NeighborIndex:
        out = tmp_path / "patches"
        return NeighborIndex.build(folder, model, out=out, layer="feature3", patches=True, grid=GRID, **QUIET)

    def test_rows_are_the_grids(self, patches: NeighborIndex, folder: Path, model: ContextPredictionModel) -> None:
        with Image.open(folder / "panda.png") as image:
            features, boxes = patch_features(model, image.convert("RGB"), GRID, layer="feature3", device="cpu")
        number = patches.paths.index(str(folder / "panda.png"))
        first, last = patches.starts[number : number + 2]
        assert last - first == len(features)
        np.testing.assert_allclose(patches.vectors(range(first, last)), normalized(features), atol=1e-5)
        assert patches.match(first + 2, 0).box == tuple(boxes[2].tolist())
        scores, _ = patches.search(features, 1)
        np.testing.assert_allclose(scores, 1, atol=1e-5)
        assert patches.grid == GRID

    def test_each_image_once_by_its_best_patch(self, patches: NeighborIndex) -> None:
        vectors = patches.vectors([0, 40])
        own = patches.image_of([0, 40]).tolist()
        for probes in (64, 0):
            for row, matches in enumerate(patches.nearest_images(vectors, 5, without=own, probes=probes)):
                similarity = patches.vectors(range(len(patches))) @ vectors[row]
                images = patches.image_of(range(len(patches)))
                best = {path: similarity[images == i].max() for i, path in enumerate(patches.paths) if i != own[row]}
                expected = sorted(best.items(), key=lambda item: -item[1])
                assert [match.path for match in matches] == [path for path, _ in expected]
                np.testing.assert_allclose([m.score for m in matches], [score for _, score in expected], atol=1e-6)

    def test_when_the_nearest_patches_are_all_of_few_images(
        self, patches: NeighborIndex, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        vector, search = patches.vectors([0]), patches.search
        whole = patches.nearest_images(vector, 5, without=[0])
        monkeypatch.setattr(patches, "search", lambda vectors, k, probes: search(vectors, 3))
        again = patches.nearest_images(vector, 5, without=[0])
        assert [(match.path, match.box) for match in again[0]] == [(match.path, match.box) for match in whole[0]]
        np.testing.assert_allclose([m.score for m in again[0]], [m.score for m in whole[0]], atol=1e-6)

    def test_a_picture_is_a_patch(self, patches: NeighborIndex, folder: Path) -> None:
        x1, y1, x2, y2 = (round(v) for v in patches.match(int(patches.starts[1]), 0).box or ())
        with Image.open(patches.paths[1]) as image:
            (matches,) = patches.query(image.crop((x1, y1, x2, y2)), 2)
        assert matches[0].path == patches.paths[1]
        assert matches[0].score > 0.9


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"layer": "feature6"}, UnknownNameError, "feature5"),
            ({"pool": "max"}, UnknownNameError, "gap"),
            ({"kind": "flat"}, UnknownNameError, "exact"),
            ({"grid": GRID}, InvalidInputError, "patches=True"),
            ({"patches": True, "pool": "grid"}, InvalidInputError, "pool"),
            ({"batch_size": -1}, InvalidInputError, "batch_size"),
            ({"batch_size": 0, "patches": True}, InvalidInputError, "batch_size"),
            ({"workers": -1, "patches": True}, InvalidInputError, "workers"),
            ({"grid": "dense", "patches": True}, InvalidInputError, "PatchGrid"),
            ({"device": "abacus"}, InvalidInputError, "abacus"),
        ],
    )
    def test_arguments(self, folder: Path, tmp_path: Path, model: ContextPredictionModel, options, error, message):
        with pytest.raises(error, match=message):
            NeighborIndex.build(folder, model, out=tmp_path / "index", **{**QUIET, **options})
        assert not (tmp_path / "index" / "index.json").exists()

    def test_no_images(self, tmp_path: Path, model: ContextPredictionModel) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(InvalidInputError, match="No images"):
            NeighborIndex.build(tmp_path / "empty", model, out=tmp_path / "index", **QUIET)

    def test_fewer_images_than_neighbours(self, index: NeighborIndex, folder: Path) -> None:
        assert len(index.query(Image.new("RGB", (60, 50)), 6)[0]) == 6
        with pytest.raises(InvalidInputError, match=r"k=7.*6 images"):
            index.query(Image.new("RGB", (60, 50)), 7)
        with pytest.raises(InvalidInputError, match="5 other images"):
            index.query(folder / "koala.png", 6)
        for k in (0, -1, True, 2.0):
            with pytest.raises(InvalidInputError, match="whole number"):
                index.query(folder / "koala.png", k)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="No pictures"):
            index.query([], 1)
        for picture in (np.zeros((40, 50, 3), np.uint8), torch.zeros(3, 40, 50), None, Image.new("RGB", (0, 0))):
            with pytest.raises(InvalidInputError, match=type(picture).__name__):
                index.query([picture], 1)  # type: ignore[list-item]
        for without in ([0], [0, 6], [0, -2]):
            with pytest.raises(InvalidInputError, match="without"):
                index.nearest_images(index.vectors([0, 1]), 1, without=without)

    def test_another_model_or_layer(self, index: NeighborIndex, folder: Path, model: ContextPredictionModel) -> None:
        with pytest.raises(InvalidInputError, match="another model"):
            NeighborIndex.load(index.folder, tiny(seed=1))
        with pytest.raises(InvalidInputError, match="weights have changed"):
            NeighborIndex.build(folder, tiny(seed=1), out=index.folder, layer="feature2", **QUIET)
        with pytest.raises(InvalidInputError, match=r"'feature2'.*'feature3'"):
            NeighborIndex.build(folder, model, out=index.folder, layer="feature3", **QUIET)
        with pytest.raises(InvalidInputError, match=r"256 values.*another model, layer or pooling"):
            index.search(np.zeros((1, 256), np.float32), 1)
        with pytest.raises(InvalidInputError, match="with its model"):
            NeighborIndex.load(index.folder).query(folder / "koala.png", 1)
        assert len(NeighborIndex.load(index.folder, model)) == 6

    def test_damaged_or_foreign_folders(self, index: NeighborIndex, tmp_path: Path) -> None:
        def broken(change) -> Path:
            target = tmp_path / "broken"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(index.folder, target)
            change(target, next(target.glob("part-*")))
            return target

        def rewritten(path: Path, **changes: object) -> None:
            path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

        def cut(path: Path) -> None:
            path.write_bytes(path.read_bytes()[:-1])

        def garbled(path: Path) -> None:
            path.write_bytes(bytes(path.stat().st_size))

        without_layer = {name: value for name, value in index.settings.items() if name != "layer"}
        cases = [
            (lambda folder, part: shutil.rmtree(part), "missing"),
            (lambda folder, part: (part / "images.jsonl").unlink(), "images.jsonl is missing"),
            (lambda folder, part: cut(part / "vectors.npy"), r"bytes.*overwrite=True, or remove"),
            (lambda folder, part: garbled(part / "vectors.npy"), r"damaged.*overwrite=True, or remove"),
            (lambda folder, part: garbled(part / "images.jsonl"), "damaged"),
            (lambda folder, part: cut(folder / "index.json"), r"index\.json is damaged.*remove this one"),
            (lambda folder, part: (folder / "index.json").write_text("[1]"), r"index\.json is damaged"),
            (lambda folder, part: (folder / "index.json").unlink(), r"index\.json is missing"),
            (lambda folder, part: rewritten(folder / "index.json", version=2), "version 2"),
            (lambda folder, part: rewritten(folder / "index.json", format="x"), "'x'"),
            (lambda folder, part: rewritten(folder / "index.json", parts=3), "damaged"),
            (lambda folder, part: rewritten(folder / "index.json", settings={}), r"damaged.*'kind'"),
            (lambda folder, part: rewritten(folder / "index.json", settings=without_layer), r"damaged.*'layer'"),
        ]
        for change, message in cases:
            with pytest.raises(InvalidInputError, match=message):
                NeighborIndex.load(broken(change))
        with pytest.raises(InvalidInputError, match="no index"):
            NeighborIndex.load(tmp_path / "nowhere")

    def test_another_programs_folder_is_left_alone(
        self, folder: Path, tmp_path: Path, model: ContextPredictionModel
    ) -> None:
        with pytest.raises(InvalidInputError, match="other files"):
            NeighborIndex.build(folder, model, out=folder, **QUIET)
        (tmp_path / "file").write_text("")
        with pytest.raises(ContextPredError, match="file"):
            NeighborIndex.build(folder, model, out=tmp_path / "file", **QUIET)
        assert len(list(folder.iterdir())) == 6


KILLED = """
import os, sys
import torch
import context_pred.extract.work as work
from context_pred.card import Card
from context_pred.discover.index import NeighborIndex
from context_pred.model import ContextPredictionModel
torch.manual_seed(0)
model = ContextPredictionModel.from_card(Card("tiny-input", "resnet18", pair_layers=False, resize=64, crop=56)).eval()
write = work.write_part
def once(*arguments):
    write(*arguments)
    os._exit(9)
work.write_part = once
NeighborIndex.build(sys.argv[1], model, out=sys.argv[2], layer="feature2", batch_size=2, progress=False, workers=0,
                    device="cpu")
"""


class Dead(BaseException):
    """What nothing catches."""


@pytest.mark.parametrize("where", ["extraction", "part", "manifest"])
def test_a_killed_build_goes_on_and_loses_nothing(
    folder: Path, tmp_path: Path, model: ContextPredictionModel, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, options = tmp_path / "index", {**QUIET, "layer": "feature2", "batch_size": 2}
    before = NeighborIndex.build(sorted(folder.iterdir())[:1], model, out=out, **options).vectors([0])
    if where == "extraction":
        killed = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(out)], check=False)
        assert killed.returncode == 9
    else:

        def dead(*_: object) -> None:
            raise Dead

        with monkeypatch.context() as patch:
            patch.setattr(
                *((index_folder, "_write_part") if where == "part" else (index_folder.Manifest, "write")), dead
            )
            with pytest.raises(Dead):
                NeighborIndex.build(folder, model, out=out, **options)
    assert (NeighborIndex.load(out).vectors([0]) == before).all()
    assert len(NeighborIndex.load(out)) == 1
    assert len(list(out.glob(".adding-*"))) == 1
    computed: list[int] = []
    call = Engine.__call__
    monkeypatch.setattr(Engine, "__call__", lambda self, x: computed.append(len(x)) or call(self, x))
    assert len(NeighborIndex.build(folder, model, out=out, **options)) == 6
    assert sum(computed) == (3 if where == "extraction" else 0)  # of the five that were missing
    assert [path.name for path in sorted(out.iterdir()) if path.name[0] != "."] == ["index.json", "part-000001"]


def anonymous() -> int:
    """Memory of this process that belongs to no file, MB."""
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith("RssAnon")) // 1000


@pytest.mark.skipif(not STATUS.exists(), reason="Linux tells the resident memory")
def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.lib.format.open_memmap(tmp_path / "vectors.npy", "w+", np.float32, (400_000, 128))
    for first in range(0, len(vectors), 50_000):
        vectors[first : first + 50_000] = rows(50_000, 128, seed=first)
    vectors.flush()
    del vectors
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    # Pages of mapped files count as resident while there is room for them, so what is the process' own is looked at.
    monkeypatch.setattr("growth.resident", anonymous)
    NeighborIndex.of(mapped[:1000], out=tmp_path / "small").search(mapped[:9], 3)
    assert growth(lambda: NeighborIndex.of(mapped, out=tmp_path / "index", kind="exact")) < 60  # of 205 MB of vectors
    assert growth(lambda: NeighborIndex.load(tmp_path / "index").search(mapped[:1000], 3)) < 120


def test_an_index_says_what_it_is(index: NeighborIndex) -> None:
    assert str(index) == "6 vectors of 6 images (tiny-input, feature2, gap); 0 of them in inverted files"
