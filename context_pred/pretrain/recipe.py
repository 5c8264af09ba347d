"""A recipe: everything that determines a pretraining run but its images, one readable TOML file.

The recipes that come with the library lie in ``recipes/``; a run keeps its own, whole, as ``RUN/recipe.toml``.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from context_pred import tables
from context_pred.backbones import BACKBONES
from context_pred.errors import ContextPredError, InvalidInputError, unknown
from context_pred.patches import GridPatchSampler, RandomPairSampler, sampler_from_config
from context_pred.training.optimizer import OptimizerOptions
from context_pred.training.schedule import Schedule, ScheduleOptions

from ._sampler_options import whole_sampler
from .prepare import ImageOptions

Initialization = Literal["openmmlab", "openselfsup", "caffe"]

RECIPE_FILE = "recipe.toml"
_FOLDER = Path(__file__).resolve().parent / "recipes"


@dataclass(frozen=True)
class ModelOptions:
    """The network: a recipe's ``[model]``.

    Args:
        backbone: A name of ``context_pred.backbones.BACKBONES``.
        in_channels: Channels of the images.
        neck_channels: Width of the neck; None: twice the backbone's channels, 4096 for ``contextnet``.
        dropout: Probability in the neck of a ResNet.
        initialization: "openmmlab" or "openselfsup" for a ResNet, "caffe" for ``contextnet``; see
            ``context_pred.pretrain.initial``.

    Raises:
        InvalidInputError: an option out of its range, or an initialisation that is not this backbone's.
    """

    backbone: str
    in_channels: int = 3
    neck_channels: int | None = field(
        default=None, metadata={"unset": "twice the backbone's channels, 4096 for contextnet"}
    )
    dropout: float = 0.5
    initialization: Initialization = "openmmlab"

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.backbone not in BACKBONES:
            raise unknown("backbone", self.backbone, BACKBONES)
        if self.in_channels < 1 or (self.neck_channels or 1) < 1:
            raise InvalidInputError(
                f"in_channels = {self.in_channels}, neck_channels = {self.neck_channels}: accepted is 1 or more."
            )
        if not 0 <= self.dropout < 1:
            raise InvalidInputError(
                f"dropout = {self.dropout}: accepted is a probability from 0 up to, not including, 1."
            )
        caffe = self.backbone.startswith("contextnet")
        if caffe != (self.initialization == "caffe"):
            accepted = '"caffe"' if caffe else '"openmmlab" and "openselfsup"'
            raise InvalidInputError(
                f'initialization = "{self.initialization}" with backbone = "{self.backbone}": accepted is {accepted}.'
            )


@dataclass(frozen=True)
class BatchOptions:
    """How many images a step has: a recipe's ``[batch]``.

    Args:
        images: The global batch, the same whatever the hardware.
        per_device: Images that pass the network together, hence what a batch norm sees; divides ``images``.

    Raises:
        InvalidInputError: not whole micro-batches, or fewer than one image.
    """

    images: int
    per_device: int

    def __post_init__(self) -> None:
        """Check that the batch is whole micro-batches."""
        if self.images < 1 or self.per_device < 1:
            raise InvalidInputError(f"images = {self.images}, per_device = {self.per_device}: accepted is 1 or more.")
        if self.images % self.per_device:
            raise InvalidInputError(
                f"images = {self.images} is no multiple of per_device = {self.per_device}, and a step is made of whole "
                f"micro-batches; near are {' and '.join(map(str, _multiples(self.images, self.per_device)))}."
            )


@dataclass(frozen=True)
class RunOptions:
    """How the run is carried out: a recipe's ``[run]``.

    Args:
        seed: Of every draw.
        precision: Of the network's arithmetic; "bfloat16" and "float16" by autocast, weights in float32.
        channels_last: Keep maps channels-last in memory.
        compile: Compile the network with ``torch.compile``.
        sync_batch_norm: Let batch norms see the micro-batches of all processes.
        held_out: Share of whole images that is never trained on and measures the pretext accuracy.
        evaluate_every: Epochs between two such measurements.
        checkpoint_every: Steps between two checkpoints.
        keep: Checkpoints kept, beside the best.
        damaged_share: The run fails where more than this share of the images is damaged.

    Raises:
        InvalidInputError: an option out of its range.
    """

    seed: int = 0
    precision: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    channels_last: bool = True
    compile: bool = False
    sync_batch_norm: bool = False
    held_out: float = 0.0
    evaluate_every: int = 1
    checkpoint_every: int = 500
    keep: int = 3
    damaged_share: float = 0.2

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.seed < 0:
            raise InvalidInputError(f"seed = {self.seed}: accepted is 0 or more.")
        if not 0 <= self.held_out < 1:
            raise InvalidInputError(f"held_out = {self.held_out}: accepted is a share from 0 up to, not including, 1.")
        if not 0 <= self.damaged_share <= 1:
            raise InvalidInputError(f"damaged_share = {self.damaged_share}: accepted is a share, 0 … 1.")
        for name in ("evaluate_every", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name} = {getattr(self, name)}: accepted is 1 or more.")


_TABLES: dict[str, tuple[type, str]] = {
    "model": (ModelOptions, "The network and its first weights."),
    "images": (ImageOptions, "From a file to the pixels that patches are cut from."),
    "sampler": (dict, "Which patches are cut and which pairs are asked about; options as on a model's card."),
    "batch": (BatchOptions, "images: a step's, whatever the hardware; per_device: what passes the network together."),
    "optimizer": (OptimizerOptions, 'momentum is for "sgd", betas are for "adamw".'),
    "schedule": (ScheduleOptions, "The run's length and its learning rate; milestones are epochs counted from 0."),
    "run": (RunOptions, "How it is carried out; evaluate_every in epochs, checkpoint_every in steps."),
}
# Of each of these one is given at most: setting one unsets the other.
_EITHER_OR = {
    "epochs": "images",
    "images": "epochs",
    "warmup_epochs": "warmup_images",
    "warmup_images": "warmup_epochs",
}


@dataclass(frozen=True)
class Recipe:
    """A recipe, checked as a whole.

    ``sampler`` holds every option of the patch sampler, as on a card. ``notes`` are sentences for the run's notes:
    what a change of the batch did to the learning rate. They are no part of the file.

    Attributes:
        name: The file's name without its ending.
        title: One line that says what it is for.
        model: The network.
        images: How photographs become squares.
        sampler: Type and options of the patch sampler.
        batch: Images a step.
        optimizer: Kind, rates and decay.
        schedule: How long, and how the rate changes.
        run: Seed, precision, checkpoints.
        notes: Sentences for the run's notes.

    Raises:
        InvalidInputError: tables that contradict one another.
    """

    name: str
    title: str
    model: ModelOptions
    images: ImageOptions
    sampler: dict[str, Any]
    batch: BatchOptions
    optimizer: OptimizerOptions
    schedule: ScheduleOptions
    run: RunOptions = RunOptions()
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        """Write the sampler's options out and check the tables against one another."""
        object.__setattr__(self, "sampler", whole_sampler(self.sampler, self.model.in_channels))
        _check_fit(self)
        self.make_schedule(1)

    def make_sampler(self) -> GridPatchSampler | RandomPairSampler:
        """Make the patch sampler; errors are those of ``patches.sampler_from_config``."""
        return sampler_from_config(self.sampler)

    def make_schedule(self, steps_per_epoch: int) -> Schedule:
        """Make the schedule of a run over as many images as ``steps_per_epoch`` batches hold.

        Args:
            steps_per_epoch: Steps that see every image once.
        """
        return Schedule(self.schedule, steps_per_epoch, self.batch.images, self.optimizer.learning_rate)

    def to_toml(self) -> str:
        """Write the recipe whole, every option with its value; ``read_recipe`` of it gives an equal recipe.

        Returns:
            The text of a recipe's file.
        """
        parts = [f"name = {tables.literal(self.name)}\ntitle = {tables.literal(self.title)}\n"]
        for name, (kind, comment) in _TABLES.items():
            unset = {} if kind is dict else {f.name: f.metadata.get("unset", "none") for f in dataclasses.fields(kind)}
            parts.append(tables.write(name, comment, self._options(name), unset))
        return "\n".join(parts)

    def override(self, changes: Mapping[str, str]) -> Recipe:
        """Return the recipe with options changed, as the command's ``--set SECTION.KEY=VALUE`` asks.

        Setting one of ``epochs`` and ``images`` (or of their warm-ups) unsets the other. Setting the sampler's
        ``preset`` keeps only those of its options that differ from the old preset's; another ``type`` begins with that
        sampler's own. Changing ``batch.images`` without ``optimizer.learning_rate`` scales the learning rate, see
        ``with_batch``.

        Args:
            changes: {"optimizer.learning_rate": "0.1", …}; values are TOML, a bare word is a string, an empty text
                unsets an option.

        Raises:
            UnknownNameError: no such section or option.
            InvalidInputError: a value of the wrong type or out of its range, or a contradiction.
        """
        parsed = _parsed(changes)
        where, recipe = f"{self.name} with --set", self
        batch = parsed.get("batch", {})
        if "per_device" not in batch and type(batch.get("images")) is int:
            batch["per_device"] = min(self.batch.per_device, max(batch["images"], 1))
        if batch.get("images") is not None and "learning_rate" not in parsed.get("optimizer", {}):
            asked = tables.build(BatchOptions, {**self._given("batch"), **batch}, f"{where}, [batch]", _HOMES)
            recipe = self.with_batch(asked.images, asked.per_device)
        elif batch.get("per_device") not in (None, self.batch.per_device):
            recipe = dataclasses.replace(self, notes=(*self.notes, self._other_norms(batch["per_device"])))
        document = {name: recipe._given(name) for name in _TABLES}
        for section, values in parsed.items():
            given = document[section]
            if section == "sampler" and {"type", "preset"} & set(values):
                given = recipe._unlike_preset() if values.get("type", given["type"]) == given["type"] else {}
            for key in values.keys() & _EITHER_OR.keys() if section == "schedule" else ():
                if values[key] is not None and _EITHER_OR[key] not in values:
                    given.pop(_EITHER_OR[key], None)
            document[section] = {key: value for key, value in {**given, **values}.items() if value is not None}
        return _built(self.name, self.title, document, where, recipe.notes)

    def with_batch(self, images: int, per_device: int | None = None) -> Recipe:
        """Return the recipe with another global batch; ``notes`` says what became of the learning rate.

        The learning rate is scaled in proportion where the loss is a mean over the batch (Goyal et al., 2017); with
        ``reduction="sum"`` the gradient grows with the batch by itself, and the rate stays.

        Args:
            images: The global batch.
            per_device: Of a micro-batch; None: the recipe's, or ``images`` where that is less.

        Raises:
            InvalidInputError: ``images`` is no multiple of the micro-batch.
        """
        batch = BatchOptions(images, per_device or min(self.batch.per_device, images))
        optimizer, notes = self.optimizer, []
        rate = optimizer.learning_rate
        if images != self.batch.images:
            if optimizer.reduction == "mean":
                optimizer = dataclasses.replace(optimizer, learning_rate=rate * images / self.batch.images)
                became = f"is scaled in proportion, from {rate:.6g} to {optimizer.learning_rate:.6g}."
            else:
                became = f"stays {rate:.6g}, since the loss is a sum."
            notes.append(f"{images} images a step in place of {self.batch.images}: the learning rate {became}")
        if batch.per_device != self.batch.per_device:
            notes.append(self._other_norms(batch.per_device))
        return dataclasses.replace(self, batch=batch, optimizer=optimizer, notes=(*self.notes, *notes))

    def _other_norms(self, per_device: int) -> str:
        return f"Batch norms see {per_device} images in place of {self.batch.per_device}."

    def _options(self, table: str) -> dict[str, Any]:
        """Return every option of a table; those not set are None."""
        value = getattr(self, table)
        if isinstance(value, dict):
            return dict(value)
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}

    def _given(self, table: str) -> dict[str, Any]:
        return {key: value for key, value in self._options(table).items() if value is not None}

    def _unlike_preset(self) -> dict[str, Any]:
        """Return the sampler's type, its preset, and the options in which it differs from that preset."""
        named = {"type": self.sampler["type"], "preset": self.sampler["preset"]}
        usual = whole_sampler(named, self.model.in_channels)
        return {key: value for key, value in self.sampler.items() if key in named or value != usual.get(key)}


