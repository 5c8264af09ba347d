"""The folder that a discovery leaves: ``index.html`` with its pictures, and ``clusters.json``."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from PIL import Image, ImageDraw
from tqdm import tqdm

from context_pred.data.images import open_image
from context_pred.errors import ImageError, InvalidInputError, storing
from context_pred.markup import Markup, count, element, facts, joined, page, percent
from context_pred.pictures import COLORS, FAINT
from context_pred.weights_file import write_bytes

from .purity import PUBLISHED, Curve

if TYPE_CHECKING:
    from .objects import Cluster, Discovery, Member

SIDE = 360
"""Longer side of a picture, px."""

FEWEST = 2
"""Verified photographs that a cluster can be asked to have."""

_LINE = 4

PAGE, JSON, PICTURES = "index.html", "clusters.json", "pictures"

_OWN = re.compile(r"\d{4,}-\d{2,}\.jpg")

CORNERS = ("upper left", "upper right", "lower left", "lower right")


def write(found: Discovery, progress: bool = False) -> None:
    """Write the page, its pictures and the JSON file; what lay there before stands until the new ones are whole.

    Raises:
        InvalidInputError: as ``check_folder``.
        StorageError: the folder cannot be written to.
    """
    folder = found.page.parent
    check_folder(folder)
    fresh = folder / f".{PICTURES}.new"
    with storing(folder):
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for number, cluster in enumerate(tqdm(found.clusters, desc="pictures", disable=not progress), 1):
            for place, member in enumerate(cluster.members, 1):
                _drawn(member).save(fresh / _name(number, place), quality=85)
        shutil.rmtree(folder / PICTURES, ignore_errors=True)
        fresh.rename(folder / PICTURES)
    record = json.dumps(_record(found), indent=1, ensure_ascii=False) + "\n"
    # A byte of a name that is no UTF-8 is a lone surrogate, which so becomes JSON's own escape.
    write_bytes(record.encode("utf-8", "backslashreplace"), found.json)
    write_bytes(_page(found).encode(), found.page)


def check_folder(folder: Path) -> None:
    """Raise InvalidInputError where the folder has a page or pictures of somebody else, which would be lost."""
    if (folder / PAGE).exists() and not (folder / JSON).exists():
        raise InvalidInputError(f"{folder / PAGE} would be lost: it is no discovery's page. Choose another out.")
    place = folder / PICTURES
    others = [path for path in place.iterdir() if not _OWN.fullmatch(path.name)] if place.is_dir() else []
    if others or (place.exists() and not place.is_dir()):
        what = others[0] if others else place
        raise InvalidInputError(f"{what} would be lost: {place} is for the pictures of the page. Choose another out.")


def _name(cluster: int, member: int) -> str:
    return f"{cluster:04d}-{member:02d}.jpg"


@lru_cache(maxsize=256)
def _small(path: str) -> tuple[Image.Image, float]:
    """Return a photograph for looking, and its scale; a grey square where it can be opened no longer."""
    try:
        image = open_image(path)
    except ImageError:
        return Image.new("RGB", (SIDE, SIDE), FAINT), 0.0
    scale = SIDE / max(image.size)  # small ones are enlarged, or the frames would cover them
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0), scale


def _drawn(member: Member) -> Image.Image:
    """Draw the four matched patches where they lie, each in the colour of its corner, with a dark rim."""
    image, scale = _small(member.path)
    image = image.copy()
    pen = ImageDraw.Draw(image)
    for corner, (box, color) in enumerate(zip(member.boxes, COLORS, strict=False)):
        x1, y1, x2, y2 = (round(value * scale) for value in box)
        within = _LINE * member.boxes[:corner].count(box)  # of corners that match one patch each frame is seen
        x1, y1, x2, y2 = x1 + within, y1 + within, x2 - within, y2 - within
        if x2 > x1 and y2 > y1:
            pen.rectangle((x1, y1, x2 - 1, y2 - 1), outline=color, width=_LINE)
            pen.rectangle((x1 - 1, y1 - 1, x2, y2), outline=(0, 0, 0))
    return image


def _record(found: Discovery) -> dict[str, Any]:
    return {
        "settings": found.settings,
        "photographs": found.photographs,
        "patches": found.patches,
        "constellations": found.constellations,
        "clusters": [{"rank": number, **_compact(cluster)} for number, cluster in enumerate(found.clusters, 1)],
        "purity-coverage": None if found.curve is None else found.curve.to_dict(),
        "skipped": found.skipped,
    }


def _compact(cluster: Cluster) -> dict[str, Any]:
    record = asdict(cluster)
    if cluster.purity is None:
        del record["purity"], record["label"]
    return record


def _page(found: Discovery) -> str:
    settings = found.settings["patches"]
    head = joined(
        element("h1", "What recurs"),
        element(
            "p",
            f"Constellations of four touching patches, matched by {settings['layer']} of {settings['model']} in "
            f"{count(found.photographs, 'photograph')}, ranked by how many photographs keep their layout. No label was "
            "used. Each row is a cluster; the four colours are the corners, matched wherever they lie.",
            class_="soft",
        ),
        element("p", [_key(name, color) for name, color in zip(CORNERS, COLORS, strict=False)], class_="key"),
    )
    body = [_section(number, cluster) for number, cluster in enumerate(found.clusters, 1)]
    if not body:
        body = [element("p", nothing(found.settings["selection"]["least"]), class_="notice")]
    return page("What recurs", joined(head, _curve(found.curve), body, _about(found)), STYLE)


def nothing(least: int) -> str:
    """Say that there are no clusters, and what to do."""
    found = f"Nothing recurs in as many photographs as a cluster needs, {least}; "
    if least > FEWEST:
        return f"{found}with --least one may ask for fewer."
    return f"{found}more scales (--side), more constellations or another layer may find some."


def _key(name: str, color: tuple[int, int, int]) -> Markup:
    return element("span", element("i", "", style=f"background:rgb{color}"), f" {name} ")


def _section(number: int, cluster: Cluster) -> Markup:
    said = f"{count(cluster.verified, 'photograph')} keep its layout, mean similarity {cluster.similarity:.2f}"
    if cluster.purity is not None:
        said += f"; {percent(cluster.purity, 0)} of those shown are {cluster.label or 'without a label'}"
    shown = [_figure(number, place, member) for place, member in enumerate(cluster.members, 1)]
    return element(
        "section",
        element("h2", f"{number} ", element("small", said)),
        element("div", shown, class_="row", tabindex="0", role="group", aria_label=f"Cluster {number}"),
        id=f"cluster-{number}",
    )


def _figure(number: int, place: int, member: Member) -> Markup:
    source = f"{PICTURES}/{_name(number, place)}"
    name = Path(member.path).name
    image = element("img", src=source, alt=f"{name}, with the four matched patches", loading="lazy", height=150)
    return element(
        "figure",
        element("a", image, href=quote(source), title=member.path),
        element("figcaption", f"{member.similarity:.2f} ", element("span", name)),
    )


def _curve(curve: Curve | None) -> Markup:
    if curve is None or not len(curve.coverage):
        return joined()
    points = [(0.0, float(curve.purity[0])), *zip(curve.coverage.tolist(), curve.purity.tolist(), strict=True)]
    line = " ".join(f"{50 + 400 * x:.1f},{230 - 210 * y:.1f}" for x, y in points)
    ticks = [
        joined(
            element("line", x1=50, x2=450, y1=230 - 210 * v, y2=230 - 210 * v, class_="grid"),
            element("text", f"{v:g}", x=42, y=234 - 210 * v, text_anchor="end"),
            element("text", f"{v:g}", x=50 + 400 * v, y=248, text_anchor="middle"),
        )
        for v in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    label = f"Purity over coverage of {len(curve.coverage)} clusters"
    drawing = element(
        "svg", ticks, element("polyline", points=line, class_="line a"),
        element("text", "coverage", x=250, y=266, text_anchor="middle"), element("text", "purity", x=50, y=12),
        viewBox="0 0 480 270", role="img", aria_label=label,
    )  # fmt: skip
    said = (
        f"{label}, the purest first. Area {curve.area():.3f}, up to a coverage of one half {curve.area(0.5):.3f}; the "
        f"paper's on a part of VOC2007: {PUBLISHED['all']:.2f} and {PUBLISHED['half']:.2f}."
    )
    return element("figure", drawing, element("figcaption", said), class_="curve")


def _about(found: Discovery) -> Markup:
    settings = found.settings
    rows: Sequence[tuple[str, Any]] = (
        ("model", settings["patches"]["model"]),
        ("layer", f"{settings['patches']['layer']}, {settings['patches']['pool']}"),
        ("patches", f"{found.patches:,} of {settings['patches']['grid']['patch']} px, the photographs' shorter sides "
                    f"{', '.join(f'{side:g}' for side in settings['patches']['grid']['sides'])} patches"),
        ("constellations", f"{found.constellations:,}, seed {settings['search']['seed']}"),
        ("selection", ", ".join(f"{name} {value}" for name, value in settings["selection"].items())),
        ("skipped", f"{count(len(found.skipped), 'file')}; see clusters.json" if found.skipped else None),
    )  # fmt: skip
    return joined(element("h2", "How"), facts(rows))


STYLE = """
h2 { overflow-wrap:anywhere; } h2 small { font-size:.9rem; font-weight:400; color:var(--soft); }
.row { display:flex; gap:.6rem; overflow-x:auto; padding:.2rem 0 .4rem; }
.row figure { margin:0; flex:none; max-width:240px; } .row img { height:150px; width:auto; max-width:240px;
  object-fit:cover; border-radius:4px; display:block; background:var(--card); }
.row figcaption { font-size:.78rem; font-variant-numeric:tabular-nums; overflow:hidden; text-overflow:ellipsis;
  white-space:nowrap; } .row a:focus-visible img, .row:focus-visible { outline:3px solid var(--a); outline-offset:2px; }
.key { display:flex; flex-wrap:wrap; gap:.1rem 1.1rem; }
.key span { white-space:nowrap; font-size:.9rem; } .key i { display:inline-block; width:.8em;
  height:.8em; border-radius:2px; border:1px solid #000; } .curve { max-width:560px; }
"""
