"""regular.py: files that are none, or have no end."""

import os

import pytest

from retraining.system.regular import open_regular

posix = pytest.mark.skipif(os.name != "posix", reason="needs pipes and devices")


def test_a_file_is_read(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    with open_regular(tmp_path / "file", 7) as file:
        assert file.read() == b"content"


@posix
def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", "/dev/null"):
        with pytest.raises(OSError, match="it is a pipe, a socket or a device, not a file"):
            open_regular(path, 10)
    with pytest.raises(IsADirectoryError, match="it is a folder, not a file"):
        open_regular(tmp_path, 10)


@posix
def test_a_file_that_becomes_a_pipe_is_refused_at_once(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    looked_at = os.stat(tmp_path / "file")
    monkeypatch.setattr(os, "stat", lambda _: looked_at)
    with pytest.raises(OSError, match="it is a pipe, a socket or a device"):
        open_regular(tmp_path / "pipe", 10)


def test_a_large_file_is_refused(tmp_path):
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(6 << 30)
    with pytest.raises(OSError, match="it has 6442450944 bytes, more than the 4294967296") as error:
        open_regular(tmp_path / "sparse", 4 << 30)
    assert error.value.filename == str(tmp_path / "sparse")


def test_a_name_that_cannot_be_is_an_error_of_the_system():
    with pytest.raises(OSError, match="null"):
        open_regular("a\0b", 10)
