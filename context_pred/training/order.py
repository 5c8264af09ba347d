"""Which images each step sees: a function of the seed, the epoch and the step, whatever the hardware.

A recipe's global batch is divided into micro-batches of its per-device size, as upstream's over its eight GPUs. Each
rank computes some of them one after the other; which images a micro-batch holds does not depend on that.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from context_pred.errors import InvalidInputError

from . import keys


class Order:
    """The order of a run's images, epoch after epoch.

    Every epoch is a permutation of the images, keyed by the seed and the epoch.

    With ``whole_epochs``, upstream's way, an epoch's permutation is padded from its own start to a multiple of the
    number of micro-batches a step; micro-batch m takes every so-many-th image from the m-th on, ``per_device`` at a
    time, the last step of an epoch what is left (mmselfsup's ``DistributedSampler`` with ``drop_last=False``).

    Without, for runs whose length is given in images, the permutations follow one another without a break and every
    step is full, also where there are fewer images than a step takes.

    Args:
        count: Images there are.
        images: Images a step, over all devices.
        per_device: Images a micro-batch; divides ``images``.
        seed: Of the permutations.
        whole_epochs: As above.

    Attributes:
        steps_per_epoch: Optimiser steps in a pass over the images; without ``whole_epochs`` the nearest whole number.
        smallest: Images in the smallest micro-batch there is.
    """

    def __init__(self, count: int, images: int, per_device: int, seed: int, *, whole_epochs: bool = True) -> None:
        if count < 1:
            raise InvalidInputError("No images to train on.")
        if images % per_device:
            raise InvalidInputError(f"{images} images a step are no multiple of {per_device} a device.")
        self.count, self.per_device, self.seed, self.whole_epochs = count, per_device, seed, whole_epochs
        self.micro_batches = images // per_device
        self._share = -(-count // self.micro_batches)
        if whole_epochs:
            self.steps_per_epoch = -(-self._share // per_device)
            self.smallest = self._share - (self.steps_per_epoch - 1) * per_device
        else:
            self.steps_per_epoch = max(1, round(count / images))
            self.smallest = per_device
        self._permutation = lru_cache(4)(self._permute)

    def micro_batch(self, step: int, number: int) -> list[tuple[int, int]]:
        """Return (epoch, image) of micro-batch ``number`` of a step; images are numbered 0 … count − 1."""
        if not self.whole_epochs:
            first = (step * self.micro_batches + number) * self.per_device
            places = (divmod(place, self.count) for place in range(first, first + self.per_device))
            return [(epoch, int(self._permutation(epoch)[place])) for epoch, place in places]
        epoch, batch = divmod(step, self.steps_per_epoch)
        mine = self._permutation(epoch)[number :: self.micro_batches]
        taken = mine[batch * self.per_device : (batch + 1) * self.per_device]
        return [(epoch, image) for image in taken.tolist()]

    def numbers(self, rank: int, ranks: int) -> range:
        """Return the numbers of the micro-batches that a rank computes at each step.

        Raises:
            InvalidInputError: the ranks cannot share the micro-batches evenly.
        """
        if self.micro_batches % ranks:
            fits = [n for n in range(1, self.micro_batches + 1) if self.micro_batches % n == 0]
            raise InvalidInputError(
                f"{ranks} processes cannot share {self.micro_batches} micro-batches of {self.per_device} images "
                f"evenly; start {' or '.join(map(str, fits))}, or change batch.images or batch.per_device."
            )
        return range(rank, self.micro_batches, ranks)

    def _permute(self, epoch: int) -> Tensor:
        order = torch.randperm(self.count, generator=keys.generator(self.seed, epoch))
        if not self.whole_epochs:
            return order
        padded = self._share * self.micro_batches
        return order.repeat(-(-padded // self.count))[:padded]


class GroupedOrder(Order):
    """Whole epochs whose micro-batches hold images of one group each, as mmdetection's ``GroupSampler`` does.

    Images of a like shape need little padding to one size. An epoch's permutation, padded from its own start so that
    every step is full, is sorted by group and cut into micro-batches, which are shuffled; where two groups meet, one
    micro-batch has images of both (upstream repeats images of the smaller group instead).

    Args:
        count: As in ``Order``, and so are the others.
        images: As above.
        per_device: As above.
        seed: As above.
        groups: The group of every image, a whole number.
    """

    def __init__(self, count: int, images: int, per_device: int, seed: int, groups: Sequence[int]) -> None:
        super().__init__(count, images, per_device, seed)
        self.groups, self.smallest = torch.tensor(groups), per_device

    def micro_batch(self, step: int, number: int) -> list[tuple[int, int]]:
        """Return (epoch, image) of micro-batch ``number`` of a step; images are numbered 0 … count − 1."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        first = (batch * self.micro_batches + number) * self.per_device
        return [(epoch, image) for image in self._permutation(epoch)[first : first + self.per_device].tolist()]

    def _permute(self, epoch: int) -> Tensor:
        generator = keys.generator(self.seed, epoch)
        order = torch.randperm(self.count, generator=generator)
        padded = self.steps_per_epoch * self.micro_batches * self.per_device
        order = order.repeat(-(-padded // self.count))[:padded]
        order = order[self.groups[order].argsort(stable=True)].reshape(-1, self.per_device)
        return order[torch.randperm(len(order), generator=generator)].flatten()
