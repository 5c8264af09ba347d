"""`load_pretrained` of a cached ResNet-50, against hashing its file and copying its tensors once.

    python benchmarks/load_pretrained.py [--rounds 15]

A ResNet-50 with its pair layers (162 MB, random weights) is put into a temporary cache as if it had been downloaded
and converted. Both sides run in turn in one process, after the first import and with the file in the system's page
cache: `load_pretrained(NAME)`, which verifies and returns a model in eval mode; and `hashlib.file_digest` of the file
followed by a copy of every tensor from memory to memory. Prints the medians and the median of the ratios within a
round. The bar: at most 1.2.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from context_pred import load_pretrained, model_info
from context_pred.model import ContextPredictionModel
from context_pred.weights_file import read_weights
from context_pred.zoo.convert import write_model_folder

NAME = "resnet50_8xb64-steplr-70e"


def seconds(work: Callable[[], object]) -> float:
    """Return the wall-clock time of one call; what it returns is freed outside the measurement."""
    gc.collect()
    start = time.perf_counter()
    result = work()
    elapsed = time.perf_counter() - start
    del result
    return elapsed


def main() -> None:
    """Measure both sides alternately and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as cache:
        card = model_info(NAME)
        folder = Path(cache) / "context_pred" / card.name
        model = ContextPredictionModel.from_card(card)
        source = {"url": str(card.url), "sha256": f"{card.url_sha256_prefix:0<64}"}
        write_model_folder(folder, model.state_dict(), card, source)
        file = folder / "model.safetensors"
        tensors = read_weights(file)

        def hash_and_copy() -> object:
            with file.open("rb") as handle:
                hashlib.file_digest(handle, "sha256").hexdigest()
            return [tensor.clone() for tensor in tensors.values()]

        def load() -> object:
            return load_pretrained(NAME, cache_dir=cache)

        seconds(load), seconds(hash_and_copy)
        pairs = [(seconds(hash_and_copy), seconds(load)) for _ in range(rounds)]
    floor, ours = (1000 * statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"hash the file, copy its tensors once  {floor:7.1f} ms")
    print(f"load_pretrained, cached               {ours:7.1f} ms")
    print(f"ratio                                 {ratio:7.2f}  (bar: 1.2; median of {rounds} rounds)")


if __name__ == "__main__":
    main()
