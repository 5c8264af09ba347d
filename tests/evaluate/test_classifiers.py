from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC

from context_pred.errors import InvalidInputError, StorageError
from context_pred.evaluate import parallel
from context_pred.evaluate.classifiers import COSTS, SvmOptions, first_best, fit, folds_of, validate, vectors
from context_pred.evaluate.kept import Kept, digest
from context_pred.evaluate.triangular import Triangular


def features(count: int = 60, width: int = 90, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, width)).astype(np.float32)


def test_the_nineteen_costs() -> None:
    assert len(COSTS) == 19
    assert COSTS[:4] == (1.0, 10.0, 100.0, 0.0625)
    assert COSTS[-1] == 0.5**19
    options = SvmOptions()
    assert (options.positive_weight, options.tolerance, options.max_iterations, options.folds) == (2.0, 1e-4, 2000, 3)
    assert options.costs == COSTS


def test_of_equal_scores_the_first_cost_wins() -> None:
    assert first_best([0.1, 0.7, 0.7, 0.2]) == 1


def test_the_image_is_squashed() -> None:
    made = SvmOptions().preprocessing()
    assert (made.size, made.squash, made.resampling) == (224, True, "pillow")
    assert round(made.size * 8 / 7) == 256


def test_rows_are_divided_by_norm_plus_a_little_in_double_precision() -> None:
    rows = vectors(np.array([[[3.0], [4.0]], [[0.0], [0.0]]], dtype=np.float32))
    assert rows.dtype == np.float64
    np.testing.assert_allclose(rows, [[3 / 5.00001, 4 / 5.00001], [0, 0]], rtol=1e-15)
    with pytest.raises(InvalidInputError, match="image 1 "):
        vectors(np.array([[1.0], [np.inf]]))


@pytest.mark.parametrize(("count", "width"), [(60, 90), (90, 60), (1, 5)])
def test_the_triangle_has_the_same_inner_products(count: int, width: int) -> None:
    rows = vectors(features(count, width))
    triangle = Triangular.of(rows.copy())
    assert triangle.rows.shape == (count, min(count, width))
    assert np.all(np.triu(triangle.rows, 1) == 0)
    np.testing.assert_allclose(triangle.rows @ triangle.rows.T, rows @ rows.T, atol=1e-14)
    weights = np.random.default_rng(1).standard_normal((3, triangle.rows.shape[1]))
    np.testing.assert_allclose(rows @ triangle.back(weights).T, triangle.rows @ weights.T, atol=1e-13)


def test_equal_and_empty_rows_do_no_harm_to_the_triangle() -> None:
    rows = vectors(np.repeat(features(20, 40), 3, axis=0))
    rows[5] = 0
    triangle = Triangular.of(rows.copy())
    np.testing.assert_allclose(triangle.rows @ triangle.rows.T, rows @ rows.T, atol=1e-14)
    assert np.isfinite(triangle.back(np.ones((1, 40)))).all()


def test_sparse_rows_stay_as_they_are() -> None:
    rows = vectors(np.where(features(50, 60) > 0.9, features(50, 60), 0))
    triangle = Triangular.of(rows)
    assert triangle.rows is rows
    weights = np.ones((2, 60))
    assert triangle.back(weights) is weights


@pytest.mark.parametrize("cost", [100.0, 1.0, 0.5**12])
def test_a_fit_is_scikit_learns(cost: float) -> None:
    rows = vectors(features())
    positive = np.random.default_rng(2).random(60) < 0.3
    theirs = LinearSVC(C=cost, class_weight={1: 2, -1: 1}, max_iter=2000, tol=1e-4, dual=True, random_state=3)
    theirs.fit(rows, np.where(positive, 1, -1))
    triangle = Triangular.of(rows.copy())
    ours = fit(triangle.rows, positive, cost, SvmOptions(), seed=3)
    np.testing.assert_allclose(triangle.back(ours.weights[None])[0], theirs.coef_[0], atol=1e-10)
    assert ours.intercept == pytest.approx(theirs.intercept_[0], abs=1e-10)
    assert ours.converged
    np.testing.assert_allclose(ours(triangle.rows), theirs.decision_function(rows), atol=1e-10)


def test_validation_is_scikit_learns() -> None:
    rows = vectors(features())
    positive = np.random.default_rng(2).random(60) < 0.3
    theirs = LinearSVC(C=1, class_weight={1: 2, -1: 1}, max_iter=2000, dual=True, random_state=0)
    expected = cross_val_score(theirs, rows, np.where(positive, 1, -1), cv=3, scoring="average_precision")
    ours = [validate(rows, positive, 1.0, fold, 3, SvmOptions(), 0) for fold in range(3)]
    assert [score for score, _ in ours] == pytest.approx(expected.tolist(), abs=1e-12)


