"""extract.py: order, batches, errors in the middle, the store filled once."""

import shutil
import threading

import numpy as np
import pytest
from PIL import Image

from retraining.bottlenecks import extract, runtime
from retraining.bottlenecks.extract import (
    ExtractionSettings,
    Extractor,
    FixedBatches,
    Job,
    batches_in_memory,
    fill_store,
)
from retraining.bottlenecks.store import BottleneckStore
from retraining.bottlenecks.stream import FLUSH, stream
from retraining.graphs.nodes import GraphError
from retraining.graphs.run import BytesRunner
from retraining.networks.network import load_network
from retraining.networks.registry import NETWORKS
from retraining.photos.dataset import Example
from retraining.photos.reader import Distortions, ImageError
from retraining.photos.registry import hash_file
from tests import tiny


class SumRunner:
    """Stands in for a network: the 'vector' of an image is the sum of its pixels."""

    parallel = 2

    def __init__(self):
        self.batches = []

    def run(self, batch):
        self.batches.append(len(batch))
        return batch.sum(axis=(1, 2, 3), keepdims=False)[:, None]


def load(item):
    if item < 0:
        raise ImageError(f"bad {item}")
    return np.full((1 + item % 3, 2, 2, 3), item, np.float32)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_answers_come_in_order_whatever_the_batch(batch_size):
    items = [*range(25), -1, *range(25, 40), -2, -3]
    answers = list(stream(items, load, SumRunner(), batch_size))
    assert [item for item, _ in answers] == items
    for item, vectors in answers:
        if item < 0:
            assert str(vectors) == f"bad {item}"
        else:
            np.testing.assert_array_equal(vectors, np.full((1 + item % 3, 1), 12.0 * item))


