"""A run's folder: whose it is, and what may be removed from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from context_pred.errors import InvalidInputError, storing

from .report import FILES

COMMAND = "command.json"


def claim(out: Path, command: dict[str, Any], overwrite: bool) -> None:
    """Make the folder this command's, or find that it is already: the same command goes on in it.

    Raises:
        InvalidInputError: another command's folder, or one with other files in it, without ``overwrite``.
        StorageError: it cannot be written to.
    """
    if out.is_file():
        raise InvalidInputError(f"out={str(out)!r} is a file; accepted: a folder, which is made where there is none.")
    before = _read(out / COMMAND)
    if before != command or overwrite:
        if before is None and not overwrite and out.is_dir() and any(out.iterdir()):
            raise InvalidInputError(
                f"{out} holds files, and no evaluation. Choose another out, or give overwrite=True (--overwrite)."
            )
        if before is not None and not overwrite:
            raise InvalidInputError(
                f"{out} holds another evaluation: {_differences(before, command)}. Choose another out, or give "
                "overwrite=True (--overwrite)."
            )
        with storing(out):
            _clear(out)
            out.mkdir(parents=True, exist_ok=True)
            (out / COMMAND).write_text(json.dumps(command, indent=1) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    names = [name for name in now if before.get(name) != now[name]]
    return "; ".join(f"{name} was {before.get(name)!r} and is {now[name]!r}" for name in names)


def _clear(out: Path) -> None:
    """Remove what evaluations write, and nothing else."""
    for path in (*(out / name for name in FILES), out / COMMAND):
        path.unlink(missing_ok=True)
    for path in (out / "features", *out.glob("seed-*")):
        if path.is_dir():
            shutil.rmtree(path)
