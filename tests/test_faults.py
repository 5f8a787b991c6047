"""syscalls.py stops the calls it should; faults.py finds that a run stands them."""

import os
import subprocess
import sys

import pytest

from tests import ROOT
from tests.syscalls import IS_SUPPORTED, supervise

pytestmark = pytest.mark.skipif(not IS_SUPPORTED, reason="needs Linux on x86-64")
CALLS = ["openat a", "write a", "rename b", "mkdir c", "rmdir c", "openat d", "write d", "unlink d"]


def work_in(folder):
    def work():
        try:
            with open(folder / "a", "wb") as file:
                file.write(b"x" * 100)
            os.replace(folder / "a", folder / "b")
            (folder / "c").mkdir()
            (folder / "c").rmdir()
            subprocess.run(["sh", "-c", 'echo x > "$0/d"', str(folder)], check=False)
            (folder / "d").unlink()
            (folder.parent / "elsewhere").write_bytes(b"x")
        except OSError as error:
            return error.errno
        return 0

    return work


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


def test_each_call_that_changes_files_of_the_folder_is_seen(folder):
    course = supervise(work_in(folder), folder, 0, "kill")
    assert course.names == CALLS
    assert (course.calls, course.hit, course.code, course.outlived) == (8, "", 0, False)
    assert os.listdir(folder) == ["b"]


@pytest.mark.parametrize(
    ("number", "left"), [(1, []), (2, ["a"]), (3, ["a"]), (4, ["b"]), (5, ["b", "c"])]
)
def test_the_process_is_killed_before_a_call(folder, number, left):
    course = supervise(work_in(folder), folder, number, "kill")
    assert (course.hit, course.code) == (CALLS[number - 1], -9)
    assert sorted(os.listdir(folder)) == left
    assert left != ["a"] or (folder / "a").stat().st_size == 100 * (number == 3)


def test_a_child_is_killed_alone(folder):
    course = supervise(work_in(folder), folder, 2, "kill child")
    assert (course.hit, course.code) == ("write d", 0)
    assert os.listdir(folder) == ["b"]


@pytest.mark.parametrize(("number", "left"), [(1, ["a"]), (2, ["b"])])
def test_the_disk_is_full_from_a_call_on(folder, number, left):
    course = supervise(work_in(folder), folder, number, "full")
    assert (course.hit, course.code) == (["write a", "mkdir c"][number - 1], 28)
    assert os.listdir(folder) == left
    assert (folder.parent / "elsewhere").exists() is False


@pytest.mark.slow
def test_faults_do_no_harm_to_a_run():
    command = [sys.executable, "-m", "tests.faults", "--runs", "plain", "--every", "40"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:]]
    assert [(run, fault, failures) for run, fault, _, _, failures in rows] == [
        ("plain", "kill", "0"),
        ("plain", "full", "0"),
    ]
    assert all(int(tried) == (int(calls) + 39) // 40 for _, _, calls, tried, _ in rows)
