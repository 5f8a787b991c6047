"""file_keys.py: keys of files are remembered while the files stay as they are."""

import contextlib
import os
import sqlite3
import time
from pathlib import Path

import pytest

from retraining.bottlenecks.file_keys import FileKeys
from retraining.photos.folder import facts_of
from retraining.photos.source import Facts, Photo


class Hasher:
    """Stands in for hash_file; notes what was hashed."""

    def __init__(self):
        self.hashed = []

    def __call__(self, path):
        self.hashed.append(os.path.basename(path))
        return Path(path).read_text()


def photo(path):
    """The Photo of a file as it is now."""
    return Photo(str(path), facts=facts_of(os.stat(path)))


def write_old(path, text, age=100):
    path.write_text(text)
    os.utime(path, (time.time() - age,) * 2)


def test_a_file_is_hashed_again_only_if_its_size_or_time_changed(tmp_path):
    hasher, a, b = Hasher(), tmp_path / "a", tmp_path / "b\udcff"
    write_old(a, "one")
    write_old(b, "two")
    for _ in range(2):
        with FileKeys(tmp_path / "cache", hasher) as files:
            assert (files.key_of(photo(a)), files.key_of(photo(b))) == ("one", "two")
    assert len(hasher.hashed) == 2
    write_old(a, "new", age=50)  # the same size, another time
    write_old(b, "longer")  # another size
    with FileKeys(tmp_path / "cache", hasher) as files:
        assert (files.key_of(photo(a)), files.key_of(photo(b))) == ("new", "longer")
    assert len(hasher.hashed) == 4


def test_a_file_that_has_just_changed_is_not_trusted(tmp_path):
    hasher = Hasher()
    for text in ("one", "two"):
        (tmp_path / "a").write_text(text)
        with FileKeys(tmp_path / "cache", hasher) as files:
            assert files.key_of(photo(tmp_path / "a")) == text
    assert len(hasher.hashed) == 2


def test_without_its_own_file_every_file_is_hashed(tmp_path):
    hasher = Hasher()
    write_old(tmp_path / "a", "one")
    (tmp_path / "cache").write_text("in the way")
    for _ in range(2):
        with FileKeys(tmp_path / "cache", hasher) as files:
            assert files.key_of(photo(tmp_path / "a")) == "one"
    assert len(hasher.hashed) == 2


@pytest.mark.parametrize("damage", ["no database" * 100, None])
def test_a_damaged_memory_of_files_is_never_believed(tmp_path, damage):
    hasher = Hasher()
    write_old(tmp_path / "a", "one")
    with FileKeys(tmp_path / "cache", hasher) as files:
        files.key_of(photo(tmp_path / "a"))
    path = tmp_path / "cache" / "file_keys.sqlite"
    if damage:
        path.write_text(damage)
    else:
        with contextlib.closing(sqlite3.connect(path)) as other, other:
            other.execute("UPDATE files SET key = 'two'")
    for _ in range(2):
        with FileKeys(tmp_path / "cache", hasher) as files:
            assert files.key_of(photo(tmp_path / "a")) == "one"
    assert len(hasher.hashed) == 2


SETTLED = Facts(5, 1, True)


def test_keys_of_urls_are_remembered_by_size_and_stamp(tmp_path):
    hashed = []

    def hash_url(path):
        hashed.append(path)
        return f"{len(hashed)}"

    for now, key in [
        (SETTLED, "1"),
        (SETTLED, "1"),
        (Facts(5, 2, True), "2"),  # another version of the same size
        (Facts(6, 2, False), "3"),
        (Facts(6, 2, False), "4"),  # whose changes may not show
    ]:
        with FileKeys(tmp_path, hash_url) as files:
            assert files.key_of(Photo("s3://b/x", facts=now)) == key
