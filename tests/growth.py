"""How much a call makes the process grow, for tests of memory bounds. Linux only."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

STATUS = Path("/proc/self/status")


def resident() -> int:
    """Resident memory of this process, MB."""
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith("VmRSS")) // 1000


def growth(call: Callable[[], object]) -> int:
    """Run the call; return by how many MB the resident memory grew at most, looked at each millisecond."""
    before, most, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, resident())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return most - before
