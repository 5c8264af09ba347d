"""Random numbers for the samplers: drawn where the generator lives, so that a CPU generator repeats on every device."""

from __future__ import annotations

import torch
from torch import Tensor


def uniform(
    shape: tuple[int, ...],
    generator: torch.Generator | None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw uniformly from [0, 1)."""
    place = generator.device if generator is not None else device
    return torch.rand(shape, generator=generator, device=place, dtype=dtype).to(device)


def normal(
    shape: tuple[int, ...],
    generator: torch.Generator | None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw from the standard normal distribution."""
    place = generator.device if generator is not None else device
    return torch.randn(shape, generator=generator, device=place, dtype=dtype).to(device)


def below(limit: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw an integer from 0 … limit − 1 for each entry of ``limit`` (on the CPU).

    A float64 draw is uniform to 1e-13 for limits of a few thousand.
    """
    return (uniform(tuple(limit.shape), generator, dtype=torch.float64) * limit).long()
