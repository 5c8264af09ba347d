"""Many independent jobs side by side, in as many processes as the memory holds."""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

logger = logging.getLogger("context_pred")

_MEMINFO = Path("/proc/meminfo")
_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)
_SPARE = 0.9  # of what is free
PROCESS = 200 << 20
"""Bytes of a Python process that has imported this package and scikit-learn."""


def free_memory() -> int | None:
    """Bytes that can still be taken, by the machine and by this control group; None where the system does not tell."""
    found = []
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines() if ":" in line)
        found.append(int(lines["MemAvailable"].split()[0]) << 10)
    except (OSError, KeyError, ValueError):
        return None
    for limit, used in _CGROUPS:
        try:
            found.append(int(limit.read_text()) - int(used.read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return max(0, min(found))


def workers_that_fit(workers: int, each: int, shared: int, what: str, *, progress: bool) -> int:
    """Return how many workers the memory holds, at least one and at most ``workers``; say what they need.

    Args:
        workers: How many are wished for.
        each: Bytes one of them takes.
        shared: Bytes taken once.
        what: What is to be done, to begin the message with.
        progress: Say it beside the progress bar too, not in the log alone.
    """
    free = free_memory()
    held = workers if free is None else int((free * _SPARE - shared) // max(1, each))
    chosen = max(1, min(workers, held))
    need = f"{what}: {_shown(each)} a worker and {_shown(shared)} shared"
    have = "" if free is None else f", {_shown(free)} are free"
    if held < 1:
        logger.warning("%s%s: more than there is, tried with one worker.", need, have)
        return 1
    fewer = f" (fewer than the {workers} asked for, to fit)" if chosen < workers else ""
    message = f"{need}{have}: {chosen} worker{'s' if chosen > 1 else ''}{fewer}."
    logger.info(message)
    if progress:
        tqdm.write(message, file=sys.stderr)
    return chosen


def _shown(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def run_jobs(
    function: Callable[..., Any],
    jobs: Sequence[tuple[Any, ...]],
    workers: int,
    *,
    title: str,
    done: int,
    progress: bool,
    unit: str = " fits",
) -> Iterator[Any]:
    """Call a function of a module with every job's arguments, and yield what it returns as it comes, in any order.

    Large arrays go to the worker processes once, as memory-mapped files that they share. (Processes, not threads: the
    random numbers of liblinear in scikit-learn are one generator a process, so that threads would disturb one
    another's.) BLAS runs one thread a worker. Workers end with this process, also where it is killed.

    Args:
        function: A function that a worker can import.
        jobs: Their arguments, the longest job first.
        workers: Processes; 1: none but this one.
        title: Of the progress bar.
        done: Jobs that an earlier run did, for the bar.
        progress: Show a bar on stderr.
        unit: What a job is, on the bar.
    """
    from joblib import Parallel, delayed, parallel_config

    with tqdm(total=done + len(jobs), initial=done, desc=title, unit=unit, disable=not progress) as bar:
        if not jobs:
            return
        with parallel_config("loky", inner_max_num_threads=1):
            parallel = Parallel(n_jobs=min(workers, len(jobs)), return_as="generator_unordered", max_nbytes="1M")
        for found in parallel(delayed(_call)(os.getpid(), function, job) for job in jobs):
            yield found
            bar.update()


def _call(parent: int, function: Callable[..., Any], job: tuple[Any, ...]) -> Any:
    if os.getpid() != parent:
        _end_with(parent)
    return function(*job)


@functools.cache
def _end_with(parent: int) -> None:
    """Watch the parent in a thread: a worker that waits for work would not notice its death."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
