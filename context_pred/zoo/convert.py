"""Conversion: a checkpoint of others becomes this library's state dict, card and safetensors file.

Every key of the file is accounted for: taken, or on the short list of what may be left out; anything missing, extra
or mis-shaped is named and stops the conversion. The weights keep the channel order they were trained in (the card
says which); the head's rows are put into raster order.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor

from ..backbones import BACKBONES, build_backbone
from ..card import CARD_FILE, WEIGHTS_FILE, Card, ChannelOrder, LabelOrder
from ..errors import DigestError, InvalidInputError, WeightsError, unknown
from ..model import ContextPredictionModel
from ..patches.grid import PRESETS
from ..patches.layout import RASTER_FROM_1X
from . import registry, runs
from ._folder import write_model_folder
from .checkpoints import Checkpoint, read_checkpoint
from .download import file_sha256

__all__ = ["Converted", "convert", "convert_checkpoint"]

# What DataParallel, DistributedDataParallel and torch.compile put before every key.
WRAPPERS = ("module.", "_orig_mod.")

# Entries that are no part of a backbone, a neck or a head, and may be left out.
IGNORED = re.compile(r"data_preprocessor\..*")
IGNORED_IN_TORCHVISION = re.compile(r"fc\.(weight|bias)")


@dataclass(frozen=True)
class Converted:
    """A checkpoint in this library's terms.

    Attributes:
        state_dict: ``backbone.*`` and, with ``pair_layers``, ``neck.*`` and ``head.*``; the head in raster order.
        backbone: The name of the backbone, found from the keys and shapes.
        in_channels: Channels of its input.
        pair_layers: Neck and head are there.
        neck_channels: Width of the neck; None without one.
        channel_order: The order of the input's channels that these weights expect.
        label_order: The order of the head's rows in the source.
        version: The code that wrote the source, as far as the file says: "mmselfsup 0.7.0", "torchvision", or "".
        preset: The patch sampler's preset of that version.
        taken: How many entries of the source were taken.
        ignored: The entries of the source that were left out.
        filled: The entries that old files lack and that were set to 0 (``num_batches_tracked``).
        told: The card that the file's own recipe makes, for a checkpoint of this library's pretraining.
    """

    state_dict: dict[str, Tensor]
    backbone: str
    in_channels: int
    pair_layers: bool
    neck_channels: int | None
    channel_order: ChannelOrder
    label_order: LabelOrder
    version: str
    preset: str
    taken: int
    ignored: tuple[str, ...]
    filled: tuple[str, ...]
    told: Card | None = None

    def card(self, name: str) -> Card:
        """Return a card with what the file tells: network, channel order, normalisation and patch sampler.

        Args:
            name: The model's.

        Raises:
            WeightsError: the file's own card contradicts its weights.
        """
        if self.told is not None:
            return in_channel_order(self.told, self.channel_order).replace(
                name=name, in_channels=self.in_channels, neck_channels=self.neck_channels
            )
        with torch.device("meta"):
            untrained = ContextPredictionModel(self.backbone, in_channels=self.in_channels, pair_layers=False).card
        card = untrained.replace(
            name=name,
            pair_layers=self.pair_layers,
            neck_channels=self.neck_channels,
            channel_order=self.channel_order,
            source_label_order=self.label_order,
        )
        if not self.backbone.startswith("resnet"):
            return card
        if self.in_channels != 3:
            raise WeightsError(
                f"the network takes {self.in_channels} channels and the file does not say how they were normalised; "
                f"accepted: 3 channels, or a model folder, whose {CARD_FILE} says it"
            )
        order = {"channel_order": "bgr"} if self.channel_order == "bgr" else {}
        preset = PRESETS[self.preset]
        return card.replace(
            mean=preset.mean,
            std=preset.std,
            patch_sampler={"type": "GridPatchSampler", "preset": self.preset, **order},
        )

    @property
    def report(self) -> str:
        """What became of the entries of the source, in one line."""
        parts = [f"{self.taken} entries taken"]
        if self.ignored:
            parts.append(f"{len(self.ignored)} ignored ({', '.join(self.ignored)})")
        if self.filled:
            parts.append(f"{len(self.filled)} missing num_batches_tracked set to 0")
        head = "with neck and head" if self.pair_layers else "without neck and head"
        return f"{self.backbone} {head}, {self.channel_order}; {'; '.join(parts)}"


@dataclass(frozen=True)
class _Origin:
    """What a file says of the code that wrote it; None where it does not."""

    version: str
    channel_order: ChannelOrder | None = None
    label_order: LabelOrder | None = None
    preset: str | None = None


def convert_checkpoint(
    source: str | Path,
    *,
    card: Card | None = None,
    channel_order: str | None = None,
    label_order: str | None = None,
) -> Converted:
    """Read a checkpoint of any layout and put it into this library's terms.

    Read are OpenMMLab's files (mmselfsup 0.5–1.x, OpenSelfSup; whole, or the output of its "extract backbone" tool),
    torchvision's state dicts with or without ``fc``, and this library's own: safetensors, and the checkpoints of its
    pretraining, whose recipe tells all that a card needs. ``module.`` and ``_orig_mod.`` before the keys are removed.

    Args:
        source: The file.
        card: What is known of the file; it overrides what the file says of itself. Without one, a file that the zoo
            knows by its digest gets the zoo's card, and a safetensors file the ``card.json`` beside it.
        channel_order: "rgb" or "bgr", for files that do not tell; overrides file and card.
        label_order: "raster" or "openmmlab-1.x", the order of the head's rows, likewise.

    Raises:
        UnknownNameError: an order that does not exist.
        WeightsError: the file is damaged or no checkpoint; a key is missing, extra or mis-shaped; or the file does
            not tell an order that is needed.
        NotCachedError: there is no such file.
    """
    source = Path(source)
    if card is None:
        card = known_card(source, _digest(source))
    return _convert(source, card, channel_order, label_order)


def _digest(source: Path) -> str:
    """Hash the file; a path without a file is the reader's to complain about."""
    return file_sha256(source) if source.is_file() else ""


