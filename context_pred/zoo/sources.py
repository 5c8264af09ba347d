"""Where weights come from: a name is resolved, and its file is looked for in the cache, on the Hub, at its URL.

The Hub's files lie where huggingface-hub keeps them (``HF_HUB_CACHE``). What comes from a URL lies, converted, in
``context_pred/NAME`` under the Hub's folder for other libraries' files (``HF_ASSETS_CACHE``, by default
``~/.cache/huggingface/assets``); with ``cache_dir=`` both lie under that folder. No environment variable is our own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from context_pred.card import CARD_FILE, WEIGHTS_FILE, Card
from context_pred.errors import (
    DigestError,
    DownloadError,
    InvalidInputError,
    NotCachedError,
    StorageError,
    WeightsError,
    did_you_mean,
)

from . import hub, registry
from .download import UnreachableError, download, file_sha256, fill
from .hub import HubId, Options

logger = logging.getLogger("context_pred")

SOURCE_FILE = "source.json"
"""The sidecar of converted weights: where they came from, and both digests."""

T = TypeVar("T")


@dataclass(frozen=True)
class Found:
    """A weights file on disk, not yet verified.

    ``card`` is None where none is known (a bare file, a repository of another library). ``sha256`` is the digest the
    file must have; None only for a user's own file that nobody gave one.
    """

    path: Path
    card: Card | None
    sha256: str | None
    origin: Literal["shipped", "cache", "hub", "url", "path"]


def resolve(name_or_path: str | os.PathLike[str], revision: str | None = None) -> Card | HubId | Path:
    """Decide what a name means: a card of the registry, a repository on the Hub, or a path.

    Raises:
        InvalidInputError: a model's name that is an existing path too; a Hub id without a revision.
        NotCachedError: a path that does not exist.
        UnknownNameError: none of the three.
    """
    if isinstance(name_or_path, str) and name_or_path.startswith(registry.HUB_PREFIX):
        return hub.parse(name_or_path, revision)
    text = os.fspath(name_or_path)
    if revision is not None:
        raise InvalidInputError(
            f"revision={revision!r} belongs to '{registry.HUB_PREFIX}owner/name', not to {text!r}: the zoo's names pin "
            f"their own revisions, and each tag is one file. Names: {', '.join(registry.list_models())}."
        )
    path = Path(text).expanduser()
    card = registry.find(text) if isinstance(name_or_path, str) else None
    if card is not None and path.exists():
        raise InvalidInputError(
            f"{text!r} is both a model of the zoo ({card.name}) and a path here ({path.resolve()}). Write "
            f"'{os.path.join(os.curdir, text)}' for the path; for the model, use a name that is no path here"
            f"{f' ({card.name!r})' if card.name != text else ''}, or another working folder."
        )
    if card is not None:
        return card
    if path.exists():
        return path
    if isinstance(name_or_path, os.PathLike) or _looks_like_path(text):
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*")])
        raise NotCachedError(
            f"No file or folder {text!r}.{near} Accepted: a path to a model folder (with {CARD_FILE}), a .safetensors "
            "file or a checkpoint; a name of the zoo (context_pred.list_models()); "
            f"'{registry.HUB_PREFIX}owner/name@revision'."
        )
    raise registry.unknown_model(text)


def _looks_like_path(text: str) -> bool:
    return (
        os.path.isabs(text)
        or text.startswith((".", "~"))
        or os.path.splitext(text)[1] in {".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".tar"}
        or text.count("/") > 1
        or "\\" in text
    )


def fetch(target: Card | HubId | Path, options: Options) -> Found:
    """Return the weights file of a target, fetched if need be; its bytes are still to be verified.

    Raises:
        NotCachedError: it is not here and may not, or cannot, be fetched; the message says the ways out.
        DownloadError: servers answered, but none gave the file.
        DigestError: servers gave other bytes than promised.
        StorageError: the cache cannot be written.
    """
    if isinstance(target, Path):
        return _at_path(target)
    if options.force_download and options.offline and not (isinstance(target, Card) and target.file):
        raise InvalidInputError(
            "force_download=True needs the network, which local_files_only=True or HF_HUB_OFFLINE=1 forbids; drop one."
        )
    if isinstance(target, HubId):
        return _from_repository(target, options)
    if target.file is not None:
        return _shipped(target)
    found = None if options.force_download else in_cache(target, options)
    return found or _from_servers(target, options)


def verified(target: Card | HubId | Path, options: Options, use: Callable[[Found], T]) -> T:
    """Fetch a target and ``use`` its file, which checks the digest; a damaged cached file is fetched once more.

    Raises:
        DigestError: the file is damaged and there is no way to replace it; the message says what to delete.
    """
    found = fetch(target, options)
    try:
        return use(found)
    except DigestError as error:
        if found.origin == "shipped":
            raise DigestError(f"{error} It was installed with the library: reinstall context-pred.") from error
        if found.origin == "path" or options.offline or options.force_download:
            raise
        logger.warning("%s Fetching it again.", error)
        damaged = error
    try:
        return use(fetch(target, dataclasses.replace(options, force_download=True)))
    except (DownloadError, NotCachedError, StorageError) as error:
        raise DigestError(f"{damaged} It could not be fetched again: {error}") from error


def pull(
    name: str,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    force_download: bool = False,
    progress: bool = True,
) -> Path:
    """Bring a model's files onto this machine, verified, and return their folder.

    Takes a name of the zoo or ``hf-hub:owner/name@revision``; arguments and errors are ``load_pretrained``'s.
    Afterwards the model loads without a network.

    Args:
        name: Of the zoo, or ``hf-hub:owner/name@revision``.
        revision: Of an ``hf-hub:`` model: commit, branch or tag.
        cache_dir: In place of the Hub's own cache folder.
        local_files_only: Ask no server.
        token: For private repositories.
        force_download: Fetch again although cached.
        progress: Show a bar.

    Returns:
        The folder with the weights and the card.
    """
    options = Options(cache_dir, local_files_only, token, force_download, progress)

    def check(found: Found) -> Path:
        check_digest(found)
        return found.path.parent if found.path.is_file() else found.path

    return verified(resolve(name, revision), options, check)


def check_digest(found: Found) -> str:
    """Hash a file and compare; return its SHA-256.

    Raises:
        DigestError: it has another digest than it must have.
    """
    digest = file_sha256(found.path)
    if found.sha256 is not None and digest != found.sha256:
        raise DigestError(
            f"{found.path} has SHA-256 {digest}, but {found.sha256} was expected: the file is damaged or another one. "
            "Delete it and load again."
        )
    return digest


def in_cache(card: Card, options: Options) -> Found | None:
    """Return a registry model's file if a cache has it, without any request."""
    if card.hub is not None:
        path = hub.cached(card.hub.repository, card.hub.file, card.hub.revision, options)
        if path is not None:
            return Found(path, card, card.hub.sha256, "hub")
    folder = options.zoo_cache / card.name
    source = _read_source(folder)
    if source is None or not _fits(card, source):
        return None
    return Found(folder / WEIGHTS_FILE, card, source["sha256"], "cache")


