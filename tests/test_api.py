"""The public API is what tests/api.txt lists: every name, signature, field, command and option."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from pathlib import Path

import public_api
import pytest

import context_pred

CURE = "If the change is meant, run `python tests/public_api.py --write` and say so in CHANGELOG.md (docs/api.md)."


def test_nothing_public_has_changed_unlisted() -> None:
    listed, now = public_api.LISTED.read_text(encoding="utf-8").splitlines(), public_api.text().splitlines()
    changed = [
        line for line in difflib.unified_diff(listed, now, "listed", "now", n=0, lineterm="") if line[:1] in "+-"
    ]
    assert not changed, "\n".join([*changed, CURE])


def test_what_is_listed_does_not_depend_on_the_machine() -> None:
    text = public_api.LISTED.read_text(encoding="utf-8")
    assert " at 0x" not in text
    assert str(Path(__file__).resolve().parent.parent) not in text


def test_a_new_argument_a_new_default_and_a_new_field_would_show() -> None:
    def before(image: str, *, size: int = 224) -> None: ...
    def argument(image: str, *, size: int = 224, pool: str = "gap") -> None: ...
    def default(image: str, *, size: int = 256) -> None: ...
    def order(image: str, size: int = 224) -> None: ...

    lines = [public_api.signature_of(function) for function in (before, argument, default, order)]
    assert lines[0] == "(image: str, *, size: int = 224) -> None"
    assert len(set(lines)) == len(lines)


@pytest.mark.parametrize("module", public_api.MODULES)
def test_every_module_lists_its_names_once_and_in_order(module: str) -> None:
    names = importlib.import_module(module).__all__
    assert len(set(names)) == len(names)
    assert all(hasattr(importlib.import_module(module), name) for name in names)


def test_every_package_that_says_what_it_gives_out_is_public_or_says_so_here() -> None:
    inner = {
        "context_pred/evaluate/detection/__init__.py",  # a protocol: what it gives out is for evaluate.run
        "context_pred/evaluate/segmentation/__init__.py",
    }
    root = Path(context_pred.__file__).parent
    for path in root.rglob("*.py"):
        name = path.relative_to(root.parent).as_posix()
        if re.search(r"^__all__ = ", path.read_text(encoding="utf-8"), re.MULTILINE) and name not in inner:
            module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            assert module in public_api.MODULES, f"{name} has __all__: add it to MODULES in tests/public_api.py"


def test_names_that_docs_and_readme_import_are_public() -> None:
    root = Path(__file__).resolve().parent.parent
    known = {name.path for name in public_api.public()} | set(public_api.MODULES)
    for page in [root / "README.md", *(root / "docs").rglob("*.md")]:
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            for module, names in re.findall(r"^from (context_pred[\w.]*) import ([\w, ]+)$", block, re.MULTILINE):
                for name in names.split(","):
                    assert f"{module}.{name.strip()}" in known, f"{page.name}: {module}.{name.strip()} is not public"


def test_errors_subclass_the_base_and_a_builtin() -> None:
    from context_pred import errors

    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, errors.ContextPredError)
        builtin = any(base.__module__ == "builtins" and base is not Exception for base in inspect.getmro(kind)[1:-3])
        assert builtin or name in ("ContextPredError", "StoppedError")
