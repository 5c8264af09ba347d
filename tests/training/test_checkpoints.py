"""Checkpoints: whole or not at all, the last few kept, damaged ones passed over."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from context_pred.errors import InvalidInputError, StorageError, WeightsError
from context_pred.training.checkpoints import Checkpoints, read_checkpoint


def state(value: float, size: int = 4) -> dict[str, Any]:
    return {"model": {"weight": torch.full((size,), value)}}


def anything(_: dict[str, Any]) -> None:
    return None


@pytest.fixture
def little_room() -> Iterator[None]:
    """No file may grow beyond 64 kB: what a full disk does to one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)


def test_the_last_few_and_the_best_are_kept(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path / "new" / "folder", keep=2)
    for step in range(8, 13):
        checkpoints.save(step, state(step), best=step == 9)
    assert [path.name for path in checkpoints.numbered()] == ["step-00000011.pt", "step-00000012.pt"]
    assert read_checkpoint(checkpoints.folder / "best.pt")["step"] == 9
    found = checkpoints.latest(anything)
    assert found is not None
    assert (found["step"], found["model"]["weight"][0]) == (12, 12)


def test_none_yet(tmp_path: Path):
    assert Checkpoints(tmp_path / "nothing").latest(anything) is None


def test_a_full_disk_leaves_the_last_one_standing(tmp_path: Path, little_room: None):
    checkpoints = Checkpoints(tmp_path, keep=1)
    with pytest.raises(StorageError, match=r"Cannot write .*no earlier checkpoint\. .* begins at the start\.$"):
        checkpoints.save(1, state(1, size=2**16))
    checkpoints.save(1, state(1))
    with pytest.raises(StorageError, match=r"Cannot write .*step-00000002.pt.* stands: .*step-00000001.pt.* goes on"):
        checkpoints.save(2, state(2, size=2**16))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.pt"]
    found = checkpoints.latest(anything)
    assert found is not None
    assert found["step"] == 1


class Killed(BaseException):
    """SIGKILL, for a test."""


@pytest.mark.parametrize("writes", [0, 1])
def test_killed_between_the_best_and_the_numbered_one(
    tmp_path: Path, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No numbered checkpoint counts as best what ``best.pt`` does not hold; the step made again brings both."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {**state(1), "best": 0.2}, best=True)

    left = iter(range(writes))

    def killed(data: bytes, path: Path) -> None:
        if next(left, None) is None:
            raise Killed
        path.write_bytes(data)

    monkeypatch.setattr("context_pred.training.checkpoints.write_bytes", killed)
    with pytest.raises(Killed):
        checkpoints.save(2, {**state(2), "best": 0.4}, best=True)
    found = checkpoints.latest(anything)
    assert found is not None
    assert (found["step"], found["best"]) == (1, 0.2)
    assert found["best"] <= read_checkpoint(tmp_path / "best.pt")["best"]
    monkeypatch.undo()
    checkpoints.save(2, {**state(2), "best": 0.4}, best=True)
    assert read_checkpoint(tmp_path / "best.pt")["step"] == 2


def test_a_damaged_one_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1))
    last = checkpoints.save(2, state(2, size=1000))
    last.write_bytes(last.read_bytes()[:1500])
    found = checkpoints.latest(anything)
    assert found is not None
    assert found["step"] == 1
    assert "step-00000002.pt is damaged" in caplog.text
    assert "Going back to the one before it" in caplog.text


def test_where_none_can_be_read_nothing_is_promised(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    checkpoints = Checkpoints(tmp_path)
    only = checkpoints.save(1, state(1), best=True)
    only.write_bytes(b"")
    with pytest.raises(WeightsError, match=r"The only checkpoint.*cannot be read.*--overwrite.*--init .*best\.pt\.$"):
        checkpoints.latest(anything)
    assert caplog.messages == [f"{only} is empty."]
    (tmp_path / "step-00000002.pt").write_bytes(b"PK\x03\x04")
    checkpoints.best.unlink()
    with pytest.raises(WeightsError, match=r"None of the 2 checkpoints.* can be read.*--overwrite\.$"):
        checkpoints.latest(anything)


def test_flipped_bytes_in_a_tensor_are_noticed(tmp_path: Path):
    """torch.load by itself gives the wrong weights without a word."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1))
    path = checkpoints.save(2, state(2, size=10_000))
    flip(path, 20_000, 64)
    assert not torch.equal(torch.load(path, weights_only=True)["model"]["weight"], torch.full((10_000,), 2.0))
    with pytest.raises(WeightsError, match=r"step-00000002\.pt is damaged: Bad CRC-32"):
        read_checkpoint(path)
    found = checkpoints.latest(anything)
    assert found is not None
    assert found["step"] == 1


def test_whatever_is_flipped_it_is_damage_or_nothing(tmp_path: Path):
    path = Checkpoints(tmp_path).save(1, state(1, size=100))
    whole, noticed = path.read_bytes(), 0
    for offset in range(0, len(whole), 7):
        path.write_bytes(whole)
        flip(path, offset, 1)
        try:
            found = read_checkpoint(path)
        except WeightsError:
            noticed += 1
        else:
            assert torch.equal(found["model"]["weight"], torch.ones(100)), offset
    assert noticed > 100


def flip(path: Path, offset: int, count: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset : offset + count] = bytes(byte ^ 0xFF for byte in data[offset : offset + count])
    path.write_bytes(data)


def test_another_run_is_refused_not_passed_over(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1))

    def refuse(_: dict[str, Any]) -> None:
        raise InvalidInputError("another run")

    with pytest.raises(InvalidInputError, match="another run"):
        checkpoints.latest(refuse)


def test_what_a_killed_process_left_is_removed(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1))
    (tmp_path / ".step-00000002.pt.ab12").write_bytes(b"half")
    checkpoints.clean()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.pt"]


def test_a_file_that_would_run_code_is_not_run(tmp_path: Path):
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"format": 1, "step": 1, "evil": Evil()}, tmp_path / "step-00000001.pt")
    with pytest.raises(WeightsError, match="damaged"):
        read_checkpoint(tmp_path / "step-00000001.pt")
    assert not (tmp_path / "ran").exists()


def test_the_best_accuracy_is_what_best_pt_holds(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.best_accuracy() == 0.0
    checkpoints.save(3, {"best": 0.25}, best=True)
    assert checkpoints.best_accuracy() == 0.25
    checkpoints.best.write_bytes(b"half a file")
    assert checkpoints.best_accuracy() == 0.0
