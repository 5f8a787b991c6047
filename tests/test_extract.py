"""extract.py: order, batches, errors in the middle, the store filled once."""

import shutil
import threading

import numpy as np
import pytest

from retraining import extract
from retraining.cache import BottleneckStore
from retraining.dataset import Example, hash_file
from retraining.extract import Extractor, Job, choose_batch_size, fill_store, stream
from retraining.graph import GraphError, load_network
from retraining.images import Distortions, ImageError
from retraining.networks import NETWORKS


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


def test_batches_are_never_larger_than_asked():
    runner = SumRunner()
    list(stream(range(50), load, runner, 4))
    assert max(runner.batches) == 4
    assert sum(runner.batches) == sum(1 + item % 3 for item in range(50))


def test_no_item_gives_no_answer():
    assert list(stream([], load, SumRunner())) == []


def test_a_flush_brings_all_answers_up_to_it():
    got = []

    def items():
        for n in range(10):
            yield n
            if n % 3 == 0:
                yield extract.FLUSH
                assert got == list(range(n + 1))
        yield extract.FLUSH

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
    original = extract.Runner
    monkeypatch.setattr(extract, "Runner", lambda *a: made.append(a) or original(*a))
    extractor = Extractor(network)
    extractor.start()
    job = Job(examples(photos, 1)[0])
    ((_, first),) = extractor.run([job])
    ((_, again),) = extractor.run([job])
    np.testing.assert_array_equal(first, again)
    assert len(made) == 1


def test_a_network_that_cannot_start_says_so_when_it_is_used(network, photos, monkeypatch):
    def broken(*_):
        raise GraphError("no such network")

    monkeypatch.setattr(extract, "Runner", broken)
    extractor = Extractor(network)
    extractor.start()
    with pytest.raises(GraphError, match="no such network"):
        list(extractor.run([Job(examples(photos, 1)[0])]))


@pytest.mark.parametrize(
    ("free", "size"),
    [(1 << 40, 8), (4 << 30, 8), ((4 << 30) - 1, 4), (1 << 30, 2), (1, 1)],
)
def test_batches_are_smaller_where_memory_is_short(monkeypatch, free, size):
    monkeypatch.setattr(extract.os, "sysconf", lambda name: free if "PAGES" in name else 1)
    assert choose_batch_size(2) == size
    assert choose_batch_size(2, images_per_photo=2) == max(1, size // 2)
