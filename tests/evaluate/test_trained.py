"""What every protocol that trains stands on: it resumes, refuses other data, and is the same on two ranks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import in_ranks
from torch import Tensor, nn
from torch.nn import functional as F

from context_pred.errors import InvalidInputError, StoppedError, TrainingDivergedError
from context_pred.evaluate import sources, trained
from context_pred.evaluate.job import Job
from context_pred.training.loop import StopRequest
from context_pred.training.rates import StepRates

Mini = Any


class Points:
    """Points in the plane, some noise drawn for each; the label is the side of a line."""

    def __init__(self, count: int = 20) -> None:
        self.count = count
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.count

    def example(self, image: int, generator: torch.Generator) -> tuple[Tensor, int]:
        self.read.append(image)
        point = torch.tensor([image / self.count, (image * 7 % 11) / 11]) + 0.01 * torch.randn(2, generator=generator)
        return point, int(point.sum() > 1)


def collate(examples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    return torch.stack([point for point, _ in examples]), torch.tensor([label for _, label in examples])


def objective(model: nn.Module, batch: tuple[Tensor, Tensor], noise: torch.Generator) -> tuple[Tensor, Tensor, int]:
    logits = model(batch[0])
    return F.cross_entropy(logits, batch[1]), (logits.argmax(1) == batch[1]).sum(), len(batch[1])


def job(out: Path, seed: int = 0) -> Job:
    source = sources.find("pixels")
    return Job(source, None, out, (), None, seed, workers=1, device="cpu", progress=False)


def training(points: Points, identity: str = "points", images: int = 8, **more: Any) -> trained.Training:
    with trained.seeded(0, 1):
        model = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 2))
    return trained.Training(
        "line",
        model,
        objective,
        lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        lambda per_epoch: StepRates(0.1, 4 * per_epoch, (2 * per_epoch,)),
        points,
        collate,
        images,
        identity,
        **more,
    )


def weights(model: nn.Module) -> list[Tensor]:
    return [value.clone() for value in model.state_dict().values()]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained, "usual_workers", lambda device: 0)


@pytest.mark.usefixtures("in_process")
def test_stopped_and_called_again_it_ends_with_the_same_weights(tmp_path: Path, monkeypatch: Any) -> None:
    straight = trained.train(job(tmp_path / "straight"), training(Points()))
    assert (straight.steps, straight.images) == (12, 80)
    calls = iter([False] * 4 + [True])
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "asked", lambda self: next(calls))
        with pytest.raises(StoppedError, match="Stopped at step 5 of 12 of line, with a checkpoint"):
            trained.train(job(tmp_path / "stopped"), training(Points()))
    resumed = trained.train(job(tmp_path / "stopped"), training(Points()))
    assert all(torch.equal(*pair) for pair in zip(weights(straight.model), weights(resumed.model), strict=True))
    assert not resumed.model.training


@pytest.mark.usefixtures("in_process")
def test_what_came_to_its_end_is_taken_as_it_is(tmp_path: Path) -> None:
    first = trained.train(job(tmp_path), training(Points()))
    points = Points()
    again = trained.train(job(tmp_path), training(points))
    assert points.read == []
    assert all(torch.equal(*pair) for pair in zip(weights(first.model), weights(again.model), strict=True))


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("changed", [{"identity": "others"}, {"images": 4}])
def test_checkpoints_of_other_data_are_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    trained.train(job(tmp_path), training(Points()))
    with pytest.raises(InvalidInputError, match=r"other data or another length.*--overwrite"):
        trained.train(job(tmp_path), training(Points(), **changed))


@pytest.mark.usefixtures("in_process")
def test_fewer_images_than_a_batch_are_one_batch(tmp_path: Path) -> None:
    done = trained.train(job(tmp_path), training(Points(5), images=256))
    assert (done.steps, done.images) == (4, 20)


@pytest.mark.usefixtures("in_process")
def test_evaluations_lie_between_and_leave_the_training_as_it_was(tmp_path: Path) -> None:
    plain = trained.train(job(tmp_path / "plain"), training(Points()))
    seen: list[int] = []
    looked = trained.train(job(tmp_path / "looked"), training(Points(), evaluate=seen.append, evaluate_every=5))
    assert seen == [5, 10]
    assert all(torch.equal(*pair) for pair in zip(weights(plain.model), weights(looked.model), strict=True))


@pytest.mark.usefixtures("in_process")
def test_every_image_is_measured_once(tmp_path: Path) -> None:
    found = [(lot, batch) for lot, batch in trained.measured_batches(job(tmp_path), Points(7), collate, 3)]
    assert [lot for lot, _ in found] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [len(batch[1]) for _, batch in found] == [3, 3, 1]


def test_frozen_protocols_are_the_same_on_two_ranks(mini: Mini, tmp_path: Path) -> None:
    data = mini.folders("train", "test", each=3)
    tables = []
    for count in (1, 2):
        out = tmp_path / str(count)
        common = ["evaluate", "knn", "--model", "random:resnet18", "--data", str(data), "--out", str(out)]
        done = in_ranks([*common, "--set", "size=32", "--set", "k=1,3", "--device", "cpu", "--no-progress"], count)
        assert [process.code for process in done] == [0] * count, done
        tables.append([[line for line in process.output.splitlines() if line.startswith("|")] for process in done])
        assert (out / "result.json").is_file()
    assert tables[0][0] == tables[1][0] == tables[1][1] != []


def test_damaged_images_are_told_from_another_process_too() -> None:
    import pickle

    from context_pred.evaluate.features import DamagedImagesError

    error = DamagedImagesError({"a.jpg": "not an image"})
    again = pickle.loads(pickle.dumps(error))
    assert (again.errors, str(again)) == (error.errors, str(error))


def test_a_step_of_a_single_value_says_what_may_be_done(tmp_path: Path) -> None:
    work = dataclasses.replace(training(Points(4), images=1), model=nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    with pytest.raises(InvalidInputError, match=r"leaves batch norm nothing to average; accepted are larger images"):
        trained.train(job(tmp_path), work)


def test_divergence_does_not_send_to_pretrainings_files(tmp_path: Path) -> None:
    work = dataclasses.replace(
        training(Points()),
        objective=lambda model, batch, noise: (model(batch[0]).sum() * torch.nan, torch.zeros(()), 1),
    )
    with pytest.raises(TrainingDivergedError, match=r"diverged at step 1 .*\. Try a lower learning rate\.$"):
        trained.train(job(tmp_path), work)
