"""What is public: the names in the `__all__` of the modules below, what their classes hold, and every command.

    python tests/public_api.py           prints tests/api.txt anew
    python tests/public_api.py --write   writes it

A line is a name with its signature, so that a change of either shows in a diff.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LISTED = Path(__file__).with_name("api.txt")

MODULES = (
    "context_pred",
    "context_pred.app",
    "context_pred.backbones",
    "context_pred.card",
    "context_pred.data",
    "context_pred.discover",
    "context_pred.discover.grid",
    "context_pred.discover.index",
    "context_pred.discover.neighbors",
    "context_pred.discover.objects",
    "context_pred.discover.patches",
    "context_pred.discover.pictures",
    "context_pred.discover.pictures.features",
    "context_pred.discover.pictures.map",
    "context_pred.discover.pictures.pretext",
    "context_pred.discover.pictures.similarity",
    "context_pred.engines",
    "context_pred.errors",
    "context_pred.evaluate",
    "context_pred.export",
    "context_pred.extract",
    "context_pred.finetuning",
    "context_pred.integrations.datasets",
    "context_pred.integrations.lightning",
    "context_pred.integrations.sklearn",
    "context_pred.integrations.timm",
    "context_pred.integrations.torchvision",
    "context_pred.integrations.transformers",
    "context_pred.patches",
    "context_pred.patches.shortcuts",
    "context_pred.pretext",
    "context_pred.pretrain",
    "context_pred.pretrain.audit",
    "context_pred.zoo",
    "context_pred.zoo.convert",
    "context_pred.zoo.pin",
    "context_pred.zoo.publish",
)


@dataclass(frozen=True)
class Name:
    """A public name.

    Attributes:
        path: As it is imported: "context_pred.extract.run", "context_pred.Card.replace".
        what: The object; of a field or a property of a class, the class' attribute.
        kind: "function", "class", "method", "property", "field", "constant" or "module".
        signature: What a change of the promise would change.
    """

    path: str
    what: Any
    kind: str
    signature: str

    def __str__(self) -> str:
        return f"{self.path}{self.signature}"


def _default(value: object) -> str:
    if isinstance(value, types.FunctionType):
        return value.__name__
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _kind(annotation: object) -> str:
    if isinstance(annotation, typing.ForwardRef):
        return annotation.__forward_arg__
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def signature_of(function: Any, bound: bool = False) -> str:
    """Return the signature with annotations as they are written, so that it is the same on every Python."""
    signature = inspect.signature(function)
    parts, star, positional = [], False, False
    parameters = list(signature.parameters.values())[1 if bound else 0 :]
    for p in parameters:
        if positional and p.kind is not p.POSITIONAL_ONLY:
            parts.append("/")
        positional = p.kind is p.POSITIONAL_ONLY
        if p.kind is p.KEYWORD_ONLY and not star:
            parts.append("*")
        star = star or p.kind in (p.KEYWORD_ONLY, p.VAR_POSITIONAL)
        name = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "") + p.name
        kind = "" if p.annotation is p.empty else f": {_kind(p.annotation)}"
        parts.append(f"{name}{kind}" + ("" if p.default is p.empty else f" = {_default(p.default)}"))
    back = signature.return_annotation
    arrow = "" if back is signature.empty else f" -> {_kind(back)}"
    return f"({', '.join(parts)}){arrow}"


def _ours(thing: object) -> bool:
    return str(getattr(thing, "__module__", "")).startswith("context_pred")


def _members(path: str, cls: type) -> Iterator[Name]:
    """Fields first, then methods and properties that the library wrote, its own base classes' included."""
    if dataclasses.is_dataclass(cls):
        for field in dataclasses.fields(cls):
            if not field.name.startswith("_"):
                made = field.default_factory is not dataclasses.MISSING
                value = "a new one" if made else _default(field.default)
                preset = "" if not made and field.default is dataclasses.MISSING else f" = {value}"
                yield Name(f"{path}.{field.name}", field, "field", f": {_kind(field.type)}{preset}")
    for field in getattr(cls, "_fields", ()):  # a named tuple's
        yield Name(f"{path}.{field}", getattr(cls, field), "field", f": {_kind(cls.__annotations__[field])}")
    seen: dict[str, Any] = {}
    for base in reversed([base for base in cls.__mro__ if _ours(base)]):
        seen.update({name: value for name, value in vars(base).items() if not name.startswith("_")})
    for name, value in sorted(seen.items()):
        plain = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        if isinstance(value, property):
            back = inspect.signature(value.fget).return_annotation if value.fget else ""
            yield Name(f"{path}.{name}", value, "property", f": {back} (property)")
        elif isinstance(value, functools.cached_property):
            back = inspect.signature(value.func).return_annotation
            yield Name(f"{path}.{name}", value, "property", f": {back} (property)")
        elif inspect.isfunction(plain):
            bound = not isinstance(value, staticmethod)
            how = "" if plain is value else f" ({type(value).__name__})"
            yield Name(f"{path}.{name}", plain, "method", signature_of(plain, bound=bound) + how)


