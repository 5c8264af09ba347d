"""The steps of a run: begin (or go on), compute the parts, finish."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from context_pred.data.files import find_images
from context_pred.errors import ImageError, InvalidInputError, StorageError
from context_pred.ranks import Ranks

from .loading import Loader
from .storage import (
    Names,
    assemble,
    finished,
    part_is_there,
    read_records,
    read_settings,
    remove_parts,
    write_part,
    write_settings,
)

logger = logging.getLogger("context_pred")

_UNSAID = {"engine": "torch"}
"""What settings that do not name it mean."""


@dataclass(frozen=True)
class Plan:
    """What is to be done: the images, the settings that tell runs apart, and whether all has been done before."""

    names: Names
    paths: list[str]
    settings: dict[str, Any]
    finished: bool = False

    @property
    def count(self) -> int:
        """How many batches there are."""
        return -(-len(self.paths) // int(self.settings["batch_size"]))

    def batch(self, number: int) -> Sequence[str]:
        """The paths of one batch."""
        size = int(self.settings["batch_size"])
        return self.paths[number * size : (number + 1) * size]


def begin(images: str | Path | Sequence[str | Path], names: Names, options: dict[str, Any], overwrite: bool) -> Plan:
    """Find the images, compare with what is on disk, and make the folder of parts where something is to be done.

    Raises:
        InvalidInputError: no images; or the output, or an unfinished run, is there and was made otherwise.
        StorageError: the folder cannot be written to.
    """
    if names.out.is_dir():
        raise InvalidInputError(f"out={str(names.out)!r} is a folder; accepted: the name of a file to write.")
    paths = [str(path) for path in find_images(images) if not names.own(path)]
    if not paths:
        raise InvalidInputError(f"No images in {images!r} but the output itself.")
    settings = {"images": len(paths), "files": digest_of_files(paths), **options}
    done, undone = finished(names), read_settings(names)
    if done is not None and json.loads(done["context_pred"]) == settings and not overwrite:
        if undone == settings:
            remove_parts(names)
        logger.info("%s is there already, made from the same files with the same settings", names.out)
        return Plan(names, paths, settings, finished=True)
    if undone == settings:
        logger.info("going on with the run in %s", names.parts)
        return Plan(names, paths, settings)
    if not overwrite:
        _refuse_what_is_there(names, settings, done, undone)
    remove_parts(names)
    write_settings(names, settings)
    return Plan(names, paths, settings)


def digest_of_files(paths: Sequence[str]) -> str:
    """Tell by names, sizes and times of change whether these are the files of an earlier call."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            found = os.stat(path)
            line = f"{path}\0{found.st_size}\0{found.st_mtime_ns}\n"
        except OSError:
            line = f"{path}\0-\n"
        digest.update(line.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _refuse_what_is_there(
    names: Names, settings: dict[str, Any], done: dict[str, str] | None, undone: dict[str, Any] | None
) -> None:
    cures = "Overwrite it with overwrite=True (--overwrite), or choose another out."
    if undone is not None:
        raise InvalidInputError(
            f"{names.parts} holds an unfinished run with other settings: {differences(undone, settings)}. "
            f"Give its settings again to go on with it. {cures}"
        )
    if done is not None:
        before = json.loads(done["context_pred"])
        raise InvalidInputError(
            f"{names.out} is there, made with other settings: {differences(before, settings)}. {cures}"
        )
    there = [path for path in (*names.files(), names.index) if path.exists()]
    if there:
        raise InvalidInputError(f"{there[0]} is there, and is no finished output of this command. {cures}")


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Say in which settings two runs differ."""
    texts = []
    for name in (*now, *(name for name in before if name not in now)):
        old, new = (settings.get(name, _UNSAID.get(name)) for settings in (before, now))
        if old != new:
            same = name in ("files", "weights")
            texts.append(f"the {name} have changed" if same else f"{name} was {old!r} and is {new!r}")
    return "; ".join(texts)


def compute(
    plan: Plan,
    network: Callable[[Tensor], dict[str, NDArray[Any]]],
    loader: Loader,
    ranks: Ranks,
    *,
    strict: bool,
    progress: bool,
) -> tuple[int, float]:
    """Compute this rank's batches that are not there yet; return how many images that were, and the seconds.

    Raises:
        ImageError: with ``strict``, the first file that cannot be opened.
        StorageError: a part cannot be written.
    """
    share = range(ranks.rank, plan.count, ranks.count)
    missing = [number for number in share if not part_is_there(plan.names.part(number))]
    total, left = (sum(len(plan.batch(number)) for number in numbers) for numbers in (share, missing))
    start = time.perf_counter()
    bar = tqdm(
        total=total,
        initial=total - left,
        unit=" images",
        desc=f"rank 0 of {ranks.count}" if ranks.count > 1 else None,
        disable=not progress or ranks.rank > 0,
    )
    with bar, _Writer(plan.names) as writer:
        for loaded in loader((number, plan.batch(number)) for number in missing):
            good = [k for k, record in enumerate(loaded.records) if "error" not in record]
            if strict and len(good) < len(loaded.records):
                _stop(plan.batch(loaded.number), loaded.records)
            features = network(loaded.pixels) if good else {}
            if 0 < len(good) < len(loaded.records):
                features = {layer: rows[good] for layer, rows in features.items()}
            writer.put(loaded.number, features, loaded.records)
            bar.update(len(loaded.records))
    return left, time.perf_counter() - start


def _stop(paths: Sequence[str], records: Sequence[dict[str, Any]]) -> None:
    for path, record in zip(paths, records, strict=True):
        if "error" in record:
            raise ImageError(f"{path}: {record['error']}")


class _Writer:
    """Writes parts in one thread, at most two behind."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="context-pred-write")
        self.waiting: deque[Future[None]] = deque()

    def put(self, number: int, *content: Any) -> None:
        self.waiting.append(self.thread.submit(write_part, self.names.part(number), *content))
        while len(self.waiting) > 2:
            self.waiting.popleft().result()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.thread.shutdown()
        if kind is None:
            for future in self.waiting:
                future.result()


def finish(plan: Plan, layers: Sequence[str], shard_rows: int | None, strict: bool) -> None:
    """Put the parts together into the output and its index.

    Raises:
        ImageError: not one image could be opened; or, with ``strict``, one could not in an earlier call.
        StorageError: the output cannot be written.
    """
    counts = {"sixteen_bit": 0, "dim": 0}
    rows = 0
    first = ""
    for path, record in _records(plan):
        if "error" in record:
            first = first or f"{path}: {record['error']}"
        rows += "error" not in record
        for name in counts:
            counts[name] += name in record
    if first and (strict or not rows):
        if not rows:
            remove_parts(plan.names)
        raise ImageError(first if rows else f"None of {len(plan.paths)} files could be opened. {first}")
    metadata = {"context_pred": json.dumps(plan.settings), "counts": json.dumps(counts)}
    assemble(plan.names, plan.count, _lines(plan), layers, shard_rows, metadata)


def _records(plan: Plan) -> Iterator[tuple[str, dict[str, Any]]]:
    for number in range(plan.count):
        try:
            records = read_records(plan.names.part(number))
        except FileNotFoundError as error:
            raise StorageError(f"{plan.names.part(number)} has gone during the run.") from error
        yield from zip(plan.batch(number), records, strict=True)


def _lines(plan: Plan) -> Iterator[dict[str, Any]]:
    row = 0
    for path, record in _records(plan):
        if "error" in record:
            yield {"path": path, "error": record["error"]}
        else:
            yield {"path": path, "row": row}
            row += 1
