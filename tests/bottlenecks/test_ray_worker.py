"""ray_worker.py: what an actor answers, and what it gives up. Without Ray itself."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from retraining.bottlenecks import ray_worker
from retraining.bottlenecks.extract import ExtractionSettings, Extractor, Job
from retraining.bottlenecks.ray_worker import (
    ENDED,
    MOST_STARTS,
    READ,
    RUN,
    Attempts,
    UnreadableHereError,
    Work,
    Worker,
    WorkerError,
    check_machine,
    versions,
)
from retraining.networks.network import load_network
from retraining.networks.registry import find
from retraining.photos.dataset import Example
from retraining.photos.reader import ImageError
from retraining.photos.registry import hash_file
from retraining.photos.source import SourceError
from retraining.system import addresses
from tests import tiny


@pytest.fixture(scope="module")
def network(inception_file):
    return load_network(inception_file, find("inception_v3"))


@pytest.fixture(scope="module")
def paths(photos):
    return [str(path) for path in sorted(Path(photos).glob("red/*.jpg"))[:4]]


class WorkerDied(BaseException):
    """Stands for the end of a worker's process."""


class Cluster:
    """Stands in for Ray: one worker, which is begun anew when it has died."""

    def __init__(self, network, monkeypatch):
        self.deaths, self.restarted = 0, False
        attempts = Attempts()
        self.attempts = SimpleNamespace(
            begin=SimpleNamespace(remote=attempts.begin),
            forget=SimpleNamespace(remote=attempts.forget),
        )
        self.work = [Work.of(network, ExtractionSettings("float32"), 1)]
        ray = SimpleNamespace(get=lambda answer: answer, get_runtime_context=self.context)
        monkeypatch.setitem(sys.modules, "ray", ray)
        self.worker = Worker(self.work, self.attempts)

    def context(self):
        return SimpleNamespace(was_current_actor_reconstructed=self.restarted)

    def answer(self, kind, number, items):
        """Asks the worker, and the next one if it dies, without limit."""
        while True:
            try:
                return self.worker.answer(kind, number, items)
            except WorkerDied:
                self.deaths, self.restarted = self.deaths + 1, True
                self.worker = Worker(self.work, self.attempts)


@pytest.fixture
def cluster(network, monkeypatch):
    return Cluster(network, monkeypatch)


def dies_at(path, monkeypatch, times=100):
    """Lets workers die, so many times, when they read a photo."""
    read, deaths = Extractor.read, []

    def mortal(self, paths):
        if path in paths and len(deaths) < times:
            deaths.append(path)
            raise WorkerDied
        return read(self, paths)

    monkeypatch.setattr(Extractor, "read", mortal)


def test_paths_are_answered_with_keys_and_vectors(cluster, network, paths):
    number, answers = cluster.answer(READ, 7, paths)
    assert number == 7
    expected = list(Extractor(network, ExtractionSettings("float32")).read(paths))
    for reading, path, (key, vector) in zip(expected, paths, answers, strict=True):
        assert (reading.path, key) == (path, hash_file(path))
        np.testing.assert_array_equal(vector, reading.vector)


def test_a_worker_knows_the_logins_of_the_driver(network, monkeypatch, paths):
    monkeypatch.setattr(addresses, "_LOGINS", {})
    addresses.take_login("https://me:s3cret@host/photos")
    cluster = Cluster(network, monkeypatch)
    monkeypatch.setattr(addresses, "_LOGINS", {})  # as in another process
    cluster.answer(READ, 0, paths[:1])
    assert addresses.with_login("https://host/1.jpg") == "https://me:s3cret@host/1.jpg"


def test_jobs_are_answered_with_vectors(cluster, network, paths):
    jobs = [Job(Example(path, "red", "training", hash_file(path))) for path in paths]
    _, answers = cluster.answer(RUN, 0, jobs)
    expected = Extractor(network, ExtractionSettings("float32")).run(jobs)
    for (_, vectors), found in zip(expected, answers, strict=True):
        np.testing.assert_array_equal(found, vectors)


def test_a_worker_computes_each_photo_of_a_quantised_network_alone(tmp_path, paths, monkeypatch):
    path = tiny.write_graph(str(tmp_path / "graph.pb"), tiny.tiny_mobilenet(eightbit=True))
    network = load_network(path, find("mobilenet_0.25_128"))
    together = Cluster(network, monkeypatch).answer(READ, 0, paths)[1]
    for path, (_, vector) in zip(paths, together, strict=True):
        (alone,) = Extractor(network).read([path])
        np.testing.assert_allclose(vector, alone.vector, atol=1e-5 * np.abs(vector).max())


def test_a_photo_that_ends_every_worker_is_given_up(cluster, paths, monkeypatch):
    dies_at(paths[2], monkeypatch)
    _, answers = cluster.answer(READ, 0, paths)
    assert cluster.deaths == 4  # in its batch twice, twice alone
    keys, vectors = zip(*answers, strict=True)
    assert list(keys) == [hash_file(path) for path in paths]
    assert isinstance(vectors[2], ImageError)
    assert str(vectors[2]) == ENDED
    assert all(isinstance(vectors[n], np.ndarray) for n in (0, 1, 3))


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_photo_that_ends_a_worker_now_and_then_has_its_vector(cluster, paths, monkeypatch, times):
    dies_at(paths[2], monkeypatch, times)
    _, answers = cluster.answer(READ, 0, paths)
    assert cluster.deaths == times
    assert all(isinstance(vector, np.ndarray) for _, vector in answers)


def test_a_network_that_ends_every_worker_is_told(cluster, paths, monkeypatch):
    def mortal(self):
        raise WorkerDied

    monkeypatch.setattr(Extractor, "started", mortal)
    with pytest.raises(WorkerError, match="starting the network ends the Ray workers, the last on"):
        cluster.answer(READ, 0, paths)
    assert cluster.deaths == MOST_STARTS + 1  # the first worker counts nothing


def test_a_file_that_cannot_be_read_here_names_the_host(cluster, tmp_path):
    _, ((key, error),) = cluster.answer(READ, 0, [str(tmp_path / "gone.jpg")])
    assert key is None
    assert isinstance(error, UnreadableHereError)
    assert str(error) == "cannot be read: No such file or directory"
    assert "(process " in error.host


def test_a_place_that_cannot_be_read_from_here_is_no_bad_image(cluster, paths, monkeypatch):
    def closed(self, paths):
        raise SourceError("cannot read s3://b/x: closed")

    monkeypatch.setattr(Extractor, "read", closed)
    with pytest.raises(WorkerError, match=r"^the Ray worker on .* cannot read s3://b/x: closed$"):
        cluster.answer(READ, 0, paths)


def test_another_version_on_a_worker_is_refused(network):
    work = Work.of(network, ExtractionSettings(), 1)
    check_machine(work)
    work.versions["numpy"] = "0.1"
    with pytest.raises(WorkerError, match=f"has numpy {versions()['numpy']} and this machine 0.1"):
        check_machine(work)


def test_a_worker_without_bfloat16_is_refused(network, monkeypatch):
    monkeypatch.setattr(ray_worker, "native_precision", lambda: "bfloat16")
    work = Work.of(network, ExtractionSettings("bfloat16"), 1)
    check_machine(work)
    monkeypatch.setattr(ray_worker, "native_precision", lambda: "float32")
    with pytest.raises(WorkerError, match=r"use `NetworkSettings.precision` float32"):
        check_machine(work)
    check_machine(Work.of(network, ExtractionSettings("float32"), 1))
