"""The Hub's files, by huggingface-hub itself; here its exceptions become the library's, with the names they lack."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from context_pred.errors import DownloadError, InvalidInputError, NotCachedError

from .download import UnreachableError, storage
from .registry import HUB_PREFIX

_STORAGE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR})


@dataclass(frozen=True)
class Options:
    """How files may be fetched; the names are huggingface-hub's."""

    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    token: str | bool | None = None
    force_download: bool = False
    progress: bool = True

    @property
    def offline(self) -> bool:
        """Whether no server may be asked: ``local_files_only``, or HF_HUB_OFFLINE."""
        from huggingface_hub import constants

        return self.local_files_only or bool(constants.HF_HUB_OFFLINE)

    @property
    def hub_cache(self) -> Path:
        """The folder of huggingface-hub's own cache."""
        from huggingface_hub import constants

        return Path(self.cache_dir or constants.HF_HUB_CACHE).expanduser()

    @property
    def zoo_cache(self) -> Path:
        """The folder of what came from URLs."""
        from huggingface_hub import constants

        return Path(self.cache_dir or constants.HF_ASSETS_CACHE).expanduser() / "context_pred"


@dataclass(frozen=True)
class HubId:
    """A repository on the Hub at a revision: 40 hex digits, a branch or a tag."""

    repository: str
    revision: str

    def __str__(self) -> str:
        return f"{HUB_PREFIX}{self.repository}@{self.revision}"


def parse(text: str, revision: str | None) -> HubId:
    """Read ``hf-hub:owner/name@revision``; the revision may stand in ``revision`` instead.

    Raises:
        InvalidInputError: no such form, no revision, or two that differ.
    """
    match = re.fullmatch(rf"{HUB_PREFIX}(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>\S+))?", text)
    if match is None:
        raise InvalidInputError(f"{text!r} is not of the form '{HUB_PREFIX}owner/name@revision'.")
    repository, named = match["repository"], match["revision"]
    if named is not None and revision is not None and named != revision:
        raise InvalidInputError(f"{text!r} names revision {named!r}, but revision={revision!r} was passed; keep one.")
    if named is None and revision is None:
        raise InvalidInputError(
            f"{text!r} names no revision, and what a repository holds can change. Write "
            f"'{text}@COMMIT' with the 40 digits of a commit (fixed for ever, and never asked for again once cached), "
            f"or '{text}@main' for whatever the branch holds today."
        )
    return HubId(repository, named or revision or "")


def cached(repository: str, file: str, revision: str, options: Options) -> Path | None:
    """Return the file where huggingface-hub's cache has it, without a request."""
    # Looked up by hand first: with a 40-digit revision the path says it all, and importing the Hub's client takes time.
    path = options.hub_cache / f"models--{repository.replace('/', '--')}" / "snapshots" / revision / file
    return path if path.is_file() else None


def known_absent(repository: str, file: str, revision: str, options: Options) -> bool:
    """Tell whether the cache remembers that the revision has no such file."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    return try_to_load_from_cache(repository, file, options.hub_cache, revision) is _CACHED_NO_EXIST


class NoSuchFileError(DownloadError):
    """The Hub answered: this revision has no file of that name."""


def fetch(repository: str, file: str, revision: str, options: Options) -> Path:
    """Return a file of a repository, downloaded if need be.

    Raises:
        NotCachedError: offline, and not in the cache.
        DownloadError: the Hub does not give it; ``UnreachableError`` where nothing answered.
        StorageError: the cache cannot be written.
    """
    from huggingface_hub import constants, errors, hf_hub_download

    what = f"{file} of {repository} at {revision} on {constants.ENDPOINT}"
    try:
        with _bars(options.progress):
            return Path(
                hf_hub_download(
                    repository,
                    file,
                    revision=revision,
                    cache_dir=options.hub_cache,
                    token=options.token,
                    local_files_only=options.local_files_only,
                    force_download=options.force_download,
                    library_name="context-pred",
                )
            )
    except errors.GatedRepoError as error:
        raise DownloadError(f"{what}: access must be asked for on its page, then log in or pass token=.") from error
    except errors.RepositoryNotFoundError as error:
        raise DownloadError(f"{what}: no such repository, or a private one: then log in or pass token=.") from error
    except errors.RevisionNotFoundError as error:
        raise DownloadError(f"{what}: the repository has no such revision.") from error
    except errors.LocalEntryNotFoundError as error:
        if options.offline:
            raise NotCachedError(f"{what}: not in the cache {options.hub_cache}.") from error
        raise _unanswered(what, error) from error
    except errors.EntryNotFoundError as error:
        raise NoSuchFileError(f"{what}: the repository has no such file at that revision.") from error
    except (errors.HFValidationError, errors.HfHubHTTPError) as error:
        raise DownloadError(f"{what}: {line(error)}") from error
    except ValueError as error:
        if error.__cause__ is not None:  # force_download=True while the Hub does not answer
            raise _unanswered(what, error) from error
        raise DownloadError(f"{what}: {line(error)}") from error
    except Exception as error:
        # What is left is the disk, or the HTTP client's own exceptions (httpx or httpx2, by the hub's version).
        if isinstance(error, OSError) and error.errno in _STORAGE:
            with storage(options.hub_cache):
                raise
        if no_answer(error):
            raise UnreachableError(f"{what}: {line(error)}") from error
        raise


def _unanswered(what: str, error: Exception) -> DownloadError:
    """Tell a Hub that answers with an error from a network that is not there."""
    from huggingface_hub.errors import FileMetadataError, HfHubHTTPError

    cause = error.__cause__
    if isinstance(cause, (HfHubHTTPError, FileMetadataError)):
        return DownloadError(f"{what}: {line(cause)}")
    return UnreachableError(f"{what}: {line(cause or error)}")


def no_answer(error: BaseException) -> bool:
    """Whether an exception of the Hub's client means that no server answered."""
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or library in ("httpx", "httpx2", "httpcore", "httpcore2")


def line(error: BaseException) -> str:
    """Return the first line of an exception that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextlib.contextmanager
def _bars(progress: bool) -> Iterator[None]:
    """Silence the Hub's progress bars for the time being, where they are not wanted."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    quiet = not progress and not are_progress_bars_disabled()
    if quiet:
        disable_progress_bars()
    try:
        yield
    finally:
        if quiet:
            enable_progress_bars()
