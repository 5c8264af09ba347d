"""One pretraining run, from its folder to its model."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision

from context_pred import __version__
from context_pred.data.collection import Collection, collect
from context_pred.errors import ImageError, InvalidInputError, storing
from context_pred.extract.network import find_device
from context_pred.model import ContextPredictionModel
from context_pred.pretext import PretextResult, Tally, tallied
from context_pred.ranks import Ranks, joined
from context_pred.training import keys
from context_pred.training.checkpoints import Checkpoints
from context_pred.training.loop import PRECISIONS, Loop, StopRequest
from context_pred.training.optimizer import make_optimizer
from context_pred.training.order import Order
from context_pred.training.progress import LossWatch, Progress
from context_pred.weights_file import write_bytes

from . import finish
from .check import check
from .initial import StartedFrom, initialize, start_from
from .loading import MicroBatch, load
from .objective import PretextObjective
from .prepare import Preparation
from .recipe import RECIPE_FILE, Recipe, read_recipe

logger = logging.getLogger("context_pred")

KEPT = "The last checkpoint stands; the same command with --resume goes on from there."

WRITTEN = (
    RECIPE_FILE,
    "run.json",
    "log.jsonl",
    "damaged.jsonl",
    "checkpoints",
    "tensorboard",
    "result.json",
    "samples.safetensors",
    "report.html",
    "model",
)
"""What a run writes into its folder; ``overwrite`` removes these and nothing else."""

# A damaged image says something about the share of damaged ones only when some have been looked at.
_FEW = 200


@dataclass(frozen=True)
class Pretrained:
    """A run that ended, or was asked to stop.

    Attributes:
        folder: RUN.
        model: ``RUN/model``, which ``context_pred.load_pretrained`` takes; None where the run was stopped before its end.
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
    place = find_device(device)
    with torch.random.fork_rng(devices=[]), joined(KEPT, "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo") as ranks:
        plan = _recipe(recipe, settings or {}, batch_size)
        work = Run(plan, Path(out), images, held_out, init, place, ranks, workers)
        ranks.lead(lambda: work.begin(resume, overwrite))
        return work.train(progress)


def _recipe(recipe: str | Path | Recipe, settings: Mapping[str, str], batch_size: int | None) -> Recipe:
    chosen = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    if batch_size is not None:
        if "batch.images" in settings:
            raise InvalidInputError("The global batch is given twice: batch_size and batch.images; give one.")
        chosen = chosen.with_batch(batch_size)
    return chosen.override(settings) if settings else chosen


