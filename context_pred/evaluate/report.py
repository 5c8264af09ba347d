"""A result as result.json, result.md, plot.png and the printed table."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from context_pred.errors import storing

from .job import Measurement, Published, Result
from .published import of_model

FILES = ("result.json", "result.md", "plot.png")

At = tuple[tuple[str, float | str], ...]

_ALL = {"class": "all", "position": "all"}
"""What a table says where a figure is not of one class, but of all."""


def write(result: Result, out: Path) -> None:
    """Write result.json, result.md and plot.png into a folder; raises StorageError where that fails."""
    from .plot import draw

    with storing(out):
        _replace(out / "result.json", json.dumps(to_dict(result), indent=1, ensure_ascii=False) + "\n")
        _replace(out / "result.md", f"{text(result)}\n\n![{result.protocol}](plot.png)\n")
        draw(result, out / "plot.png")


def _replace(path: Path, content: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(content, encoding="utf-8")
    os.replace(temporary, path)


def to_dict(result: Result) -> dict[str, Any]:
    """Return a result as plain JSON values."""
    return dataclasses.asdict(result)


def text(result: Result) -> str:
    """Return the report as Markdown that reads well in a terminal: heading, table, and what it ran on."""
    ran = result.ran_on
    title = f"# {result.protocol}{f' ({result.variant})' if result.variant else ''}: {ran.get('model', '?')}"
    notes: list[str] = []
    parts = [title, _measured(result, notes)]
    counts = sorted({m.count for m in result.measured if m.spread is not None})
    if counts:
        parts.append(f"±: standard deviation over {' or '.join(map(str, counts))} {_drawn(ran)}.")
    if result.best is not None:
        place = where(result.best.layer, result.best.at)
        parts.append(f"Best: {place}{', ' if place else ''}{result.best.metric} {percent(result.best.value)} %.")
    said = [f"[{k + 1}] {note}" for k, note in enumerate(notes)]
    elsewhere = _elsewhere(result)
    if said or elsewhere:
        parts.append("\n".join(["Published:", "", *(f"- {line}" for line in [*said, *elsewhere])]))
    warning = _comparable(result)
    if warning:
        parts.append(warning)
    parts.append(ran_on(result))
    return "\n\n".join(parts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an aligned Markdown table; columns that are empty throughout are left out."""
    kept = [k for k in range(len(head)) if any(row[k] for row in rows)] or list(range(len(head)))
    cells = [[row[k] for k in kept] for row in (head, *rows)]
    widths = [max(3, *(len(row[k]) for row in cells)) for k in range(len(kept))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]])


def _measured(result: Result, notes: list[str]) -> str:
    """Return the table: a row a layer and setting, and for each metric what was measured and what was published."""
    keys = list(dict.fromkeys(key for m in result.measured for key in m.at))
    metrics = list(dict.fromkeys(m.metric for m in result.measured))
    cells: dict[tuple[str, At], dict[str, Measurement]] = {}
    for measured in result.measured:
        cells.setdefault((measured.layer or "", tuple(measured.at.items())), {})[measured.metric] = measured
    head = ["layer", *keys]
    for metric in metrics:
        head += [f"{metric} %", "published %"]
    rows = []
    for (layer, at), found in cells.items():
        row = [layer, *(_shown(dict(at)[key]) if key in dict(at) else _ALL.get(key, "") for key in keys)]
        for metric in metrics:
            row += (
                [_value(found[metric], result), _beside(found[metric], result, notes)] if metric in found else ["", ""]
            )
        rows.append(row)
    return table(head, rows)


def _value(measured: Measurement, result: Result) -> str:
    best = result.best is not None and _same(measured, result.best)
    return f"{percent(measured.value, measured.spread)}{' *' if best else ''}"


def _beside(measured: Measurement, result: Result, notes: list[str]) -> str:
    """The published figures of the same metric, layer and setting, each with the number of its note."""
    cells = []
    beside = [figure for figure in result.published if _same(measured, figure)]
    for figure in of_model(beside, str(result.ran_on.get("file", ""))):
        note = _source(figure)
        if note not in notes:
            notes.append(note)
        cells.append(f"{percent(figure.value)} [{notes.index(note) + 1}]")
    return " / ".join(cells)


def _drawn(ran: Mapping[str, Any]) -> str:
    return "seeds" if len(ran.get("seeds", ())) > 1 else "samples"


def _same(one: Measurement | Published, other: Measurement | Published) -> bool:
    return (one.metric, one.layer, dict(one.at)) == (other.metric, other.layer, dict(other.at))


