"""One pretraining run, from its folder to its model."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from context_pred.data.collection import Collection
from context_pred.errors import ImageError, InvalidInputError, TrainingDivergedError
from context_pred.extract.network import find_device
from context_pred.model import ContextPredictionModel
from context_pred.patches import GridPatchSampler
from context_pred.pretext import PretextResult, Tally, tallied
from context_pred.ranks import Ranks, joined
from context_pred.training import keys
from context_pred.training.checkpoints import Checkpoints
from context_pred.training.loop import Loop, StopRequest
from context_pred.training.machine import fast_convolutions, lacks_bfloat16, own_device, usual_workers
from context_pred.training.optimizer import make_optimizer
from context_pred.training.order import Order
from context_pred.training.progress import LossWatch, Progress
from context_pred.training.run import take_steps

from . import damaged, finish, folder, report
from .check import check
from .initial import StartedFrom, initialize, start_from
from .loading import MicroBatch, load
from .objective import PretextObjective
from .prepare import Preparation
from .recipe import Recipe, read_recipe
from .split import split

logger = logging.getLogger("context_pred")

KEPT = "The last checkpoint stands; the same command with --resume goes on from there."

# A patch of so many px at most is one cell of the last layer.
_ONE_CELL = 32

# Of the pretext accuracy on training images, dropout off, at the end of a run.
_TRAINING_IMAGES = 2048


@dataclass(frozen=True)
class Pretrained:
    """A run that ended, or was asked to stop.

    Attributes:
        folder: RUN.
        model: ``RUN/model``, for ``context_pred.load_pretrained``; None where the run was stopped before its end.
        steps: Steps made.
        total_steps: Steps of the whole run.
        images: Images seen.
        seconds: Of the whole run, over all resumes.
        held_out: The pretext accuracy on held-out images, where there are any.
        damaged: Damaged images that were met.
    """

    folder: Path
    model: Path | None
    steps: int
    total_steps: int
    images: int
    seconds: float
    held_out: PretextResult | None
    damaged: int

    def __str__(self) -> str:
        """Say it in a few lines."""
        lines = [f"{self.images:,} images in {self.steps:,} steps, {self.seconds / 60:.1f} minutes."]
        if self.damaged:
            lines.append(f"{self.damaged} damaged images were skipped; {self.folder / 'damaged.jsonl'} lists them.")
        if self.held_out is not None:
            lines.append(f"Pretext accuracy on held-out images: {self.held_out}; chance is 12.5 %.")
        if self.model is None:
            lines.append(
                f"Stopped at step {self.steps:,} of {self.total_steps:,} with a checkpoint; the same command with "
                f"--resume goes on."
            )
        else:
            lines.append(f"Model: {self.model}")
            lines.append(f"Report: {self.folder / 'report.html'}")
        return "\n".join(lines)


def run(
    images: str | Path | Sequence[str | Path],
    recipe: str | Path | Recipe,
    *,
    out: str | Path,
    held_out: str | Path | Sequence[str | Path] | None = None,
    init: str | Path | None = None,
    batch_size: int | None = None,
    settings: Mapping[str, str] | None = None,
    workers: int | None = None,
    device: str | torch.device = "auto",
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Pretrained:
    """Train a model on unlabelled images as a recipe says.

    One process trains on one device; several that ``torchrun`` starts share the recipe's global batch. Killed at any
    moment and called again with ``resume=True``, a run goes on from its last checkpoint and ends with the same
    weights, bit for bit on a CPU with the same number of threads.

    Args:
        images: A folder, a list file, a glob pattern, paths, or tar shards; see ``data.collection.collect``.
        recipe: A name of ``pretrain.list_recipes()``, a TOML file, or a ``Recipe``.
        out: The run's folder, RUN.
        held_out: Images never trained on, that measure the pretext accuracy; None: the recipe's share of ``images``.
        init: A model of the zoo, or a path, whose backbone, neck and head the run starts from.
        batch_size: Another global batch than the recipe's; the learning rate is scaled in proportion.
        settings: Other values of the recipe's options: {"optimizer.learning_rate": "0.1"}.
        workers: Processes a rank that decode; None: as many as there are cores to spare.
        device: "auto", "cpu", "cuda", "cuda:1", …
        resume: Go on with the run in ``out``; begin where it is empty.
        overwrite: Remove what an earlier run wrote into ``out``, and begin.
        progress: Show a bar on stderr.

    Returns:
        What came of it; ``model`` is None where SIGTERM or Ctrl-C stopped the run.

    Raises:
        InvalidInputError: a recipe, an option or a folder that cannot be used.
        ImageError: no image can be used, or too many are damaged.
        TrainingDivergedError: the loss is NaN or out of all proportion.
        StorageError: the disk is full or refuses; the last checkpoint stands.
    """
    place = own_device(find_device(device))
    with (
        torch.random.fork_rng(devices=[]),
        joined(KEPT, "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo") as ranks,
    ):
        plan = _recipe(recipe, settings or {}, batch_size)
        work = Run(plan, Path(out), images, held_out, init, place, ranks, workers)
        ranks.lead(lambda: work.begin(resume, overwrite))
        return work.train(progress)


def _recipe(recipe: str | Path | Recipe, settings: Mapping[str, str], batch_size: int | None) -> Recipe:
    chosen = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    if batch_size is not None:
        if "batch.images" in settings:
            raise InvalidInputError("The global batch is given twice: batch_size and batch.images; give one.")
        settings = {**settings, "batch.images": str(batch_size)}
    return chosen.override(settings) if settings else chosen


class Run:
    """What one rank holds of a run."""

    def __init__(
        self,
        recipe: Recipe,
        path: Path,
        images: str | Path | Sequence[str | Path],
        held_out: str | Path | Sequence[str | Path] | None,
        init: str | Path | None,
        device: torch.device,
        ranks: Ranks,
        workers: int | None,
    ) -> None:
        self.folder, self.source, self.device, self.ranks = path, images, device, ranks
        self.workers = usual_workers(device) if workers is None else workers
        self.split = split(images, held_out, share=recipe.run.held_out, seed=recipe.run.seed, out=path)
        if len(set(ranks.gather(self.split.training_digest))) > 1:
            raise InvalidInputError(f"The {ranks.count} processes see different images in {images}.")
        self.model, self.recipe, self.started_from = _model(recipe, init)
        self.notes = [*self.recipe.notes, *self.split.notes]
        if self.started_from is not None:
            self.notes.insert(0, str(self.started_from))
        options = self.recipe.run
        if options.sync_batch_norm and ranks.count > 1 and device.type == "cpu":
            raise InvalidInputError(
                "run.sync_batch_norm = true needs GPUs where several processes train: torch's SyncBatchNorm has no CPU "
                "version. On a CPU start one process, or leave it false."
            )
        self.sampler = self.recipe.make_sampler()
        self.preparation = Preparation(self.recipe.images, self.sampler, self.recipe.model.in_channels)
        self.order = _order(self.recipe, len(self.split.training))
        self.schedule = self.recipe.make_schedule(self.order.steps_per_epoch)
        self.notes += self.schedule.remarks()
        if device.type == "cpu" and options.precision == "bfloat16" and lacks_bfloat16():
            self.notes.append(
                "This CPU has no instructions for bfloat16, with which float32 is several times as fast: "
                "--set run.precision=float32."
            )
        self.order.numbers(ranks.rank, ranks.count)  # an error now, before anything is written
        self.checkpoints = Checkpoints(path / "checkpoints", options.keep)
        self.damaged = damaged.Damaged()
        self.unreadable: dict[str, str] = {}  # at the first look

    def begin(self, resume: bool, overwrite: bool) -> None:
        """Make the folder ready and write down what the run is; rank 0's work."""
        folder.make_ready(self.folder, resume=resume, overwrite=overwrite)
        self.checkpoints.clean()
        if self.checkpoints.numbered():
            return
        found = check(self.split.training, self.preparation)
        logger.info("%s", found)
        self.unreadable = dict(found.unreadable)
        held_out = self.split.held_out
        if held_out is not None:
            unreadable = check(held_out, self.preparation).unreadable
            if len(unreadable) == min(len(held_out), 2000):
                raise ImageError(f"None of the held-out images can be read; {': '.join(unreadable[0])}.")
        values = {
            "images": folder.said(self.source),
            "count": len(self.split.training),
            "held_out_count": 0 if held_out is None else len(held_out),
            "check": found.to_dict(),
            "init": None if self.started_from is None else self.started_from.to_dict(),
            "world_size": self.ranks.count,
            "workers": self.workers,
            "notes": self.notes,
        }
        folder.describe(self.folder, self.recipe, self.device, values)

    def train(self, progress: bool) -> Pretrained:
        """Train from the last checkpoint, or from the start, to the end."""
        loop = self._loop()
        first, best = self._resume(loop)
        with fast_convolutions():
            return self._trained(loop, first, best, progress)

    def _trained(self, loop: Loop, first: int, best: float, progress: bool) -> Pretrained:
        lead, total = self.ranks.rank == 0, self.schedule.steps
        log = None
        if lead:
            images = self.recipe.batch.images
            log = Progress(self.folder, total_steps=total, start_step=first, images_per_step=images, bar=progress)
        try:
            with log or nullcontext(), StopRequest(self.ranks) as stop:
                done, held_out = self._steps(loop, log, stop, first, best)
                broken = self._share_damaged()
                seconds, seen = (log.seconds, log.images) if log is not None else (0.0, 0)
        except (TrainingDivergedError, ImageError) as error:
            self.damaged.write(self.folder, [self.unreadable])
            if lead and isinstance(error, TrainingDivergedError):
                report.write(self.folder)
            raise
        if done == total:
            training = self._measure(self.split.training, at_most=_TRAINING_IMAGES)
            self.ranks.lead(lambda: finish.finish(self, held_out, training, seconds, seen, done))
        elif lead:
            report.write(self.folder)
        model = self.folder / "model" if done == total else None
        return Pretrained(self.folder, model, done, total, seen, seconds, held_out, broken)

    def _loop(self) -> Loop:
        """Bring the model to its device and make the loop that trains it."""
        options, reduction = self.recipe.run, self.recipe.optimizer.reduction
        dtype = torch.float64 if options.precision == "float64" else torch.float32
        self.model = self.model.to(self.device, dtype)
        if options.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        if options.sync_batch_norm and self.ranks.count > 1:
            self.model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # type: ignore[no-untyped-call]
        if options.compile:
            self.model.backbone.compile()
        objective = PretextObjective(
            self.sampler, self.device, reduction=reduction, dtype=dtype, channels_last=options.channels_last
        )
        return Loop(
            self.model,
            objective,
            make_optimizer(self.model, self.recipe.optimizer),
            self.schedule,
            self.order,
            self._batches,
            self.ranks,
            device=self.device,
            precision=options.precision,
            average=reduction == "mean",
            seed=options.seed,
        )

    def _resume(self, loop: Loop) -> tuple[int, float]:
        """Take over the last checkpoint, if there is one; return its step and the best accuracy so far."""
        init = None if self.started_from is None else self.started_from.to_dict()
        state = self.checkpoints.latest(
            lambda state: folder.check_same_run(self.folder, state, self.recipe, self.split, init)
        )
        lead = self.ranks.rank == 0
        if state is None:
            for line in self.notes if lead else ():
                logger.info("%s", line)
            return 0, 0.0
        loop.load_state(state)
        self.damaged.found.update(damaged.read(self.folder))
        # What was said at the run's beginning holds, also where --init or a batch size is not repeated.
        begun = folder.description(self.folder).get("notes")
        begun = [note for note in begun if isinstance(note, str)] if isinstance(begun, list) else []
        self.notes = [*begun, *(note for note in self.notes if note not in begun)]
        if lead:
            logger.info("going on from step %s", f"{state['step']:,}")
            folder.note_resumed(self.folder, state["step"], self.ranks.count)
        return state["step"], max(state["best"], self.checkpoints.best_accuracy())

    def _steps(
        self, loop: Loop, log: Progress | None, stop: StopRequest, first: int, best: float
    ) -> tuple[int, PretextResult | None]:
        """Take the steps, with the evaluations and checkpoints between them; return how many are made in all."""
        watch = LossWatch(warmup_steps=self.schedule.warmup_steps)
        options, per_epoch, total = self.recipe.run, self.order.steps_per_epoch, self.schedule.steps
        result: PretextResult | None = None

        def between(done: int) -> bool:
            nonlocal result, best
            if self.split.held_out is None or (done != total and done % (per_epoch * options.evaluate_every)):
                return False
            loop.share_statistics()
            result = self._measure(self.split.held_out)
            better, best = result.accuracy > best, max(best, result.accuracy)
            if log is not None:
                log.held_out(done, result)
            return better

        def save(done: int, better: bool) -> None:
            self._share_damaged()
            if self.ranks.rank == 0:
                files = {"files": self.split.training_digest, "held_out": self.split.held_out_digest}
                own = {"recipe": self.recipe.to_toml(), **files, "best": best}
                self.checkpoints.save(done, {**loop.state(), **own}, best=better)

        done = take_steps(
            loop,
            first,
            log=log,
            stop=stop,
            watch=watch,
            per_epoch=per_epoch,
            between=between,
            every=options.checkpoint_every,
            save=save,
        )
        if result is None and done == total and self.split.held_out is not None:
            result = self._measure(self.split.held_out)
        loop.share_statistics()
        return done, result

    def _batches(self, first: int) -> Iterator[MicroBatch]:
        """Make this rank's micro-batches from a step on, noting damaged images."""
        numbers = self.order.numbers(self.ranks.rank, self.ranks.count)
        training, options = self.split.training, self.recipe.run

        def batches() -> Iterator[list[tuple[int, int]]]:
            for step in range(first, self.schedule.steps):
                for number in numbers:
                    yield self.order.micro_batch(step, number)

        for asked, batch in zip(batches(), self._load(training, batches(), options.seed), strict=True):
            self.damaged.check(training, (image for _, image in asked), batch.damaged, options.damaged_share)
            yield batch

    def _load(
        self,
        collection: Collection,
        batches: Iterable[Sequence[tuple[int, int]]],
        seed: int,
        replace: bool = True,
    ) -> Iterator[MicroBatch]:
        """Load micro-batches, noting damaged images."""
        pin = self.device.type == "cuda"
        for batch in load(
            collection,
            self.preparation,
            batches,
            seed=seed,
            workers=self.workers,
            pin_memory=pin,
            replace=replace,
        ):
            self.damaged.add(collection, batch.damaged)
            yield batch

    def _share_damaged(self) -> int:
        """Let rank 0 write the damaged images that any rank met; return how many there are."""
        found = self.ranks.gather(self.damaged.found)
        if self.ranks.rank == 0:
            self.damaged.write(self.folder, found)
        return len(set().union(*found))

    def _measure(self, collection: Collection, at_most: int | None = None) -> PretextResult:
        """Measure the pretext accuracy with the recipe's own sampler, dropout off; the ranks share the work.

        The draws are the same at every call, and others than the training's.
        """
        count = len(collection) if at_most is None else min(len(collection), at_most)
        chosen = [number * len(collection) // count for number in range(count)]
        size = self.recipe.batch.per_device
        batches = [[(0, image) for image in chosen[k : k + size]] for k in range(0, count, size)]
        mine = batches[self.ranks.rank :: self.ranks.count]
        seed = keys.seed(self.recipe.run.seed, 1)
        micro_batches = self._load(collection, mine, seed, replace=False)
        readable = (batch for batch in micro_batches if batch.index)
        tally = tallied(
            self.model, readable, self.sampler, device=self.device, precision=self.recipe.run.precision, seed=0
        )
        total = Tally()
        total.load_state(self.ranks.total(tally.state().cpu()))
        return total.result()


def _model(recipe: Recipe, init: str | Path | None) -> tuple[ContextPredictionModel, Recipe, StartedFrom | None]:
    """Make the network with its first weights, the same on every machine; with ``init``, another model's."""
    options = recipe.model
    torch.manual_seed(keys.seed(recipe.run.seed, 2))
    model = ContextPredictionModel(
        options.backbone,
        in_channels=options.in_channels,
        neck_channels=options.neck_channels,
        dropout=options.dropout,
    )
    initialize(model, options.initialization)
    if init is None:
        return model, recipe, None
    taken = start_from(model, init, recipe.sampler)
    return model, taken.applied_to(recipe), taken


def _order(recipe: Recipe, count: int) -> Order:
    """Make the order of the images; an error where batch norm could not train on the smallest micro-batch."""
    batch, sampler = recipe.batch, recipe.make_sampler()
    whole_epochs = recipe.schedule.epochs is not None
    order = Order(count, batch.images, batch.per_device, recipe.run.seed, whole_epochs=whole_epochs)
    alone = order.smallest == 1 and isinstance(sampler, GridPatchSampler) and sampler.pairs == "center"
    if alone and sampler.patch <= _ONE_CELL:
        raise InvalidInputError(
            f"{count:,} images in micro-batches of {batch.per_device}: the smallest would hold one image, of whose "
            f"centre, {sampler.patch} px, the last layer sees one cell, and batch norm cannot train on one value. Add "
            f"or leave out an image, or change batch.images."
        )
    return order
