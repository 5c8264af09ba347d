"""The page of similarity maps: a click on the query, or the keyboard, shows where the like of that point lies."""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from context_pred.errors import InvalidInputError
from context_pred.markup import Markup, element, escaped, joined, page

from .colors import WARM
from .sheets import jpeg_uri, small, within
from .similarity import Asked, scale_of

CELLS = 96
"""Points of the query that have maps in the page, at most."""

MAPS_BYTES, PHOTOGRAPHS = 6_000_000, 12_000_000
"""Bytes that all the maps of a page, and all its photographs, are kept below."""

QUERY, OTHER = 720, 480
"""px: the largest side of the query, and of another photograph, in the page."""


def page_of(asked: Asked) -> str:
    """Write the page, one file that needs nothing else; below 25 MB.

    Raises:
        InvalidInputError: so many photographs that their maps do not fit.
    """
    query = small(asked.image, within(asked.image.size, (QUERY, QUERY)))
    every = (asked.compared.query, *asked.compared.others)
    columns, rows = _cells(query.width, query.height, sum(one.shape[0] * one.shape[1] for one in every))
    points = [
        ((column + 0.5) * asked.compared.size[0] / columns, (row + 0.5) * asked.compared.size[1] / rows)
        for row in range(rows)
        for column in range(columns)
    ]
    first = int(asked.point[1] * rows / asked.image.height) * columns
    first += int(asked.point[0] * columns / asked.image.width)
    points[first] = asked.point  # the page begins with what the sheet shows
    found = [[asked.compared.own(point), *asked.compared.maps(point)] for point in points]
    side = _side(len(every))
    others = [small(image, within(image.size, (side, side))) for image in asked.photographs.images]
    # The script writes names as they are, so what cannot be shown is escaped here.
    names = [html.unescape(escaped(Path(path).name)) for path in asked.photographs.paths]
    data = {
        "columns": columns,
        "rows": rows,
        "first": first,
        "high": round(scale_of([one for maps in found for one in maps[1:]]), 3),
        "names": ["the photograph itself", *names],
        "sizes": [list(one.shape[:2]) for one in every],
        "peaks": [[round(float(one.max()), 4) for one in maps] for maps in found],
        "maps": [[_packed(one) for one in maps] for maps in found],
        "colors": base64.b64encode(WARM.round().astype(np.uint8).tobytes()).decode("ascii"),
    }
    name = Path(asked.name).name
    figures = [_figure(query, f"{name}, the photograph itself"), *map(_figure, others, names)]
    body = joined(
        element("h1", f"Where the like of a point in {name} lies"),
        element(
            "p",
            f"{asked.line}. Click a point of the photograph; on the keyboard, Tab leads to it, the arrow "
            "keys move and Enter chooses. The ring in another photograph is where it is most alike.",
            class_="soft",
        ),
        element("noscript", element("p", "The maps are drawn by a script, which this browser does not run.")),
        element(
            "div",
            element(
                "div",
                element(
                    "div",
                    element("img", src=jpeg_uri(query, 85), alt=f"{name}, to choose a point in"),
                    element(
                        "div",
                        id="points",
                        role="group",
                        aria_label="Points of the photograph: arrow keys move, Enter chooses",
                    ),
                    class_="query",
                ),
                element("p", id="status", role="status"),
                element(
                    "div",
                    element("span", "0"),
                    element(
                        "canvas",
                        id="ramp",
                        width=256,
                        height=1,
                        role="img",
                        aria_label="Colours from no similarity to the highest",
                    ),
                    element("span", id="high"),
                    class_="legend",
                ),
                element("label", Markup('<input type="checkbox" id="colored">'), " Photographs without the maps"),
                class_="asked",
            ),
            element("div", figures, class_="others", id="others"),
            class_="layout",
        ),
        element("script", Markup(_embedded(data)), type="application/json", id="data"),
        element("script", Markup(SCRIPT)),
    )
    return page(f"Where the like of a point in {name} lies", body, STYLE)


