"""Runs Python scripts in forks of one process that has imported TensorFlow, so each starts at once.

    with WarmPython(folder, modules) as python:
        subprocess.run(["sh", "-c", "python retrain.py ..."], env=python.environment)

`python` is a small client there: it hands the arguments of a script, its folder and its standard
streams to the server, and ends with the script's exit code. It needs os.fork.
"""

import contextlib
import json
import os
import runpy
import select
import socket
import subprocess
import sys
from importlib import import_module
from pathlib import Path

from tests import ROOT

CLIENT = """\
#!{python} -SE
import json, os, socket, sys
if len(sys.argv) < 2 or not sys.argv[1].endswith(".py"):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [json.dumps([os.getcwd(), sys.argv[1:]]).encode()], [0, 1, 2])
    code = server.recv(16)
sys.exit(int(code or b"99"))
"""
MOST_BYTES = 1 << 16  # of a command


class WarmPython:
    """A server of forks; `environment` has its `python` first in PATH."""

    def __init__(self, folder: Path, modules: list[str]):
        """`folder` gets the socket and the client; the server imports `modules`."""
        self.address = str(folder / "python.socket")
        (folder / "bin").mkdir(parents=True)
        client = folder / "bin" / "python"
        client.write_text(CLIENT.format(python=sys.executable, address=self.address))
        client.chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{client.parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }
        self._modules = modules

    def __enter__(self):
        command = [sys.executable, "-m", "tests.warm_python", self.address, *self._modules]
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.environment
        )
        assert self._server.stdout.readline() == b"ready\n"
        return self

    def __exit__(self, *_):
        self._server.stdin.close()  # which ends it
        self._server.wait(timeout=60)
        self._server.stdout.close()


def serve(address: str) -> None:
    """Answers each connection in a fork, until the end of standard input."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while listener in (ready := select.select([listener, sys.stdin], [], [])[0]):
            connection = listener.accept()[0]
            if os.fork() == 0:
                listener.close()
                answer(connection)
            connection.close()
        assert ready == [sys.stdin]
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


def answer(connection: socket.socket) -> None:
    """Runs a script in one more fork, sends its exit code, and ends this process."""
    message, streams, _, _ = socket.recv_fds(connection, MOST_BYTES, 3)
    folder, arguments = json.loads(message)
    if (child := os.fork()) == 0:
        connection.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        sys.stdin, sys.stdout, sys.stderr = map(open, range(3), "rww")
        os.chdir(folder)
        sys.argv[:] = arguments
        sys.path.insert(0, folder)
        runpy.run_path(arguments[0], run_name="__main__")
        sys.stdout.flush()
        os._exit(0)
    for stream in streams:
        os.close(stream)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    connection.sendall(str(code if code >= 0 else 128 - code).encode())
    os._exit(0)


if __name__ == "__main__":
    for module in sys.argv[2:]:
        import_module(module)
    serve(sys.argv[1])
