"""Tables of a TOML file to frozen dataclasses and back, with errors that name the option."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from context_pred.errors import ContextPredError, InvalidInputError, unknown

T = TypeVar("T")

_ACCEPTED = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
_KINDS = {
    bool: "a truth value",
    int: "a whole number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "a table",
}


def build(kind: type[T], table: Any, where: str, elsewhere: Mapping[str, str] | None = None) -> T:
    """Make a dataclass of a table's options.

    Args:
        kind: The dataclass.
        table: What the file has under the table's name.
        where: The file and the table, for errors: "recipe.toml, [batch]".
        elsewhere: The options of the other tables and the table each belongs to, for the hint.

    Raises:
        UnknownNameError: an option that does not exist.
        InvalidInputError: an option missing, of the wrong type, or refused by the dataclass.
    """
    if not isinstance(table, dict):
        raise InvalidInputError(f"{where} is {shown(table)}; accepted is a table of options.")
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    for name in table:
        if name not in fields:
            home = (elsewhere or {}).get(name)
            error = unknown("option", name, fields)
            raise type(error)(f"{where}: {error}" + (f" There is one of that name in [{home}]." if home else ""))
    needed = (
        f for f in fields.values() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    )
    missing = [f.name for f in needed if f.name not in table]
    if missing:
        raise InvalidInputError(f"{where} lacks {', '.join(missing)}, which has no default.")
    values = {name: value_of(hints[name], value, f"{where} {name}") for name, value in table.items()}
    try:
        return kind(**values)
    except ContextPredError as error:
        raise type(error)(f"{where}: {error}") from error


def value_of(kind: Any, value: Any, where: str) -> Any:
    """Check a value against a field's type, strictly: no truth value for a number, no number for a string.

    A whole number is taken where a number is asked for; lists become tuples.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return value_of(next(a for a in arguments if a is not types.NoneType), value, where)
    if origin is Literal:
        if isinstance(value, str):
            if value in arguments:
                return value
            error = unknown("choice", value, arguments)
            raise type(error)(f"{where}: {error}")
        raise InvalidInputError(f"{where} is {shown(value)}; accepted: {', '.join(map(repr, arguments))}.")
    if origin is tuple and isinstance(value, (list, tuple)):
        items = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(items) != len(value):
            raise InvalidInputError(f"{where} is {shown(value)}; accepted are {len(items)} values.")
        return tuple(value_of(item, one, where) for item, one in zip(items, value, strict=True))
    if origin is dict and isinstance(value, dict):
        return value
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind is not float and type(value) is kind:
        return value
    accepted = _ACCEPTED.get(kind) or ("a list" if origin is tuple else "a table")
    raise InvalidInputError(f"{where} is {shown(value)}; accepted is {accepted}.")


def shown(value: Any) -> str:
    """Show a value as TOML writes it, with what kind it is."""
    return f"{literal(value)} ({_KINDS.get(type(value), type(value).__name__)})"


def literal(value: Any) -> str:
    """Write a value as TOML does."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(literal(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {literal(item)}' for key, item in value.items())}}}"
    return str(value)


def write(name: str, comment: str, options: Mapping[str, Any], unset: Mapping[str, str]) -> str:
    """Write a table: every option on a line of its own; one that is not set is a comment that says what holds."""
    lines = [f"# {comment}", f"[{name}]"]
    for key, value in options.items():
        lines.append(f"# {key} is not set: {unset.get(key, 'none')}" if value is None else f"{key} = {literal(value)}")
    return "\n".join(lines) + "\n"


def parse(text: str, where: str) -> Any:
    """Read one value as the command line gives it: TOML, a bare word, .1 for 0.1; an empty text is None (not set)."""
    text = text.strip()
    if not text:
        return None
    # TOML asks for a digit before the point.
    number = text if set(text) & set("\"'") else re.sub(r"(?<![\w.])\.(?=\d)", "0.", text)
    try:
        read = tomllib.loads(f"value = {number}")
    except tomllib.TOMLDecodeError as error:
        if re.fullmatch(r"[\w./:+ -]+", text):
            return text
        raise InvalidInputError(f"{where} is {text!r}, which is no TOML value: {error}") from error
    if list(read) != ["value"]:
        raise InvalidInputError(f"{where} is {text!r}; accepted is one TOML value.")
    return read["value"]