def _shipped(card: Card) -> Found:
    path = registry.folder(card) / str(card.file)
    if not path.is_file():
        raise NotCachedError(f"{card.name} ships with the library, but {path} is not there: reinstall context-pred.")
    return Found(path, card, card.sha256, "shipped")


def _from_servers(card: Card, options: Options) -> Found:
    """Ask the Hub, then the URL; the first that gives the file wins."""
    failures: list[DownloadError | DigestError | NotCachedError] = []
    if card.hub is not None and not options.offline:
        try:
            path = hub.fetch(card.hub.repository, card.hub.file, card.hub.revision, options)
            found = Found(path, card, card.hub.sha256, "hub")
            check_digest(found)
            return found
        except (DownloadError, DigestError) as error:
            failures.append(error)
            if card.url is not None:
                logger.warning("%s Trying %s instead.", error, card.url)
    if card.url is not None and not options.offline:
        try:
            return _from_url(card, options)
        except (DownloadError, DigestError) as error:
            failures.append(error)
    wrong = next((failure for failure in failures if isinstance(failure, DigestError)), None)
    if wrong is not None:
        raise wrong
    if failures and not all(isinstance(failure, UnreachableError) for failure in failures):
        raise DownloadError(f"{card.name} cannot be downloaded. {' '.join(map(str, failures))} {_other_ways()}")
    raise _absent(card, options, failures)


