"""``context-pred zoo pin``: what the Hub holds of a model of the zoo is checked, and noted on its card."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from context_pred import card as card_module
from context_pred.card import CARD_FILE, WEIGHTS_FILE, Card, HubFile
from context_pred.errors import DigestError, InvalidInputError, WeightsError
from context_pred.weights_file import read_weights, write_bytes

from . import document, hub, registry, sources
from .download import file_sha256

__all__ = ["Pinned", "pin"]

_SAME = ("name", "backbone", "in_channels", "pair_layers", "neck_channels", "mean", "std", "channel_order", "resize",
         "crop", "patch_sampler", "license")  # fmt: skip


@dataclass(frozen=True)
class Pinned:
    """What pinning a model changed.

    Attributes:
        card: The card as it is now.
        files: The files that were written: the card's, and ``model_zoo.md``.
    """

    card: Card
    files: tuple[Path, ...]


def pin(
    name: str, at: str, *, token: str | bool | None = None, cache_dir: str | Path | None = None, progress: bool = True
) -> Pinned:
    """Check a published model against its card and its weights here, then note where the Hub has it.

    Written are ``hub`` (repository, revision, SHA-256, file) into ``weights/NAME/card.json``, and ``model_zoo.md``.
    From then on ``load_pretrained(NAME)`` asks the Hub for that commit before any other server.

    Args:
        name: A name of the zoo, tagged or plain.
        at: ``OWNER/NAME@REVISION``, as ``zoo publish`` prints it; the revision has 40 hex digits.
        token: For a private repository.
        cache_dir: Where files are fetched to, in place of the Hub's own cache folders.
        progress: Show download bars on stderr.

    Returns:
        The card, and the files written.

    Raises:
        UnknownNameError: no such model.
        InvalidInputError: ``at`` is of another form or names a branch; the cards are those of an installation.
        NotCachedError: the weights are not here, and nothing gives them to compare with.
        DownloadError: the Hub does not give the files.
        DigestError: what it gives has another digest than the card beside it says.
        WeightsError: it is another model, or has other weights.
        StorageError: the card cannot be written.
    """
    card = registry.model_info(name)
    place = _place(at)
    _must_be_a_clone()
    options = hub.Options(cache_dir, token=token, progress=progress)
    there, path = _fetched(place, options)
    apart = [key for key in _SAME if getattr(there, key) != getattr(card, key)]
    if apart:
        said = "; ".join(f"{key} is {getattr(there, key)!r}, not {getattr(card, key)!r}" for key in apart)
        raise WeightsError(f"{place} is not {card.name} as its card has it: {said}. Publish it again.")
    digest = file_sha256(path)
    if digest != there.sha256:
        raise DigestError(
            f"{path} of {place} has SHA-256 {digest}, not the {there.sha256} of its card: publish it again."
        )
    _compare(card, path, place, options)
    pinned = card.replace(hub=HubFile(place.repository, place.revision, digest, path.name))
    return Pinned(pinned, _written(pinned))


def _place(at: str) -> hub.HubId:
    match = re.fullmatch(rf"(?:{registry.HUB_PREFIX})?([\w.-]+/[\w.-]+)@(\S+)", at)
    if match is None:
        raise InvalidInputError(f"{at!r} is not of the form OWNER/NAME@REVISION, as `zoo publish` prints it.")
    if not re.fullmatch("[0-9a-f]{40}", match[2]):
        raise InvalidInputError(
            f"{match[2]!r} is no commit, and a card names nothing that can change: the 40 hex digits of a commit are "
            "accepted, as `context-pred zoo publish` and the repository's history print them."
        )
    return hub.HubId(match[1], match[2])


def _must_be_a_clone() -> None:
    folder = card_module.weights_folder()
    if folder == Path(card_module.__file__).resolve().parent / "weights":
        raise InvalidInputError(
            f"The cards in {folder} are those of an installation. Cards are pinned in a clone of the repository, with "
            "`pip install --editable`."
        )


def _fetched(place: hub.HubId, options: hub.Options) -> tuple[Card, Path]:
    """Fetch card and weights of one commit."""
    try:
        card = Card.read(hub.fetch(place.repository, CARD_FILE, place.revision, options))
    except hub.NoSuchFileError as error:
        raise WeightsError(
            f"{place} has no {CARD_FILE}: it is no whole model. (The timm layout, whose name ends with -timm, is not "
            "pinned; pin the repository without that ending.)"
        ) from error
    return card, hub.fetch(place.repository, card.file or WEIGHTS_FILE, place.revision, options)


def _compare(card: Card, path: Path, place: hub.HubId, options: hub.Options) -> None:
    """Hold the Hub's weights against those that come without it: shipped, cached, or from the published address."""
    here = sources.verified(card.replace(hub=None), options, lambda found: read_weights(found.path, found.sha256))
    there = read_weights(path)
    different = sorted(here.keys() ^ there.keys())
    different += [key for key in here.keys() & there.keys() if not _equal(here[key], there[key])]
    if different:
        raise WeightsError(
            f"{place} does not hold the weights of {card.name}: {len(different)} of {len(here)} tensors differ "
            f"({', '.join(different[:3])}{', …' if len(different) > 3 else ''})."
        )


def _equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first, second)


def _written(card: Card) -> tuple[Path, ...]:
    path = registry.folder(card) / CARD_FILE
    write_bytes(card.to_json().encode(), path)
    zoo = card_module.weights_folder().parent / "model_zoo.md"
    write_bytes(document.model_zoo().encode(), zoo)
    return path, zoo