def test_a_fit_that_does_not_converge_is_told_not_shouted() -> None:
    rows, positive = vectors(features()), np.arange(60) % 2 == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = fit(rows, positive, 100.0, SvmOptions(max_iterations=1), seed=0)
    assert not fitted.converged


def test_folds_hold_an_image_of_either_kind() -> None:
    shows = np.zeros(9, dtype=bool)
    shows[:2] = True
    assert folds_of(shows, 3) == 2
    assert folds_of(shows, 2) == 2
    assert folds_of(~shows, 3) == 2
    assert folds_of(np.arange(9) == 0, 3) == 1
    assert folds_of(np.arange(9) < 4, 3) == 3


@pytest.mark.parametrize(
    "wrong", [{"costs": ()}, {"costs": (1.0, 1.0)}, {"costs": (0.0,)}, {"folds": 1}, {"positive_weight": 0.0},
              {"tolerance": 0.0}, {"max_iterations": 0}, {"max_iterations": 2**31}, {"size": 0}]
)  # fmt: skip
def test_options_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        SvmOptions(**wrong)  # type: ignore[arg-type]


def test_digests_tell_arrays_apart() -> None:
    one = np.arange(6, dtype=np.float32)
    others = [one + 1, one.reshape(2, 3), one.view(np.int32), np.append(one, 0)]
    assert digest(one, 1) == digest(one.copy(), 1)
    assert len({digest(one, 1), digest(one, 2), *(digest(other, 1) for other in others)}) == 6
    grid = np.arange(12.0).reshape(3, 4)
    assert digest(grid[:, ::2]) == digest(grid[:, ::2].copy())


def test_scores_are_kept_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "a" / "scores.jsonl"
    kept = Kept(path, "one")
    kept.keep((0, 0.5**19, 2), (0.1, True))
    kept.keep((1, 1.0, 0), {"x": None})
    Kept(path, "other").keep((0, 0.5**19, 2), 7)
    with open(path, "ab") as file:
        file.write(b'{"of": "one", "what": [9], "is"')  # killed here
    again = Kept(path, "one")
    assert again[0, 0.5**19, 2] == [0.1, True]
    assert again[1, 1.0, 0] == {"x": None}
    assert (9,) not in again
    again.keep((9,), 3)
    assert Kept(path, "one")[9,] == 3
    lines = path.read_text().splitlines()
    assert len(lines) == 5
    assert json.loads(lines[-1])["is"] == 3


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="scores"):
        Kept(tmp_path / "file" / "scores.jsonl", "one").keep((1,), 1)


def square(number: int) -> int:
    return number * number


def test_jobs_run_in_this_process_with_one_worker() -> None:
    jobs = [(number,) for number in range(5)]
    assert sorted(parallel.run_jobs(square, jobs, 1, title="", done=0, progress=False)) == [0, 1, 4, 9, 16]
    assert list(parallel.run_jobs(square, [], 2, title="", done=3, progress=False)) == []


@pytest.mark.parametrize(("free", "expected"), [(10_000, 4), (3_000, 2), (10, 1), (None, 4)])
def test_fewer_workers_where_memory_is_short(
    free: int | None, expected: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(parallel, "free_memory", lambda: free)
    with caplog.at_level(logging.INFO, "context_pred"):
        assert parallel.workers_that_fit(4, 1000, 500, "svm feature4", progress=False) == expected
    assert "svm feature4" in caplog.text
    assert ("fewer than the 4" in caplog.text) == (expected == 2)
    assert ("more than there is" in caplog.text) == (free == 10)


def test_free_memory_heeds_the_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {
        "meminfo": "MemTotal: 9 kB\nMemAvailable:    4000 kB\n",
        "max": "3000\n",
        "now": "1000\n",
    }.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(parallel, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(parallel, "_CGROUPS", ((tmp_path / "max", tmp_path / "now"),))
    assert parallel.free_memory() == 2000
    (tmp_path / "max").write_text("max\n")
    assert parallel.free_memory() == 4000 << 10
    (tmp_path / "meminfo").unlink()
    assert parallel.free_memory() is None


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills by signal")
def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = (
        "import subprocess\n"
        "from context_pred.evaluate.parallel import run_jobs\n"
        f"jobs = [(['sh', '-c', f'echo $PPID > {tmp_path}/{{n}}; sleep 5'],) for n in range(2)]\n"
        "list(run_jobs(subprocess.call, jobs, 2, title='', done=0, progress=False))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script])
    try:
        _wait_for(lambda: all((tmp_path / name).is_file() and (tmp_path / name).read_text() for name in "01"))
    finally:
        parent.kill()
        parent.wait()
    workers = [int((tmp_path / name).read_text()) for name in "01"]
    assert parent.pid not in workers
    _wait_for(lambda: not any(_alive(worker) for worker in workers))


def _wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
