"""The loop's arithmetic: micro-batches, running statistics, the centre once, seeds."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from context_pred.model import ContextPredictionModel
from context_pred.patches import PatchPairs
from context_pred.pretext import pretext_loss
from context_pred.ranks import Ranks
from context_pred.training.loop import Loop, Objective
from context_pred.training.order import Order


class Constant:
    def __init__(self, steps: int, rate: float = 0.1) -> None:
        self.steps, self._rate = steps, rate

    def rate(self, step: int) -> float:
        return self._rate


class Tower(nn.Module):
    """A batch norm between two layers, and dropout."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 8)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.drop(F.relu(self.norm(self.first(x)))))
        return out


Batch = tuple[Tensor, Tensor]


def mean_loss(model: nn.Module, batch: Batch, noise: torch.Generator) -> tuple[Tensor, Tensor, int]:
    logits = model(batch[0])
    return F.cross_entropy(logits, batch[1]), (logits.argmax(1) == batch[1]).sum(), len(batch[1])


def sum_loss(model: nn.Module, batch: Batch, noise: torch.Generator) -> tuple[Tensor, Tensor, int]:
    loss, hits, asked = mean_loss(model, batch, noise)
    return loss * asked, hits, asked


def batches(count: int, size: int = 6) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(size, 5, generator=generator, dtype=torch.float64),
            torch.randint(8, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def loop(
    model: nn.Module, micro_batches: int, steps: int, *, objective: Objective = mean_loss, average: bool = True
) -> Loop:
    fixed = batches(micro_batches)

    def from_step(first: int) -> Iterator[Batch]:
        return itertools.cycle(fixed)

    return Loop(
        model,
        objective,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        Constant(steps),
        Order(6 * micro_batches, 6 * micro_batches, 6, seed=0),
        from_step,
        Ranks(),
        device=torch.device("cpu"),
        precision="float64",
        average=average,
    )


@pytest.fixture
def tower() -> Tower:
    torch.manual_seed(0)
    return Tower().double()


@pytest.mark.parametrize("objective", [mean_loss, sum_loss])
def test_a_step_takes_the_gradient_of_its_micro_batches_together(tower: Tower, objective: Objective):
    plain = copy.deepcopy(tower).train()
    average = objective is mean_loss
    losses = [objective(plain, batch, torch.Generator())[0] for batch in batches(3)]
    total = sum(losses) / 3 if average else sum(losses)
    total.backward()
    (stepped,) = loop(tower, 3, 1, objective=objective, average=average).steps()
    for trained, parameter in zip(tower.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(trained, parameter - 0.1 * parameter.grad, rtol=1e-12, atol=1e-12)
    per_pair = sum(mean_loss(copy.deepcopy(plain), batch, torch.Generator())[0].item() for batch in batches(3)) / 3
    assert stepped.loss == pytest.approx(per_pair)
    assert (stepped.step, stepped.asked, stepped.images, stepped.rate) == (1, 18, 18, 0.1)


def test_running_statistics_are_those_of_the_first_micro_batch(tower: Tower):
    plain = copy.deepcopy(tower).train()
    mean_loss(plain, batches(1)[0], torch.Generator())
    for _ in loop(tower, 3, 1).steps():
        pass
    torch.testing.assert_close(tower.norm.running_mean, plain.norm.running_mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(tower.norm.running_var, plain.norm.running_var, rtol=1e-12, atol=1e-12)
    assert int(tower.norm.num_batches_tracked) == 1


def test_dropout_depends_on_the_step_and_not_on_what_came_before():
    def last_step(first: int, disturb: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = Tower(dropout=0.5).double()
        run = loop(model, 2, 3)
        for stepped in run.steps(first):
            if disturb:
                torch.rand(7)
            if stepped.step == 2:
                state = copy.deepcopy(run.state())
        return state

    one, other = last_step(0, False), last_step(0, True)
    for key, value in one["model"].items():
        assert torch.equal(value, other["model"][key])


def test_going_on_from_a_state_is_as_if_never_stopped():
    torch.manual_seed(0)
    whole = Tower(dropout=0.5).double()
    halves = copy.deepcopy(whole)
    for _ in loop(whole, 2, 4).steps():
        pass
    first = loop(halves, 2, 4)
    for stepped in first.steps():
        if stepped.step == 2:
            break
    state = copy.deepcopy(first.state())
    torch.manual_seed(99)
    second_model = Tower(dropout=0.5).double()
    second = loop(second_model, 2, 4)
    second.load_state(state)
    for _ in second.steps(2):
        pass
    for key, value in whole.state_dict().items():
        assert torch.equal(value, second_model.state_dict()[key])


def test_the_centre_once_is_upstreams_eight_times():
    """Loss and gradients of one step of both ways, from the same weights."""
    torch.manual_seed(0)
    once = ContextPredictionModel("resnet18", dropout=0.0, neck_channels=16).train()
    eight_times = copy.deepcopy(once)
    patches = torch.randn(4, 9, 3, 32, 32)
    cells = torch.tensor([0, 1, 2, 3, 5, 6, 7, 8])
    first = torch.arange(4)[:, None] * 9
    position = torch.arange(8).repeat(4)
    pairs = PatchPairs(
        patches.flatten(0, 1),
        neighbor=(first + cells).flatten(),
        center=(first + 4).expand(4, 8).flatten(),
        position=position,
        boxes=torch.zeros(36, 4, dtype=torch.int64),
        image=torch.arange(4).repeat_interleave(9),
    )
    ours = pretext_loss(once(pairs), position)
    theirs = F.cross_entropy(
        eight_times(patches[:, cells].flatten(0, 1), patches[:, 4].repeat_interleave(8, 0)), position
    )
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    ours.backward()
    theirs.backward()
    for mine, other in zip(once.parameters(), eight_times.parameters(), strict=True):
        assert mine.grad is not None
        assert other.grad is not None
        assert (mine.grad - other.grad).norm() <= 1e-3 * other.grad.norm() + 1e-6
