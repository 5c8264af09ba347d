"""Feature maps in colour: the components against NumPy's decomposition, and the sheet on real photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from context_pred.discover.pictures import features
from context_pred.discover.pictures.features import pca_colors
from context_pred.errors import ContextPredError, ImageError, InvalidInputError, StorageError, UnknownNameError
from context_pred.model import ContextPredictionModel


def maps(seed: int = 0) -> list[np.ndarray]:
    """Three maps whose channels vary by very different amounts."""
    random = np.random.RandomState(seed)
    mixing = random.randn(8, 8) * np.array([8, 5, 3, 1, 0.3, 0.2, 0.1, 0.05])[:, None]
    return [(random.randn(h, w, 8) @ mixing + 3).astype(np.float32) for h, w in ((9, 12), (7, 7), (20, 5))]


class TestColors:
    def test_are_the_principal_components_by_numpy(self) -> None:
        given = maps()
        unit = [one / np.linalg.norm(one, axis=2, keepdims=True) for one in given]
        vectors = np.concatenate([one.reshape(-1, 8) for one in unit]).astype(np.float64)
        _, weights = np.linalg.eigh(np.cov(vectors.T))
        weights = weights[:, ::-1][:, :3]
        weights = weights * np.sign(weights[np.abs(weights).argmax(0), range(3)])
        parts = (vectors - vectors.mean(0)) @ weights
        low, high = np.percentile(parts, (1, 99), axis=0)
        expected = 255 * np.clip((parts - low) / (high - low), 0, 1)
        found = np.concatenate([one.reshape(-1, 3) for one in pca_colors(given)])
        assert np.abs(found - expected).max() < 2.5

    def test_one_feature_has_one_colour_in_all_photographs(self) -> None:
        given = maps()
        given[1][3, 2] = 2 * given[0][5, 6]  # also where it is stronger
        colors = pca_colors(given)
        assert np.abs(colors[1][3, 2].astype(int) - colors[0][5, 6]).max() <= 1

    def test_outliers_do_not_take_the_scale(self) -> None:
        given = maps()
        given[0][0, 0] = -50 * given[0].mean((0, 1))
        assert all(one.reshape(-1, 3).std(0).min() > 30 for one in pca_colors(given))

    def test_the_random_numbers_of_the_caller_stay(self) -> None:
        import torch

        torch.manual_seed(5)
        expected = torch.rand(1)
        torch.manual_seed(5)
        first = pca_colors(maps())
        assert torch.equal(torch.rand(1), expected)
        assert all(np.array_equal(a, b) for a, b in zip(first, pca_colors(maps()), strict=True))

    def test_even_and_tiny_maps(self) -> None:
        assert pca_colors([np.ones((4, 4, 8), np.float32)])[0].shape == (4, 4, 3)
        assert pca_colors([np.ones((1, 1, 8), np.float32)])[0].shape == (1, 1, 3)
        for wrong in ([], [np.ones((4, 4, 2), np.float32)]):
            with pytest.raises(InvalidInputError, match="pca_colors takes"):
                pca_colors(wrong)


def drawn(images: object, out: Path, model: ContextPredictionModel, **options: object):
    options = {"side": 2, "progress": False, "device": "cpu", **options}
    return features.run(images, out=out, model=model, **options)  # type: ignore[arg-type]


class TestRun:
    def test_a_row_a_photograph_and_a_column_a_layer(
        self, folder: Path, bomb: Path, tmp_path: Path, model: ContextPredictionModel
    ) -> None:
        result = drawn([folder, bomb], tmp_path / "out", model)
        assert len(result.paths) == 6
        assert result.layers == ("feature1", "feature2", "feature3", "feature4", "feature5")
        assert list(result.skipped) == [str(bomb)]
        assert "6 photographs" in str(result)
        with Image.open(result.picture) as sheet:
            pixels = np.asarray(sheet)
        one = drawn(folder, tmp_path / "one", model, layers=["feature2"], at_most=2)
        with Image.open(one.picture) as sheet:
            assert sheet.width < pixels.shape[1] / 2
            assert sheet.height < pixels.shape[0] / 2
        # The first row: the photograph, then five coloured maps over it, each another picture.
        with Image.open(result.paths[0]) as image:
            expected = np.asarray(image, float).mean((0, 1))
        top, left, tile = features.HEADING + 44, features.MARGIN, features.TILE
        size = features.within(Image.open(result.paths[0]).size, (tile, tile))
        parts = [
            pixels[top : top + size[1], left + k * (tile + features.SPACE) :][:, : size[0]].astype(float)
            for k in range(6)
        ]
        assert np.abs(parts[0].mean((0, 1)) - expected).max() < 3
        assert all(np.abs(parts[k] - parts[k + 1]).mean() > 5 for k in range(5))

    def test_wrong_arguments_leave_what_is_there(
        self, folder: Path, bomb: Path, tmp_path: Path, model: ContextPredictionModel
    ) -> None:
        out = tmp_path / "out"
        kept = drawn(folder, out, model, layers=["feature1"]).picture.read_bytes()
        wrong: list[tuple[object, dict, type[ContextPredError], str]] = [
            (folder, {"layers": ["feature1", "conv5"]}, UnknownNameError, "conv5"),
            (folder, {"at_most": -1}, InvalidInputError, "at_most"),
            (folder, {"side": 100}, InvalidInputError, "side"),
            (folder, {"device": "tpu9"}, InvalidInputError, "device"),
            (bomb, {}, ImageError, "pixels"),
            (tmp_path / "nowhere", {}, InvalidInputError, "No images"),
        ]
        for images, options, error, text in wrong:
            with pytest.raises(error, match=text):
                drawn(images, out, model, **options)
        assert [path.name for path in out.iterdir()] == ["features.png"]
        assert (out / "features.png").read_bytes() == kept

    def test_a_folder_that_cannot_be_made(self, folder: Path, tmp_path: Path, model: ContextPredictionModel) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError, match="file"):
            drawn(folder, tmp_path / "file" / "below", model, layers=["feature1"])