class Run:
    """What one rank holds of a run."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        images: str | Path | Sequence[str | Path],
        held_out: str | Path | Sequence[str | Path] | None,
        init: str | Path | None,
        device: torch.device,
        ranks: Ranks,
        workers: int | None,
    ) -> None:
        self.folder, self.source, self.device, self.ranks = folder, images, device, ranks
        self.workers = usual_workers(device) if workers is None else workers
        self.collection, self.held_out = _split(collect(images), held_out, recipe, folder)
        self.notes = list(recipe.notes)
        self.model, self.recipe, self.started_from = _model(recipe, init)
        options = self.recipe.run
        if options.sync_batch_norm and ranks.count > 1 and device.type == "cpu":
            raise InvalidInputError(
                "run.sync_batch_norm = true needs GPUs where several processes train: torch's SyncBatchNorm has no CPU "
                "version. On a CPU start one process, or leave it false."
            )
        self.sampler = self.recipe.make_sampler()
        self.preparation = Preparation(self.recipe.images, self.sampler, self.recipe.model.in_channels)
        self.order = Order(len(self.collection), self.recipe.batch.images, self.recipe.batch.per_device, options.seed)
        self.schedule = self.recipe.make_schedule(self.order.steps_per_epoch)
        self.notes += self.schedule.remarks()
        self.order.numbers(ranks.rank, ranks.count)  # an error now, before anything is written
        self.checkpoints = Checkpoints(folder / "checkpoints", options.keep)
        self.damaged: dict[str, str] = {}
        self.looked_at = self.found_damaged = 0

    # The folder --------------------------------------------------------------------------------------------------

    def begin(self, resume: bool, overwrite: bool) -> None:
        """Make the folder ready and write down what the run is; rank 0's work.

        Raises:
            InvalidInputError: the folder is not empty, and it was not said what to do with it.
        """
        there = sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else []
        if self.folder.exists() and not self.folder.is_dir():
            raise InvalidInputError(f"out={str(self.folder)!r} is a file; accepted: the name of a folder.")
        if resume and overwrite:
            raise InvalidInputError("--resume goes on and --overwrite begins anew; give one of them.")
        if there and overwrite:
            self._remove_run(there)
        elif there and not resume:
            raise InvalidInputError(
                f"{self.folder} is not empty ({', '.join(there[:3])}{', …' if len(there) > 3 else ''}). Go on with the run "
                f"in it with --resume, begin anew with --overwrite, or choose another folder."
            )
        elif there and RECIPE_FILE not in there:
            raise InvalidInputError(
                f"{self.folder} holds no run to go on with (it has {', '.join(there[:3])}, no {RECIPE_FILE}); choose another "
                f"folder, or --overwrite."
            )
        with storing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self.checkpoints.clean()
        if self.checkpoints.numbered():
            return
        write_bytes(self.recipe.to_toml().encode(), self.folder / RECIPE_FILE)
        found = check(self.collection, self.preparation)
        logger.info("%s", found)
        self._write_run(check=found.to_dict())

    def _remove_run(self, there: Sequence[str]) -> None:
        strange = [name for name in there if name not in WRITTEN]
        if RECIPE_FILE not in there and strange:
            raise InvalidInputError(
                f"{self.folder} holds {', '.join(strange[:3])} and no {RECIPE_FILE}: that is no run of this command, and "
                f"--overwrite removes nothing else. Choose another folder."
            )
        with storing(self.folder):
            for name in (*WRITTEN[1:], WRITTEN[0]):  # the recipe, which says that this is a run, goes last
                path = self.folder / name
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)

    def _write_run(self, **more: Any) -> None:
        path = self.folder / "run.json"
        values = {
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "images": _said(self.source),
            "count": len(self.collection),
            "held_out_count": len(self.held_out) if self.held_out is not None else 0,
            "files": _digest(self.collection),
            "init": None if self.started_from is None else self.started_from.to_dict(),
            "device": _device_name(self.device),
            "cpu": _cpu_name(),
            "world_size": self.ranks.count,
            "threads": torch.get_num_threads(),
            "workers": self.workers,
            "versions": {
                "context-pred": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
            },
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "notes": self.notes,
            **more,
        }
        write_bytes((json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode(), path)

    # Training ----------------------------------------------------------------------------------------------------

    def train(self, progress: bool) -> Pretrained:
        """Train from the last checkpoint, or from the start, to the end."""
        options = self.recipe.run
        dtype = PRECISIONS[options.precision] if options.precision == "float64" else torch.float32
        model = self.model.to(self.device, dtype)
        if options.channels_last:
            model = model.to(memory_format=torch.channels_last)
        if options.sync_batch_norm and self.ranks.count > 1:
            model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
        if options.compile:
            model.backbone.compile()
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True
        self.model = model
        reduction = self.recipe.optimizer.reduction
        loop = Loop(
            model,
            PretextObjective(
                self.sampler, self.device, reduction=reduction, dtype=dtype, channels_last=options.channels_last
            ),
            make_optimizer(model, self.recipe.optimizer),
            self.schedule,
            self.order,
            self._batches,
            self.ranks,
            device=self.device,
            precision=options.precision,
            average=reduction == "mean",
            seed=options.seed,
        )
        state = self.checkpoints.latest(self._is_of_this_run)
        first, best = 0, 0.0
        if state is not None:
            loop.load_state(state)
            first, best = state["step"], state["best"]
            self.damaged.update(finish.read_damaged(self.folder))
            logger.info("going on from step %s", f"{first:,}")
        elif self.ranks.rank == 0:
            for line in self.notes:
                logger.info("%s", line)
        lead = self.ranks.rank == 0
        log = Progress(
            self.folder,
            total_steps=self.schedule.steps,
            start_step=first,
            images_per_step=self.recipe.batch.images,
            bar=progress,
        ) if lead else None  # fmt: skip
        with log or nullcontext(), StopRequest(self.ranks) as stop:
            done, result = self._steps(loop, log, stop, first, best)
            damaged = self._share_damaged()
            if lead and stop.signal is not None and done < self.schedule.steps:
                logger.info("stopped by %s at step %s", signal.Signals(stop.signal).name, f"{done:,}")
            seconds, seen = (log.seconds, log.images) if log is not None else (0.0, 0)
        folder = None
        if done == self.schedule.steps:
            folder = self.folder / "model"
            training = self._measure(self.collection, at_most=2048)
            if lead:
                finish.finish(self, result, training, seconds=seconds, images_seen=seen, steps=done)
            self.ranks.wait()
        return Pretrained(self.folder, folder, done, self.schedule.steps, seen, seconds, result, damaged)

    def _steps(
        self, loop: Loop, log: Progress | None, stop: StopRequest, first: int, best: float
    ) -> tuple[int, PretextResult | None]:
        """Take the steps, with the evaluations and checkpoints between them; return how many are made in all."""
        watch = LossWatch(warmup_steps=self.schedule.warmup_steps)
        options, per_epoch, total = self.recipe.run, self.order.steps_per_epoch, self.schedule.steps
        done, result = first, None
        for stepped in loop.steps(first):
            done = stepped.step
            watch.check(done, stepped.rate, stepped.loss, skipped=stepped.skipped)
            if log is not None:
                share = stepped.hits / max(stepped.asked, 1)
                log.step(done, done / per_epoch, stepped.rate, stepped.loss, share, stepped.images, stepped.waited)
            better = False
            if self.held_out is not None and (done == total or done % (per_epoch * options.evaluate_every) == 0):
                loop.share_statistics()
                result = self._measure(self.held_out)
                better, best = result.accuracy > best, max(best, result.accuracy)
                if log is not None:
                    log.held_out(done, result)
            stopping = stop.asked()
            if stopping or better or done == total or done % options.checkpoint_every == 0:
                self._share_damaged()
                if self.ranks.rank == 0:
                    own = {"recipe": self.recipe.to_toml(), "files": _digest(self.collection), "best": best}
                    self.checkpoints.save(done, {**loop.state(), **own}, best=better)
            if stopping:
                break
        if result is None and done == total and self.held_out is not None:
            result = self._measure(self.held_out)
        loop.share_statistics()
        return done, result

    def _is_of_this_run(self, state: dict[str, Any]) -> None:
        """Raise InvalidInputError where a checkpoint belongs to another recipe or to other images."""
        differences = finish.recipe_differences(state["recipe"], self.recipe.to_toml())
        if differences:
            raise InvalidInputError(
                f"The run in {self.folder} has another recipe: {'; '.join(differences)}. Resume it with its own "
                f"(--recipe {self.folder / RECIPE_FILE}), begin anew with --overwrite, or start another run from its "
                f"weights with --init."
            )
        if state["files"] != _digest(self.collection):
            raise InvalidInputError(
                f"The run in {self.folder} was on other images than the {len(self.collection):,} given now. Give the same "
                f"images to resume it, or start another run from its weights with --init."
            )

    def _batches(self, first: int) -> Iterator[MicroBatch]:
        """Make this rank's micro-batches from a step on, noting damaged images."""
        numbers = self.order.numbers(self.ranks.rank, self.ranks.count)
        batches = (self.order.micro_batch(step, m) for step in range(first, self.schedule.steps) for m in numbers)
        options = self.recipe.run
        for batch in self._load(self.collection, batches, options.seed):
            self.looked_at += len(batch.index)
            self.found_damaged += len(batch.damaged)
            for index, reason in batch.damaged:
                self.damaged.setdefault(self.collection.names[index], reason)
            enough = self.looked_at >= min(_FEW, len(self.collection))
            if enough and self.found_damaged > options.damaged_share * self.looked_at:
                self._give_up()
            yield batch

    def _load(
        self, collection: Collection, batches: Iterable[Sequence[tuple[int, int]]], seed: int
    ) -> Iterator[MicroBatch]:
        pin = self.device.type == "cuda"
        return load(collection, self.preparation, batches, seed=seed, workers=self.workers, pin_memory=pin)

    def _give_up(self) -> None:
        name, reason = next(iter(self.damaged.items()))
        raise ImageError(
            f"{self.found_damaged} of the first {self.looked_at} images are damaged, more than run.damaged_share = "
            f"{self.recipe.run.damaged_share} allows; the first is {name}: {reason}. Mend or remove them, or allow more "
            f"with --set run.damaged_share=0.9."
        )

    def _share_damaged(self) -> int:
        """Let rank 0 write the damaged images that any rank met; return how many there are."""
        for other in self.ranks.gather(self.damaged):
            self.damaged.update(other)
        if self.ranks.rank == 0:
            finish.write_damaged(self.folder, self.damaged)
        return len(self.damaged)

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
        micro_batches = self._load(collection, mine, seed)
        tally = tallied(
            self.model, micro_batches, self.sampler, device=self.device, precision=self.recipe.run.precision, seed=0
        )
        total = Tally()
        total.load_state(self.ranks.total(tally.state().cpu()))
        return total.result()