def _class(path: str, cls: type) -> Iterator[Name]:
    bases = ", ".join(base.__name__ for base in cls.__bases__ if base is not object and base.__name__ != "Protocol")
    made = f" class of {bases}" if bases else " class"
    if dataclasses.is_dataclass(cls):
        made += " (frozen dataclass)" if cls.__dataclass_params__.frozen else " (dataclass)"  # type: ignore[attr-defined]
    elif not issubclass(cls, (BaseException, tuple)) and _ours(cls.__init__):
        made += f": {signature_of(cls.__init__, bound=True).removesuffix(' -> None')}"
    yield Name(path, cls, "class", made)
    yield from _members(path, cls)


def names_of(module: str) -> Iterator[Name]:
    """Import a module and go through its `__all__`."""
    here = importlib.import_module(module)
    for name in sorted(here.__all__):
        value, path = getattr(here, name), f"{module}.{name}"
        if inspect.ismodule(value):
            yield Name(path, value, "module", " module")
        elif inspect.isclass(value):
            yield from _class(path, value)
        elif inspect.isroutine(value) or inspect.isfunction(value):
            yield Name(path, value, "function", signature_of(value))
        else:
            shown = sorted(value) if isinstance(value, (dict, set, frozenset)) else value
            yield Name(path, value, "constant", f" = {re.sub(r' at 0x[0-9a-f]+', '', repr(shown))}")


def commands() -> Iterator[str]:
    """Every command with its arguments and options."""
    import click

    from context_pred.cli import main

    def below(command: click.Command, path: str) -> Iterator[str]:
        for parameter in command.params:
            kind = getattr(parameter.type, "choices", None)
            shown = "|".join(str(choice) for choice in kind) if kind else parameter.type.name
            many = " (repeatable)" if getattr(parameter, "multiple", False) or parameter.nargs == -1 else ""
            must = " (required)" if parameter.required else ""
            if isinstance(parameter, click.Option):
                spelled = " / ".join([*parameter.opts, *parameter.secondary_opts])
                value = "" if parameter.is_flag else f" {shown}"
            else:
                spelled, value = str(parameter.make_metavar(click.Context(command))), f" {shown}"
            preset = parameter.default
            unset = callable(preset) or preset in (None, (), False) or "Sentinel" in type(preset).__name__ or must
            yield f"{path} {spelled}{value}{'' if unset else f' = {preset}'}{must}{many}"
        if isinstance(command, click.Group):
            for name, sub in sorted(command.commands.items()):
                yield f"{path} {name}"
                yield from below(sub, f"{path} {name}")

    yield from below(main, "context-pred")


def _fields(where: str, kind: type) -> Iterator[str]:
    for field in dataclasses.fields(kind):
        made = field.default_factory is not dataclasses.MISSING
        must = not made and field.default is dataclasses.MISSING
        value = "" if must else " = a new one" if made else f" = {_default(field.default)}"
        yield f"{where} {field.name}: {_kind(field.type)}{value}"


def options() -> Iterator[str]:
    """What `--set` takes: the keys of recipes, and the settings of protocols and of their data."""
    from context_pred.evaluate import PROTOCOLS, labelled
    from context_pred.pretrain import Recipe

    for name, kind in typing.get_type_hints(Recipe).items():
        if dataclasses.is_dataclass(kind):
            yield from _fields(f"recipe [{name}]", kind)
    yield from _fields("evaluate --set", labelled.DataOptions)
    for name, home in PROTOCOLS.items():
        module = importlib.import_module(f"context_pred.evaluate.{home}")
        if hasattr(module, "DataOptions") and module.DataOptions is not labelled.DataOptions:
            yield from _fields(f"evaluate {name} --set", module.DataOptions)
        rows = [f" --variant {row}" for row in module.VARIANTS] if hasattr(module, "settings_of") else [""]
        for row in rows:
            kind = module.settings_of(row.split()[-1]) if row else module.Settings
            yield from _fields(f"evaluate {name}{row} --set", kind)


@functools.cache
def public() -> tuple[Name, ...]:
    """Every public name; what an earlier module gave out already is said to be that."""
    found: list[Name] = []
    first: dict[int, str] = {}
    for module in MODULES:
        for name in names_of(module):
            known = first.get(id(name.what)) if name.kind in ("class", "function") else None
            if known is not None:
                found.append(Name(name.path, name.what, "alias", f" is {known}"))
            elif not any(name.path.startswith(f"{alias.path}.") for alias in found if alias.kind == "alias"):
                found.append(name)
                if name.kind in ("class", "function"):
                    first[id(name.what)] = name.path
    return tuple(found)


def text() -> str:
    """Return what api.txt has to be."""
    head = "# The public API. Made by `python tests/public_api.py --write`; docs/api.md says what may change when.\n"
    return head + "".join(f"{line}\n" for line in [*map(str, public()), "", *commands(), "", *options()])


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        LISTED.write_text(text(), encoding="utf-8")
    else:
        sys.stdout.write(text())
