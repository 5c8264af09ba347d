from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import cross_val_score

from context_pred.errors import InvalidInputError
from context_pred.evaluate import low_shot
from context_pred.evaluate.classifiers import vectors
from context_pred.evaluate.draws import draw, draw_all, read_all, sample_seeds
from context_pred.evaluate.metrics import average_precision, mean_average_precision

from .test_svm import CLASSES, Arrays, classifier, job_of, make

SMALL = low_shot.Settings(k=(1, 4), samples=3, negatives=3, costs=(1.0, 100.0, 0.5**4))


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    return make()


def test_the_published_numbers() -> None:
    settings = low_shot.Settings()
    assert settings.k == (1, 2, 4, 8, 16, 32, 64, 96)
    assert (settings.samples, settings.negatives, settings.cost) == (5, 19, "oracle")


def test_a_draw_has_k_images_and_its_negatives(arrays: Arrays) -> None:
    rows, shows = draw(arrays.labels, 1, 4, 3, seed=5)
    assert len(set(rows.tolist())) == len(rows) == 16
    assert (np.diff(rows) > 0).all()
    assert shows.sum() == 4
    assert (arrays.labels[rows, 1] == shows).all()  # 1 or 0, none difficult
    again = draw(arrays.labels, 1, 4, 3, seed=5)
    assert (again[0] == rows).all()
    others = [
        draw(arrays.labels, 1, 4, 3, seed=6),
        draw(arrays.labels, 1, 5, 3, seed=5),
        draw(arrays.labels, 2, 4, 3, seed=5),
    ]
    assert all(other[0].tolist() != rows.tolist() for other in others)
    everything = draw(arrays.labels, 1, 4, 1000, seed=5)[0]
    assert len(everything) == 4 + (arrays.labels[:, 1] == 0).sum()


def test_samples_have_seeds_of_their_own() -> None:
    assert len({*sample_seeds(0, 5), *sample_seeds(1, 5)}) == 10
    assert sample_seeds(0, 5)[:3] == sample_seeds(0, 3)


def one_by_one(arrays: Arrays, settings: low_shot.Settings, k: int) -> np.ndarray:
    """Mean average precision by sample and cost, with scikit-learn's rows as they are."""
    train, test = vectors(arrays.train), vectors(arrays.test)
    means = np.empty((settings.samples, len(settings.costs)))
    for sample, seed in enumerate(sample_seeds(0, settings.samples)):
        for place, cost in enumerate(settings.costs):
            values = []
            for number in range(3):
                rows, shows = draw(arrays.labels, number, k, settings.negatives, seed)
                fitted = classifier(cost).fit(train[rows], np.where(shows, 1, -1))
                values.append(average_precision(arrays.test_labels[:, number], fitted.decision_function(test)))
            means[sample, place] = np.mean(values)
    return means


def test_same_as_scikit_learn_one_by_one(arrays: Arrays, tmp_path: Path) -> None:
    scores = low_shot.fit_and_score(*arrays.given(), CLASSES, SMALL, cache=tmp_path)
    assert [few.k for few in scores.few] == [1, 4]
    for few in scores.few:
        means = one_by_one(arrays, SMALL, few.k)
        best = int(means.mean(0).argmax())
        assert few.cost == SMALL.costs[best]
        assert few.samples == pytest.approx(means[:, best].tolist(), abs=1e-9)
        assert few.mean == pytest.approx(means.mean(0).max(), abs=1e-9)
        assert list(few.by_cost.values()) == pytest.approx(means.mean(0).tolist(), abs=1e-9)
    assert scores.seeds == sample_seeds(0, 3)
    assert scores.notes == ()


def test_the_strict_variant_never_looks_at_the_test_set(arrays: Arrays, tmp_path: Path) -> None:
    settings = low_shot.Settings(k=(1, 4), samples=2, negatives=3, costs=SMALL.costs, cost="cv")
    scores = low_shot.fit_and_score(*arrays.given(), CLASSES, settings, cache=tmp_path)
    train, test = vectors(arrays.train), vectors(arrays.test)
    for few in scores.few:
        assert few.cost is None
        for sample, seed in enumerate(sample_seeds(0, 2)):
            values = []
            for number in range(3):
                rows, shows = draw(arrays.labels, number, few.k, 3, seed)
                labels, cost = np.where(shows, 1, -1), settings.costs[0]
                if few.k > 1:
                    found = [
                        cross_val_score(classifier(one), train[rows], labels, cv=3, scoring="average_precision").mean()
                        for one in settings.costs
                    ]
                    cost = settings.costs[int(np.argmax(found))]
                values.append(classifier(cost).fit(train[rows], labels).decision_function(test))
            expected = mean_average_precision(arrays.test_labels, np.stack(values, 1))
            assert few.samples[sample] == pytest.approx(expected, abs=1e-9)


def test_another_seed_draws_others(arrays: Arrays, tmp_path: Path) -> None:
    one, two = (low_shot.fit_and_score(*arrays.given(), CLASSES, SMALL, cache=tmp_path, seed=seed) for seed in (0, 1))
    assert one.few[0].samples != two.few[0].samples
    assert one.seeds != two.seeds


