"""URL → file: resumed, retried, verified, and moved into place whole.

Only the standard library and filelock are imported with this module; requests and tqdm when bytes are fetched.
"""

from __future__ import annotations

import contextlib
import email.utils
import errno
import hashlib
import logging
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from context_pred.errors import ContextPredError, DigestError, DownloadError, StorageError

if TYPE_CHECKING:
    import requests

logger = logging.getLogger("context_pred")

TIMEOUT = (10.0, 30.0)
"""Seconds to wait for a connection, and for the next bytes of an answer."""
ATTEMPTS = 5
"""Tries in a row that bring no new byte before a download is given up."""
LONGEST_WAIT = 120.0
"""Seconds: a server that asks for a longer pause gets an error instead of our patience."""
CHUNK = 1 << 16

_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


class UnreachableError(DownloadError):
    """No server answered at all: most likely there is no network."""


@dataclass
class _AttemptError(Exception):
    """One attempt that failed and may be repeated."""

    reason: str
    wait: float | None = None
    reached: bool = True


def download(
    url: str,
    destination: str | Path,
    *,
    sha256: str,
    progress: bool = True,
    timeout: tuple[float, float] = TIMEOUT,
    attempts: int = ATTEMPTS,
    backoff: float = 1.0,
) -> str:
    """Fetch ``url`` into ``destination``, which appears only when its digest is right.

    A file already there is returned if its digest is right, else replaced. Bytes collect in ``destination`` +
    ``.part``; what a stopped download left there is continued by an HTTP range
    request. Cut-off answers, time-outs, 408, 425, 429 (its ``Retry-After`` is obeyed) and 5xx are retried with doubling
    pauses. Call it under ``lock`` where several processes may want the file.

    Args:
        url: http or https address.
        destination: Path of the finished file; its folder is created.
        sha256: The file's SHA-256 in hex, or as many of its leading digits as were published.
        progress: Show a tqdm bar on stderr.
        timeout: Seconds for the connection, and for the next bytes.
        attempts: Tries in a row without a new byte before giving up.
        backoff: Seconds of the first pause.

    Returns:
        The whole SHA-256 of the file, 64 hex digits.

    Raises:
        DigestError: the server's bytes are not those promised, also when fetched afresh.
        DownloadError: the server does not give the file; ``UnreachableError`` where none answered.
        StorageError: the folder cannot be written, or the disk is full.
    """
    destination = Path(destination)
    part = destination.with_name(destination.name + ".part")
    with storage(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        if destination.exists():
            digest = file_sha256(destination)
            if digest.startswith(sha256):
                return digest
            destination.unlink()
        resumed = part.exists() and part.stat().st_size > 0
        digest = _collect(url, part, progress, timeout, attempts, backoff)
        if resumed and not digest.startswith(sha256):
            logger.warning("The bytes left in %s by an earlier download do not fit; starting afresh.", part)
            part.unlink()
            digest = _collect(url, part, progress, timeout, attempts, backoff)
        if not digest.startswith(sha256):
            part.unlink()
            raise DigestError(
                f"{url} sent a file whose SHA-256 is {digest}, but it should begin with {sha256}; nothing was kept. "
                "A proxy may have sent a page of its own, or the file was replaced: try another network, or load the "
                "file from a path."
            )
        os.replace(part, destination)
    return digest


def _collect(url: str, part: Path, progress: bool, timeout: tuple[float, float], attempts: int, backoff: float) -> str:
    """Bring ``part`` to the full length, however many requests that takes; return its SHA-256."""
    import requests

    tries, longest = 0, _size(part)
    with requests.Session() as session:
        while True:
            try:
                _request(session, url, part, progress, timeout)
                return file_sha256(part)
            except _AttemptError as failure:
                tries = 1 if _size(part) > longest else tries + 1
                longest = max(longest, _size(part))
                wait = backoff * 2 ** (tries - 1) * random.uniform(0.75, 1.25) if failure.wait is None else failure.wait
                # No answer at all is seldom cured by waiting: two tries, then the user is told.
                if tries >= (attempts if failure.reached else min(attempts, 2)) or wait > LONGEST_WAIT:
                    kind = DownloadError if failure.reached else UnreachableError
                    asked = f" (it asks for a pause of {wait:.0f} s)" if wait > LONGEST_WAIT else ""
                    raise kind(f"{url}: {failure.reason}{asked}; given up after {tries} tries.") from failure.__cause__
                logger.info("%s: %s; trying again in %.1f s.", url, failure.reason, wait)
                time.sleep(wait)


def _request(session: requests.Session, url: str, part: Path, progress: bool, timeout: tuple[float, float]) -> None:
    """Make one request for what ``part`` still lacks, and append the answer to it."""
    import requests

    offset = _size(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
    try:
        with session.get(url, headers=headers, stream=True, timeout=timeout) as response:
            offset, total = _judge(response, offset, part)
            if offset == total:
                return
            _append(response, part, offset, total, progress)
    except (requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
        # requests raises ConnectionError for a name or host that is not there, and for an answer that breaks off.
        read = isinstance(error, requests.exceptions.ReadTimeout) or "Read timed out" in str(error)
        raise _AttemptError(_short(error), reached=read or _size(part) > offset) from error
    except requests.exceptions.ChunkedEncodingError as error:
        raise _AttemptError("the answer broke off") from error
    except requests.exceptions.RequestException as error:
        raise DownloadError(f"{url}: {_short(error)}") from error


def _judge(response: requests.Response, offset: int, part: Path) -> tuple[int, int | None]:
    """Decide by the status: return the offset the body starts at and the file's length, or raise."""
    status, url = response.status_code, response.url
    length = response.headers.get("Content-Length", "")
    if status == 200:
        return 0, int(length) if length.isdigit() else None
    if status == 206:
        start, total = _content_range(response.headers.get("Content-Range", ""))
        if start == offset:
            return offset, total
        part.unlink(missing_ok=True)
        raise _AttemptError("the server answered with another part of the file than asked for", wait=0.0)
    if status == 416:
        _, total = _content_range(response.headers.get("Content-Range", ""))
        if total == offset:
            return offset, total
        part.unlink(missing_ok=True)
        raise _AttemptError("the file is shorter than what an earlier download left", wait=0.0)
    if status in _TRANSIENT:
        raise _AttemptError(f"HTTP {status} {response.reason}", wait=_retry_after(response.headers.get("Retry-After")))
    raise DownloadError(f"{url}: HTTP {status} {response.reason}.")


def _append(response: requests.Response, part: Path, offset: int, total: int | None, progress: bool) -> None:
    from tqdm import tqdm

    if total is not None:
        free = shutil.disk_usage(part.parent).free
        if free < total - offset:
            raise OSError(errno.ENOSPC, f"{(total - offset) / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free")
    bar = tqdm(
        total=total, initial=offset, unit="B", unit_scale=True, desc=part.stem, disable=not progress, dynamic_ncols=True
    )
    with bar, part.open("ab" if offset else "wb") as file:
        for chunk in response.iter_content(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
    if total is not None and _size(part) != total:
        raise _AttemptError(f"the answer broke off after {_size(part)} of {total} bytes")


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def lock(path: str | Path) -> Iterator[None]:
    """Hold the file ``path`` as a lock between processes; it falls free when its process ends, however it ends."""
    from filelock import FileLock, SoftFileLock, Timeout

    with storage(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        held: FileLock | SoftFileLock = FileLock(path)
        while True:
            try:
                held.acquire(timeout=10)
                break
            except Timeout:
                logger.info("Another process is fetching the same model; waiting for %s.", path)
            except NotImplementedError:  # a file system without flock
                held = SoftFileLock(path)
    try:
        yield
    finally:
        held.release()


def fill(folder: Path, make: Callable[[Path], None], accept: Callable[[Path], bool] = Path.is_dir) -> Path:
    """Return ``folder``, made by one process while the others wait; it appears whole or not at all.

    Args:
        folder: The folder wanted.
        make: Called with an empty folder beside it, to fill; that one is then renamed.
        accept: Whether the folder found once the lock is held will do; if not, it is replaced.
    """
    with lock(folder.parent / ".locks" / f"{folder.name}.lock"):
        if accept(folder):
            return folder
        with storage(folder):
            # Whoever holds the lock is alone: what lies here under these names, a killed process left.
            for remnant in folder.parent.glob(f".{folder.name}.*"):
                shutil.rmtree(remnant)
            staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
            try:
                new = staging / folder.name
                new.mkdir()
                make(new)
                if folder.exists():
                    os.rename(folder, staging / "old")
                os.rename(new, folder)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    return folder


@contextlib.contextmanager
def storage(path: str | Path) -> Iterator[None]:
    """Turn the operating system's refusals to write near ``path`` into a StorageError that says what to do."""
    try:
        yield
    except ContextPredError:
        raise
    except OSError as error:
        cure = {
            errno.ENOSPC: "the disk is full: free some space",
            errno.EDQUOT: "your quota is used up: free some space",
            errno.EROFS: "the file system is read-only: make it writable",
            errno.EACCES: "you may not write there: change its permissions",
            errno.EPERM: "you may not write there: change its permissions",
            errno.ENOTDIR: "a part of the path is a file: move it away",
            errno.EEXIST: "a file is in the way: move it away",
            errno.EISDIR: "a folder is in the way: move it away",
        }.get(error.errno or 0, "check the disk")
        raise StorageError(
            f"Cannot write {path} ({error.strerror or error}); {cure}, or choose another folder with cache_dir= or "
            "HF_HOME."
        ) from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _content_range(value: str) -> tuple[int | None, int | None]:
    """Read ``bytes 100-199/200`` or ``bytes */200`` as (100 or None, 200 or None)."""
    span, _, total = value.removeprefix("bytes ").partition("/")
    start = span.partition("-")[0]
    return int(start) if start.isdigit() else None, int(total) if total.isdigit() else None


def _retry_after(value: str | None) -> float | None:
    """Read a Retry-After header, which is a number of seconds or a date, as seconds from now."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _short(error: Exception) -> str:
    """Say what went wrong on the network without the nested representations urllib3 wraps it in."""
    inner: BaseException = error
    while True:
        following = getattr(inner, "reason", None) or (inner.args[0] if inner.args else None)
        if not isinstance(following, BaseException):
            break
        inner = following
    text = str(inner.args[-1] if inner.args else inner) or type(inner).__name__
    return text.rpartition(": ")[2] if "object at 0x" in text else text
