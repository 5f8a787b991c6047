"""cache.py: the store on disk."""

import multiprocessing
import os
import signal
import sqlite3
import time

import numpy as np
import pytest

from retraining import cache
from retraining.cache import BottleneckStore, CacheError, FileKeys

FINGERPRINT = "0123456789abcdef" * 2


def open_store(folder, width=4, fingerprint=FINGERPRINT):
    return BottleneckStore(folder, "net", fingerprint, width)


def vector(number, width=4):
    return np.full(width, number, np.float32) + np.arange(width, dtype=np.float32) / 8


def test_what_is_put_is_read_back_bit_for_bit(tmp_path):
    values = np.random.default_rng(0).normal(size=(1200, 4)).astype("f4")
    with open_store(tmp_path) as store:
        for number, value in enumerate(values):
            store.put(f"key{number}", value)
    with open_store(tmp_path) as store:
        order = [*reversed(range(1200)), 3, 3]
        found = store.read([f"key{number}" for number in order])
        np.testing.assert_array_equal(found, values[order])
        assert found.dtype == np.float32


def test_missing_keys_are_listed_once_in_order(tmp_path):
    with open_store(tmp_path) as store:
        store.put("b", vector(1))
        assert store.missing(["c", "b", "a", "c"]) == ["c", "a"]
        store.commit()
        assert store.missing(["c", "b", "a", "c"]) == ["c", "a"]


def test_imported_vectors_are_remembered_as_such(tmp_path):
    with open_store(tmp_path) as store:
        store.put("a", vector(1), imported=True)
        store.put("b", vector(2))
    with open_store(tmp_path) as store:
        assert store.imported(["a", "b", "c"]) == {"a"}
        np.testing.assert_array_equal(store.read(["a", "b"]), [vector(1), vector(2)])


def test_a_missing_vector_is_an_error_not_a_guess(tmp_path):
    with open_store(tmp_path) as store, pytest.raises(CacheError, match="lacks 1 vectors"):
        store.read(["nothing"])


def test_networks_have_files_of_their_own(tmp_path):
    with open_store(tmp_path) as one, open_store(tmp_path, fingerprint="f" * 32) as other:
        one.put("a", vector(1))
        assert one.path != other.path
        assert other.missing(["a"]) == ["a"]


def test_vectors_of_another_network_are_not_taken(tmp_path):
    with open_store(tmp_path) as store:
        path = store.path
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE facts SET value = 'x' WHERE name = 'fingerprint'")
    with pytest.raises(CacheError, match="holds other vectors"):
        open_store(tmp_path)


@pytest.mark.parametrize("bad", [vector(1, 3), vector(1, 5), np.array([1, 2, np.nan, 4], "f4")])
def test_an_invalid_vector_is_not_stored(tmp_path, bad):
    with open_store(tmp_path) as store:
        with pytest.raises(CacheError, match="no valid vector"):
            store.put("a", bad)
        assert store.missing(["a"]) == ["a"]


def test_a_shortened_row_is_an_error(tmp_path):
    with open_store(tmp_path) as store:
        store.put("a", vector(1))
        store.commit()
        with sqlite3.connect(store.path) as other:
            other.execute("UPDATE vectors SET vector = x'0000'")
        with pytest.raises(CacheError, match="wrong length"):
            store.read(["a"])


def test_a_file_that_is_no_database_is_an_error(tmp_path):
    with open_store(tmp_path) as store:
        path = store.path
    path.write_bytes(b"something else entirely" * 100)
    with pytest.raises(CacheError, match="cannot be used"):
        open_store(tmp_path)
    assert path.read_bytes().startswith(b"something else")


def _put_until_killed(folder):
    cache.COMMIT_SECONDS = 0.0
    with open_store(folder) as store:
        for number in range(10**9):
            store.put(f"key{number}", vector(number))


def test_a_killed_writer_loses_nothing_it_committed(tmp_path):
    context = multiprocessing.get_context("spawn")
    writer = context.Process(target=_put_until_killed, args=(tmp_path,))
    writer.start()
    while _rows(tmp_path) < 50:
        time.sleep(0.01)
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    with open_store(tmp_path) as store:
        keys = [f"key{number}" for number in range(50)]
        np.testing.assert_array_equal(store.read(keys), [vector(n) for n in range(50)])


def _rows(folder):
    path = folder / f"net-{FINGERPRINT[:16]}.sqlite"
    if not path.exists():
        return 0
    try:
        with sqlite3.connect(path, timeout=5) as connection:
            return connection.execute("SELECT count(*) FROM vectors").fetchone()[0]
    except sqlite3.OperationalError:  # not created yet
        return 0


def _put_range(folder, start):
    with open_store(folder) as store:
        for number in range(start, start + 300):
            store.put(f"key{number}", vector(number))
            if number % 20 == 0:
                store.commit()


def test_two_processes_share_a_store(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_put_range, args=(tmp_path, n)) for n in (0, 150)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    with open_store(tmp_path) as store:
        found = store.read([f"key{number}" for number in range(450)])
    np.testing.assert_array_equal(found, [vector(number) for number in range(450)])


def test_many_vectors_are_mapped_from_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "MEMORY_BYTES", 100)
    values = np.random.default_rng(0).normal(size=(50, 4)).astype("f4")
    with open_store(tmp_path) as store:
        for number, value in enumerate(values):
            store.put(f"key{number}", value)
        found = store.read([f"key{number}" for number in range(50)])
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, values)
    np.testing.assert_array_equal(found[[4, 4, 7]], values[[4, 4, 7]])
    assert [path.suffix for path in tmp_path.iterdir()] == [".sqlite"]


# -- FileKeys --------------------------------------------------------------------------------


class Hasher:
    """Stands in for hash_file; notes what was hashed."""

    def __init__(self):
        self.hashed = []

    def __call__(self, path):
        self.hashed.append(os.path.basename(path))
        return path.read_text()


def write_old(path, text, age=100):
    path.write_text(text)
    os.utime(path, (time.time() - age,) * 2)


def test_a_file_is_hashed_again_only_if_its_size_or_time_changed(tmp_path):
    hasher, a, b = Hasher(), tmp_path / "a", tmp_path / "b\udcff"
    write_old(a, "one")
    write_old(b, "two")
    for _ in range(2):
        with FileKeys(tmp_path / "cache", hasher) as files:
            assert (files.key_of(a), files.key_of(b)) == ("one", "two")
    assert len(hasher.hashed) == 2
    write_old(a, "new", age=50)  # the same size, another time
    write_old(b, "longer")  # another size
    with FileKeys(tmp_path / "cache", hasher) as files:
        assert (files.key_of(a), files.key_of(b)) == ("new", "longer")
    assert len(hasher.hashed) == 4


def test_a_file_that_has_just_changed_is_not_trusted(tmp_path):
    hasher = Hasher()
    for text in ("one", "two"):
        (tmp_path / "a").write_text(text)
        with FileKeys(tmp_path / "cache", hasher) as files:
            assert files.key_of(tmp_path / "a") == text
    assert len(hasher.hashed) == 2


def test_without_its_own_file_every_file_is_hashed(tmp_path):
    hasher = Hasher()
    write_old(tmp_path / "a", "one")
    (tmp_path / "cache").write_text("in the way")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "file_keys.sqlite").write_text("no database" * 100)
    for folder in (tmp_path / "cache", damaged):
        for _ in range(2):
            with FileKeys(folder, hasher) as files:
                assert files.key_of(tmp_path / "a") == "one"
    assert len(hasher.hashed) == 4
