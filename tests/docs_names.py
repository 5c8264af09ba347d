"""Checks of code that cannot run here: are its names, arguments and options those of the library?"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
import typing
from typing import Any

import click


class Names:
    """What the blocks of a page have imported and made so far; ``read`` says what is wrong in one more block.

    A variable is known by the return annotation of the call that made it.
    """

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}
        self.made: dict[str, type] = {}
        self.wrong: list[str] = []

    def read(self, code: str) -> list[str]:
        """Go through the code without running it; return what the library does not have."""
        self.wrong = []
        for statement in ast.parse(code).body:
            self._imports(statement)
            for node in ast.walk(statement):
                if isinstance(node, ast.Call):
                    self._call(node)
                elif isinstance(node, ast.Attribute):
                    self._thing(node)
            if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call):
                kind = self._returned(statement.value)
                for target in statement.targets:
                    if isinstance(target, ast.Name):
                        self.made.pop(target.id, None)
                        self.known.pop(target.id, None)
                        if kind is not None:
                            self.made[target.id] = kind
        return list(dict.fromkeys(self.wrong))

    def _imports(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.Import):
            for name in statement.names:
                if name.name.partition(".")[0] == "context_pred":
                    module = importlib.import_module(name.name)
                    top = importlib.import_module("context_pred")
                    self.known[name.asname or "context_pred"] = module if name.asname else top
        elif isinstance(statement, ast.ImportFrom) and (statement.module or "").partition(".")[0] == "context_pred":
            module = importlib.import_module(statement.module or "")
            for name in statement.names:
                try:
                    self.known[name.asname or name.name] = getattr(module, name.name)
                except AttributeError:
                    try:
                        self.known[name.asname or name.name] = importlib.import_module(
                            f"{statement.module}.{name.name}"
                        )
                    except ImportError:
                        self.wrong.append(f"{statement.module}.{name.name}")

    def _thing(self, node: ast.expr) -> Any:
        """Return what an expression of names and dots stands for: an object, a class for an instance of it, or None."""
        if isinstance(node, ast.Name):
            return self.known.get(node.id)
        if not isinstance(node, ast.Attribute):
            return None
        if isinstance(node.value, ast.Name) and node.value.id in self.made:
            owner: Any = self.made[node.value.id]
        else:
            owner = self._thing(node.value)
        if owner is None:
            return None
        found = getattr(owner, node.attr, None)
        fields = getattr(owner, "__annotations__", {})
        if found is None and node.attr not in fields and not _has_instance_attribute(owner, node.attr):
            self.wrong.append(ast.unparse(node))
        return found

    def _call(self, node: ast.Call) -> None:
        function = self._thing(node.func)
        if function is None or not callable(function):
            return
        method = isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name)
        instance = method and node.func.value.id in self.made and inspect.isfunction(function)  # type: ignore[union-attr]
        try:
            signature = inspect.signature(function)
            given = [None] * (len(node.args) + instance)
            signature.bind_partial(*given, **{word.arg: None for word in node.keywords if word.arg})
        except TypeError as error:
            self.wrong.append(f"{ast.unparse(node.func)}: {error}")
        except ValueError:
            return

    def _returned(self, node: ast.Call) -> type | None:
        function = self._thing(node.func)
        if inspect.isclass(function):
            return function
        try:
            back = typing.get_type_hints(function).get("return")
        except (TypeError, NameError, AttributeError):
            name = getattr(function, "__annotations__", {}).get("return")
            back = getattr(importlib.import_module("context_pred"), str(name), None) if name else None
        return back if inspect.isclass(back) and back.__module__.startswith("context_pred") else None


def _has_instance_attribute(owner: Any, name: str) -> bool:
    """Whether a class sets an attribute of that name on its instances."""
    set_there = re.compile(rf"\bself\.{re.escape(name)}\b")
    try:
        return inspect.isclass(owner) and any(set_there.search(inspect.getsource(base)) for base in owner.__mro__[:-1])
    except (OSError, TypeError):
        return True


def parse_command(line: str) -> None:
    """Read a ``context-pred …`` line as the command would, without running it.

    Raises:
        click.ClickException: no such command, or an option that it does not have.
    """
    from context_pred.cli import main

    command: click.Command = main
    words, path = shlex.split(line)[1:], "context-pred"
    while isinstance(command, click.Group):
        context = click.Context(command, info_name=path)
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        command, path = found, f"{path} {name}"
    command.make_context(path, words)
