"""Measures the bottleneck store: vectors written a second, its size, finding missing keys, loading.

    python benchmarks/store.py --count 1000000 --width 2048    (needs 17 GB of disk)

The vectors are synthetic. Writing is what the driver of a run does with vectors that come from
wherever they were computed: `put` each, a commit every two seconds. `--dir` says where.
"""

import argparse
import hashlib
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
DIFFERENT = 1_000  # vectors, which are stored in turn


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1_000_000, help="vectors")
    parser.add_argument("--width", type=int, default=2048, help="numbers in each")
    parser.add_argument("--dir", help="where the store goes for the time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="store-", dir=options.dir) as folder:
        measure(Path(folder), options.count, options.width)


def measure(folder, count, width):
    """Fills a store, opens it again and reads it, and prints how long each took."""
    from retraining.bottlenecks.store import BottleneckStore

    # Keys are hashes: their order is not that in which they are stored.
    keys = [hashlib.sha1(str(number).encode()).hexdigest() for number in range(count)]
    vectors = np.random.default_rng(0).random((DIFFERENT, width), dtype=np.float32)
    started = time.perf_counter()
    with BottleneckStore(folder, "synthetic", "0" * 40, width) as store:
        for number, key in enumerate(keys):
            store.put(key, vectors[number % DIFFERENT])
    report("written", count, started)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"size\t{size / 1e9:.2f} GB\t{size / count / (4 * width):.2f} of the vectors' own bytes")
    with BottleneckStore(folder, "synthetic", "0" * 40, width) as store:
        started = time.perf_counter()
        missing = store.missing([*keys, "unknown"])
        report("asked which are missing", count, started)
        started = time.perf_counter()
        loaded = store.read(keys)
        report("loaded", count, started)
    sound = missing == ["unknown"] and (loaded[-1] == vectors[(count - 1) % DIFFERENT]).all()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory, mapped pages included\t{peak:.0f} MB")
    sys.exit(0 if sound else "the store does not hold what was put")


def report(what, count, started):
    """Prints a line: what, seconds, vectors a second."""
    seconds = time.perf_counter() - started
    print(f"{what}\t{seconds:.1f} s\t{count / seconds:.0f} /s", flush=True)


if __name__ == "__main__":
    main()
