"""Extraction on Ray: a small cluster on this machine gives what the local engine gives."""

import contextlib
import os
import signal
import socket
import sqlite3
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from retraining.bottlenecks import ray_engine
from retraining.bottlenecks.extract import ExtractionSettings, Extractor, Job
from retraining.bottlenecks.fetch import NoImageError
from retraining.bottlenecks.ray_engine import (
    Ray,
    RayEngineError,
    RayExtractor,
)
from retraining.bottlenecks.ray_worker import (
    ENDED,
    UnreadableHereError,
    Worker,
    WorkerError,
)
from retraining.networks.network import load_network
from retraining.networks.registry import find
from retraining.photos.dataset import Example
from retraining.photos.reader import Distortions, ImageError
from retraining.photos.registry import hash_file


@pytest.fixture(scope="module")
def network(inception_file):
    return load_network(inception_file, find("inception_v3"))


@pytest.fixture(scope="module")
def paths(photos):
    return [str(path) for path in sorted(Path(photos).glob("*/*.jpg"))]


@pytest.fixture(scope="module")
def here(network, paths):
    """{path: Reading} by the local engine."""
    return {reading.path: reading for reading in Extractor(network).read(paths)}


@pytest.fixture(scope="module")
def cluster():
    """The ray.cluster_utils.Cluster of one node with two CPUs."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    utils = pytest.importorskip("ray.cluster_utils")
    about = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100 << 20}
    started = utils.Cluster(initialize_head=True, head_node_args=about)
    yield started
    started.shutdown()


def extractor_on(cluster, network, actors=2, worker=Worker):
    options = Ray(cluster.address, actors)
    made = RayExtractor(network, ExtractionSettings(), options)
    made.worker = worker
    return made


def worker_that(ends, folder, times):
    """A Worker that ends, so many times, before it computes a photo whose path holds `ends`."""

    class Mortal(Worker):
        def answer(self, *call):
            read = Extractor.read

            def mortal(extractor, paths):
                if any(ends in path for path in paths) and len(os.listdir(folder)) < times:
                    Path(folder, str(os.getpid())).touch()
                    os._exit(1)
                return read(extractor, paths)

            Extractor.read = mortal
            try:
                return super().answer(*call)
            finally:
                Extractor.read = read

    return Mortal


def check(readings, here):
    """Each photo's vector came once and is that of the local engine."""
    assert sorted(reading.path for reading in readings) == sorted(here)
    for reading in readings:
        assert reading.key == here[reading.path].key
        np.testing.assert_allclose(reading.vector, here[reading.path].vector, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("actors", [1, 2])
def test_the_vectors_are_those_of_the_local_engine(cluster, network, paths, here, actors, capfd):
    check(list(extractor_on(cluster, network, actors).read(paths)), here)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_relative_paths_mean_the_drivers_folder(cluster, network, paths, monkeypatch):
    folder, name = os.path.split(paths[0])
    monkeypatch.chdir(folder)
    (reading,) = extractor_on(cluster, network, 1).read([name])
    assert reading.path == name
    assert reading.key == hash_file(paths[0])


@pytest.mark.slow
def test_distorted_views_are_those_of_the_local_engine(cluster, network, paths):
    views = Distortions(random_crop=20, views=3)
    examples = [Example(path, "red", "training", hash_file(path)) for path in paths[:5]]
    jobs = [Job(example, views) for example in examples]
    expected = dict(Extractor(network).run(jobs))
    found = dict(extractor_on(cluster, network).compute(jobs))
    assert found.keys() == expected.keys()
    for job, vectors in found.items():
        assert vectors.shape == (4, network.width)
        np.testing.assert_allclose(vectors, expected[job], atol=1e-4)


@pytest.mark.skipif(os.name != "posix", reason="needs fork")
def test_the_folder_of_a_killed_run_is_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    child = os.fork()
    if child == 0:
        with ray_engine._folder():
            os._exit(9)
    os.waitpid(child, 0)
    (left,) = tmp_path.iterdir()
    with ray_engine._folder() as folder:
        assert folder != left
        assert list(tmp_path.iterdir()) == [folder]


def test_bad_images_come_back_with_their_keys_and_reasons(cluster, network, paths, tmp_path):
    broken, text = tmp_path / "broken.jpg", tmp_path / "text.jpg"
    broken.write_bytes(Path(paths[0]).read_bytes()[:300])
    text.write_text("no image at all")
    bad = [str(broken), str(text)]
    found = {r.path: r for r in extractor_on(cluster, network, 1).read([*paths[:3], *bad])}
    expected = {r.path: r for r in Extractor(network).read(bad)}
    for path in bad:
        assert type(found[path].vector) is type(expected[path].vector)
        assert str(found[path].vector) == str(expected[path].vector)
        assert found[path].key == hash_file(path)
    assert isinstance(found[str(text)].vector, NoImageError)
    assert all(isinstance(found[path].vector, np.ndarray) for path in paths[:3])


def test_a_worker_that_dies_costs_no_photo(cluster, network, paths, here, tmp_path, capfd):
    mortal = worker_that(os.path.basename(paths[7]), str(tmp_path), times=1)
    check(list(extractor_on(cluster, network, worker=mortal).read(paths)), here)
    assert capfd.readouterr() == ("", "")  # though Ray tells of it
    assert len(os.listdir(tmp_path)) == 1


@pytest.mark.slow
def test_a_file_that_only_the_driver_sees_is_no_bad_image(cluster, network, paths):
    class Elsewhere(Worker):
        def answer(self, kind, number, items):
            return super().answer(kind, number, [f"/not/mounted{item}" for item in items])

    with pytest.raises(RayEngineError, match=r"cannot read .*photo_00.jpg, but this machine can"):
        list(extractor_on(cluster, network, worker=Elsewhere).read(paths[:1]))


@pytest.mark.slow
def test_an_error_in_a_worker_is_one_line(cluster, network, paths):
    class Failing(Worker):
        def answer(self, *_):
            raise WorkerError("is out of order; mend it")

    class Surprising(Worker):
        def answer(self, *_):
            raise KeyError("surprise")

    with pytest.raises(RayEngineError) as failure:
        list(extractor_on(cluster, network, worker=Failing).read(paths[:1]))
    assert str(failure.value) == "is out of order; mend it"
    with pytest.raises(RayEngineError, match="a Ray worker failed: KeyError: 'surprise'"):
        list(extractor_on(cluster, network, worker=Surprising).read(paths[:1]))


@pytest.mark.slow
def test_a_node_without_a_package_is_one_line(cluster, network, paths):
    class Lacking(Worker):
        def __init__(self, *_):
            import no_such_package  # noqa: F401

    message = (
        r"starts no worker: .*No module named 'no_such_package'; see that requirements-ray.txt"
    )
    with pytest.raises(RayEngineError, match=message):
        list(extractor_on(cluster, network, worker=Lacking).read(paths[:1]))


def stored(folder):
    """{key: vector} of the one store in a folder."""
    (path,) = Path(folder).glob("inception_v3-*.sqlite")
    with contextlib.closing(sqlite3.connect(path)) as store:
        rows = store.execute("SELECT key, vector FROM vectors").fetchall()
    return {key: np.frombuffer(vector, "<f4") for key, vector in rows}


def test_retrain_ends_as_with_the_local_engine(
    cluster, run_retrain, finished, photos, tmp_path, capsys
):
    chosen = ("--engine", "ray", "--ray_address", cluster.address, "--ray_actors", 1)
    chosen += ("--precision", "float32")
    assert run_retrain(tmp_path, photos, *chosen) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in printed[:2]] == ["test_accuracy", "test_photos"]
    one, two = stored(finished.folder / "bottleneck_cache"), stored(tmp_path / "bottleneck_cache")
    assert one.keys() == two.keys()
    for key, vector in one.items():
        np.testing.assert_allclose(two[key], vector, atol=1e-4)
    # A second run finds everything, and does not ask for the cluster at all.
    chosen = ("--engine", "ray", "--ray_address", f"127.0.0.1:{free_port()}")
    assert run_retrain(tmp_path, photos, *chosen, "--precision", "float32") == 0
    assert capsys.readouterr().out.splitlines()[:2] == printed[:2]