def _absent(card: Card, options: Options, failures: list[Any]) -> NotCachedError:
    """Say what was looked for, where, and the three ways out."""
    looked = [f"{WEIGHTS_FILE} in {options.zoo_cache / card.name}"]
    if card.hub is not None:
        looked.append(f"{card.hub.file} of {card.hub.repository}@{card.hub.revision} in {options.hub_cache}")
    forbidden = "local_files_only=True" if options.local_files_only else "HF_HUB_OFFLINE=1"
    why = (
        f"{forbidden} forbids fetching it"
        if options.offline
        else f"no server could be reached ({' '.join(map(str, failures))})"
        if failures
        else "its card names no server"
    )
    address = f" or its own address ({card.url})" if card.url else ""
    return NotCachedError(
        f"{card.name} is not on this machine, and {why}. Looked for {', and for '.join(looked)}. Ways out: (1) "
        f"connect: without HF_HUB_OFFLINE and local_files_only it comes from the Hub (HF_ENDPOINT names a mirror)"
        f"{address}; "
        f"{_other_ways(2)}"
    )


def _other_ways(first: int | None = None) -> str:
    """Name the ways to a model that need no server; numbered from ``first``."""
    shipped = registry.default_name()
    ways = ["point to a file: load_pretrained(PATH) reads a checkpoint or a model folder copied from elsewhere"]
    if shipped:
        ways.append(f"use a model that ships with the library: load_pretrained({shipped!r})")
    if first is None:
        return f"Otherwise {', or '.join(ways)}."
    return "; ".join(f"({first + i}) {way}" for i, way in enumerate(ways)) + "."


def _from_url(card: Card, options: Options) -> Found:
    """Download a published checkpoint, convert it, and keep the result; processes that want the same one wait."""
    if card.url is None or not card.url_sha256_prefix:
        raise DownloadError(f"{card.name} has no URL with a digest, and nothing is loaded unverified.")
    url, prefix = card.url, card.url_sha256_prefix
    folder = options.zoo_cache / card.name
    before = _identity(folder)

    def make(new: Path) -> None:
        from . import convert
        from ._folder import write_model_folder

        file = options.zoo_cache / ".downloads" / url.rpartition("/")[2]
        digest = download(url, file, sha256=prefix, progress=options.progress and _bars_wanted())
        converted = convert.convert_checkpoint(file, card=card)
        write_model_folder(new, converted.state_dict, card, {"url": url, "sha256": digest})
        file.unlink()

    def accept(there: Path) -> bool:
        source = _read_source(there)
        # With force_download: what another process has put here while this one waited is new enough.
        fresh = not options.force_download or _identity(there) != before
        return fresh and source is not None and _fits(card, source)

    fill(folder, make, accept)
    source = _read_source(folder)
    if source is None:
        raise WeightsError(f"{folder / SOURCE_FILE} was just written and is gone; is something emptying the cache?")
    return Found(folder / WEIGHTS_FILE, card, source["sha256"], "url")


def _identity(folder: Path) -> int | None:
    """Tell one folder of a name from another one put in its place."""
    return folder.stat().st_ino if folder.exists() else None


def _bars_wanted() -> bool:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled

    return not are_progress_bars_disabled()


