"""Random numbers keyed by what they are for, so that neither ranks, workers nor a restart change them."""

from __future__ import annotations

import numpy as np
import torch


def seed(*key: int) -> int:
    """Mix whole numbers from 0 up into one seed of 63 bits; keys of other numbers, order or length give other seeds."""
    return int(np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint64)[0] >> 1)


def generator(*key: int) -> torch.Generator:
    """Make a CPU generator from a key, for example (seed, epoch, image): the same numbers wherever it is made."""
    return torch.Generator().manual_seed(seed(*key))
