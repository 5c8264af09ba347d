"""Labels of photographs, where somebody has given them: to say how pure what was found is. Discovery never sees them.

Three ways: the folders that photographs lie in, a list, or VOC's annotations.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from xml.etree import ElementTree

from context_pred.errors import InvalidInputError, unknown

Labels = tuple[frozenset[str], ...]

FOLDERS = "folders"


def read_labels(source: str | Path, paths: Sequence[str], column: int = 1) -> Labels:
    """Return the labels of each photograph.

    Args:
        source: "folders": the name of the folder that the photograph lies in; the path of a list with a line a
            photograph, ``path label`` or ``path, label, …`` (paths relative to the list's folder); or a folder of VOC's
            annotations, ``NAME.xml``, whose objects' names are the labels.
        paths: The photographs.
        column: Of a list: which column after the path has the label, from 1 up.

    Raises:
        InvalidInputError: nothing there, or no photograph has a label.
    """
    place = Path(source)
    if str(source) == FOLDERS:
        # Where the path says, not where a link leads: data sets are often folders of links into one store.
        return tuple(frozenset([Path(os.path.abspath(path)).parent.name]) for path in paths)
    if place.is_file():
        found = _of_list(place, paths, column)
    elif place.is_dir():
        found = _of_annotations(place, paths)
    else:
        raise InvalidInputError(
            f"labels={str(source)!r}: accepted are {FOLDERS!r}, a list (path label) or a folder of VOC annotations."
        )
    if not any(found):
        raise InvalidInputError(f"labels={str(source)!r} names none of the {len(paths)} photographs, as {paths[0]}.")
    return found


def only(labels: Labels, names: Sequence[str]) -> list[int]:
    """Return the numbers of the photographs that have one of these labels.

    Raises:
        UnknownNameError: no photograph has one of the names.
    """
    known = sorted(set().union(*labels))
    for name in names:
        if name not in known:
            raise unknown("label", name, known)
    return [number for number, of in enumerate(labels) if of & set(names)]


def _of_list(file: Path, paths: Sequence[str], column: int) -> Labels:
    found: dict[str, str] = {}
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{file} cannot be read as a list: {error}") from error
    wanted = {str(Path(path).resolve()) for path in paths}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        parts = _columns(line.strip(), file.parent, wanted)
        if not 1 <= column < len(parts):
            raise InvalidInputError(
                f"{file}, line {number}: {line.strip()!r} has {len(parts) - 1} columns after the path; "
                f"asked for is column {column}."
            )
        found[str((file.parent / parts[0]).resolve())] = parts[column]
    return tuple(frozenset(found[key] for key in [str(Path(path).resolve())] if key in found) for path in paths)


def _columns(line: str, folder: Path, paths: Collection[str]) -> list[str]:
    """Divide a line by its commas, as CSV has them, or else by its spaces; a path may have spaces too."""
    if "," in line:
        return [part.strip() for part in next(csv.reader([line], skipinitialspace=True))]
    for space in re.finditer(r"\s+", line):
        if str((folder / line[: space.start()]).resolve()) in paths:
            return [line[: space.start()], *line[space.end() :].split()]
    return line.split()


def _of_annotations(folder: Path, paths: Sequence[str]) -> Labels:
    found = []
    for path in paths:
        file = folder / f"{Path(path).stem}.xml"
        try:
            root = ElementTree.parse(file).getroot() if file.is_file() else None
        except (ElementTree.ParseError, OSError) as error:
            raise InvalidInputError(f"{file} is no annotation: {error}") from error
        names = root.findall("object/name") if root is not None else []
        found.append(frozenset(name.text or "" for name in names))
    return tuple(found)
