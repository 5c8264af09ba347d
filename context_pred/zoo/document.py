"""The document made from the cards: ``model_zoo.md``.

python -m context_pred.zoo.document            writes it at the repository's root
python -m context_pred.zoo.document --check    exits with 1 where it is not what the cards say
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

from context_pred.card import Card, Metric, weights_folder

from . import registry

HEAD = """\
# Model zoo

*Made from the cards in `weights/` by `python -m context_pred.zoo.document`; change a card, not this file.*

```python
import context_pred

model = context_pred.load_pretrained("NAME")   # any name below, plain or tagged
card = context_pred.model_info("NAME")         # everything below, as a frozen dataclass
```

A tagged name (`….20220825`) is one file for ever; a plain name is the file recommended today. Weights are looked for in
the cache, then on the Hub where a card pins a revision there, then at the published URL, and checked against their
digest each time they are loaded. A published checkpoint is converted once and kept as safetensors with positions in
raster order. "SHA-256 …*" is the prefix that was published with the file.
"""


def model_zoo() -> str:
    """Return ``model_zoo.md`` as text: every model with its files, digests, input, and published numbers."""
    cards = registry.cards()
    parts = [HEAD, "## Models\n", _overview(cards)]
    parts += [_section(card) for card in cards]
    return "\n".join(parts)


def _overview(cards: tuple[Card, ...]) -> str:
    rows = []
    for card in cards:
        names = [f"[`{card.name}`](#{_anchor(card.name)})", *(f"plain name `{alias}`" for alias in card.aliases)]
        where = "ships with the library" if card.file else "Hub" if card.hub else "URL" if card.url else "–"
        rows.append(
            [
                "<br>".join(names),
                card.backbone,
                "yes" if card.pair_layers else "no",
                card.channel_order.upper(),
                f"{card.num_params:,}" if card.num_params else "–",
                where,
                card.license,
            ]
        )
    return _table(["name", "backbone", "neck and head", "channels", "parameters", "comes from", "licence"], rows)


def _section(card: Card) -> str:
    lines = [f"## {card.name}\n", f"**{card.title}.** {card.description}\n" if card.title else f"{card.description}\n"]
    lines.append(_table(["", ""], _facts(card)))
    lines += [f"- {note}" for note in card.notes]
    if card.notes:
        lines.append("")
    lines += _numbers(card.metrics)
    return "\n".join(lines)


def _facts(card: Card) -> list[list[str]]:
    sampler = ", ".join(f"{key} {value}" for key, value in card.patch_sampler.items() if key != "type")
    rows = [
        ["plain name", ", ".join(f"`{alias}`" for alias in card.aliases)],
        ["file", f"`weights/{card.name}/{card.file}`" if card.file else ""],
        ["SHA-256 of the safetensors", f"`{card.sha256}`" if card.sha256 else ""],
        ["Hub", f"`{card.hub.repository}` at `{card.hub.revision}`, SHA-256 `{card.hub.sha256}`" if card.hub else ""],
        ["download", f"[{card.url.rpartition('/')[2]}]({card.url})" if card.url else ""],
        ["SHA-256 of the download", f"`{card.url_sha256_prefix}…`*" if card.url_sha256_prefix else ""],
        ["size", f"{card.file_size:,} bytes" if card.file_size else ""],
        ["input", f"resize {card.resize}, centre crop {card.crop}, {card.channel_order.upper()}"],
        ["mean, std (of values in 0…1, in that order)", f"{_numerals(card.mean)}, {_numerals(card.std)}"],
        ["patch sampler", f"{card.patch_sampler.get('type', '')} ({sampler})"],
        ["label order of the download", card.source_label_order if card.url else ""],
        ["trained on", card.dataset],
        ["trained", card.trained],
        ["recipe", card.recipe],
        ["paper", card.paper],
        ["by", card.authors],
        ["licence", card.license],
    ]
    return [[name, value] for name, value in rows if value]


def _numbers(metrics: tuple[Metric, ...]) -> list[str]:
    """Make one small table of each run of numbers that share benchmark, file and source."""
    lines: list[str] = []

    def shared(metric: Metric) -> tuple[str, ...]:
        return metric.benchmark, metric.dataset, metric.measured_on, metric.source, metric.note

    for (benchmark, dataset, measured_on, source, note), run in itertools.groupby(metrics, shared):
        group = list(run)
        layers, kinds = {m.layer for m in group}, {m.metric for m in group}
        caption, labels = f"{benchmark}, {dataset}", [f"{m.layer}, {m.metric}" for m in group]
        if len(layers) == 1:
            caption, labels = ", ".join(filter(None, (caption, group[0].layer))), [m.metric for m in group]
        elif len(kinds) == 1:
            caption, labels = f"{caption}, {group[0].metric}", [m.layer for m in group]
        measured = f"`{measured_on}`" if measured_on else "not stated"
        lines.append(f"**{caption}**. Measured on: {measured}. Source: {source or '–'}.{f' {note}' if note else ''}\n")
        lines.append(_table(labels, [[m.value for m in group]]))
    return lines


def _table(head: list[str], rows: list[list[str]]) -> str:
    text = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in text) + "\n"


def _numerals(values: tuple[float, ...]) -> str:
    """Show a mean or std as it was chosen: in 255ths where it is a whole number of them."""
    whole = [round(value * 255) for value in values]
    if all(abs(value * 255 - number) < 1e-9 for value, number in zip(values, whole, strict=True)):
        return f"({', '.join(map(str, whole))})/255"
    return f"({', '.join(f'{value:.4g}' for value in values)})"


def _anchor(heading: str) -> str:
    return "".join(c for c in heading.lower() if c.isalnum() or c in "-_")


def main(arguments: list[str] | None = None) -> int:
    """Write the document, or compare it; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m context_pred.zoo.document", description=__doc__.splitlines()[0])
    parser.add_argument("path", nargs="?", type=Path, default=weights_folder().parent / "model_zoo.md")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    options = parser.parse_args(arguments)
    text = model_zoo()
    if not options.check:
        options.path.write_text(text, encoding="utf-8")
        return 0
    if options.path.is_file() and options.path.read_text(encoding="utf-8") == text:
        return 0
    sys.stderr.write(f"{options.path} is not what the cards say; run python -m context_pred.zoo.document.\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
