"""The ``[sampler]`` of a recipe: its options checked one by one, and written out whole."""

from __future__ import annotations

import inspect
from typing import Any

from context_pred import tables
from context_pred.card import fit_channels
from context_pred.errors import ContextPredError, InvalidInputError, unknown
from context_pred.patches import SAMPLERS, sampler_from_config


def whole_sampler(config: dict[str, Any], in_channels: int) -> dict[str, Any]:
    """Write every option of a sampler out, mean and std fitted to the channels where they are the preset's."""
    try:
        _check_sampler_options(config)
        options = _every_option(config)
        usual = _every_option({"type": options["type"], "preset": options["preset"]})
    except ContextPredError as error:
        text = str(error)
        raise type(error)(text if text.startswith("[sampler]") else f"[sampler]: {text}") from error
    if options["type"] != "GridPatchSampler":
        return options
    for name in ("mean", "std"):
        if options[name] == usual[name] or options[name] == list(fit_channels(tuple(usual[name]), len(options[name]))):
            options[name] = list(fit_channels(tuple(usual[name]), in_channels))
    return options


def _every_option(config: dict[str, Any]) -> dict[str, Any]:
    """Return all of a sampler's options, also those that its card leaves out where they are upstream's."""
    sampler = sampler_from_config(config)
    names = [name for name in inspect.signature(type(sampler)).parameters if name != "preset"]
    values = {name: getattr(sampler, name) for name in ("preset", *names)}
    kept = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return {"type": type(sampler).__name__, **kept}


def _check_sampler_options(config: dict[str, Any]) -> None:
    """Check the sampler's options one by one against the kind of value that its preset has."""
    if "type" not in config:
        raise InvalidInputError(f"[sampler] lacks type; accepted: {', '.join(SAMPLERS)}.")
    named: dict[str, Any] = {key: config[key] for key in ("type", "preset") if key in config}
    for key in named:
        tables.value_of(str, config[key], f"[sampler] {key}")
    usual = _every_option(named)
    for key, value in config.items():
        if key not in usual:
            error = unknown(f"option of {usual['type']}", key, usual)
            raise type(error)(f"[sampler]: {error}")
        like = usual[key]
        kind: Any = tuple[type(like[0]), ...] if isinstance(like, list) else type(like)  # type: ignore[misc]
        tables.value_of(kind, value, f"[sampler] {key}")
