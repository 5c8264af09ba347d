"""``context-pred zoo publish``: a model becomes two folders, checked, and these two repositories on the Hub.

``owner/NAME`` holds the whole model, ``owner/NAME-timm`` its backbone as timm and transformers read it. NAME is that of
the card, with its tag: one repository, one file of weights. Every file of a repository goes up in one commit, made upon
the commit that was looked at; where nothing has changed, nothing goes up.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from context_pred.card import Card
from context_pred.errors import InvalidInputError, StorageError, unknown
from context_pred.extras import need
from context_pred.model import ContextPredictionModel
from context_pred.weights_file import read_weights, writing

from . import hub, layouts, registry, sources, upload
from .hub import Options
from .layouts import Kind
from .sources import Found

__all__ = ["Published", "publish"]

Layout = Literal["full", "timm", "both"]

_KINDS: dict[str, tuple[Kind, ...]] = {"full": ("full",), "timm": ("timm",), "both": ("full", "timm")}
_TEXTS = ("name", "title", "description", "dataset", "recipe", "trained", "license", "paper", "authors")


@dataclass(frozen=True)
class Published:
    """One layout of a model, written or published.

    Attributes:
        kind: "full" or "timm".
        repository: ``owner/name`` on the Hub.
        name: The model's, as its card has it.
        folder: Where the files lie; None where they were not asked to be kept.
        revision: 40 hex digits of the commit that holds them; None where nothing was sent.
        new: Whether that commit was made now.
    """

    kind: Kind
    repository: str
    name: str
    folder: Path | None = None
    revision: str | None = None
    new: bool = False


def publish(
    name: str | os.PathLike[str],
    namespace: str,
    *,
    out: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    layout: Layout = "both",
    private: bool = False,
    token: str | None = None,
    message: str | None = None,
    changes: Mapping[str, str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> tuple[Published, ...]:
    """Publish a model on the Hub, or write what would be published.

    The folders are loaded back, each by the library it is for, and compared with their golden tensors before a byte
    leaves this machine.

    Args:
        name: A name of the zoo, or a model folder such as ``RUN/model``.
        namespace: The user or organisation on the Hub.
        out: Where the folders ``full`` and ``timm`` are written to, and stay; a new or an empty folder. None: they are
            gone afterwards.
        dry_run: Only write the folders; needs ``out``, and no network for a model that is here.
        layout: "full" (the whole model), "timm" (the backbone), or "both".
        private: Make new repositories private.
        token: Of the Hub; None: that of ``hf auth login`` or HF_TOKEN.
        message: Of the commit.
        changes: Texts of the card to set or replace, such as {"license": "MIT"}.
        cache_dir: Where weights are fetched to, in place of the Hub's own cache folders.

    Returns:
        One entry a layout.

    Raises:
        UnknownNameError: no such model, layout or text of a card.
        NotCachedError: no such folder or file, or a model that is not here and not to be fetched (DownloadError: that
            no server gives).
        InvalidInputError: a card without a licence or with a name that no repository can have, a backbone that timm
            does not have, ``dry_run`` without ``out``, timm not installed.
        StorageError: ``out`` is not empty, or cannot be written.
        WeightsError: what was written does not load, or gives other numbers (DigestError: damaged weights).
        UploadError: the Hub does not take it; nothing of that repository was changed.
    """
    if layout not in _KINDS:
        raise unknown("layout", layout, _KINDS)
    if dry_run and out is None:
        raise InvalidInputError("dry_run=True (--dry-run) writes folders: say where with out= (--out DIR).")
    if out is not None:
        _must_be_free(Path(out))
    if "timm" in _KINDS[layout]:
        need(
            "timm",
            "Loading the timm layout back before it is published (not so --layout full)",
            "timm",
        )
    found, model = _loaded(name, Options(cache_dir, token=token))
    model.card = complete(model.card, changes or {})
    wanted = _repositories(model.card, namespace, layout)
    with _room(None if out is None else Path(out)) as folder:
        _write(model, found, folder, wanted)
        sent = (
            dict.fromkeys(wanted, (None, False))
            if dry_run
            else upload.send(
                {kind: (repository, folder / kind) for kind, repository in wanted.items()},
                private=private,
                token=token,
                message=message or f"{model.card.name}, by context-pred",
            )
        )
    return tuple(
        Published(kind, repository, model.card.name, None if out is None else Path(out) / kind, *sent[kind])
        for kind, repository in wanted.items()
    )


def complete(card: Card, changes: Mapping[str, str]) -> Card:
    """Return the card with ``changes`` made, if it then says what a published card must say.

    Raises:
        UnknownNameError: no such text of a card.
        InvalidInputError: no licence, or a name that no repository can have.
    """
    for key in changes:
        if key not in _TEXTS:
            raise unknown("text of a card", key, _TEXTS)
    old = card.name
    card = card.replace(**changes)
    if card.name != old:
        own = (replace(m, measured_on=card.name) if m.measured_on == old else m for m in card.metrics)
        card = card.replace(metrics=tuple(own))
    if not card.license.strip():
        raise InvalidInputError(
            f"The card of {card.name} states no licence, and none is made up for it. Say it with --set "
            "license=IDENTIFIER (an SPDX identifier: Apache-2.0, MIT, CC-BY-4.0, …), or write it into the card.json."
        )
    return card


def _repositories(card: Card, namespace: str, layout: Layout) -> dict[Kind, str]:
    """Name the repositories, and refuse early what cannot be one."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    suffix: dict[Kind, str] = {"full": "", "timm": "-timm"}
    names: dict[Kind, str] = {kind: f"{namespace}/{card.name}{suffix[kind]}" for kind in _KINDS[layout]}
    for repository in names.values():
        try:
            if not re.fullmatch(r"[\w.-]+", namespace):
                raise HFValidationError(
                    f"a namespace has letters, digits, '-', '_' and '.', which {namespace!r} has not"
                )
            validate_repo_id(repository)
        except HFValidationError as error:
            raise InvalidInputError(
                f"{repository!r} cannot be a repository of the Hub: {hub.line(error).rstrip('.')}. --namespace is "
                "a user or an organisation; another name of the model is set with --set name=NAME."
            ) from error
    if "timm" in names:
        layouts.must_be_resnet(card)
    return names


