"""The search among vectors: exact against NumPy and faiss, the inverted file against the exact search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from context_pred.discover import search
from context_pred.discover.patches import normalized
from context_pred.errors import InvalidInputError


def clustered(rows: int, width: int = 24, seed: int = 0) -> np.ndarray:
    """Vectors like features: a few directions, with noise around each; normalised."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(99).normal(size=(40, width))
    return normalized(centers[rng.integers(40, size=rows)] + 1.5 * rng.normal(size=(rows, width)))


class TestNearest:
    bank = normalized(np.random.RandomState(0).randn(40, 6, 2, 2) + 3)
    queries = normalized(np.random.RandomState(1).randn(5, 6, 2, 2) + 3)

    @pytest.mark.parametrize("blocks", [(1024, 8192), (3, 7), (1, 1)])
    @pytest.mark.parametrize("k", [1, 4, 29])
    def test_is_numpys_correlation(self, monkeypatch: pytest.MonkeyPatch, blocks: tuple[int, int], k: int) -> None:
        monkeypatch.setattr(search, "_QUERIES", blocks[0])
        monkeypatch.setattr(search, "_BLOCK", blocks[1])
        correlation = np.corrcoef(self.queries.astype(np.float64), self.bank.astype(np.float64))[:5, 5:]
        order = np.argsort(-correlation, axis=1)[:, :k]
        scores, rows = search.nearest(self.queries, self.bank, k)
        assert rows.tolist() == order.tolist()
        np.testing.assert_allclose(scores, np.take_along_axis(correlation, order, 1), rtol=0, atol=1e-6)

    def test_is_faiss_exact_index(self) -> None:
        faiss = pytest.importorskip("faiss")
        bank, queries = clustered(9000), clustered(30, seed=1)
        index = faiss.IndexFlatIP(bank.shape[1])
        index.add(bank)
        expected, which = index.search(queries, 10)
        scores, rows = search.nearest(queries, bank, 10)
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)
        assert (rows == which).mean() > 0.99  # but for ties

    def test_fewer_rows_than_asked_for(self) -> None:
        scores, rows = search.nearest(self.queries, self.bank[:3], 5)
        assert (rows[:, 3:] == -1).all()
        assert np.isneginf(scores[:, 3:]).all()
        assert (np.sort(rows[:, :3], 1) == [0, 1, 2]).all()

    def test_brightness_and_contrast_of_a_vector_do_not_matter(self) -> None:
        raw = np.random.RandomState(2).randn(4, 9)
        scores, rows = search.nearest(normalized(5 * raw + 7), normalized(raw), 1)
        assert rows[:, 0].tolist() == [0, 1, 2, 3]
        np.testing.assert_allclose(scores, 1, atol=1e-6)

    def test_constant_vectors_correlate_with_nothing(self) -> None:
        ones = normalized(np.ones((3, 4)))
        assert search.nearest(ones, ones, 2)[0].tolist() == [[0.0, 0.0]] * 3


def test_best_of_groups() -> None:
    bank, query = clustered(50), clustered(1, seed=3)[0]
    starts = np.array([0, 7, 7, 20, 50])
    scores, rows = search.best_of_groups(query, bank, starts)
    assert rows[1] == -1
    assert np.isneginf(scores[1])
    for group in (0, 2, 3):
        first, last = starts[group], starts[group + 1]
        assert rows[group] == first + np.argmax(bank[first:last] @ query)
        assert abs(scores[group] - (bank[first:last] @ query).max()) < 1e-6


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, search.Codes]:
    pytest.importorskip("faiss")
    path = tmp_path_factory.mktemp("codes") / "codes.faiss"
    bank = clustered(6000)
    search.write_codes(bank, path)
    return bank, search.Codes(path, 6000)


class TestCodes:
    def test_finds_nearly_all_with_exact_scores(self, coded: tuple[np.ndarray, search.Codes]) -> None:
        bank, codes = coded
        queries = clustered(200, seed=1)
        exact, _ = search.nearest(queries, bank, 10)
        scores, rows = codes.search(queries, bank, 10, probes=codes.lists // 4)
        assert (scores >= exact[:, 9:] - 1e-5).mean() >= 0.95
        np.testing.assert_allclose(scores, (bank[rows] * queries[:, None]).sum(2), atol=1e-6)
        assert (np.diff(scores, axis=1) <= 0).all()

    def test_more_probes_find_more(self, coded: tuple[np.ndarray, search.Codes]) -> None:
        bank, codes = coded
        queries = clustered(200, seed=1)
        exact, _ = search.nearest(queries, bank, 10)
        found = [(codes.search(queries, bank, 10, probes)[0] >= exact[:, 9:] - 1e-5).mean() for probes in (1, 8, 10**6)]
        assert found[0] < found[1] < found[2]
        assert found[2] > 0.99

    @pytest.mark.parametrize("width", [1, 7, 600])
    def test_vectors_of_any_length(self, tmp_path: Path, width: int) -> None:
        pytest.importorskip("faiss")
        bank = clustered(1500, width) if width > 1 else np.ones((1500, 1), np.float32)
        search.write_codes(bank, tmp_path / "codes")
        scores, _ = search.Codes(tmp_path / "codes", 1500).search(bank[:20], bank, 1, 10**6)
        np.testing.assert_allclose(scores[:, 0], 1, atol=1e-5)

    def test_damaged_and_foreign_files(self, tmp_path: Path) -> None:
        pytest.importorskip("faiss")
        search.write_codes(clustered(1100), tmp_path / "codes")
        with pytest.raises(InvalidInputError, match="1,100 rows"):
            search.Codes(tmp_path / "codes", 1000)
        data = (tmp_path / "codes").read_bytes()
        for bad in (data[:2000], data[:-1], b"no index", b""):
            (tmp_path / "bad").write_bytes(bad)
            with pytest.raises(InvalidInputError, match="damaged"):
                search.Codes(tmp_path / "bad", 1100)

    def test_without_faiss_the_extra_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "faiss", None)
        with pytest.raises(InvalidInputError, match=r'pip install "context-pred\[discover\]"'):
            search.write_codes(clustered(1100), tmp_path / "codes")
