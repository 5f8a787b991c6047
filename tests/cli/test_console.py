"""console.py: streams that are closed, full or left, and what is said."""

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from retraining.cli import console
from retraining.cli.console import INTERRUPTED, progress_bar, reports_errors, set_verbosity
from retraining.system.text import escaped
from tests import ROOT

# A command that prints its arguments and says a word.
COMMAND = """
import sys
from retraining.cli.console import leave, reports_errors, say

def main(argv):
    say("a word")
    print("printed", *sys.argv[1:])
    return 0

leave(reports_errors(main)())
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "command.py"
    path.write_text(COMMAND)
    return path


def run_in_shell(line):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, cwd=ROOT, env=environment
    )


@pytest.mark.parametrize("redirection", ["2>&-", "<&-", "2> >(exit)"])
def test_streams_that_nobody_holds_do_not_matter(script, redirection):
    done = run_in_shell(f"{sys.executable} {script} {redirection}")
    assert done.returncode == 0
    assert done.stdout == "printed\n"


def test_a_closed_stdout_is_no_traceback(script):
    done = run_in_shell(f"{sys.executable} {script} >&-")
    assert done.returncode == 0
    assert done.stderr == "command.py: a word\n"


def test_a_reader_that_leaves_is_no_error(script):
    done = run_in_shell(f"set -o pipefail; {sys.executable} {script} $(seq 30000) | true")
    assert (done.returncode, done.stderr) == (0, "command.py: a word\n")


def test_a_full_disk_behind_stdout_is_one_line(finished):
    photo = f"{finished.photos}/red/photo_00.jpg"
    line = f"{sys.executable} label_image.py --graph {finished.graph} {photo}"
    done = run_in_shell(f"{line} > /dev/full")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr


def test_a_full_disk_behind_stdout_is_named(script):
    done = run_in_shell(f"{sys.executable} {script} > /dev/full")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == ("command.py: standard output: No space left on device")
    for command in ("label_image.py", "retrain.py"):
        done = run_in_shell(f"{sys.executable} {command} --help > /dev/full")
        assert (done.returncode, done.stderr) == (
            1,
            f"{command}: standard output: No space left on device\n",
        )


def test_a_working_folder_that_is_gone_is_named(tmp_path, finished):
    (tmp_path / "gone").mkdir()
    line = f"cd {tmp_path}/gone; rmdir {tmp_path}/gone; {sys.executable} {ROOT}/retrain.py"
    done = run_in_shell(f"{line} --image_dir {finished.photos}")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "retrain.py: the working folder, which has been deleted or cannot be read: No such file or "
        "directory"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="needs ulimit -v")
@pytest.mark.parametrize("limit", ["-v 100000", "-v 1000000", "-v 2000000", "-d 1000000"])
def test_too_small_a_limit_of_memory_is_one_line(finished, limit):
    photo = f"{finished.photos}/red/photo_00.jpg"
    for command in ("label_image.py", "retrain.py"):
        done = run_in_shell(f"ulimit {limit}; {sys.executable} {command} {photo}")
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "TensorFlow needs" in done.stderr
        assert f"raise the limit: ulimit {limit[:2]}" in done.stderr


def test_too_little_memory_is_one_line(capsys):
    def main(argv):
        raise MemoryError

    assert reports_errors(main)([]) == 1
    assert capsys.readouterr().err.endswith(": there is not enough memory\n")


def test_undecodable_names_are_their_bytes_on_stdout(finished, tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff.jpg"
    shutil.copy(f"{finished.photos}/red/photo_00.jpg", name)
    command = [sys.executable, "label_image.py", "--graph", finished.graph, "-", "--top_k", "1"]
    done = subprocess.run(
        command,
        input=name + b"\n" + name + b"x\n",
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
    )
    assert done.returncode == 1  # the second is missing
    assert name in done.stdout
    assert done.stderr.count(b"\n") == 1


def test_escaped_text_is_one_line_and_can_be_had_back():
    assert escaped("plain \\ text") == "plain \\ text"
    assert escaped("a\tb\\c\nd\r") == "a\\tb\\\\c\\nd\\r"


@pytest.mark.parametrize("script", ["retrain", "label_image"])
def test_numpy_is_told_of_its_threads_before_it_is_imported(script):
    """It reads the variable once; with a thread per core, training takes many times longer."""
    watch = (
        "import os, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'numpy': print(os.environ.get('OPENBLAS_NUM_THREADS'))\n"
        "sys.meta_path.insert(0, Watch())\n"
        f"import {script}, retraining.cli.labelling\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", watch], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["1"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--image_dirr", "x"], "unknown flag --image_dirr; did you mean --image_dir?"),
        (["--image_dir", "x", "--zzz=1"], "unknown flag --zzz (see"),
    ],
)
def test_a_mistyped_flag_is_named_with_the_one_it_is_like(flags, said, capsys):
    import retrain

    assert retrain.main(flags) == 2
    assert said in capsys.readouterr().err


def test_a_message_waits_while_another_thread_mutes_stderr():
    code = """
