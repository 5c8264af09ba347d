"""The few images that low-shot classifiers learn from: drawn with a seed, or read from files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from context_pred.errors import InvalidInputError

Draw = tuple[NDArray[np.int64], NDArray[np.bool_]]
"""Rows drawn, ascending, and which of them show the class."""


def sample_seeds(seed: int, samples: int) -> tuple[int, ...]:
    """Seeds of the samples, from one."""
    return tuple(int(one) for one in np.random.SeedSequence(seed).generate_state(samples))


def draw(labels: NDArray[np.int8], number: int, k: int, negatives: int, seed: int) -> Draw:
    """Draw k images of a class and ``negatives`` · k without it, without replacement, for each class and k anew.

    Args:
        labels: int8 (n, classes); difficult images (−1) are not drawn for their class.
        number: The class.
        k: Images that show it; at most as many as there are.
        negatives: Images without the class for each; all there are where there are fewer.
        seed: Of the sample.
    """
    generator = np.random.default_rng([seed, k, number])
    yes, no = np.flatnonzero(labels[:, number] == 1), np.flatnonzero(labels[:, number] == 0)
    chosen = generator.choice(yes, k, replace=False), generator.choice(no, min(negatives * k, len(no)), replace=False)
    rows = np.sort(np.concatenate(chosen))
    return rows, labels[rows, number] == 1


def draw_all(
    labels: NDArray[np.int8], ks: Sequence[int], negatives: int, seeds: Sequence[int]
) -> dict[tuple[int, int], list[Draw]]:
    """Draw for every k and sample: {(k, sample): the draw of each class}."""
    return {
        (k, sample): [draw(labels, number, k, negatives, seed) for number in range(labels.shape[1])]
        for k in ks
        for sample, seed in enumerate(seeds)
    }


def read_all(
    folder: Path, shape: tuple[int, ...], ks: Sequence[int], samples: int
) -> dict[tuple[int, int], list[Draw]]:
    """Read draws from ``*sample1_k8.npy`` …: (n, classes), 1 yes, 0 no, −1 not drawn, the samples counted from 1.

    Args:
        folder: Where the files lie.
        shape: (training images, classes).
        ks: Images of each class.
        samples: Draws of each k.

    Raises:
        InvalidInputError: a file is missing or not alone, has another shape, or draws a class without images or
            negatives.
    """
    found = {}
    for k in ks:
        for sample in range(samples):
            given = _given(folder, sample + 1, k, shape)
            rows = [np.flatnonzero(column >= 0) for column in given.T]
            found[k, sample] = [(one, given[one, number] == 1) for number, one in enumerate(rows)]
            lacking = [number for number, (_, shows) in enumerate(found[k, sample]) if not shows.any() or shows.all()]
            if lacking:
                raise InvalidInputError(
                    f"The draw of sample {sample + 1}, k = {k} in {folder} lacks images with or without class "
                    f"number {lacking[0]}."
                )
    return found


def _given(folder: Path, sample: int, k: int, shape: tuple[int, ...]) -> NDArray[Any]:
    files = sorted(folder.glob(f"*sample{sample}_k{k}.npy"))
    if len(files) != 1:
        raise InvalidInputError(
            f"{folder} holds {len(files)} files *sample{sample}_k{k}.npy; accepted is one for each sample and k."
        )
    try:
        given: NDArray[Any] = np.load(files[0], allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InvalidInputError(f"{files[0]} cannot be read as an array: {error}") from error
    if given.shape != shape:
        raise InvalidInputError(f"{files[0]} is {given.shape}; accepted is (training images, classes) = {shape}.")
    return given
