"""Which images are trained on and which are held out, whole image by whole image."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from context_pred.data.collection import Collection, collect
from context_pred.errors import InvalidInputError

Source = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Split:
    """The images of a run.

    Attributes:
        training: Those trained on.
        held_out: Those never trained on, that measure the pretext accuracy; None for none.
        training_digest: Tells sets of images trained on apart, by their names below the folder given or, for lists and
            patterns, by the last two parts of their paths; so wherever the images lie. 64 hex digits.
        held_out_digest: The same of those held out; "" for none.
        notes: What the user should know of the division, a sentence each.
    """

    training: Collection
    held_out: Collection | None
    training_digest: str
    held_out_digest: str
    notes: tuple[str, ...] = ()


def split(images: Source, held_out: Source | None, *, share: float, seed: int, out: Path) -> Split:
    """Find the images and divide them.

    Without ``held_out`` a share of the images is drawn by a hash of the seed and each name (as in
    ``Split.training_digest``): an image that a list names twice falls on one side, and adding images moves none of the
    others. With it, images that are among both are held out.

    Args:
        images: As in ``collect``.
        held_out: Images to hold out, given by the user; None draws them.
        share: Of the images, 0…1, that is held out where none are given.
        seed: Of the draw.
        out: The run's folder, which must not lie among the images.

    Raises:
        InvalidInputError: no images; the run's folder is among them; or nothing is left to train on.
    """
    collection = _outside(images, out)
    key = _key_of(images)
    if held_out is not None:
        given = _outside(held_out, out)
        training, notes = _without(collection, given)
        return Split(training, given, _digest(training, key), _digest(given, _key_of(held_out)), notes)
    drawn = [_number(seed, key(name)) < share for name in collection.names]
    if not any(drawn):
        return Split(collection, None, _digest(collection, key), "")
    if all(drawn):
        raise InvalidInputError(
            f"run.held_out = {share} leaves none of {len(collection)} images to train on; hold out less with "
            f"--set run.held_out=0, or give the held-out images with --held-out."
        )
    training = collection.subset([index for index, held in enumerate(drawn) if not held])
    held = collection.subset([index for index, held in enumerate(drawn) if held])
    return Split(training, held, _digest(training, key), _digest(held, key))


def _outside(images: Source, out: Path) -> Collection:
    """Collect images; an error where the run's folder would come among them."""
    own = out.resolve()
    sources = [images] if isinstance(images, (str, os.PathLike)) else images
    named = (item for item in sources if isinstance(item, (str, os.PathLike))) if isinstance(sources, Sequence) else ()
    folder = next((item for item in named if os.path.isdir(item) and own.is_relative_to(Path(item).resolve())), None)
    if folder is not None:
        raise InvalidInputError(
            f"out={os.fspath(out)!r} lies in the folder of images {os.fspath(folder)!r}, where everything is taken for "
            f"an image; choose a folder outside of it."
        )
    collection = collect(images)
    absolute = out.absolute()
    inside = next((n for n in collection.names if out.name in n and Path(n).absolute().is_relative_to(absolute)), None)
    if inside is not None:
        raise InvalidInputError(f"{inside} lies in the run's own folder; choose a folder outside of the images.")
    return collection


def _without(collection: Collection, held_out: Collection) -> tuple[Collection, tuple[str, ...]]:
    """Leave out what is held out, through whatever link it is reached."""
    # Only an image of the same name, or a link, can be the same file; following all paths of a million would take long.
    held_names = {os.path.basename(name) for name in held_out.names}
    held = {os.path.realpath(name) for name in held_out.names}
    held_names |= {os.path.basename(name) for name in held}
    kept = [
        index
        for index, name in enumerate(collection.names)
        if not (os.path.basename(name) in held_names or os.path.islink(name)) or os.path.realpath(name) not in held
    ]
    left_out = len(collection) - len(kept)
    if not kept:
        raise InvalidInputError(
            f"All {len(collection)} images are held out, which leaves none to train on; give --held-out other images, "
            f"or leave it away to have a share of them drawn."
        )
    if not left_out:
        return collection, ()
    said = "image is" if left_out == 1 else "images are"
    return collection.subset(kept), (f"{left_out:,} {said} held out and so not trained on.",)


def _key_of(images: Source) -> Callable[[str], bytes]:
    """Return what makes an image's key of its name, however the way to it is spelt."""
    if isinstance(images, (str, os.PathLike)) and Path(images).is_dir():
        root = Path(images)
        return lambda name: _bytes(Path(name).relative_to(root).parts)
    return lambda name: _bytes(Path(os.path.abspath(name)).parts[-2:])


def _bytes(parts: Sequence[str]) -> bytes:
    return "/".join(parts).encode("utf-8", "surrogateescape")


def _digest(collection: Collection, key: Callable[[str], bytes]) -> str:
    found = hashlib.sha256()
    for name in collection.names:
        found.update(key(name) + b"\0")
    return found.hexdigest()


def _number(seed: int, key: bytes) -> float:
    """Return a number from 0 up to 1 that the seed and the key decide."""
    return int.from_bytes(hashlib.sha256(b"%d:%s" % (seed, key)).digest()[:8], "big") / 2**64
