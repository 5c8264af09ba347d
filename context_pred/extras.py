"""The packages of the extras, imported when something needs them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
        with _without_telemetry():
            return import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise InvalidInputError(
            f'{what} needs {name}, which is not installed: pip install "context-pred[{extra}]"'
        ) from error


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Let ONNX Runtime and OpenVINO be imported without reporting their use to their makers.

    ONNX Runtime heeds a variable, which counts only when it is first imported; one that is set already stands.
    OpenVINO reports through a package of its own, and uses a stand-in that reports nothing where that is missing; so
    it finds none.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    name = "openvino_telemetry"
    if name in sys.modules or "openvino" in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # the documented way to say that a module cannot be imported
    try:
        yield
    finally:
        del sys.modules[name]


def versions() -> dict[str, str]:
    """Return the versions of the packages that figures depend on, of those installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
