"""Linear SVMs of the VOC07 protocols: one fit, its cross-validation, and what is common to ``svm`` and ``low_shot``.

The settings are those of Facebook's SSL benchmark (fair_self_supervision_benchmark, ``tools/svm``) as mmselfsup took
them over; scikit-learn's LinearSVC, which is liblinear, does the solving.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from context_pred.errors import InvalidInputError
from context_pred.extras import need

from .metrics import average_precision

if TYPE_CHECKING:
    from .features import Preprocessing
    from .labelled import LabelledImages

Float = NDArray[np.float64]

COSTS = (1.0, 10.0, 100.0, *(0.5**power for power in range(4, 20)))
"""The 19 costs, in the order in which the first maximum wins."""

_BLOCK = 512  # rows normalised at once
_NODE = 16  # bytes that liblinear keeps a number that is not zero


@dataclass(frozen=True, kw_only=True)
class SvmOptions:
    """What every fit has in common.

    Args:
        costs: LinearSVC's C, in the order in which the first of equals wins.
        positive_weight: Class weight of the images that show the class; 1 for the others.
        tolerance: LinearSVC's ``tol``.
        max_iterations: LinearSVC's ``max_iter``.
        folds: Of the cross-validation: stratified, not shuffled; fewer where a class has fewer images.
        pool: How maps become vectors: "grid" (about 9,000 values a layer of a ResNet-50) or "gap".
        size: Side of the square that the network sees, in px; the shorter side is resized to 8 / 7 of it first.
        resampling: "pillow" as mmselfsup 0.x, "opencv" as 1.x.

    Raises:
        InvalidInputError: an option out of its range.
    """

    costs: tuple[float, ...] = COSTS
    positive_weight: float = 2.0
    tolerance: float = 1e-4
    max_iterations: int = 2000
    folds: int = 3
    pool: Literal["grid", "gap"] = "grid"
    size: int = 224
    resampling: Literal["pillow", "opencv"] = "pillow"

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.costs or min(self.costs) <= 0 or len(set(self.costs)) < len(self.costs):
            raise InvalidInputError(
                f"costs = {list(self.costs)}: accepted are different numbers above 0, at least one."
            )
        if self.positive_weight <= 0 or self.tolerance <= 0:
            raise InvalidInputError(
                f"positive_weight = {self.positive_weight}, tolerance = {self.tolerance}: accepted is a number above 0."
            )
        if not 1 <= self.max_iterations < 2**31 or self.folds < 2:
            raise InvalidInputError(
                f"max_iterations = {self.max_iterations}, folds = {self.folds}: accepted are 1 … 2³¹ − 1, and 2 or "
                "more."
            )
        if self.size < 1:
            raise InvalidInputError(f"size = {self.size}: accepted is 1 px or more.")

    @property
    def solver(self) -> tuple[float, float, int]:
        """What a single fit depends on, beside its cost."""
        return self.positive_weight, self.tolerance, self.max_iterations

    def preprocessing(self) -> Preprocessing:
        """The shorter side to 256 px, then the whole image squashed to 224 × 224."""
        from .features import Preprocessing

        return Preprocessing(self.size, squash=True, resampling=self.resampling)


@dataclass(frozen=True, eq=False)
class Fitted:
    """One classifier: ``weights`` (d,), ``intercept``, and whether the solver came to its tolerance."""

    weights: Float
    intercept: float
    converged: bool

    def __call__(self, rows: Float) -> Float:
        """Return the decision values (n,) of rows (n, d)."""
        values: Float = rows @ self.weights + self.intercept
        return values


def vectors(features: NDArray[Any]) -> Float:
    """Flatten features (n, …) and divide each row by (its L2 norm + 1e-5): float64 (n, d), a copy.

    Raises:
        InvalidInputError: a value that is no finite number.
    """
    rows = np.array(features, dtype=np.float64).reshape(len(features), -1)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        norms = np.linalg.norm(block, axis=1, keepdims=True)
        wrong = np.flatnonzero(~np.isfinite(norms))
        if len(wrong):
            raise InvalidInputError(
                f"The features of image {start + wrong[0]} hold infinities or values that are no numbers."
            )
        block /= norms + 1e-5
    return rows


def fit(rows: Float, positive: NDArray[np.bool_], cost: float, options: SvmOptions, seed: int) -> Fitted:
    """Train one classifier: L2-regularised squared hinge in the dual, with an intercept.

    Args:
        rows: (n, d), as ``vectors`` makes them or in ``Triangular``'s coordinates.
        positive: (n,): the images that show the class; all others are negatives.
        cost: LinearSVC's C.
        options: The other settings.
        seed: Of the order in which liblinear takes the images.
    """
    from sklearn import config_context
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    classifier = LinearSVC(
        C=cost,
        class_weight={1: options.positive_weight, -1: 1.0},
        tol=options.tolerance,
        max_iter=options.max_iterations,
        penalty="l2",
        loss="squared_hinge",
        dual=True,
        intercept_scaling=1,
        random_state=seed,
    )
    with config_context(assume_finite=True, skip_parameter_validation=True), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(rows, np.where(positive, 1, -1))
    converged = int(classifier.n_iter_) < options.max_iterations
    return Fitted(classifier.coef_[0], float(classifier.intercept_[0]), converged)


def folds_of(positive: NDArray[np.bool_], folds: int) -> int:
    """How many folds these labels allow: each must hold an image of either kind; 1: no cross-validation."""
    yes = int(positive.sum())
    return max(1, min(folds, yes, len(positive) - yes))


def validate(
    rows: Float, positive: NDArray[np.bool_], cost: float, fold: int, folds: int, options: SvmOptions, seed: int
) -> tuple[float, bool]:
    """Train on all folds but one, and score that one.

    Args:
        rows: (n, d).
        positive: (n,).
        cost: LinearSVC's C.
        fold: Which of the folds is held out, from 0.
        folds: How many there are; from ``folds_of``.
        options: The other settings.
        seed: Of liblinear's order.

    Returns:
        scikit-learn's average precision (no interpolation) of the fold held out, and whether the solver converged.
    """
    from sklearn.metrics import average_precision_score
    from sklearn.model_selection import StratifiedKFold

    train, held = list(StratifiedKFold(folds).split(positive, positive))[fold]
    fitted = fit(rows[train], positive[train], cost, options, seed)
    return float(average_precision_score(positive[held], fitted(rows[held]))), fitted.converged


def first_best(scores: Sequence[float]) -> int:
    """Index of the first maximum."""
    return max(range(len(scores)), key=scores.__getitem__)


def precisions(labels: NDArray[np.int8], values: Float) -> list[float | None]:
    """Average precision (area) of each column of decision values (n, m) for labels (n,); None without any image."""
    found = [average_precision(labels, column) for column in values.T]
    return [value if value == value else None for value in found]


def node_bytes(rows: int, columns: int) -> int:
    """Bytes of one fit in a worker: liblinear's copy of the problem, 16 a number, and the rows themselves, 8."""
    filled = rows * columns - (min(rows, columns) * (min(rows, columns) - 1)) // 2
    return _NODE * filled + 8 * rows * columns


