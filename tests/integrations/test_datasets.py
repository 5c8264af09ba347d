"""Columns of features in Hugging Face's datasets: in memory, on disk, streamed, in splits."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from context_pred.errors import ImageError, InvalidInputError, UnknownNameError
from context_pred.integrations.datasets import with_features

OPTIONS = {"batch_size": 3, "workers": 0}


@pytest.fixture(scope="module")
def paths(kinds: Path) -> list[Path]:
    return sorted(kinds.glob("*/*.jpg"))[:4]


@pytest.fixture
def dataset(paths: list[Path]) -> datasets.Dataset:
    made = datasets.Dataset.from_dict({"image": [str(path) for path in paths], "label": [0, 0, 1, 1]})
    return made.cast_column("image", datasets.Image())


@pytest.fixture(scope="module")
def expected(paths, shipped) -> dict[str, np.ndarray]:
    x = torch.stack([shipped.transform(Image.open(path)) for path in paths])
    with torch.no_grad():
        return {layer: shipped.embed(x, layer).numpy() for layer in ("feature1", "feature2")}


def close(column: object, values: np.ndarray) -> None:
    np.testing.assert_allclose(np.array(column), values, rtol=1e-4, atol=1e-5)


def test_columns(dataset, expected, shipped):
    found = with_features(dataset, shipped, layers=["feature2", "feature1"], **OPTIONS)
    assert found.column_names == ["image", "label", "feature1", "feature2"]
    assert found.features["feature1"].feature.dtype == "float32"
    for layer, values in expected.items():
        close(found[layer], values)
    assert found.features["image"] == dataset.features["image"]
    assert isinstance(found[0]["image"], Image.Image)
    assert found["label"][:] == [0, 0, 1, 1]
    assert found.with_format("torch")["feature1"][:].shape == (4, 64)


def test_formats_are_kept_and_do_not_disturb(dataset, expected, shipped):
    def small(batch):
        return {"pixels": [image.resize((8, 8)) for image in batch["image"]]}

    plain = with_features(dataset, shipped, layers="feature1", **OPTIONS)
    for given in (dataset.with_format("arrow"), dataset.with_transform(small), dataset.with_format("numpy", ["label"])):
        found = with_features(given, shipped, layers="feature1", **OPTIONS)
        assert found.format["type"] == given.format["type"]
        assert found.with_format(None)["feature1"][:] == plain["feature1"][:]
    assert set(found[0]) == {"label", "feature1"}
    assert set(with_features(dataset.with_transform(small), shipped, layers="feature1", **OPTIONS)[0]) == {"pixels"}


def test_no_rows_have_the_columns_too(dataset, shipped):
    found = with_features(dataset.select([]), shipped, layers=["feature1", "feature2"], **OPTIONS)
    assert found.features == with_features(dataset, shipped, layers=["feature1", "feature2"], **OPTIONS).features
    assert len(found) == 0


def test_a_stream(dataset, expected, shipped):
    rows = list(with_features(dataset.to_iterable_dataset(), shipped, layers="feature1", **OPTIONS))
    close([row["feature1"] for row in rows], expected["feature1"])
    assert isinstance(rows[0]["image"], Image.Image)


def test_splits(dataset, expected, shipped):
    splits = datasets.DatasetDict(train=dataset, test=dataset.select([3]))
    found = with_features(splits, shipped, layers="feature1", **OPTIONS)
    assert type(found) is datasets.DatasetDict
    close(found["test"]["feature1"], expected["feature1"][3:])


def test_paths_do_too(paths, expected, shipped):
    dataset = datasets.Dataset.from_dict({"file": [str(path) for path in paths]})
    found = with_features(dataset, shipped, layers="feature1", image_column="file", **OPTIONS)
    close(found["feature1"], expected["feature1"])


def test_pixels_without_a_file_do_too(shipped):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    dataset = datasets.Dataset.from_dict({"image": [picture]}, features=datasets.Features(image=datasets.Image()))
    found = with_features(dataset, shipped, layers="feature1", **OPTIONS)
    with torch.no_grad():
        close(found["feature1"], shipped.embed(shipped.transform(picture)[None], "feature1").numpy())


def test_what_is_on_disk_is_computed_once(dataset, shipped, bgr, tmp_path, monkeypatch):
    from context_pred.integrations.datasets import Engine

    dataset.save_to_disk(tmp_path / "set")
    dataset = datasets.load_from_disk(tmp_path / "set")
    calls = []
    call = Engine.__call__
    monkeypatch.setattr(Engine, "__call__", lambda self, pixels: calls.append(len(pixels)) or call(self, pixels))
    first = with_features(dataset, shipped, layers="feature1", **OPTIONS)
    assert calls == [3, 1]
    again = with_features(dataset, shipped, layers="feature1", **OPTIONS)
    assert calls == [3, 1]
    assert again["feature1"][:] == first["feature1"][:]
    other = with_features(dataset, bgr, layers="feature1", **OPTIONS)
    assert calls == [3, 1, 3, 1]
    assert other["feature1"][:] != first["feature1"][:]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"image_column": "picture"}, "Unknown column 'picture'"),
        ({"layers": "layer1"}, "Did you mean 'feature2'"),
        ({"pool": "none"}, "Accepted: gap, grid"),
        ({"dtype": "int8"}, "Unknown dtype"),
        ({"engine": "jax"}, "Unknown engine"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"workers": 0.5}, "workers=0.5"),
    ],
)
def test_bad_options(dataset, shipped, options, text):
    with pytest.raises((InvalidInputError, UnknownNameError), match=text):
        with_features(dataset, shipped, **options)


def test_a_column_that_is_there(dataset, shipped):
    with pytest.raises(InvalidInputError, match="a column 'feature1' already"):
        with_features(dataset.rename_column("label", "feature1"), shipped, layers="feature1")


def test_no_dataset(shipped):
    with pytest.raises(InvalidInputError, match="given as list"):
        with_features([], shipped)


def test_a_missing_image_is_numbered(paths, shipped):
    dataset = datasets.Dataset.from_dict({"image": [str(paths[0])] * 4 + [None]}).cast_column("image", datasets.Image())
    with pytest.raises(InvalidInputError, match="Image 4 is NoneType"):
        with_features(dataset, shipped, layers="feature1", **OPTIONS)


def test_a_damaged_image_is_numbered(shipped):
    rows = [{"bytes": b"no image", "path": None}]
    dataset = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features(image=datasets.Image()))
    with pytest.raises(ImageError, match="Image 0: not an image"):
        with_features(dataset, shipped, layers="feature1", **OPTIONS)
