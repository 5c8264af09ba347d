"""Protocols that train: on the loop, checkpoints and ranks that pretraining stands on."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from context_pred.data.images import open_image
from context_pred.errors import ImageError, InvalidInputError, StoppedError, TrainingDivergedError, unknown
from context_pred.extract.network import find_device
from context_pred.extract.work import digest_of_files
from context_pred.ranks import Ranks
from context_pred.training import keys
from context_pred.training.checkpoints import Checkpoints
from context_pred.training.examples import Examples, Place, batches
from context_pred.training.loop import PRECISIONS, Loop, Objective, Rates, StopRequest
from context_pred.training.machine import own_device, usual_workers
from context_pred.training.order import GroupedOrder, Order
from context_pred.training.progress import LossWatch, Progress
from context_pred.training.run import take_steps

from .features import DamagedImagesError
from .job import Job


@dataclass(frozen=True)
class Training:
    """What a protocol trains.

    Attributes:
        name: Of the run's folder, in the job's.
        model: On the CPU; trained in place.
        objective: Loss, hits and number asked of a batch, on the job's device.
        optimizer: Makes the optimiser, once the model is on its device.
        rates: Makes the schedule of a number of steps an epoch; the run's length is in it.
        examples: What it is trained on.
        collate: From examples to a batch.
        images: The global batch.
        identity: What tells this data from other: a checkpoint of other data is refused.
        per_device: Images a micro-batch; 0: the global batch shared among the ranks, so that batch norm sees all.
        sync_batch_norm: Batch norm sees the micro-batches of all ranks together; on GPUs, since torch has it there.
        whole_epochs: As in ``Order``.
        groups: As in ``GroupedOrder``, for whole epochs; (), or a single one: ``Order`` is followed.
        precision: "float32", or "bfloat16" for autocast.
        channels_last: Lay the model and its input out channels-last.
        checkpoint_every: Steps between two checkpoints.
        evaluate: Called with the steps made, every ``evaluate_every`` steps and not at the end.
        evaluate_every: 0: never.
        evaluate_epochs: The same, counted in epochs.
    """

    name: str
    model: nn.Module
    objective: Objective
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    rates: Callable[[int], Rates]
    examples: Examples
    collate: Callable[[list[Any]], Any]
    images: int
    identity: str
    per_device: int = 0
    sync_batch_norm: bool = False
    whole_epochs: bool = True
    groups: Sequence[int] = ()
    precision: str = "float32"
    channels_last: bool = False
    checkpoint_every: int = 200
    evaluate: Callable[[int], None] | None = None
    evaluate_every: int = 0
    evaluate_epochs: int = 0


@dataclass(frozen=True)
class Trained:
    """A training that came to its end.

    Attributes:
        model: In eval mode, on the job's device.
        steps: Made in all.
        images: Seen in all.
        seconds: Over all resumes.
    """

    model: nn.Module
    steps: int
    images: int
    seconds: float


def device_of(job: Job) -> torch.device:
    """Return the device that this rank trains on."""
    return own_device(find_device(job.device))


def train(job: Job, work: Training) -> Trained:
    """Train from the last checkpoint, or from the start, to the end; a run that came to its end is taken as it is.

    Raises:
        StoppedError: SIGTERM or Ctrl-C; a checkpoint stands.
        TrainingDivergedError: the loss is no number.
        ImageError: an image cannot be read.
        InvalidInputError: a batch that the ranks cannot share, or checkpoints of other data.
        StorageError: the disk is full or refuses; the last checkpoint stands.
    """
    device, ranks = device_of(job), job.ranks
    folder = job.out / work.name
    if work.precision not in PRECISIONS:
        raise unknown("precision", work.precision, PRECISIONS)
    # A dataset smaller than the batch makes every batch smaller, with a whole number of images a rank.
    count = len(work.examples)
    images = work.images if count >= work.images else max(ranks.count, count // ranks.count * ranks.count)
    if images % ranks.count:
        raise InvalidInputError(f"{ranks.count} processes cannot share a batch of {images} images evenly.")
    per_device = min(work.per_device or images // ranks.count, images // ranks.count)
    order = (
        GroupedOrder(count, images, per_device, job.seed, work.groups)
        if len(set(work.groups)) > 1
        else Order(count, images, per_device, job.seed, whole_epochs=work.whole_epochs)
    )
    rates = work.rates(order.steps_per_epoch)
    order.numbers(ranks.rank, ranks.count)
    model = work.model.to(device)
    if work.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if work.sync_batch_norm and ranks.count > 1 and device.type != "cpu":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    loop = Loop(
        model,
        _said(work.objective),
        work.optimizer(model),
        rates,
        order,
        lambda first: _batches(job, work, order, rates.steps, first, device),
        ranks,
        device=device,
        precision=work.precision,
        seed=keys.seed(job.seed, 3),
    )
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    if ranks.rank == 0:
        checkpoints.clean()
    identity = hashlib.sha256(f"{work.identity}\0{images}\0{rates.steps}".encode()).hexdigest()
    state = checkpoints.latest(lambda state: _check(folder, state, identity))
    first = 0
    if state is not None:
        loop.load_state(state)
        first = state["step"]
    try:
        seconds, seen = _take(job, work, loop, checkpoints, identity, first, order)
    except TrainingDivergedError as error:  # which says what to do in pretraining
        raise TrainingDivergedError(f"{str(error).partition(' Try ')[0]} Try a lower learning rate.") from error
    loop.share_statistics()
    return Trained(model.eval(), rates.steps, seen, seconds)


def _said(objective: Objective) -> Objective:
    """Let batch norm's error on a single value say what may be done."""

    def said(model: nn.Module, batch: Any, noise: torch.Generator) -> Any:
        try:
            return objective(model, batch, noise)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise InvalidInputError(
                "A step with one image, or one proposal, whose map is 1 × 1 leaves batch norm nothing to average; "
                "accepted are larger images, crops or proposals' cells, or more of them at a time (--set)."
            ) from error

    return said


