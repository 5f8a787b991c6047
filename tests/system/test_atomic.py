"""atomic.py: files are replaced whole or not at all."""

import json
import os
import sys

import pytest

from retraining.system import atomic
from retraining.system.atomic import (
    WriteError,
    check_writable,
    finish_writing,
    journal_of,
    replacing,
    temporary_name,
    write_files,
)


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


def killed_at(number, work):
    """Forks a child that does the work but dies before its n-th call of the system; returns n.

    Returns 0 if the work ended before.
    """
    child = os.fork()
    if child == 0:
        calls = iter(range(1, 10_000))
        for name in ("fsync", "replace", "unlink", "mkdir", "rmdir"):
            call = getattr(os, name)

            def dying(*args, call=call, **kwargs):
                return os._exit(9) if next(calls) == number else call(*args, **kwargs)

            setattr(os, name, dying)
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) and number


@pytest.mark.skipif(os.name != "posix", reason="needs fork")
def test_a_set_of_files_is_all_old_or_all_new_after_a_kill_at_any_moment(tmp_path):
    other = tmp_path / "other"
    paths = [tmp_path / "graph", tmp_path / "labels", other / "report"]
    moved = {tmp_path / "audit": tmp_path / "audit-of-earlier"}
    journal = journal_of(paths[0])
    found = []
    for number in range(1, 100):
        write_files(dict.fromkeys([*paths, *moved], b"old"))
        (tmp_path / "audit-of-earlier").unlink(missing_ok=True)
        new = {**dict.fromkeys(paths, b"new"), tmp_path / f"folder{number}": {"a/b": b"new"}}
        if not killed_at(number, lambda new=new: write_files(new, journal, moved)):
            break
        done = finish_writing(journal)
        assert finish_writing(journal) == []
        contents = {path.read_bytes() for path in paths}
        assert len(contents) == 1
        is_new = contents == {b"new"}
        found.append(is_new)
        assert (tmp_path / f"folder{number}" / "a" / "b").exists() == is_new
        assert (tmp_path / "audit").exists() != is_new
        assert (tmp_path / "audit-of-earlier").exists() == is_new
        assert is_new or done == []
        assert not journal.exists()
    assert found == sorted(found)
    assert found.count(False) > 4
    assert found.count(True) > 8
    assert {path.read_bytes() for path in paths} == {b"new"}


def test_a_set_whose_rename_fails_is_completed_later(tmp_path, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    replace = os.replace

    def locked(old, new):
        if new == two:
            raise PermissionError(13, "Permission denied", str(new))
        replace(old, new)

    monkeypatch.setattr(atomic.os, "replace", locked)
    with pytest.raises(WriteError, match=f"cannot write {two}: Permission denied"):
        write_files({one: b"1", two: b"2"}, journal_of(one))
    monkeypatch.undo()
    assert finish_writing(journal_of(one)) == [two]
    assert (one.read_bytes(), two.read_bytes()) == (b"1", b"2")
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]


def test_a_journal_renames_nothing_across_folders(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "hostile").write_text("hostile")
    journal = journal_of(tmp_path / "graph")
    for pairs in ([[f"{tmp_path}/a/hostile", f"{tmp_path}/mine"]], [1], {"a": 1}, None):
        journal.write_text(json.dumps(pairs))
        assert finish_writing(journal) == []
        assert not journal.exists()
    assert sorted(os.listdir(tmp_path)) == ["a"]
    journal.write_bytes(b"\xff{")
    assert finish_writing(journal) == []


def test_a_rename_that_fails_is_tried_again(tmp_path):
    path, journal = tmp_path / "graph", journal_of(tmp_path / "graph")
    (tmp_path / "part").write_text("new")
    (path / "full").mkdir(parents=True)
    journal.write_text(json.dumps([[f"{tmp_path}/part", str(path)]]))
    with pytest.raises(WriteError, match=f"cannot write {path}: Is a directory"):
        finish_writing(journal)
    (path / "full").rmdir()
    path.rmdir()
    assert finish_writing(journal) == [path]
    assert path.read_text() == "new"


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


def leave(path, journal=None, dies_in="_write_journal"):
    """Forks a child that dies while it writes to `path`; returns the temporary files it leaves."""
    folder = path.parent
    before = set(folder.glob(".retrain-*.part"))
    child = os.fork()
    if child == 0:
        setattr(atomic, dies_in, lambda *_: os._exit(9))
        write_files({path: b"new"}, journal)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    return set(folder.glob(".retrain-*.part")) - before


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a day must have passed")
def test_what_a_dead_process_left_is_removed_at_once(tmp_path, monkeypatch):
    journal, another = journal_of(tmp_path / "graph"), journal_of(tmp_path / "other")
    leave(tmp_path / "plain", dies_in="_rename")
    leave(tmp_path / "graph", journal)
    theirs = leave(tmp_path / "other", another)
    mine = temporary_name(tmp_path / "mine", 0)  # of a process that lives
    mine.write_text("x")
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "_processes", lambda: "another0boot")
        check_writable(tmp_path / "file", journal)
        assert len(os.listdir(tmp_path)) == 4
    check_writable(tmp_path / "file", journal)
    assert {*tmp_path.iterdir()} == {mine, *theirs}
    check_writable(tmp_path / "file", another)
    assert os.listdir(tmp_path) == [mine.name]


@pytest.mark.skipif(os.name != "posix", reason="needs fork")
def test_what_a_journal_still_lists_is_kept_for_it(tmp_path):
    (tmp_path / "graph").write_bytes(b"old")
    journal = journal_of(tmp_path / "graph")
    (part,) = leave(tmp_path / "graph", journal, "_rename")
    os.utime(part, (0, 0))
    check_writable(tmp_path / "other", journal_of(tmp_path / "other"))
    assert finish_writing(journal) == [tmp_path / "graph"]
    assert (tmp_path / "graph").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["graph"]


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