def test_all_batches_but_the_last_are_of_the_size_asked_for():
    runner = SumRunner()
    list(stream([*range(25), -1, *range(25, 50)], load, runner, 4))
    images = sum(1 + item % 3 for item in range(50))
    assert sorted(runner.batches) == [images % 4, *[4] * (images // 4)]


def test_many_bad_images_among_few_good_ones_keep_their_order():
    items = [-1] * 30 + [1] + [-2] * 30 + [2] + [-3] * 30
    answers = list(stream(items, load, SumRunner(), 4))
    assert [item for item, _ in answers] == items
    assert [str(vectors) for item, vectors in answers if item < 0] == [
        f"bad {item}" for item in items if item < 0
    ]


def test_no_item_gives_no_answer():
    assert list(stream([], load, SumRunner())) == []


def test_a_flush_brings_all_answers_up_to_it():
    got = []

    def items():
        for n in range(10):
            yield n
            if n % 3 == 0:
                yield FLUSH
                assert got == list(range(n + 1))
        yield FLUSH

    for item, _ in stream(items(), load, SumRunner(), 4):
        got.append(item)
    assert got == list(range(10))


def test_only_a_bounded_number_is_held():
    taken = 0

    def items():
        nonlocal taken
        while True:
            taken += 1
            yield 1

    answers = stream(items(), load, SumRunner(), 4)
    next(answers)
    answers.close()
    assert taken < 60


def test_a_programming_error_is_not_swallowed():
    def broken(item):
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(stream([1], broken, SumRunner()))


def test_leaving_early_leaves_no_threads():
    before = threading.active_count()
    answers = stream(range(1000), load, SumRunner(), 4)
    next(answers)
    answers.close()
    assert threading.active_count() == before


# -- fill_store ------------------------------------------------------------------------------


def plain(iterable, total):
    return iterable


@pytest.fixture(scope="module")
def network(inception_file):
    return load_network(inception_file, NETWORKS["inception_v3"])


@pytest.fixture
def store(tmp_path, network):
    with BottleneckStore(tmp_path, "net", network.fingerprint("float32"), network.width) as opened:
        yield opened


def examples(photos, count):
    paths = [f"{photos}/red/photo_{n:02d}.jpg" for n in range(count)]
    return [Example(path, "red", "training", hash_file(path)) for path in paths]


def test_only_what_is_missing_is_computed(store, network, photos, monkeypatch):
    jobs = [Job(example) for example in examples(photos, 6)]
    fill_store(store, jobs[:4], Extractor(network), plain)
    first = store.read([job.keys[0] for job in jobs[:4]])
    read = []
    original = extract.ImageReader.read
    monkeypatch.setattr(
        extract.ImageReader,
        "read",
        lambda self, path, *a: read.append(path) or original(self, path, *a),
    )
    assert fill_store(store, jobs, Extractor(network), plain) == {}
    assert sorted(read) == [job.example.path for job in jobs[4:]]
    np.testing.assert_array_equal(store.read([job.keys[0] for job in jobs[:4]]), first)


def test_a_full_store_needs_no_network(store, network, photos, monkeypatch):
    jobs = [Job(example) for example in examples(photos, 2)]
    fill_store(store, jobs, Extractor(network), plain)
    monkeypatch.setattr(extract, "Runner", None)
    monkeypatch.setattr(extract, "ImageReader", None)
    assert fill_store(store, jobs, Extractor(network), plain) == {}


def test_of_an_older_store_only_formats_with_other_pixels_are_computed_again(
    store, network, photos, tmp_path, monkeypatch
):
    """A JPEG's vector stays, bit for bit; a PNG's is computed anew, and its views' too."""
    shutil.copy(f"{photos}/red/photo_00.jpg", tmp_path / "a.jpg")
    Image.open(tmp_path / "a.jpg").save(tmp_path / "b.png")
    Image.open(tmp_path / "a.jpg").save(tmp_path / "c.bmp")
    views = Distortions(flip_left_right=True, views=1)
    jobs = [
        Job(Example(str(tmp_path / name), "red", "training", hash_file(tmp_path / name)), views)
        for name in ("a.jpg", "b.png", "c.bmp")
    ]
    old = np.arange(network.width, dtype=np.float32)
    for job in jobs:
        for key in job.keys:
            store.put(key, old, version=2)
    store.commit()
    computed = []
    extractor = Extractor(network)
    original = extractor.compute
    monkeypatch.setattr(
        extractor, "compute", lambda jobs: original(computed.append(list(jobs)) or computed[-1])
    )
    assert fill_store(store, jobs, extractor, lambda items, total: items) == {}
    assert computed == [[jobs[1]]]
    found = store.read([key for job in jobs for key in job.keys])
    assert (found == old).all(axis=1).tolist() == [True, True, False, False, True, True]
    fill_store(store, jobs, extractor, lambda items, total: items)
    assert len(computed) == 1


def test_bad_images_are_named_and_the_rest_computed(store, network, photos, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff nothing")
    key = hash_file(tmp_path / "bad.jpg")
    bad = Example(str(tmp_path / "bad.jpg"), "red", "training", key)
    jobs = [Job(example) for example in [*examples(photos, 2), bad]]
    found = fill_store(store, jobs, Extractor(network), plain)
    assert list(found) == [key]
    assert store.missing(job.keys[0] for job in jobs) == [key]


def test_a_file_that_changed_since_it_was_hashed_is_not_stored(store, network, photos, tmp_path):
    shutil.copy(f"{photos}/red/photo_00.jpg", tmp_path / "a.jpg")
    example = Example(str(tmp_path / "a.jpg"), "red", "training", hash_file(tmp_path / "a.jpg"))
    shutil.copy(f"{photos}/blue/photo_00.jpg", tmp_path / "a.jpg")
    for job in (Job(example), Job(example, Distortions(True, views=2))):
        found = fill_store(store, [job], Extractor(network), plain)
        assert "was changed" in found[example.key]
        assert store.missing(job.keys) == list(job.keys)


def test_views_are_stored_under_their_own_keys(store, network, photos):
    (example,) = examples(photos, 1)
    job = Job(example, Distortions(random_brightness=50, views=3))
    assert len(job.keys) == 4
    assert job.keys[0] == example.key
    fill_store(store, [job], Extractor(network), plain)
    vectors = store.read(job.keys)
    assert len({vector.tobytes() for vector in vectors}) == 4
    fill_store(store, [Job(example)], Extractor(network), plain)
    np.testing.assert_array_equal(store.read([example.key])[0], vectors[0])


def test_an_extractor_starts_once_whoever_asks_first(network, photos, monkeypatch):
    made = []
    original = runtime.Runner
    monkeypatch.setattr(runtime, "Runner", lambda *a: made.append(a) or original(*a))
    extractor = Extractor(network)
    extractor.start()
    job = Job(examples(photos, 1)[0])
    ((_, first),) = extractor.run([job])
    ((_, again),) = extractor.run([job])
    np.testing.assert_array_equal(first, again)
    assert len(made) == 1


def test_a_stopped_extractor_starts_again(network, photos):
    extractor, job = Extractor(network), Job(examples(photos, 1)[0])
    ((_, first),) = extractor.run([job])
    before = extractor.started()
    extractor.stop()
    ((_, again),) = extractor.run([job])
    np.testing.assert_array_equal(first, again)
    assert extractor.started() is not before


def test_a_network_that_cannot_start_says_so_when_it_is_used(network, photos, monkeypatch):
    def broken(*_):
        raise GraphError("no such network")

    monkeypatch.setattr(runtime, "Runner", broken)
    extractor = Extractor(network)
    extractor.start()
    with pytest.raises(GraphError, match="no such network"):
        list(extractor.run([Job(examples(photos, 1)[0])]))


# -- one size of batches ---------------------------------------------------------------------


class WholeBatchRunner(SumRunner):
    """Stands in for a network whose vectors show the size of their batch."""

    one_at_a_time = False

    def run(self, batch):
        return super().run(batch) + len(batch) / 1000


def test_a_vector_depends_on_no_neighbour():
    fixed = FixedBatches.of(WholeBatchRunner(), 4)
    alone = [vectors for _, vectors in stream([5], load, fixed, fixed.size)]
    among = dict(stream(range(11), load, fixed, fixed.size))
    np.testing.assert_array_equal(among[5], alone[0])
    assert set(fixed.runner.batches) == {4}


def test_a_graph_for_one_image_gets_no_padding():
    runner = WholeBatchRunner()
    runner.one_at_a_time = True
    fixed = FixedBatches.of(runner, 4)
    fixed.run(load(0))
    assert runner.batches == [1]


def test_a_quantised_network_computes_each_photo_alone(tmp_path, photos):
    path = tiny.write_graph(str(tmp_path / "graph.pb"), tiny.tiny_mobilenet(eightbit=True))
    network = load_network(path, NETWORKS["mobilenet_0.25_128"])
    unchanged = BytesRunner(network.graph_def, network.bottleneck, network.input)
    reader = extract.ImageReader(network.preprocessing)
    jobs = [Job(example) for example in examples(photos, 6)]
    expected = [
        unchanged.run_pixels({network.input: reader.read(job.example.path)})[0] for job in jobs
    ]
    extractor = Extractor(network, ExtractionSettings(batch_size=4))
    for some in (jobs, jobs[::-1], jobs[2:3]):
        for job, vectors in extractor.run(some):
            wanted = expected[jobs.index(job)]
            np.testing.assert_allclose(vectors[0], wanted, atol=1e-5 * np.abs(wanted).max())
    (reading,) = extractor.read([jobs[0].example.path])
    np.testing.assert_allclose(reading.vector, expected[0], atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("distortions", [None, Distortions(True, random_crop=20, views=2)])
@pytest.mark.parametrize(
    "settings",
    [ExtractionSettings(), ExtractionSettings("bfloat16"), ExtractionSettings(batch_size=5)],
)
def test_broken_off_runs_store_the_same_vectors(tmp_path, network, photos, settings, distortions):
    """Whatever the order and the moment at which a run was broken off; see FixedBatches."""
    jobs = [Job(example, distortions) for example in examples(photos, 30)]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    cuts = [jobs[20:23], jobs[7:8], jobs[::-3], jobs]
    found = []
    for folder, runs in ((whole, [jobs]), (parts, cuts)):
        with BottleneckStore(folder, "net", "0" * 40, network.width) as store:
            for some_jobs in runs:
                fill_store(store, some_jobs, Extractor(network, settings), plain)
            found.append(store.read([key for job in jobs for key in job.keys]))
    # Some processors round by the place in the batch; see FixedBatches.
    np.testing.assert_allclose(*found, rtol=0, atol=1e-5 * np.abs(found[0]).max())


@pytest.mark.parametrize(
    ("free", "batches"),
    [(None, 6), (1 << 40, 6), (12 << 30, 6), ((12 << 30) - 1, 5), (2 << 30, 1), (0, 1)],
)
def test_fewer_batches_run_at_once_where_memory_is_short(monkeypatch, free, batches):
    monkeypatch.setattr(extract, "free_memory", lambda: free)
    assert batches_in_memory(8, 6) == batches
    runner = WholeBatchRunner()
    runner.parallel = 6
    fixed = FixedBatches.of(runner)
    assert (fixed.size, fixed.parallel) == (8, batches)
    mirrored = FixedBatches.of(runner, images_per_photo=2)
    assert (mirrored.size, mirrored.parallel) == (4, batches)
