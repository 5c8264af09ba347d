"""The report of a run: one HTML file that opens without a network, made from the files in the run's folder alone.

It reads ``recipe.toml``, ``run.json``, ``log.jsonl``, ``damaged.jsonl``, ``result.json`` and ``samples.safetensors``.
Any of them may be missing, as after a run that was stopped; the report says so and shows the rest.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from context_pred.errors import InvalidInputError
from context_pred.markup import Markup, count, duration, element, joined, page, percent
from context_pred.pretext import CHANCE
from context_pred.weights_file import write_bytes

from . import sections
from .files import FILES, Row, RunFiles, number

OVERFIT = 0.1
"""From how much more accuracy on training images on, as a share, the report speaks of overfitting."""


def write(run: str | Path) -> Path:
    """Write ``RUN/report.html``.

    Args:
        run: The run's folder, finished or not.

    Returns:
        The report's path.

    Raises:
        InvalidInputError: there is no such folder, or no file of a run in it.
        StorageError: the report cannot be written.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise InvalidInputError(f"run={str(run)!r} is no folder; accepted: the folder of a pretraining run.")
    if not any((folder / name).is_file() for name in FILES):
        raise InvalidInputError(
            f"{folder} holds no pretraining run: none of {', '.join(FILES)} is in it. Give the folder that "
            f"`context-pred pretrain` was given as --out."
        )
    files = RunFiles.read(folder)
    text = page(f"Pretraining report: {files.title}", _body(files))
    path = folder / "report.html"
    write_bytes(text.encode("utf-8", "backslashreplace"), path)
    return path


def _body(files: RunFiles) -> Markup:
    parts = [
        ("curves", "Curves", sections.curves(files)),
        ("positions", "The eight positions", sections.positions(files)),
        ("pairs", "Sampled pairs", sections.pairs(files)),
        ("data", "Data", sections.data(files)),
        ("speed", "Speed", sections.speed(files)),
        ("run", "Recipe, versions, hardware", sections.run(files)),
    ]
    return joined(
        element("h1", files.title),
        element("p", _opening(files), class_="soft"),
        element("nav", [element("a", title, href=f"#{key}") for key, title, _ in parts]),
        _problems(files),
        _tiles(files),
        element("p", _verdict(files)),
        [element("section", element("h2", title), content, id=key) for key, title, content in parts],
    )


def _opening(files: RunFiles) -> str:
    made = count(files.steps, "step")
    state = f"Finished after {made}" if files.result else f"Not finished: {made} recorded"
    started = files.run.get("started")
    begun = f", begun {str(started).replace('T', ' ', 1)}" if started else ""
    return (
        "Context prediction: the network sees two patches of an image and says where the one lies, seen from the "
        f"other. {state}{begun}."
    )


def _problems(files: RunFiles) -> Markup | None:
    if not files.problems:
        return None
    return element(
        "div",
        element("strong", "Not everything is here; the last files of a run are written at its end."),
        element("ul", [element("li", problem) for problem in files.problems]),
        class_="notice",
    )


def _tiles(files: RunFiles) -> Markup:
    epoch = number(files.last, "epoch")
    speeds = [speed for row in files.means if (speed := number(row, "images_per_second"))]
    tiles = [
        _accuracy_tile("held-out accuracy", files.held_out),
        _accuracy_tile("on training images, dropout off", files.training),
        (f"{files.images:,}", "images seen" + (f", {epoch:.1f} epochs" if epoch else "")) if files.images else None,
        (duration(files.seconds), "training and evaluating") if files.seconds else None,
        (f"{statistics.median(speeds):,.1f}", "images/s, median") if speeds else None,
    ]
    return element(
        "div",
        [element("div", element("b", tile[0]), element("span", tile[1]), class_="tile") for tile in tiles if tile],
        class_="tiles",
    )


def _accuracy_tile(what: str, result: Row | None) -> tuple[str, str] | None:
    if result is None:
        return None
    return percent(
        result["accuracy"]
    ), f"{what}; 95 % interval {sections.interval(result)}, chance {sections.CHANCE_PERCENT}"


def _verdict(files: RunFiles) -> str:
    held, training = files.held_out, files.training
    if held is None:
        return "Nothing says how the network does on images it has not seen: no held-out accuracy was measured."
    text = f"On {count(held['pairs'], 'pair')} of {count(held['images'], 'held-out image')} the network "
    if held["low"] <= CHANCE:
        chance = f"chance ({sections.CHANCE_PERCENT})"
        return text + f"is no better than {chance}, as far as they can tell: it has learned nothing yet."
    text += f"names the right one of eight positions {held['accuracy'] / CHANCE:.1f} times as often as chance would."
    if training is None:
        return text
    gap = training["accuracy"] - held["accuracy"]
    if gap > OVERFIT:
        return text + (
            f" On the images it was trained on it is right {100 * gap:.1f} percentage points more often: it overfits, "
            f"so that more images would help rather than more epochs."
        )
    return text + f" On the images it was trained on it is right {percent(training['accuracy'])} of the time."
