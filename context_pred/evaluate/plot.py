"""The picture of a result: a panel a metric, a line a layer or setting, published figures as hollow points."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from context_pred.errors import storing
from context_pred.extras import need
from context_pred.pictures import COLORS

from .job import Measurement, Published, Result
from .published import of_model

Figure = Measurement | Published

BARS = ("class", "position")
"""Settings whose values are drawn as bars, one a value, beside that of all."""


def draw(result: Result, path: Path) -> None:
    """Draw a result to a PNG file.

    Raises:
        InvalidInputError: matplotlib is not installed.
        StorageError: the file cannot be written.
    """
    backend = need("matplotlib.backends.backend_agg", "The plot")
    figures = need("matplotlib.figure", "The plot")
    parts = [key for key in BARS if any(key in m.at for m in result.measured)]
    if parts:
        _bars(result, parts[0], path)
        return
    if all(m.layer is None and not m.at for m in result.measured):
        _one_each(result, path)
        return
    metrics = list(dict.fromkeys(m.metric for m in result.measured))
    figure = figures.Figure(figsize=(max(5.2, 4.2 * len(metrics)), 4.2), layout="constrained")
    backend.FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
    for panel, metric in zip(panels, metrics, strict=True):
        mine = [m for m in result.measured if m.metric == metric]
        beside = of_model([p for p in result.published if p.metric == metric], str(result.ran_on.get("file", "")))
        _panel(panel, mine, beside)
        panel.set_title(metric, fontsize=10)
    panels[0].set_ylim(bottom=0)  # shared, and only now that all have been drawn
    panels[0].set_ylabel("%")
    entries: dict[str, Any] = {}
    for panel in panels:
        entries |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    if len(entries) > 1:
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    _save(result, figure, path)


def _one_each(result: Result, path: Path) -> None:
    """Draw metrics that have a single figure each side by side, with the published ones."""
    from matplotlib.figure import Figure as Canvas

    names = [m.metric for m in result.measured]
    figure = Canvas(figsize=(max(5.2, 1.1 * len(names)), 4.2), layout="constrained")
    panel = figure.subplots()
    spreads = [100 * (m.spread or 0.0) for m in result.measured]
    panel.errorbar(
        range(len(names)), [100 * m.value for m in result.measured], yerr=spreads if any(spreads) else None, fmt="o",
        color=_color(0), ms=4, capsize=3, label="measured",
    )  # fmt: skip
    known = [one for one in result.published if one.metric in names and one.layer is None and not one.at]
    beside = of_model(known, str(result.ran_on.get("file", "")))
    if beside:
        label = f"published ({', '.join(dict.fromkeys(one.data for one in beside))})"
        xs, ys = [names.index(one.metric) for one in beside], [100 * one.value for one in beside]
        panel.plot(xs, ys, "o", mfc="none", color=_color(0), ms=8, label=label)
    panel.set_xticks(range(len(names)), names)
    panel.set_xlim(-0.5, len(names) - 0.5)
    panel.set_ylim(bottom=0)
    panel.set_ylabel("%")
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    _save(result, figure, path)


def _save(result: Result, figure: Any, path: Path) -> None:
    data = result.ran_on.get("data", {}).get("name", "")
    figure.suptitle(f"{result.protocol}: {result.ran_on.get('model', '')} on {data}", fontsize=11)
    with storing(path), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # names of classes in scripts that the font lacks
        figure.savefig(path, dpi=120, format="png")


def _bars(result: Result, key: str, path: Path) -> None:
    """Draw a bar a class (or position) for each metric that has any; lines for the figure of all and the published."""
    from matplotlib.figure import Figure as Canvas

    by_metric = {m.metric: [one for one in result.measured if one.metric == m.metric and key in one.at]
                 for m in result.measured}  # fmt: skip
    by_metric = {metric: mine for metric, mine in by_metric.items() if mine}
    longest = max(len(mine) for mine in by_metric.values())
    figure = Canvas(figsize=(max(5.2, 4.6 * len(by_metric)), max(2.6, 1.4 + 0.26 * longest)), layout="constrained")
    panels = figure.subplots(1, len(by_metric), squeeze=False)[0]
    for panel, (metric, mine) in zip(panels, by_metric.items(), strict=True):
        values, spreads = [100 * m.value for m in mine], [100 * (m.spread or 0) for m in mine]
        panel.barh([str(m.at[key]) for m in mine], values, xerr=spreads if any(spreads) else None, color=_color(0))
        panel.invert_yaxis()
        for whole in (m for m in result.measured if key not in m.at and _means(m.metric, metric)):
            panel.axvline(100 * whole.value, color="black", label=f"{whole.metric} {100 * whole.value:.1f}")
        of_all = [p for p in result.published if key not in p.at and _means(p.metric, metric)]
        for number, known in enumerate(of_model(of_all, str(result.ran_on.get("file", "")))):
            label = f"published {100 * known.value:.1f} ({known.data or known.source})"
            panel.axvline(100 * known.value, color=_color(number + 1), ls="--", label=label)
        panel.set_xlim(left=0)
        panel.set_xlabel(f"{metric} %")
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    _save(result, figure, path)


def _means(whole: str, part: str) -> bool:
    """Tell whether one metric is the mean over classes of the other: mIoU of IoU, mAP of AP."""
    return whole in (part, f"m{part}")


def _panel(panel: Any, measured: Sequence[Measurement], published: Sequence[Published]) -> None:
    key = _numeric(measured)
    layers = list(dict.fromkeys(m.layer or "" for m in measured))
    settings = list(dict.fromkeys(_setting(m) for m in measured))
    alone = layers == [""] and not key  # no layers: the settings run along the axis
    groups = layers if key or alone else settings
    group_of = (lambda f: f.layer or "") if key or alone else _setting
    names = settings if alone else layers
    places = {} if key else {name: k for k, name in enumerate(names)}

    def across(figure: Figure) -> float | None:
        if key and key in figure.at:
            return float(figure.at[key])
        return places.get(_setting(figure) if alone else figure.layer or "")

    for k, group in enumerate(groups):
        color = _color(k)
        _line(panel, [m for m in measured if group_of(m) == group], across, group or "measured", color)
        known = [(x, p) for p in published if group_of(p) == group and (x := across(p)) is not None]
        if known:
            label = f"published ({', '.join(dict.fromkeys(p.data for _, p in known))})"
            xs, ys = [x for x, _ in known], [100 * p.value for _, p in known]
            panel.plot(xs, ys, "o", mfc="none", color=color, ms=8, label=label)
    if key:
        drawn: list[Figure] = [*measured, *(p for p in published if group_of(p) in groups and key in p.at)]
        ticks = sorted({float(figure.at[key]) for figure in drawn})
        if min(ticks) > 0:
            panel.set_xscale("log")
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
        panel.set_xlabel(key)
    else:
        panel.set_xticks(range(len(names)), names)
        panel.margins(x=0.1)
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)


def _line(panel: Any, mine: Sequence[Measurement], across: Any, label: str, color: tuple[float, ...]) -> None:
    points = sorted(((across(m), m) for m in mine), key=lambda point: point[0])
    xs, ys = [x for x, _ in points], [100 * m.value for _, m in points]
    errors = [100 * (m.spread or 0.0) for _, m in points]
    panel.errorbar(xs, ys, yerr=errors if any(errors) else None, fmt="o-", color=color, ms=4, capsize=3, label=label)


def _numeric(measured: Sequence[Measurement]) -> str | None:
    """The setting that runs along the axis: one that takes several numbers."""
    for key in dict.fromkeys(key for m in measured for key in m.at):
        values = {m.at[key] for m in measured if key in m.at}
        if len(values) > 1 and all(isinstance(value, (int, float)) for value in values):
            return key
    return None


def _setting(figure: Figure) -> str:
    return ", ".join(f"{key} {value}" for key, value in figure.at.items())


def _color(number: int) -> tuple[float, ...]:
    return tuple(value / 255 for value in COLORS[number % len(COLORS)])
