from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC

from context_pred.errors import InvalidInputError
from context_pred.evaluate import svm
from context_pred.evaluate.classifiers import vectors
from context_pred.evaluate.job import Job
from context_pred.evaluate.labelled import LabelledImages, Split
from context_pred.evaluate.metrics import average_precision

CLASSES = ("cat", "dog", "koala")
FEW = svm.Settings(costs=(1.0, 100.0, 0.5**4, 0.5**19))


@dataclass(frozen=True)
class Arrays:
    """Features with some sense in them, labels with difficult images."""

    train: NDArray[np.float32]
    labels: NDArray[np.int8]
    test: NDArray[np.float32]
    test_labels: NDArray[np.int8]

    def given(self) -> tuple[NDArray[np.float32], NDArray[np.int8], NDArray[np.float32], NDArray[np.int8]]:
        return self.train, self.labels, self.test, self.test_labels


def make(single: bool = False, seed: int = 0, count: int = 60) -> Arrays:
    rng = np.random.default_rng(seed)
    shows = rng.standard_normal((2 * count, 3))
    features = np.maximum(shows @ rng.standard_normal((3, 80)) + rng.standard_normal((2 * count, 80)), 0)
    labels = np.eye(3)[shows.argmax(1)] if single else shows > 0.7
    labels = labels.astype(np.int8)
    if not single:
        labels[rng.random(labels.shape) < 0.1] = -1
    features = features.astype(np.float32).reshape(len(features), 5, 4, 4)
    return Arrays(features[:count], labels[:count], features[count:], labels[count:])


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    return make()


def classifier(cost: float) -> LinearSVC:
    return LinearSVC(
        C=cost, class_weight={1: 2, -1: 1}, tol=1e-4, max_iter=2000, dual=True, intercept_scaling=1, random_state=0
    )


@pytest.mark.parametrize("strict", [False, True])
def test_same_as_scikit_learn_one_by_one(strict: bool, arrays: Arrays, tmp_path: Path) -> None:
    settings = svm.Settings(costs=FEW.costs, difficult="excluded" if strict else "negative")
    ours = svm.fit_and_score(*arrays.given(), CLASSES, settings, cache=tmp_path)
    train, test = vectors(arrays.train), vectors(arrays.test)
    for number in range(3):
        used = arrays.labels[:, number] >= (0 if strict else -1)
        rows, labels = train[used], np.where(arrays.labels[used, number] == 1, 1, -1)
        scores = [
            cross_val_score(classifier(cost), rows, labels, cv=3, scoring="average_precision").mean()
            for cost in settings.costs
        ]
        cost = settings.costs[int(np.argmax(scores))]
        values = classifier(cost).fit(rows, labels).decision_function(test)
        expected = average_precision(arrays.test_labels[:, number], values)
        assert ours.cost[number] == cost
        assert ours.precision[number] == pytest.approx(expected, abs=1e-9)
        np.testing.assert_allclose(ours.validation[number], scores, atol=1e-9)
        np.testing.assert_allclose(ours.decision[:, number], values, atol=1e-9)
    assert ours.mean == pytest.approx(np.mean(ours.precision))
    assert ours.mean_11 != ours.mean
    assert ours.top_1 is None
    assert ours.not_converged == 0


def test_difficult_images_change_the_training(arrays: Arrays, tmp_path: Path) -> None:
    loose, strict = (
        svm.fit_and_score(*arrays.given(), CLASSES, settings, cache=tmp_path)
        for settings in (svm.Settings(costs=(1.0,)), svm.Settings(costs=(1.0,), difficult="excluded"))
    )
    assert np.abs(loose.decision - strict.decision).max() > 1e-3


