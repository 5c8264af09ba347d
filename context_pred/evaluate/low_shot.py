"""Linear SVMs from few images a class, as on VOC2007 (protocol ``low-shot-svm``).

Goyal et al., "Scaling and Benchmarking Self-Supervised Visual Representation Learning" (ICCV 2019), as mmselfsup 0.x
runs it: for each class k images that show it and 19 k that do not, drawn five times; the cost is the one that does best
on the test images. Upstream draws unseeded; here the draws have seeds, which the result tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from context_pred.errors import InvalidInputError

from .classifiers import (
    Float,
    SvmOptions,
    check_arrays,
    first_best,
    fit,
    folds_of,
    is_single,
    node_bytes,
    precisions,
    untested,
    validate,
    vectors,
)
from .draws import Draw, draw_all, read_all, sample_seeds
from .job import Job, Measurement, Result
from .kept import Kept, digest
from .metrics import top_k
from .parallel import PROCESS, run_jobs, workers_that_fit
from .triangular import Triangular

NAME = "low-shot-svm"
LAYERS = "all"
DRAWS = True


@dataclass(frozen=True, kw_only=True)
class Settings(SvmOptions):
    """The options of the protocol, beside those of every fit.

    Args:
        k: Images of each class. A number that some class has fewer images than is left out, and the result says so.
        samples: Independent draws of each k.
        negatives: Images without the class for each that shows it; all there are where there are fewer.
        cost: "oracle": of the costs the one whose mean over samples is the highest on the test images, as published;
            "cv": for each draw and class by cross-validation on the drawn images (strict). Where a draw has a single
            image of the class, the first cost.
        drawn: A folder with Facebook's fixed draws, as ``*sample1_k8.npy`` of (n, classes): 1 yes, 0 no, −1 not drawn;
            empty: drawn here.
    """

    k: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 96)
    samples: int = 5
    negatives: int = 19
    cost: Literal["oracle", "cv"] = "oracle"
    drawn: str = ""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if not self.k or min(self.k) < 1 or len(set(self.k)) < len(self.k):
            raise InvalidInputError(f"k = {list(self.k)}: accepted are different whole numbers from 1 up.")
        if self.samples < 1 or self.negatives < 1:
            raise InvalidInputError(f"samples = {self.samples}, negatives = {self.negatives}: accepted is 1 or more.")


@dataclass(frozen=True)
class Few:
    """What k images a class reach.

    Attributes:
        k: Images of each class.
        samples: Mean average precision of each sample, at the cost chosen.
        cost: The cost chosen; None where each draw and class has its own.
        by_cost: {cost: mean over the samples}; empty where each draw and class has its own cost.
        top_1: Where every image has one class: the accuracy of each sample, at the same costs.
    """

    k: int
    samples: tuple[float, ...]
    cost: float | None
    by_cost: dict[float, float]
    top_1: tuple[float, ...] | None

    @property
    def mean(self) -> float:
        """Mean over the samples."""
        return float(np.mean(self.samples))


@dataclass(frozen=True)
class Scores:
    """What the SVMs of one layer reach, and what was left out.

    Attributes:
        few: By k.
        seeds: Of the samples; empty where the draws were given.
        not_converged: Fits that reached ``max_iterations``; they count as they are.
        notes: Sentences on what was left out or is fewer than asked for.
    """

    few: tuple[Few, ...]
    seeds: tuple[int, ...]
    not_converged: int
    notes: tuple[str, ...]


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
    title: str = NAME,
) -> Scores:
    """Draw, train and test the SVMs of every class, k, sample and cost.

    Args:
        train: (n, …) float32 or float64; flattened and normalised here.
        train_labels: int8 (n, classes): 1 yes, 0 no, −1 difficult.
        test: (m, …).
        test_labels: int8 (m, classes).
        classes: Their names, for errors and notes.
        settings: The protocol's; None: as published.
        cache: A folder that keeps the scores of every (k, sample, class) as soon as they are known.
        seed: Of the draws, and of the order in which liblinear takes the images.
        workers: Processes; fewer where the memory does not hold them.
        progress: Show a bar on stderr.
        title: Of the bar and of what is said about memory.

    Raises:
        InvalidInputError: shapes that do not fit, a class without images to learn from, features that are no numbers,
            draws that do not fit.
        StorageError: the cache cannot be written to.
    """
    settings = settings or Settings()
    check_arrays(train, train_labels, test, test_labels, classes)
    import sklearn

    ks, notes = _possible(train_labels, classes, settings)
    seeds = () if settings.drawn else sample_seeds(seed, settings.samples)
    draws = (
        read_all(Path(settings.drawn), train_labels.shape, ks, settings.samples)
        if settings.drawn
        else draw_all(train_labels, ks, settings.negatives, seeds)
    )
    drawn = [part for key in sorted(draws) for one in draws[key] for part in one]
    of = digest(train, train_labels, test, test_labels, *drawn, settings.solver, settings.folds, settings.costs,
                settings.cost, seed, sklearn.__version__)  # fmt: skip
    kept = Kept(cache / "scores.jsonl", of)
    problem = _Problem(train, test, test_labels, settings, seed, draws, kept, is_single(train_labels, test_labels))
    if problem.missing() or problem.missing_accuracies():
        _run(problem, workers, title, progress)
    few = tuple(_summary(problem, k) for k in ks)
    slow = sum(kept[place]["not converged"] for place in problem.places())
    return Scores(few, seeds, slow, tuple(notes))


def _possible(labels: NDArray[np.int8], classes: Sequence[str], settings: Settings) -> tuple[list[int], list[str]]:
    """The ks that can be drawn, and notes on the others and on missing negatives."""
    if settings.drawn:
        return list(settings.k), []
    counts = (labels == 1).sum(0)
    rarest = int(counts.argmin())
    ks = [k for k in settings.k if k <= counts[rarest]]
    few = f"{classes[rarest]!r} has {counts[rarest]} training images"
    if not ks:
        raise InvalidInputError(f"k = {list(settings.k)}: the class {few}; accepted are numbers up to that.")
    gone = [str(k) for k in settings.k if k not in ks]
    notes = [f"Left out: k = {', '.join(gone)}; {few}."] if gone else []
    negatives = int((labels == 0).sum(0).min())
    short = [str(k) for k in ks if settings.negatives * k > negatives]
    if short:
        notes.append(
            f"At k = {', '.join(short)} not every class has {settings.negatives} images without it for each that shows "
            "it: all there are were taken."
        )
    return ks, notes


@dataclass(frozen=True, eq=False)
class _Problem:
    """A layer's fits, and what is known so far: (k, sample, class) → scores, (k, sample) → top-1 accuracy."""

    train: NDArray[Any]
    test: NDArray[Any]
    test_labels: NDArray[np.int8]
    settings: Settings
    seed: int
    draws: dict[tuple[int, int], list[Draw]]
    kept: Kept
    single: bool

    @property
    def classes(self) -> int:
        return int(self.test_labels.shape[1])

    def places(self) -> list[tuple[int, int, int]]:
        """Every (k, sample, class), the longest first."""
        return [(k, sample, number) for k, sample in self._ordered() for number in range(self.classes)]

    def missing(self) -> list[tuple[int, int, int]]:
        return [place for place in self.places() if place not in self.kept]

    def missing_accuracies(self) -> list[tuple[int, int]]:
        return [place for place in self._ordered() if place not in self.kept] if self.single else []

    def _ordered(self) -> list[tuple[int, int]]:
        return sorted(self.draws, reverse=True)

    def means(self, k: int) -> Float:
        """(samples, costs): mean average precision over the classes that test images show."""
        samples, classes = range(self.settings.samples), range(self.classes)
        scores = [[self.kept[k, sample, number]["precision"] for number in classes] for sample in samples]
        found: Float = np.nanmean(np.array(scores, dtype=np.float64), axis=1)
        return found

    def costs(self, k: int, sample: int) -> list[float]:
        """The cost of each class."""
        if self.settings.cost == "cv":
            return [self.kept[k, sample, number]["costs"][0] for number in range(self.classes)]
        return [self.settings.costs[first_best(self.means(k).mean(0).tolist())]] * self.classes