import threading, time
from retraining.cli.console import leave, reports_errors, say
from retraining.graphs.tensorflow import muted_stderr

def mute():
    with muted_stderr():
        entered.set()
        time.sleep(0.1)

def main(argv=None):
    threading.Thread(target=mute).start()
    entered.wait()
    say("a word")
    return 0

entered = threading.Event()
leave(reports_errors(main)())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == "-c: a word\n"


def test_what_libraries_log_is_not_shown():
    program = """
import logging
from retraining.cli.console import reports_errors

def main(argv):
    logging.getLogger("some.library").warning("a traceback")
    return 0

raise SystemExit(reports_errors(main)())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_that_an_import_reports_as_its_own_error_is_no_traceback(capsys):
    def main(argv=None):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("broken off") from None

    assert reports_errors(main)() == INTERRUPTED
    assert capsys.readouterr().err.splitlines() == [f"{os.path.basename(sys.argv[0])}: interrupted"]


def test_an_unexpected_error_is_not_hidden():
    def main(argv=None):
        raise ImportError("a fault of ours")

    with pytest.raises(ImportError, match="a fault of ours"):
        reports_errors(main)()


def test_ctrl_c_within_a_finalizer_ends_the_program(capsys):
    class Interrupted:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def main(argv=None):
        Interrupted()  # goes at once; Python drops what its finalizer raises
        time.sleep(60)
        return 0

    started = time.monotonic()
    assert reports_errors(main)() == INTERRUPTED
    assert time.monotonic() - started < 50  # the call that blocks was woken
    assert capsys.readouterr().err.splitlines()[-1].endswith(": interrupted")


# -- how far it has come ---------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a test moves it: the list of its one time in seconds."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_where_there_is_no_terminal_progress_is_a_line_every_ten_seconds(clock, capsys):
    for _ in progress_bar("bottlenecks", "img")(range(3), total=3):
        clock[0] += 6
    assert capsys.readouterr().err.splitlines() == [
        "bottlenecks: 2 of 3 img, 0.17 img/s",
        "bottlenecks: 3 of 3 img, 0.17 img/s",
    ]


def test_bytes_are_counted_in_megabytes(clock, capsys):
    with progress_bar("net.zip", "B")() as bar:
        for _ in range(2):
            clock[0] += 10
            bar.update(25e6)
    assert capsys.readouterr().err.splitlines()[:2] == [
        "net.zip: 25.0 MB, 2.5 MB/s",
        "net.zip: 50.0 MB, 2.5 MB/s",
    ]


def test_a_line_ends_with_what_the_task_adds(clock, capsys):
    bar = progress_bar("training", "step")(range(20), total=20)
    for _ in bar:
        clock[0] += 0.01
        bar.set_postfix_str("validation 90.0%", refresh=False)
    assert capsys.readouterr().err == "training: 20 of 20 step, 100 step/s, validation 90.0%\n"


def test_a_quiet_run_and_one_that_fails_print_no_progress(capsys):
    list(progress_bar("training", "step", quiet=True)(range(20)))

    def broken():
        yield 1
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(progress_bar("training", "step")(broken()))
    assert capsys.readouterr().err == ""


# -- lines on a terminal ---------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


WORDS = "a message of many words that names a/long/path/of-a-file/that-must-stay-in-one-piece.jpg"


def test_a_terminal_breaks_messages_at_words(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    with contextlib.redirect_stderr(Terminal()) as terminal:
        console.say(WORDS)
        set_verbosity("INFO").warning(WORDS)
        console.ConsoleObserver(quiet=False).tell(WORDS)
    lines = terminal.getvalue().splitlines()
    assert all(len(line) <= 40 or " " not in line for line in lines)
    assert " ".join(lines).count(WORDS) == 3


def test_elsewhere_a_message_is_one_line(capsys):
    console.say(WORDS)
    assert capsys.readouterr().err.endswith(f": {WORDS}\n")


def test_a_terminal_has_progress_bars():
    with contextlib.redirect_stderr(Terminal()) as terminal:
        list(progress_bar("bottlenecks", "img")(range(3), total=3))
    assert "bottlenecks: 100%" in terminal.getvalue()