def _parsed(changes: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Read {"SECTION.KEY": "VALUE"} into {section: {key: value}}."""
    parsed: dict[str, dict[str, Any]] = {}
    for path, text in changes.items():
        section, dot, key = path.partition(".")
        if not dot:
            hint = f" Did you mean {_HOMES[section]}.{section}?" if section in _HOMES else ""
            raise InvalidInputError(
                f"--set {path}={text}: accepted is SECTION.KEY=VALUE.{hint} Sections: {', '.join(_TABLES)}."
            )
        if section not in _TABLES:
            error = unknown("section", section, _TABLES)
            raise type(error)(f"--set {path}={text}: {error}")
        parsed.setdefault(section, {})[key] = tables.parse(text, f"--set {path}")
    return parsed


def list_recipes() -> list[str]:
    """Return the names of the recipes that come with the library, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def read_recipe(name_or_path: str | os.PathLike[str]) -> Recipe:
    """Read and check a recipe.

    Args:
        name_or_path: A name of ``list_recipes()``, a TOML file, or the folder of a run.

    Raises:
        UnknownNameError: no such recipe, table or option; the nearest names are given.
        InvalidInputError: no TOML, an option of the wrong type or out of its range, options that contradict one
            another; the file, the table and the option are named.
    """
    path = _find(name_or_path)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} is no TOML file: {error}") from error
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror or error}.") from error
    where = path.name if path.parent == _FOLDER else str(path)
    head = {key: document.pop(key) for key in ("name", "title") if key in document}
    for key, value in head.items():
        tables.value_of(str, value, f"{where}: {key}")
    return _built(head.get("name", path.stem), head.get("title", ""), document, where)


