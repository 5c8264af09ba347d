"""A run's folder: made ready, recognised when the run is resumed, and what is written into it along the way."""

from __future__ import annotations

import json
import platform
import shutil
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision

from context_pred import __version__
from context_pred.errors import InvalidInputError, storing
from context_pred.weights_file import write_bytes

from .damaged import DAMAGED_FILE
from .recipe import RECIPE_FILE, Recipe
from .split import Split

WRITTEN = (
    "run.json",
    "log.jsonl",
    DAMAGED_FILE,
    "checkpoints",
    "tensorboard",
    "result.json",
    "samples.safetensors",
    "report.html",
    "model",
    RECIPE_FILE,  # says that this is a run: written first, removed last
)
"""What a run writes into its folder; ``overwrite`` removes these and nothing else."""

FREE = {"name", "title", "run.evaluate_every", "run.checkpoint_every", "run.keep", "run.damaged_share"}
"""What a resumed run may change of its recipe: none of it touches the weights."""


def make_ready(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Make the folder, or make sure that what is in it may be gone on with or removed.

    Raises:
        InvalidInputError: it is not empty and it was not said what to do with it, or it is not a run's.
        StorageError: it cannot be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise InvalidInputError(f"out={str(folder)!r} is a file; accepted: the name of a folder.")
    # A hidden file is what a write that was killed has left, or nothing of a run's.
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    there = [name for name in names if not name.startswith(".")]
    shown = f"{', '.join(there[:3])}{', …' if len(there) > 3 else ''}"
    if resume and overwrite:
        raise InvalidInputError("--resume goes on and --overwrite begins anew; give one of them.")
    if there and not (resume or overwrite):
        raise InvalidInputError(
            f"{folder} is not empty ({shown}). Go on with the run in it with --resume, begin anew with --overwrite, or "
            f"choose another folder."
        )
    if there and RECIPE_FILE not in there and (resume or set(there) - set(WRITTEN)):
        raise InvalidInputError(
            f"{folder} holds no run (it has {shown}, and no {RECIPE_FILE}), so there is nothing to go on with, and "
            f"--overwrite removes nothing but a run. Choose another folder."
        )
    with storing(folder):
        if overwrite:
            _remove_run(folder)
        folder.mkdir(parents=True, exist_ok=True)


def _remove_run(folder: Path) -> None:
    for name in WRITTEN:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def describe(folder: Path, recipe: Recipe, device: torch.device, values: Mapping[str, Any]) -> None:
    """Write the recipe, whole, and ``run.json``: the command, the machine, and ``values``."""
    about = {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "versions": {
            "context-pred": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        **values,
    }
    write_bytes(recipe.to_toml().encode(), folder / RECIPE_FILE)
    write_bytes(_json(about), folder / "run.json")


def description(folder: Path) -> dict[str, Any]:
    """Read ``run.json``; nothing where it is not there or cannot be understood."""
    try:
        about = json.loads((folder / "run.json").read_text(encoding="utf-8", errors="surrogateescape"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def note_resumed(folder: Path, step: int, ranks: int) -> None:
    """Add to ``run.json`` that the run was gone on with."""
    path, about = folder / "run.json", description(folder)
    resumed = {"step": step, "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "world_size": ranks}
    write_bytes(_json({**about, "resumed": [*about.get("resumed", []), resumed]}), path)


def write_result(folder: Path, values: Mapping[str, Any]) -> None:
    """Write ``result.json``."""
    write_bytes(_json(values), folder / "result.json")


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape")


def check_same_run(
    folder: Path, state: Mapping[str, Any], recipe: Recipe, split: Split, init: Mapping[str, Any] | None
) -> None:
    """Raise InvalidInputError where a checkpoint belongs to another recipe, other images or another beginning."""
    old, new = (_flat(tomllib.loads(text)) for text in (state["recipe"], recipe.to_toml()))
    differences = [
        f"{name} was {old.get(name, 'not set')!r} and is {new.get(name, 'not set')!r}"
        for name in sorted({*old, *new} - FREE)
        if old.get(name) != new.get(name)
    ]
    if differences:
        raise InvalidInputError(
            f"The run in {folder} has another recipe: {'; '.join(differences)}. Resume it with its own (--recipe "
            f"{folder / RECIPE_FILE}), begin anew with --overwrite, or start another run from its weights with --init."
        )
    what = None
    if state["files"] != split.training_digest:
        what = "was on other images than those given now. Give the same images"
    elif state.get("held_out", split.held_out_digest) != split.held_out_digest:
        what = "held out other images than those given now. Give the same images"
    began = description(folder).get("init") or {}
    if init is not None and began.get("sha256") != init.get("sha256"):
        source = began.get("source") or "random weights"
        what = f"did not start from {init.get('source')}, but from {source}. Leave --init away"
    if what is not None:
        raise InvalidInputError(
            f"The run in {folder} {what} to resume it, begin anew with --overwrite, or start another run from its "
            f"weights with --init."
        )


def _flat(document: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for section, values in document.items():
        flat |= (
            {f"{section}.{key}": value for key, value in values.items()}
            if isinstance(values, dict)
            else {section: values}
        )
    return flat


def said(source: str | Path | Sequence[str | Path]) -> str:
    """Name a source of images."""
    if isinstance(source, (str, Path)):
        return str(source)
    return f"{len(source)} paths, the first {source[0]}" if source else "no paths"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
