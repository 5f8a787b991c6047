"""atomic.py: files are replaced whole or not at all."""

import os

import pytest

from retraining.system import atomic
from retraining.system.atomic import WriteError, check_writable, replacing, write_files


def test_all_files_are_replaced_or_none(tmp_path, monkeypatch):
    one, two = tmp_path / "a" / "one", tmp_path / "a" / "two"
    write_files({one: b"1", two: b"2"})
    write_files({one: b"one", two: b"two"})
    assert (one.read_bytes(), two.read_bytes()) == (b"one", b"two")
    with pytest.raises(WriteError, match="cannot write"):
        write_files({one: b"new", tmp_path / "a" / "two" / "below a file": b"x"})
    assert one.read_bytes() == b"one"

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(WriteError, match="No space left"):
        write_files({one: b"new"})
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["one", "two"]
    assert one.read_bytes() == b"one"


def test_a_new_folder_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    content = {"a": b"1", "b/c": b"2"}
    write_files({tmp_path / "new" / "1": content, tmp_path / "file": b"3"})
    assert (tmp_path / "new" / "1" / "b" / "c").read_bytes() == b"2"
    assert (tmp_path / "new" / "1" / "a").read_bytes() == b"1"
    with pytest.raises(WriteError, match="it is a folder"):
        write_files({tmp_path / "file": b"4", tmp_path / "new" / "1": content})
    assert (tmp_path / "file").read_bytes() == b"3"
    monkeypatch.setattr(atomic.os, "fsync", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_files({tmp_path / "new" / "2": content})
    assert os.listdir(tmp_path / "new") == ["1"]


@pytest.mark.parametrize("flush", [True, False])
def test_a_file_written_bit_by_bit_replaces_another_once_complete(tmp_path, flush):
    path = tmp_path / "new" / "file"
    with replacing(path, flush) as file:
        file.write(b"1")
        assert not path.exists()
        file.write(b"2")
    assert path.read_bytes() == b"12"
    with pytest.raises(ZeroDivisionError), replacing(path, flush) as file:
        file.write(bytes(3 // file.write(b"")))
    assert path.read_bytes() == b"12"
    assert os.listdir(tmp_path / "new") == ["file"]


def test_what_a_killed_run_left_is_removed_after_a_day(tmp_path):
    (tmp_path / ".retrain-1-0.part" / "a").mkdir(parents=True)
    (tmp_path / ".retrain-1-1.part").write_text("x")
    check_writable(tmp_path / "file")
    assert len(os.listdir(tmp_path)) == 2
    for left in tmp_path.iterdir():
        os.utime(left, (0, 0))
    check_writable(tmp_path / "file")
    assert os.listdir(tmp_path) == []


def test_looking_whether_a_file_can_be_written_leaves_nothing(tmp_path):
    check_writable(tmp_path / "new" / "folder" / "file")
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(WriteError, match=r"cannot write into .*below"):
        check_writable(tmp_path / "file" / "below" / "file")
    with pytest.raises(WriteError, match="cannot write into"):
        check_writable(tmp_path / ("x" * 300) / "file")


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_files({tmp_path / "link": b"new"})
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path):
    write_files({tmp_path / ("x" * 255): b"long"})
    assert (tmp_path / ("x" * 255)).read_bytes() == b"long"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_or_a_device_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for function in (check_writable, lambda path: write_files({path: b"x"})):
        with pytest.raises(WriteError, match="a device or a pipe"):
            function(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
