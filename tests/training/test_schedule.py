"""The learning rate: upstream's rates, the lengths, and what happens at the edges."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from context_pred.errors import InvalidInputError
from context_pred.training.schedule import Schedule, ScheduleOptions

PUBLISHED = {"epochs": 70, "decay": "steps", "milestones": (30, 50), "warmup_epochs": 5.0}


def schedule(steps_per_epoch: int = 4, images: int = 512, rate: float = 0.2, **options) -> Schedule:
    return Schedule(ScheduleOptions(**options), steps_per_epoch, images, rate)


def test_the_rates_of_1x_are_upstreams(root: Path) -> None:
    golden = np.load(root / "tests" / "goldens" / "relative_loc_1x.npz")["lr_epochlen4_base0.2"]
    ours = schedule(**PUBLISHED, warmup_ends="at")
    assert ours.steps == len(golden) == 280
    np.testing.assert_allclose([ours.rate(step) for step in range(280)], golden, rtol=1e-12)


def test_the_rates_of_0x_reach_the_full_rate_one_step_later(root: Path) -> None:
    golden = np.load(root / "tests" / "goldens" / "relative_loc_1x.npz")["lr_epochlen4_base0.2"]
    ours = [schedule(**PUBLISHED).rate(step) for step in range(280)]
    assert ours[:20] == pytest.approx([0.2 * (1 - 0.9 * (1 - t / 20)) for t in range(20)], rel=1e-12)
    np.testing.assert_allclose(ours[20:], golden[20:], rtol=1e-12)
    assert ours[19] == pytest.approx(0.191)


def test_the_published_rates_at_the_full_length() -> None:
    ours = schedule(2503, **PUBLISHED)
    assert ours.steps == 175_210
    assert ours.warmup_steps == 12_515
    asked = [0, 12_514, 12_515, 30 * 2503 - 1, 30 * 2503, 50 * 2503 - 1, 50 * 2503]
    expected = [0.02, 0.2 * (1 - 0.9 / 12_515), 0.2, 0.2, 0.02, 0.02, 0.002]
    assert [ours.rate(step) for step in asked] == pytest.approx(expected, rel=1e-12)


def test_a_cosine_falls_from_the_end_of_the_warm_up_to_nothing() -> None:
    ours = schedule(images=64, rate=1e-3, decay="cosine", warmup_images=6400, warmup_start=0.01, epochs=250)
    assert (ours.steps, ours.warmup_steps) == (1000, 100)
    rates = [ours.rate(step) for step in range(1000)]
    assert rates[0] == pytest.approx(1e-5)
    assert rates[100] == max(rates) == pytest.approx(1e-3)
    assert rates[550] == pytest.approx(0.5e-3)
    assert 0 < rates[-1] < 1e-8
    assert all(a > b for a, b in itertools.pairwise(rates[100:]))
    assert rates[99] < rates[100]


def test_a_length_in_images_counts_a_short_last_step() -> None:
    options = ScheduleOptions(images=1000, warmup_images=65)
    ours = Schedule(options, steps_per_epoch=7, images_per_step=64, base_lr=1.0)
    assert (ours.steps, ours.warmup_steps) == (16, 2)
    assert ours.rate(15) == ours.rate(2) == 1.0


def test_without_a_warm_up_the_first_step_has_the_full_rate() -> None:
    for options in ({}, {"warmup_epochs": 0.0}, {"warmup_images": 0}):
        assert [schedule(epochs=2, **options).rate(step) for step in range(8)] == [0.2] * 8


def test_a_warm_up_of_one_step() -> None:
    assert schedule(epochs=1, warmup_images=512).rate(0) == pytest.approx(0.02)
    assert schedule(epochs=1, warmup_images=512, warmup_ends="at").rate(0) == 0.2
    assert schedule(epochs=1, warmup_images=512).rate(1) == 0.2


def test_a_milestone_inside_the_warm_up_lowers_the_rest_of_it() -> None:
    """As upstream: mmcv multiplies the warm-up with the regular rate, mmengine chains both schedulers."""
    ours = schedule(epochs=4, decay="steps", milestones=(1,), warmup_epochs=2.0)
    expected = [0.2 * (0.1 if t >= 4 else 1) * (1 - 0.9 * (1 - t / 8)) for t in range(8)]
    assert [ours.rate(step) for step in range(8)] == pytest.approx(expected)


@pytest.mark.parametrize("decay", ["constant", "cosine"])
def test_a_run_shorter_than_its_warm_up_says_so(decay: str) -> None:
    ours = schedule(epochs=2, warmup_epochs=5.0, decay=decay)
    assert [ours.rate(step) for step in range(8)] == pytest.approx([0.2 * (1 - 0.9 * (1 - t / 20)) for t in range(8)])
    (remark,) = ours.remarks()
    assert "8 steps end inside its warm-up of 20" in remark
    assert "0.083 of 0.2" in remark


def test_milestones_beyond_the_end_are_said() -> None:
    (remark,) = schedule(**{**PUBLISHED, "epochs": 40}).remarks()
    assert remark == "The run ends after 40 epochs, before the milestones at 50."
    assert schedule(**PUBLISHED).remarks() == ()


def test_beyond_the_last_step_the_rate_stays_and_before_the_first_there_is_none() -> None:
    ours = schedule(epochs=2, decay="cosine")
    assert ours.rate(100) == ours.rate(7) > 0
    with pytest.raises(InvalidInputError, match="no step -1"):
        ours.rate(-1)


def test_the_rate_depends_on_the_step_alone() -> None:
    ours = schedule(**PUBLISHED)
    forward = [ours.rate(step) for step in range(280)]
    assert [schedule(**PUBLISHED).rate(step) for step in reversed(range(280))] == forward[::-1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "exactly one"),
        ({"epochs": 1, "images": 1}, "exactly one"),
        ({"epochs": 0}, "1 or more"),
        ({"images": -5}, "1 or more"),
        ({"epochs": 1, "warmup_epochs": 1.0, "warmup_images": 1}, "give one of them"),
        ({"epochs": 1, "warmup_epochs": -1.0}, "not negative"),
        ({"epochs": 1, "warmup_start": 1.5}, "0 … 1"),
        ({"epochs": 1, "factor": 0.0}, "above 0"),
        ({"epochs": 9, "decay": "steps"}, "needs at least one"),
        ({"epochs": 9, "decay": "cosine", "milestones": (3,)}, "milestones belong to"),
        ({"epochs": 9, "decay": "steps", "milestones": (5, 3)}, "later than the one before"),
        ({"epochs": 9, "decay": "steps", "milestones": (3, 3)}, "later than the one before"),
        ({"epochs": 9, "decay": "steps", "milestones": (0,)}, "from 1 up"),
    ],
)
def test_contradictions_are_refused(options: dict, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        ScheduleOptions(**options)


@pytest.mark.parametrize(("steps", "images", "rate"), [(0, 1, 0.1), (1, 0, 0.1), (1, 1, 0.0), (1, 1, math.inf)])
def test_a_schedule_of_nothing_is_refused(steps: int, images: int, rate: float) -> None:
    with pytest.raises(InvalidInputError, match="accepted"):
        Schedule(ScheduleOptions(epochs=1), steps, images, rate)
