"""``load_pretrained``: a name, a path or a Hub id becomes a model in eval mode."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from context_pred.card import WEIGHTS_FILE, Card, ChannelOrder, LabelOrder
from context_pred.errors import InvalidInputError

from . import sources
from .hub import HubId, Options
from .sources import Found

if TYPE_CHECKING:
    import torch

    from context_pred.model import ContextPredictionModel


def load_pretrained(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    force_download: bool = False,
    progress: bool = True,
    in_channels: int | None = None,
    label_order: LabelOrder | None = None,
    channel_order: ChannelOrder | None = None,
    device: str | torch.device | None = None,
) -> ContextPredictionModel:
    """Load a pretrained model, verified, in eval mode.

    A name of the zoo is looked for in the cache, then on the Hub, then at its published URL. Every digest is checked
    before a byte is parsed, also of files that are cached already.

    Args:
        name_or_path: A name (``context_pred.list_models()``); a path to a model folder, a ``.safetensors`` file or a
            checkpoint, somebody's or of a run (``RUN/checkpoints/best.pt``); or ``hf-hub:owner/name@revision``.
        revision: Commit (40 hex digits), branch or tag, for a Hub id that names none.
        cache_dir: Folder for downloads, in place of the Hub's own cache folders.
        local_files_only: Ask no server; so does HF_HUB_OFFLINE=1.
        token: For private repositories, as in huggingface-hub.
        force_download: Fetch again although cached.
        progress: Show download bars on stderr.
        in_channels: Adapt the stem to images of so many channels (summed for 1, repeated in turn × 3 / n otherwise).
        label_order: "raster" or "openmmlab-1.x", for a checkpoint with a head that does not tell.
        channel_order: "rgb" or "bgr", for a checkpoint that does not tell.
        device: Where to put the model; None: the CPU.

    Returns:
        The model; ``model.card`` says what it is, ``model.transform`` prepares images for it, and its head counts
        positions in raster order whatever the checkpoint did. A backbone-only file gives ``neck = head = None``.

    Raises:
        UnknownNameError: no such model; near matches are named.
        InvalidInputError: an ambiguous name, a Hub id without a revision, an order that contradicts the card.
        NotCachedError: not on this machine, and not to be fetched; the message says the ways out.
        DownloadError: a server answered, and did not give the file.
        DigestError: the bytes are not the promised ones.
        WeightsError: not weights, weights of another network, or weights that do not tell an order.
        StorageError: the cache is read-only or the disk is full.

    Examples:
        >>> import torch
        >>> model = load_pretrained("resnet18_1xb64-coslr-300k")  # ships with the library
        >>> model.embed(torch.zeros(2, 3, 96, 96), layer="feature3").shape
        torch.Size([2, 128])
    """
    from context_pred.model import ContextPredictionModel
    from context_pred.weights_file import read_weights

    options = Options(cache_dir, local_files_only, token, force_download, progress)
    target = sources.resolve(name_or_path, revision)

    def use(found: Found) -> ContextPredictionModel:
        if found.card is None:
            return _foreign(found, target, in_channels, label_order, channel_order)
        _agree(found.card, label_order, channel_order)
        state = read_weights(found.path, found.sha256)
        return ContextPredictionModel.from_card(found.card, state, in_channels=in_channels)

    model = sources.verified(target, options, use)
    return model if device is None else model.to(device)


def _agree(card: Card, label_order: LabelOrder | None, channel_order: ChannelOrder | None) -> None:
    """Refuse an order that the card already tells otherwise."""
    if channel_order not in (None, card.channel_order):
        raise InvalidInputError(
            f"channel_order={channel_order!r}, but the card of {card.name} says {card.channel_order!r}; leave it out. "
            "(The argument is for checkpoints that do not tell.)"
        )
    if label_order not in (None, "raster"):
        raise InvalidInputError(
            f"label_order={label_order!r}, but the head of {card.name} counts in raster order, as all that this "
            "library keeps; leave it out. (The argument is for checkpoints that do not tell.)"
        )


def _foreign(
    found: Found,
    target: Card | HubId | Path,
    in_channels: int | None,
    label_order: LabelOrder | None,
    channel_order: ChannelOrder | None,
) -> ContextPredictionModel:
    """Convert somebody's file in memory; one of the zoo's own published files is known by its digest.

    Beside a backbone in timm's layout, timm's ``config.json`` says how images are prepared.
    """
    from context_pred.model import ContextPredictionModel

    from . import convert, layouts

    known = convert.known_card(found.path, sources.check_digest(found))
    converted = convert.convert_checkpoint(found.path, card=known, channel_order=channel_order, label_order=label_order)
    timm = layouts.timm_entries(found.path.parent) if found.path.name == WEIGHTS_FILE else {}
    if known is not None:
        card = convert.in_channel_order(known, converted.channel_order)
    elif timm and not converted.pair_layers and converted.channel_order == "rgb":
        card = Card(backbone=converted.backbone, in_channels=converted.in_channels, pair_layers=False, **timm)
    else:
        card = converted.card(str(target) if isinstance(target, HubId) else found.path.name)
    return ContextPredictionModel.from_card(card, converted.state_dict, in_channels=in_channels)
