"""The map of a collection as a page: a thumbnail that is hovered, focused or clicked is shown larger, with its name."""

from __future__ import annotations

from pathlib import Path

from context_pred.markup import Markup, element, joined, page

from .map import Collection, Placed
from .map_sheet import colors_of, letter
from .photographs import count
from .sheets import jpeg_uri


def page_of(collection: Collection, line: str) -> str:
    """Write the page, one file that needs nothing else; some 10 MB however many the photographs."""
    title = f"A map of {count(len(collection.placed), 'photograph')}"
    layout = collection.layout
    order = sorted(range(len(collection.placed)), key=lambda k: _reading(collection.placed[k], layout.rows))
    things = [_thumbnail(collection.placed[k], collection, first=place == 0) for place, k in enumerate(order)]
    body = joined(
        element("h1", title),
        element(
            "p",
            f"{line}. Point at a photograph to see it larger, or click it to keep it; on the keyboard, the "
            "arrow keys move from one to the next and Enter keeps it.",
            class_="soft",
        ),
        element(
            "noscript", element("p", "Showing a photograph larger needs a script, which this browser does not run.")
        ),
        _folders(collection),
        element(
            "label",
            "Size of the thumbnails ",
            Markup('<input type="range" id="size" min="24" max="160" value="64">'),
            class_="size",
        ),
        element(
            "div",
            element(
                "div",
                element(
                    "div",
                    things,
                    id="map",
                    role="group",
                    aria_label=title,
                    style=f"--columns:{layout.columns};--rows:{layout.rows};--share:{layout.share}",
                ),
                class_="frame",
            ),
            element(
                "aside",
                Markup('<img id="large" alt="">'),
                element("p", id="name"),
                element("p", id="folder", class_="soft"),
                aria_live="polite",
            ),
            class_="layout",
        ),
        element("script", Markup(SCRIPT)),
    )
    return page(title, body, STYLE)


def _reading(one: Placed, rows: int) -> tuple[int, float]:
    return int(one.y * rows), one.x


def _thumbnail(one: Placed, collection: Collection, first: bool) -> Markup:
    name = Path(one.path).name
    tag = None
    style = f"left:{100 * one.x:.3f}%;top:{100 * one.y:.3f}%"
    if one.label:
        r, g, b = colors_of(collection.labels)[one.label]
        style += f";--frame:rgb({r},{g},{b})"
        mark = letter(collection.labels.index(one.label))
        tag = element("span", mark, aria_hidden="true") if mark else None
    return element(
        "button",
        element("img", src=jpeg_uri(one.image, 78), alt=f"{name}, {one.label}" if one.label else name, loading="lazy"),
        tag,
        type="button",
        class_="one framed" if one.label else "one",
        style=style,
        tabindex=0 if first else -1,
        data_name=name,
        data_folder=one.label or None,
        aria_pressed="false",
    )


def _folders(collection: Collection) -> Markup | None:
    if not collection.labels:
        return None
    colors = colors_of(collection.labels)
    numbers = {label: sum(one.label == label for one in collection.placed) for label in collection.labels}
    items = []
    for k, label in enumerate(collection.labels):
        r, g, b = colors[label]
        mark = element("span", letter(k), class_="mark", style=f"background:rgb({r},{g},{b})", aria_hidden="true")
        items.append(element("li", mark, f" {label} ", element("small", numbers[label])))
    return element("ul", items, class_="folders")


