"""``--set KEY=VALUE`` → the options of the data and of the protocol, checked."""

from __future__ import annotations

import dataclasses
import shlex
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from context_pred import tables
from context_pred.errors import InvalidInputError, unknown


def part(protocol: str, kind: type, given: Mapping[str, Any] | None, also: type | None = None) -> Any:
    """Make options, a frozen dataclass, of what was given.

    Args:
        protocol: The protocol's name, for errors.
        kind: What to make: a protocol's Settings, or the options of its data.
        given: {option: value}; a text is read as the command line gives it (TOML, a bare word; ``1,2`` where several
            values are asked for).
        also: Another kind whose options may be among those given; they are passed over.

    Raises:
        UnknownNameError: an option that neither has; the nearest are named.
        InvalidInputError: a value of the wrong type or out of its range.
    """
    hints = typing.get_type_hints(kind)
    others = _names(also) if also is not None else []
    values: dict[str, Any] = {}
    for name, value in (given or {}).items():
        if name in hints:
            values[name] = _read(value, hints[name], f"--set {name}")
        elif name not in others:
            raise unknown(f"option of {protocol}", name, [*_names(kind), *others])
    return tables.build(kind, values, f"{protocol} with --set")


def of_kind(kind: type, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return those of the options given that a kind has."""
    return {name: value for name, value in (given or {}).items() if name in _names(kind)}


def command_line(
    protocol: str, model: str, data: str, given: Mapping[str, Any] | None, *, variant: str | None = None,
    layers: Sequence[str] = (), seeds: Sequence[int] = (),
) -> str:  # fmt: skip
    """Return the command that makes the same run, but for its folder: what was given, and nothing else.

    Args:
        protocol: Its name.
        model: As it was given.
        data: The folder; its name alone is said.
        given: Options of ``--set``, as values or texts.
        variant: The row, where one was given.
        layers: Where some were given.
        seeds: Where others than 0 are run.
    """
    words = ["context-pred", "evaluate", protocol, "--model", model, "--data", Path(data).name or data]
    words += ["--variant", variant] if variant else []
    for name, value in (given or {}).items():
        words += ["--set", f"{name}={_as_text(value)}"]
    for layer in layers:
        words += ["--layer", layer]
    for seed in seeds if tuple(seeds) != (0,) else ():
        words += ["--seed", str(seed)]
    return shlex.join(words)


def _as_text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(_as_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _names(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _read(value: Any, hint: Any, where: str) -> Any:
    if not isinstance(value, str) or hint is str:
        return value
    if typing.get_origin(hint) is not tuple or value.strip().startswith("["):
        return tables.parse(value, where)
    try:
        return tables.parse(f"[{value}]", where)
    except InvalidInputError as error:
        raise InvalidInputError(f"{where}={value}: accepted are numbers with commas between them, as 1,2.") from error


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def bytes_of(size: str) -> int:
    """Read a size of memory, as "500MB", "2 GB" or "1.5GiB".

    Raises:
        InvalidInputError: no such size.
    """
    text = size.strip().upper()
    number = text.rstrip("BKMGI").strip()
    unit = text[len(number) :].strip()
    try:
        count = int(float(number) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError) as error:
        raise InvalidInputError(
            f"memory = {size!r}: accepted is a number with a unit, as 500MB, 2GB, 1.5GiB."
        ) from error
    if count < 1:
        raise InvalidInputError(f"memory = {size!r}: accepted is more than nothing.")
    return count
