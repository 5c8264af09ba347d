"""A protocol from command to table."""

from __future__ import annotations

import dataclasses
import os
import platform
import statistics
import time
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import context_pred
from context_pred.errors import InvalidInputError, unknown
from context_pred.extract.network import find_device
from context_pred.extras import need, versions
from context_pred.ranks import cores, joined
from context_pred.training.machine import own_device

from . import folder, labelled, published, quirks, report, settings, sources, trained
from .features import DamagedImagesError
from .job import Job, Measurement, Result
from .labelled import LabelledImages
from .sources import Source

PROTOCOLS: dict[str, str] = {
    "svm": "svm",
    "low-shot-svm": "low_shot",
    "knn": "knn",
    "linear": "linear",
    "semi-supervised": "semi_supervised",
    "detection": "detection",
    "segmentation": "segmentation",
    "pretext": "pretext_accuracy",
}
"""Name → module, which has NAME, Settings (or settings_of(variant)) and run(job), and where it differs from svm:

LAYERS ("all", "all but first", "last", "none") or usual_layers(settings); DRAWS = False: nothing is drawn; VARIANTS:
its rows, as layouts of data name them; defaults(variant, given): other defaults of Settings; row_options(given): which
of the options given ask for another published row; TRAINS = True: networks only, and with skip_damaged every file is
opened first, as where opens_every_file(settings) says so; DataOptions, read(folder, options) and of_row(variant, data):
its data, with ``described()``, ``every_file()`` and ``without(damaged)``.
"""

_NEUTRAL = ("k", "labels", "memory", "chunk", "evaluate_every", "checkpoint_every", "pictures")
"""Settings that change no figure, or that each figure stands under in the table."""

KEPT = "What was computed is kept; the same command goes on."


def run(
    protocol: str,
    model: Any,
    data: str | Path | LabelledImages,
    *,
    out: str | Path,
    variant: str | None = None,
    layers: str | Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = (0,),
    features: str | Path | None = None,
    workers: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: bool = True,
) -> Result:
    """Evaluate a model by a published protocol; write result.json, result.md and plot.png.

    What was computed is kept in ``out``, and the same call goes on from it. Several seeds matter for random weights and
    for protocols that draw: the result then has means and spreads; else the first alone is run.

    Args:
        protocol: A name of ``PROTOCOLS``.
        model: As ``sources.find`` takes it: a name, a path, ``random:BACKBONE``, ``pixels``, ``hog``, a model or a
            ``FeatureMaps``.
        data: A folder (see ``layouts``), or labelled images.
        out: The folder to write into.
        variant: Which of a protocol's rows; None: what the data's layout shows.
        layers: Layers to evaluate; None: the protocol's.
        settings: Options of the protocol's Settings and of ``DataOptions``, as values or as texts of the command line.
        seeds: Of every draw.
        features: Where extracted features are kept, so that several runs share them; None: ``out/features``.
        workers: Processes or threads; None: as many as there are cores.
        device: Where networks run: "auto", "cpu", "cuda" …
        overwrite: Remove what another evaluation left in ``out``, and compute anew.
        progress: Show bars on stderr.

    Returns:
        The result; ``str()`` is what result.md says.

    Raises:
        UnknownNameError: an unknown protocol, variant, model, layer or option; the nearest are named.
        InvalidInputError: data that is not recognised or lacks a piece, a value out of its range, a folder of another
            evaluation, or a package of the extra "eval" that is not installed.
        ImageError: images that cannot be opened, all named, unless ``skip_damaged`` is set.
        StorageError: ``out`` cannot be written.
    """
    module = _module(protocol)
    need("matplotlib.figure", f"evaluate {protocol}")
    numbers = _seeds(seeds)
    if workers is not None and workers < 1:
        raise InvalidInputError(f"workers={workers}; accepted: 1 or more.")
    place = own_device(find_device(device))
    with joined(KEPT, "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo") as ranks:
        plan = _plan(protocol, module, model, data, settings, variant, layers, numbers)
        places = {"out": out, **({"features": features} if features and plan.data.kind == "single" else {})}
        for name, given in places.items():
            if plan.where in map(str, (Path(given).resolve(), *Path(given).resolve().parents)):
                raise InvalidInputError(
                    f"{name}={str(given)!r} lies within the data, {data}; choose a folder outside of it."
                )
        common = {
            "workers": workers or cores(),
            "device": device,
            "progress": progress and ranks.rank == 0,
            "kept": Path(features) if features is not None else Path(out) / "features",
            "ranks": ranks,
        }
        ranks.lead(lambda: folder.claim(Path(out), plan.command(), overwrite))
        merged = _measured(plan, model, Path(out), common)
        ranks.lead(lambda: report.write(merged, Path(out)))
        return merged


