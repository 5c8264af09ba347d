"""HTML by construction: elements whose text is always escaped, a page's frame, and numbers for people."""

from __future__ import annotations

import base64
import html
import io
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

VOID = frozenset({"br", "img", "meta"})
"""HTML's elements without content and without an end tag, as far as they are used here."""

SPACE = "\N{NO-BREAK SPACE}"
"""Between a number and its unit, where no line may break."""


class Markup(str):
    """Text that is HTML already; every other string is escaped where it is put in."""

    __slots__ = ()


Child = Markup | str | int | float | None | Iterable[Any]


def escaped(value: object) -> str:
    """Escape a text for element content and attribute values.

    File names may hold anything: what cannot be shown (controls, surrogates, turns of the writing direction) comes as
    a backslash and its code.
    """
    text = "".join(
        c if c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs" else c.encode("unicode_escape").decode()
        for c in str(value)
    )
    return html.escape(text, quote=True)


def element(name: str, /, *children: Child, **attributes: object) -> Markup:
    """Make an element.

    Args:
        name: Its tag.
        children: Text, numbers, markup, or lists of them; None is left out.
        attributes: ``class_`` stands for class, an underscore for a hyphen elsewhere; None is left out.
    """
    pairs = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None)
    start = "".join(f' {key}="{_attribute(value)}"' for key, value in pairs)
    if name in VOID:
        return Markup(f"<{name}{start}>")
    return Markup(f"<{name}{start}>{''.join(_flat(children))}</{name}>")


def joined(*children: Child) -> Markup:
    """Put pieces one after the other."""
    return Markup("".join(_flat(children)))


def _attribute(value: object) -> str:
    return escaped(f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value)


def _flat(children: Iterable[Child]) -> Iterable[str]:
    for child in children:
        if child is None:
            continue
        if isinstance(child, Markup):
            yield child
        elif isinstance(child, str | int | float):
            yield escaped(child)
        else:
            yield from _flat(child)


def table(head: Sequence[Child], rows: Iterable[Sequence[Child]], *, class_: str | None = None) -> Markup:
    """Make a table; a wide one scrolls inside its own frame."""
    body = [element("tr", [element("td", cell) for cell in row]) for row in rows]
    header = element("thead", element("tr", [element("th", cell, scope="col") for cell in head])) if head else None
    return element("div", element("table", header, element("tbody", body), class_=class_), class_="scroll")


def facts(rows: Iterable[tuple[str, Child]]) -> Markup:
    """Make a list of names and values; a value of None is left out."""
    return element("dl", [(element("dt", name), element("dd", value)) for name, value in rows if value is not None])


def picture(pixels: np.ndarray[Any, np.dtype[np.uint8]], label: str, side: int, **attributes: object) -> Markup:
    """Show an image inside the page, as PNG.

    Args:
        pixels: uint8 (C, H, W), 1 or 3 channels; of others the first is shown.
        label: What a reader without the picture is told.
        side: Width on the page in px; images of more than twice that are made smaller first.
        attributes: Further ones of the element.
    """
    channels = pixels if len(pixels) == 3 else pixels[:1]
    image = Image.fromarray(np.ascontiguousarray(channels.transpose(1, 2, 0).squeeze()))
    if max(image.size) > 2 * side:
        image.thumbnail((2 * side, 2 * side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return element("img", src=f"data:image/png;base64,{data}", alt=label, width=side, height=side, **attributes)


def percent(share: float | None, digits: int = 1) -> str:
    """Write a share of 1 in percent."""
    return "–" if share is None else f"{100 * share:.{digits}f}{SPACE}%"


def count(number: int, one: str, many: str = "") -> str:
    """Write a number of things."""
    return f"{number:,}{SPACE}{one if number == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """Write a time in its two largest units."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f}{SPACE}s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    first = next(i for i, (number, _) in enumerate(parts) if number)
    return f"{SPACE}".join(f"{number}{SPACE}{unit}" for number, unit in parts[first : first + 2] if number)


def page(title: str, body: Markup, style: str = "") -> str:
    """Frame a page that needs nothing but itself: one style sheet inside, light and dark as the reader's system is.

    Args:
        title: Of the page.
        body: Its content.
        style: Rules of its own, after those that all pages share.
    """
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(STYLE + style)),
    )
    return f"<!DOCTYPE html>\n{element('html', head, element('body', body), lang='en')}\n"


