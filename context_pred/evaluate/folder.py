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

    Another command's folder that came to nothing (bad input, say) is taken over: no protocol has kept anything in it.

    Raises:
        InvalidInputError: another command's folder, or one with other files in it, without ``overwrite``.
        StorageError: it cannot be written to.
    """
    if out.is_file():
        raise InvalidInputError(f"out={str(out)!r} is a file; accepted: a folder, which is made where there is none.")
    before = _read(out / COMMAND)
    cures = "Choose another out, or give overwrite=True (--overwrite)."
    if before is None and not overwrite and out.is_dir() and any(out.iterdir()):
        raise InvalidInputError(f"{out} holds files, and no evaluation. {cures}")
    if before is not None and before != command and not overwrite and _has_results(out):
        raise InvalidInputError(f"{out} holds another evaluation: {_differences(before, command)}. {cures}")
    if before == command and not overwrite:
        return
    with storing(out):
        if before is not None:
            _clear(out, features=overwrite)
        out.mkdir(parents=True, exist_ok=True)
        (out / COMMAND).write_text(json.dumps(command, indent=1) + "\n", encoding="utf-8")


def _has_results(out: Path) -> bool:
    return (out / FILES[0]).exists() or any(any(path.iterdir()) for path in out.glob("seed-*") if path.is_dir())


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    texts = []
    for name, value in now.items():
        old = before.get(name)
        if isinstance(value, dict) and isinstance(old, dict):
            texts.append(_differences(old, value))
        elif old != value:
            texts.append(f"{name} was {old!r} and is {value!r}")
    return "; ".join(text for text in texts if text)


def _clear(out: Path, features: bool) -> None:
    """Remove what an evaluation wrote, and nothing else; features are kept under what they were made of."""
    for path in (*(out / name for name in FILES), out / COMMAND):
        path.unlink(missing_ok=True)
    for path in (*([out / "features"] if features else []), *out.glob("seed-*")):
        if path.is_dir():
            shutil.rmtree(path)
