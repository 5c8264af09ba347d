"""Weights that fit the data: k-means initialisation, normalisation within layers, equal rates between them.

Source: Krähenbühl, Doersch, Donahue, Darrell, "Data-dependent Initializations of Convolutional Neural Networks" (ICLR
2016, arXiv 1511.06856), and its released code, magic_init. Three steps, each usable by itself on the convolutions and
linear layers of a network, in the order in which they compute, and on batches of real data:

1. ``initialize``: a layer's weights become the centres of a spherical k-means of its whitened input patches;
2. ``normalize``: each channel gets mean 0 and standard deviation 1 before its ReLU (Algorithm 1);
3. ``equalize``: all layers learn at one rate, the ratio of gradient to weight (Algorithm 2).

The network is called in eval mode, without dropout.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from context_pred.errors import InvalidInputError
from context_pred.extras import need
from context_pred.training import keys

logger = logging.getLogger("context_pred")

Layer = nn.Conv2d | nn.Linear
Forward = Callable[[Any], Tensor]

EPSILON = 1e-3  # added to an eigenvalue before its root is divided by, as in magic_init
ROUNDS = 10
TOLERANCE = 0.01
"""How far the logarithm of a layer's rate may lie from the common one when ``equalize`` ends: 1 %."""


class _ReachedError(Exception):
    """The layer that was asked for has computed; nothing beyond it need run."""


@contextlib.contextmanager
def _watched(layer: nn.Module, see: Callable[[Tensor, Tensor], None], stop: bool) -> Iterator[None]:
    """Show every input and output of a layer to ``see``."""

    def hook(_: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        see(given[0], made)
        if stop:
            raise _ReachedError

    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)


def _reach(layer: nn.Module, forward: Forward, batches: Sequence[Any], see: Callable[[Tensor, Tensor], None]) -> None:
    with torch.no_grad(), _watched(layer, see, stop=True):
        for batch in batches:
            with contextlib.suppress(_ReachedError):
                forward(batch)


def _flat(x: Tensor) -> Tensor:
    """(N, C, …) → (N · …, C)."""
    return x.flatten(2).transpose(1, 2).flatten(0, 1) if x.ndim > 2 else x


def _bias(layer: Layer) -> Tensor:
    if layer.bias is None:
        raise InvalidInputError(f"{layer}: accepted are layers with a bias.")
    return layer.bias


