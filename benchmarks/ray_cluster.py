"""Measures extraction on Ray on this machine, and what becomes of a run whose node is killed.

    python benchmarks/ray_cluster.py speed --image_dir flower_photos --architecture inception_v3
    python benchmarks/ray_cluster.py overhead
    python benchmarks/ray_cluster.py kill --image_dir flower_photos --architecture inception_v3

`speed`: images/s of the local engine and of Ray with so many one-thread actors, both on 1 and on 2
cores (in processes bound to them, Ray's driver included; well after the start), in turn; and the
cores that Ray's own processes use meanwhile. `beside`: both at the same time, each on a core of its
own, which they change, for machines whose speed drifts. These two are for Linux only. `overhead`:
what a call and an image cost beside the network, by actors that compute nothing; `--ray_data` the
same through Ray Data (pip install "ray[data]"). `kill`: retrain.py on a cluster of three nodes on
this machine, one of which is killed when half of the vectors are there, beside a local run: the
vectors' largest difference, and both test accuracies.
"""

import argparse
import contextlib
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from retraining.bottlenecks.extract import ExtractionSettings, Extractor
from retraining.bottlenecks.ray_engine import (
    BATCHES_PER_CALL,
    Ray,
    RayExtractor,
    connected,
)
from retraining.bottlenecks.ray_worker import Worker
from retraining.bottlenecks.store import BottleneckStore
from retraining.networks.network import load_network
from retraining.networks.precision import resolve_precision
from retraining.networks.registry import find, obtain
from retraining.photos.registry import open_source

ROOT = Path(__file__).resolve().parent.parent
MOST_IMAGES = 200_000  # more than one can compute in that time
WIDTH = 2048  # of the vectors of actors that compute nothing
NODE = {"num_cpus": 1, "object_store_memory": 512 << 20}


def main():
    options = parse_flags()
    options.do(options)


def parse_flags():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = {"speed": speed, "beside": beside, "overhead": overhead, "kill": kill}
    parts["measure"] = measure  # one measurement, which the first two call
    parser.add_argument("part", choices=parts)
    # `kill` runs retrain.py in another folder.
    parser.add_argument("--image_dir", type=os.path.abspath, default="flower_photos")
    parser.add_argument("--model_dir", type=os.path.abspath, default="models")
    parser.add_argument("--architecture", default="inception_v3")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--photos", type=int, default=0, help="only so many; 0 is all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm_up", type=float, default=40, help="seconds before it measures")
    parser.add_argument("--seconds", type=float, default=40, help="that it measures")
    parser.add_argument("--cpus", type=int, default=1, help="of each actor")
    parser.add_argument("--ray_data", action="store_true")
    parser.add_argument("--engine", default="local", help="for `measure`, as are the next")
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--core", type=int, default=0, help="the first of them")
    parser.add_argument("--begin", type=float, default=0, help="when to begin to count")
    options = parser.parse_args()
    options.do = parts[options.part]
    return options


# -- speed -----------------------------------------------------------------------------------


def speed(options):
    """Prints the median images/s of both engines on 1 and 2 cores, and the ratio of each round."""
    for cores in (1, 2):
        found = {"local": [], "ray": []}
        for _ in range(options.rounds):
            for engine, figures in found.items():
                begin = time.time() + options.warm_up
                figures.append(result_of(call_measure(options, engine, cores, begin=begin)))
        print_rates(cores, **found)


def print_rates(cores, local, ray):
    """Prints what `measure` found of both engines, a dict a round."""
    for name, figures in (("local", local), ("ray", ray)):
        rate = statistics.median(each["rate"] for each in figures)
        print(f"{name} on {cores} cores: {rate:.1f} images/s")
    ratios = [mine["rate"] / theirs["rate"] for mine, theirs in zip(ray, local, strict=True)]
    print("  ray / local in each round:", *(f"{ratio:.3f}" for ratio in ratios))
    print("  seconds until the first vector:", *(f"{each['start']:.1f}" for each in ray))
    print("  driver's CPU s per 1,000 images:", *(f"{each['cpu']:.2f}" for each in ray))
    print("  cores used by Ray itself:", *(f"{each['others']:.3f}" for each in ray), flush=True)


def beside(options):
    """Prints images/s of both engines at the same time, on one core each, and their ratio."""
    for number in range(2 * options.rounds):
        begin = time.time() + options.warm_up
        running = {
            engine: call_measure(options, engine, 1, core=core, begin=begin)
            for engine, core in (("local", number % 2), ("ray", 1 - number % 2))
        }
        found = {engine: result_of(process)["rate"] for engine, process in running.items()}
        ratio = found["ray"] / found["local"]
        print(*(f"{name} {rate:.1f}" for name, rate in found.items()), f"ratio {ratio:.3f}")


