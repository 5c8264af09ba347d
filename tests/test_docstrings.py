"""Every public name says what it is: arguments, results, errors; and the examples in docstrings run."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import public_api
import pytest

from context_pred import errors

_SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Example|Examples):$", re.MULTILINE)


def sections(doc: str) -> dict[str, str]:
    """Split a docstring: "" is what comes first, the rest goes by its heading."""
    parts = _SECTION.split(doc)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def described(section: str) -> dict[str, str]:
    """Return {name: what is said of it} of a section of arguments; ``a, b: …`` describes both."""
    found: dict[str, str] = {}
    for entry in re.split(r"^ {4}(?=\S)", section, flags=re.MULTILINE):
        names, colon, words = entry.partition(":")
        if colon:
            for name in re.split(r"[,\s]+", names.strip()):
                found[name.strip("*`")] = words.strip()
    return found


def _names() -> list[public_api.Name]:
    return [name for name in public_api.public() if name.kind in ("function", "method", "class", "property", "module")]


def _parameters(what: Any, method: bool) -> list[str]:
    parameters = list(inspect.signature(what).parameters.values())
    return [p.name for p in parameters[1 if method else 0 :] if not p.name.startswith("_")]


def _raised(function: Any) -> set[str]:
    """Return the library's errors that a function raises itself."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError):
        return set()
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None:
            call = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            name = {"unknown": "UnknownNameError"}.get(
                ast.unparse(call).split(".")[-1], ast.unparse(call).split(".")[-1]
            )
            if name in errors.__all__:
                found.add(name)
    return found


def lacking(name: public_api.Name) -> Iterator[str]:
    """Go through what a docstring has to say and does not."""
    doc = inspect.getdoc(name.what) or ""
    if not doc.strip():
        yield "a docstring"
        return
    first = doc.splitlines()[0]
    if not first.rstrip().endswith((".", ":", "?", "…")) and "\n" not in doc:
        yield "a sentence"
    parts = sections(doc)
    said = {**described(parts.get("Args", "")), **described(parts.get("Attributes", ""))}
    if name.kind == "class":
        wanted = []
        if dataclasses.is_dataclass(name.what):
            wanted = [field.name for field in dataclasses.fields(name.what) if not field.name.startswith("_")]
        elif not issubclass(name.what, (BaseException, tuple)) and public_api._ours(name.what.__init__):
            wanted = _parameters(name.what.__init__, method=True)
        said |= described(parts.get("Args", "")) | described(
            sections(inspect.getdoc(name.what.__init__) or "").get("Args", "")
        )
        functions = [vars(name.what).get(own) for own in ("__init__", "__post_init__")]
    elif name.kind in ("function", "method"):
        wanted = _parameters(name.what, method=name.kind == "method" and "(staticmethod)" not in name.signature)
        functions = [name.what]
        back = inspect.signature(name.what).return_annotation
        mute = back in (None, "None", "Self", inspect.Signature.empty)
        told = (
            "Returns" in parts
            or "Yields" in parts
            or re.match(r"(Return|Make|Compute|Open|Read|Load|List|Give|Yield|Build|Predict)", doc)
        )
        if not mute and not told:
            yield "Returns"
    else:
        wanted, functions = [], []
    for argument in wanted:
        if argument not in said or not said[argument]:
            yield f"{argument} (Args)"
    raised = set().union(*(_raised(function) for function in functions if function is not None))
    told_of = {getattr(errors, word, None) for word in re.findall(r"\w+Error", parts.get("Raises", ""))} - {None}
    for error in sorted(raised):
        if not any(issubclass(getattr(errors, error), kind) for kind in told_of):
            yield f"{error} (Raises)"


def test_every_public_name_says_what_it_is() -> None:
    found = [f"{name.path} lacks {', '.join(what)}" for name in _names() if (what := list(lacking(name)))]
    assert not found, "\n".join(found)


def test_every_module_says_what_it_is() -> None:
    for module in public_api.MODULES:
        assert (importlib.import_module(module).__doc__ or "").strip(), module


@pytest.mark.parametrize(
    ("doc", "lacks"),
    [
        ("", ["a docstring"]),
        ("Return it.\n\nArgs:\n    image: (N, C).\n\nRaises:\n    ImageError: damaged.", ["size (Args)"]),
        ("Return it.\n\nArgs:\n    image, size: In px.", ["ImageError (Raises)"]),
        ("Do it.\n\nArgs:\n    image, size: In px.\n\nRaises:\n    ContextPredError: always.", ["Returns"]),
        ("Do it.\n\nArgs:\n    image, size: In px.\n\nReturns:\n    It.\n\nRaises:\n    ImageError: always.", []),
    ],
)
def test_what_is_lacking_is_found(doc: str, lacks: list[str]) -> None:
    def example(image: str, size: int) -> int:
        raise errors.ImageError(image, size)

    example.__doc__ = doc
    assert list(lacking(public_api.Name("example", example, "function", ""))) == lacks


def _with_examples() -> list[str]:
    import context_pred

    root = Path(context_pred.__file__).parent
    found = [
        path for path in root.rglob("*.py") if re.search(r"^ +>>> ", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    return [path.relative_to(root.parent).with_suffix("").as_posix().replace("/", ".") for path in sorted(found)]


@pytest.mark.parametrize("module", [name.removesuffix(".__init__") for name in _with_examples()])
def test_the_examples_in_docstrings_run(module: str) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    done = doctest.testmod(importlib.import_module(module), optionflags=flags)
    assert done.attempted > 0
    assert done.failed == 0


def test_the_main_names_have_examples() -> None:
    examples = {"errors", "patches.grid", "patches.pairs", "zoo.registry", "pretext", "backbones", "card", "zoo.load"}
    assert {f"context_pred.{name}" for name in examples} <= set(_with_examples())
