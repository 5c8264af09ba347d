"""Commands started as the ranks of one job, as torchrun starts them, on this machine and its CPU."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

CLI = ("-m", "context_pred.cli")


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    output: str
    errors: str


def free_port() -> str:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


def in_ranks(arguments: Sequence[object], count: int = 2, *, program: Sequence[str] = CLI) -> list[Ended]:
    """Run Python with a program and its arguments as so many ranks; 1: without a word of ranks."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if count > 1:
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(count)}
    started = [
        subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            env=environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {}),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(count)
    ]  # fmt: skip
    said = [process.communicate(timeout=600) for process in started]
    return [Ended(process.returncode, *words) for process, words in zip(started, said, strict=True)]
