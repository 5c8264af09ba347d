"""For the reference: what Python itself calls is left out of the pages."""

from __future__ import annotations

from typing import Any

from griffe import Extension, Function

_OWN = {"__post_init__", "__str__", "__repr__", "__eq__", "__hash__", "__getattr__", "__dir__"}


class HideSpecial(Extension):
    """Hide special methods that no reader calls: without a docstring a name has no entry."""

    def on_function_instance(self, *, func: Function, **kwargs: Any) -> None:
        """Mark one function."""
        if func.name in _OWN:
            func.docstring = None
