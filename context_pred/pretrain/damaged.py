"""The damaged images of a run: counted against the share that is allowed, and listed in ``damaged.jsonl``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from context_pred.data.collection import Collection
from context_pred.errors import ImageError
from context_pred.weights_file import write_bytes

DAMAGED_FILE = "damaged.jsonl"

_FEW = 200
"""So many images have been looked at before their share of damaged ones says anything of all."""


class Damaged:
    """What one rank has met, and what it has heard of from others and from before the run was resumed.

    Attributes:
        found: Name → reason, of all that are known.
    """

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self._asked = 0
        self._met: set[int] = set()

    def add(self, collection: Collection, damaged: Iterable[tuple[int, str]]) -> None:
        """Note damaged images of a collection: (index, reason)."""
        for index, reason in damaged:
            self.found.setdefault(collection.names[index], reason)

    def check(
        self, collection: Collection, asked: Iterable[int], damaged: Iterable[tuple[int, str]], most: float
    ) -> None:
        """Count a micro-batch of this rank's against the share allowed.

        Images that were only tried in the place of damaged ones do not count: where damaged images lie side by side,
        as a folder that was copied badly does, most of them are met in that way. While only some of the images have
        been seen, three standard deviations above the share are allowed.

        Args:
            collection: The images.
            asked: Which of them the micro-batch was to hold.
            damaged: (index, reason) of those met.
            most: The share of damaged images allowed, 0…1.

        Raises:
            ImageError: there are more.
        """
        broken = {index for index, _ in damaged}
        places = list(asked)
        self._asked += len(places)
        self._met |= broken.intersection(places)
        whole = len(collection)
        seen = min(whole, max(self._asked, _FEW))
        slack = 3 * math.sqrt(most * (1 - most) * seen * (1 - seen / whole))
        if len(self._met) <= most * seen + slack:
            return
        name = collection.names[min(self._met)]
        raise ImageError(
            f"{len(self._met)} of {'the' if seen == whole else 'the first'} {seen:,} images are damaged, more than "
            f"run.damaged_share = {most} allows; one is {name}: {self.found[name]}. {DAMAGED_FILE} in the run's folder "
            f"lists those met. Mend or remove them, or allow more with --set run.damaged_share=0.9."
        )

    def write(self, folder: Path, others: Iterable[Mapping[str, str]] = ()) -> None:
        """Write ``damaged.jsonl``, a line an image, by name; what it holds already stays."""
        for more in (*others, read(folder)):
            self.found = {**more, **self.found}
        lines = [{"image": name, "reason": reason} for name, reason in sorted(self.found.items())]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_bytes(text.encode("utf-8", "surrogateescape"), folder / DAMAGED_FILE)


def read(folder: Path) -> dict[str, str]:
    """Read ``damaged.jsonl``, lines that are none left out; nothing where it is not there."""
    path = folder / DAMAGED_FILE
    if not path.is_file():
        return {}
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8", errors="surrogateescape").split("\n"):
        try:
            row = json.loads(line)
            found[row["image"]] = row["reason"]
        except (ValueError, KeyError, TypeError):  # an empty line, or one that a full disk has cut off
            continue
    return found