def _run(problem: _Problem, workers: int, title: str, progress: bool) -> None:
    """Fit what is not known yet; then, for sets with one class an image, find the accuracies at the costs chosen."""
    train, settings, seed, kept = problem.train, problem.settings, problem.seed, problem.kept
    most, d = max(len(rows) for one in problem.draws.values() for rows, _ in one), train[0].size
    each = PROCESS + node_bytes(most, min(most, d)) + 20 * most * d
    workers = workers_that_fit(workers, each, 16 * len(problem.test) * d, title, progress=progress)
    tested = vectors(problem.test)
    fits: list[tuple[Any, ...]] = [
        (
            train,
            tested,
            problem.test_labels[:, number],
            (k, sample, number),
            problem.draws[k, sample][number],
            settings,
            seed,
        )
        for k, sample, number in problem.missing()
    ]
    done = len(problem.places()) - len(fits)
    for place, found in run_jobs(_few, fits, workers, title=title, done=done, progress=progress):
        kept.keep(place, found)
    labels = problem.test_labels.argmax(1)
    fits = [
        (train, tested, labels, place, problem.draws[place], problem.costs(*place), settings, seed)
        for place in problem.missing_accuracies()
    ]
    if fits:
        done = len(problem.draws) - len(fits)
        for place, found in run_jobs(_accuracy, fits, workers, title=f"{title}: top-1", done=done, progress=progress):
            kept.keep(place, found)


