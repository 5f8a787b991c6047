"""Measures the steps of a run on many photos: seconds, seconds of CPU, and what memory they add.

    python benchmarks/many_photos.py --count 100000 --classes 10 --dir photos

Makes the photos, unless they are there: JPEGs of 128 x 128 pixels, of a thousand different
pictures, each photo with a number of its own in the file. The network computes each picture once,
and its vector is stored for all its photos. Then come the steps from the scan to reading the
vectors, first with keys that are unknown, then with known ones; then whole runs of retrain.py with
all vectors stored. `--run` gives further flags of it.

The files were just written or read: they lie in the system's page cache.
"""

import argparse
import hashlib
import io
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import base_network
from benchmarks.memory import watch
from retraining.bottlenecks.file_keys import FileKeys
from retraining.bottlenecks.store import BottleneckStore
from retraining.networks.precision import resolve_precision
from retraining.photos.dataset import load_dataset
from retraining.photos.registry import open_source
from retraining.photos.split import SPLITS

# isort: split
import numpy as np  # after retraining, which sets its threads
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PICTURES = 1_000  # different ones; the photos of a class share some of them
SIDE = 128  # pixels


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--count", type=int, default=100_000, help="photos")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--dir", default="many_photos", help="where the photos are, or go")
    base_network.add_flags(parser)
    parser.set_defaults(architecture="efficientnet_lite0")
    parser.add_argument("--run", nargs="*", default=[], help="flags of retrain.py, without the --")
    options = parser.parse_args()
    options.dir = Path(options.dir) / f"{options.count}x{options.classes}"
    options.image_dir = options.dir / "photos"
    if not options.image_dir.exists():
        make(options)
    steps(options)
    run(options)


def make(options):
    """Writes the photos, and stores the vectors that the network computes of their pictures."""
    rng, pictures = np.random.default_rng(0), max(PICTURES, 2 * options.classes)
    partial = options.image_dir.with_name("partial")
    places = [partial / f"class {number:04d}" for number in range(options.classes)]
    for place in places:
        place.mkdir(parents=True)
    contents = [picture(number % options.classes, rng) for number in range(pictures)]
    keys = []
    for number in range(options.count):
        content = numbered(contents[number % pictures], number)
        place = places[number % pictures % options.classes]
        (place / f"{number:06d}.jpg").write_bytes(content)
        keys.append(hashlib.sha1(content).hexdigest())
    small = options.dir / "pictures"
    small.mkdir()
    for number, content in enumerate(contents):
        (small / f"{number}.jpg").write_bytes(content)
    network = base_network.load(options)
    vectors = base_network.vectors_by(network)([small / f"{n}.jpg" for n in range(pictures)])
    precision = resolve_precision("auto", network.graph_def)
    with open_store(options, network, precision) as store:
        for number, key in enumerate(keys):
            store.put(key, vectors[number % pictures])
    partial.rename(options.image_dir)


def open_store(options, network, precision):
    """The store that a run opens for a network at a precision."""
    fingerprint = network.fingerprint(precision)
    return BottleneckStore(options.dir / "cache", network.name, fingerprint, network.width)


def picture(label, rng):
    """A JPEG of noise in the colours of a class."""
    colours = np.random.default_rng(label).integers(0, 256, (4, 4, 3))
    noise = rng.normal(0, 40, (12, 12, 3)) + np.kron(colours, np.ones((3, 3, 1)))
    image = Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8)).resize((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


def numbered(jpeg, number):
    """The same JPEG with a number in a comment: another file, the same pixels."""
    text = b"%012d" % number
    return jpeg[:2] + b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text + jpeg[2:]


# -- steps -----------------------------------------------------------------------------------


def steps(options):
    """Prints a row for each step from the scan to reading the vectors."""
    source = open_source(str(options.image_dir))
    network = base_network.load(options)
    (options.dir / "cache" / "file_keys.sqlite").unlink(missing_ok=True)
    size = sum(path.stat().st_size for path in options.image_dir.rglob("*.jpg"))
    print(
        f"{options.count} photos, {options.classes} classes, {size / options.count:.0f} bytes each"
    )
    print("| step | s | s of CPU | MB more |\n|---|---:|---:|---:|")
    scan = measured("scan", options, source.scan)
    photos = [photo for of_class in scan.photos.values() for photo in of_class]
    for what in ("unknown", "known"):
        with FileKeys(options.dir / "cache") as files:
            keys = measured(
                f"keys, {what}", options, lambda: {p.name: files.key_of(p) for p in photos}
            )
    dataset = measured(
        "scan, known keys, split",
        options,
        lambda: load_dataset(source, key_of=lambda p: keys[p.name]),
    )
    every = [example.key for example in dataset.examples]
    with open_store(options, network, resolve_precision("auto", network.graph_def)) as store:
        measured("ask the store", options, lambda: store.missing(every))
        measured("read the vectors", options, lambda: store.read(every))
    counts = {part: len(dataset.split(part)) for part in SPLITS}
    print(f"splits: {counts}; vectors: {4 * network.width * options.count / 1e6:.0f} MB")


def measured(name, options, step):
    """Calls a step and prints its row; gives its result."""
    wall, cpu, memory = time.perf_counter(), time.process_time(), held()
    result = step()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"| {name} | {wall:.1f} | {cpu:.1f} | {held() - memory:.0f} |", flush=True)
    return result


def held():
    """The MB that this process holds, mapped files aside."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.split("RssAnon:")[1].split()[0]) / 1024


# -- runs ------------------------------------------------------------------------------------


def run(options):
    """Prints the seconds of each step of two runs of retrain.py, and its peak memory."""
    for name in ("first run", "second run"):
        outputs = options.dir / "outputs"
        command = [
            *(sys.executable, ROOT / "retrain.py", "--image_dir", options.image_dir),
            *("--architecture", options.architecture, "--model_dir", options.model_dir),
            *("--bottleneck_dir", options.dir / "cache", "--summaries_dir", outputs / "logs"),
            *("--output_graph", outputs / "graph.pb", "--output_labels", outputs / "labels.txt"),
            *(f"--{flag}" for flag in options.run),
        ]
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        with open(options.dir / "stderr.txt", "wb") as stderr:
            process = subprocess.Popen(
                list(map(str, command)), stdout=subprocess.DEVNULL, stderr=stderr
            )
            peak = watch(process.pid, lambda process=process: process.poll() is None)
        if process.returncode:
            sys.exit((options.dir / "stderr.txt").read_text())
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        sizes = {
            path.name: path.stat().st_size / 1e6 for path in outputs.iterdir() if path.is_file()
        }
        record = json.loads((next(outputs.glob("*metrics.json"))).read_text())
        print(
            f"{name}: {time.perf_counter() - started:.1f} s, {cpu:.1f} s of CPU, peak {peak:.0f} MB"
        )
        print(
            "  "
            + ", ".join(f"{step} {s:.1f} s" for step, s in record["seconds"].items() if s > 0.1)
        )
        print("  " + ", ".join(f"{file} {size:.1f} MB" for file, size in sorted(sizes.items())))


if __name__ == "__main__":
    main()