def _find(name_or_path: str | os.PathLike[str]) -> Path:
    name, path = str(name_or_path), Path(name_or_path)
    if isinstance(name_or_path, str) and name in list_recipes():
        return _FOLDER / f"{name}.toml"
    if (path / RECIPE_FILE).is_file():
        return path / RECIPE_FILE
    if path.is_file():
        return path
    if path.suffix == ".toml" or len(path.parts) > 1:
        raise InvalidInputError(
            f"There is no recipe at {path}. A name takes one of the library's: {', '.join(list_recipes())}."
        )
    error = unknown("recipe", name, list_recipes())
    raise type(error)(f"{error} A path takes a file of one's own: ./{name}.toml")


_HOMES = {f.name: name for name, (kind, _) in _TABLES.items() if kind is not dict for f in dataclasses.fields(kind)}


def _built(name: str, title: str, document: dict[str, Any], where: str, notes: tuple[str, ...] = ()) -> Recipe:
    """Make a recipe of a document's tables; ``where`` names it in errors."""
    for table in document:
        if table not in _TABLES:
            error = unknown("table", table, _TABLES)
            raise type(error)(f"{where}: {error}")
    missing = [table for table in _TABLES if table not in document and table not in ("images", "run")]
    if missing:
        raise InvalidInputError(f"{where} lacks {', '.join(f'[{table}]' for table in missing)}.")
    made: dict[str, Any] = {}
    for table, (kind, _) in _TABLES.items():
        value = document.get(table, {})
        at = f"{where}, [{table}]"
        made[table] = (
            tables.value_of(dict[str, Any], value, at) if kind is dict else tables.build(kind, value, at, _HOMES)
        )
    try:
        return Recipe(name=name, title=title, **made, notes=notes)
    except ContextPredError as error:
        raise type(error)(f"{where}: {error}") from error