@dataclass(frozen=True)
class _Plan:
    """A call, understood."""

    protocol: str
    module: Any
    source: Source
    data: Any
    where: str
    variant: str | None
    layers: tuple[str, ...]
    settings: Any
    options: Any
    seeds: tuple[int, ...]
    notes: tuple[str, ...]
    other_settings: tuple[str, ...]
    said: str

    def command(self) -> dict[str, Any]:
        """What tells this run from another; the seeds do not: those of an earlier call are kept and others added."""
        return {
            "protocol": self.protocol,
            "variant": self.variant,
            "model": self.source.name,
            "digest": "" if self.source.kind == "random" else self.source.digest,
            "data": self.where,
            "layers": list(self.layers),
            "settings": _plain(dataclasses.asdict(self.settings)),
            "data_options": _plain(dataclasses.asdict(self.options)),
        }


def _plan(
    protocol: str,
    module: Any,
    model: Any,
    data: Any,
    given: Mapping[str, Any] | None,
    variant: str | None,
    layers: str | Sequence[str] | None,
    seeds: tuple[int, ...],
) -> _Plan:
    data_kind = getattr(module, "DataOptions", labelled.DataOptions)
    options = settings.part(protocol, data_kind, settings.of_kind(data_kind, given))
    is_path = isinstance(data, (str, Path))
    reader = getattr(module, "read", labelled.read)
    wanted = typing.get_type_hints(reader)["return"]
    if not is_path and not isinstance(data, wanted):
        raise InvalidInputError(f"Data given as {type(data).__name__}; {protocol} takes a path or {wanted.__name__}.")
    read = reader(data, options) if is_path else data
    row = _variant(protocol, module, variant, read)
    read = module.of_row(row, read) if hasattr(module, "of_row") else read
    kind = module.settings_of(row) if hasattr(module, "settings_of") else module.Settings
    usual = module.defaults(row, given or {}) if hasattr(module, "defaults") else {}
    chosen = settings.part(protocol, kind, {**usual, **(given or {})}, also=data_kind)
    source = sources.find(model, seeds[0])
    if getattr(module, "TRAINS", False) and source.kind in sources.FIXED:
        raise InvalidInputError(f"model={source.name!r}: {protocol} trains a network; accepted: a model or random:…")
    notes = []
    if len(seeds) > 1 and source.kind != "random" and not getattr(module, "DRAWS", True):
        notes.append(f"Nothing is drawn here, so seed {seeds[0]} alone was run.")
        seeds = seeds[:1]
    if source.kind == "network" and not source.file and not isinstance(model, (str, os.PathLike)):
        notes.append(f"The model was given from Python; in the command {source.name!r} stands for it.")
    files = read.every_file()
    twice = len(files) - len(set(files))
    if twice:
        notes.append(f"{twice:,} files are listed twice; figures on images that were learned from say little.")
    which = module.usual_layers(chosen) if hasattr(module, "usual_layers") else getattr(module, "LAYERS", "all")
    where = str(Path(data).resolve()) if is_path else read.name
    said = settings.command_line(
        protocol, source.name, where, given, variant=variant,
        layers=[layers] if isinstance(layers, str) else layers or (), seeds=seeds,
    )  # fmt: skip
    return _Plan(
        protocol, module, source, read, where, row, _layers(protocol, source, layers, which), chosen, options, seeds,
        tuple(notes), _other_settings(protocol, module, kind, chosen, row, given or {}), said,
    )  # fmt: skip


def _other_settings(
    protocol: str, module: Any, kind: type, chosen: Any, row: str | None, given: Mapping[str, Any]
) -> tuple[str, ...]:
    """Name the settings that are others than the row's own."""
    asked = module.row_options(given) if hasattr(module, "row_options") else {}
    usual = module.defaults(row, asked) if hasattr(module, "defaults") else {}
    published = settings.part(protocol, kind, {**usual, **asked})
    names = [field.name for field in dataclasses.fields(kind) if field.name not in _NEUTRAL]
    return tuple(name for name in names if getattr(chosen, name) != getattr(published, name))


