"""store.py: the store on disk."""

import contextlib
import multiprocessing
import os
import signal
import sqlite3
import threading
import time

import numpy as np
import pytest

from retraining.bottlenecks import database
from retraining.bottlenecks import store as store_module
from retraining.bottlenecks.store import BottleneckStore, CacheError
from retraining.photos.formats import PIXELS

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


def marks(folder):
    """{key: mark} of the store in a folder."""
    (path,) = folder.glob("*.sqlite")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return dict(connection.execute("SELECT key, imported FROM vectors"))


def test_vectors_of_older_pixels_are_asked_about_once(tmp_path):
    """A vector whose photo is decoded as before stays, and is not asked about again."""
    keys = ["same", "changed", "imported", "new"]
    with open_store(tmp_path) as store:
        store.put("same", vector(1), version=2)
        store.put("changed", vector(2), version=2)
        store.put("imported", vector(3), imported=True)
        store.put("new", vector(4))
    assert marks(tmp_path) == {"same": 0, "changed": 0, "imported": 1, "new": PIXELS}
    asked = []

    def changed(versions):
        asked.append(versions)
        return {"changed"}

    with open_store(tmp_path) as store:
        assert store.missing(keys) == []  # nobody says what changed
        assert store.missing(keys, changed) == ["changed"]
        assert store.missing(keys, changed) == ["changed"]
        assert asked == [{"same": 2, "changed": 2}]
        (note,) = store.notes
        assert "1 vector in" in note
        np.testing.assert_array_equal(store.read(["same"]), [vector(1)])
    assert marks(tmp_path) == {"same": PIXELS, "imported": 1, "new": PIXELS}


def test_a_missing_vector_is_an_error_not_a_guess(tmp_path):
    with open_store(tmp_path) as store, pytest.raises(CacheError, match="lacks 1 vector that"):
        store.read(["nothing"])


def test_networks_have_files_of_their_own(tmp_path):
    with open_store(tmp_path) as one, open_store(tmp_path, fingerprint="f" * 32) as other:
        one.put("a", vector(1))
        assert one.path != other.path
        assert other.missing(["a"]) == ["a"]


@pytest.mark.parametrize("bad", [vector(1, 3), vector(1, 5), np.array([1, 2, np.nan, 4], "f4")])
def test_an_invalid_vector_is_not_stored(tmp_path, bad):
    with open_store(tmp_path) as store:
        with pytest.raises(CacheError, match="no valid vector"):
            store.put("a", bad)
        assert store.missing(["a"]) == ["a"]


def fill(folder, count=40):
    with open_store(folder) as store:
        for number in range(count):
            store.put(f"key{number}", vector(number))
        return store.path


def refill(folder, count=40):
    """What a run does: computes what is missing, reads all; returns (missing keys, notes)."""
    keys = [f"key{number}" for number in range(count)]
    with open_store(folder) as store:
        missing = store.missing(keys)
        for key in missing:
            store.put(key, vector(int(key[3:])))
        np.testing.assert_array_equal(store.read(keys), [vector(n) for n in range(count)])
        return missing, store.notes


@pytest.mark.parametrize(
    "damage",
    [
        "vector = x'0000'",
        "vector = zeroblob(16)",
        "vector = zeroblob(20)",
        "vector = 'text'",
        "check_sum = check_sum + 1",
        "vector = (SELECT vector FROM vectors WHERE key = 'key4')",
    ],
)
def test_an_unsound_row_is_computed_again(tmp_path, damage):
    with contextlib.closing(sqlite3.connect(fill(tmp_path))) as other, other:
        other.execute(f"UPDATE vectors SET {damage} WHERE key = 'key3'")
    missing, notes = refill(tmp_path)
    assert missing == ["key3"]
    assert ["1 vector in" in note for note in notes] == [True]
    assert refill(tmp_path) == ([], [])


def test_a_row_damaged_after_it_was_looked_for_is_an_error(tmp_path):
    with open_store(tmp_path) as store:
        store.put("a", vector(1))
        store.commit()
        with contextlib.closing(sqlite3.connect(store.path)) as other, other:
            other.execute("UPDATE vectors SET vector = zeroblob(16)")
        with pytest.raises(CacheError, match="lacks 1 vector that"):
            store.read(["a"])


def a_foreign_database(path):
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as other, other:
        other.execute("CREATE TABLE recipes (name TEXT)")


