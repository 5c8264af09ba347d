"""Folders → repositories of the Hub, by huggingface-hub: looked at first, one commit each, its errors made ours."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from context_pred.card import CARD_FILE
from context_pred.errors import ContextPredError, UploadError

from . import hub
from .download import file_sha256
from .layouts import CONFIG_FILE, FILES, GOLDEN_FILE, README_FILE, Kind

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

_LOG_IN = (
    "Log in with `hf auth login`, set HF_TOKEN, or pass --token; a token that may write is made at {}/settings/tokens."
)


@dataclass(frozen=True)
class Remote:
    """What a repository holds at the head of its main branch: file names → SHA-256 (large files) or git's SHA-1."""

    repository: str
    head: str
    files: dict[str, str]


def send(
    folders: Mapping[Kind, tuple[str, Path]], *, private: bool, token: str | None, message: str
) -> dict[Kind, tuple[str, bool]]:
    """Bring each folder into its repository, in one commit each.

    All repositories are looked at before the first is changed.

    Args:
        folders: Layout → (``owner/name``, folder).
        private: Make new repositories private.
        token: None: the one that is logged in.
        message: Of the commits.

    Returns:
        Layout → (the revision that holds the folder, whether it is new).

    Raises:
        UploadError: no token or one that is not accepted, no rights, no answer, a repository that holds something else
            or has changed meanwhile; the message says what to do.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name="context-pred")
    _must_be_allowed(api, {repository for repository, _ in folders.values()})
    before = {kind: _look(api, kind, *place, private) for kind, place in folders.items()}
    done: dict[Kind, tuple[str, bool]] = {}
    for kind, (repository, folder) in folders.items():
        try:
            done[kind] = _commit(api, kind, repository, folder, before[kind], private, message)
        except UploadError as error:
            if not done:
                raise
            there = ", ".join(f"{folders[other][0]}@{revision}" for other, (revision, _) in done.items())
            raise UploadError(
                f"{error} Already published: {there}. The same command again publishes the rest, and nothing twice."
            ) from error
    return done


def _must_be_allowed(api: HfApi, repositories: set[str]) -> None:
    """Ask the Hub who we are, and whether the namespace is one of ours."""
    with _speaking(api, "The model"):
        me = api.whoami()
    own = [me["name"], *(organisation["name"] for organisation in me.get("orgs", ()))]
    for repository in sorted(repositories):
        namespace = repository.partition("/")[0]
        if namespace.lower() not in (name.lower() for name in own):
            raise UploadError(
                f"{me['name']} may not publish under {namespace!r}. Accepted for this token: {', '.join(own)}. "
                "Name one of these with --namespace, join the organisation, or log in as somebody of it."
            )


def _look(api: HfApi, kind: Kind, repository: str, folder: Path, private: bool) -> Remote | None:
    """See what the repository holds; None where there is none yet.

    Raises:
        UploadError: it holds something else, or is public where a private one was asked for.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    with _speaking(api, repository):
        try:
            info = api.model_info(repository, files_metadata=True)
        except RepositoryNotFoundError:
            return None
    remote = _remote(repository, info)
    if private and not info.private:
        raise UploadError(
            f"{repository} is there already and public; nothing was uploaded. Make it private in its settings, or "
            "leave --private out."
        )
    if set(remote.files) - {".gitattributes", README_FILE} and _name(api, kind, remote) != _own_name(kind, folder):
        raise UploadError(
            f"{repository} is there already and holds something else ({', '.join(sorted(remote.files)[:6])}); nothing "
            "was uploaded. Publish under another name (--set name=NAME) or namespace, or rename that repository."
        )
    return remote


def _remote(repository: str, info: Any) -> Remote:
    files = {entry.rfilename: entry.lfs.sha256 if entry.lfs else entry.blob_id for entry in info.siblings or ()}
    return Remote(repository, info.sha, files)