def _few(
    train: NDArray[Any],
    tested: Float,
    labels: NDArray[np.int8],
    place: tuple[int, int, int],
    drawn: Draw,
    settings: Settings,
    seed: int,
) -> tuple[tuple[int, int, int], dict[str, Any]]:
    """Fit one draw of one class: average precision by cost, or at the cost that cross-validation chose."""
    rows, shows = drawn
    triangular = Triangular.of(vectors(train[rows]))
    costs, slow = settings.costs, 0
    if settings.cost == "cv":
        folds = folds_of(shows, settings.folds)
        found = [
            [validate(triangular.rows, shows, cost, fold, folds, settings, seed) for fold in range(folds)]
            for cost in (costs if folds > 1 else ())
        ]
        slow = sum(not converged for one in found for _, converged in one)
        costs = (costs[first_best([float(np.mean([score for score, _ in one])) for one in found]) if found else 0],)
    fits = [fit(triangular.rows, shows, cost, settings, seed) for cost in costs]
    weights = triangular.back(np.stack([one.weights for one in fits]))
    values = tested @ weights.T + [one.intercept for one in fits]
    slow += sum(not one.converged for one in fits)
    return place, {"costs": costs, "precision": precisions(labels, values), "not converged": slow}


def _accuracy(
    train: NDArray[Any],
    tested: Float,
    labels: NDArray[np.int64],
    place: tuple[int, int],
    drawn: list[Draw],
    costs: list[float],
    settings: Settings,
    seed: int,
) -> tuple[tuple[int, int], float]:
    """Top-1 accuracy of one sample: the class with the highest decision value."""
    values = np.empty((len(tested), len(drawn)))
    for number, ((rows, shows), cost) in enumerate(zip(drawn, costs, strict=True)):
        triangular = Triangular.of(vectors(train[rows]))
        fitted = fit(triangular.rows, shows, cost, settings, seed)
        values[:, number] = tested @ triangular.back(fitted.weights[None])[0] + fitted.intercept
    return place, top_k(labels, values)


def _summary(problem: _Problem, k: int) -> Few:
    means, costs, samples = problem.means(k), problem.settings.costs, range(problem.settings.samples)
    top_1 = tuple(problem.kept[k, sample] for sample in samples) if problem.single else None
    if problem.settings.cost == "cv":
        return Few(k, tuple(means[:, 0].tolist()), None, {}, top_1)
    by_cost = means.mean(0).tolist()
    best = first_best(by_cost)
    return Few(k, tuple(means[:, best].tolist()), costs[best], dict(zip(costs, by_cost, strict=True)), top_1)


def run(job: Job) -> Result:
    """Measure each layer, one after the other; the best is best at the largest k."""
    settings: Settings = job.settings
    data, measured, details = job.data, [], {}
    found: dict[str, Scores] = {}
    for layer in job.layers:
        features = [job.features(name, layer, settings.preprocessing(), settings.pool) for name in ("train", "test")]
        found[layer] = scores = job.ranks.lead(
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
        for few in scores.few:
            measured.append(_measurement("mAP", few.samples, layer, few.k))
            if few.top_1 is not None:
                measured.append(_measurement("top-1", few.top_1, layer, few.k))
        details[layer] = _details(scores)
    first = next(iter(found.values()))
    most = max(few.k for few in first.few)
    best = max((m for m in measured if m.metric == "mAP" and m.at["k"] == most), key=lambda m: m.value)
    notes = list(first.notes)
    if first.seeds:
        notes.append(f"Seeds of the samples: {', '.join(map(str, first.seeds))}.")
    gone = untested(data)
    if gone:
        notes.append(f"No test image shows {', '.join(gone)}: left out of the mean.")
    return Result(
        NAME,
        job.variant,
        tuple(measured),
        best=best,
        details={"layers": details, "sample seeds": list(first.seeds), "notes": notes},
    )


def _measurement(metric: str, values: tuple[float, ...], layer: str, k: int) -> Measurement:
    several = len(values) > 1
    return Measurement(
        metric,
        float(np.mean(values)),
        layer,
        {"k": k},
        float(np.std(values, ddof=1)) if several else None,
        min(values) if several else None,
        max(values) if several else None,
        len(values),
    )


def _details(scores: Scores) -> dict[str, Any]:
    return {
        "cost": {str(few.k): few.cost for few in scores.few},
        "mAP by sample": {str(few.k): list(few.samples) for few in scores.few},
        "mAP by cost": {str(few.k): {f"{cost:.6g}": v for cost, v in few.by_cost.items()} for few in scores.few},
        "fits that reached max_iterations": scores.not_converged,
    }
