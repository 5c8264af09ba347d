"""What of a run depends on the machine: devices, processes, instructions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from context_pred.ranks import cores


def own_device(device: torch.device) -> torch.device:
    """Give each rank of a machine a GPU of its own, and make it the one that NCCL uses."""
    if device.type != "cuda":
        return device
    if str(device) == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def usual_workers(device: torch.device) -> int:
    """Return how many decoding processes a rank gets: one beside a CPU of several cores, up to 12 beside a GPU."""
    count = cores()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.type == "cpu":
        return min(1, count // local - 1) if count // local > 1 else 0
    return max(1, min(12, count // local - 1))


def lacks_bfloat16() -> bool:
    """Tell whether this CPU is known to lack instructions for bfloat16; older versions of torch do not say."""
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return found.get("architecture") == "x86_64" and not (found.get("avx512_bf16") or found.get("amx_bf16"))


@contextmanager
def fast_convolutions() -> Iterator[None]:
    """Let cuDNN try which of its ways is the fastest for the run's shapes, and leave its switch as it was."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
