"""scratch.py and children.py: folders and programs of a process that is killed."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from retraining.system import children, scratch
from retraining.system.scratch import scratch_folder
from tests import ROOT

# A parent that runs a child in a scratch folder, and a child that holds Python's lock.
PARENT = """
import sys
from pathlib import Path
from retraining.system import children
from retraining.system.scratch import scratch_folder

children.project_folder = lambda: Path(sys.argv[2])
with scratch_folder("tried-", Path(sys.argv[1])) as folder:
    done = children.run_module("child", [sys.argv[1]], folder)
    sys.exit(done.returncode)
"""
CHILD = """
import os, re, sys, tempfile
from pathlib import Path
from retraining.system.children import end_with_parent

sys.platform = PLATFORM
end_with_parent()
place = Path(sys.argv[1])
Path(tempfile.mkdtemp(), "file").write_text("left")
(place / "new").write_text(f"{os.getpid()} {tempfile.gettempdir()}")
(place / "new").rename(place / "pid")
while True:
    BUSY
"""
WAYS = {
    "sleeping": "__import__('time').sleep(100)",
    "computing": "sum(range(1000))",
    # One call of C code, which holds Python's lock for minutes.
    "holding the lock": "re.match(r'(a*)*b', 'a' * 60)",
}


def start(tmp_path, busy="sleeping", platform=sys.platform):
    """Starts PARENT and CHILD; returns the parent and the child's process number."""
    child = CHILD.replace("BUSY", WAYS[busy]).replace("PLATFORM", repr(platform))
    (tmp_path / "child.py").write_text(child)
    place = tmp_path / "place"
    place.mkdir(exist_ok=True)
    (place / "pid").unlink(missing_ok=True)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(place), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    while not (place / "pid").exists():
        assert parent.poll() is None
        time.sleep(0.02)
    pid, its_temporary_folder = (place / "pid").read_text().split()
    assert Path(its_temporary_folder).parent == place
    return parent, int(pid)


def ends(pid, seconds=20):
    """Whether a process that nobody waits for ends within so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":  # where nobody collects orphans
            return True
        time.sleep(0.02)
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
    return False


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
@pytest.mark.parametrize("busy", WAYS)
def test_a_child_ends_with_a_parent_that_is_killed(tmp_path, busy):
    parent, child = start(tmp_path, busy)
    parent.kill()
    parent.wait()
    assert ends(child)


@linux
@pytest.mark.parametrize("busy", ["sleeping", "computing"])
def test_a_child_ends_with_its_parent_where_no_signal_tells(tmp_path, busy):
    """The way of macOS and Windows, tried on Linux."""
    parent, child = start(tmp_path, busy, "darwin")
    parent.kill()
    parent.wait()
    assert ends(child)


@linux
@pytest.mark.slow
def test_children_end_with_sixty_parents(tmp_path):
    for number in range(60):
        parent, child = start(tmp_path, list(WAYS)[number % 3])
        parent.kill()
        parent.wait()
        assert ends(child)
    with scratch_folder("tried-", tmp_path / "place"):
        assert len(list((tmp_path / "place").glob("tried-*"))) == 1


@linux
def test_an_interrupt_ends_the_child_and_removes_the_folder(tmp_path):
    parent, child = start(tmp_path)
    parent.send_signal(signal.SIGINT)
    assert parent.wait(20) != 0
    assert ends(child)
    assert list((tmp_path / "place").glob("tried-*")) == []


@linux
def test_the_folder_of_a_killed_run_is_removed_at_the_next_start(tmp_path):
    killed, child = start(tmp_path)
    place = tmp_path / "place"
    (leftover,) = place.glob("tried-*")
    killed.kill()
    killed.wait()
    assert ends(child)
    assert leftover.exists()
    running, _ = start(tmp_path)
    assert not leftover.exists()
    (its_folder,) = place.glob("tried-*")
    with scratch_folder("tried-", place) as folder:
        assert folder.is_dir()
        assert its_folder.is_dir()  # its process lives
    assert not folder.exists()
    running.kill()
    running.wait()


def test_folders_of_others_stay(tmp_path):
    (tmp_path / "tried-by-hand").mkdir()
    (tmp_path / "tried-by-hand" / "file").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / scratch.LOCK).touch()
    if os.name == "posix":
        (tmp_path / "tried-link").symlink_to("elsewhere")
    with scratch_folder("tried-", tmp_path):
        pass
    assert (tmp_path / "tried-by-hand" / "file").exists()
    assert (tmp_path / "elsewhere" / scratch.LOCK).exists()


def test_folders_made_at_once_are_not_taken_for_leftovers(tmp_path):
    made = []

    def make():
        for _ in range(30):
            with scratch_folder("tried-", tmp_path) as folder:
                (folder / "file").touch()
                time.sleep(0)
                made.append((folder / "file").exists())

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [True] * 120
    assert list(tmp_path.glob("tried-*")) == []


def test_no_place_for_temporary_files_is_named(monkeypatch, tmp_path):
    def nowhere():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setenv("TMPDIR", str(tmp_path / "full"))
    monkeypatch.setattr(scratch.tempfile, "gettempdir", nowhere)
    with pytest.raises(
        OSError,
        match="cannot write a temporary file; set TMPDIR to a folder that you can write to",
    ) as error:
        scratch_folder("tried-").__enter__()
    assert error.value.filename == str(tmp_path / "full")


def test_a_child_that_fails_tells_why(tmp_path, monkeypatch):
    (tmp_path / "child.py").write_text("import sys; print('lost'); sys.exit('the reason')")
    monkeypatch.setattr(children, "project_folder", lambda: tmp_path)
    done = children.run_module("child", [], tmp_path)
    assert (done.returncode, done.stderr.decode().strip()) == (1, "the reason")


@linux
def test_a_folder_keeps_its_lock_until_it_is_empty(tmp_path, monkeypatch):
    """Else one whose removal is interrupted by a kill would stay for ever."""
    child = os.fork()
    if child == 0:
        with scratch_folder("tried-", tmp_path) as folder:
            (folder / "a").write_text("1")
            (folder / "z").write_text("1")
            monkeypatch.setattr(scratch.shutil, "rmtree", lambda *_, **__: os._exit(9))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    (left,) = tmp_path.iterdir()
    assert os.listdir(left) == [scratch.LOCK]
    with scratch_folder("tried-", tmp_path):
        assert not left.exists()
