"""The index of neighbours beside faiss' exact one, among dense features of photographs; alternating rounds of one run.

    OMP_NUM_THREADS=2 taskset -c 0,1 python benchmarks/neighbors.py photos/ --queries other-photos/

The vectors are every cell of the shipped model's ``feature4`` map (256 values) of photographs at several sizes, until
there are a million; the queries are cells of photographs that are not among them. Both sides search the same normalised
vectors with the same number of threads, single queries and a batch of 1,000. An answer counts when its similarity is
at least that of the exact tenth less 1e-5. Bars: recall@10 of .95 at 20 times the speed for single queries and 8 times
for the batch. The features are kept in ``--work`` for the next run.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from context_pred import load_pretrained
from context_pred.data import find_images, open_image
from context_pred.discover.index import NeighborIndex
from context_pred.discover.patches import network_of, normalized
from context_pred.extract.network import Network
from context_pred.geometry import scaled

LAYER, K, BATCH, SINGLE = "feature4", 10, 1000, 100


def cells(path: Path, network: Network, sides: list[int]) -> NDArray[np.float32]:
    """Every cell of the map of a photograph whose shorter side is so many px, (n, 256)."""
    image, found = open_image(path), []
    for side in sides:
        scale = side / min(image.size)
        pixels = scaled(image, (round(image.height * scale), round(image.width * scale)), 3)
        features = network(pixels[None])[LAYER][0]
        found.append(features.reshape(len(features), -1).T)
    return np.concatenate(found).astype(np.float32)


def features(folder: Path, count: int, out: Path, network: Network, sides: list[int], most: int) -> NDArray[np.float32]:
    """Cells of photographs in random order, at most so many of each, until there are enough; kept in ``out``."""
    if not out.exists():
        rng, paths = np.random.default_rng(0), find_images(folder)
        random.Random(0).shuffle(paths)
        draft = out.with_name(f"draft-{out.name}")
        rows = np.lib.format.open_memmap(draft, "w+", np.float32, (count, 256))
        at, start = 0, time.perf_counter()
        for used, path in enumerate(paths, 1):
            found = cells(path, network, sides)
            found = rng.permutation(found)[: min(most, count - at)]
            rows[at : at + len(found)] = found
            at += len(found)
            if at == count:
                print(f"{count:,} cells of {used:,} photographs: {time.perf_counter() - start:.0f} s", flush=True)
                break
        if at < count:
            raise SystemExit(f"{folder}: {at:,} cells; {count:,} are needed.")
        draft.rename(out)
    found = np.load(out, mmap_mode="r")
    if found.shape != (count, 256):
        raise SystemExit(f"{out} has {found.shape}; remove it, or give another --work.")
    return found


def own_memory() -> int:
    """Memory of this process that belongs to no file, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1000


def watched(call: Callable[[], Any]) -> tuple[Any, float, int]:
    """Return what a call gives, the seconds it takes, and by how many MB the memory grew at most."""
    before, most, done = own_memory(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.01):
            most = max(most, own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        return call(), time.perf_counter() - start, max(most, own_memory()) - before
    finally:
        done.set()
        watcher.join()


def seconds(call: Callable[[], Any]) -> float:
    """Time a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(index: NeighborIndex, exact: Any, queries: NDArray[np.float32], rounds: int, probes: list[int]) -> None:
    """Print recall, and the speed of both sides in alternating rounds."""
    tenth = exact.search(queries, K)[0][:, K - 1 :] - 1e-5
    few = queries[: SINGLE // 5]
    for number in probes:
        recall = float((index.search(queries, K, probes=number)[0] >= tenth).mean())
        times: dict[str, list[float]] = {"exact": [], "index": [], "exact, batch": [], "index, batch": []}
        for _ in range(rounds):
            times["exact"].append(seconds(lambda: [exact.search(q[None], K) for q in few]) / len(few))
            times["index"].append(
                seconds(lambda n=number: [index.search(q[None], K, probes=n) for q in queries[:SINGLE]]) / SINGLE
            )
            times["exact, batch"].append(seconds(lambda: exact.search(queries, K)))
            times["index, batch"].append(seconds(lambda n=number: index.search(queries, K, probes=n)))
        median = {name: 1000 * statistics.median(values) for name, values in times.items()}
        single, batch = (
            statistics.median(a / b for a, b in zip(times[f"exact{x}"], times[f"index{x}"], strict=True))
            for x in ("", ", batch")
        )
        print(
            f"probes {number}: recall@{K} {recall:.4f}; single {median['exact']:.1f} ms exact, "
            f"{median['index']:.2f} ms: {single:.0f} ×; batch of {len(queries):,} {median['exact, batch']:.0f} ms "
            f"exact, {median['index, batch']:.0f} ms: {batch:.1f} ×",
            flush=True,
        )


def load(folder: Path, queries: Path) -> None:
    """Load the index in a process of its own, and print what that takes."""
    query = np.load(queries)[:1]
    normalized(query)
    index, took, grown = watched(lambda: NeighborIndex.load(folder))
    _, first, more = watched(lambda: index.search(query, K))
    print(f"loaded in {took:.2f} s, first answer after {first:.2f} s; {grown + more} MB of memory, the rest mapped")


def main() -> None:
    """Read the arguments and run."""
    if sys.argv[1:2] == ["--load"]:
        load(Path(sys.argv[2]), Path(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="photographs to index")
    parser.add_argument("--queries", type=Path, required=True, help="other photographs, to ask with")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--sides", type=int, nargs="+", default=[128, 192, 256], help="shorter sides in px")
    parser.add_argument("--probes", type=int, nargs="+", default=[64], help="lists to look into; 64 is the default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=None, help="where features are kept")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.work) as temporary:
        work = arguments.work or Path(temporary)
        model = load_pretrained("resnet18_1xb64-coslr-300k")
        network = network_of(model, LAYER, "none", "cpu")
        vectors = features(arguments.photos, arguments.rows, work / f"{arguments.rows}.npy", network, arguments.sides,
                           10**9)  # fmt: skip
        asked = features(arguments.queries, BATCH, work / "queries.npy", network, arguments.sides, 4)
        print(
            f"{len(vectors):,} vectors of 256 values, {len(asked):,} queries, {torch.get_num_threads()} threads, "
            f"faiss {faiss.__version__} with {faiss.omp_get_max_threads()} threads"
        )
        folder = Path(temporary) / "index"
        built, took, grown = watched(lambda: NeighborIndex.of(vectors, out=folder))
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(f"{built}: built in {took:.0f} s, {grown} MB of memory at most; {size / 1e6:.0f} MB on disk")
        del built
        query = np.array(asked)
        subprocess.run([sys.executable, __file__, "--load", folder, work / "queries.npy"], check=True)
        index = NeighborIndex.load(folder)
        exact = faiss.IndexFlatIP(vectors.shape[1])
        for first in range(0, len(vectors), 65536):
            exact.add(normalized(vectors[first : first + 65536]))
        compare(index, exact, normalized(query), arguments.rounds, arguments.probes)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
