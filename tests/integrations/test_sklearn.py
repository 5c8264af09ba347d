"""``ContextFeatures`` in scikit-learn's own hands: pipelines, clones, pickles, searches, frames."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import (
    check_estimator_cloneable,
    check_estimator_repr,
    check_estimator_tags_renamed,
    check_get_params_invariance,
    check_mixin_order,
    check_no_attributes_set_in_init,
    check_parameters_default_constructible,
    check_set_params,
    check_transformer_get_feature_names_out,
    check_valid_tag_types,
)

from context_pred import ContextPredictionModel, extract
from context_pred.errors import ImageError, InvalidInputError, UnknownNameError
from context_pred.integrations.sklearn import ContextFeatures

NAME = "resnet18_1xb64-coslr-300k"


@pytest.fixture(scope="module")
def paths(kinds: Path) -> list[Path]:
    return sorted(kinds.glob("*/*.jpg"))


@pytest.fixture(scope="module")
def vectors(paths: list[Path]) -> np.ndarray:
    return ContextFeatures(layer="feature2", batch_size=3).fit_transform(paths)


def test_numbers_are_the_models(paths, vectors, shipped):
    x = torch.stack([shipped.transform(Image.open(path)) for path in paths])
    with torch.no_grad():
        expected = shipped.embed(x, "feature2").numpy()
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-5)


def test_numbers_are_extractions(paths, tmp_path):
    extract.run(paths, NAME, out=tmp_path / "x.safetensors", layers="feature3", pool="grid", progress=False)
    expected = extract.load(tmp_path / "x.safetensors")[1]["feature3"]
    found = ContextFeatures(NAME, "feature3", pool="grid").transform(paths)
    assert found.shape == (8, 128 * 16)
    np.testing.assert_allclose(found, expected[:].reshape(8, -1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_other_engines(paths, vectors, engine):
    found = ContextFeatures(layer="feature2", engine=engine).transform(paths[:2])
    np.testing.assert_allclose(found, vectors[:2], rtol=1e-3, atol=1e-4)


KINDS_OF_INPUT = {
    "texts": lambda paths: [str(path) for path in paths],
    "an array of texts": lambda paths: np.array([str(path) for path in paths]),
    "an array of paths": lambda paths: np.array(paths, dtype=object),
    "a column": lambda paths: np.array([str(path) for path in paths], dtype=object)[:, None],
    "a series": lambda paths: pd.Series([str(path) for path in paths]),
    "a frame": lambda paths: pd.DataFrame({"path": [str(path) for path in paths]}),
    "pictures": lambda paths: [Image.open(path) for path in paths],
    "bytes": lambda paths: [path.read_bytes() for path in paths],
    "arrays": lambda paths: [np.asarray(Image.open(path)) for path in paths],
    "a generator": lambda paths: (path for path in paths),
    "mixed": lambda paths: [paths[0], str(paths[1]), Image.open(paths[2])],
}


@pytest.mark.parametrize("kind", KINDS_OF_INPUT)
@pytest.mark.parametrize("workers", [0, 2])
def test_kinds_of_input(paths, vectors, kind, workers):
    found = ContextFeatures(layer="feature2", batch_size=2, workers=workers).transform(KINDS_OF_INPUT[kind](paths[:3]))
    np.testing.assert_allclose(found, vectors[:3], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 40, 50), (2, 40, 50, 3), (2, 40, 50, 4)])
def test_one_array_of_images(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    found = ContextFeatures(layer="feature1").transform(pixels)
    np.testing.assert_array_equal(found, ContextFeatures(layer="feature1").transform(list(pixels)))
    assert found.shape == (2, 64)


BAD = {
    "one path": ("koala.jpg", "single image"),
    "one picture": (Image.new("RGB", (8, 8)), "single image"),
    "one array": (np.zeros((8, 8, 3), np.uint8), r"X\[None\]"),
    "floats": (np.zeros((2, 8, 8, 3)), "float64"),
    "a list of floats": ([np.zeros((8, 8, 3))], r"Image 0 is an array \(8, 8, 3\) of float64"),
    "five channels": ([np.zeros((8, 8, 5), np.uint8)], r"\(8, 8, 5\) of uint8"),
    "channels first": ([np.zeros((3, 8, 8), np.uint8)], r"accepted: a path"),
    "nothing": ([], "No images"),
    "a number": (3, "X is int"),
    "no image": ([Image.new("RGB", (8, 8)), None], "Image 1 is NoneType"),
    "two columns": (np.array([["a.jpg", "b.jpg"]]), "one column"),
    "five-channel batch": (np.zeros((2, 8, 8, 5), np.uint8), "Image 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_images(case):
    images, text = BAD[case]
    with pytest.raises(InvalidInputError, match=text):
        ContextFeatures(layer="feature1").transform(images)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "no.jpg").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"no\.jpg"):
        ContextFeatures(layer="feature1").transform([tmp_path / "no.jpg"])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"layer": "layer3"}, "Did you mean 'feature4'"),
        ({"layer": ["feature3"]}, "layer="),
        ({"pool": "none"}, "Accepted: gap, grid"),
        ({"model": "resnet18_1xb64"}, "Did you mean"),
        ({"model": 18}, "given as int"),
        ({"dtype": "int8"}, "Accepted: float32"),
        ({"device": "gpu"}, "Accepted: auto"),
        ({"engine": "onnx"}, "Did you mean 'onnxruntime'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"workers": -1}, "workers=-1"),
    ],
)
def test_bad_settings_are_told_by_fit_and_not_by_the_constructor(options, text):
    transformer = ContextFeatures(**options)
    with pytest.raises((InvalidInputError, UnknownNameError), match=text):
        transformer.fit([])


def test_names_of_features(vectors):
    names = ContextFeatures(layer="feature2").get_feature_names_out()
    assert list(names[[0, -1]]) == ["feature2_0", "feature2_63"]
    assert len(names) == vectors.shape[1]
    assert len(ContextFeatures(layer="feature2", pool="grid").get_feature_names_out()) == 64 * 36


def test_frames(paths, vectors):
    frame = ContextFeatures(layer="feature2").set_output(transform="pandas").fit_transform(pd.Series(paths[:2], [7, 9]))
    assert list(frame.columns[:2]) == ["feature2_0", "feature2_1"]
    assert list(frame.index) == [7, 9]
    np.testing.assert_allclose(frame, vectors[:2], rtol=1e-5, atol=1e-6)


def test_a_column_of_a_table(paths, vectors):
    table = pd.DataFrame({"path": [str(path) for path in paths[:2]], "age": [3.0, 4.0]})
    columns = ColumnTransformer([("image", ContextFeatures(layer="feature2"), "path"), ("age", "passthrough", ["age"])])
    found = columns.fit_transform(table)
    np.testing.assert_allclose(found[:, :64], vectors[:2], rtol=1e-5, atol=1e-6)
    assert columns.get_feature_names_out()[-1] == "age__age"


def test_settings_take_effect_at_once(paths, vectors):
    transformer = ContextFeatures(layer="feature1").fit(paths)
    transformer.transform(paths[:1])
    found = transformer.set_params(layer="feature2").transform(paths[:1])
    np.testing.assert_allclose(found, vectors[:1], rtol=1e-5, atol=1e-6)


def test_a_model_that_was_trained_further_counts_from_the_next_fit(paths, bgr):
    model = copy.deepcopy(bgr)
    transformer = ContextFeatures(model, "feature1").fit(paths)
    before = transformer.transform(paths[:1])
    torch.nn.init.zeros_(model.backbone.conv1.weight)
    np.testing.assert_array_equal(transformer.transform(paths[:1]), before)
    after = transformer.fit(paths).transform(paths[:1])
    np.testing.assert_array_equal(after, ContextFeatures(model, "feature1").transform(paths[:1]))
    assert not np.array_equal(after, before)


def test_pickles_hold_a_name_or_the_weights(paths, vectors, bgr):
    transformer = ContextFeatures(layer="feature2").fit(paths)
    data = pickle.dumps(transformer)
    assert len(data) < 1000
    np.testing.assert_array_equal(pickle.loads(data).transform(paths[:1]), transformer.transform(paths[:1]))
    own = ContextFeatures(bgr, "feature1")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(own)).transform(paths[:1]), own.transform(paths[:1]))


def test_clones(bgr):
    transformer = ContextFeatures(bgr, "feature1", pool="grid")
    copied = clone(transformer)
    assert copied.get_params()["layer"] == "feature1"
    assert isinstance(copied.model, ContextPredictionModel)
    assert "ContextFeatures(layer='feature3')" in repr(clone(ContextFeatures(layer="feature3")))


def test_the_layer_is_searched_for(paths):
    """Flowers against animals: the probe must beat guessing by far, and the search must have looked at both layers."""
    labels = [path.parent.name for path in paths]
    pipeline = make_pipeline(ContextFeatures(), StandardScaler(), LogisticRegression())
    search = GridSearchCV(pipeline, {"contextfeatures__layer": ["feature1", "feature3"]}, cv=2).fit(paths, labels)
    assert search.best_params_["contextfeatures__layer"] in ("feature1", "feature3")
    assert len(set(search.cv_results_["mean_test_score"])) <= 2
    assert search.score(paths, labels) == 1
    scores = cross_val_score(search.best_estimator_, paths, labels, cv=4)
    assert scores.mean() >= 0.75


CHECKS = (
    check_estimator_cloneable,
    check_estimator_repr,
    check_estimator_tags_renamed,
    check_get_params_invariance,
    check_no_attributes_set_in_init,
    check_parameters_default_constructible,
    check_set_params,
    check_valid_tag_types,
    check_mixin_order,
    check_transformer_get_feature_names_out,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_scikit_learns_own_checks(check):
    check("ContextFeatures", ContextFeatures())