def _split(
    collection: Collection, held_out: str | Path | Sequence[str | Path] | None, recipe: Recipe, out: Path
) -> tuple[Collection, Collection | None]:
    """Divide the images into those that are trained on and those held out, whole image by whole image."""
    inside = [name for name in collection.names if Path(name).resolve().is_relative_to(out.resolve())][:1]
    if inside:
        raise InvalidInputError(f"{inside[0]} lies in the run's own folder; choose a folder for the run outside the images.")
    if held_out is not None:
        return collection, collect(held_out)
    share = recipe.run.held_out
    if not share:
        return collection, None
    # By the last two parts of its name, so that neither order nor place of the folder matters.
    parts = ["/".join(Path(name).parts[-2:]) for name in collection.names]
    hashes = [hashlib.sha256(f"{recipe.run.seed}:{part}".encode("utf-8", "surrogatepass")).digest() for part in parts]
    out_of_it = [int.from_bytes(digest[:8], "big") < share * 2**64 for digest in hashes]
    kept = [index for index, held in enumerate(out_of_it) if not held]
    held = [index for index, held in enumerate(out_of_it) if held]
    if not kept or not held:
        return collection, None
    return collection.subset(kept), collection.subset(held)


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


def usual_workers(device: torch.device) -> int:
    """Return how many decoding processes a rank gets: beside a CPU one, or none on a single core; beside a GPU up to 12."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.type == "cpu":
        return min(1, cores // local - 1) if cores // local > 1 else 0
    return max(1, min(12, cores // local - 1))


def _digest(collection: Collection) -> str:
    """Tell collections apart by the names of their images, wherever the folder lies."""
    digest = hashlib.sha256()
    for name in collection.names:
        digest.update("/".join(Path(name).parts[-2:]).encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def _said(source: str | Path | Sequence[str | Path]) -> str:
    if isinstance(source, (str, os.PathLike)):
        return str(source)
    return f"{len(source)} paths, the first {source[0]}" if len(source) else "no paths"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
