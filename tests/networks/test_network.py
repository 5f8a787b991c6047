"""network.py: how a base network is fed, by its file and by what is published of it."""

import dataclasses

import numpy as np
import pytest

from retraining.graphs.nodes import (
    GraphError,
    add_constant,
    add_node,
    constant,
    nodes_by_name,
    set_inputs,
)
from retraining.graphs.run import Runner
from retraining.networks.network import load_network
from retraining.networks.registry import NETWORKS
from tests import tiny

CONVOLUTION = "MobilenetV1/conv"


def scaling_itself(ops, size=128):
    """A MobileNet whose file scales the pixels of `input`: [(op, constant), ...]."""
    graph_def, x = tiny.tiny_mobilenet(size), "input"
    for number, (op, value) in enumerate(ops):
        name = add_constant(graph_def, f"scale_{number}/y", np.float32(value))
        x = add_node(graph_def, f"scale_{number}", op, [x, name], T="float32")
    convolution = nodes_by_name(graph_def)[CONVOLUTION]
    set_inputs(convolution, [x, convolution.input[1]])
    return graph_def


@pytest.mark.parametrize(
    ("ops", "mean", "std"),
    [
        ([], 127.5, 127.5),
        ([("Sub", 127.5), ("Mul", 1 / 127.5)], 0, 1),
        ([("Mul", 1 / 127.5), ("Sub", 1)], 0, 1),
        ([("Mul", 2), ("Sub", 1)], 0, 255),
        ([("RealDiv", 127.5)], 127.5, 1),
        ([("Sub", [127.5, 27.5, 127.5]), ("RealDiv", 127.5)], (0, 100, 0), 1),
    ],
)
def test_pixels_are_scaled_once(tmp_path, ops, mean, std):
    network = NETWORKS["mobilenet_0.25_128"]
    graph_def = scaling_itself(ops)
    path = tmp_path / "frozen_graph.pb"
    path.write_bytes(graph_def.SerializeToString())
    base = load_network(path, network)
    about = base.preprocessing
    assert (about.size, about.mean, about.std) == ((128, 128), mean, std)
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 128, 128, 3))
    fed = np.float32((pixels - np.float64(about.mean)) / about.std)
    found = Runner(base.graph_def, base.input, base.bottleneck).run(fed)
    expected = Runner(tiny.tiny_mobilenet(), "input", base.bottleneck).run(
        np.float32((pixels - 127.5) / 127.5)
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)


def pooled(axes=(1, 2), keep_dims=False, biases=(0.0, 0.0, 0.0)):
    """A MobileNet whose vectors are the mean of biased features, as those of EfficientNet-Lite."""
    graph_def, x = tiny.tiny_mobilenet(128), CONVOLUTION
    network = NETWORKS["mobilenet_0.25_128"]
    channels = constant(nodes_by_name(graph_def), nodes_by_name(graph_def)[x].input[1]).shape[-1]
    biases = np.resize(np.float32(biases), channels if len(biases) > 1 else 1)
    x = add_node(
        graph_def,
        "biased",
        "BiasAdd" if len(biases) > 1 else "Add",
        [x, add_constant(graph_def, "biases", biases)],
        T="float32",
    )
    x = add_node(graph_def, "clipped", "Relu6", [x], T="float32")
    over = add_constant(graph_def, "axes", np.int32(axes))
    kind = {"T": "float32", "Tidx": "int32", "keep_dims": keep_dims}
    x = add_node(graph_def, "mean", "Mean", [x, over], **kind)
    return graph_def, dataclasses.replace(network, bottleneck="mean"), channels


def test_the_width_of_a_mean_over_an_image_is_that_of_its_biases(tmp_path, monkeypatch):
    graph_def, network, channels = pooled()
    del nodes_by_name(graph_def)["mean"].attr["keep_dims"]  # as in EfficientNet-Lite
    path = tmp_path / "frozen_graph.pb"
    path.write_bytes(graph_def.SerializeToString())
    monkeypatch.setattr("retraining.networks.network.import_shapes", None)  # TensorFlow's
    loaded = load_network(path, network)
    assert loaded.width == channels
    # OpenVINO refuses an attribute without a value, which a plain look at an absent one adds.
    assert all(a.WhichOneof("value") for n in loaded.graph_def.node for a in n.attr.values())


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"biases": [0.0]}, None),  # no BiasAdd: TensorFlow tells the width
        ({"axes": (1, 2, 3)}, "not one vector"),
        ({"keep_dims": True}, "not one vector"),
    ],
)
def test_the_width_of_other_means_is_inferred(tmp_path, changes, error):
    graph_def, network, channels = pooled(**changes)
    path = tmp_path / "frozen_graph.pb"
    path.write_bytes(graph_def.SerializeToString())
    if error is None:
        assert load_network(path, network).width == channels
        return
    with pytest.raises(GraphError, match=error):
        load_network(path, network)