def test_an_interrupted_run_goes_on(arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = low_shot.fit_and_score(*arrays.given(), CLASSES, SMALL, cache=tmp_path / "whole")
    fit, made = low_shot.fit, [0]

    def counted(*arguments: object) -> object:
        made[0] += 1
        if made[0] == 20:
            raise KeyboardInterrupt
        return fit(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(low_shot, "fit", counted)
    with pytest.raises(KeyboardInterrupt):
        low_shot.fit_and_score(*arrays.given(), CLASSES, SMALL, cache=tmp_path / "cut")
    again = low_shot.fit_and_score(*arrays.given(), CLASSES, SMALL, cache=tmp_path / "cut")
    assert again == whole
    assert made[0] == 20 + 2 * 3 * 3 * 3 - 18  # six whole (k, sample, class) of three costs each were kept


def test_single_labels_have_an_accuracy(tmp_path: Path) -> None:
    arrays = make(single=True)
    scores = low_shot.fit_and_score(*arrays.given(), CLASSES, SMALL, cache=tmp_path)
    few = scores.few[1]
    train, test = vectors(arrays.train), vectors(arrays.test)
    assert few.cost is not None
    assert few.top_1 is not None
    for sample, seed in enumerate(scores.seeds):
        values = []
        for number in range(3):
            rows, shows = draw(arrays.labels, number, 4, 3, seed)
            values.append(classifier(few.cost).fit(train[rows], np.where(shows, 1, -1)).decision_function(test))
        expected = (np.argmax(values, 0) == arrays.test_labels.argmax(1)).mean()
        assert few.top_1[sample] == pytest.approx(expected)


def test_what_cannot_be_drawn_is_left_out_and_told(arrays: Arrays, tmp_path: Path) -> None:
    settings = low_shot.Settings(k=(2, 50), samples=2, negatives=40, costs=(1.0,))
    scores = low_shot.fit_and_score(*arrays.given(), CLASSES, settings, cache=tmp_path)
    assert [few.k for few in scores.few] == [2]
    assert "Left out: k = 50;" in scores.notes[0]
    assert "all there are" in scores.notes[1]
    with pytest.raises(InvalidInputError, match="training images; accepted"):
        low_shot.fit_and_score(*arrays.given(), CLASSES, low_shot.Settings(k=(50,)), cache=tmp_path)


def test_given_draws(arrays: Arrays, tmp_path: Path) -> None:
    drawn = draw_all(arrays.labels, (1, 4), 3, sample_seeds(0, 3))
    for (k, sample), classes in drawn.items():
        table = np.full(arrays.labels.shape, -1)
        for number, (rows, shows) in enumerate(classes):
            table[rows, number] = shows
        np.save(tmp_path / f"train_targets_sample{sample + 1}_k{k}.npy", table)
    settings = low_shot.Settings(**{**vars(SMALL), "drawn": str(tmp_path)})
    given = low_shot.fit_and_score(*arrays.given(), CLASSES, settings, cache=tmp_path / "given")
    seeded = low_shot.fit_and_score(*arrays.given(), CLASSES, SMALL, cache=tmp_path / "seeded")
    assert given.few == seeded.few
    assert given.seeds == ()
    with pytest.raises(InvalidInputError, match=r"0 files \*sample4_k1"):
        read_all(tmp_path, arrays.labels.shape, (1,), 4)
    with pytest.raises(InvalidInputError, match="accepted is"):
        read_all(tmp_path, (5, 3), (1,), 3)
    np.save(tmp_path / "train_targets_sample1_k1.npy", np.full(arrays.labels.shape, -1))
    with pytest.raises(InvalidInputError, match="lacks"):
        read_all(tmp_path, arrays.labels.shape, (1,), 3)
    (tmp_path / "train_targets_sample1_k1.npy").write_bytes(b"words")
    with pytest.raises(InvalidInputError, match=r"sample1_k1\.npy cannot be read as an array"):
        read_all(tmp_path, arrays.labels.shape, (1,), 3)


@pytest.mark.parametrize("wrong", [{"k": ()}, {"k": (0,)}, {"k": (2, 2)}, {"samples": 0}, {"negatives": 0}])
def test_options_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        low_shot.Settings(**wrong)  # type: ignore[arg-type]


def test_the_protocol(arrays: Arrays, tmp_path: Path) -> None:
    result = low_shot.run(job_of({"feature2": arrays}, SMALL, tmp_path))
    scores = low_shot.fit_and_score(*arrays.given(), CLASSES, SMALL, cache=tmp_path / "alone")
    assert [one.at["k"] for one in result.measured] == [1, 4]
    for one, few in zip(result.measured, scores.few, strict=True):
        assert (one.metric, one.layer, one.count) == ("mAP", "feature2", 3)
        assert one.value == pytest.approx(few.mean)
        assert (one.low, one.high) == (min(few.samples), max(few.samples))
        assert one.spread == pytest.approx(np.std(few.samples, ddof=1))
    assert result.best == result.measured[1]
    details = json.loads(json.dumps(result.details, allow_nan=False))
    assert details["sample seeds"] == list(sample_seeds(0, 3))
    assert details["notes"][-1].endswith(", ".join(map(str, sample_seeds(0, 3))) + ".")
    assert details["layers"]["feature2"]["cost"]["4"] == scores.few[1].cost