def _convert(source: Path, card: Card | None, channel_order: str | None, label_order: str | None) -> Converted:
    _check_order("channel order", channel_order, ChannelOrder)
    _check_order("label order", label_order, LabelOrder)
    checkpoint = read_checkpoint(source)
    try:
        told = runs.card_of(checkpoint.run) if card is None and checkpoint.run is not None else None
        found = _converted(checkpoint, card or told, channel_order, label_order)
        return dataclasses.replace(found, told=told)
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from error


def _check_order(kind: str, given: str | None, accepted: Any) -> None:
    if given is not None and given not in get_args(accepted):
        raise unknown(kind, given, get_args(accepted))


def known_card(source: Path, digest: str) -> Card | None:
    """Return the card of a file with a SHA-256: the one beside it in a model folder, or the zoo's by the digest.

    Raises:
        DigestError: the card beside the file promises other bytes.
    """
    beside = source.parent / CARD_FILE
    if beside.is_file():
        card = Card.read(beside)
        if card.file == source.name:
            if card.sha256 is not None and card.sha256 != digest:
                raise DigestError(f"{source} has SHA-256 {digest}, but {beside} promises {card.sha256}.")
            return card
    return next((c for c in registry.cards() if c.url_sha256_prefix and digest.startswith(c.url_sha256_prefix)), None)


def in_channel_order(card: Card, channel_order: ChannelOrder) -> Card:
    """Return the card for another channel order: its transform and its patch sampler, mean and std unmoved."""
    if channel_order == card.channel_order:
        return card
    return card.replace(
        channel_order=channel_order, patch_sampler={**card.patch_sampler, "channel_order": channel_order}
    )


