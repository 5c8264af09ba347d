"""The packages of the extras, imported when something needs them."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from context_pred.errors import InvalidInputError

_PACKAGES = (
    "context-pred",
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "scikit-learn",
    "scikit-image",
    "scipy",
    "timm",
    "torchmetrics",
    "faster-coco-eval",
    "opencv-contrib-python-headless",
)


def need(module: str, what: str, extra: str = "eval") -> Any:
    """Import a module of the extra.

    Args:
        module: As ``matplotlib``.
        what: What needs it, to begin the error with.
        extra: The extra of this package that has it.

    Raises:
        InvalidInputError: it is not installed; the message names the extra.
    """
    try:
        return import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise InvalidInputError(
            f'{what} needs {name}, which is not installed: pip install "context-pred[{extra}]"'
        ) from error


def versions() -> dict[str, str]:
    """Return the versions of the packages that figures depend on, of those installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
