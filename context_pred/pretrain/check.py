"""A look at a corpus before the first step: how many images, how large, which cannot be read, which are too small."""

from __future__ import annotations

import dataclasses
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from context_pred.data.collection import Collection
from context_pred.data.images import Header, read_header
from context_pred.errors import ImageError

from .prepare import Preparation

SHARES = (0, 5, 50, 95, 100)
"""The percentiles of the sizes that are told."""

_THREADS = 16  # waiting for a disk or a server, not computing
_NAMED = 5  # unreadable images that the text names; ``unreadable`` holds all that were met
_BLURRED = 1.5  # enlarged by more than this, a patch shows no detail of its own


@dataclass(frozen=True)
class CorpusCheck:
    """What a look at the files' headers told; ``str()`` says it in a few lines.

    A file can be damaged behind a good header: that only shows when it is decoded.

    Attributes:
        images: Images of the corpus.
        looked_at: How many of them were looked at, evenly spread over the corpus.
        short_side: Shorter sides in px: the least, the 5th, 50th and 95th percentile, the most. Empty if none is known.
        long_side: Longer sides, the same.
        formats: How many files of each format, by Pillow's names.
        grey: How many hold one channel.
        unreadable: (name, reason) of those that are no image, or of a kind that cannot be read.
        too_small: How many must be enlarged to be sampled, at least at times.
        enlarged: By what factor at most: the median over those that are too small, and the largest; (1, 1) for none.
    """

    images: int
    looked_at: int
    short_side: tuple[int, ...]
    long_side: tuple[int, ...]
    formats: dict[str, int]
    grey: int
    unreadable: tuple[tuple[str, str], ...]
    too_small: int
    enlarged: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values, for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """Say what was found, and what to do about it."""
        whole = self.looked_at == self.images
        looked = "the headers of all" if whole else f"the headers of {self.looked_at:,} of them"
        lines = [f"{_count(self.images, 'image')}; a look at {looked}:"]
        good = self.looked_at - len(self.unreadable)
        if good:
            kinds = ", ".join(f"{number:,} {kind}" for kind, number in self.formats.items())
            grey = f", {self.grey:,} of them grey" if self.grey else ""
            sides = "; ".join(
                f"{name} side {side[0]:,} … {side[-1]:,} px, in the middle {side[2]:,}"
                for name, side in (("shorter", self.short_side), ("longer", self.long_side))
            )
            lines.append(f"{kinds}{grey}; {sides}.")
        if self.unreadable:
            named = "; ".join(f"{name}: {reason}" for name, reason in self.unreadable[:_NAMED])
            more = f"; and {len(self.unreadable) - _NAMED:,} more" if len(self.unreadable) > _NAMED else ""
            lines.append(
                f"{len(self.unreadable):,} cannot be read ({named}{more}). Others are shown in their place; mend or "
                f"remove them if they are more than a few."
            )
        if self.too_small:
            usual, most = self.enlarged
            advice = (
                " Enlarged images are blurred: with many of them choose a recipe of smaller patches."
                if usual > _BLURRED and self.too_small > good / 10
                else ""
            )
            lines.append(
                f"{self.too_small:,} are smaller than the recipe needs and will be enlarged, by up to {most:.1f} times "
                f"({usual:.1f} in the middle).{advice}"
            )
        return "\n".join(lines)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def check(collection: Collection, preparation: Preparation, *, at_most: int = 2000) -> CorpusCheck:
    """Look at the headers of a corpus's images, evenly spread, in threads: a matter of seconds.

    Args:
        collection: The corpus.
        preparation: Which tells what images must be enlarged.
        at_most: How many to look at.
    """
    Image.init()  # Pillow registers its formats at the first need, and two threads would disturb each other
    looked_at = min(at_most, len(collection))
    chosen = [number * len(collection) // looked_at for number in range(looked_at)]
    headers: list[Header] = []
    unreadable: list[tuple[str, str]] = []
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="context-pred-check") as pool:
        for i, found in zip(chosen, pool.map(lambda i: _look(collection, i), chosen), strict=True):
            if isinstance(found, Header):
                headers.append(found)
            else:
                unreadable.append((collection.names[i], found))
    factors = sorted(preparation.enlarged(header.height, header.width) for header in headers)
    factors = [factor for factor in factors if factor > 1]
    sizes = np.sort(np.array([(header.width, header.height) for header in headers]).reshape(-1, 2), 1)
    short_side, long_side = (_percentiles(sizes[:, axis]) if headers else () for axis in (0, 1))
    return CorpusCheck(
        images=len(collection),
        looked_at=looked_at,
        short_side=short_side,
        long_side=long_side,
        formats=dict(Counter(header.format for header in headers).most_common()),
        grey=sum(header.grey for header in headers),
        unreadable=tuple(unreadable),
        too_small=len(factors),
        enlarged=(factors[len(factors) // 2], factors[-1]) if factors else (1.0, 1.0),
    )


def _percentiles(sides: Any) -> tuple[int, ...]:
    return tuple(int(v) for v in np.percentile(sides, SHARES, method="nearest"))


def _look(collection: Collection, i: int) -> Header | str:
    name = collection.names[i]
    try:
        return read_header(collection.read(i), name)
    except ImageError as error:
        return str(error).removeprefix(f"{name}: ")
