"""The library's exceptions. Each subclasses a builtin too, so that existing ``except`` clauses keep working."""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterable, Iterator

__all__ = [
    "ContextPredError",
    "DigestError",
    "DownloadError",
    "ImageError",
    "InvalidInputError",
    "NotCachedError",
    "StoppedError",
    "StorageError",
    "TrainingDivergedError",
    "UnknownNameError",
    "UploadError",
    "WeightsError",
]


class ContextPredError(Exception):
    """Any mistake or mishap the library reports; the command prints it as one line and exits with 2."""


class InvalidInputError(ContextPredError, ValueError):
    """An argument of the wrong shape, size, range, dtype or kind."""


class UnknownNameError(InvalidInputError):
    """A model, layer, backbone, preset or option that does not exist.

    Examples:
        >>> import context_pred
        >>> try:
        ...     context_pred.model_info("resnet50_8xb64-stepr-70e")
        ... except ValueError as error:
        ...     print(type(error).__name__)
        UnknownNameError
    """


class ImageError(ContextPredError, ValueError):
    """A file that is damaged or no image."""


class WeightsError(ContextPredError, RuntimeError):
    """Weights that do not fit: missing, extra or mis-shaped keys, or not a weights file at all."""


class DigestError(WeightsError):
    """Bytes that do not have the digest they were promised to have."""


class DownloadError(ContextPredError, ConnectionError):
    """A server that did not give the file."""


class UploadError(ContextPredError, ConnectionError):
    """A server that did not take the files."""


class NotCachedError(ContextPredError, FileNotFoundError):
    """A file that is neither there nor allowed to be downloaded."""


class StorageError(ContextPredError, OSError):
    """A folder that cannot be written to, or a full disk."""


class StoppedError(ContextPredError):
    """Work that was asked to stop (SIGTERM, Ctrl-C) and has saved what it had; the same command goes on."""


class TrainingDivergedError(ContextPredError, RuntimeError):
    """A training run whose loss is no number any more, or far worse than guessing."""


def did_you_mean(given: str, accepted: Iterable[str]) -> str:
    """Return " Did you mean …?" with up to three names near the given one, or nothing where none is.

    Names that begin with what was given (three letters or more of it) come first, however long they are.
    """
    given, names = str(given), list(accepted)
    begun = [name for name in names if len(given) >= 3 and name.lower().startswith(given.lower())]
    near = list(dict.fromkeys([*begun, *difflib.get_close_matches(given, names, n=3, cutoff=0.5)]))[:3]
    return f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""


def unknown(kind: str, given: str, accepted: Iterable[str]) -> UnknownNameError:
    """Make the error for a name that does not exist: what was given, the nearest names, and all that are accepted.

    Args:
        kind: What the name stands for, in the singular ("model", "layer").
        given: The name given.
        accepted: Every name that would have been accepted.
    """
    names = [str(name) for name in accepted]
    hint = did_you_mean(given, names)
    return UnknownNameError(f"Unknown {kind} {given!r}.{hint} Accepted: {', '.join(names) or 'none'}.")


def check_whole_number(name: str, value: object, least: int = 1, most: int | None = None) -> None:
    """Raise InvalidInputError unless an argument is a whole number from ``least`` up, and not above ``most``."""
    accepted = f"from {least} up" if most is None else f"in {least:,} … {most:,}"
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        raise InvalidInputError(f"{name}={value!r}; accepted: a whole number {accepted}.")


def check_options(given: Iterable[str], accepted: Iterable[str]) -> None:
    """Raise UnknownNameError, with the nearest ones, where an option does not exist."""
    accepted = sorted(accepted)
    for name in given:
        if name not in accepted:
            raise unknown("option", name, accepted)


@contextlib.contextmanager
def storing(what: str | os.PathLike[str], kept: str = "") -> Iterator[None]:
    """Turn what the operating system says about a full or read-only disk into a StorageError that names the file."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{what} cannot be written: {error.strerror or error}.{kept}") from error
