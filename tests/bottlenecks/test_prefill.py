"""prefill.py: a photo far away is read once, for its key and its vector."""

import numpy as np
import pytest

from retraining.bottlenecks.file_keys import FileKeys
from retraining.bottlenecks.prefill import NoImageError, Reading, prefill
from retraining.bottlenecks.store import BottleneckStore
from retraining.photos.reader import ImageError
from retraining.photos.source import Facts, Photo

SETTLED = Facts(5, 1, True)


def plain(items, total):
    return items


class Reader:
    """Answers with Readings, and remembers of what."""

    def __init__(self, **answers):
        self.answers, self.asked = answers, []

    def __call__(self, paths):
        self.asked.append(paths)
        for path in reversed(paths):  # any order will do
            yield Reading(path, *self.answers[path.rpartition("/")[2]])


@pytest.fixture
def store(tmp_path):
    with BottleneckStore(tmp_path, "network", "f" * 40, 3) as store:
        yield store


def test_prefill_reads_what_is_unknown_once(tmp_path, store):
    names = ["one", "two", "broken", "text", "gone"]
    photos = [Photo(f"s3://b/{name}", facts=SETTLED) for name in names]
    vector = np.array([1, 2, 3], np.float32)
    read = Reader(
        one=("1" * 40, vector),
        two=("1" * 40, vector),
        broken=("3" * 40, ImageError("is a broken image")),
        text=("4" * 40, NoImageError("is not an image")),
        gone=(None, ImageError("cannot be read: No such file")),
    )
    for wanted in (
        [photo.name for photo in photos],
        ["s3://b/broken", "s3://b/text", "s3://b/gone"],
    ):
        with FileKeys(tmp_path) as files:
            filled = prefill(photos, files, store, read, plain)
        assert read.asked.pop() == wanted
        assert filled.broken == {"3" * 40: "is a broken image"}
        assert filled.not_images == {"s3://b/text"}
        assert filled.keys == {
            path: read.answers[path.rpartition("/")[2]][0] for path in wanted if "gone" not in path
        }
    assert store.read(["1" * 40]).tolist() == [[1, 2, 3]]


def test_prefill_keeps_vectors_that_are_there(tmp_path, store):
    store.put("1" * 40, np.zeros(3, np.float32), imported=True)
    read = Reader(one=("1" * 40, np.ones(3, np.float32)))
    with FileKeys(tmp_path) as files:
        prefill([Photo("s3://b/one", facts=SETTLED)], files, store, read, plain)
    assert store.read(["1" * 40]).tolist() == [[0, 0, 0]]


def test_prefill_does_not_trip_over_files_that_have_vanished(tmp_path, store):
    gone = Photo(str(tmp_path / "gone.jpg"), facts=SETTLED)
    read = Reader(**{"gone.jpg": (None, ImageError("cannot be read: No such file"))})
    with FileKeys(tmp_path / "keys") as files:
        assert prefill([gone], files, store, read, plain).keys == {}
