"""Objects that recur in unlabelled photographs: the paper's visual data mining from a folder to a page.

    context-pred discover photos/ --out discovered

Source: Doersch, Gupta, Efros, ICCV 2015, section 4.4; METHOD A5.5.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from context_pred.errors import InvalidInputError, check_whole_number, storing
from context_pred.weights_file import write_bytes

from . import page
from .constellations import cover, fit_squares, ranking
from .grid import usual_grid
from .labels import Labels, only, read_labels
from .mining import Matches, Search, match
from .patches import LAYER, POOL, Patches, extract_patches, loaded
from .pictures.photographs import by_file, count
from .purity import Curve, curve, purity

if TYPE_CHECKING:
    from context_pred.model import ContextPredictionModel

__all__ = ["Cluster", "Discovery", "Member", "Search", "Selection", "run"]


@dataclass(frozen=True)
class Selection:
    """How clusters are made of the matches, and which are taken.

    Args:
        members: The best verified photographs of each constellation, which are its cluster (the paper: 10).
        least: Verified photographs that a cluster needs at least.
        fresh: The share of a cluster's photographs that those before it must not show, 0 … 1; one in any case, which is
            the paper's rule (0).
        clusters: How many are taken at most (the paper: 1,000).

    Raises:
        InvalidInputError: a number out of its range.
    """

    members: int = 10
    least: int = 5
    fresh: float = 0.8
    clusters: int = 100

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, least in (("members", 2), ("least", page.FEWEST), ("clusters", 1)):
            check_whole_number(name, getattr(self, name), least)
        if not isinstance(self.fresh, int | float) or not 0 <= self.fresh <= 1:
            raise InvalidInputError(f"fresh={self.fresh!r}; accepted: a share, 0 … 1.")


@dataclass(frozen=True)
class Member:
    """A photograph of a cluster.

    Attributes:
        path: The photograph.
        boxes: The four matched patches: x1, y1, x2, y2 in px of it.
        square: The fitted square: x, y of its centre and its side, px.
        similarity: The mean of the four correlations, −1 … 1.
        error: Of the layout, as ``fit_squares`` has it; below 1.
    """

    path: str
    boxes: tuple[tuple[float, float, float, float], ...]
    square: tuple[float, float, float]
    similarity: float
    error: float


@dataclass(frozen=True)
class Cluster:
    """What recurs: a constellation and where it was found.

    Attributes:
        place: In the ranking of all constellations, from 0.
        path: The photograph of the constellation.
        boxes: Its four patches.
        verified: How many of the strongest matches keep the layout.
        similarity: Their mean.
        members: The best of them.
        purity: The share of its members that have the commonest label; None without labels.
        label: That label.
    """

    place: int
    path: str
    boxes: tuple[tuple[float, float, float, float], ...]
    verified: int
    similarity: float
    members: tuple[Member, ...]
    purity: float | None = None
    label: str = ""


@dataclass(frozen=True)
class Discovery:
    """What was discovered; ``str()`` says it in a paragraph.

    Attributes:
        page: ``OUT/index.html``.
        json: ``OUT/clusters.json``.
        clusters: The clusters taken, the best first.
        curve: Purity over coverage of them, where there are labels.
        photographs: How many were searched.
        patches: How many patches they have.
        constellations: How many were matched.
        skipped: {path: reason} of the files that could not be opened.
        settings: What decided all this.
    """

    page: Path
    json: Path
    clusters: tuple[Cluster, ...]
    curve: Curve | None
    photographs: int
    patches: int
    constellations: int
    skipped: dict[str, str]
    settings: dict[str, Any]

    def __str__(self) -> str:
        """Say it in a paragraph."""
        text = (
            f"{self.page}: {count(len(self.clusters), 'cluster')} out of {self.constellations:,} constellations, "
            f"{self.photographs:,} photographs, {self.patches:,} patches."
        )
        if self.clusters:
            text += f" In the first, {self.clusters[0].verified} photographs keep the layout."
        else:
            text += f" {page.nothing(self.settings['selection']['least'])}"
        if self.curve is not None:
            text += (
                f" Area under the purity-coverage curve {self.curve.area():.3f}, up to a coverage of one half "
                f"{self.curve.area(0.5):.3f}."
            )
        if self.skipped:
            first = next(iter(self.skipped.items()))
            skipped = count(len(self.skipped), "file")
            text += f" {skipped} skipped, as {first[0]} ({first[1]}); the reasons are in {self.json}."
        return text


def run(
    images: str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    model: ContextPredictionModel | str | Path,
    layer: str = LAYER,
    pool: str = POOL,
    sides: Sequence[float] = (),
    search: Search = Search(),  # noqa: B008  (frozen)
    selection: Selection = Selection(),
    labels: str | Path | None = None,
    label_column: int = 1,
    label_only: Sequence[str] = (),
    workers: int | None = None,
    device: str | torch.device = "auto",
    overwrite: bool = False,
    progress: bool = True,
) -> Discovery:
    """Find what recurs in photographs, and write a page of it.

    Patches and matches are kept in ``out`` (``patches``, ``matches``): the same call goes on from them when it was
    stopped, and another selection or other labels cost no second search.

    Args:
        images: As ``find_images`` takes them.
        out: The folder to write into; made where it is missing.
        model: The model, or what ``load_pretrained`` takes.
        layer: The layer whose features are compared.
        pool: As in ``patch_features``.
        sides: The photographs' shorter sides in patches, a scale each; empty: ``grid.SIDES``.
        search: The numbers of the search.
        selection: How clusters are made and taken.
        labels: As ``read_labels`` takes them; None: no purity.
        label_column: Of a list of labels.
        label_only: Take only the photographs that have one of these labels (the paper: six classes of VOC2007).
        workers: Threads that open photographs.
        device: Where to compute.
        overwrite: Replace what another discovery left in ``out``.
        progress: Show bars.

    Returns:
        The clusters, ranked, and where page and numbers lie; ``str()`` says it in lines.

    Raises:
        InvalidInputError: no images, fewer than two that can be opened, an argument that is not accepted, or ``out``
            holds another discovery.
        UnknownNameError: an unknown model or layer, or a label that no photograph has.
        ImageError: no file can be opened.
        StorageError: ``out`` cannot be written to; what was computed is kept.
    """
    folder = Path(out)
    model = loaded(model)
    page.check_folder(folder)
    paths = _photographs(images, folder)
    if label_only:
        paths = _with_labels(paths, labels, label_column, label_only)
    elif labels is not None:
        read_labels(labels, list(map(str, paths)), label_column)  # a mistake is told before hours of work
    grid = usual_grid(model)
    grid = dataclasses.replace(grid, sides=tuple(sides)) if sides else grid
    patches = extract_patches(
        paths, model, out=folder / "patches", grid=grid, layer=layer, pool=pool, workers=workers, device=device,
        overwrite=overwrite, progress=progress,
    )  # fmt: skip
    if len(patches.paths) < 2:
        raise InvalidInputError(f"Only {patches.paths[0]} can be opened; what recurs takes two photographs or more.")
    known = read_labels(labels, patches.paths, label_column) if labels is not None else None
    settings = {"patches": patches.settings, "search": asdict(search)}
    _claim(folder / "matches", settings, overwrite)
    matches = match(patches, search, out=folder / "matches", device=device, progress=progress)
    clusters = select(patches, matches, selection, known)
    found = _curve(patches, clusters, known, label_only)
    result = Discovery(
        folder / page.PAGE, folder / page.JSON, clusters, found, len(patches.paths), len(patches),
        len(matches.rows), patches.errors, {**settings, "selection": asdict(selection), "labels": str(labels or "")},
    )  # fmt: skip
    page.write(result, progress)
    return result


def _photographs(images: str | Path | Sequence[str | Path], out: Path) -> list[Path]:
    """Find the photographs: one file counts once, whatever links lead to it, and what lies in ``out`` is none."""
    own = os.path.realpath(out) + os.sep
    found = by_file(images, lambda _, real: real.startswith(own))
    if not found:
        raise InvalidInputError(f"No images in {images!r} but what lies in out={str(out)!r}; choose another out.")
    return list(found.values())


def select(
    patches: Patches, matches: Matches, selection: Selection, labels: Labels | None = None
) -> tuple[Cluster, ...]:
    """Make clusters of matches: rank constellations, and take those that show photographs not shown before."""
    order = ranking(matches.verified, matches.score)
    order = order[matches.verified[order] >= selection.least]
    members = matches.images[:, : selection.members]
    images = [members[number][members[number] >= 0] for number in order]
    taken = cover(images, len(patches.paths), selection.clusters, fresh=selection.fresh)
    return tuple(_cluster(patches, matches, int(order[place]), place, images[place], labels) for place, _ in taken)


def _cluster(
    patches: Patches, matches: Matches, number: int, place: int, images: Sequence[int], labels: Labels | None
) -> Cluster:
    members = []
    for column, image in enumerate(images):
        boxes = patches.boxes[matches.matched[number, column]].astype(float)
        square = fit_squares((boxes[:, :2] + boxes[:, 2:]) / 2, float((boxes[:, 2:] - boxes[:, :2]).mean()))
        at = (*(round(float(value), 1) for value in square.center), round(float(square.side), 1))
        near, error = float(matches.similarity[number, column]), float(matches.error[number, column])
        members.append(Member(patches.paths[image], _rounded(boxes), at, round(near, 6), round(error, 6)))  # type: ignore[arg-type]
    own = int(patches.image_of(matches.rows[number, :1])[0])
    share, label = purity(images, labels) if labels is not None else (None, "")
    return Cluster(
        place, patches.paths[own], _rounded(patches.boxes[matches.rows[number]]), int(matches.verified[number]),
        round(float(matches.score[number]), 6), tuple(members), share, label,
    )  # fmt: skip


def _rounded(boxes: np.ndarray[Any, Any]) -> tuple[tuple[float, float, float, float], ...]:
    return tuple((round(a, 1), round(b, 1), round(c, 1), round(d, 1)) for a, b, c, d in boxes.tolist())


def _curve(patches: Patches, clusters: Sequence[Cluster], labels: Labels | None, names: Sequence[str]) -> Curve | None:
    if labels is None or not clusters:
        return None
    counted = [of & set(names) if names else of for of in labels]
    number = {path: k for k, path in enumerate(patches.paths)}
    return curve([np.array([number[one.path] for one in cluster.members]) for cluster in clusters], counted)


def _with_labels(paths: Sequence[Path], labels: str | Path | None, column: int, names: Sequence[str]) -> list[Path]:
    if labels is None:
        raise InvalidInputError(f"Only photographs with the labels {', '.join(names)} are wanted, and no labels given.")
    return [paths[number] for number in only(read_labels(labels, list(map(str, paths)), column), names)]


def _claim(folder: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Make the folder of the matches the settings' own; what other settings left there goes only when told to."""
    note = folder / "settings.json"
    try:
        before = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else None
    except (OSError, ValueError):
        before = {}
    wanted = json.loads(json.dumps(settings))
    if before is not None and before != wanted:
        if not overwrite:
            raise InvalidInputError(
                f"{folder.parent} holds a discovery with other settings. Give its settings again to go on with it, "
                "overwrite it with overwrite=True (--overwrite), or choose another out."
            )
        shutil.rmtree(folder)
    with storing(note):
        folder.mkdir(parents=True, exist_ok=True)
    write_bytes(json.dumps(settings, indent=1).encode() + b"\n", note)
