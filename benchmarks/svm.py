"""The SVM protocols beside scikit-learn called one by one, on features like those of VOC2007.

    taskset -c 0,1 python benchmarks/svm.py [--rows 5000] [--dim 9216] [--classes 20] [--timed 4] [--workers 2]
    taskset -c 0,1 python benchmarks/svm.py --low-shot [--samples 1]

Run it on two free cores. Their side is what the upstream scripts do: for each class and cost ``cross_val_score`` and,
at the best cost, one fit on every row (``--low-shot``: for each draw, class and cost one fit), in one process. Ours
is the protocol itself, with all it does on the side: digests, the scores kept on disk, the test. Both sides begin
with the same float32 features and use the same seed of liblinear, so that they must find the same: the timed classes
with all costs on both sides, the other classes against one fit of scikit-learn at the cost that ours chose
(``--all``: scikit-learn with all costs there, too).

The features are made up, with a seed: a few hundred latent causes of falling strength, seen by every position in its
own way, mapped to channels that all positions share, cut off at zero, and averaged over the positions of each cell of
a grid; the labels are latent directions with noise.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC

from context_pred.evaluate import low_shot, svm
from context_pred.evaluate.classifiers import COSTS
from context_pred.evaluate.draws import draw_all, sample_seeds
from context_pred.evaluate.metrics import average_precision

CELLS, POSITIONS = 9, 3


def make(rows: int, dim: int, classes: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Features (rows, dim), and labels (rows, classes) with 2 to 15 % positives, a few of them difficult."""
    rng = np.random.default_rng(seed)
    channels, causes = -(-dim // CELLS), 300
    strength = np.arange(1, causes + 1) ** -0.5
    latent = (rng.standard_normal((rows, causes)) * strength).astype(np.float32)
    weights = rng.standard_normal((causes, channels)).astype(np.float32)
    bias = rng.normal(-0.5, 1, channels).astype(np.float32)
    features = np.empty((rows, channels, CELLS), np.float32)
    for cell in range(CELLS):
        mean = np.zeros((rows, channels), np.float32)
        for _ in range(POSITIONS):
            seen = latent + 0.7 * (rng.standard_normal((rows, causes)) * strength).astype(np.float32)
            mean += np.maximum(seen @ weights + bias + rng.standard_normal((rows, channels), np.float32), 0)
        features[:, :, cell] = mean / POSITIONS
    direction = rng.standard_normal((causes, classes)) * strength[:, None]
    score = latent @ direction
    score = score / score.std(0) + rng.standard_normal((rows, classes))
    shows = score > np.quantile(score, 1 - np.geomspace(0.02, 0.15, classes), axis=0).diagonal()
    labels = np.where(shows & (rng.random(shows.shape) < 0.05), -1, shows).astype(np.int8)
    return features.reshape(rows, -1)[:, :dim], labels


def unit(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """Rows divided by their norm plus 1e-5."""
    rows = features.astype(np.float64)
    return rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-5)


def classifier(cost: float) -> LinearSVC:
    """Upstream's classifier, with a seed."""
    return LinearSVC(
        C=cost, class_weight={1: 2, -1: 1}, intercept_scaling=1.0, penalty="l2", loss="squared_hinge", tol=1e-4,
        dual=True, max_iter=2000, random_state=0,
    )  # fmt: skip


def their_svm(train: NDArray, labels: NDArray, test: NDArray, test_labels: NDArray) -> NDArray:
    """Average precision by class, scikit-learn one by one."""
    found = []
    for number in range(labels.shape[1]):
        own = np.where(labels[:, number] == 1, 1, -1)
        scores = [
            cross_val_score(classifier(cost), train, own, cv=3, scoring="average_precision").mean() for cost in COSTS
        ]
        found.append(one_fit(train, own, test, test_labels[:, number], COSTS[int(np.argmax(scores))]))
    return np.array(found)


def one_fit(train: NDArray, own: NDArray, test: NDArray, test_labels: NDArray, cost: float) -> float:
    """Average precision of one fit."""
    return average_precision(test_labels, classifier(cost).fit(train, own).decision_function(test))


def their_low_shot(
    train: NDArray, labels: NDArray, test: NDArray, test_labels: NDArray, ks: tuple[int, ...], samples: int
) -> NDArray:
    """Average precision (k, samples, classes, costs), scikit-learn one by one."""
    draws = draw_all(labels, ks, 19, sample_seeds(0, samples))
    return np.array(
        [
            [
                [
                    [one_fit(train[rows], np.where(shows, 1, -1), test, test_labels[:, number], cost) for cost in COSTS]
                    for number, (rows, shows) in enumerate(draws[k, sample])
                ]
                for sample in range(samples)
            ]
            for k in ks
        ]
    )


def compare_svm(data: tuple[NDArray, ...], args: argparse.Namespace) -> None:
    """Time both sides on the first classes, then compare the others."""
    train, labels, test, test_labels = data
    names = [str(number) for number in range(args.classes)]
    with tempfile.TemporaryDirectory() as cache:

        def ours(part: slice) -> svm.Scores:
            return svm.fit_and_score(
                train, labels[:, part], test, test_labels[:, part], names[part],
                cache=Path(cache), workers=args.workers, progress=True,
            )  # fmt: skip

        timed, others = slice(0, args.timed), slice(args.timed, args.classes)
        start = time.perf_counter()
        scores = ours(timed)
        own = time.perf_counter() - start
        print(f"ours: {own:.1f} s for {args.timed} classes, {scores.workers} workers", flush=True)
        start = time.perf_counter()
        rows, tests = unit(train), unit(test)
        theirs = their_svm(rows, labels[:, timed], tests, test_labels[:, timed])
        their = time.perf_counter() - start
        print(f"scikit-learn one by one: {their:.1f} s; ours is {their / own:.2f} × as fast", flush=True)
        found = list(scores.precision)
        if args.classes > args.timed:
            more = ours(others)
            found += more.precision
            if args.all:
                rest = their_svm(rows, labels[:, others], tests, test_labels[:, others])
            else:
                rest = np.array(
                    [
                        one_fit(rows, np.where(labels[:, number] == 1, 1, -1), tests, test_labels[:, number], cost)
                        for number, cost in zip(range(args.classes)[others], more.cost, strict=True)
                    ]
                )
            theirs = np.append(theirs, rest)
    report(np.array(found), theirs, "class")


def compare_low_shot(data: tuple[NDArray, ...], args: argparse.Namespace) -> None:
    """Time both sides on the first classes with all costs."""
    train, labels, test, test_labels = data
    labels, test_labels = labels[:, : args.timed], test_labels[:, : args.timed]
    ks = tuple(k for k in low_shot.Settings().k if k <= (labels == 1).sum(0).min())
    names = [str(number) for number in range(args.timed)]
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        scores = low_shot.fit_and_score(
            train, labels, test, test_labels, names, low_shot.Settings(samples=args.samples, k=ks),
            cache=Path(cache), workers=args.workers, progress=True,
        )  # fmt: skip
        own = time.perf_counter() - start
    print(f"ours: {own:.1f} s for {args.timed} classes, k = {ks}", flush=True)
    start = time.perf_counter()
    theirs = their_low_shot(unit(train), labels, unit(test), test_labels, ks, args.samples)
    their = time.perf_counter() - start
    print(f"scikit-learn one by one: {their:.1f} s; ours is {their / own:.2f} × as fast")
    by_cost = np.array([list(few.by_cost.values()) for few in scores.few])
    report(by_cost.ravel(), theirs.mean((1, 2)).ravel(), "k and cost")
    best = theirs.mean((1, 2)).max(1)
    report(np.array([few.mean for few in scores.few]), best, "k")


def report(ours: NDArray, theirs: NDArray, what: str) -> None:
    """Print how far apart the sides are."""
    apart, most = abs(ours.mean() - theirs.mean()), np.abs(ours - theirs).max()
    print(f"mAP: ours {ours.mean():.8f}, scikit-learn's {theirs.mean():.8f}, {apart:.1e} apart; by {what} {most:.1e}")


def main() -> None:
    """Make the data, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5000, help="of the training split; the test split has as many")
    parser.add_argument("--dim", type=int, default=9216)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--timed", type=int, default=4, help="classes with all costs on both sides")
    parser.add_argument("--all", action="store_true", help="scikit-learn with all costs for every class")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--low-shot", action="store_true")
    parser.add_argument("--samples", type=int, default=1, help="draws of each k, with --low-shot")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.timed = min(args.timed, args.classes)
    warnings.simplefilter("ignore", ConvergenceWarning)
    features, labels = make(2 * args.rows, args.dim, args.classes, args.seed)
    print(f"{args.rows} rows, {args.dim} values, {(features == 0).mean():.0%} of them 0, {args.classes} classes")
    data = features[: args.rows], labels[: args.rows], features[args.rows :], labels[args.rows :]
    (compare_low_shot if args.low_shot else compare_svm)(data, args)


if __name__ == "__main__":
    main()