def _loaded(name: str | os.PathLike[str], options: Options) -> tuple[Found, ContextPredictionModel]:
    def use(found: Found) -> tuple[Found, ContextPredictionModel]:
        if found.card is None:
            raise InvalidInputError(
                f"{found.path} has no card, which says what is published. `context-pred zoo convert {name} FOLDER` "
                "makes a model folder with a card; publish that."
            )
        state = read_weights(found.path, found.sha256)
        return found, ContextPredictionModel.from_card(found.card, state)

    text = name if isinstance(name, Path) else str(name)
    return sources.verified(sources.resolve(text), options, use)


def _write(model: ContextPredictionModel, found: Found, folder: Path, wanted: Mapping[Kind, str]) -> None:
    """Write the folders of ``wanted`` under ``folder`` and load each back."""
    for kind, repository in wanted.items():
        with writing(folder / kind):
            (folder / kind).mkdir()
            if kind == "full":
                layouts.write_full(
                    model,
                    folder / kind,
                    weights=found.path,
                    repository=repository,
                    timm_repository=wanted.get("timm"),
                )
            else:
                layouts.write_timm(model, folder / kind, repository=repository, full_repository=wanted.get("full"))
        layouts.check(folder / kind, kind)


def _must_be_free(out: Path) -> None:
    with writing(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise StorageError(
                f"{out} is there already and not empty, and nothing is overwritten. Name another folder."
            )


@contextmanager
def _room(out: Path | None) -> Iterator[Path]:
    """A folder to write to: what is in it stands in ``out`` as soon as all of it is right, or is gone afterwards."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="context-pred-") as folder:
            yield Path(folder)
        return
    out = Path(os.path.abspath(out))
    with writing(out):
        home = out if out.is_dir() else out.parent
        home.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=home))
    try:
        yield new
        with writing(out):
            if home == out:  # filled and not replaced: it may be the folder that somebody works in, or a link to one
                for made in new.iterdir():
                    os.rename(made, out / made.name)
            else:
                new.chmod(0o755)
                os.rename(new, out)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def summary(published: tuple[Published, ...]) -> str:
    """Say what was written, what was sent, and what comes next."""
    lines: list[str] = []
    for one in published:
        if one.folder is not None:
            lines.append(f"{one.folder}  →  {one.repository}")
            lines += [f"  {path.name:18} {path.stat().st_size:>13,} bytes" for path in sorted(one.folder.iterdir())]
        if one.revision is not None:
            lines.append(f"{one.repository}@{one.revision}  ({'new' if one.new else 'unchanged, nothing uploaded'})")
            if one.kind == "full" and any(one.name == card.name for card in registry.cards()):
                lines.append(f"note it on the card: context-pred zoo pin {one.name} {one.repository}@{one.revision}")
    if all(one.revision is None for one in published):
        lines.append("Loaded back and equal to their golden tensors; nothing was uploaded.")
    return "\n".join(lines)