def _take(
    job: Job, work: Training, loop: Loop, checkpoints: Checkpoints, identity: str, first: int, order: Order
) -> tuple[float, int]:
    """Take the steps that are left; return seconds and images over all resumes."""
    ranks, total, folder = job.ranks, loop.rates.steps, job.out / work.name
    evaluate_every = work.evaluate_every or work.evaluate_epochs * order.steps_per_epoch
    lead = ranks.rank == 0
    log = None
    if lead:
        log = Progress(
            folder, total_steps=total, start_step=first, images_per_step=order.per_device * order.micro_batches,
            bar=job.progress and first < total, every=min(50, max(1, total // 20)),
        )  # fmt: skip

    def between(done: int) -> bool:
        if work.evaluate is not None and evaluate_every and done < total and done % evaluate_every == 0:
            loop.share_statistics()
            loop.model.eval()
            work.evaluate(done)
            loop.model.train()
        return False

    def save(done: int, better: bool) -> None:
        if lead:
            checkpoints.save(done, {**loop.state(), "identity": identity})

    with log or nullcontext(), StopRequest(ranks) as stop:
        done = take_steps(
            loop, first, log=log, stop=stop, watch=LossWatch(chance=None), per_epoch=order.steps_per_epoch,
            between=between, every=work.checkpoint_every, save=save,
        )  # fmt: skip
        seconds, seen = (log.seconds, log.images) if log is not None else (0.0, 0)
    if done < total:
        raise StoppedError(
            f"Stopped at step {done:,} of {total:,} of {work.name}, with a checkpoint; the same command goes on."
        )
    ranks.wait()
    return seconds, seen


def _check(folder: Path, state: dict[str, Any], identity: str) -> None:
    if state.get("identity") != identity:
        raise InvalidInputError(
            f"The checkpoints in {folder} are of other data or another length than those asked for now. Give the same, "
            "choose another out, or begin anew with overwrite=True (--overwrite)."
        )


def _batches(job: Job, work: Training, order: Order, steps: int, first: int, device: torch.device) -> Iterator[Any]:
    numbers = order.numbers(job.ranks.rank, job.ranks.count)
    places: Iterator[list[Place]] = (
        order.micro_batch(step, number) for step in range(first, steps) for number in numbers
    )
    return batches(
        work.examples, places, work.collate, seed=job.seed,
        workers=min(job.workers, usual_workers(device)), pin_memory=device.type == "cuda",
    )  # fmt: skip


def head_groups(model: nn.Module, heads: tuple[str, ...], multiplier: float) -> list[dict[str, Any]]:
    """Group the parameters for an optimiser: the others, and the heads, which learn at a multiple of the rate.

    Args:
        model: What is trained.
        heads: Beginnings of the heads' names, as "head.".
        multiplier: Of their rate.
    """
    named = list(model.named_parameters())
    return [
        {"params": [p for name, p in named if not name.startswith(heads)], "multiplier": 1.0},
        {"params": [p for name, p in named if name.startswith(heads)], "multiplier": multiplier},
    ]


def measured_batches(
    job: Job, examples: Examples, collate: Callable[[list[Any]], Any], size: int
) -> Iterator[tuple[list[int], Any]]:
    """Load this rank's share of a test set, in batches: (which images, the batch). Every image comes once.

    The share is every so-many-th batch; ``Ranks.total`` or ``Ranks.gather`` brings the measurements together.
    """
    device = device_of(job)
    count = len(examples)
    lots = [list(range(k, min(k + size, count))) for k in range(0, count, size)][job.ranks.rank :: job.ranks.count]
    places = [[(0, image) for image in lot] for lot in lots]
    workers = min(job.workers, usual_workers(device))
    yield from zip(lots, batches(examples, places, collate, seed=keys.seed(job.seed, 4), workers=workers), strict=True)


@contextlib.contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Make random weights from a key, and leave the caller's random numbers as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keys.seed(*key))
        yield


def identity_of(files: Sequence[Path], *more: object) -> str:
    """Tell training data from other: the digest of its paths and of whatever else decides what is learned."""
    return "\0".join([digest_of_files([str(file) for file in files]), *map(repr, more)])


def check(files: Sequence[Path], ranks: Ranks) -> None:
    """Open files, the ranks together, before a training that else would end at the first that is damaged.

    Raises:
        DamagedImagesError: some cannot be opened; all are named.
    """
    found = damaged(files, ranks)
    if found:
        raise DamagedImagesError(found)


def check_there(files: Sequence[Path]) -> None:
    """Look for files before a training that else would end at the first that is missing.

    Raises:
        DamagedImagesError: some are not there; all are named.
    """
    missing = {str(file): "no such file" for file in files if not file.is_file()}
    if missing:
        raise DamagedImagesError(missing)


def damaged(files: Sequence[Path], ranks: Ranks) -> dict[str, str]:
    """Open every file, the ranks together; return {path: reason} of those that cannot be."""
    found = {}
    for file in files[ranks.rank :: ranks.count]:
        try:
            open_image(file)
        except ImageError as error:
            found[str(file)] = str(error).removeprefix(f"{file}: ")
    return {path: reason for part in ranks.gather(found) for path, reason in part.items()}
