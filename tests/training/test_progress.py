"""The bar, the log, TensorBoard, and the watch over the loss."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from context_pred.errors import ContextPredError, StorageError, TrainingDivergedError
from context_pred.pretext import PretextResult, Tally
from context_pred.training.progress import CHANCE_LOSS, LossWatch, Progress, read_log


def rows(folder: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in (folder / "log.jsonl").read_text().splitlines()]


def begun(folder: Path, start: int = 0, **options: Any) -> Progress:
    options = {"total_steps": 40, "images_per_step": 64, "bar": False, "tensorboard": False, "every": 5, **options}
    return Progress(folder, start_step=start, **options)


def take(progress: Progress, first: int, last: int, **other: Any) -> None:
    """Record steps first … last, with a loss and an accuracy that tell the step."""
    for step in range(first, last + 1):
        values = {"loss": 2 - step / 100, "accuracy": step / 100, "images": 64, "waited_seconds": 0.0, **other}
        progress.step(step, step / 10, 0.1 / step, **values)


@pytest.fixture
def result() -> PretextResult:
    tally = Tally()
    generator = torch.Generator().manual_seed(0)
    position = torch.randint(8, (80,), generator=generator)
    logits = torch.randn(80, 8, generator=generator) + 2 * torch.eye(8)[position]
    tally.add(logits, position, torch.arange(10).repeat_interleave(8))
    return tally.result()


class TestLog:
    def test_a_row_has_the_means_since_the_last_one(self, tmp_path: Path) -> None:
        with begun(tmp_path) as progress:
            take(progress, 1, 12)
            assert [row["step"] for row in rows(tmp_path)] == [5, 10]  # written out before the end
        found = rows(tmp_path)
        assert [row["step"] for row in found] == [5, 10, 12]
        assert [row["loss"] for row in found] == pytest.approx([1.97, 1.92, 1.885])
        assert [row["accuracy"] for row in found] == pytest.approx([0.03, 0.08, 0.115])
        assert [row["images"] for row in found] == [320, 640, 768]
        assert [row["epoch"] for row in found] == pytest.approx([0.5, 1.0, 1.2])
        assert [row["lr"] for row in found] == pytest.approx([0.02, 0.01, 0.1 / 12])
        assert set(found[0]) == {
            "step", "epoch", "images", "seconds", "lr", "loss", "accuracy", "images_per_second", "waiting",
        }  # fmt: skip

    def test_a_short_last_batch_counts_by_its_images(self, tmp_path: Path) -> None:
        with begun(tmp_path) as progress:
            progress.step(1, 0.5, 0.1, 2.0, 0.25, 48, 0.0)
            progress.step(2, 1.0, 0.1, 1.0, 0.5, 16, 0.0)
        (row,) = rows(tmp_path)
        assert (row["loss"], row["accuracy"], row["images"]) == (1.75, 0.3125, 64)

    def test_tensors_and_numbers_give_the_same(self, tmp_path: Path) -> None:
        for name, kind in (("numbers", float), ("tensors", lambda x: torch.tensor(x, requires_grad=True))):
            make: Callable[[float], Any] = kind
            with begun(tmp_path / name) as progress:
                for step in range(1, 8):
                    progress.step(step, 0.0, 0.1, make(2.0 - step / 16), make(step / 16), 64, 0.0)
        for one, other in zip(rows(tmp_path / "numbers"), rows(tmp_path / "tensors"), strict=True):
            assert (one["loss"], one["accuracy"]) == (other["loss"], other["accuracy"])

    def test_an_overflow_is_no_number_of_json(self, tmp_path: Path) -> None:
        with begun(tmp_path) as progress:
            take(progress, 1, 4)
            progress.step(5, 0.5, 0.1, math.inf, 0.1, 64, 0.0)
            for step in range(6, 11):
                progress.step(step, 0.5, 0.1, math.nan, 0.1, 64, 0.0)
        first, second = rows(tmp_path)
        assert (first["loss"], first["images"]) == (pytest.approx(1.975), 320)
        assert (second["loss"], second["accuracy"]) == (None, None)

    def test_speed_leaves_the_evaluation_out_and_the_time_does_not(self, tmp_path: Path, result: PretextResult) -> None:
        with begun(tmp_path) as progress:
            for step in range(1, 5):
                time.sleep(0.02)
                take(progress, step, step, waited_seconds=0.01)
            time.sleep(0.5)
            progress.held_out(4, result)
            time.sleep(0.02)
            take(progress, 5, 5)
        before, after = rows(tmp_path)
        assert before["seconds"] > 0.5
        for row, images in ((before, 256), (after, 64)):
            assert images / row["images_per_second"] < 0.4
        assert 0.2 < before["waiting"] <= 0.5
        assert after["waiting"] == 0

    def test_an_evaluation_is_in_its_row(self, tmp_path: Path, result: PretextResult) -> None:
        with begun(tmp_path) as progress:
            progress.held_out(0, result)
            take(progress, 1, 5)
            progress.held_out(5, result)
            take(progress, 6, 7)
            progress.held_out(7, result)
        found = rows(tmp_path)
        assert [(row["step"], "loss" in row, "held_out" in row) for row in found] == [
            (0, False, True),
            (5, True, False),
            (5, False, True),
            (7, True, True),
        ]
        assert PretextResult.from_dict(found[-1]["held_out"]) == result

    def test_closing_twice_writes_once(self, tmp_path: Path) -> None:
        progress = begun(tmp_path)
        take(progress, 1, 3)
        progress.close()
        progress.close()
        assert [row["step"] for row in rows(tmp_path)] == [3]

    def test_an_error_in_the_loop_does_not_lose_the_last_steps(self, tmp_path: Path) -> None:
        def fail() -> None:
            with begun(tmp_path) as progress:
                take(progress, 1, 3)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert [row["step"] for row in rows(tmp_path)] == [3]

    def test_a_folder_that_cannot_be_written_to_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError, match=r"log\.jsonl cannot be written"):
            begun(tmp_path / "file")


class TestResume:
    def test_what_a_killed_run_wrote_beyond_its_checkpoint_is_dropped(self, tmp_path: Path) -> None:
        with begun(tmp_path) as progress:
            take(progress, 1, 20)
        kept = rows(tmp_path)[:2]
        with (tmp_path / "log.jsonl").open("a") as file:
            file.write('{"step": 25, "epo')  # torn by SIGKILL
        with begun(tmp_path, 10) as progress:
            assert rows(tmp_path) == kept
            assert progress.images == 640
            assert progress.seconds >= kept[-1]["seconds"]
            time.sleep(0.01)
            take(progress, 11, 15)
        found = rows(tmp_path)
        assert [(row["step"], row["images"]) for row in found] == [(5, 320), (10, 640), (15, 960)]
        assert found[-1]["loss"] == pytest.approx(2 - 0.13)
        assert found[-1]["seconds"] > kept[-1]["seconds"]
        assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]

    def test_steps_between_the_last_row_and_the_checkpoint_are_counted(self, tmp_path: Path) -> None:
        with begun(tmp_path) as progress:
            take(progress, 1, 5)
        with begun(tmp_path, 8) as progress:
            assert progress.images == 8 * 64

    def test_a_lost_log_begins_with_the_images_of_the_steps(self, tmp_path: Path) -> None:
        with begun(tmp_path, 10) as progress:
            take(progress, 11, 11)
        (row,) = rows(tmp_path)
        assert (row["step"], row["images"]) == (11, 11 * 64)

    def test_from_step_0_the_log_begins_anew(self, tmp_path: Path, result: PretextResult) -> None:
        with begun(tmp_path) as progress:
            progress.held_out(0, result)
            take(progress, 1, 5)
        begun(tmp_path).close()
        assert rows(tmp_path) == []

    @pytest.mark.parametrize(
        "text", ["", "\n\n", "{}\n[1]\nnull\n", '{"step": "5"}\n', "\x00\x00\x00", '{"step": 5', "\udcff\n"]
    )
    def test_lines_that_are_no_rows_are_passed_over(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "log.jsonl"
        path.write_bytes(b'{"step": 3}\n' + text.encode("utf-8", "surrogateescape"))
        assert read_log(path) == [{"step": 3}]

    def test_no_log_has_no_rows(self, tmp_path: Path) -> None:
        assert read_log(tmp_path / "log.jsonl") == []


class TestBar:
    def test_it_shows_loss_accuracy_and_speed(
        self, tmp_path: Path, result: PretextResult, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with begun(tmp_path, 10, bar=True) as progress:
            for step in range(11, 41):
                time.sleep(0.001)
                take(progress, step, step)
            progress.held_out(40, result)
        out, err = capsys.readouterr()
        assert not out
        last = err.replace("\r", "\n").strip().splitlines()[-1]
        # The five last steps: losses 1.64 … 1.60, accuracies 36 … 40 %.
        for text in ("epoch 4.00", "100%", "40/40", "loss 1.620", "accuracy 38.0 %", "images/s"):
            assert text in last
        assert f"held-out {100 * result.accuracy:.1f} %" in last

    def test_off_it_says_nothing(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with begun(tmp_path) as progress:
            take(progress, 1, 6)
        assert capsys.readouterr() == ("", "")


class TestTensorBoard:
    def test_without_the_package_there_is_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
        with begun(tmp_path, tensorboard=True) as progress:
            take(progress, 1, 5)
        assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]

    def test_events_beyond_the_checkpoint_are_purged(self, tmp_path: Path, result: PretextResult) -> None:
        pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        with begun(tmp_path, tensorboard=True) as progress:
            take(progress, 1, 20)
        with begun(tmp_path, 10, tensorboard=True) as progress:
            take(progress, 11, 15)
            progress.held_out(15, result)
        events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
        assert [event.step for event in events.Scalars("training/loss")] == [5, 10, 15]
        assert [event.value for event in events.Scalars("training/accuracy")] == pytest.approx([0.03, 0.08, 0.13])
        (event,) = events.Scalars("held_out/accuracy")
        assert event.value == pytest.approx(result.accuracy)
        assert {"training/learning_rate", "speed/images_per_second", "speed/waiting"} <= set(events.Tags()["scalars"])


class TestLossWatch:
    def see(self, watch: LossWatch, losses: list[float], first: int = 1, **options: Any) -> None:
        for step, loss in enumerate(losses, first):
            watch.check(step, 0.25, loss, **options)

    @pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
    def test_no_number_stops_at_once_and_says_what_to_try(self, loss: float) -> None:
        watch = LossWatch(warmup_steps=1000)
        self.see(watch, [2.08, 2.07, 2.06, 2.05, 2.04, 2.03])
        with pytest.raises(TrainingDivergedError) as caught:
            watch.check(7, 0.25, loss)
        text = str(caught.value)
        for part in ("step 7", "learning rate 0.25", f"the loss is {loss}", "2.07, 2.06, 2.05, 2.04, 2.03"):
            assert part in text
        for cure in ("lower learning rate", "longer warm-up", "bfloat16 or float32", "damaged or flat images"):
            assert cure in text
        assert isinstance(caught.value, ContextPredError)
        assert isinstance(caught.value, RuntimeError)

    def test_the_first_step_can_be_the_bad_one(self) -> None:
        with pytest.raises(TrainingDivergedError, match=r"step 1 .*no good loss before"):
            LossWatch().check(1, 0.1, math.nan)

    def test_a_loss_that_stays_far_above_chance_stops(self) -> None:
        watch = LossWatch()
        self.see(watch, [2.08] * 50 + [9.0] * 25)
        with pytest.raises(TrainingDivergedError, match=r"step 76 .* median loss of the last 50 steps is 9 nats"):
            watch.check(76, 0.2, 9.0)  # the 26th: more than half of fifty

    def test_growing_slowly_is_seen_too(self) -> None:
        watch = LossWatch()
        with pytest.raises(TrainingDivergedError, match=r"step 1[0-9][0-9] "):
            self.see(watch, [2.0 + 0.01 * step for step in range(1000)])

    @pytest.mark.parametrize(
        ("losses", "why"),
        [
            ([CHANCE_LOSS + 0.05 * math.sin(step) for step in range(500)], "nothing learned yet"),
            ([2.0] * 100 + [500.0] * 20 + [2.2] * 100, "a spike of twenty steps"),
            ([[1.8, 40.0, 1.9][step % 3] for step in range(500)], "a spike every third step"),
            ([12.0] * 500, "weights that never fitted"),
            ([CHANCE_LOSS + 0.99] * 500, "bad, but within a nat of chance"),
            ([0.0] * 500, "perfect"),
        ],
    )
    def test_what_is_no_divergence(self, losses: list[float], why: str) -> None:
        self.see(LossWatch(), losses)

    def test_the_warm_up_may_be_wild(self) -> None:
        watch = LossWatch(warmup_steps=200)
        self.see(watch, [2.0] + [50.0] * 199)
        self.see(watch, [50.0] * 49, first=201)
        with pytest.raises(TrainingDivergedError, match="step 250 "):
            watch.check(250, 0.2, 50.0)

    def test_skipped_steps_are_the_scaler_at_work_unless_it_never_ends(self) -> None:
        watch = LossWatch()
        self.see(watch, [2.0] * 60)
        for start in (100, 200):
            self.see(watch, [math.inf] * 49, first=start, skipped=True)
            watch.check(start + 49, 0.25, 2.0)
        self.see(watch, [math.nan] * 49, first=300, skipped=True)
        with pytest.raises(TrainingDivergedError, match="float16 overflowed in 50 steps running"):
            watch.check(349, 0.25, math.nan, skipped=True)

    @pytest.mark.parametrize(("rate", "stops"), [(0.05, False), (200.0, True)])
    def test_real_descent(self, rate: float, stops: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        inputs, wanted = torch.randn(64, 16, generator=generator), torch.randint(8, (64,), generator=generator)
        layer = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Tanh(), torch.nn.Linear(16, 8))
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        optimizer = torch.optim.SGD(layer.parameters(), rate)
        watch = LossWatch()

        def train() -> None:
            for step in range(1, 301):
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(layer(inputs), wanted)
                watch.check(step, rate, loss.item())
                loss.backward()
                optimizer.step()

        if stops:
            with pytest.raises(TrainingDivergedError, match="learning rate 200"):
                train()
        else:
            train()