def test_an_interrupted_run_goes_on(arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = svm.fit_and_score(*arrays.given(), CLASSES, FEW, cache=tmp_path / "whole")
    calls: list[float] = []
    validate = svm.validate

    def counted(*arguments: object) -> tuple[float, bool]:
        if len(calls) == 10:
            raise KeyboardInterrupt
        calls.append(arguments[2])  # type: ignore[arg-type]
        return validate(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(svm, "validate", counted)
    with pytest.raises(KeyboardInterrupt):
        svm.fit_and_score(*arrays.given(), CLASSES, FEW, cache=tmp_path / "cut")
    assert calls == sorted(calls, reverse=True)  # high costs, the long fits, come first
    assert len((tmp_path / "cut" / "scores.jsonl").read_text().splitlines()) == 10
    again: list[float] = []
    monkeypatch.setattr(svm, "validate", lambda *a: (again.append(a[2]), validate(*a))[1])
    went_on = svm.fit_and_score(*arrays.given(), CLASSES, FEW, cache=tmp_path / "cut")
    assert len(again) == 3 * 3 * 4 - 10
    assert went_on.precision == whole.precision
    assert went_on.cost == whole.cost
    finished = svm.fit_and_score(*arrays.given(), CLASSES, FEW, cache=tmp_path / "cut")
    assert len(again) == 3 * 3 * 4 - 10
    assert finished.precision == whole.precision


@pytest.mark.parametrize("damaged", ["decision-*.npz", "scores.jsonl"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more"])
def test_what_was_kept_and_is_damaged_is_computed_anew(
    arrays: Arrays, tmp_path: Path, damaged: str, content: bytes
) -> None:
    first = svm.fit_and_score(*arrays.given(), CLASSES, FEW, cache=tmp_path)
    next(tmp_path.glob(damaged)).write_bytes(content)
    again = svm.fit_and_score(*arrays.given(), CLASSES, FEW, cache=tmp_path)
    np.testing.assert_array_equal(again.decision, first.decision)
    assert again.cost == first.cost


def test_other_features_labels_and_settings_are_computed_anew(arrays: Arrays, tmp_path: Path) -> None:
    first = svm.fit_and_score(*arrays.given(), CLASSES, FEW, cache=tmp_path)
    lines = (tmp_path / "scores.jsonl").read_text().splitlines()
    other = svm.fit_and_score(arrays.train + 1, *arrays.given()[1:], CLASSES, FEW, cache=tmp_path)
    assert np.abs(other.decision - first.decision).max() > 1e-3
    tested = svm.fit_and_score(
        *arrays.given()[:2], arrays.test[::-1], arrays.test_labels[::-1], CLASSES, FEW, cache=tmp_path
    )
    assert (np.abs(tested.decision[::-1] - first.decision) < 1e-12).all()
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 2 * len(lines)


def test_two_processes_find_the_same_as_one(arrays: Arrays, tmp_path: Path) -> None:
    one, two = (
        svm.fit_and_score(*arrays.given(), CLASSES, FEW, cache=tmp_path / str(workers), workers=workers)
        for workers in (1, 2)
    )
    assert two.workers == 2
    assert np.abs(one.decision - two.decision).max() < 1e-12
    assert one.precision == two.precision


def test_fits_that_do_not_converge_are_counted(arrays: Arrays, tmp_path: Path) -> None:
    settings = svm.Settings(costs=(100.0,), max_iterations=1)
    assert svm.fit_and_score(*arrays.given(), CLASSES, settings, cache=tmp_path).not_converged == 3 * 3 + 3


def test_classes_with_few_images(arrays: Arrays, tmp_path: Path) -> None:
    labels = arrays.labels.copy()
    labels[labels[:, 0] == 1, 0] = 0
    labels[:1, 0] = 1  # one image: no cross-validation, the first cost
    labels[labels[:, 1] == 1, 1] = 0
    labels[:2, 1] = 1  # two images: two folds
    scores = svm.fit_and_score(arrays.train, labels, *arrays.given()[2:], CLASSES, FEW, cache=tmp_path)
    assert scores.cost[0] == 1.0
    assert np.isnan(scores.validation[0]).all()
    assert np.isfinite(scores.validation[1:]).all()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda a: (a.train[1:], *a.given()[1:]), "labels"),
        (lambda a: (*a.given()[:2], a.test[:, :1], a.test_labels), "one shape"),
        (lambda a: (a.train, np.minimum(a.labels, 0), *a.given()[2:]), "'cat'"),
        (lambda a: (*a.given()[:3], np.minimum(a.test_labels, 0)), "nothing to measure"),
        (lambda a: (a.train * np.float32(np.inf), *a.given()[1:]), "no numbers"),
    ],
)
def test_what_cannot_be_learnt_from_is_named(change: object, match: str, arrays: Arrays, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=match), np.errstate(invalid="ignore"):
        svm.fit_and_score(*change(arrays), CLASSES, FEW, cache=tmp_path)  # type: ignore[operator]


@dataclass(frozen=True)
class ArrayJob(Job):
    """A job whose features are there already, one set a layer."""

    arrays: dict[str, Arrays] = field(default_factory=dict)
    asked: list[object] = field(default_factory=list)

    def features(self, split_name, layer, preprocessing, pool):  # type: ignore[no-untyped-def]
        self.asked.append((preprocessing, pool))
        return {"train": self.arrays[layer].train, "test": self.arrays[layer].test}[split_name]


def job_of(layers: dict[str, Arrays], settings: object, out: Path, seed: int = 0) -> ArrayJob:
    first = next(iter(layers.values()))

    def split(labels: NDArray[np.int8]) -> Split:
        return Split(tuple(Path(f"{number}.jpg") for number in range(len(labels))), labels)

    data = LabelledImages("toy", "folder", CLASSES, split(first.labels), split(first.test_labels))
    return ArrayJob(
        source=None,  # type: ignore[arg-type]
        data=data,
        out=out,
        layers=tuple(layers),
        settings=settings,
        seed=seed,
        workers=1,
        device="cpu",
        progress=False,
        arrays=layers,
    )


def test_the_protocol_names_the_best_layer(arrays: Arrays, tmp_path: Path) -> None:
    noise = np.random.default_rng(3).random(arrays.train.shape).astype(np.float32)
    worse = Arrays(noise, arrays.labels, noise, arrays.test_labels)
    job = job_of({"feature1": worse, "feature2": arrays}, FEW, tmp_path)
    result = svm.run(job)
    by = {(one.metric, one.layer): one.value for one in result.measured}
    assert set(by) == {(metric, layer) for metric in ("mAP", "mAP (11-point)") for layer in ("feature1", "feature2")}
    assert result.best is not None
    assert (result.best.metric, result.best.layer) == ("mAP", "feature2")
    assert by["mAP", "feature2"] > by["mAP", "feature1"] + 0.1
    alone = svm.fit_and_score(*arrays.given(), CLASSES, FEW, cache=tmp_path / "alone")
    assert by["mAP", "feature2"] == pytest.approx(alone.mean, abs=1e-12)
    assert all(asked == (FEW.preprocessing(), "grid") for asked in job.asked)
    details = json.loads(json.dumps(result.details, allow_nan=False))["layers"]["feature2"]
    assert details["average precision"] == pytest.approx(dict(zip(CLASSES, alone.precision, strict=True)))
    assert set(details["cross-validation"]) == {"1", "100", "0.0625", "1.90735e-06"}


def test_one_class_an_image_has_an_accuracy_too(tmp_path: Path) -> None:
    arrays = make(single=True)
    result = svm.run(job_of({"feature1": arrays}, FEW, tmp_path))
    scores = svm.fit_and_score(*arrays.given(), CLASSES, FEW, cache=tmp_path / "alone")
    accuracy = next(one.value for one in result.measured if one.metric == "top-1")
    assert accuracy == (scores.decision.argmax(1) == arrays.test_labels.argmax(1)).mean()
    assert accuracy > 0.5
    plain = classifier(scores.cost[0]).fit(vectors(arrays.train), np.where(arrays.labels[:, 0] == 1, 1, -1))
    np.testing.assert_allclose(scores.decision[:, 0], plain.decision_function(vectors(arrays.test)), atol=1e-9)


def test_a_class_without_test_images_stays_out_of_the_mean(arrays: Arrays, tmp_path: Path) -> None:
    unseen = Arrays(*arrays.given()[:3], np.where([True, False, False], 0, arrays.test_labels).astype(np.int8))
    result = svm.run(job_of({"feature1": unseen}, FEW, tmp_path))
    assert result.details["layers"]["feature1"]["average precision"]["cat"] is None
    assert "cat" in result.details["notes"][0]
    whole = svm.fit_and_score(*arrays.given(), CLASSES, FEW, cache=tmp_path / "alone")
    assert result.measured[0].value == pytest.approx(np.mean(whole.precision[1:]))


def test_classes_with_too_few_images_for_the_folds_are_told(arrays: Arrays, tmp_path: Path) -> None:
    labels = arrays.labels.copy()
    shows = np.flatnonzero(labels[:, 0] == 1), np.flatnonzero(labels[:, 1] == 1)
    labels[shows[0][1:], 0] = 0
    labels[shows[1][2:], 1] = 0
    few = Arrays(arrays.train, labels, *arrays.given()[2:])
    notes = svm.run(job_of({"feature1": few}, FEW, tmp_path)).details["notes"]
    said = (
        f"Too few images to cross-validate with 3 folds: {CLASSES[0]} (none: the first cost), {CLASSES[1]} (2 folds)."
    )
    assert said in notes
    assert not svm.run(job_of({"feature1": arrays}, FEW, tmp_path / "enough")).details["notes"]
