"""Linear SVMs on the features of windows, with hard negatives: R-CNN's second stage.

Source: R-CNN's released code (``rcnn``, ``rcnn_train.m``, ``rcnn_scale_features.m``): positives are the objects
themselves; negatives overlap every object of their class by less than .3; features are scaled to a mean norm of 20; one
pass over the images, each adding the negatives that the SVM of the moment scores above −1.0001; an SVM is trained again
when it has 2,000 new ones, and forgets those below −1.2. There images come one by one; here a few at once, so that
processes share them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from context_pred.errors import InvalidInputError, storing
from context_pred.extras import need
from context_pred.ranks import Ranks
from context_pred.training import keys

from ..kept import arrays
from ..parallel import run_jobs
from .average_precision import overlaps
from .boxes import BoxedImage
from .proposals import Boxes

Floats = NDArray[np.float32]
Features = Callable[[BoxedImage, Boxes], Floats]
"""Image and boxes (n, 4) → features (n, d), before they are scaled."""

KEEP_EVERY = 300.0
"""Seconds between two copies of the work on disk."""

_NORM_IMAGES, _NORM_BOXES = 200, 200


@dataclass(frozen=True, kw_only=True)
class SvmOptions:
    """How the SVMs are trained.

    Args:
        cost: LinearSVC's C.
        positive_weight: Class weight of the positives.
        bias_scale: LinearSVC's ``intercept_scaling``.
        tolerance: LinearSVC's ``tol``; liblinear's own default for the hinge loss.
        svm_iterations: LinearSVC's ``max_iter``.
        negative_overlap: Intersection over union with every object of the class, below which a window is a negative.
        hard: Score above which a negative is added.
        easy: Score below which one is forgotten.
        retrain: New negatives of a class after which its SVM is trained again.
        norm: Mean norm that features are scaled to.
        at_once: Images between two looks at whether an SVM is to be trained again.

    Raises:
        InvalidInputError: an option out of its range.
    """

    cost: float = 0.001
    positive_weight: float = 2.0
    bias_scale: float = 10.0
    tolerance: float = 0.1
    svm_iterations: int = 1000
    negative_overlap: float = 0.3
    hard: float = -1.0001
    easy: float = -1.2
    retrain: int = 2000
    norm: float = 20.0
    at_once: int = 16

    def check(self) -> None:
        """Check the ranges."""
        for name in (
            "cost",
            "positive_weight",
            "bias_scale",
            "tolerance",
            "svm_iterations",
            "retrain",
            "norm",
            "at_once",
        ):
            if getattr(self, name) <= 0:
                raise InvalidInputError(f"{name} = {getattr(self, name)}: accepted is a number above 0.")
        if not 0 < self.negative_overlap <= 1 or self.easy > self.hard:
            raise InvalidInputError(
                f"negative_overlap = {self.negative_overlap}, easy = {self.easy}, hard = {self.hard}: accepted are a "
                "share, and easy at most hard."
            )


@dataclass(frozen=True, eq=False)
class Detectors:
    """A linear SVM a class.

    Attributes:
        weights: float32 (classes, d), of features as they come; NaN of a class that has none.
        biases: float32 (classes,).
        positives: Objects each was trained with.
        negatives: Windows each was trained with at last.
    """

    weights: Floats
    biases: Floats
    positives: tuple[int, ...]
    negatives: tuple[int, ...]

    def scores(self, features: Floats) -> Floats:
        """(n, d) → (n, classes)."""
        found: Floats = (features @ self.weights.T + self.biases).astype(np.float32)
        return found


@dataclass(eq=False)
class _State:
    """What is known so far.

    Attributes:
        weights: (classes, d), of scaled features; NaN of a class that has no SVM yet.
        biases: (classes,).
        negatives: Of each class, (n, d).
        keys: Of each class, (n, 2): image and window of each negative.
        added: (classes,): new negatives since the SVM was trained.
        seen: Images that the pass has been through.
    """

    weights: Floats
    biases: Floats
    negatives: list[Floats]
    keys: list[NDArray[np.int64]]
    added: NDArray[np.int64]
    seen: int = 0

    @classmethod
    def new(cls, classes: int, dimensions: int) -> _State:
        weights = np.full((classes, dimensions), np.nan, np.float32)
        nothing, nowhere = np.zeros((0, dimensions), np.float32), np.zeros((0, 2), np.int64)
        return cls(
            weights, np.zeros(classes, np.float32), [nothing] * classes, [nowhere] * classes, np.zeros(classes, int)
        )

    def save(self, path: Path) -> None:
        by_class: dict[str, NDArray[Any]] = {f"negatives{k}": one for k, one in enumerate(self.negatives)}
        by_class |= {f"keys{k}": one for k, one in enumerate(self.keys)}
        _write(path, weights=self.weights, biases=self.biases, added=self.added, seen=np.array(self.seen), **by_class)

    @classmethod
    def load(cls, path: Path) -> _State:
        stored = arrays(path)
        numbers = range(len(stored["weights"]))
        negatives, keys_of = ([stored[f"{name}{k}"] for k in numbers] for name in ("negatives", "keys"))
        return cls(stored["weights"], stored["biases"], negatives, keys_of, stored["added"], int(stored["seen"]))


def _write(path: Path, **arrays: NDArray[Any]) -> None:
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(draft, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's own stub takes no dict
        os.replace(draft, path)


def train_detectors(
    images: Sequence[BoxedImage],
    proposals: Sequence[Boxes],
    classes: int,
    features: Features,
    options: SvmOptions,
    *,
    kept: Path,
    ranks: Ranks,
    seed: int = 0,
    workers: int = 1,
    progress: bool = False,
) -> Detectors:
    """Train the SVMs of every class.

    Args:
        images: The training images.
        proposals: One array an image.
        classes: How many there are.
        features: Of windows.
        options: The protocol's.
        kept: A folder that keeps the work, so that the same call goes on after an interruption.
        ranks: The images are shared; every rank returns the same.
        seed: Of liblinear, and of the windows whose norms are measured.
        workers: Processes that train SVMs.
        progress: Show bars on stderr.
    """
    finished = kept / "svms.npz"
    if not ranks.lead(finished.is_file):
        positives, scale = _positives(images, proposals, classes, features, options, kept, ranks, seed, progress)
        state = _mine(
            images, proposals, lambda *what: features(*what) * scale, positives, options,
            kept=kept, ranks=ranks, seed=seed, workers=workers, progress=progress,
        )  # fmt: skip
        ranks.lead(
            lambda: _write(
                finished, weights=state.weights * scale, biases=state.biases,
                positives=np.array([len(one) for one in positives]), negatives=np.array([len(k) for k in state.keys]),
            )
        )  # fmt: skip
        ranks.lead(lambda: (kept / "mining.npz").unlink(missing_ok=True))
    stored = arrays(finished)
    counts = (tuple(map(int, stored[name])) for name in ("positives", "negatives"))
    return Detectors(stored["weights"], stored["biases"], *counts)


def _positives(
    images: Sequence[BoxedImage],
    proposals: Sequence[Boxes],
    classes: int,
    features: Features,
    options: SvmOptions,
    kept: Path,
    ranks: Ranks,
    seed: int,
    progress: bool,
) -> tuple[list[Floats], float]:
    """Features of every object by class, scaled, and the scale: the wanted norm over the mean norm of some windows."""
    path = kept / "positives.npz"
    if not ranks.lead(path.is_file):
        measured = set(np.random.default_rng(keys.seed(seed, 1)).permutation(len(images))[:_NORM_IMAGES].tolist())
        rows: list[tuple[int, Floats]] = []
        norms = np.zeros(2)
        numbers = range(ranks.rank, len(images), ranks.count)
        for number in tqdm(numbers, desc="features of objects", unit=" images", disable=not progress):
            some = np.random.default_rng(keys.seed(seed, 2, number)).permutation(len(proposals[number]))[:_NORM_BOXES]
            others = proposals[number][some] if number in measured else proposals[number][:0]
            found = features(images[number], np.concatenate([images[number].boxes, others]))
            rows.append((number, found[: len(images[number])]))
            ends = np.linalg.norm(found[len(images[number]) :], axis=1)
            norms += ends.sum(), len(ends)
        parts = ranks.gather((rows, norms))
        ordered = [row for _, row in sorted((one for part, _ in parts for one in part), key=lambda one: one[0])]
        total = np.sum([norm for _, norm in parts], axis=0)
        scale = options.norm / max(total[0] / max(total[1], 1), 1e-12)
        ranks.lead(lambda: _write(path, rows=np.concatenate(ordered), scale=np.array(scale)))
    stored = arrays(path)
    everything, scale = stored["rows"] * stored["scale"], float(stored["scale"])
    labels = np.concatenate([image.labels for image in images])
    return [everything[labels == number].astype(np.float32) for number in range(classes)], scale


def _mine(
    images: Sequence[BoxedImage],
    proposals: Sequence[Boxes],
    features: Features,
    positives: Sequence[Floats],
    options: SvmOptions,
    *,
    kept: Path,
    ranks: Ranks,
    seed: int,
    workers: int,
    progress: bool,
) -> _State:
    path = kept / "mining.npz"
    state = _State.load(path) if ranks.lead(path.is_file) else _State.new(len(positives), positives[0].shape[1])
    asked = [len(rows) > 0 for rows in positives]
    saved = time.monotonic()
    count = len(images)
    with tqdm(total=count, initial=state.seen, desc="hard negatives", unit=" images", disable=not progress) as bar:
        for lot in _lots(state.seen, count, options.at_once):
            mine = {
                number: _negatives(number, images[number], proposals[number], features, state, asked, options)
                for number in lot[ranks.rank :: ranks.count]
            }
            gathered = {number: found for part in ranks.gather(mine) for number, found in part.items()}
            for number in lot:
                _add(state, gathered[number])
            state.seen = lot[-1] + 1
            last = state.seen == count
            _update(state, _due(state, options, last), positives, options, ranks, seed, workers)
            bar.update(len(lot))
            if ranks.lead(partial(_long_ago, saved)):
                ranks.lead(partial(state.save, path))
                saved = time.monotonic()
    return state


def _due(state: _State, options: SvmOptions, last: bool) -> list[int]:
    """Classes whose SVM is to be trained: none yet, many new negatives, or any at the end."""
    return [
        label
        for label, new in enumerate(state.added)
        if new and (np.isnan(state.weights[label]).any() or new > options.retrain or last)
    ]


def _long_ago(since: float) -> bool:
    return time.monotonic() - since >= KEEP_EVERY


def _lots(first: int, count: int, each: int) -> Iterator[range]:
    """The first image alone, whose negatives are all taken; then so many at once."""
    while first < count:
        end = 1 if first == 0 else min(count, first + each)
        yield range(first, end)
        first = end


def _negatives(
    number: int,
    image: BoxedImage,
    boxes: Boxes,
    features: Features,
    state: _State,
    asked: Sequence[bool],
    options: SvmOptions,
) -> list[tuple[Floats, NDArray[np.int64]]]:
    """For each class the image's hard negatives, and which windows they are; all, where there is no SVM yet.

    A class that is not asked for, since it has no positives, gets none.
    """
    rows = features(image, boxes)
    scores = rows @ state.weights.T + state.biases
    table = overlaps(boxes, image.boxes)
    found = []
    for label in range(len(state.weights)):
        away = table[:, image.labels == label].max(1, initial=0.0) < options.negative_overlap
        hard = np.isnan(scores[:, label]) | (scores[:, label] > options.hard)
        places = np.flatnonzero(away & hard & asked[label])
        found.append((rows[places], np.stack([np.full(len(places), number), places], 1)))
    return found


def _add(state: _State, found: Sequence[tuple[Floats, NDArray[np.int64]]]) -> None:
    for label, (rows, places) in enumerate(found):
        state.negatives[label] = np.concatenate([state.negatives[label], rows])
        state.keys[label] = np.concatenate([state.keys[label], places])
        state.added[label] += len(rows)


def _update(
    state: _State,
    due: Sequence[int],
    positives: Sequence[Floats],
    options: SvmOptions,
    ranks: Ranks,
    seed: int,
    workers: int,
) -> None:
    """Train the SVMs that are due, and forget their easy negatives."""
    if not due:
        return

    def work() -> list[tuple[int, Floats, float]]:
        jobs = [(label, positives[label], state.negatives[label], options, keys.seed(seed, 3) % 2**31) for label in due]
        return list(run_jobs(_fit, jobs, workers, title="svms", done=0, progress=False))

    for label, weights, bias in ranks.lead(work):
        state.weights[label], state.biases[label], state.added[label] = weights, bias, 0
        hard = state.negatives[label] @ weights + bias >= options.easy
        state.negatives[label], state.keys[label] = state.negatives[label][hard], state.keys[label][hard]


def _fit(label: int, positives: Floats, negatives: Floats, options: SvmOptions, seed: int) -> tuple[int, Floats, float]:
    svm = need("sklearn.svm", "voc07-rcnn").LinearSVC(
        C=options.cost, loss="hinge", dual=True, intercept_scaling=options.bias_scale, tol=options.tolerance,
        class_weight={1: options.positive_weight, -1: 1.0}, max_iter=options.svm_iterations, random_state=seed,
    )  # fmt: skip
    labels = np.repeat([1, -1], [len(positives), len(negatives)])
    svm.fit(np.concatenate([positives, negatives]), labels)
    return label, svm.coef_[0].astype(np.float32), float(svm.intercept_[0])