def is_single(*labels: NDArray[np.int8]) -> bool:
    """Tell whether every image has exactly one class."""
    return all(bool(((one == 1).sum(1) == 1).all() and (one >= 0).all()) for one in labels)


def check_arrays(
    train: NDArray[Any],
    train_labels: NDArray[np.int8],
    test: NDArray[Any],
    test_labels: NDArray[np.int8],
    classes: Sequence[str],
) -> None:
    """Check what a protocol is given.

    Raises:
        InvalidInputError: shapes that do not fit, a class without an image to learn from, or nothing to test on.
    """
    need("sklearn", "An SVM protocol")
    shapes = f"train {train.shape}, labels {train_labels.shape}; test {test.shape}, labels {test_labels.shape}"
    wanted = (len(train), len(classes)), (len(test), len(classes)), train.shape[1:]
    if (train_labels.shape, test_labels.shape, test.shape[1:]) != wanted:
        raise InvalidInputError(
            f"{shapes}; accepted are features (n, …) of one shape and labels (n, {len(classes)} classes) of each split."
        )
    for number, name in enumerate(classes):
        for value, kind in ((1, "shows"), (0, "does not show")):
            if not (train_labels[:, number] == value).any():
                raise InvalidInputError(f"No image of the training split {kind} the class {name!r}: nothing to learn.")
    if not (test_labels == 1).any():
        raise InvalidInputError("No image of the test split shows any class: nothing to measure.")


def untested(data: LabelledImages) -> list[str]:
    """Names of the classes that no test image shows; they have no average precision and stay out of the mean."""
    shown = (data.test.labels == 1).any(0)
    return [name for name, there in zip(data.classes, shown, strict=True) if not there]
