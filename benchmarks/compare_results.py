"""Several results of one protocol side by side: a Markdown table on stdout, and a picture.

    python benchmarks/compare_results.py --metric top-1 --out layers.png shipped=OUT1 random=OUT2 pixels=OUT3
    python benchmarks/compare_results.py --metric mAP --at k=16 …

    python benchmarks/compare_results.py --metric purity --out curves.png shipped=OUT1 random=OUT2

Each OUT is a folder of ``context-pred evaluate``. Rows are layers (classes, where the protocol has no layers), columns
the results, ± the standard deviation over seeds. With ``--metric purity`` each OUT is one of ``context-pred discover
--labels``: the areas under the purity-coverage curves, and the curves.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from context_pred.evaluate.report import percent
from context_pred.pictures import COLORS


def read(folder: str, metric: str, at: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Return {layer or class: measurement} of one result; the best over a setting that is not asked for."""
    record = json.loads((Path(folder) / "result.json").read_text(encoding="utf-8"))
    found: dict[str, dict[str, Any]] = {}
    for one in record["measured"]:
        said = {key: str(value) for key, value in one["at"].items()}
        if one["metric"] != metric or any(said.get(key) != value for key, value in at.items()):
            continue
        row = one["layer"] or said.get("class") or said.get("position") or "all"
        if row not in found or one["value"] > found[row]["value"]:
            found[row] = one
    if not found:
        raise SystemExit(f"{folder} has no {metric} at {at}.")
    return found


def main() -> None:
    """Print the table and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", metavar="NAME=OUT")
    parser.add_argument("--metric", required=True)
    parser.add_argument("--at", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--title", default="")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.metric == "purity":
        compare_curves(dict(one.split("=", 1) for one in args.results), args.title, args.out)
        return
    at = dict(pair.split("=", 1) for pair in args.at)
    tables = {name: read(folder, args.metric, at) for name, folder in (one.split("=", 1) for one in args.results)}
    rows = list(dict.fromkeys(row for table in tables.values() for row in table if len(table) > 1)) or ["all"]
    single = {name: next(iter(table.values())) for name, table in tables.items() if len(table) == 1}
    print("| | " + " | ".join(tables) + " |\n|" + " --- |" * (len(tables) + 1))
    for row in rows:
        print(f"| {row} | " + " | ".join(shown(table.get(row), at) for table in tables.values()) + " |")
    if single and rows != ["all"]:
        print("| alone | " + " | ".join(shown(single.get(name), at) for name in tables) + " |")
    if args.out:
        draw(tables, rows, single, args.metric, args.title, args.out)


def compare_curves(folders: dict[str, str], title: str, out: Path | None) -> None:
    """Print the areas of discoveries, and draw their curves."""
    figure, panel = panel_of(5.6, title)
    print("| | area | up to one half | covered | clusters | purity of the first 100 |\n|" + " --- |" * 6)
    for number, (name, folder) in enumerate(folders.items()):
        record = json.loads((Path(folder) / "clusters.json").read_text(encoding="utf-8"))
        found = record["purity-coverage"]
        first = [cluster["purity"] for cluster in record["clusters"][:100]]
        areas = f"{found['area']:.3f} | {found['area up to half']:.3f} | {found['coverage'][-1]:.0%}"
        print(f"| {name} | {areas} | {len(record['clusters'])} | {sum(first) / len(first):.2f} |")
        panel.plot(found["coverage"], found["purity"], color=color_of(number), label=name)
    panel.set(xlabel="coverage", ylabel="mean purity", xlim=(0, 1), ylim=(0, 1.02))
    save(figure, panel, out)


def shown(one: dict[str, Any] | None, asked: dict[str, str]) -> str:
    """Return a figure in per cent, with the setting it was found at where that was not asked for."""
    if one is None:
        return ""
    known = ("class", "position", "pool", *asked)
    at = "".join(f" ({key} {value})" for key, value in one["at"].items() if key not in known)
    return f"{percent(one['value'], one['spread'])}{at}"


def draw(tables: dict[str, Any], rows: list[str], single: dict[str, Any], metric: str, title: str, out: Path) -> None:
    """Draw lines over layers, bars over classes; results of one row alone as dashed lines."""
    layers = all(row.startswith("feature") for row in rows)
    figure, panel = panel_of(5.6 if layers else max(5.6, 0.75 * len(rows)), title)
    width = 0.8 / len(tables)
    for number, (name, table) in enumerate(tables.items()):
        color = color_of(number)
        if name in single and rows != ["all"]:
            panel.axhline(100 * single[name]["value"], color=color, ls="--", label=name)
            continue
        mine = [row for row in rows if row in table]
        values = [100 * table[row]["value"] for row in mine]
        spreads = [100 * (table[row]["spread"] or 0) for row in mine]
        places = [rows.index(row) for row in mine]
        if layers:
            panel.errorbar(places, values, yerr=spreads, fmt="o-", color=color, ms=4, capsize=3, label=name)
        else:
            left = [place + (number - (len(tables) - 1) / 2) * width for place in places]
            panel.bar(left, values, width, yerr=spreads if any(spreads) else None, color=color, capsize=3, label=name)
    panel.set_xticks(range(len(rows)), rows, rotation=30 if len(rows) > 6 else 0)
    panel.set_ylabel(f"{metric} %")
    panel.set_ylim(bottom=0)
    save(figure, panel, out)


def color_of(number: int) -> tuple[float, ...]:
    """Return the palette's colour of a result."""
    return tuple(value / 255 for value in COLORS[number % len(COLORS)])


def panel_of(width: float, title: str) -> tuple[Figure, Any]:
    """Make a figure of one panel, `width` inches wide."""
    figure = Figure(figsize=(width, 3.8), layout="constrained")
    panel = figure.subplots()
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_title(title, fontsize=10)
    return figure, panel


def save(figure: Figure, panel: Any, out: Path | None) -> None:
    """Write the figure with its legend, where it is wanted."""
    if out:
        panel.legend(fontsize=8, framealpha=0.9, edgecolor="none")
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
