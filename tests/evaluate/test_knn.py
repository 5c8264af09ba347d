"""The kNN protocol: the vote by hand, exact neighbours in any blocks, bounded memory."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import growth
import numpy as np
import pytest
import torch

from context_pred.errors import InvalidInputError
from context_pred.evaluate import features, knn
from context_pred.evaluate.labelled import DataOptions
from context_pred.evaluate.settings import bytes_of, part


def by_hand(bank: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs in double precision; Python's sort, by falling similarity and then by rising row."""
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (bank, queries)]
    similarity = unit[1].astype(np.float64) @ unit[0].astype(np.float64).T
    index = [sorted(range(len(bank)), key=lambda j: (-row[j].round(6), j))[:k] for row in similarity]
    return np.take_along_axis(similarity, np.array(index), 1), np.array(index)


def settings_of(given: dict[str, Any] | None) -> Any:
    return part("knn", knn.Settings, given, also=DataOptions)


@pytest.mark.parametrize("memory", [10**9, 12_000, 3_000])  # one block; several; a few rows each
@pytest.mark.parametrize("chunk", [1, 7, 500])
def test_neighbours_are_exact_whatever_the_blocks(memory: int, chunk: int) -> None:
    rng = np.random.default_rng(0)
    bank, queries = (rng.standard_normal((n, 3, 2)).astype(np.float32) for n in (83, 21))
    similarity, index = knn.nearest(bank, queries, 9, chunk=chunk, memory=memory)
    expected, rows = by_hand(bank.reshape(83, -1), queries.reshape(21, -1), 9)
    assert index.tolist() == rows.tolist()
    np.testing.assert_allclose(similarity, expected, atol=1e-6)


@pytest.mark.parametrize("memory", [10**9, 4_000])
def test_of_equal_similarities_the_lowest_row_comes_first(memory: int) -> None:
    bank = np.tile(np.eye(2, dtype=np.float32), (40, 1))  # rows 0, 2, 4 … and 1, 3, 5 … are equal
    _, index = knn.nearest(bank, np.array([[2, 0], [0, 3]], np.float32), 5, memory=memory)
    assert index.tolist() == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]


def test_blocks_of_rows_stay_within_the_memory_asked_for() -> None:
    for values in (10, 512, 9216):
        for memory in (10**6, 10**7, 10**9):
            rows, chunk = knn._blocks(10**6, 500, values, 200, memory)
            held = 4 * (rows * values + 2 * chunk * values + rows * chunk)
            assert held <= memory, (values, memory)
            assert rows >= 1
    with pytest.raises(InvalidInputError, match=r"memory = 1,000 bytes: rows of 512 values need [\d,]+ at least"):
        knn._blocks(100, 500, 512, 20, 1000)


def test_vote_by_hand() -> None:
    # Query 1: class 2 has one neighbour at .9, class 0 two at .8: 2·exp(.8/.07) > exp(.9/.07) is false.
    # Query 2: with temperature 1 the two win.
    similarity = torch.tensor([[0.9, 0.8, 0.8]])
    neighbors = torch.tensor([[2, 0, 0]])
    assert 2 * math.exp(0.8 / 0.07) < math.exp(0.9 / 0.07)
    assert 2 * math.exp(0.8) > math.exp(0.9)
    for temperature, winner in ((0.07, 2), (1.0, 0)):
        for label in range(3):
            first, _ = knn.accuracies(similarity, neighbors, np.array([label]), 3, temperature)
            assert first == (label == winner)


def test_top_5_counts_five_classes_with_votes_and_ties_go_to_the_lowest() -> None:
    similarity, neighbors = torch.tensor([[0.9, 0.8, 0.7, 0.7, 0.7, 0.7]]), torch.tensor([[7, 6, 5, 1, 3, 2]])
    hits = [knn.accuracies(similarity, neighbors, np.array([c]), 8, 0.07)[1] for c in range(8)]
    assert hits == [0, 1, 1, 1, 0, 0, 1, 1]  # 7 and 6, then 1, 2, 3 of the four that are equal


def test_a_low_temperature_does_not_overflow() -> None:
    similarity, neighbors = torch.tensor([[0.9, 0.8]]), torch.tensor([[1, 0]])
    assert knn.accuracies(similarity, neighbors, np.array([1]), 2, 1e-4) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("text", "count"), [("500MB", 5 * 10**8), ("2 GB", 2 * 10**9), ("1.5GiB", 3 * 2**29), ("1024", 1024)]
)
def test_sizes_of_memory(text: str, count: int) -> None:
    assert bytes_of(text) == count


@pytest.mark.parametrize("text", ["", "lots", "GB", "-1GB", "0", "1e999GB", "5XB"])
def test_no_sizes_of_memory(text: str) -> None:
    with pytest.raises(InvalidInputError, match="memory = "):
        bytes_of(text)


def test_every_number_of_the_protocol_is_the_published_one() -> None:
    settings = settings_of(None)
    assert (settings.k, settings.temperature, settings.size, settings.chunk) == ((10, 20, 100, 200), 0.07, 224, 500)
    assert settings.resampling == "pillow"


@pytest.mark.parametrize("given", ["[3, 5]", "3,5", "3, 5"])
def test_several_values_on_the_command_line(given: str) -> None:
    assert settings_of({"k": given}).k == (3, 5)


@pytest.mark.parametrize(
    "given", [{"k": "0"}, {"k": "1,1"}, {"temperature": "0"}, {"chunk": "0"}, {"size": "0"}, {"resampling": "pil"}]
)
def test_numbers_out_of_range(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(given))):
        settings_of(given)


@pytest.mark.parametrize("piece", [1, 100, 10**6])
def test_rows_are_read_whole_and_mapped_files_stay_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(features, "_PIECE", piece)
    rows = np.arange(60, dtype=np.float32).reshape(10, 2, 3)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    np.testing.assert_array_equal(features.read_rows(mapped, 0, 4), rows[:4].reshape(4, 6))
    np.testing.assert_array_equal(features.read_rows(mapped, 4, 99), rows[4:].reshape(6, 6))
    np.testing.assert_array_equal(mapped, rows)


@pytest.mark.slow
@pytest.mark.skipif(not growth.STATUS.exists(), reason="tells its memory another way")
def test_memory_stays_within_the_bound_with_features_of_four_times_it(tmp_path: Path) -> None:
    """In a process of its own: the resident memory beyond the result, while 400 MB of features are read."""
    code = """
import sys
import numpy as np, torch
sys.path.insert(0, sys.argv[2])
from context_pred.evaluate import knn
from growth import growth
torch.set_num_threads(1)
bank = np.load(sys.argv[1], mmap_mode="r")
knn.nearest(bank[:300], bank[:50], 5)
queries = np.array(bank[:200])
print(growth(lambda: knn.nearest(bank, queries, 5, memory=100 * 10**6)))
"""
    bank = np.lib.format.open_memmap(tmp_path / "bank.npy", "w+", np.float32, (100_000, 1000))
    bank[:] = np.random.default_rng(0).random((400, 1000), np.float32).repeat(250, 0)
    bank.flush()
    del bank
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "bank.npy"), str(Path(growth.__file__).parent)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(done.stdout) <= 100
