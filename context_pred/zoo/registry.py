"""Names → cards. The registry is the folder of cards itself: one ``weights/NAME/card.json`` is one model."""

from __future__ import annotations

import difflib
import fnmatch
import re
from pathlib import Path

from context_pred import card as card_module
from context_pred.card import CARD_FILE, Card
from context_pred.errors import UnknownNameError, WeightsError

HUB_PREFIX = "hf-hub:"


def cards() -> tuple[Card, ...]:
    """Return every card of the registry, in natural order of the names (``resnet18`` before ``resnet101``).

    Raises:
        WeightsError: a card is unreadable, lies in a folder of another name, or claims a name another card has.
    """
    found: list[Card] = []
    owners: dict[str, str] = {}
    for path in sorted(card_module.weights_folder().glob(f"*/{CARD_FILE}")):
        card = Card.read(path)
        if card.name != path.parent.name:
            raise WeightsError(f"{path} is the card of {card.name!r}; a card's folder has the name of its model.")
        for name in (card.name, *card.aliases):
            if name in owners:
                raise WeightsError(f"Two cards claim the model name {name!r}: {owners[name]} and {card.name}.")
            owners[name] = card.name
        found.append(card)
    return tuple(sorted(found, key=lambda card: natural(card.name)))


def list_models(pattern: str = "*") -> list[str]:
    """Return the model names that match a glob pattern, in natural order.

    Both kinds of name are listed, and both load: a tagged name (``resnet50_8xb64-steplr-70e.20220825``) is one file for
    ever, a plain name (``resnet50_8xb64-steplr-70e``) is whichever file its card is recommended as today.

    Args:
        pattern: As of a shell: "resnet50*"; "*" are all.

    Examples:
        >>> list_models("resnet18*")
        ['resnet18_1xb64-coslr-300k', 'resnet18_1xb64-coslr-300k.20261123']
    """
    names = {name for card in cards() for name in (card.name, *card.aliases)}
    return sorted(fnmatch.filter(names, pattern), key=natural)


def model_info(name: str) -> Card:
    """Return the card of a model of the registry.

    Args:
        name: Plain or tagged.

    Raises:
        UnknownNameError: no such model; the message lists near matches.
    """
    card = find(name)
    if card is None:
        raise unknown_model(name)
    return card


def find(name: str) -> Card | None:
    """Return the card that ``name`` (tagged or plain) stands for, or None."""
    return next((card for card in cards() if name == card.name or name in card.aliases), None)


def folder(card: Card) -> Path:
    """Return the folder that holds the card, and its weights if they ship with the library."""
    return card_module.weights_folder() / card.name


def shipped() -> tuple[Card, ...]:
    """Return the cards whose weights are installed with the library: these load without any network."""
    return tuple(card for card in cards() if card.file is not None and (folder(card) / card.file).is_file())


def default_name() -> str | None:
    """Return the name of the model that ships, the plain one if it has one; None where none ships."""
    names = [card.aliases[0] if card.aliases else card.name for card in shipped()]
    return names[0] if names else None


def natural(name: str) -> list[tuple[bool, int, str]]:
    """Return a sort key under which numbers inside names count as numbers."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name) if part]


def unknown_model(name: str) -> UnknownNameError:
    """Make the error for a name that is neither a model, nor a path, nor a Hub id; it says how each is written."""
    names = list_models()
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    stem = name.partition(".")[0]
    near += [other for other in names if other not in near and other.startswith(stem)][: 3 - len(near)]
    meant = f" Did you mean {' or '.join(repr(other) for other in near)}?" if near else ""
    hub = (
        f" A model on the Hub is written '{HUB_PREFIX}{name}@REVISION'."
        if re.fullmatch(r"[\w.-]+/[\w.-]+", name)
        else ""
    )
    return UnknownNameError(
        f"Unknown model {name!r}: neither a name of the zoo, nor an existing path.{meant}{hub} Accepted: "
        f"{', '.join(names) or 'none'}; a path to a model folder, a .safetensors file or a checkpoint; "
        f"or '{HUB_PREFIX}owner/name@revision'."
    )
