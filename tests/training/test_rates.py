"""Rates counted in steps, against the upstream hooks' own arithmetic."""

from __future__ import annotations

import pytest

from context_pred.errors import InvalidInputError
from context_pred.training.rates import PolyRates, StepRates


def test_a_warm_up_multiplies_and_milestones_fall_at_their_step() -> None:
    rates = StepRates(0.02, 24_000, (18_000, 22_000), warmup_steps=100)
    assert rates.rate(0) == pytest.approx(0.02 * 0.001)
    assert rates.rate(50) == pytest.approx(0.02 * (1 - 0.5 * 0.999))
    assert rates.rate(99) < rates.rate(100) == 0.02
    assert [rates.rate(step) for step in (17_999, 18_000, 21_999, 22_000, 23_999)] == pytest.approx(
        [0.02, 0.002, 0.002, 0.0002, 0.0002]
    )


def test_a_milestone_inside_the_warm_up_lowers_the_rest_of_it() -> None:
    rates = StepRates(1.0, 10, (2,), factor=0.5, warmup_steps=4, warmup_start=0.0)
    assert [rates.rate(step) for step in range(5)] == pytest.approx([0, 0.25, 0.25, 0.375, 0.5])


def test_poly_falls_to_its_least_as_mmcv_does() -> None:
    rates = PolyRates(0.01, 20_000, least=1e-4)
    assert rates.rate(0) == pytest.approx(0.01)
    assert rates.rate(10_000) == pytest.approx((0.01 - 1e-4) * 0.5**0.9 + 1e-4)
    assert 1e-4 < rates.rate(19_999) < 1.1e-4


@pytest.mark.parametrize(("base", "steps"), [(0.0, 10), (-1.0, 10), (0.1, 0)])
def test_no_rate_and_no_step(base: float, steps: int) -> None:
    for kind in (StepRates, PolyRates):
        with pytest.raises(InvalidInputError, match="accepted: above 0, and 1 or more"):
            kind(base, steps)