def _elsewhere(result: Result) -> list[str]:
    """Say the figures that stand beside nothing measured: of other layers and settings, and of other models."""
    groups: dict[tuple[str, str], list[Published]] = {}
    for figure in result.published:
        beside = any(_same(measured, figure) for measured in result.measured)
        if figure.of != "relative location" or not beside:
            groups.setdefault((_source(figure), figure.metric), []).append(figure)
    lines = []
    for (source, metric), figures in groups.items():
        layers = {figure.layer for figure in figures}
        places = [where(figure.layer if len(layers) > 1 else None, figure.at) for figure in figures]
        values = [percent(f.value) + f" ({place})" * bool(place) for f, place in zip(figures, places, strict=True)]
        on = f" on {figures[0].layer}" if len(layers) == 1 and figures[0].layer else ""
        lines.append(f"{metric}{on} {', '.join(values)}: {source}")
    return lines


def _source(figure: Published) -> str:
    parts = [figure.of, figure.data, figure.source, figure.file or "", figure.note]
    return ", ".join(part for part in parts if part)


def where(layer: str | None, at: Mapping[str, float | str]) -> str:
    """Say where a figure stands: its layer, where it has one, and its settings."""
    return ", ".join([*([layer] if layer else []), *(f"{key} = {_shown(value)}" for key, value in at.items())])


def percent(value: float, spread: float | None = None) -> str:
    """Say a share in per cent, ± its spread."""
    return f"{100 * value:.2f}" + ("" if spread is None else f" ± {100 * spread:.2f}")


def _shown(value: float | str) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


_DATA = {
    "voc2007": ("VOC2007", 5011, 4952),
    "imagenet": ("ImageNet-1k", 1_281_167, 50_000),
    "places205": ("Places205", 2_448_873, 20_500),
    "voc0712": ("VOC07+12", 16_551, 4952),
    "coco": ("COCO2017", 117_266, 5000),
    "voc12aug": ("VOC12 + Aug", 10_582, 1449),
}
"""What each layout holds where it is the whole archive: its name, and its images of training and test."""


def _comparable(result: Result) -> str:
    """Say so where the published figures belong to other data, weights or settings than were measured."""
    figures = [figure for figure in result.published if figure.of == "relative location"]
    if not figures:
        return ""
    data = result.ran_on.get("data", {})
    name, train, test = _DATA.get(data.get("kind", ""), ("", 0, 0))
    reasons = []
    if name not in {figure.data for figure in figures}:
        reasons.append(f"this one is on {data.get('name', 'other data')}")
    elif (data["train"], data["test"]) != (train, test):
        reasons.append(
            f"{name} has {train:,} and {test:,} images, and these are {data['train']:,} and {data['test']:,}"
        )
    paper = result.protocol == "pretext" or (result.variant or "").startswith("voc07-")
    if paper or not str(result.ran_on.get("file", "")).startswith("resnet50_8xb64-steplr-70e"):
        network = "the paper's own network" if paper else "a ResNet-50"
        reasons.append(f"they are of {network} trained on ImageNet, and this is {result.ran_on.get('model')}")
    other = result.ran_on.get("other_settings", ())
    if other:
        settings = result.ran_on["settings"]
        changed = ", ".join(f"{name} = {_setting(settings[name])}" for name in other)
        reasons.append(f"the protocol's settings were changed: {changed}")
    return f"The published figures are not to be held against this run: {'; '.join(reasons)}." if reasons else ""


def ran_on(result: Result) -> str:
    """Say in lines what a result was measured on."""
    ran, data = result.ran_on, result.ran_on.get("data", {})
    transform = ran.get("transform", {})
    lines = [f"Data: {note}" for note in data.get("notes", [])]
    lines += [str(note) for note in ran.get("notes", [])]
    lines += [str(note) for note in result.details.get("notes", [])]
    if transform:
        how = "squashed to" if transform["squash"] else "the centre of"
        lines.append(
            f"Images: shorter side {transform['resize']} px, {how} {transform['size']} × {transform['size']} px "
            f"({transform['resampling']}), {transform['channel_order'].upper()}, mean "
            f"{_numbers(transform['mean'])}, std {_numbers(transform['std'])}; pooling {ran.get('pool', '')}."
        )
    if ran.get("images"):
        lines.append(f"Images: {ran['images']}")
    if ran.get("digest"):
        whose = f" (of seed {ran['seeds'][0]})" if str(ran["model"]).startswith("random:") else ""
        lines.append(f"Model: {ran['model']}, backbone's SHA-256 {ran['digest'][:16]}…{whose}.")
    if ran.get("command"):
        lines.append(f"Command: `{ran['command']} --out OUT`")
    if ran.get("settings"):
        lines.append("Settings: " + ", ".join(f"{key} = {_setting(v)}" for key, v in ran["settings"].items()) + ".")
    if "seeds" in ran:
        many = f", {ran['processes']} processes" if ran.get("processes", 1) > 1 else ""
        seeds = ", ".join(map(str, ran["seeds"]))
        lines.append(f"Seeds: {seeds}. This call: {ran.get('seconds', 0):.0f} s on {ran.get('device')}{many}.")
    if ran.get("versions"):
        lines.append("Versions: " + ", ".join(f"{name} {v}" for name, v in ran["versions"].items()) + ".")
    return "\n".join(f"- {line}" for line in lines)


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"


def _setting(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(_setting, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value) or "''"