@pytest.mark.slow
def test_a_node_that_dies_costs_no_photo(network, paths, here):
    utils = pytest.importorskip("ray.cluster_utils")
    about = {"num_cpus": 1, "object_store_memory": 100 << 20}
    three = utils.Cluster(initialize_head=True, head_node_args=about | {"include_dashboard": False})
    try:
        _, doomed = three.add_node(**about), three.add_node(**about)

        class Slow(Worker):
            def answer(self, *call):
                import time

                time.sleep(1)
                return super().answer(*call)

        readings = []
        for reading in extractor_on(three, network, actors=3, worker=Slow).read(paths):
            readings.append(reading)
            if len(readings) == 30:
                doomed.kill_raylet()
        check(readings, here)
    finally:
        three.shutdown()


def memory():
    """Bytes of this machine's memory: (all, used)."""
    with open("/proc/meminfo") as file:
        lines = dict(line.split(":") for line in file)
    everything, free = (int(lines[n].split()[0]) << 10 for n in ("MemTotal", "MemAvailable"))
    return everything, everything - free


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="Linux's way to tell of memory")
@pytest.mark.parametrize("times", [1, 100])
def test_a_photo_that_takes_all_memory(network, paths, here, tmp_path, monkeypatch, times):
    """Ray itself ends the worker; a photo that does it once has its vector in the end."""
    utils = pytest.importorskip("ray.cluster_utils")
    everything, used = memory()
    if everything - used < 8 << 30:
        pytest.skip("needs 8 GB of free memory")
    monkeypatch.setenv("RAY_memory_usage_threshold", str((used + (3 << 30)) / everything))
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    folder, greedy = str(tmp_path), paths[7]

    class Greedy(Worker):
        def answer(self, *call):
            import time

            read = Extractor.read

            def take_all(extractor, paths):
                if greedy in paths and len(os.listdir(folder)) < times:
                    Path(folder, str(os.getpid())).touch()
                    taken = []
                    for _ in range(50):
                        taken.append(np.ones(1 << 27, np.uint8))
                        time.sleep(0.05)
                    time.sleep(60)  # until it is ended
                return read(extractor, paths)

            Extractor.read = take_all
            try:
                return super().answer(*call)
            finally:
                Extractor.read = read

    about = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100 << 20}
    small = utils.Cluster(initialize_head=True, head_node_args=about)
    try:
        readings = list(extractor_on(small, network, worker=Greedy).read(paths))
    finally:
        small.shutdown()
    lost = [r for r in readings if isinstance(r.vector, ImageError)]
    if times == 1:
        assert lost == []
        check(readings, here)
        return
    assert [(r.path, str(r.vector)) for r in lost] == [(greedy, ENDED)]
    check([r for r in readings if r not in lost], {p: r for p, r in here.items() if p != greedy})
    assert len(os.listdir(folder)) == 4  # in its batch twice, twice alone


