"""Model folders on disk: card, weights and sidecar, put into place together."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..card import CARD_FILE, WEIGHTS_FILE, Card
from ..errors import StorageError
from ..weights_file import write_weights, writing
from .sources import SOURCE_FILE

# What a model folder may hold: ours, and what huggingface-hub's mixin writes beside it.
MODEL_FILES = {CARD_FILE, WEIGHTS_FILE, SOURCE_FILE, "config.json", "README.md"}


def write_model_folder(
    out: str | Path, state_dict: Mapping[str, Tensor], card: Card, source: Mapping[str, str] | None = None
) -> Card:
    """Write a model folder (``card.json``, ``model.safetensors``, ``source.json``), whole or not at all.

    The same model gives the same bytes. A model folder that is already there is replaced, unless it holds the same
    bytes; where several processes write at once, the folder that remains is a whole one of theirs.

    Args:
        out: The folder.
        state_dict: The weights.
        card: Its card; ``file``, ``sha256``, ``file_size`` and ``num_params`` are filled in.
        source: Where the weights came from ("url" or "file") and the digest of that ("sha256"). The sidecar
            ``source.json`` holds them as "url" or "file" and "source_sha256", and the written file's digest as
            "sha256". None writes no sidecar.

    Returns:
        The card as written.

    Raises:
        StorageError: the folder cannot be written, the disk is full, or other files are in it.
    """
    out = Path(os.path.abspath(out))
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            digest = write_weights(state_dict, new / WEIGHTS_FILE)
            card = card.replace(
                file=WEIGHTS_FILE,
                sha256=digest,
                file_size=(new / WEIGHTS_FILE).stat().st_size,
                num_params=sum(value.numel() for key, value in state_dict.items() if not _is_buffer(key)),
            )
            card.write(new / CARD_FILE)
            if source is not None:
                told = {key: value for key, value in source.items() if key != "sha256"}
                told |= {"source_sha256": source["sha256"], "sha256": digest}
                text = json.dumps(told, indent=1, sort_keys=True, ensure_ascii=False)
                (new / SOURCE_FILE).write_text(text + "\n", encoding="utf-8")
            new.chmod(0o755)
            _put(new, out)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    return card


def _is_buffer(key: str) -> bool:
    return key.endswith((".running_mean", ".running_var", ".num_batches_tracked"))


def _put(new: Path, out: Path) -> None:
    """Rename ``new`` to ``out``; a model folder in the way (an old one, or a quicker process's) is replaced."""
    for _ in range(1000):
        try:
            # Succeeds where there is nothing, or an empty folder.
            os.rename(new, out)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        # From here on another process may be doing the same: what is gone in between, the next round does not find.
        with contextlib.suppress(FileNotFoundError):
            names = {entry.name for entry in out.iterdir()}
            if names - MODEL_FILES:
                others = ", ".join(sorted(names - MODEL_FILES)[:5])
                raise StorageError(f"{out} has other files in it ({others}); choose another folder.")
            if names == {entry.name for entry in new.iterdir()} and all(
                filecmp.cmp(out / name, new / name, shallow=False) for name in names
            ):
                return
            old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
            try:
                os.rename(out, old / "old")
            finally:
                shutil.rmtree(old, ignore_errors=True)
    raise StorageError(f"Cannot write {out}: other processes keep replacing it; choose another folder.")
