"""The zoo's models in timm: importing this module registers them, since timm looks for no plug-ins.

    import context_pred.integrations.timm
    import timm

    network = timm.create_model("resnet18_1xb64-coslr-300k", pretrained=True, features_only=True)
    timm.list_models("*-300k*", pretrained=True)

A model has the name that it has in the zoo, with the tag where timm has its own: ``resnet50_8xb64-steplr-70e.20220825``
is one file for ever, ``resnet50_8xb64-steplr-70e`` the recommended one. The weights come through ``load_pretrained``:
their digest is checked, and a model trained on BGR images is turned, so that all of them take RGB. There is no
classifier among them; ``num_classes=10`` adds a new one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from context_pred.card import Card
from context_pred.extras import need
from context_pred.zoo import load_pretrained, registry
from context_pred.zoo.layouts import TAG, timm_config

from ._models import turned

_models = need("timm.models", "context_pred.integrations.timm", extra="timm")

__all__ = ["pretrained_cfg", "register"]


def register() -> list[str]:
    """Register the zoo's ResNets in timm, those that are not there yet; importing this module does it.

    Returns:
        The names, without tags, as ``timm.list_models`` lists them.
    """
    tagged = {card.name: card for card in registry.cards() if card.backbone.startswith("resnet")}
    cards: dict[str, Card] = {}
    for card in tagged.values():
        cards[card.name.partition(".")[0]] = registry.find(card.name.partition(".")[0]) or card
    # An asterisk marks the tag that a name without one stands for.
    default_cfgs.update(
        _models.generate_default_cfgs(
            {
                name + "*" * (cards[name.partition(".")[0]] == card): pretrained_cfg(card)
                for name, card in tagged.items()
            }
        )
    )
    for name, card in cards.items():
        if not _models.is_model(name):
            _models.register_model(_entrypoint(name, card))
            __all__.remove(name)  # timm adds it, and it is no name of Python's
    return list(cards)


def pretrained_cfg(card: Card) -> dict[str, Any]:
    """Return what timm knows of a model: input, preprocessing, licence and source; RGB, whatever the file was.

    Args:
        card: Of a ResNet.

    Returns:
        Entries of timm's ``PretrainedCfg``; ``mean`` and ``std`` are for images in [0, 1].
    """
    rgb = card.replace(mean=card.mean[::-1], std=card.std[::-1]) if card.channel_order == "bgr" else card
    known = timm_config(rgb, 0)["pretrained_cfg"]
    known |= {key: tuple(value) for key, value in known.items() if isinstance(value, list)}
    # timm asks for a source to call a model pretrained; the weights come through load_pretrained.
    source = str(registry.folder(card) / card.file) if card.file else None
    return {**known, "tag": None, "file": source, "url": card.url, "origin_url": card.paper or None}


def _entrypoint(name: str, card: Card) -> Callable[..., Any]:
    def create(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        cache_dir: str | Path | None = None,
        **options: Any,
    ) -> Any:
        known = _models.resolve_pretrained_cfg(name, pretrained_cfg, pretrained_cfg_overlay)
        sources = ("file", "url", "hf_hub_id", "state_dict")
        elsewhere = not isinstance(pretrained_cfg, str | None) or any(map((pretrained_cfg_overlay or {}).get, sources))
        if pretrained and not elsewhere:
            known = dataclasses.replace(known, state_dict=_weights(f"{name}.{known.tag}", cache_dir))
        # The architecture is timm's own, so that what timm saves of the network loads without this library.
        known = dataclasses.replace(known, architecture=card.backbone, tag=TAG)
        build = getattr(_models, card.backbone)
        network = build(pretrained, pretrained_cfg=known, cache_dir=cache_dir, **options)
        network.pretrained_cfg.pop("state_dict", None)
        return network

    create.__name__ = create.__qualname__ = name
    create.__module__ = __name__
    create.__doc__ = f"{card.title or name}: timm's {card.backbone} with the zoo's weights."
    return create


def _weights(name: str, cache_dir: str | Path | None) -> dict[str, Any]:
    return dict(turned(load_pretrained(name, cache_dir=cache_dir)).backbone.state_dict())


default_cfgs: dict[str, Any] = {}
"""Name → timm's ``DefaultCfg``; timm looks for it here."""

register()