def an_older_schema(path):
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as other, other:
        other.execute("CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
        other.execute("CREATE TABLE vectors (key TEXT PRIMARY KEY, vector BLOB NOT NULL)")
        other.execute("INSERT INTO facts VALUES ('schema', '1')")


def another_networks_vectors(path):
    with contextlib.closing(sqlite3.connect(path)) as other, other:
        other.execute("UPDATE facts SET value = 'x' WHERE name = 'fingerprint'")


def no_database(path):
    path.write_bytes(b"something else entirely" * 100)


def a_torn_header(path):
    path.write_bytes(b"\0" * 100 + path.read_bytes()[100:])


@pytest.mark.parametrize(
    "put_in_place",
    [a_foreign_database, an_older_schema, another_networks_vectors, no_database, a_torn_header],
)
def test_what_is_not_our_store_is_moved_aside_and_begun_anew(tmp_path, put_in_place):
    path = fill(tmp_path)
    put_in_place(path)
    content = path.read_bytes()
    missing, notes = refill(tmp_path)
    assert len(missing) == 40
    (note,) = notes
    aside = [p for p in tmp_path.iterdir() if ".damaged-" in p.name]
    assert len(aside) == 1
    assert str(aside[0]) in note
    assert aside[0].read_bytes() == content
    assert refill(tmp_path) == ([], [])


def test_a_torn_page_is_found_when_it_is_read(tmp_path):
    path = fill(tmp_path, 2000)
    content = bytearray(path.read_bytes())
    content[4096 * 3 :] = b"\xff" * (len(content) - 4096 * 3)
    path.write_bytes(content)
    missing, notes = refill(tmp_path, 2000)
    assert len(missing) == 2000
    assert "moved it to" in notes[0]
    assert refill(tmp_path, 2000) == ([], [])


def test_two_damaged_files_in_one_second_have_names_of_their_own(tmp_path):
    for _ in range(3):
        no_database(fill(tmp_path))
    open_store(tmp_path).close()
    assert len([p for p in tmp_path.iterdir() if ".damaged-" in p.name]) == 3


@pytest.mark.parametrize("flips", range(30))
def test_flipped_bits_never_give_a_wrong_vector(tmp_path, flips):
    path = fill(tmp_path, 200)
    rng = np.random.default_rng(flips)
    content = np.frombuffer(path.read_bytes(), np.uint8).copy()
    places = rng.integers(len(content), size=20)
    content[places] ^= 1 << rng.integers(8, size=20, dtype=np.uint8)
    path.write_bytes(content.tobytes())
    with contextlib.suppress(CacheError):  # which says "run again"
        refill(tmp_path, 200)  # asserts that all vectors are right
    refill(tmp_path, 200)
    assert refill(tmp_path, 200) == ([], [])


def test_a_folder_in_its_place_is_an_error(tmp_path):
    path = tmp_path / f"net-{FINGERPRINT[:16]}.sqlite"
    path.mkdir()
    with pytest.raises(CacheError, match="cannot be used"):
        open_store(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on file sizes")
def test_a_full_disk_loses_nothing_that_was_committed(tmp_path):
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        kept, message = pool.apply(_put_until_full, (tmp_path,))
    assert "cannot be used" in message
    assert kept > 100
    missing, notes = refill(tmp_path, kept)
    assert (missing, notes) == ([], [])


def _put_until_full(folder):
    """(number of vectors committed, the error) on a disk with room for a megabyte."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    store, kept = open_store(folder), 0
    for number in range(10**6):
        try:
            store.put(f"key{number}", vector(number))
            store.commit()
        except CacheError as error:
            return kept, str(error)
        kept = number + 1
    return None


def _put_until_killed(folder):
    store_module.COMMIT_SECONDS = 0.0
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
        with contextlib.closing(sqlite3.connect(path, timeout=5)) as connection:
            return connection.execute("SELECT count(*) FROM vectors").fetchone()[0]
    except sqlite3.OperationalError:  # not created yet
        return 0


def _put_range(folder, start):
    with open_store(folder) as store:
        for number in range(start, start + 300):
            store.put(f"key{number}", vector(number))
            if number % 20 == 0:
                store.commit()


def _open_together(folder, together):
    """Opens 20 new stores, each in the same moment as three other processes."""
    for number in range(20):
        together.wait(60)
        with open_store(folder / str(number)) as store:
            store.put(f"key{os.getpid()}", vector(number))


def test_four_processes_open_a_new_store_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(4)
    openers = [context.Process(target=_open_together, args=(tmp_path, together)) for _ in range(4)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join()
    assert [opener.exitcode for opener in openers] == [0] * 4
    for number in range(20):
        with open_store(tmp_path / str(number)) as store:
            assert store.missing([f"key{opener.pid}" for opener in openers]) == []
            assert store.notes == []


def test_a_new_store_waits_for_the_process_that_makes_it(tmp_path):
    """SQLite itself refuses the switch to WAL at once while the file is reserved for a writer."""
    with open_store(tmp_path) as store:
        path = store.path
    path.unlink()
    maker = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    maker.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.3, lambda: maker.execute("COMMIT"))
    timer.start()
    with open_store(tmp_path) as store:
        assert store.missing(["a"]) == ["a"]
    timer.join()
    maker.close()


def test_a_store_that_stays_locked_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.2)
    with open_store(tmp_path) as store:
        path = store.path
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(CacheError, match=r"cannot be used .*locked"):
            open_store(tmp_path)


ADDED = {
    "trigger": "CREATE TRIGGER t AFTER INSERT ON vectors BEGIN INSERT INTO facts {}; END",
    "trigger of facts": "CREATE TRIGGER t AFTER DELETE ON vectors BEGIN SELECT * {}; END",
    "view": "CREATE VIEW v AS SELECT * {}",
    "index": "CREATE INDEX i ON vectors (imported)",
    "table": "CREATE TABLE t (x)",
}
FOR_EVER = "FROM (WITH RECURSIVE x(v) AS (SELECT 1 UNION ALL SELECT v FROM x) SELECT v, v FROM x)"


@pytest.mark.parametrize("kind", ADDED)
def test_what_others_have_added_is_moved_aside_unread(tmp_path, kind):
    select = f"SELECT * {FOR_EVER}" if kind == "trigger" else FOR_EVER
    with contextlib.closing(sqlite3.connect(fill(tmp_path))) as other, other:
        other.execute(ADDED[kind].format(select))
    missing, notes = refill(tmp_path)
    assert len(missing) == 40
    assert ["was damaged or not a bottleneck store" in note for note in notes] == [True]
    assert refill(tmp_path) == ([], [])


@pytest.mark.parametrize("column", ["vector", "imported", "check_sum"])
def test_a_huge_value_is_damage_and_not_read(tmp_path, column):
    with contextlib.closing(sqlite3.connect(fill(tmp_path))) as other, other:
        other.execute(f"UPDATE vectors SET {column} = zeroblob(100000)")
    missing, notes = refill(tmp_path)
    assert len(missing) == 40
    assert ["was damaged; moved it to" in note for note in notes] == [True]
    assert refill(tmp_path) == ([], [])


def test_a_row_takes_the_widest_vector(tmp_path):
    vector = np.full(100_000, 1.5, np.float32)
    with BottleneckStore(tmp_path, "net", "f" * 40, len(vector)) as store:
        store.put("a" * 40, vector)
        assert (store.read(["a" * 40]) == vector).all()


@pytest.mark.parametrize("table", ["vectors", "facts"])
def test_a_view_in_place_of_a_table_is_moved_aside_unread(tmp_path, table):
    with contextlib.closing(sqlite3.connect(fill(tmp_path))) as other, other:
        other.execute(f"DROP TABLE {table}")
        other.execute(f"CREATE VIEW {table} AS SELECT v AS name, v AS value {FOR_EVER}")
    missing, _ = refill(tmp_path)
    assert len(missing) == 40


@pytest.mark.skipif(os.name != "posix", reason="needs pipes")
@pytest.mark.parametrize("suffix", database.SUFFIXES)
def test_a_pipe_in_place_of_a_file_is_moved_aside_unopened(tmp_path, suffix):
    path = fill(tmp_path)
    path.with_name(path.name + suffix).unlink(missing_ok=True)
    os.mkfifo(f"{path}{suffix}")
    missing, notes = refill(tmp_path)
    assert len(missing) == 40
    assert ["was damaged or not a bottleneck store" in note for note in notes] == [True]
    assert refill(tmp_path) == ([], [])


@pytest.mark.parametrize("mode", ["IMMEDIATE", "EXCLUSIVE"])
def test_waiting_for_a_locked_store_is_said_once(tmp_path, monkeypatch, caplog, mode):
    monkeypatch.setattr(database, "QUIET_SECONDS", 0.05)
    path = fill(tmp_path)
    with contextlib.closing(
        sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    ) as other:
        other.execute(f"PRAGMA locking_mode = {'EXCLUSIVE' if mode == 'EXCLUSIVE' else 'NORMAL'}")
        other.execute(f"BEGIN {mode}")

        def let_go():
            other.execute("COMMIT")
            other.close()

        timer = threading.Timer(0.5, let_go)
        timer.start()
        with open_store(tmp_path) as store:
            store.put("new", vector(1))
        timer.join()
    assert caplog.messages == [f"waiting for another process that has locked {path}"]
    assert refill(tmp_path)[0] == []


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
    monkeypatch.setattr(store_module, "MEMORY_BYTES", 100)
    values = np.random.default_rng(0).normal(size=(50, 4)).astype("f4")
    with open_store(tmp_path) as store:
        for number, value in enumerate(values):
            store.put(f"key{number}", value)
        found = store.read([f"key{number}" for number in range(50)])
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, values)
    np.testing.assert_array_equal(found[[4, 4, 7]], values[[4, 4, 7]])
    assert [path.suffix for path in tmp_path.iterdir()] == [".sqlite"]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot take the room")
def test_mapped_vectors_have_their_room_on_the_disk(tmp_path, monkeypatch):
    """Else a full disk ends the process by a signal when the vectors are filled in."""
    kept, temporary_file = [], store_module.tempfile.TemporaryFile

    def keep(**settings):
        file = temporary_file(**settings)
        kept.append(os.dup(file.fileno()))
        return file

    monkeypatch.setattr(store_module.tempfile, "TemporaryFile", keep)
    monkeypatch.setattr(store_module, "MEMORY_BYTES", 100)
    with open_store(tmp_path) as store:
        store._array(1 << 18, 4)
        (descriptor,) = kept
        assert os.fstat(descriptor).st_blocks * 512 >= 4 << 20
        os.close(descriptor)

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(store_module.os, "posix_fallocate", full)
        with pytest.raises(CacheError, match=r"cannot be used \(.*No space left on device\)"):
            store._array(1 << 18, 4)
    os.close(kept[1])
