"""Which images are trained on and which are held out, whole image by whole image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from context_pred.data.collection import Collection, collect
from context_pred.errors import InvalidInputError


def split(
    images: str | Path | Sequence[str | Path],
    held_out: str | Path | Sequence[str | Path] | None,
    *,
    share: float,
    seed: int,
    out: Path,
) -> tuple[Collection, Collection | None]:
    """Find the images and divide them.

    Without ``held_out`` a share of the images is drawn by a hash of the seed and the last two parts of each name: an
    image that a list names twice falls on one side, and adding images moves none of the others.

    Args:
        images: As in ``collect``.
        held_out: Images to hold out, given by the user; None draws them.
        share: Of the images, 0…1, that is held out where none are given.
        seed: Of the draw.
        out: The run's folder, which must not lie among the images.

    Returns:
        (images to train on, held-out images or None).

    Raises:
        InvalidInputError: no images; the run's folder is among them; or the draw leaves nothing to train on.
    """
    collection = collect(images)
    own = out.absolute()
    inside = next((n for n in collection.names if own.name in n and Path(n).absolute().is_relative_to(own)), None)
    if inside is not None:
        raise InvalidInputError(f"{inside} lies in the run's own folder; choose a folder outside of the images.")
    if held_out is not None:
        return collection, collect(held_out)
    if not share:
        return collection, None
    drawn = [_number(seed, name) < share for name in collection.names]
    kept = [index for index, out_of_it in enumerate(drawn) if not out_of_it]
    held = [index for index, out_of_it in enumerate(drawn) if out_of_it]
    if not kept:
        raise InvalidInputError(
            f"run.held_out = {share} leaves none of {len(collection)} images to train on; hold out less with "
            f"--set run.held_out=0, or give the held-out images with --held-out."
        )
    return (collection.subset(kept), collection.subset(held)) if held else (collection, None)


def digest(collection: Collection) -> str:
    """Tell collections apart by the names of their images, wherever their folder lies: 64 hex digits."""
    found = hashlib.sha256()
    for name in collection.names:
        found.update(_key(name) + b"\0")
    return found.hexdigest()


def _key(name: str) -> bytes:
    return "/".join(Path(name).parts[-2:]).encode("utf-8", "surrogateescape")


def _number(seed: int, name: str) -> float:
    """Return a number from 0 up to 1 that the seed and the name decide."""
    return int.from_bytes(hashlib.sha256(b"%d:%s" % (seed, _key(name))).digest()[:8], "big") / 2**64
