"""Compares the vectors of a network in bfloat16 with those in float32, photo by photo.

    python benchmarks/precision.py --image_dir flower_photos --architecture inception_v3

Prints the cosines' median and least, and images/s of both (on a processor without bfloat16, its
rate says nothing).
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import base_network
from retraining.photos.registry import open_source

# isort: split
import numpy as np  # after retraining, which sets its threads

WARM_UP = 32  # photos


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    base_network.add_flags(parser)
    options = parser.parse_args()
    names = open_source(options.image_dir).scan().names
    paths = [path for of_class in names.values() for path in of_class]
    network = base_network.load(options)
    exact, low = (vectors(network, paths, precision) for precision in ("float32", "bfloat16"))
    norms = np.linalg.norm(exact, axis=1) * np.linalg.norm(low, axis=1)
    cosines = (exact * low).sum(axis=1) / norms
    print(f"{len(paths)} photos: cosine {np.median(cosines):.5f} median, {cosines.min():.5f} least")


def vectors(network, paths, precision):
    """float32 [n, width]; prints the rate."""
    compute = base_network.vectors_by(network, precision)
    compute(paths[:WARM_UP])
    started = time.perf_counter()
    found = compute(paths)
    print(f"{precision}: {len(paths) / (time.perf_counter() - started):.1f} images/s", flush=True)
    return found


if __name__ == "__main__":
    main()