def _converted(
    checkpoint: Checkpoint, card: Card | None, channel_order: str | None, label_order: str | None
) -> Converted:
    state, ignored, bare = _own_keys(checkpoint)
    backbone = _backbone(state)
    pair_layers = any(key.startswith(("neck.", "head.")) for key in state)
    width = next((state[key] for key in ("neck.fc.weight", "neck.fc7.weight") if key in state), None)
    neck_channels = None if width is None or width.ndim == 0 else width.shape[0]
    stem = state["backbone.conv1.weight"]
    in_channels = stem.shape[1] if stem.ndim == 4 else 3
    if card is not None and (card.backbone, card.pair_layers) != (backbone, pair_layers):
        has = {True: "with", False: "without"}
        raise WeightsError(
            f"it holds a {backbone} {has[pair_layers]} pair layers, but the card {card.name!r} describes a "
            f"{card.backbone} {has[card.pair_layers]} them"
        )
    with torch.device("meta"):
        model = ContextPredictionModel(
            backbone, in_channels=in_channels, pair_layers=pair_layers, neck_channels=neck_channels
        )
    expected = model.state_dict()
    filled: tuple[str, ...] = ()
    if not any(key.endswith(".num_batches_tracked") for key in state):
        # torch before 0.4.1 did not count the batches.
        filled = tuple(key for key in expected if key.endswith(".num_batches_tracked"))
        state |= {key: torch.zeros((), dtype=torch.int64) for key in filled}
    _check_types(state, expected)
    model.load_weights(state, assign=True)

    origin = _origin(checkpoint, bare, card)
    channels, labels = channel_order or origin.channel_order, label_order or origin.label_order
    if channels is None or (pair_layers and labels is None):
        raise WeightsError(_question(channels is None, pair_layers and labels is None))
    labels = labels or "raster"
    if pair_layers and labels == "openmmlab-1.x":
        for key in ("head.fc_cls.weight", "head.fc_cls.bias"):
            state[key] = state[key][list(RASTER_FROM_1X)]
    return Converted(
        state_dict=_separate({key: state[key] for key in expected}),
        backbone=backbone,
        in_channels=in_channels,
        pair_layers=pair_layers,
        neck_channels=neck_channels,
        channel_order=cast(ChannelOrder, channels),
        label_order=cast(LabelOrder, labels),
        version=origin.version,
        preset=origin.preset or ("openmmlab-1.x" if labels == "openmmlab-1.x" else "openmmlab-0.x"),
        taken=len(expected) - len(filled),
        ignored=ignored,
        filled=filled,
    )


def _own_keys(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], tuple[str, ...], bool]:
    """Rename the entries of the file; return them, the names left out, and whether it is a backbone without prefix."""
    names: dict[str, str] = {}
    for key in (*checkpoint.tensors, *checkpoint.strays):
        name = key
        while name.startswith(WRAPPERS):
            for wrapper in WRAPPERS:
                name = name.removeprefix(wrapper)
        if name in names:
            raise WeightsError(f"two entries mean {name!r}: {names[name]!r} and {key!r}")
        names[name] = key
    bare = not any(name.startswith("backbone.") for name in names)
    ignored = [n for n in names if IGNORED.fullmatch(n) or (bare and IGNORED_IN_TORCHVISION.fullmatch(n))]
    strays = {key: kind for key, kind in checkpoint.strays.items() if key not in [names[name] for name in ignored]}
    if strays:
        raise WeightsError(f"not tensors: {', '.join(f'{key} ({kind})' for key, kind in strays.items())}")
    prefix = "backbone." if bare else ""
    state = {f"{prefix}{name}": checkpoint.tensors[key] for name, key in names.items() if name not in ignored}
    return state, tuple(names[name] for name in ignored), bare


