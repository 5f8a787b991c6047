"""runtime.py: which of TensorFlow and LiteRT computes a network's vectors."""

import json
import sys

import numpy as np
import pytest
import tensorflow as tf

from retraining.bottlenecks import runtime
from retraining.bottlenecks.runtime import (
    RuntimeChoiceError,
    RuntimeSettings,
    open_lite,
    open_runner,
)
from retraining.graphs.litert import LiteRunner
from retraining.graphs.messages import GraphDef
from retraining.graphs.preprocessing import Preprocessing
from retraining.graphs.run import Runner, Running
from retraining.graphs.twin import VectorPart
from tests import tiny

PIXELS = Preprocessing((tiny.SIZE, tiny.SIZE), 128.0, 128.0)
FLOAT32 = Running()


@pytest.fixture(scope="module")
def network():
    graph_def = GraphDef.FromString(tiny.tiny_inception().SerializeToString())
    return VectorPart(graph_def, "Mul", "pool_3/_reshape", PIXELS)


@pytest.fixture
def odd():
    """A network with an operator that LiteRT's model cannot have here."""
    with tf.Graph().as_default() as graph:
        pixels = tf.compat.v1.placeholder(tf.float32, [1, *PIXELS.size, 3], name="input")
        tf.reduce_mean(tf.nn.elu(pixels), [1, 2], name="output")
    graph_def = GraphDef.FromString(graph.as_graph_def().SerializeToString())
    return VectorPart(graph_def, "input", "output", PIXELS)


@pytest.fixture
def speeds(monkeypatch):
    """Speeds to measure, and the runtimes that were measured."""
    state = {"LiteRunner": 2.0, "Runner": 1.0, "measured": []}

    def measure(runner, images):
        state["measured"].append(type(runner).__name__)
        return state[type(runner).__name__]

    monkeypatch.setattr(runtime, "images_per_second", measure)
    return state


def test_the_faster_one_is_measured_once(network, tmp_path, speeds):
    auto = RuntimeSettings("auto", (tmp_path,))
    assert isinstance(open_runner(network, FLOAT32, auto), LiteRunner)
    assert sorted(speeds["measured"]) == ["LiteRunner", "Runner"]
    (path,) = tmp_path.glob("*.json")
    expected = {"runtime": "litert", "images_per_second": {"litert": 2.0, "tensorflow": 1.0}}
    assert json.loads(path.read_bytes()) == expected
    speeds["Runner"] = 3.0  # no longer counts
    assert isinstance(open_runner(network, FLOAT32, auto), LiteRunner)
    assert len(speeds["measured"]) == 2
    path.write_bytes(b"{damaged")
    assert isinstance(open_runner(network, FLOAT32, auto), Runner)
    assert open_lite(network, FLOAT32, auto) is None
    assert len(speeds["measured"]) == 4


@pytest.mark.parametrize(("tensorflow", "chosen"), [(2.1, LiteRunner), (2.3, Runner)])
def test_litert_is_chosen_where_both_are_about_as_fast(
    network, tmp_path, speeds, tensorflow, chosen
):
    speeds["Runner"] = tensorflow
    auto = RuntimeSettings("auto", (tmp_path,))
    assert isinstance(open_runner(network, FLOAT32, auto), chosen)


def test_what_the_user_names_is_not_measured(network, tmp_path, speeds):
    assert isinstance(
        open_runner(network, FLOAT32, RuntimeSettings("litert", (tmp_path,))), LiteRunner
    )
    assert isinstance(
        open_runner(network, FLOAT32, RuntimeSettings("tensorflow", (tmp_path,))), Runner
    )
    assert speeds["measured"] == []


def test_bfloat16_is_tensorflows(network, tmp_path, speeds):
    auto = RuntimeSettings("auto", (tmp_path,))
    assert open_lite(network, Running("bfloat16"), auto) is None
    assert list(tmp_path.iterdir()) == []


def test_for_few_images_a_twin_is_taken_but_not_made(network, tmp_path, speeds):
    auto = RuntimeSettings("auto", (tmp_path,))
    assert open_lite(network, FLOAT32, auto, count=8) is None
    assert open_lite(network, FLOAT32, auto, count=50) is None
    open_lite(network, FLOAT32, RuntimeSettings("litert", (tmp_path,)))
    for precision in ("float32", "bfloat16"):
        assert open_lite(network, Running(precision, optimize=False), auto, count=8).parallel == 1
    assert open_lite(network, Running("bfloat16"), auto, count=9) is None
    assert open_lite(network, Running(cores=3), auto, count=50).parallel == 3
    assert speeds["measured"] == []


@pytest.mark.parametrize("missing", ["interpreter", "schema_py_generated"])
def test_without_the_package_tensorflow_computes(network, tmp_path, missing, monkeypatch):
    monkeypatch.setitem(sys.modules, f"ai_edge_litert.{missing}", None)
    assert open_lite(network, FLOAT32, RuntimeSettings("auto", (tmp_path,))) is None
    with pytest.raises(
        RuntimeChoiceError, match="LiteRT cannot run the network: import of ai_edge_litert"
    ):
        open_lite(network, FLOAT32, RuntimeSettings("litert", (tmp_path,)))


def test_a_network_that_does_not_convert_is_tensorflows(odd, tmp_path):
    assert isinstance(open_runner(odd, FLOAT32, RuntimeSettings("auto", (tmp_path,))), Runner)
    with pytest.raises(RuntimeChoiceError, match="no operator for Elu"):
        open_lite(odd, FLOAT32, RuntimeSettings("litert", (tmp_path,)))


def test_speed_counts_the_images_of_all_threads(monkeypatch):
    class Counting:
        parallel = 2
        seen = 0

        def run(self, batch):
            self.seen += len(batch)
            return batch

    monkeypatch.setattr(runtime, "TIMED_SECONDS", 0.01)
    counting = Counting()
    speed = runtime.images_per_second(counting, np.zeros((4, 1, 1, 3), np.float32))
    assert counting.seen >= 16
    assert speed > 0
