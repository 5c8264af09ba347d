"""The pretext task in figures: the sums against NumPy, the interval against simulation, and what measuring leaves."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from context_pred import GridPatchSampler, RandomPairSampler
from context_pred.errors import InvalidInputError, UnknownNameError
from context_pred.patches import PatchDraw, PatchPairs
from context_pred.pretext import PretextResult, Tally, interval, measure, pretext_loss, student_t, tallied


def some_predictions(images: int = 30, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, positions and images; image i has 1 … 12 pairs, in no order."""
    g = torch.Generator().manual_seed(seed)
    image = torch.arange(images).repeat_interleave(torch.randint(1, 13, (images,), generator=g))
    image = image[torch.randperm(len(image), generator=g)]
    position = torch.randint(8, image.shape, generator=g)
    logits = torch.randn(len(image), 8, generator=g) + 1.5 * nn.functional.one_hot(position, 8) * (image % 3)[:, None]
    return logits, position, image


class TestLoss:
    def test_is_the_negative_log_of_the_softmax(self) -> None:
        logits, position, _ = some_predictions()
        expected = -torch.log_softmax(logits, 1)[torch.arange(len(position)), position]
        torch.testing.assert_close(pretext_loss(logits, position), expected.mean())
        torch.testing.assert_close(pretext_loss(logits, position, "sum"), expected.sum())
        torch.testing.assert_close(pretext_loss(logits, position, "none"), expected)

    @pytest.mark.parametrize(
        ("given", "computed"),
        [
            (torch.bfloat16, torch.float32),
            (torch.float16, torch.float32),
            (torch.float32, torch.float32),
            (torch.float64, torch.float64),
        ],
    )
    def test_is_never_computed_in_half_precision(self, given: torch.dtype, computed: torch.dtype) -> None:
        assert pretext_loss(torch.zeros(3, 8, dtype=given), torch.tensor([0, 1, 7])).dtype == computed

    def test_another_reduction_is_named(self) -> None:
        with pytest.raises(UnknownNameError, match="Did you mean 'mean'"):
            pretext_loss(torch.zeros(1, 8), torch.zeros(1, dtype=torch.int64), "means")  # type: ignore[arg-type]


class TestTally:
    def test_counts_as_numpy_does(self) -> None:
        logits, position, image = some_predictions()
        tally = Tally()
        tally.add(logits, position, image)
        result = tally.result()
        predicted = logits.argmax(1).numpy()
        hit = predicted == position.numpy()
        assert (result.pairs, result.images, len(tally)) == (len(hit), 30, len(hit))
        assert result.accuracy == pytest.approx(hit.mean())
        assert result.loss == pytest.approx(nn.functional.cross_entropy(logits, position).item())
        confusion = np.zeros((8, 8), int)
        np.add.at(confusion, (position.numpy(), predicted), 1)
        assert np.array_equal(result.confusion, confusion)
        for k in range(8):
            assert result.by_position[k] == pytest.approx(hit[position.numpy() == k].mean())

    def test_interval_is_the_ratio_estimators(self) -> None:
        logits, position, image = some_predictions(400)
        tally = Tally()
        tally.add(logits, position, image)
        result = tally.result()
        hit = (logits.argmax(1) == position).numpy()
        h, m = (np.bincount(image.numpy(), weights) for weights in (hit, np.ones(len(hit))))
        p, n = h.sum() / m.sum(), len(h)
        half = 1.966 * math.sqrt(n / (n - 1) * ((h - p * m) ** 2).sum()) / m.sum()
        # Wilson's interval is not quite symmetric; with 400 images that is the third digit.
        assert result.low == pytest.approx(p - half, abs=0.03 * half)
        assert result.high == pytest.approx(p + half, abs=0.03 * half)

    def test_parts_and_processes_add_up(self) -> None:
        logits, position, image = some_predictions(40)
        whole, first, second = Tally(), Tally(), Tally()
        whole.add(logits, position, image)
        for k in range(40):
            mine = image == k
            (first if k % 3 else second).add(logits[mine], position[mine], image[mine] * 0)
        merged = Tally()
        merged.load_state(first.state() + second.state())
        torch.testing.assert_close(merged.state(), whole.state())
        assert merged.result().low == pytest.approx(whole.result().low)
        before = first.state()
        before += 1
        assert not torch.equal(before, first.state())

    def test_positions_never_asked_have_no_accuracy(self) -> None:
        tally = Tally()
        tally.add(torch.eye(8)[:3], torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]))
        tally.add(torch.empty(0, 8), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
        result = tally.result()
        assert result.by_position[:2] == (1.0, 0.5)
        assert all(map(math.isnan, result.by_position[2:]))
        again = PretextResult.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False)))
        assert again.to_dict() == result.to_dict()
        assert again.confusion == result.confusion
        assert "66.7% (" in str(result)
        assert "of 3 pairs of 2 images" in str(result)

    def test_misuse_is_told(self) -> None:
        tally = Tally()
        with pytest.raises(InvalidInputError, match="No pair"):
            tally.result()
        with pytest.raises(InvalidInputError, match=r"\(3, 8\), \(2,\) and \(3,\)"):
            tally.add(torch.zeros(3, 8), torch.zeros(2, dtype=torch.int64), torch.zeros(3, dtype=torch.int64))
        with pytest.raises(InvalidInputError, match="69 numbers"):
            tally.load_state(torch.zeros(5))