@cache
def _shapes(backbone: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        state = build_backbone(backbone).state_dict()
    return {f"backbone.{key}": tuple(value.shape) for key, value in state.items()}


def _backbone(state: Mapping[str, Tensor]) -> str:
    """Find the backbone whose keys and shapes are nearest, so that what is missing or extra can then be named."""
    own = {key for key in state if key.startswith("backbone.") and not key.endswith(".num_batches_tracked")}

    def distance(name: str) -> tuple[int, int]:
        shapes = {key: shape for key, shape in _shapes(name).items() if not key.endswith(".num_batches_tracked")}
        common = own & shapes.keys()
        return len(own ^ shapes.keys()), sum(tuple(state[key].shape) != shapes[key] for key in common)

    nearest = min(BACKBONES, key=distance)
    if "backbone.conv1.weight" not in own or 2 * len(own & _shapes(nearest).keys()) < len(own):
        first = ", ".join(list(state)[:5])
        raise WeightsError(
            f"its {len(state)} entries are no backbone of this library ({first}, …); accepted: {', '.join(BACKBONES)} "
            "with torchvision's names (conv1.weight, layer1.0.conv1.weight, …), with or without 'backbone.' before them"
        )
    return nearest


def _check_types(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    wrong = [
        f"{key} is {str(value.dtype).removeprefix('torch.')}"
        for key, value in state.items()
        if key in expected and value.is_floating_point() != expected[key].is_floating_point()
    ]
    if wrong:
        raise WeightsError(
            f"weights of a wrong type: {', '.join(wrong)}; accepted: float32, float16, bfloat16, float64"
        )


def _origin(checkpoint: Checkpoint, bare: bool, card: Card | None) -> _Origin:
    """Tell from the version, or from the card, in which orders the file is."""
    meta = checkpoint.meta
    version = str(meta.get("mmselfsup_version", ""))
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if "message_hub" in checkpoint.entries or "mmengine_version" in meta or numbers >= (1,):
        engine = meta.get("mmengine_version")
        name = f"mmselfsup {version}" if version else "mmselfsup 1.x" + (f", mmengine {engine}" if engine else "")
        origin = _Origin(name, "rgb", "openmmlab-1.x", "openmmlab-1.x")
    elif (0, 5) <= numbers < (1,):
        origin = _Origin(f"mmselfsup {version}", "bgr" if numbers < (0, 7) else "rgb", "raster", "openmmlab-0.x")
    elif "openselfsup_version" in meta:
        origin = _Origin(f"OpenSelfSup {meta['openselfsup_version']}", "rgb", "raster", "openmmlab-0.x")
    elif bare and (not checkpoint.entries or _has_classifier(checkpoint)):
        # Nothing but torchvision's names: its models are trained on RGB. OpenMMLab's "extract backbone" output has
        # an entry beside its state dict, and no classifier.
        origin = _Origin("torchvision", "rgb")
    else:
        origin = _Origin(f"mmselfsup {version}" if version else "")
    if card is None:
        return origin
    preset = card.patch_sampler.get("preset")
    # What this library keeps is in raster order whatever its source was.
    labels: LabelOrder = "raster" if checkpoint.form == "safetensors" else card.source_label_order
    return _Origin(origin.version, card.channel_order, labels, preset if preset in PRESETS else None)


def _has_classifier(checkpoint: Checkpoint) -> bool:
    return any(key.endswith("fc.weight") for key in checkpoint.tensors)


def _question(channels: bool, labels: bool) -> str:
    what, how = [], []
    if channels:
        what.append("in which channel order it was trained")
        how.append("channel_order='rgb' or 'bgr' (--channel-order)")
    if labels:
        what.append("in which order its head counts the positions")
        how.append("label_order='raster' or 'openmmlab-1.x' (--label-order)")
    hint = "mmselfsup 0.5 and 0.6 trained on bgr, all others on rgb; mmselfsup 1.x has its own label order"
    return f"the file does not tell {' and '.join(what)}; pass {' and '.join(how)}. ({hint}.)"


def _separate(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give each tensor memory of its own, contiguous; float64 becomes float32, counts int64."""
    seen: set[int] = set()
    for key, value in state.items():
        kind = torch.int64 if not value.is_floating_point() else value.dtype
        value = value.to(torch.float32 if kind == torch.float64 else kind)
        if not value.is_contiguous() or value.untyped_storage().nbytes() != value.nbytes or value.data_ptr() in seen:
            value = value.clone(memory_format=torch.contiguous_format)
        seen.add(value.data_ptr())
        state[key] = value
    return state


def convert(
    src: str | Path,
    out: str | Path,
    *,
    channel_order: str | None = None,
    label_order: str | None = None,
    name: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Convert a checkpoint file to a model folder that ``load_pretrained`` takes by its path.

    Args:
        src: The checkpoint (see ``convert_checkpoint``), or a model folder.
        out: The folder to write.
        channel_order: "rgb" or "bgr", for files that do not tell.
        label_order: "raster" or "openmmlab-1.x", for files that do not tell.
        name: The model's name on its card; None: the file's name without its ending (for a file of the zoo: its own).
        overwrite: Replace a model folder that is already there.

    Returns:
        The folder.

    Raises:
        InvalidInputError: ``out`` is there already, and ``overwrite`` is not set.
        WeightsError, NotCachedError, StorageError: as ``convert_checkpoint`` and ``write_model_folder``.
    """
    src, out = Path(src), Path(out)
    if src.is_dir() and (src / CARD_FILE).is_file():
        src = src / (Card.read(src / CARD_FILE).file or WEIGHTS_FILE)
    if not overwrite and (out.is_file() or (out.is_dir() and any(out.iterdir()))):
        raise InvalidInputError(f"{out} is there already; choose another folder, or pass overwrite=True (--overwrite).")
    digest = _digest(src)
    known = known_card(src, digest)
    converted = _convert(src, known, channel_order, label_order)
    if known is not None:
        card = in_channel_order(known, converted.channel_order).replace(name=name or known.name, aliases=())
    else:
        try:
            card = converted.card(name or src.stem)
        except WeightsError as error:
            raise WeightsError(f"{src}: {error}") from error
        told = f", written by {converted.version}" if converted.version else ""
        notes = (f"Converted from {src.name} (SHA-256 {digest}){told}: {converted.report}.",)
        card = card.replace(title=f"{converted.backbone} from {src.name}", notes=notes)
    write_model_folder(out, converted.state_dict, card, {"file": src.name, "sha256": digest})
    return out
