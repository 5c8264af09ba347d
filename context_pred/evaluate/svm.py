"""Linear SVMs on frozen features, as on VOC2007 classification (protocol ``svm``).

Goyal et al., "Scaling and Benchmarking Self-Supervised Visual Representation Learning" (ICCV 2019), as mmselfsup 0.x
runs it: for each class the cost is chosen by cross-validation, and the classifier is trained again on every image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from context_pred.errors import storing

from .classifiers import (
    Fitted,
    Float,
    SvmOptions,
    check_arrays,
    first_best,
    fit,
    folds_of,
    is_single,
    node_bytes,
    untested,
    validate,
    vectors,
)
from .job import Job, Measurement, Result
from .kept import Kept, arrays, digest, whole
from .metrics import average_precision, top_k
from .parallel import PROCESS, run_jobs, workers_that_fit
from .triangular import Triangular

NAME = "svm"
LAYERS = "all"
DRAWS = False


@dataclass(frozen=True, kw_only=True)
class Settings(SvmOptions):
    """The options of the protocol, beside those of every fit.

    Args:
        difficult: What VOC's difficult images are in training: "negative", as published, or "excluded" (strict). In
            the test they are left out always.
    """

    difficult: Literal["negative", "excluded"] = "negative"


@dataclass(frozen=True, eq=False)
class Scores:
    """What the SVMs of one layer reach.

    Attributes:
        decision: float64 (n, classes): the decision values of the test images.
        precision: Average precision by class, area form; NaN where no test image shows the class.
        precision_11: The same, 11-point form.
        cost: The cost chosen, by class.
        validation: float64 (classes, costs): the cross-validation's mean; NaN where a class has too few images for it.
        top_1: Where every image has one class: the share with the highest decision value at its own.
        not_converged: Fits that reached ``max_iterations``; they count as they are.
        workers: Processes used.
    """

    decision: Float
    precision: tuple[float, ...]
    precision_11: tuple[float, ...]
    cost: tuple[float, ...]
    validation: Float
    top_1: float | None
    not_converged: int
    workers: int

    @property
    def mean(self) -> float:
        """Mean average precision, area form."""
        return float(np.nanmean(self.precision))

    @property
    def mean_11(self) -> float:
        """Mean average precision, 11-point form."""
        return float(np.nanmean(self.precision_11))


@dataclass(frozen=True, eq=False)
class _Problem:
    """A layer's cross-validation, and what is known so far: (class, cost, fold) → [average precision, converged]."""

    labels: NDArray[np.int8]
    settings: Settings
    seed: int
    kept: Kept
    positives: list[NDArray[np.bool_]] = field(default_factory=list)

    def used(self, number: int) -> NDArray[np.int64]:
        """Rows of the images that a class is trained on."""
        excluded = self.settings.difficult == "excluded"
        return np.flatnonzero((self.labels[:, number] >= 0) | (not excluded))

    def positive(self, number: int) -> NDArray[np.bool_]:
        """Of those images, which show the class: everything that is not 1 is a negative."""
        shows: NDArray[np.bool_] = self.labels[self.used(number), number] == 1
        return shows

    def folds(self, number: int) -> int:
        return folds_of(self.positive(number), self.settings.folds)

    def fits(self) -> list[tuple[int, float, int]]:
        """Every (class, cost, fold), the longest first: a high cost takes the most iterations."""
        classes = [number for number in range(self.labels.shape[1]) if self.folds(number) > 1]
        costs = sorted(self.settings.costs, reverse=True)
        return [(number, cost, fold) for cost in costs for number in classes for fold in range(self.folds(number))]

    def validation(self) -> Float:
        """Mean over the folds, (classes, costs)."""
        found = np.full((self.labels.shape[1], len(self.settings.costs)), np.nan)
        for number in range(len(found)):
            folds = self.folds(number)
            for place, cost in enumerate(self.settings.costs if folds > 1 else ()):
                found[number, place] = np.mean([self.kept[number, cost, fold][0] for fold in range(folds)])
        return found