def call_measure(options, engine, cores, core=0, begin=0.0):
    """`measure` in a process of its own, a Popen."""
    names = ["image_dir", "model_dir", "architecture", "precision", "photos", "cpus", "seconds"]
    flags = {name: getattr(options, name) for name in names}
    flags |= {"engine": engine, "cores": cores, "core": core, "begin": begin}
    command = [sys.executable, __file__, "measure"]
    command += [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result_of(process):
    """What `measure` printed in a process."""
    stdout, stderr = process.communicate()
    if process.returncode:
        sys.exit(f"{stderr}a measurement ended with {process.returncode}")
    return json.loads(stdout)


def measure(options):
    """Prints one measurement as JSON; this process is bound to --cores from --core on."""
    os.sched_setaffinity(0, range(options.core, options.core + options.cores))
    paths = photos_of(options)
    network, precision = network_of(options)
    settings = ExtractionSettings(precision, cores=options.cores)
    started = time.perf_counter()
    paths *= 1 + MOST_IMAGES // len(paths)
    if options.engine == "ray":
        cluster = Ray("local", options.cores // options.cpus, options.cpus)
        readings = RayExtractor(network, ExtractionSettings(precision), cluster).read(paths)
    else:
        readings = Extractor(network, settings).read(paths)
    next(readings)
    start = time.perf_counter() - started
    for _ in readings:
        if time.time() >= options.begin:
            break
    print(json.dumps(rate_of(readings, options.seconds) | {"start": start}))
    sys.stdout.flush()
    os._exit(0)  # not all of `paths` was wanted


def rate_of(readings, seconds):
    """What came of readings from now on, for so long.

    Ray's come in bursts, a call's at once: from one's first to another's is a whole number of them.
    """
    first, cpu, others = time.perf_counter(), time.process_time(), cpu_of_ray()
    count, now = 0, 0.0
    while now < seconds:
        next(readings)
        count, now = count + 1, time.perf_counter() - first
    own, after = time.process_time() - cpu, cpu_of_ray()
    share = sum(after[pid] - others[pid] for pid in after.keys() & others.keys()) / now
    return {"rate": count / now, "cpu": own / count * 1000, "others": share}


def cpu_of_ray():
    """{process: CPU seconds so far} of those of Ray that are neither a driver nor a worker."""
    seconds = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            name = (folder / "cmdline").read_bytes()
            if (b"ray::" in name and b"Worker" not in name) or b"/ray/" in name:
                times = (folder / "stat").read_text().rpartition(")")[2].split()
                seconds[folder.name] = sum(map(int, times[11:13])) / os.sysconf("SC_CLK_TCK")
    return seconds


def photos_of(options):
    names = open_source(options.image_dir).scan().names
    paths = [path for of_class in names.values() for path in of_class]
    return paths[: options.photos or None]


def network_of(options):
    """(BaseNetwork, the precision it runs at)"""
    known = find(options.architecture)
    network = load_network(obtain(known, options.model_dir), known)
    return network, resolve_precision(options.precision, network.graph_def)


# -- overhead --------------------------------------------------------------------------------


class Idle(Worker):
    """A worker without a network."""

    def _start(self):
        self._vector = np.ones(WIDTH, np.float32)

    def _compute(self, kind, items):
        return [(item, self._vector) for item in items]  # a key that differs


def overhead(options):
    """Prints seconds per call and per image, by calls of two sizes, for the driver's whole work."""
    if options.ray_data:
        for size in (32, 256):
            report(f"Ray Data, {size} images a call", *by_ray_data(20 * size * 8, size), size)
        return
    network, _ = network_of(options)
    for actors in (2, 16):
        for size in (64, 512):
            report(
                f"{actors} actors, {size} images a call", *by_actors(network, actors, size), size
            )


def report(name, count, seconds, cpu, size):
    print(
        f"{name}: {1e3 * seconds / count * size:.2f} ms a call, {count / seconds:.0f} images/s at "
        f"most, driver's CPU {1e3 * cpu / count:.3f} s per 1,000 images",
        flush=True,
    )


def by_actors(network, actors, size):
    """(images, seconds, driver's CPU seconds) of RayExtractor and the store, after the start."""
    paths = [f"/some/folder/of/photos/photo_{number:07d}.jpg" for number in range(160 * size)]
    settings = ExtractionSettings(batch_size=size // BATCHES_PER_CALL)
    extractor = RayExtractor(network, settings, cluster_of(actors))
    extractor.worker = Idle
    with (
        tempfile.TemporaryDirectory() as folder,
        BottleneckStore(folder, "none", "0" * 40, WIDTH) as store,
    ):
        stored = (store.put(reading.key, reading.vector) for reading in extractor.read(paths))
        return timed(stored, skip=actors * 2 * size)


def cluster_of(actors):
    return Ray("local", actors)


def timed(answers, skip):
    """(answers, seconds, CPU seconds) of an iterator without the first `skip` answers."""
    for _ in range(skip):
        next(answers)
    begun, cpu = time.perf_counter(), time.process_time()
    count = sum(1 for _ in answers)
    return count, time.perf_counter() - begun, time.process_time() - cpu


def by_ray_data(count, size):
    """As `by_actors`, without the store, by Ray Data."""
    with connected(cluster_of(2), 0) as ray:
        import ray.data

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False

        class Nothing:
            def __call__(self, batch):
                vectors = np.ones((len(batch["path"]), WIDTH), np.float32)
                return {"path": batch["path"], "vector": vectors}

        rows = [{"path": f"/some/folder/photo_{number:07d}.jpg"} for number in range(count)]
        data = ray.data.from_items(rows, override_num_blocks=count // size)
        pool = ray.data.ActorPoolStrategy(size=2)
        data = data.map_batches(Nothing, compute=pool, batch_size=size, num_cpus=1)
        batches = data.iter_batches(batch_size=None)
        return timed((path for batch in batches for path in batch["path"]), skip=4 * size)


# -- a node that is killed -------------------------------------------------------------------


def kill(options):
    """Runs both ways and compares."""
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory() as folder:
        here, there = Path(folder, "local"), Path(folder, "ray")
        check_end(start(options, here, []), "local")
        cluster = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
        try:
            _, doomed = cluster.add_node(**NODE), cluster.add_node(**NODE)
            run = start(options, there, ["--engine", "ray", "--ray_address", cluster.address])
            while run.poll() is None and count_vectors(there) < len(photos_of(options)) / 2:
                time.sleep(0.2)
            if run.poll() is not None:
                check_end(run, "Ray")
                sys.exit("the Ray run ended before half of its vectors were seen; take more photos")
            print(f"a node is killed at {count_vectors(there)} vectors", flush=True)
            doomed.kill_raylet()
            print(f"the run ended with {run.wait()}")
            check_end(run, "Ray")
        finally:
            cluster.shutdown()
        compare(here, there)


def start(options, folder, flags):
    """retrain.py in a process of its own."""
    folder.mkdir()
    command = [sys.executable, str(ROOT / "retrain.py"), *flags]
    command += ["--image_dir", options.image_dir, "--model_dir", options.model_dir]
    command += ["--architecture", options.architecture, "--precision", options.precision]
    command += ["--bottleneck_dir", "cache", "--output_graph", "out/graph.pb", "--quiet"]
    with open(folder / "stdout", "w") as stdout:
        return subprocess.Popen(command, cwd=folder, stdout=stdout)


def check_end(run, name):
    """Waits for a run; ends the program if it failed."""
    if run.wait():
        sys.exit(f"the {name} run ended with {run.returncode}; its message is above")


def rows_of(folder):
    """{key: vector} of the vectors that are committed."""
    found = {}
    for path in Path(folder, "cache").glob("*-*.sqlite"):
        store = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        with contextlib.closing(store) as connection:
            found |= connection.execute("SELECT key, vector FROM vectors").fetchall()
    return {key: np.frombuffer(vector, "<f4") for key, vector in found.items()}


def count_vectors(folder):
    try:
        return len(rows_of(folder))
    except sqlite3.Error:  # it is just being made
        return 0


def compare(here, there):
    """Prints what differs between two runs' folders."""
    one, two = rows_of(here), rows_of(there)
    print(f"vectors: {len(one)} local, {len(two)} Ray, the same photos: {one.keys() == two.keys()}")
    differences = [float(np.abs(one[key] - two[key]).max()) for key in one.keys() & two.keys()]
    if not differences:
        sys.exit("no photo has a vector of both runs")
    apart = max(differences)
    print(f"largest difference of any number: {apart:.2g}")
    for name, folder in (("local", here), ("Ray", there)):
        print(name, (folder / "stdout").read_text().splitlines()[:2])


if __name__ == "__main__":
    main()
