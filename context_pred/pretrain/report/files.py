"""What the files of a run's folder say, as far as they are there."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from context_pred.training.progress import LOG, read_log

DAMAGED = "damaged.jsonl"

FILES = {
    "recipe.toml": "the recipe",
    "run.json": "the command, the data, versions and hardware",
    LOG: "the curves and the speed",
    DAMAGED: "the damaged images",
    "result.json": "the accuracy at the end",
    "samples.safetensors": "sampled pairs",
}

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """The contents of a run's files; ``problems`` tells which are missing or cannot be read."""

    folder: Path
    recipe: str
    run: Row
    log: Sequence[Row]
    damaged: Sequence[Row]
    result: Row
    samples: Mapping[str, np.ndarray[Any, Any]]
    problems: Sequence[str]

    @classmethod
    def read(cls, folder: Path) -> RunFiles:
        """Read a run's folder."""
        problems: list[str] = []

        def get(name: str, read: Callable[[Path], Any], nothing: Any) -> Any:
            path = folder / name
            if not path.is_file():
                if name != DAMAGED:  # a run that met no damaged image needs none
                    problems.append(f"{name} is missing, and with it {FILES[name]}.")
                return nothing
            try:
                return read(path)
            except (OSError, ValueError, SafetensorError) as error:
                problems.append(f"{name} cannot be read ({error}), and with it {FILES[name]}.")
                return nothing

        return cls(
            folder=folder,
            recipe=get("recipe.toml", lambda path: path.read_text(encoding="utf-8"), ""),
            run=get("run.json", _object, {}),
            log=get(LOG, read_log, []),
            damaged=get(DAMAGED, _lines, []),
            result=get("result.json", _object, {}),
            samples=get("samples.safetensors", load_file, {}),
            problems=problems,
        )

    @cached_property
    def title(self) -> str:
        """The recipe's title and name, or the folder's name."""
        try:
            document = tomllib.loads(self.recipe)
        except tomllib.TOMLDecodeError:
            document = {}
        names = [str(document[key]) for key in ("title", "name") if document.get(key)]
        return f"{names[0]} ({names[1]})" if len(names) == 2 else (names or [self.folder.resolve().name])[0]

    @cached_property
    def means(self) -> Sequence[Row]:
        """The log's rows that have means over steps."""
        return [row for row in self.log if number(row, "loss") is not None]

    @cached_property
    def evaluations(self) -> Mapping[int, Row]:
        """The held-out results of the log by their steps, rising; of two at one step the later."""
        found = {row["step"]: row["held_out"] for row in self.log if isinstance(row.get("held_out"), dict)}
        return {step: found[step] for step in sorted(found)}

    @cached_property
    def held_out(self) -> Row | None:
        """The held-out accuracy at the end, else the last of the log."""
        at_end = self.result.get("held_out")
        if isinstance(at_end, dict):
            return at_end
        return list(self.evaluations.values())[-1] if self.evaluations else None

    @property
    def training(self) -> Row | None:
        """The accuracy on training images at the end, dropout off."""
        found = self.result.get("training")
        return found if isinstance(found, dict) else None

    @property
    def last(self) -> Row:
        """The log's last row, or an empty one."""
        return self.log[-1] if self.log else {}

    @property
    def steps(self) -> int:
        """Steps made."""
        return int(self.result.get("steps", self.last.get("step", 0)))

    @property
    def seconds(self) -> float:
        """Seconds of the whole run; 0 where nothing says."""
        return float(self.result.get("seconds", self.last.get("seconds", 0.0)))

    @property
    def images(self) -> int:
        """Images seen; 0 where nothing says."""
        return int(self.result.get("images_seen", self.last.get("images", 0)))


def number(row: Row, key: str) -> float | None:
    """Return a row's value as a float, None where it is missing or no number."""
    value = row.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _object(path: Path) -> dict[str, Any]:
    values = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
    if not isinstance(values, dict):
        raise ValueError("it holds no JSON object")
    return values


def _lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines; file names may hold any byte, and a line end of Unicode's is none of JSON's."""
    lines = path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    return [json.loads(line) for line in lines if line.strip()]
