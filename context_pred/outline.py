"""Building a network only to fill it: without memory, and without drawing numbers that are overwritten at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _NoInitialisation(TorchFunctionMode):
    """Leaves out every in-place function: while a network is built on the meta device, these only initialise it.

    On that device each of them is a slow piece of Python for nothing: half of a thousand for a ResNet-50, a third of
    the time that loading it takes.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function, or return its tensor as it is."""
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__") and name != "requires_grad_":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def outline() -> Iterator[None]:
    """Within it, networks are built on the meta device: shapes and dtypes, no values."""
    with torch.device("meta"), _NoInitialisation():
        yield
