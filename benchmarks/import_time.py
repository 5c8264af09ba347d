"""What `import context_pred` costs beyond Python's own start, in a fresh process each time.

    python benchmarks/import_time.py [--rounds 21]

Starts `python -c pass` and `python -c "import context_pred"` in turn and prints the median of both and of their
difference within a round. The bar: at most 50 ms.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time


def seconds(code: str) -> float:
    """Return the wall-clock time of one fresh Python process that runs `code`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def main() -> None:
    """Measure both sides alternately and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    rounds = parser.parse_args().rounds
    seconds("import context_pred")  # writes the byte code, warms the disk cache
    pairs = [(seconds("pass"), seconds("import context_pred")) for _ in range(rounds)]
    bare, package = (1000 * statistics.median(side) for side in zip(*pairs, strict=True))
    beyond = 1000 * statistics.median(b - a for a, b in pairs)
    print(f"python -c pass                   {bare:7.1f} ms")
    print(f"python -c 'import context_pred'  {package:7.1f} ms")
    print(f"beyond Python's start            {beyond:7.1f} ms  (bar: 50 ms; median of {rounds} rounds)")


if __name__ == "__main__":
    main()
