"""Starts Python programs that end with the process that started them, however that ends.

A child reads its standard input, a pipe whose other end only its parent holds, and gets its end
when the parent dies, since the system then closes that end. This works on Linux, macOS and Windows.
A thread of the child waits for that, which needs Python's lock, and C code may hold that for
seconds. On Linux a signal ends the child at once. (Tried on Linux only.)
"""

import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from retraining.system.package import project_folder

ORPHANED = 3  # exit code of a child that its parent has left


def run_module(
    module: str, arguments: Sequence[str], scratch: Path
) -> "subprocess.CompletedProcess[bytes]":
    """Runs a module of this package, which must call `end_with_parent`, and waits for its end.

    Drops its stdout and returns its stderr. Its temporary files go to the folder `scratch`. An
    exception that is raised here meanwhile, as by Ctrl-C, ends it.

    Raises:
        OSError: it cannot be started.
    """
    its_end, our_end = os.pipe()  # Python lets no other child inherit `our_end`
    try:
        try:
            child = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=project_folder(),
                env={**os.environ, **_places(scratch)},
                stdin=its_end,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        finally:
            os.close(its_end)
        with child:
            try:
                _, errors = child.communicate()
            except BaseException:
                child.kill()
                raise
    finally:
        os.close(our_end)
    return subprocess.CompletedProcess(child.args, child.returncode, stderr=errors)


def _places(scratch: Path) -> Mapping[str, str]:
    """Returns the variables of the environment that tell where temporary files go."""
    return dict.fromkeys(("TMPDIR", "TEMP", "TMP"), os.path.abspath(scratch))


def end_with_parent() -> None:
    """Ends this process when the one that started it with `run_module` has ended."""
    descriptor = sys.stdin.fileno()
    if sys.platform == "linux":
        import fcntl

        # SIGIO comes when the pipe closes. No handler takes it, so it ends the process.
        fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_ASYNC)

    def wait_for_the_end() -> None:
        while os.read(descriptor, 1):
            pass
        os._exit(ORPHANED)

    threading.Thread(target=wait_for_the_end, daemon=True).start()
