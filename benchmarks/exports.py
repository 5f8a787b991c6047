"""Measures conversions of a retrained graph: seconds, peak memory, size, and one photo per format.

    python benchmarks/exports.py retrained_graph.pb --image_dir flower_photos

Converts and tests each format as retrain.py does, in a process of its own. Then it times the pixels
of one photo in that format on one core, in processor time, the median of 20. Needs Linux, and
requirements-onnx.txt for ONNX.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from retraining.export.pixels_graph import Source
from retraining.export.registry import CONVERTERS
from retraining.graphs.description import PIXELS
from retraining.graphs.read import read_graph
from retraining.graphs.run import BytesRunner

# isort: split
import numpy as np  # after retraining, which sets its threads

ROOT = Path(__file__).resolve().parent.parent
FROZEN = "frozen"  # in place of a kind: the retrained graph itself
MOST_PHOTOS = 50  # that test and calibrate
ROUNDS = 20


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("graph", help="a graph that retrain.py wrote")
    parser.add_argument("--image_dir", default="flower_photos")
    parser.add_argument("--formats", nargs="+", choices=CONVERTERS, default=list(CONVERTERS))
    parser.add_argument("--time", help=argparse.SUPPRESS)  # a kind, whose file is `graph`
    options = parser.parse_args()
    if options.time:
        print(1e3 * seconds_for_a_photo(options.time, options.graph))
        return
    paths = sorted(str(path.resolve()) for path in Path(options.image_dir).glob("*/*.jpg"))
    photos = paths[:: max(1, len(paths) // MOST_PHOTOS)][:MOST_PHOTOS]
    print("| | seconds | of the processor | peak MB | file MB | one photo, ms |")
    print("|---|--:|--:|--:|--:|--:|")
    size = os.path.getsize(options.graph) / 1e6
    print(f"| {FROZEN} graph | | | | {size:.1f} | {timed(FROZEN, options.graph):.1f} |", flush=True)
    for kind in options.formats:
        with tempfile.TemporaryDirectory(prefix="exports-") as folder:
            costs = convert(kind, options.graph, photos, folder)
            written = Path(folder, kind)
            size, photo = size_of(written) / 1e6, timed(kind, written)
        cells = [f"{costs[0]:.0f}", f"{costs[1]:.0f}", f"{costs[2]:,.0f}", f"{size:.1f}"]
        print(f"| {kind} | {' | '.join(cells)} | {photo:.1f} |", flush=True)


def convert(kind, graph, photos, folder):
    """(seconds, processor seconds, peak MB) of the process that writes a format and tests it."""
    os.symlink(os.path.abspath(graph), f"{folder}/graph.pb")
    request = {
        "format": kind,
        "takes": PIXELS,
        "photos": photos,
        "targets": [0] * len(photos),
        "calibration": photos,
        "max_image_pixels": 10**8,
    }
    Path(folder, "request.json").write_text(json.dumps(request))
    command = [sys.executable, "-m", "retraining.export.convert", folder]
    started = time.perf_counter()
    child = subprocess.Popen(  # it ends when its standard input does
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    errors = child.stderr.read()
    _, status, used = os.wait4(child.pid, 0)
    if status:
        sys.exit(errors.decode().splitlines()[-1])
    processor = used.ru_utime + used.ru_stime
    return time.perf_counter() - started, processor, used.ru_maxrss / 1024


def size_of(path):
    """Bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def timed(kind, path):
    """Milliseconds that one photo takes in a file of a format, in a process on one core."""
    command = [sys.executable, __file__, str(path), "--time", kind]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return float(done.stdout)


def seconds_for_a_photo(kind, path):
    """Processor seconds of one photo in this process, which stays on one core from now on."""
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    os.cpu_count = lambda: 1  # the runtimes start as many threads
    graph = path if kind == FROZEN else Path(path).parent / "graph.pb"
    graph_def = read_graph(graph, allow_unsafe_ops=True)
    source = Source.of(graph_def)
    rng = np.random.default_rng(0)
    pixels = {i: rng.uniform(-1, 1, (1, *i.size, 3)).astype(np.float32) for i in source.inputs}
    if kind == FROZEN:
        run = BytesRunner(graph_def, source.output, few=False).run_pixels
        feeds = {image.node: batch for image, batch in pixels.items()}
    else:
        run = CONVERTERS[kind].load(str(path)).run
        feeds = {image.feed: batch for image, batch in pixels.items()}
    rounds = []
    for _ in range(ROUNDS + 1):  # the first one prepares
        started = time.process_time()
        run(feeds)
        rounds.append(time.process_time() - started)
    return statistics.median(rounds[1:])


if __name__ == "__main__":
    main()