def _check_fit(recipe: Recipe) -> None:
    """Refuse a sampler that the network or the images do not fit."""
    sampler, model, images = recipe.make_sampler(), recipe.model, recipe.images
    if not sampler.normalize:
        raise InvalidInputError("[sampler] normalize = false leaves patches that no network can take; leave it out.")
    if isinstance(sampler, RandomPairSampler):
        if model.in_channels != 3:
            raise InvalidInputError(
                f"[model] in_channels = {model.in_channels}, but RandomPairSampler takes RGB; accepted is 3, or "
                'type = "GridPatchSampler".'
            )
        smallest, what = sampler.smallest + 1, f"RandomPairSampler needs more than {sampler.smallest} px a side"
    else:
        if len(sampler.mean) != model.in_channels:
            raise InvalidInputError(
                f"[sampler] mean and std have {len(sampler.mean)} values, but [model] in_channels = "
                f"{model.in_channels}; accepted is one value a channel."
            )
        if sampler.channel_order == "bgr" and model.in_channels != 3:
            raise InvalidInputError(
                f'[sampler] channel_order = "bgr" with [model] in_channels = {model.in_channels}; accepted with 3 only.'
            )
        smallest, what = sampler.crop, f"the sampler's crop is {sampler.crop} px"
    if model.backbone.startswith("contextnet") and sampler.patch < 93:
        raise InvalidInputError(
            f'[sampler] patch = {sampler.patch}, but backbone = "{model.backbone}" needs 93 px or more.'
        )
    if images.mode == "squares" and isinstance(sampler, RandomPairSampler):
        raise InvalidInputError(
            '[images] mode = "squares" makes squares of a grid\'s crop, which RandomPairSampler has not; accepted with '
            'it: "pixels" and "resize".'
        )
    if images.mode == "resize" and images.resize < smallest:
        raise InvalidInputError(f"[images] resize = {images.resize}, but {what}; accepted is {smallest} or more.")
    if images.mode == "pixels" and images.pixels[0] < smallest**2:
        raise InvalidInputError(
            f"[images] pixels = {list(images.pixels)}, but {what}; accepted is {smallest**2} or more."
        )


def _multiples(images: int, per_device: int) -> list[int]:
    below = images // per_device * per_device
    return [n for n in (below, below + per_device) if n]
