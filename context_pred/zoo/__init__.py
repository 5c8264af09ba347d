"""Names → weights on disk, verified: cards, sources (cache, Hub, URL, path), loading and conversion.

Names and cards import nothing heavy; what needs torch imports it when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .registry import list_models, model_info

if TYPE_CHECKING:
    from . import convert, document, pin, publish
    from .check import verify
    from .load import load_pretrained
    from .sources import pull

__all__ = ["convert", "document", "list_models", "load_pretrained", "model_info", "pin", "publish", "pull", "verify"]

_HOME = {"load_pretrained": "load", "pull": "sources", "verify": "check"}


def __getattr__(name: str) -> Any:
    """Import the module behind a public name the first time the name is used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f"{__name__}.{_HOME.get(name, name)}")
    value = getattr(home, name) if name in _HOME else home
    globals()[name] = value
    return value
