"""Which files a user means by a folder, a glob pattern or a list."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from context_pred.errors import InvalidInputError

LIST_SUFFIXES = (".txt", ".lst", ".list")
"""A single file of one of these kinds is read as a list of images, one a line."""

LITTER = frozenset({"thumbs.db", "desktop.ini", "icon\r"})
"""What operating systems leave in folders of photographs, beside files whose name starts with a dot."""


def find_images(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """Find the files that ``source`` names.

    No file is left out because of its name's ending: cameras and archives write ``.JPG``, ``.jfif`` or no ending at
    all, and a file that is no image is better reported by whoever opens it than passed over in silence.

    Args:
        source: One of

            - a folder: every file in it and in the folders below, links followed, hidden files and folders (a leading
              dot) and ``Thumbs.db``, ``desktop.ini`` left out; in natural order (``img2`` before ``img10``);
            - a glob pattern (``photos/**/*.jpg``): the files it matches, in natural order. A path that exists is
              taken as it is even where it holds ``*``, ``?`` or ``[``;
            - a list file (``.txt``, ``.lst``, ``.list``; UTF-8): a path a line, in the file's order, empty lines and
              lines that start with ``#`` left out. A relative path is taken from the list's folder, or from the
              working folder where only that one is there;
            - one image file;
            - a sequence of paths, in its order; a folder among them stands for the files it holds.

    Returns:
        The paths, as given (not made absolute), at least one. A path of a list need not exist: opening it tells.

    Raises:
        InvalidInputError: nothing was found; the message says what was looked for and where.
    """
    if isinstance(source, (str, os.PathLike)):
        return _from_one(source)
    if not isinstance(source, Sequence):
        raise InvalidInputError(
            f"Images given as {type(source).__name__}; accepted: a folder, a glob pattern, a list file, "
            f"an image file, or a sequence of paths."
        )
    found: list[Path] = []
    for item in source:
        if not isinstance(item, (str, os.PathLike)):
            raise InvalidInputError(f"A list of images holds a {type(item).__name__}; accepted: paths.")
        path = Path(item)
        found.extend(_from_folder(path) if path.is_dir() else [path])
    if not found:
        raise InvalidInputError("The list of images is empty; at least one path is needed.")
    return found


def natural_key(text: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Sort key in which numbers count as numbers and case does not matter; the text itself breaks ties."""
    parts = re.split(r"(\d+)", text.casefold())
    # isdecimal agrees with \d and int(); a superscript two satisfies isdigit alone.
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts if p), text


def _from_one(source: str | os.PathLike[str]) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        return _from_folder(path)
    if path.exists():
        return _from_list(path) if path.suffix.lower() in LIST_SUFFIXES else [path]
    if glob.has_magic(str(source)):
        return _from_glob(str(source))
    near = _nearest_existing(path)
    raise InvalidInputError(
        f"No images: there is no file or folder {str(source)!r} "
        f"({str(near)!r} is there, {path.relative_to(near).parts[0]!r} in it is not)."
    )


def _nearest_existing(path: Path) -> Path:
    return next((parent for parent in path.parents if parent.exists()), Path(path.anchor or "."))


def _from_folder(folder: Path) -> list[Path]:
    found = sorted(_walk(folder, set()), key=lambda path: _path_key(path.relative_to(folder)))
    if not found:
        raise InvalidInputError(
            f"No images in the folder {str(folder)!r}: it and the folders below hold no files but hidden ones."
        )
    return found


def _path_key(path: Path) -> tuple[tuple[tuple[tuple[int, int, str], ...], str], ...]:
    return tuple(natural_key(part) for part in path.parts)


def _walk(folder: Path, above: set[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above:  # a link to a folder that we are in: following it would never end
        return
    try:
        with os.scandir(folder) as scanned:
            entries = list(scanned)
    except OSError as error:
        raise InvalidInputError(
            f"The folder {str(folder)!r} cannot be read: {error.strerror or error}. Make it readable, or name the "
            f"files with a glob pattern or a list."
        ) from error
    for entry in entries:
        if entry.name.startswith(".") or entry.name.casefold() in LITTER:
            continue
        if _is_folder(entry):
            yield from _walk(folder / entry.name, above | {real})
        else:
            yield folder / entry.name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads round to itself; whoever opens it reports it
        return False


def _from_glob(pattern: str) -> list[Path]:
    found = [path for path in map(Path, glob.glob(pattern, recursive=True)) if not path.is_dir()]
    if not found:
        raise InvalidInputError(
            f"No images: no file matches the pattern {pattern!r} (looked from {str(Path.cwd())!r}; "
            f"'**' matches folders at any depth, hidden files are left out)."
        )
    return sorted(set(found), key=_path_key)


def _from_list(path: Path) -> list[Path]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(
            f"{str(path)!r} cannot be read as a list of images, a path a line in UTF-8: {error}"
        ) from error
    names = [line.strip() for line in lines]
    found = [_listed(Path(name), path.parent) for name in names if name and not name.startswith("#")]
    if not found:
        raise InvalidInputError(f"No images: the list {str(path)!r} holds no paths (a path a line is expected).")
    return found


def _listed(name: Path, folder: Path) -> Path:
    beside = folder / name
    return name if not beside.exists() and name.exists() else beside
