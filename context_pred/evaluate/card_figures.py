"""What ``context-pred evaluate`` measured, as the numbers of a model's card."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from context_pred.card import CARD_FILE, Card, Metric
from context_pred.errors import InvalidInputError, storing

from . import report, sources

_PARTS = ("class", "position")
"""Figures of a part of the data alone do not go on a card."""


def add(folder: str | Path, outs: Sequence[str | Path]) -> tuple[Metric, ...]:
    """Put the figures of finished evaluations on a model's card; those that the same command gave before are replaced.

    Args:
        folder: The model's: ``card.json`` and its weights.
        outs: Folders of ``context-pred evaluate``: of this model, or of random weights, pixels or HOG to hold it
            against.

    Returns:
        What was put there.

    Raises:
        InvalidInputError: no result in a folder, or one of another model's weights; the card stays as it was.
        NotCachedError: no model in the folder.
        StorageError: the card cannot be written.
    """
    own = sources.find(str(folder))
    place = Path(folder) / CARD_FILE
    card = Card.read(place)
    found = []
    for out in outs:
        result = _read(Path(out))
        ran = result["ran_on"]
        compared = not ran["digest"] or ran["model"].startswith("random:")
        if not compared and ran["digest"] != own.digest:
            raise InvalidInputError(
                f"{out} measured {ran['model']}, backbone's SHA-256 {ran['digest'][:16]}…, and the weights in {folder} "
                f"have {own.digest[:16]}…; accepted are results of these weights, of random:BACKBONE, pixels or hog."
            )
        found += of_result(result, ran["model"] if compared else card.name)
    sources_now = {(metric.measured_on, metric.source) for metric in found}
    kept = [metric for metric in card.metrics if (metric.measured_on, metric.source) not in sources_now]
    with storing(place):
        card.replace(metrics=(*kept, *found)).write(place)
    return tuple(found)


def _read(out: Path) -> dict[str, Any]:
    path = out / "result.json"
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        result["ran_on"]["command"], result["measured"], result["best"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(
            f"{path} is no result of context-pred evaluate; accepted is its OUT, once it has printed the table "
            f"({type(error).__name__}: {error})."
        ) from error
    return result


def of_result(result: Mapping[str, Any], model: str) -> list[Metric]:
    """Return a result's figures for a card: every layer at the best setting, and every setting at the best layer.

    Args:
        result: The content of ``result.json``.
        model: What was measured, by a name that others know too.
    """
    ran, best = result["ran_on"], result["best"]
    data = ran["data"]
    counts = [f"{data[split]:,} {what}" for split, what in (("train", "to learn from"), ("test", "to test on"))]
    whole = [m for m in result["measured"] if not any(part in m["at"] for part in _PARTS)]
    groups: list[tuple[str, list[Any]]] = [("", whole)]
    if best is not None:
        whole = [m for m in whole if m["metric"] == best["metric"]]
        layers = [m for m in whole if m["at"] == best["at"]]
        settings = [m for m in whole if m["layer"] == best["layer"]]
        groups = [(report.where(None, best["at"]), layers)] if len(layers) > 1 or len(settings) == 1 else []
        groups += [("", settings)] if len(settings) > 1 else []
    seeds = len(ran.get("seeds", ()))
    drawn = f"{seeds} seeds" if seeds > 1 else "samples"
    command = shlex.split(ran["command"])
    command[command.index("--model") + 1] = model
    row = f"row {result['variant']}" if result["variant"] else ""
    return [
        Metric(
            benchmark=", ".join(filter(None, (result["protocol"], row, at))),
            dataset=f"{data['name']} ({', '.join(c for c in counts if not c.startswith('0 '))})",
            layer=one["layer"] or "",
            metric=f"{one['metric']} %" + (f" ({report.where(None, one['at'])})" if one["at"] and not at else ""),
            value=report.percent(one["value"], one["spread"]),
            measured_on=model,
            source=f"`{shlex.join(command)}`",
            note=f"± the standard deviation over {drawn}." if any(m["spread"] is not None for m in group) else "",
        )
        for at, group in groups
        for one in group
    ]
