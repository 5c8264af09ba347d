"""Checkpoints of a run: written whole or not at all, the last few and the best kept."""

from __future__ import annotations

import io
import logging
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from context_pred.errors import StorageError, WeightsError
from context_pred.weights_file import write_bytes

logger = logging.getLogger("context_pred")

FORMAT = 1
"""Of a checkpoint's entries; another number is refused by name instead of failing somewhere."""


class Checkpoints:
    """The folder ``RUN/checkpoints``: ``step-00000500.pt`` … and ``best.pt``.

    Args:
        folder: Made at the first save.
        keep: How many of the numbered ones stay; the oldest go once a newer one is whole on the disk.
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self.folder, self.keep = folder, max(1, keep)
        self.best = folder / "best.pt"

    def numbered(self) -> list[Path]:
        """Return the numbered checkpoints, oldest first."""
        found = [path for path in self.folder.glob("step-*.pt") if re.fullmatch(r"step-\d+\.pt", path.name)]
        return sorted(found, key=lambda path: int(path.stem[5:]))

    def save(self, step: int, state: Mapping[str, Any], *, best: bool = False) -> Path:
        """Write what was reached after ``step`` steps; with ``best`` also as ``best.pt``.

        ``best.pt`` comes first: a numbered checkpoint counts the best accuracy as reached, so it must never stand
        without it. Killed between the two, the run goes on from the checkpoint before and comes by it again.

        Raises:
            StorageError: the disk is full or refuses; every earlier checkpoint stands, and the message names the last.
        """
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, "step": step, **state}, buffer)
        data = buffer.getvalue()
        path = self.folder / f"step-{step:08d}.pt"
        try:
            for file in [self.best, path] if best else [path]:
                write_bytes(data, file)
        except StorageError as error:
            last = self.numbered()
            stands = f"The last whole checkpoint stands: {last[-1]}." if last else "There is no earlier checkpoint."
            cure = "goes on from there" if last else "begins at the start"
            raise StorageError(f"{error} {stands} The same command with --resume {cure}.") from error
        for old in self.numbered()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def best_accuracy(self) -> float:
        """Return the accuracy of ``best.pt``; 0 where there is none that can be read."""
        try:
            return float(read_checkpoint(self.best).get("best", 0.0)) if self.best.is_file() else 0.0
        except WeightsError:
            return 0.0

    def latest(self, check: Callable[[dict[str, Any]], None]) -> dict[str, Any] | None:
        """Read the newest checkpoint that can be read; None where there is none.

        A file that a failing disk has damaged is passed over, with a warning, for the one before it.

        Args:
            check: Called with what was read; raises where it belongs to another run.

        Raises:
            WeightsError: there are checkpoints, and none of them can be read.
        """
        paths = self.numbered()
        for path in reversed(paths):
            try:
                state = read_checkpoint(path)
            except WeightsError as error:
                logger.warning("%s%s", error, "" if path == paths[0] else " Going back to the one before it.")
                continue
            check(state)
            return state
        if paths:
            none = f"None of the {len(paths)} checkpoints in {self.folder} can be read"
            if len(paths) == 1:
                none = f"The only checkpoint in {self.folder} cannot be read"
            best = f", or another run with --init {self.best}" if self.best.is_file() else ""
            raise WeightsError(f"{none}; start again with --overwrite{best}.")
        return None

    def clean(self) -> None:
        """Remove what a killed process left half-written."""
        for path in self.folder.glob(".*.pt.*"):
            path.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint onto the CPU, executing none of its code.

    Raises:
        WeightsError: the file is damaged, or no checkpoint of this library.
    """
    try:
        if not path.stat().st_size:
            raise WeightsError(f"{path} is empty.")
        _check_sums(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # the bytes are a failing disk's, and so are the mistakes
        what = " ".join(str(error).split())[:200] or type(error).__name__
        raise WeightsError(f"{path} is damaged: {what.rstrip('.')}.") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise WeightsError(f"{os.fspath(path)} is no checkpoint of this version of the library (format {FORMAT}).")
    return state


def _check_sums(path: Path) -> None:
    """Compare every record of torch's zip with its check sum, which ``torch.load`` does not.

    A sum of 0 is none: torch can be told to leave them out (``torch.serialization.set_crc32_options``).
    """
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.CRC:
                with archive.open(info) as record:
                    while record.read(1 << 20):
                        pass
