"""tensorflow.py: quickly there, silent, and all of it for who wants all."""

import contextlib
import os
import subprocess
import sys
import threading
import time

import tensorflow

from retraining.graphs.tensorflow import MissingTensorFlowError, import_tensorflow, muted_stderr
from tests import ROOT


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


def test_graph_mode_comes_alone_and_silently_and_the_rest_on_demand():
    done = run(
        "import sys\n"
        "from retraining.graphs.tensorflow import import_tensorflow\n"
        "tf = import_tensorflow()\n"
        "print(tf.Session(graph=tf.Graph()).graph.version, 'keras' in sys.modules)\n"
        "print('tensorflow._api.v2.io' in sys.modules)\n"
        "import tensorflow\n"
        "print(tensorflow.io.decode_jpeg.__name__, tensorflow.__version__)\n"
    )
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[:2] == ["0 False", "False"]
    assert lines[2].startswith("decode_jpeg 2.")


def test_a_tensorflow_that_is_there_is_used():
    assert import_tensorflow().Graph is tensorflow.Graph  # the tests import all of it


def test_an_absent_tensorflow_is_an_import_error():
    done = run(
        "import sys, importlib.util\n"
        "importlib.util.find_spec = lambda name: None\n"
        "from retraining.graphs.tensorflow import import_tensorflow\n"
        "import_tensorflow()\n"
    )
    last = done.stderr.splitlines()[-1]
    assert "MissingTensorFlowError: TensorFlow is not installed" in last


def test_an_absent_tensorflow_is_also_an_error_of_importing():
    assert issubclass(MissingTensorFlowError, ModuleNotFoundError)


def test_threads_that_mute_stderr_at_once_leave_it_as_it_was(capfd):
    entered = threading.Event()

    def mute():
        with muted_stderr():
            entered.set()
            time.sleep(0.1)

    first = threading.Thread(target=mute)
    first.start()
    entered.wait()
    with muted_stderr():  # this ends after the first, which puts stderr back
        first.join(0.5)
    first.join()
    os.write(2, b"a word")
    assert capfd.readouterr().err == "a word"


def test_what_is_written_to_stderr_is_caught_for_a_while(capfd):
    with contextlib.suppress(ValueError), muted_stderr():
        os.write(2, b"I0000 chatter")
        raise ValueError
    os.write(2, b"a word")
    assert capfd.readouterr().err == "a word"