def moments(layer: Layer, forward: Forward, batches: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each output channel of a layer, before its ReLU, float64 (channels,)."""
    count = 0
    sums: list[Tensor] = []

    def see(_: Tensor, made: Tensor) -> None:
        nonlocal count
        rows = _flat(made).double()
        count += len(rows)
        found = torch.stack([rows.sum(0), rows.square().sum(0)])
        sums[:] = [sums[0] + found if sums else found]

    _reach(layer, forward, batches, see)
    mean, square = sums[0] / count
    return mean, (square - mean.square()).clamp_min(0).sqrt()


def normalize(
    model: nn.Module, layers: Sequence[Layer], forward: Forward, batches: Sequence[Any], *, bias: float = 0.0
) -> None:
    """Give every output channel mean ``bias`` and standard deviation 1, layer after layer.

    Args:
        model: Put into eval mode meanwhile.
        layers: In the order in which they compute; each with a bias. Those left out stay as they are.
        forward: Runs the model on a batch.
        batches: Of real data.
        bias: The mean; magic_init's command has .1 by default.

    Raises:
        InvalidInputError: a layer without a bias.
    """
    with _evaluating(model):
        for layer in layers:
            mean, std = moments(layer, forward, batches)
            std = torch.where(std > 1e-6 * (1 + mean.abs()), std, torch.ones_like(std))  # a dead channel
            with torch.no_grad():
                layer.weight.div_(std.view(-1, *[1] * (layer.weight.ndim - 1)))
                shift = _bias(layer)
                shift.copy_((shift.double() - mean) / std + bias)


def patches(layer: Layer, x: Tensor) -> Tensor:
    """What a layer multiplies its weights with: (rows, inputs), a row for each place that it computes."""
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2)
    if layer.groups > 1 or isinstance(layer.padding, str):
        raise InvalidInputError(f"{layer}: accepted are convolutions of one group with their padding in px.")
    unfolded: Tensor = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return unfolded.transpose(1, 2).flatten(0, 1)


def kmeans_weights(rows: Tensor, channels: int, seed: int) -> Tensor:
    """Return weights (channels, inputs): the centres of a spherical k-means of whitened rows.

    The rows are centred and projected to their ``channels`` strongest principal components, each divided by its root;
    the directions are clustered; a centre goes back to the space of the inputs. Too few rows: Gaussian weights
    (standard deviation 1), as in magic_init; the scale is ``normalize``'s business.

    Args:
        rows: (rows, inputs) float32.
        channels: Of the output.
        seed: Of the first centres and of Gaussian weights.
    """
    cluster = need("sklearn.cluster", "k-means initialisation")
    if len(rows) < channels:
        return torch.randn(channels, rows.shape[1], generator=torch.Generator().manual_seed(seed)).to(rows)
    rows = rows - rows.mean(0)
    values, vectors = _components(rows, channels)
    scales = torch.where(values >= 1e-6, (values + EPSILON).rsqrt(), torch.zeros_like(values))
    back = vectors * scales
    white = F.normalize(rows @ back, dim=1)
    means = cluster.MiniBatchKMeans(
        channels, init="random", n_init=1, batch_size=min(len(white), 10 * channels), random_state=seed % 2**32
    )
    centres = torch.from_numpy(np.asarray(means.fit(white.cpu().numpy()).cluster_centers_, np.float32))
    weights: Tensor = centres.to(rows) @ back.T
    return weights


def _components(rows: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues of rowsᵀ rows, at the most so many, and their vectors as columns (inputs, most)."""
    if len(rows) >= rows.shape[1]:
        values, vectors = torch.linalg.eigh(rows.T @ rows)
        return values[-most:], vectors[:, -most:]
    values, vectors = torch.linalg.eigh(rows @ rows.T)  # the smaller of the two has the same eigenvalues
    values, vectors = values[-most:], vectors[:, -most:]
    return values, F.normalize(rows.T @ vectors, dim=0)


def initialize(
    model: nn.Module,
    layers: Sequence[Layer],
    forward: Forward,
    batches: Sequence[Any],
    *,
    samples: int = 20_000,
    seed: int = 0,
) -> list[bool]:
    """Initialise layers by k-means, each on what the ones before it give, and normalise them.

    Args:
        model: Put into eval mode meanwhile.
        layers: In the order in which they compute.
        forward: Runs the model on a batch.
        batches: Of real data.
        samples: Patches taken of each layer's input, at the most.
        seed: Of the choice of patches, and of k-means.

    Returns:
        For each layer, whether there were enough patches for k-means; False: its weights are Gaussian.
    """
    enough = []
    with _evaluating(model):
        for number, layer in enumerate(layers):
            taken: list[Tensor] = []
            each = -(-samples // max(1, len(batches)))
            generator = keys.generator(seed, number)

            def see(
                given: Tensor, _: Tensor, layer: Layer = layer, taken: list[Tensor] = taken,
                generator: torch.Generator = generator, each: int = each,
            ) -> None:  # fmt: skip
                rows = patches(layer, given)
                chosen = torch.randperm(len(rows), generator=generator)[:each]
                taken.append(rows[chosen.to(rows.device)].float())

            _reach(layer, forward, batches, see)
            rows = torch.cat(taken)
            enough.append(len(rows) >= len(layer.weight))
            with torch.no_grad():
                layer.weight.copy_(
                    kmeans_weights(rows, len(layer.weight), keys.seed(seed, number, 1)).view_as(layer.weight)
                )
                _bias(layer).zero_()
            normalize(model, [layer], forward, batches)
    return enough


def rates(model: nn.Module, layers: Sequence[Layer], forward: Forward, batches: Sequence[Any], seed: int) -> Tensor:
    """Root mean square of each layer's gradient over that of its weights, float64 (layers,).

    The gradient is that of a random linear function, standard normal, of what the model returns.
    """
    sums = torch.zeros(len(layers), dtype=torch.float64)
    weights = [layer.weight for layer in layers]
    with _evaluating(model):
        for number, batch in enumerate(batches):
            made = forward(batch)
            direction = torch.randn(made.shape, generator=keys.generator(seed, number)).to(made)
            found = torch.autograd.grad(made, weights, direction)
            sums += torch.stack([gradient.double().square().mean().cpu() for gradient in found])
    sizes = torch.stack([weight.detach().double().square().mean().cpu() for weight in weights])
    return (sums / len(batches) / sizes).sqrt()


def equalize(
    model: nn.Module, layers: Sequence[Layer], forward: Forward, batches: Sequence[Any], *, seed: int = 0
) -> float:
    """Scale the layers against one another until all learn at one rate; what the model returns keeps its size.

    A layer whose rate is r is multiplied by √(r / geometric mean), so that the factors' product is 1 and a network of
    ReLUs and max-pooling returns what it did; biases follow the scale of what comes in. Local response normalisation
    is no such layer (twice the input is not twice the output), so the steps are repeated, to ``ROUNDS``.

    Args:
        model: Put into eval mode meanwhile.
        layers: In the order in which they compute, each with a bias; all that need a gradient.
        forward: Runs the model on a batch.
        batches: Of real data.
        seed: Of the gradient.

    Returns:
        The largest |log(rate / geometric mean)| that is left; ``TOLERANCE`` or less where the rounds sufficed.
    """
    asked = [layer.weight.requires_grad for layer in layers]
    for layer in layers:
        layer.weight.requires_grad_(True)
    sizes = _input_sizes(model, layers, forward, batches)
    left = math.inf
    for turn in range(ROUNDS + 1):
        found = rates(model, layers, forward, batches, seed).clamp_min(1e-30).log()
        left = float((found - found.mean()).abs().max())
        if left <= TOLERANCE or turn == ROUNDS:
            break
        for number, layer in enumerate(layers):
            # What comes in has changed with the layers before.
            size = _input_sizes(model, [layer], forward, batches)[0]
            scale = float(((found[number] - found.mean()) / 2).exp())
            with torch.no_grad():
                layer.weight.mul_(scale)
                _bias(layer).mul_(scale * size / sizes[number])
            sizes[number] = size
    for layer, before in zip(layers, asked, strict=True):
        layer.weight.requires_grad_(before)
    logger.info("Rates of %d layers equal to within %.1f %%.", len(layers), 100 * (math.exp(left) - 1))
    return left


def _input_sizes(model: nn.Module, layers: Sequence[Layer], forward: Forward, batches: Sequence[Any]) -> list[float]:
    """Mean absolute value of what comes into each layer."""
    found = []
    with _evaluating(model):
        for layer in layers:
            sizes: list[float] = []
            _reach(layer, forward, batches, lambda given, _, sizes=sizes: sizes.append(float(given.abs().mean())))  # type: ignore[misc]
            found.append(max(float(np.mean(sizes)), 1e-30))
    return found