def _measured(plan: _Plan, model: Any, place: Path, common: dict[str, Any]) -> Result:
    """Run every seed, and bring the figures together."""
    start = time.perf_counter()
    results: list[Result] = []
    record: dict[str, Any] = {}
    read, first = plan.data, plan.source
    opens = getattr(plan.module, "opens_every_file", lambda settings: getattr(plan.module, "TRAINS", False))
    if plan.options.skip_damaged and opens(plan.settings):
        found = trained.damaged(read.every_file(), common["ranks"])
        read = read.without(found) if found else read
    if opens(plan.settings):
        common["ranks"].lead(lambda: trained.check_there(read.every_file()))
    transform = quirks.transform_of(first.model.transform, first.file, plan.protocol)
    for seed in plan.seeds:
        job = Job(
            source=first if seed == plan.seeds[0] else sources.find(model, seed),
            data=read,
            out=place / f"seed-{seed}",
            layers=plan.layers,
            settings=plan.settings,
            seed=seed,
            variant=plan.variant,
            record=record,
            transform=transform,
            **common,
        )
        result, read = _with_damaged(plan.module.run, job, plan.options.skip_damaged)
        results.append(result)
    ran_on = {
        "model": first.name,
        "file": first.file,
        "digest": first.digest,
        "sha256": first.sha256,
        "backbone": first.model.card.backbone,
        "layers": list(plan.layers),
        **record,
        "data": {"path": plan.where, **read.described()},
        "settings": dataclasses.asdict(plan.settings),
        "data_options": dataclasses.asdict(plan.options),
        "seeds": list(plan.seeds),
        "other_settings": list(plan.other_settings),
        "command": plan.said,
        "notes": list(plan.notes),
        "device": str(find_device(common["device"])),
        "processes": common["ranks"].count,
        "seconds": round(time.perf_counter() - start, 1),
        "versions": {"python": platform.python_version(), **versions(), "context-pred": context_pred.__version__},
    }
    figures = published.figures(plan.protocol, plan.variant)
    return dataclasses.replace(merge(results, plan.seeds), published=figures, variant=plan.variant, ran_on=ran_on)


def _module(protocol: str) -> Any:
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS)
    return import_module(f".{PROTOCOLS[protocol]}", __package__)


def _seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    numbers = tuple(dict.fromkeys(seeds))
    if not numbers or not all(isinstance(seed, int) and 0 <= seed < 2**32 for seed in numbers):
        raise InvalidInputError(f"seeds={list(seeds)}; accepted: whole numbers from 0 up to 2³² − 1, at least one.")
    return numbers


def _variant(protocol: str, module: Any, variant: str | None, data: Any) -> str | None:
    variants: tuple[str, ...] = getattr(module, "VARIANTS", ())
    if variant is None:
        shown = (row for row in variants if row == data.kind or row.startswith(f"{data.kind}-"))
        return next(shown, variants[0] if variants else None)
    if not variants:
        raise InvalidInputError(f"variant={variant!r}, but {protocol} has no variants; leave it out.")
    if variant not in variants:
        raise unknown("variant", variant, variants)
    return variant


def _layers(protocol: str, source: Source, layers: str | Sequence[str] | None, usual: str) -> tuple[str, ...]:
    if usual == "none":
        if layers:
            raise InvalidInputError(f"layers={layers!r}, but {protocol} uses the whole backbone; leave it out.")
        return ()
    if layers is None or (not isinstance(layers, str) and not layers):
        if usual == "all but first":
            return source.layers[1:] or source.layers
        return source.layers[-1:] if usual == "last" else source.layers
    return source.chosen([layers] if isinstance(layers, str) else layers)


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON gives them back."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _with_damaged(run: Any, job: Job, skip: bool) -> tuple[Result, Any]:
    """Run a protocol; where damaged images may be left out, begin again without them: what was extracted is kept."""
    while True:
        try:
            return run(job), job.data
        except DamagedImagesError as error:
            if not skip:
                raise
            job = dataclasses.replace(job, data=job.data.without(error.errors))


def merge(results: Sequence[Result], seeds: Sequence[int]) -> Result:
    """Merge the results of several seeds: means, standard deviations, lowest and highest of each figure.

    The best is then the best of the means of its metric (at its setting, where the seeds agree on that); what each seed
    gave is in the details.
    """
    if len(results) == 1:
        return results[0]
    cells: dict[Any, list[Measurement]] = {}
    for result in results:
        for one in result.measured:
            cells.setdefault((one.metric, one.layer, tuple(one.at.items())), []).append(one)
    measured = tuple(_mean(ones) for ones in cells.values())
    best = results[0].best
    if best is not None:
        settings_of_best = [dict(result.best.at) for result in results if result.best is not None]
        agreed = all(at == settings_of_best[0] for at in settings_of_best)
        rivals = [m for m in measured if m.metric == best.metric and (not agreed or dict(m.at) == dict(best.at))]
        best = max(rivals, key=lambda one: one.value)
    by_seed = [
        {
            "seed": seed,
            "measured": [dataclasses.asdict(one) for one in result.measured],
            "details": dict(result.details),
        }
        for seed, result in zip(seeds, results, strict=True)
    ]
    notes = list(dict.fromkeys(note for result in results for note in result.details.get("notes", ())))
    details = {"by_seed": by_seed, **({"notes": notes} if notes else {})}
    return dataclasses.replace(results[0], measured=measured, best=best, details=details)


def _mean(ones: Sequence[Measurement]) -> Measurement:
    values = [one.value for one in ones]
    return dataclasses.replace(
        ones[0],
        value=statistics.fmean(values),
        spread=statistics.stdev(values) if len(values) > 1 else None,
        low=min(values),
        high=max(values),
        count=len(values),
    )