STYLE = """
body { max-width:none; }
.layout { display:grid; grid-template-columns:minmax(0,1fr) 320px; gap:1.25rem; align-items:start; }
.frame { overflow:auto; max-height:85vh; border:1px solid var(--rule); border-radius:8px; padding:12px;
  background:var(--card); }
#map { --size:64px; position:relative; width:calc(var(--columns) * var(--size));
  height:calc(var(--rows) * var(--size)); margin:0 auto; }
.one { position:absolute; --side:calc(var(--size) * var(--share)); width:var(--side); height:var(--side);
  padding:0; border:0; margin:calc(var(--side) / -2) 0 0 calc(var(--side) / -2);
  background:none; cursor:pointer; line-height:0; }
.one img { width:100%; height:100%; object-fit:cover; border-radius:2px; }
.framed img { border:max(2px,calc(var(--size) / 22)) solid var(--frame); }
.one span { position:absolute; left:0; top:0; background:var(--frame); color:#fff;
  font:600 11px/1.3 system-ui,sans-serif; padding:0 3px; text-shadow:0 0 2px #000; }
.one:hover, .one:focus-visible, .one[aria-pressed=true] { z-index:2; outline:3px solid var(--a); outline-offset:1px;
  border-radius:2px; }
.one[aria-pressed=true] { outline-color:var(--b); outline-style:double; outline-width:5px; }
aside { position:sticky; top:1rem; } aside img { width:100%; height:auto; max-height:60vh; object-fit:contain;
  border-radius:4px; background:var(--card); } aside p { overflow-wrap:anywhere; margin:.3rem 0 0; }
#large:not([src]) { display:none; }
.size { display:flex; gap:.6rem; align-items:center; flex-wrap:wrap; margin:0 0 .75rem; }
.folders { display:flex; flex-wrap:wrap; gap:.3rem 1.1rem; list-style:none; padding:0; margin:.5rem 0 1rem;
  max-height:9rem; overflow:auto; } .folders small { color:var(--soft); }
.mark { display:inline-block; min-width:1.2em; height:1.2em; line-height:1.2; text-align:center; color:#fff;
  border-radius:3px; font-weight:600; vertical-align:-.1em; text-shadow:0 0 2px #000; }
@media (max-width:760px) { .layout { grid-template-columns:minmax(0,1fr); } .frame { max-height:60vh; }
  aside { position:sticky; top:auto; bottom:0; display:grid; grid-template-columns:110px 1fr; gap:0 .8rem;
    background:var(--paper); border-top:1px solid var(--rule); padding:.5rem 0; align-items:center; }
  aside img { max-height:110px; grid-row:1 / 3; } }
"""

SCRIPT = """
"use strict";
const map = document.getElementById("map"), things = [...map.querySelectorAll(".one")];
const large = document.getElementById("large"), size = document.getElementById("size");
const places = things.map(one => [parseFloat(one.style.left), parseFloat(one.style.top)]);
const columns = Number(map.style.getPropertyValue("--columns")), rows = Number(map.style.getPropertyValue("--rows"));
let kept = null;

function resize() { map.style.setProperty("--size", size.value + "px"); }
function show(one) {
  large.src = one.querySelector("img").src;
  large.alt = one.querySelector("img").alt;
  document.getElementById("name").textContent = one.dataset.name;
  document.getElementById("folder").textContent = one.dataset.folder || "";
}
function keep(one) {
  if (kept) kept.setAttribute("aria-pressed", "false");
  kept = kept === one ? null : one;
  if (kept) kept.setAttribute("aria-pressed", "true");
  show(one);
}
function focus(one) {
  things.forEach(other => { other.tabIndex = -1; });
  one.tabIndex = 0;
  one.focus();
}
function next(from, dx, dy) {
  const [x, y] = places[from];
  let best = -1, least = Infinity;
  places.forEach(([px, py], k) => {
    const across = (px - x) * columns, down = (py - y) * rows;
    const along = across * dx + down * dy, aside = Math.abs(across * dy) + Math.abs(down * dx);
    if (k === from || along < 1 || aside > 2 * along) return;
    const way = along + 2 * aside;
    if (way < least) { least = way; best = k; }
  });
  return best;
}
const steps = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
things.forEach((one, k) => {
  one.addEventListener("mouseenter", () => show(one));
  one.addEventListener("mouseleave", () => { if (kept) show(kept); });
  one.addEventListener("focus", () => show(one));
  one.addEventListener("click", () => { focus(one); keep(one); });
  one.addEventListener("keydown", event => {
    if (!steps[event.key]) return;
    event.preventDefault();
    const found = next(k, ...steps[event.key]);
    if (found >= 0) focus(things[found]);
  });
});
const room = map.parentElement.clientWidth - 24;
size.value = Math.min(140, Math.max(40, Math.floor(room / columns)));
size.addEventListener("input", resize);
resize();
if (things.length) show(things[0]);
"""
