"""Measures peak memory: by the number of photos, of extraction and of labelling; of training on a
million vectors.

    python benchmarks/memory.py photos --model_dir models   (MobileNet 0.25/128; 1,000 and 20,000)
    python benchmarks/memory.py paths --graph GRAPH         (on stdin; 1,000 to 100,000)
    python benchmarks/memory.py vectors                     (1,000,000; needs 17 GB of disk)

`--count` sets other numbers.

Memory is what the process itself holds (RssAnon); pages of mapped files are the system's to drop.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from retraining.bottlenecks.store import BottleneckStore
from retraining.bottlenecks.vectors import Labelled
from retraining.training.loop import TrainingOptions, train

# isort: split
import numpy as np  # after retraining, which sets its threads
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
WIDTH, CLASSES = 2048, 5
COUNTS = {"photos": [1_000, 20_000], "paths": [1_000, 10_000, 100_000], "vectors": [1_000_000]}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=COUNTS)
    parser.add_argument("--model_dir", default="models")
    parser.add_argument("--graph", default="models/retrained_graph.pb", help="for paths")
    parser.add_argument("--count", type=int, nargs="+", help="photos, paths or vectors")
    parser.add_argument("--dir", help="where temporary files go")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="memory-", dir=options.dir) as folder:
        for count in options.count or COUNTS[options.what]:
            measure(options, Path(folder, str(count)), count)


def measure(options, folder, count):
    """Prints one measurement."""
    folder.mkdir()
    if options.what == "photos":
        print(f"{count} photos: {extraction(folder, count, options):.0f} MB", flush=True)
    elif options.what == "paths":
        print(f"{count} paths: {labelling(folder, count, options.graph):.0f} MB", flush=True)
    else:
        train_many(folder, count)


def generate_photos(folder, count):
    """Writes `count` different JPEGs into class folders; gives their paths."""
    rng = np.random.default_rng(0)
    paths = [folder / f"class{number % CLASSES}" / f"{number}.jpg" for number in range(count)]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((320, 240)).save(path, quality=80)
    return paths


def labelling(folder, count, graph):
    """Peak MB of label_image.py given `count` paths, of ten photos in turn, on standard input."""
    paths = generate_photos(folder / "photos", 10)
    (folder / "list").write_text("".join(f"{paths[n % 10]}\0" for n in range(count)))
    command = [sys.executable, ROOT / "label_image.py", "-0", "--top_k", "1", "--graph", graph]
    with open(folder / "list", "rb") as stdin, open(folder / "rows", "wb") as stdout:
        process = subprocess.Popen(list(map(str, command)), stdin=stdin, stdout=stdout)
        peak = watch(process.pid, lambda: process.poll() is None)
    rows = (folder / "rows").read_text().count("\n")
    if process.returncode or rows != count:
        sys.exit(f"label_image.py ended with {process.returncode} after {rows} rows")
    return peak


def extraction(folder, count, options):
    """Peak MB of a run of retrain.py on `count` generated photos."""
    photos = folder / "photos"
    generate_photos(photos, count)
    command = [
        *(sys.executable, ROOT / "retrain.py", "--image_dir", photos),
        *("--architecture", "mobilenet_0.25_128", "--model_dir", options.model_dir),
        *("--bottleneck_dir", folder / "cache", "--how_many_training_steps", "10"),
        *("--output_graph", folder / "graph.pb", "--output_labels", folder / "labels"),
        *("--label_audit", folder / "label_audit.tsv"),
        *("--summaries_dir", folder / "logs", "--logging_verbosity", "WARN"),
    ]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
    peak = watch(process.pid, lambda: process.poll() is None)
    if process.returncode:
        sys.exit(f"retrain.py ended with {process.returncode}")
    return peak


def watch(pid, running):
    """Largest RssAnon of a process in MB, looked at 50 times a second while `running()`."""
    peak = 0
    while running():
        try:
            with open(f"/proc/{pid}/status", encoding="ascii") as file:
                lines = [line for line in file if line.startswith("RssAnon")]
        except OSError:
            break
        peak = max([peak, *(int(line.split()[1]) / 1024 for line in lines)])
        time.sleep(0.02)
    return peak


def train_many(folder, count):
    """Stores `count` vectors, reads them back as a run does and trains 4,000 steps on them."""
    done = threading.Event()
    peaks = []
    watcher = threading.Thread(
        target=lambda: peaks.append(watch("self", lambda: not done.is_set()))
    )
    watcher.start()
    rng = np.random.default_rng(0)
    centres = rng.random((CLASSES, WIDTH), dtype=np.float32)
    targets = np.arange(count) % CLASSES
    with BottleneckStore(folder, "synthetic", "0" * 40, WIDTH) as store:
        with clock(f"storing {count} vectors"):
            for number in range(count):
                noise = rng.random(WIDTH, dtype=np.float32)
                store.put(f"{number:040x}", centres[targets[number]] + noise)
        with clock("reading them"):
            vectors = store.read([f"{number:040x}" for number in range(count)])
    held_out = count // 10
    training = Labelled(vectors[held_out:], targets[held_out:])
    validation = Labelled(vectors[:held_out], targets[:held_out])
    with clock("4,000 steps"):
        *_, step = train(training, validation, CLASSES, TrainingOptions())
    done.set()
    watcher.join()
    print(f"validation accuracy {step.validation.accuracy:.3f}; peak {peaks[0]:.0f} MB")


class clock:  # noqa: N801 - reads as a word in `with clock(...)`
    """Prints how long its block took."""

    def __init__(self, name):
        self.name = name

    def __enter__(self):
        self.started = time.perf_counter()

    def __exit__(self, *_):
        print(f"{self.name}: {time.perf_counter() - self.started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
