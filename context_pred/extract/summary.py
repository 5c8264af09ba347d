"""What a run did, in numbers and in words."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from context_pred.data.images import HEIF_INSTALL

from .storage import Names, load, read_header, read_index

_SHOWN = 10  # skipped files that the summary names; the index names all


@dataclass(frozen=True)
class Summary:
    """What a run did; ``str()`` says it in a paragraph.

    Attributes:
        out: The safetensors file, or of shards all of them.
        index: The index, a line an image: ``{"path", "row"}`` or ``{"path", "error"}``.
        paths: The images that have a row, in the order of the rows.
        shapes: The shape of each layer's tensor, rows first.
        errors: {path: reason} of the files without a row, HEIC files included.
        heif: Those among them that are HEIC files, which one more package would open.
        sixteen_bit: How many images had 16 bits a value.
        dim: How many of these stay below 4,096, as 12-bit data does, and come out almost black.
        computed: How many images this call opened; the others were done by a call before it, or by other ranks.
        seconds: How long that took.
    """

    out: tuple[Path, ...]
    index: Path
    paths: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    errors: dict[str, str]
    heif: tuple[str, ...]
    sixteen_bit: int
    dim: int
    computed: int
    seconds: float

    @property
    def rows(self) -> int:
        """Images that have a row."""
        return len(self.paths)

    @property
    def images_per_second(self) -> float:
        """Speed of this call (and this rank), files in and files out; 0 where nothing was left to do."""
        return self.computed / self.seconds if self.computed else 0.0

    def __str__(self) -> str:
        """Say it in a paragraph: rows, files, speed, and everything that a user may want to mend."""
        layers = ", ".join(f"{name} {shape}" for name, shape in self.shapes.items())
        where = str(self.out[0]) if len(self.out) == 1 else f"{len(self.out)} shards, {self.out[0]} …"
        speed = f"{self.images_per_second:.1f} images/s" if self.computed else "it was there already"
        text = [f"{_count(self.rows, 'row')} of {layers} in {where}, index {self.index} ({speed})."]
        broken = [(path, reason) for path, reason in self.errors.items() if path not in set(self.heif)]
        if broken:
            more = f"; and {len(broken) - _SHOWN} more, all in the index" if len(broken) > _SHOWN else ""
            listed = "; ".join(f"{path} ({reason})" for path, reason in broken[:_SHOWN])
            text.append(f"{_count(len(broken), 'file')} skipped: {listed}{more}.")
        if self.heif:
            text.append(f"{_count(len(self.heif), 'HEIC file')} skipped too; they open after {HEIF_INSTALL}")
        if self.sixteen_bit:
            text.append(f"{_count(self.sixteen_bit, 'image')} of 16 bits, {self.dim} of which below 4,096 throughout")
            if self.dim:
                text[-1] += ": almost black unless their range is given, --range 0 4095 (value_range=(0, 4095))"
            text[-1] += "."
        return " ".join(text)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def summarize(names: Names) -> Summary:
    """Read the summary of a finished output."""
    paths, arrays = load(names.out)
    errors = {line["path"]: line["error"] for line in read_index(names) if "error" in line}
    counts = json.loads(read_header(names.files()[0])[1]["counts"])
    return Summary(
        out=tuple(names.files()),
        index=names.index,
        paths=tuple(paths),
        shapes={layer: array.shape for layer, array in arrays.items()},
        errors=errors,
        heif=tuple(path for path, reason in errors.items() if HEIF_INSTALL in reason),
        sixteen_bit=counts["sixteen_bit"],
        dim=counts["dim"],
        computed=0,
        seconds=0.0,
    )
