"""Compares the answers of exported files with those of the frozen graph, on each photo of a folder.

    python benchmarks/export_agreement.py --image_dir flower_photos --graph retrained_graph.pb \\
        model.tflite model.onnx models/serving/1

Prints a row for each file: its size, how many photos have the frozen graph's first label, the
largest difference of a probability, photos in a second, and the seconds of `label_image.py` for
one photo on one core, start-up included (median of --repeats). The graph computes in float32. Exits
with 1 if a probability differs by more than --most, 0.001 by default.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.exports import size_of
from retraining.labelling.classifier import load_classifier
from retraining.photos.reader import ImageError
from retraining.photos.registry import open_source

# isort: split
import numpy as np  # after retraining, which sets its threads

LABEL_IMAGE = str(Path(__file__).resolve().parent.parent / "label_image.py")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("exports", nargs="+")
    parser.add_argument("--image_dir", default="flower_photos")
    parser.add_argument("--graph", default="models/retrained_graph.pb")
    parser.add_argument("--most", type=float, default=0.001)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    classes = open_source(options.image_dir).scan().names.values()
    photos = [name for names in classes for name in names]
    print("file\tMB\tphotos\tsame first label\tapart\tphotos/s\ts for one")
    expected, speed = answers(options.graph, photos)
    show(options, options.graph, photos, (len(photos), 0.0, speed))
    worst = 0.0
    for path in options.exports:
        found, speed = answers(path, photos)
        same = int((found.argmax(axis=1) == expected.argmax(axis=1)).sum())
        apart = float(np.abs(found - expected).max())
        worst = max(worst, apart)
        show(options, path, photos, (same, apart, speed))
    sys.exit(worst > options.most)


def answers(path, photos):
    """Returns (probabilities float32 [photos, classes], photos in a second)."""
    classifier = load_classifier(path, precision="float32")
    start = time.perf_counter()
    rows = [answer for _, answer, _ in classifier.predict(photos, len(photos))]
    seconds = time.perf_counter() - start
    assert not any(isinstance(row, ImageError) for row in rows), "a photo cannot be read"
    return np.stack(rows), len(photos) / seconds


def show(options, path, photos, figures):
    """Prints the row of a file, at once."""
    same, apart, speed = figures
    one = statistics.median(seconds_for_one(path, photos[0]) for _ in range(options.repeats))
    size = f"{size_of(Path(path)) / 1e6:.1f}"
    columns = path, size, len(photos), same, f"{apart:.1e}", f"{speed:.1f}"
    print(*columns, f"{one:.2f}", sep="\t", flush=True)


def seconds_for_one(path, photo):
    """Returns the seconds of label_image.py for a photo, on one core where the system allows it."""
    command = [sys.executable, LABEL_IMAGE, "--graph", path, photo]
    allowed = getattr(os, "sched_getaffinity", lambda _: ())(0)
    start = time.perf_counter()
    subprocess.run(
        command,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=(lambda: os.sched_setaffinity(0, {min(allowed)})) if allowed else None,
    )
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
