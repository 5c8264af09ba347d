"""The card: everything the library knows of one model, a frozen record and the file beside its weights."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .errors import WeightsError

__all__ = ["Card", "HubFile", "Metric"]

ChannelOrder = Literal["rgb", "bgr"]
LabelOrder = Literal["raster", "openmmlab-1.x"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

CARD_FILE = "card.json"
WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True)
class HubFile:
    """Where the Hugging Face Hub keeps a model: ``owner/name``, a 40-digit revision, and the file's SHA-256.

    Attributes:
        repository: ``owner/name``.
        revision: A commit, 40 hex digits.
        sha256: Of the file, 64 hex digits.
        file: Its path in the repository.
    """

    repository: str
    revision: str
    sha256: str
    file: str = WEIGHTS_FILE


@dataclass(frozen=True)
class Metric:
    """One number: as published (``value`` keeps the digits of its source), or as measured for this card.

    Attributes:
        benchmark: Protocol and variant.
        dataset: What was measured on.
        layer: The layer, or "".
        metric: What the number is, "top-1 %".
        value: The number as text, all digits of its source.
        measured_on: Name of the file it belongs to.
        source: Who printed it, or the command that measured it.
        note: What one should know.
    """

    benchmark: str
    dataset: str
    layer: str
    metric: str
    value: str
    measured_on: str = ""
    source: str = ""
    note: str = ""


@dataclass(frozen=True)
class Card:
    """One model: its network, its input, its weights and where they come from, and its numbers.

    ``mean`` and ``std`` belong to inputs in [0, 1] and stand in the file's own channel order. The weights kept by the
    library predict positions in raster order whatever ``source_label_order`` the foreign checkpoint had.

    Attributes:
        name: As the registry calls it, with its tag.
        backbone: A name of ``context_pred.backbones.BACKBONES``.
        in_channels: Channels of the images.
        pair_layers: Whether there are neck and head.
        neck_channels: Width of the neck; None: the backbone's usual one.
        mean: Per channel, for inputs in [0, 1].
        std: Per channel, for inputs in [0, 1].
        channel_order: "rgb" or "bgr": what the network takes.
        resize: The shorter side that images are brought to, px.
        crop: The side of the square cut from their middle, px.
        patch_sampler: Type and options of the sampler it was trained with.
        file: Path of the weights in the repository, where they ship.
        sha256: Of the safetensors, 64 hex digits.
        hub: Where the Hub has it; None: nowhere.
        url: Where the original file was published.
        url_sha256_prefix: The first digits of that file's SHA-256, as published.
        source_label_order: Order of the positions in the original file, "raster" or "openmmlab-1.x".
        num_params: Parameters, buffers not counted.
        file_size: Bytes of the file.
        title: One line for tables.
        description: Some sentences for its users.
        dataset: What it was trained on.
        recipe: Name of the pretraining recipe.
        trained: When, year-month-day.
        license: SPDX identifier.
        paper: Address of the paper.
        authors: Whose it is.
        notes: Sentences worth knowing.
        metrics: Its numbers, published and measured.
        aliases: Plain names that stand for it today.

    Examples:
        >>> card = Card(name="mine", backbone="resnet18")
        >>> card.replace(crop=160).crop, card.channel_order
        (160, 'rgb')
    """

    # network
    name: str
    backbone: str
    in_channels: int = 3
    pair_layers: bool = True
    neck_channels: int | None = None
    # input
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channel_order: ChannelOrder = "rgb"
    resize: int = 256
    crop: int = 224
    patch_sampler: dict[str, Any] = field(
        default_factory=lambda: {"type": "GridPatchSampler", "preset": "openmmlab-0.x"}
    )
    # weights
    file: str | None = None
    sha256: str | None = None
    hub: HubFile | None = None
    url: str | None = None
    url_sha256_prefix: str | None = None
    source_label_order: LabelOrder = "raster"
    num_params: int | None = None
    file_size: int | None = None
    # provenance
    title: str = ""
    description: str = ""
    dataset: str = ""
    recipe: str = ""
    trained: str = ""
    license: str = ""
    paper: str = ""
    authors: str = ""
    notes: tuple[str, ...] = ()
    metrics: tuple[Metric, ...] = ()
    aliases: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the card as plain JSON values, in the order of the fields."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Card:
        """Build a card from plain JSON values.

        Args:
            values: As ``to_dict`` gives them.

        Raises:
            WeightsError: an entry is missing, unknown, or of the wrong type; the entry is named.
        """
        return typing.cast(Card, _build(cls, values, "card"))

    @classmethod
    def read(cls, path: str | Path) -> Card:
        """Read a card from a JSON file; errors name the file.

        Args:
            path: The file.

        Raises:
            WeightsError: no JSON, or an entry that no card has; the file is named.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise WeightsError(f"No card at {path}.") from error
        except (OSError, ValueError) as error:
            raise WeightsError(f"{path} is not a readable card: {error}") from error
        try:
            return cls.from_dict(values)
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from error

    def to_json(self) -> str:
        """Return the card's file as text, the same bytes for the same card."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"

    def write(self, path: str | Path) -> None:
        """Write the card to ``path`` as JSON.

        Args:
            path: The file; replaced if it is there.
        """
        Path(path).write_text(self.to_json(), encoding="utf-8")

    def replace(self, **changes: Any) -> Card:
        """Return a copy with some entries changed.

        Args:
            changes: New values by entry.
        """
        return dataclasses.replace(self, **changes)


def fit_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Fit a mean or std to another number of channels: averaged for one, repeated in turn for more."""
    if channels == 1:
        return (math.fsum(values) / len(values),)
    return tuple(itertools.islice(itertools.cycle(values), channels))


def _build(kind: type, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise WeightsError(f"The {where} must be an object of named entries, not {type(values).__name__}.")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    types_ = typing.get_type_hints(kind)
    extra = sorted(set(values) - set(fields))
    required = [
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in required if name not in values]
    if extra or missing:
        raise WeightsError(
            f"The {where} has unknown entries {extra} and lacks {missing}; known entries: {', '.join(fields)}."
        )
    return kind(**{name: _value(types_[name], value, f"{where}'s {name}") for name, value in values.items()})


def _value(kind: Any, value: Any, where: str) -> Any:
    """Check ``value`` against the field's type; lists become tuples and objects become records."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _value(next(a for a in arguments if a is not type(None)), value, where)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_value(arguments[0], item, where) for item in value)
    if origin is Literal and value in arguments:
        return value
    if origin is dict and isinstance(value, dict):
        return value
    if dataclasses.is_dataclass(kind):
        return _build(typing.cast(type, kind), value, where)
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    accepted = f"one of {arguments}" if origin is Literal else kind
    raise WeightsError(f"The {where} is {value!r}; accepted: {accepted}.")


def weights_folder() -> Path:
    """Return the folder of the cards and the shipped weights: inside an installed package, or the repository's."""
    package = Path(__file__).resolve().parent
    installed = package / "weights"
    return installed if installed.is_dir() else package.parent / "weights"