STYLE = """
:root { --paper:#fff; --card:#f7f8f9; --ink:#1d2126; --soft:#5b646e; --rule:#d9dde2; --grid:#e6e9ec;
  --a:#0072b2; --b:#c65300; --heat:86,180,233; --good:#00744f; --bad:#b03a00; }
@media (prefers-color-scheme: dark) { :root { --paper:#14171a; --card:#1c2024; --ink:#e8eaed; --soft:#a3acb5;
  --rule:#353b42; --grid:#2a2f35; --a:#56b4e9; --b:#f0a050; --heat:0,114,178; --good:#3ccf9b; --bad:#ff9a66; } }
* { box-sizing:border-box; }
body { margin:0 auto; max-width:1120px; padding:2rem 1.25rem 4rem; background:var(--paper); color:var(--ink);
  font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif; }
h1 { font-size:1.9rem; line-height:1.2; margin:0 0 .25rem; overflow-wrap:anywhere; }
h2 { font-size:1.3rem; margin:2.75rem 0 .5rem; padding-bottom:.3rem; border-bottom:1px solid var(--rule); }
h3 { font-size:1rem; margin:1.5rem 0 .5rem; }
p { margin:.4rem 0 .9rem; max-width:75ch; } .soft, figcaption, dt { color:var(--soft); }
nav { margin:1rem 0 0; font-size:.92rem; } nav a { color:var(--a); margin-right:1.1rem; white-space:nowrap; }
.tiles { display:flex; flex-wrap:wrap; gap:.75rem; margin:1.5rem 0 1rem; }
.tile { flex:1 1 165px; padding:.8rem 1rem; background:var(--card); border:1px solid var(--rule); border-radius:8px; }
.tile b { display:block; font-size:1.55rem; line-height:1.25; font-variant-numeric:tabular-nums; }
.tile span { display:block; font-size:.86rem; color:var(--soft); }
.notice { border-left:4px solid var(--b); background:var(--card); padding:.6rem 1rem; margin:1rem 0; }
.notice ul { margin:.3rem 0; padding-left:1.2rem; }
.pair { display:flex; flex-wrap:wrap; gap:.5rem 1.5rem; align-items:flex-start; }
.pair > * { flex:1 1 440px; min-width:0; }
figure { margin:1rem 0; } figcaption { font-size:.9rem; margin:.35rem 0 0; max-width:75ch; }
svg { display:block; width:100%; height:auto; }
svg text { font-size:12.5px; fill:var(--soft); font-variant-numeric:tabular-nums; }
svg .title { font-size:14.5px; font-weight:600; } svg .title, svg .strong { fill:var(--ink); }
svg .grid { stroke:var(--grid); } svg .axis { stroke:var(--rule); }
svg .mark { stroke:var(--soft); stroke-dasharray:5 4; }
svg .line { fill:none; stroke-width:1.8; stroke-linejoin:round; } svg .bar { stroke-width:1.4; }
svg .a { stroke:var(--a); } svg .b { stroke:var(--b); } svg .dot.a { fill:var(--a); } svg .dot.b { fill:var(--b); }
.sample img.centers { outline:2px solid var(--a); }
svg .cell { fill:rgb(var(--heat)); } svg .frame { fill:none; stroke:var(--rule); }
svg .truth { fill:none; stroke:var(--ink); stroke-width:2.5; }
.scroll { overflow-x:auto; } table { border-collapse:collapse; font-size:.9rem; font-variant-numeric:tabular-nums; }
th, td { padding:.3rem .65rem; border-bottom:1px solid var(--rule); text-align:left; vertical-align:top; }
th { color:var(--soft); font-weight:600; } table.numbers td, table.numbers th { text-align:right; white-space:nowrap; }
td { overflow-wrap:anywhere; } table.numbers td:first-child, table.numbers th:first-child { text-align:left; }
table.confusion th, table.confusion td { text-align:center; border:1px solid var(--rule); padding:.3rem .45rem;
  white-space:nowrap; }
table.confusion td.right { font-weight:700; } table.confusion th.row { text-align:left; font-weight:400; }
.samples { display:flex; flex-wrap:wrap; gap:.75rem; }
.sample { flex:0 1 350px; display:flex; gap:.75rem; align-items:center; padding:.7rem; background:var(--card);
  border:1px solid var(--rule); border-radius:8px; }
.sample > div { flex:none; width:108px; position:relative; height:108px; }
.sample img { position:absolute; width:52px; height:52px; border-radius:2px; }
.sample > svg { flex:none; width:108px; height:108px; } .sample p { margin:0; font-size:.85rem; line-height:1.35; }
.good { color:var(--good); font-weight:600; } .bad { color:var(--bad); font-weight:600; }
summary { cursor:pointer; color:var(--a); margin-bottom:.4rem; }
dl { display:grid; grid-template-columns:minmax(9rem,max-content) 1fr; gap:.25rem 1.25rem; margin:.5rem 0;
  font-size:.93rem; }
dd { margin:0; overflow-wrap:anywhere; } code, pre { font-family:ui-monospace,"Liberation Mono",Menlo,monospace; }
pre { background:var(--card); border:1px solid var(--rule); border-radius:8px; padding:.9rem 1.1rem; overflow-x:auto;
  font-size:.85rem; line-height:1.45; }
@media print { body { max-width:none; } figure, .sample, .tile { break-inside:avoid; } }
"""