def _validate(rows: Float, what: tuple[int, float, int], problem: tuple[Any, ...]) -> tuple[Any, tuple[float, bool]]:
    used, positive, folds, settings, seed = problem
    _, cost, fold = what
    chosen = rows if len(used) == len(rows) else rows[used]
    return what, validate(chosen, positive, cost, fold, folds, settings, seed)


def _refit(rows: Float, number: int, cost: float, problem: tuple[Any, ...]) -> tuple[int, Fitted]:
    used, positive, _, settings, seed = problem
    chosen = rows if len(used) == len(rows) else rows[used]
    return number, fit(chosen, positive, cost, settings, seed)


def fit_and_score(
    train: NDArray[Any],
    train_labels: NDArray[np.int8],
    test: NDArray[Any],
    test_labels: NDArray[np.int8],
    classes: Sequence[str],
    settings: Settings | None = None,
    *,
    cache: Path,
    seed: int = 0,
    workers: int = 1,
    progress: bool = False,
    title: str = "svm",
) -> Scores:
    """Train and test the SVMs of every class.

    Args:
        train: (n, …) float32 or float64; flattened and normalised here.
        train_labels: int8 (n, classes): 1 yes, 0 no, −1 difficult.
        test: (m, …).
        test_labels: int8 (m, classes).
        classes: Their names, for errors.
        settings: The protocol's; None: as published.
        cache: A folder that keeps every score as soon as it is known, so that the same call goes on after an
            interruption and returns at once after the end. Other features and settings may share it.
        seed: Of the order in which liblinear takes the images.
        workers: Processes; fewer where the memory does not hold them.
        progress: Show a bar on stderr.
        title: Of the bar and of what is said about memory.

    Raises:
        InvalidInputError: shapes that do not fit, a class without images to learn from, features that are no numbers.
        StorageError: the cache cannot be written to.
    """
    settings = settings or Settings()
    check_arrays(train, train_labels, test, test_labels, classes)
    import sklearn

    strict = settings.difficult == "excluded"
    of = digest(train, train_labels, settings.solver, settings.folds, strict, seed, sklearn.__version__)
    problem = _Problem(train_labels, settings, seed, Kept(cache / "scores.jsonl", of))
    finished = cache / f"decision-{digest(of, test, settings.costs)}.npz"
    if whole(finished) and all(what in problem.kept for what in problem.fits()):
        workers = 0
    else:
        workers = _run(problem, train, test, finished, workers, title, progress)
    return _scores(finished, problem, test_labels, workers)


def _run(
    problem: _Problem, train: NDArray[Any], test: NDArray[Any], finished: Path, workers: int, title: str, progress: bool
) -> int:
    """Cross-validate what is not known yet, train again, and write the decision values; return the workers used."""
    kept, settings, classes = problem.kept, problem.settings, problem.labels.shape[1]
    n, d = len(train), train[0].size
    r = min(n, d)
    shared = 16 * n * d + 16 * n * r
    workers = workers_that_fit(workers, PROCESS + node_bytes(n, r), shared, title, progress=progress)
    triangular = Triangular.of(vectors(train))
    rows = triangular.rows
    parts = [
        (problem.used(number), problem.positive(number), problem.folds(number), settings, problem.seed)
        for number in range(classes)
    ]
    fits = problem.fits()
    jobs = [(rows, what, parts[what[0]]) for what in fits if what not in kept]
    for what, found in run_jobs(
        _validate, jobs, workers, title=f"{title}: costs", done=len(fits) - len(jobs), progress=progress
    ):
        kept.keep(what, found)
    costs = _chosen(problem)
    weights, intercepts, converged = np.empty((classes, rows.shape[1])), np.empty(classes), np.empty(classes, bool)
    order = sorted(range(classes), key=lambda number: -costs[number])
    refits = [(rows, number, costs[number], parts[number]) for number in order]
    for number, fitted in run_jobs(_refit, refits, workers, title=f"{title}: classes", done=0, progress=progress):
        weights[number], intercepts[number], converged[number] = fitted.weights, fitted.intercept, fitted.converged
    decision = _decide(test, triangular.back(weights), intercepts)
    draft = finished.with_suffix(".tmp.npz")
    with storing(finished):
        finished.parent.mkdir(parents=True, exist_ok=True)
        np.savez(draft, decision=decision, converged=converged)
        draft.replace(finished)
    return workers