class TestInterval:
    def test_covers_the_truth_where_images_differ(self) -> None:
        """Images of differing hit rates, mean .4, 40 pairs each: 95 % of the intervals hold the .4."""
        rng = np.random.default_rng(0)
        covered, naive = 0, 0
        for _ in range(1000):
            h = rng.binomial(40, rng.beta(2, 3, 15)).astype(float)
            m = np.full(15, 40.0)
            low, high = interval(h.sum(), m.sum(), 15, h @ h, h @ m, m @ m)
            covered += low <= 0.4 <= high
            p = h.sum() / m.sum()
            naive += abs(p - 0.4) <= 1.96 * math.sqrt(p * (1 - p) / m.sum())
        assert 930 <= covered <= 975
        assert naive < 700  # what pairs taken for independent would promise

    def test_one_image_promises_next_to_nothing(self) -> None:
        low, high = interval(20, 40, 1, 400, 800, 1600)
        assert low < 0.1
        assert high > 0.9

    def test_nothing_but_hits(self) -> None:
        low, high = interval(400, 400, 10, 16000, 16000, 16000)
        assert 0.5 < low < 0.8
        assert high == 1.0

    def test_images_that_agree_by_chance_count_as_independent_pairs(self) -> None:
        low, high = interval(80, 160, 4, 1600, 3200, 6400)
        assert 0.5 - low == pytest.approx(3.182 * math.sqrt(0.25 / 160), rel=0.05)
        assert high - 0.5 == pytest.approx(0.5 - low)

    @pytest.mark.parametrize(
        ("freedom", "t"), [(2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (10**6, 1.960)]
    )
    def test_students_t_is_that_of_the_tables(self, freedom: int, t: float) -> None:
        assert student_t(freedom) == pytest.approx(t, rel=0.01)


@dataclass(frozen=True)
class Images:
    images: Tensor | list[Tensor]
    draw: PatchDraw


class Brightness(nn.Module):
    """Tells the position by how bright the neighbour is; with dropout, so that training mode gives other figures."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 8)
        self.drop = nn.Dropout(0.9)
        self.frozen = nn.BatchNorm1d(1).eval()
        nn.init.normal_(self.line.weight, generator=torch.Generator().manual_seed(0))
        nn.init.zeros_(self.line.bias)
        self.seen: list[Tensor] = []

    def forward(self, pairs: PatchPairs) -> Tensor:
        self.seen.append(pairs.patches)
        bright = pairs.patches.mean((1, 2, 3))[pairs.neighbor][:, None]
        out: Tensor = self.drop(self.line(bright))
        return out


def batches(sampler: GridPatchSampler | RandomPairSampler, *, lists: bool = False) -> list[Images]:
    found = []
    for k in range(3):
        g = torch.Generator().manual_seed(k)
        images = torch.randint(0, 256, (4, 3, 64, 80), generator=g, dtype=torch.uint8)
        draw = sampler.draw([(64, 80)] * 4, g)
        found.append(Images(list(images) if lists else images, draw))
    return found


class TestMeasure:
    grid = GridPatchSampler(crop=60, patch=16)
    pairs = RandomPairSampler(patch=16, gap=8, jitter=2)

    def test_is_the_accuracy_of_the_model_in_eval_mode(self) -> None:
        model = Brightness().train()
        model.frozen.eval()
        result = measure(model, batches(self.grid), self.grid)
        assert [module.training for module in model.modules()] == [True, True, True, False]
        with torch.no_grad():
            hits = 0
            for batch in batches(self.grid):
                pairs = self.grid.cut(batch.images, batch.draw)
                hits += int((model.eval()(pairs).argmax(1) == pairs.position).sum())
        assert (result.pairs, result.images) == (96, 12)
        assert result.accuracy == hits / 96

    def test_noise_is_the_same_every_time(self) -> None:
        found = [measure(Brightness(), batches(self.pairs, lists=lists), self.pairs) for lists in (True, False)]
        assert found[0] == found[1]
        models = [Brightness(), Brightness()]
        for model, seed in zip(models, (0, 1), strict=True):
            measure(model, batches(self.pairs), self.pairs, seed=seed)
        assert not torch.equal(models[0].seen[0], models[1].seen[0])

    def test_modes_return_after_an_error(self) -> None:
        model = Brightness().train()
        with pytest.raises(InvalidInputError, match="not a list"):
            measure(model, batches(self.grid, lists=True), self.grid)
        assert model.training
        assert model.drop.training

    @pytest.mark.parametrize("precision", ["bfloat16", "float16", "float32", "float64"])
    def test_precisions(self, precision: str) -> None:
        model = Brightness().to(torch.float64 if precision == "float64" else torch.float32)
        tally = tallied(model, batches(self.grid), self.grid, precision=precision)
        plain = tallied(Brightness(), batches(self.grid), self.grid)
        assert len(tally) == len(plain) == 96
        assert tally.result().loss == pytest.approx(plain.result().loss, rel=1e-2)

    def test_misuse_is_told(self) -> None:
        with pytest.raises(UnknownNameError, match="bfloat16"):
            measure(Brightness(), batches(self.grid), self.grid, precision="bf16")
        with pytest.raises(InvalidInputError, match="No pair"):
            measure(Brightness(), [], self.grid)