def _own_name(kind: Kind, folder: Path) -> str | None:
    """Return the model's name that a folder states; None where it states none."""
    try:
        values = json.loads((folder / (CARD_FILE if kind == "full" else CONFIG_FILE)).read_text(encoding="utf-8"))
        values = values if kind == "full" else values["context_pred"]
        return str(values["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _name(api: HfApi, kind: Kind, remote: Remote) -> str | None:
    file = CARD_FILE if kind == "full" else CONFIG_FILE
    if file not in remote.files:
        return None
    path = hub.fetch(remote.repository, file, remote.head, hub.Options(token=api.token, progress=False))
    return _own_name(kind, path.parent)


def _commit(
    api: HfApi, kind: Kind, repository: str, folder: Path, before: Remote | None, private: bool, message: str
) -> tuple[str, bool]:
    """Make the repository hold the folder; return the revision, and whether it was made now."""
    from huggingface_hub import CommitOperationAdd

    if before is not None and _same(kind, folder, before):
        return before.head, False
    with _speaking(api, repository):
        if before is None:
            api.create_repo(repository, private=private or None, exist_ok=True)
            before = _remote(repository, api.model_info(repository, files_metadata=True))
        files = [CommitOperationAdd(name, str(folder / name)) for name in FILES[kind]]
        revision = api.create_commit(repository, files, commit_message=message, parent_commit=before.head).oid
        after = _remote(repository, api.model_info(repository, revision=revision, files_metadata=True))
    if not _same(kind, folder, after, but=()):
        raise UploadError(f"{repository}@{revision} does not hold what was sent; give the same command again.")
    return revision, True


def _same(kind: Kind, folder: Path, remote: Remote, but: tuple[str, ...] = (GOLDEN_FILE,)) -> bool:
    """Whether the repository holds these very files.

    The golden tensors follow from the others, but for the last digits, which another processor computes otherwise:
    theirs alone are no reason for a commit.
    """
    if not set(FILES[kind]) <= set(remote.files):
        return False
    for name in FILES[kind]:
        if name not in but:
            known, path = remote.files[name], folder / name
            if known != (file_sha256(path) if len(known) == 64 else _git_sha1(path)):
                return False
    return True


def _git_sha1(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@contextmanager
def _speaking(api: HfApi, what: str) -> Iterator[None]:
    """Turn what the Hub's client says into an UploadError that says what to do."""
    from huggingface_hub import errors

    log_in = _LOG_IN.format(api.endpoint)
    try:
        yield
    except ContextPredError:
        raise
    except errors.LocalTokenNotFoundError as error:
        raise UploadError(f"Nobody is logged in to the Hub ({api.endpoint}). {log_in}") from error
    except errors.OfflineModeIsEnabled as error:
        raise UploadError("HF_HUB_OFFLINE=1 forbids publishing; unset it, or add --dry-run.") from error
    except Exception as error:
        if isinstance(error, ValueError) and "README.md" in str(error):
            raise UploadError(
                f"{what} was not published: {' '.join(str(error).split())} The texts of the card can be set with --set."
            ) from error
        # Of a large file the client's own exception says which one, and its cause what went wrong.
        told = error if isinstance(error, errors.HfHubHTTPError) else error.__cause__ or error
        if isinstance(told, errors.HfHubHTTPError):
            raise _refused(told, what, log_in) from error
        if hub.no_answer(error) or hub.no_answer(told):
            raise UploadError(
                f"{what} was not published: {api.endpoint} cannot be reached ({hub.line(error)}). Check the network "
                "(HF_ENDPOINT names another Hub), and give the same command again; --dry-run needs no network."
            ) from error
        raise UploadError(f"{what} was not published: {type(error).__name__}: {hub.line(error)}") from error


def _refused(error: HfHubHTTPError, what: str, log_in: str) -> UploadError:
    """Say what a status of the Hub means, and what to do."""
    status = error.response.status_code
    cure = {
        401: f"The token is not accepted: it is wrong, expired or revoked. {log_in}",
        403: f"The token may not write there: take one with the role `write`, of somebody who may. {log_in}",
        404: f"There is no such repository, or the token may not see it. {log_in}",
        409: "Something else is being done with that repository; wait and give the same command again.",
        412: "Somebody has changed the repository meanwhile; look at it, and give the same command again.",
        413: "The Hub does not take so much at once.",
        429: "Too many requests; wait some minutes and give the same command again.",
    }.get(status, "Give the same command again later." if status >= 500 else "")
    # The client's sentence ends in a point, a colon or "None." where the Hub gave no reason.
    told = re.sub(r"[:.\s]+(None)?[.\s]*$", "", hub.line(error)) or f"status {status}"
    return UploadError(f"{what} was not published: {told}. {cure}".strip())