def _chosen(problem: _Problem) -> list[float]:
    """The cost of each class: the first of the best; where cross-validation is impossible the first of all."""
    costs = problem.settings.costs
    return [costs[0 if np.isnan(scores[0]) else first_best(scores)] for scores in problem.validation()]


def _decide(test: NDArray[Any], weights: Float, intercepts: Float, block: int = 1024) -> Float:
    """Decision values (m, classes), block by block, so that the test features are never whole in memory."""
    parts = [vectors(test[start : start + block]) @ weights.T for start in range(0, len(test), block)]
    return np.concatenate(parts) + intercepts


def _scores(finished: Path, problem: _Problem, test_labels: NDArray[np.int8], workers: int) -> Scores:
    stored = arrays(finished)
    decision, converged = stored["decision"], stored["converged"]
    slow = sum(not problem.kept[what][1] for what in problem.fits()) + int((~converged).sum())
    columns = list(zip(test_labels.T, decision.T, strict=True))
    single = is_single(problem.labels, test_labels)
    return Scores(
        decision,
        tuple(average_precision(*one) for one in columns),
        tuple(average_precision(*one, "11-point") for one in columns),
        tuple(_chosen(problem)),
        problem.validation(),
        top_k(test_labels.argmax(1), decision) if single else None,
        int(slow),
        workers,
    )


def run(job: Job) -> Result:
    """Measure each layer, one after the other; the best by mean average precision is named."""
    settings: Settings = job.settings
    data, measured, details = job.data, [], {}
    for layer in job.layers:
        features = [job.features(name, layer, settings.preprocessing(), settings.pool) for name in ("train", "test")]
        scores = job.ranks.lead(
            partial(
                fit_and_score,
                features[0],
                data.train.labels,
                features[1],
                data.test.labels,
                data.classes,
                settings,
                cache=job.out / NAME / layer,
                seed=job.seed,
                workers=job.workers,
                progress=job.progress,
                title=f"{NAME} {layer}",
            )
        )
        measured += _measured(layer, scores)
        details[layer] = _details(scores, data.classes, settings)
    best = max((one for one in measured if one.metric == "mAP"), key=lambda one: one.value)
    gone = untested(data)
    notes = [f"No test image shows {', '.join(gone)}: left out of the mean."] if gone else []
    notes += _fewer_folds(data.train.labels, data.classes, settings)
    return Result(NAME, job.variant, tuple(measured), best=best, details={"layers": details, "notes": notes})


def _fewer_folds(labels: NDArray[np.int8], classes: Sequence[str], settings: Settings) -> list[str]:
    """Say which classes have too few images for all the folds."""
    few = []
    for column, name in zip(labels.T, classes, strict=True):
        used = column[column >= 0] if settings.difficult == "excluded" else column
        folds = folds_of(used == 1, settings.folds)
        if folds < settings.folds:
            few.append(f"{name} ({f'{folds} folds' if folds > 1 else 'none: the first cost'})")
    return [f"Too few images to cross-validate with {settings.folds} folds: {', '.join(few)}."] if few else []


def _measured(layer: str, scores: Scores) -> list[Measurement]:
    found = [Measurement("mAP", scores.mean, layer), Measurement("mAP (11-point)", scores.mean_11, layer)]
    return found if scores.top_1 is None else [*found, Measurement("top-1", scores.top_1, layer)]


def _details(scores: Scores, classes: Sequence[str], settings: Settings) -> dict[str, Any]:
    def by_class(values: Sequence[float]) -> dict[str, float | None]:
        return {name: value if value == value else None for name, value in zip(classes, values, strict=True)}

    return {
        "average precision": by_class(scores.precision),
        "average precision (11-point)": by_class(scores.precision_11),
        "cost": by_class(scores.cost),
        "cross-validation": {
            f"{cost:.6g}": by_class([float(value) for value in column])
            for cost, column in zip(settings.costs, scores.validation.T, strict=True)
        },
        "fits that reached max_iterations": scores.not_converged,
    }