def _cells(width: int, height: int, positions: int) -> tuple[int, int]:
    """Return (columns, rows) of the query's points, nearly square."""
    most = min(CELLS, MAPS_BYTES // positions)
    if most < 1:
        raise InvalidInputError(
            "The maps of so many photographs do not fit into a page; give fewer, or a smaller side."
        )
    columns = max(1, min(most, int((most * width / height) ** 0.5)))
    return columns, max(1, min(most // columns, round(columns * height / width)))


def _side(photographs: int) -> int:
    """Return the largest side in px that so many photographs may have: half a byte a pixel, as JPEG."""
    return max(32, min(OTHER, int((2 * PHOTOGRAPHS / photographs) ** 0.5)))


def _packed(similarity: NDArray[np.float32]) -> str:
    """Write a map's −1 … 1 as a byte each, 0 … 254."""
    return base64.b64encode(np.rint(127 * similarity.clip(-1, 1) + 127).astype(np.uint8).tobytes()).decode("ascii")


def _embedded(data: object) -> str:
    """Write JSON that cannot end the element it stands in."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _figure(image: object, name: str) -> Markup:
    return element(
        "figure",
        element(
            "div",
            element("img", src=jpeg_uri(image), alt=name),  # type: ignore[arg-type]
            element("canvas", aria_hidden="true"),
            element("span", class_="best"),
            class_="map",
        ),
        element("figcaption", element("b"), " ", name),
    )


STYLE = """
body { max-width:1440px; }
.layout { display:grid; grid-template-columns:minmax(0,420px) minmax(0,1fr); gap:1.5rem; align-items:start; }
.asked { position:sticky; top:1rem; } .query { position:relative; line-height:0; }
.query img { width:100%; height:auto; border-radius:4px; }
#points { position:absolute; inset:0; display:grid; }
#points button { min-width:0; border:0; padding:0; background:none; cursor:crosshair; }
#points button:hover { box-shadow:inset 0 0 0 2px #fff, inset 0 0 0 3px #0008; }
#points button:focus-visible { outline:3px solid #0072b2; box-shadow:inset 0 0 0 2px #fff; outline-offset:0; }
#points button { position:relative; }
#points button[aria-pressed=true]::after, .best { content:""; position:absolute; left:50%; top:50%; width:22px;
  height:22px; margin:-11px 0 0 -11px; border:3px solid #fff; border-radius:50%; pointer-events:none;
  box-shadow:0 0 0 2px #202020, inset 0 0 0 2px #e69f00; }
.best { width:18px; height:18px; margin:-9px 0 0 -9px; box-shadow:0 0 0 2px #202020, inset 0 0 0 2px #56b4e9; }
#status { min-height:3em; margin:.75rem 0 .25rem; }
.legend { display:flex; gap:.5rem; align-items:center; font-size:.85rem; color:var(--soft); margin:0 0 .5rem; }
.legend canvas { flex:1; height:12px; width:0; border-radius:3px; }
.others { display:grid; grid-template-columns:repeat(auto-fill,minmax(min(210px,45%),1fr)); gap:.9rem; }
.others figure { margin:0; min-width:0; } .others figcaption { overflow-wrap:anywhere; line-height:1.3; }
.others figcaption b { color:var(--ink); font-variant-numeric:tabular-nums; }
.map { position:relative; line-height:0; overflow:hidden; border-radius:4px; }
.map img { width:100%; height:auto; filter:grayscale(1) brightness(.55); }
.map canvas { position:absolute; inset:0; width:100%; height:100%; }
.plain .map img { filter:none; } .plain .map canvas { display:none; }
label { cursor:pointer; }
@media (max-width:760px) { .layout { grid-template-columns:minmax(0,1fr); } .asked { position:static; } }
"""

SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const colors = bytes(data.colors);
const points = document.getElementById("points"), others = document.getElementById("others");
const figures = [...others.children];
points.style.gridTemplateColumns = `repeat(${data.columns}, 1fr)`;
points.style.gridTemplateRows = `repeat(${data.rows}, 1fr)`;

function draw(figure, number, values, peak) {
  const [rows, columns] = data.sizes[number];
  const canvas = figure.querySelector("canvas");
  canvas.width = columns; canvas.height = rows;
  const context = canvas.getContext("2d"), picture = context.createImageData(columns, rows);
  let best = 0;
  values.forEach((value, i) => {
    if (value > values[best]) best = i;
    const share = Math.min(1, Math.max(0, (value - 127) / 127 / data.high));
    const color = 3 * Math.round(255 * share);
    picture.data.set([colors[color], colors[color + 1], colors[color + 2], 255 * Math.min(0.88, 1.6 * share)], 4 * i);
  });
  context.putImageData(picture, 0, 0);
  const ring = figure.querySelector(".best");
  ring.style.left = 100 * (best % columns + 0.5) / columns + "%";
  ring.style.top = 100 * (Math.floor(best / columns) + 0.5) / rows + "%";
  figure.querySelector("b").textContent = peak.toFixed(2);
}

let chosen = -1;
function choose(number) {
  if (chosen >= 0) buttons[chosen].setAttribute("aria-pressed", "false");
  chosen = number;
  buttons[number].setAttribute("aria-pressed", "true");
  const peaks = data.peaks[number];
  figures.forEach((figure, k) => draw(figure, k, bytes(data.maps[number][k]), peaks[k]));
  const order = figures.map((_, k) => k).slice(1).sort((a, b) => peaks[b] - peaks[a]);
  others.append(figures[0], ...order.map(k => figures[k]));
  document.getElementById("status").textContent = "Most alike: " +
    order.slice(0, 3).map(k => `${data.names[k]} (${peaks[k].toFixed(2)})`).join(", ") + ".";
}

function focus(number) {
  buttons.forEach(button => { button.tabIndex = -1; });
  buttons[number].tabIndex = 0;
  buttons[number].focus();
}

const buttons = Array.from({length: data.columns * data.rows}, (_, number) => {
  const button = document.createElement("button");
  const column = number % data.columns, row = Math.floor(number / data.columns);
  button.type = "button";
  button.tabIndex = number === data.first ? 0 : -1;
  button.setAttribute("aria-label", `Row ${row + 1} of ${data.rows}, column ${column + 1} of ${data.columns}`);
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => { focus(number); choose(number); });
  button.addEventListener("keydown", event => {
    const step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
    if (!step) return;
    event.preventDefault();
    const x = Math.min(data.columns - 1, Math.max(0, column + step[0]));
    const y = Math.min(data.rows - 1, Math.max(0, row + step[1]));
    focus(y * data.columns + x);
  });
  points.append(button);
  return button;
});

const ramp = document.getElementById("ramp").getContext("2d"), line = ramp.createImageData(256, 1);
for (let i = 0; i < 256; i++) line.data.set([colors[3 * i], colors[3 * i + 1], colors[3 * i + 2], 255], 4 * i);
ramp.putImageData(line, 0, 0);
document.getElementById("high").textContent = data.high.toFixed(2) + " or more";
document.getElementById("colored").addEventListener("change", event => {
  others.classList.toggle("plain", event.target.checked);
});
choose(data.first);
"""