def _read_source(folder: Path) -> dict[str, str] | None:
    """Read the sidecar of converted weights; None where the folder is not whole."""
    try:
        source = json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(source, dict) and isinstance(source.get("sha256"), str) and (folder / WEIGHTS_FILE).is_file()
    return source if whole else None


def _fits(card: Card, source: dict[str, str]) -> bool:
    """Tell whether a sidecar is that of the file the card names today."""
    if card.sha256 is not None and card.sha256 != source["sha256"]:
        return False
    return bool(card.url_sha256_prefix) and str(source.get("source_sha256", "")).startswith(str(card.url_sha256_prefix))


def _from_repository(target: HubId, options: Options) -> Found:
    """Fetch card and weights of a repository, both of one commit."""
    try:
        if hub.cached(target.repository, CARD_FILE, target.revision, options) is None and hub.known_absent(
            target.repository, CARD_FILE, target.revision, options
        ):
            raise hub.NoSuchFileError(f"{target} has no {CARD_FILE}.")
        path = hub.fetch(target.repository, CARD_FILE, target.revision, options)
        card = Card.read(path)
        path = hub.fetch(target.repository, _file_name(card, path), path.parent.name, options)
    except hub.NoSuchFileError:
        # Another library's repository, for one a backbone in timm's layout.
        card = None
        path = hub.fetch(target.repository, WEIGHTS_FILE, target.revision, options)
        if not hub.known_absent(target.repository, "config.json", path.parent.name, options):
            with contextlib.suppress(hub.NoSuchFileError):  # timm's says how images are prepared
                hub.fetch(target.repository, "config.json", path.parent.name, options)
    except (NotCachedError, UnreachableError) as error:
        raise NotCachedError(
            f"{target} is not on this machine: {error} Ways out: (1) connect, without HF_HUB_OFFLINE and "
            f"local_files_only (HF_ENDPOINT names a mirror); {_other_ways(2)}"
        ) from error
    # The Hub names a large file's blob by its SHA-256, and huggingface-hub keeps that name in its cache.
    blob = path.resolve().name
    promised = (card.sha256 if card is not None else None) or (blob if re.fullmatch("[0-9a-f]{64}", blob) else None)
    if promised is None:
        raise WeightsError(
            f"{target} promises no SHA-256 for {path.name}: its {CARD_FILE} has none, and the Hub keeps the file "
            "outside LFS. Save the model again with save_pretrained, or download it and load it from its path."
        )
    return Found(path, card, promised, "hub")


def _at_path(path: Path) -> Found:
    """Describe what lies at a path: a model folder, a weights file of one, or a file by itself."""
    folder = path if path.is_dir() else path.parent
    card = Card.read(folder / CARD_FILE) if (folder / CARD_FILE).is_file() else None
    file = path
    if path.is_dir():
        file = folder / _file_name(card, folder / CARD_FILE)
        if not file.is_file():
            there = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
            inner = [str(path / name) for name in ("model", "full") if (path / name / CARD_FILE).is_file()]
            meant = f" Did you mean {inner[0]!r}?" if inner else ""
            raise NotCachedError(
                f"{path} is not a model folder: it has no {file.name}, but {there}.{meant} A model folder "
                f"has {CARD_FILE} and {WEIGHTS_FILE}; a checkpoint in it is named by its own path."
            )
    elif path.name != _file_name(card, folder / CARD_FILE):
        card = None  # the card beside is another file's
    source = _read_source(folder) if file.name == WEIGHTS_FILE else None
    sha256 = (card.sha256 if card is not None else None) or (source["sha256"] if source is not None else None)
    return Found(file, card, sha256, "path")


def _file_name(card: Card | None, where: Path) -> str:
    """Return the name of a card's weights file, which lies beside the card."""
    name = (card.file if card is not None else None) or WEIGHTS_FILE
    if name != Path(name).name:
        raise WeightsError(f"{where} says that its weights file is {name!r}; accepted: the name of a file beside it.")
    return name