def free_port():
    """A port at which nobody answers."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nobody_answers_is_one_line(network, paths, scheme):
    pytest.importorskip("ray")
    address = f"{scheme}127.0.0.1:{free_port()}"
    extractor = RayExtractor(network, ExtractionSettings(), Ray(address))
    with pytest.raises(RayEngineError, match=f"no Ray cluster answers at {address}"):
        list(extractor.read(paths))


def test_more_cpus_than_this_machine_has(network, paths):
    pytest.importorskip("ray")
    extractor = RayExtractor(network, ExtractionSettings(), Ray("local", None, 9999))
    with pytest.raises(RayEngineError, match=r"this machine has no 9999 CPUs; see `Ray.cpus`"):
        list(extractor.read(paths))


def test_nothing_to_compute_needs_no_cluster(network):
    extractor = RayExtractor(network, ExtractionSettings(), Ray("127.0.0.1:1"))
    assert list(extractor.read([])) == []
    assert list(extractor.compute([])) == []


def test_missing_ray_is_one_line(network, paths, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    extractor = RayExtractor(network, ExtractionSettings(), Ray("local"))
    with pytest.raises(RayEngineError, match=r"pip install -r requirements-ray.txt"):
        list(extractor.read(paths))


# -- without a cluster -----------------------------------------------------------------------


class Pool:
    """Stands in for ray.util.ActorPool: each call is answered at once."""

    def __init__(self, actors):
        self.actors, self.answers = actors, []

    def submit(self, ask, call):
        self.answers.append(ask(self.actors[0], call))

    def has_next(self):
        return bool(self.answers)

    def get_next_unordered(self):
        return self.answers.pop(0)

    def pop_idle(self):
        return None


class FakeRay:
    """Stands in for the module ray: a cluster of these nodes, whose actors are objects here."""

    util = SimpleNamespace(ActorPool=Pool)

    def __init__(self, *nodes):
        self.resources, self.workers = nodes, []

    def nodes(self):
        return [
            {"NodeID": str(n), "Alive": True, "Resources": has} | has.pop("node", {})
            for n, has in enumerate(map(dict, self.resources))
        ]

    def put(self, value):
        return value

    def remote(self, **_):
        return lambda kind: SimpleNamespace(remote=lambda *arguments: self.start(kind, arguments))

    def start(self, kind, arguments):
        actor = kind(*arguments)
        if isinstance(actor, Recorder):
            self.workers.append(actor)
        return SimpleNamespace(answer=SimpleNamespace(remote=getattr(actor, "answer", None)))


class Recorder:
    """A worker that computes nothing and remembers what it was asked for."""

    found = (None, np.zeros(1, "f4"))

    def __init__(self, *_):
        self.asked = []

    def answer(self, kind, number, items):
        self.asked.append(items)
        return number, [self.found] * len(items)


@pytest.fixture
def fake(network, monkeypatch):
    """Makes (a FakeRay of these nodes, a RayExtractor on it)."""

    def make(settings, *nodes, worker=Recorder, batch_size=None):
        ray = FakeRay(*nodes)
        monkeypatch.setattr(ray_engine, "connected", lambda *_: contextlib.nullcontext(ray))
        extractor = RayExtractor(network, ExtractionSettings(batch_size=batch_size), settings)
        extractor.worker = worker
        return ray, extractor

    return make


NODES = (
    {"CPU": 8.0, "GPU": 1.0},
    {"CPU": 3.0},
    {"memory": 1.0},
    {"CPU": 64.0, "node": {"Alive": False}},
)


@pytest.mark.parametrize(
    ("settings", "actors"),
    [
        (Ray(cpus=1), 8 + 3),
        (Ray(cpus=2), 4 + 1),
        (Ray(cpus=1, gpus=0.5), 2),
        (Ray(actors=3), 3),
    ],
)
def test_as_many_actors_start_as_fit_or_as_set(fake, settings, actors):
    ray, extractor = fake(settings, *NODES)
    list(extractor.read(["a.jpg"]))
    assert len(ray.workers) == actors


def test_more_actors_than_room_is_said(fake, caplog):
    ray, extractor = fake(Ray(actors=5), {"CPU": 3.0})
    list(extractor.read(["a.jpg"]))
    assert len(ray.workers) == 5
    assert "room for 3 of 5 actors with 1 CPU each" in caplog.text
    _, extractor = fake(Ray(cpus=4), {"CPU": 3.0})
    with pytest.raises(RayEngineError, match="no node of the Ray cluster has 4 CPUs"):
        list(extractor.read(["a.jpg"]))


@pytest.mark.parametrize(
    ("settings", "batch_size", "photos", "calls"),
    [
        (Ray(), None, 10_000, [64] * 156 + [16]),
        (Ray(), None, 70, [16] * 4 + [6]),
        (Ray(), None, 3, [3]),
        (Ray(cpus=4), 10, 20_000, [320] * 62 + [160]),
    ],
)
def test_calls_hold_whole_batches_and_less_where_there_is_little(
    fake, settings, batch_size, photos, calls
):
    ray, extractor = fake(settings, {"CPU": float(settings.cpus)}, batch_size=batch_size)
    paths = [f"{n}.jpg" for n in range(photos)]
    assert [reading.path for reading in extractor.read(paths)] == paths
    (worker,) = ray.workers
    assert [len(items) for items in worker.asked] == calls
    assert worker.asked[0][0] == os.path.abspath("0.jpg")  # workers run in another folder


def test_workers_that_end_at_many_photos_are_at_fault(fake):
    class Mortal(Recorder):
        found = (None, ImageError(ENDED))

    _, extractor = fake(Ray(), {"CPU": 1.0}, worker=Mortal)
    answers = extractor.read([f"{n}.jpg" for n in range(30)])
    assert [next(answers).path for _ in range(20)] == [f"{n}.jpg" for n in range(20)]
    with pytest.raises(RayEngineError, match="21 of 21 photos ended the Ray workers"):
        next(answers)


class Elsewhere(Recorder):
    found = (None, UnreadableHereError("cannot be read: no such file", "node7"))


def test_a_file_that_nobody_can_read_is_a_bad_image(fake, tmp_path):
    _, extractor = fake(Ray(), {"CPU": 1.0}, worker=Elsewhere)
    (reading,) = extractor.read([str(tmp_path / "gone.jpg")])
    assert str(reading.vector) == "cannot be read: no such file"


def test_a_file_that_this_machine_can_read_is_none(fake, tmp_path):
    (tmp_path / "a.jpg").touch()
    _, extractor = fake(Ray(), {"CPU": 1.0}, worker=Elsewhere)
    with pytest.raises(RayEngineError, match=r"on node7 cannot read .*a.jpg, but this machine can"):
        list(extractor.read([str(tmp_path / "a.jpg")]))


def test_a_signal_waits_until_ray_has_shut_down(monkeypatch):
    done = []

    def shut_down():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
            done.append(number)

    errors = ("RayTaskError", "ActorDiedError", "RayError")
    known = SimpleNamespace(**{name: type(name, (Exception,), {}) for name in errors})
    ray = ModuleType("ray")
    ray.init, ray.shutdown, ray.exceptions = lambda **_: None, shut_down, known
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.util", ModuleType("ray.util"))

    def run():
        with ray_engine.connected(Ray("local"), 0) as connected:
            assert connected is ray

    with pytest.raises(KeyboardInterrupt):
        run()
    assert done == [signal.SIGINT, signal.SIGTERM]
