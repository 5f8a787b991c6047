"""tuning_graph.py: which weights of a network are trained, their gradients and sizes."""

import itertools

import numpy as np
import pytest

from retraining.graphs.nodes import GraphError, constant, nodes_by_name
from retraining.networks.network import load_network
from retraining.networks.registry import NETWORKS
from retraining.training.head import Head
from retraining.training.loop import TrainingError
from retraining.training.tuning_graph import (
    OWN,
    Batch,
    TuningGraph,
    find_weights,
    fold_network,
    head_weights,
    random_weights,
    weight_sizes,
    with_weights,
)
from tests import tiny

pytestmark = pytest.mark.numbers


LABELS = ("blue", "green", "red")


@pytest.fixture(scope="module")
def network(inception_file):
    return load_network(inception_file, NETWORKS["inception_v3"])


def first_head(width=tiny.WIDTH, hidden=(), seed=0):
    rng = np.random.default_rng(seed)
    sizes = [width, *hidden, len(LABELS)]
    layers = [
        (rng.normal(size=(a, b)).astype("f4") * 0.3, np.full(b, 0.1, "f4"))
        for a, b in itertools.pairwise(sizes)
    ]
    return Head(*layers[-1], tuple(layers[:-1]))


def test_weights_and_biases_of_the_convolutions_are_trained(network):
    assert set(find_weights(fold_network(network))) == {
        *("conv/conv2d_params", "mixed/conv/conv2d_params", "mixed/tower/conv2d_params"),
        *("conv/batchnorm/bias", "mixed/conv/batchnorm/bias", "mixed/tower/batchnorm/bias"),
    }


def test_freezing_leaves_a_layer_and_all_it_depends_on(network):
    folded = fold_network(network)
    mixed = {
        *("mixed/conv/conv2d_params", "mixed/tower/conv2d_params"),
        *("mixed/conv/batchnorm/bias", "mixed/tower/batchnorm/bias"),
    }
    assert set(find_weights(folded, "conv")) == mixed
    tower = {"mixed/tower/conv2d_params", "mixed/tower/batchnorm/bias"}
    assert set(find_weights(folded, "mixed/conv/")) == tower


def test_freezing_an_unknown_layer_names_what_is_alike(network):
    with pytest.raises(GraphError, match="no layer mixed/towr; did you mean mixed/tower"):
        find_weights(fold_network(network), "mixed/towr")


def test_freezing_a_layer_like_none_names_some_that_there_are(network):
    with pytest.raises(GraphError, match="no layer block7; it has conv, mixed/conv, mixed/tower"):
        find_weights(fold_network(network), "block7")


def test_freezing_everything_is_refused(network):
    with pytest.raises(TrainingError, match=r"an earlier layer for `TuningOptions.freeze_until`"):
        find_weights(fold_network(network), "mixed")


def test_a_prefix_ends_where_a_number_does():
    b = tiny.GraphBuilder(producer=0)
    b.add("input", "Placeholder", dtype=b.tf.float32, shape=(1, 8, 8, 3))
    source = "input"
    for name in ("c_1_deep", "c_1_wide", "c_10_deep"):
        weights = b.const(f"{name}/weights", np.ones((1, 1, 3, 3), "f4"))
        source = b.float_op(
            f"net/{name}", "Conv2D", source, weights, strides=[1, 1, 1, 1], padding="SAME"
        )
    about = load_like("input", source, b.graph_def)
    # The layer's weights alone are named so: what uses them counts as the layer.
    assert set(find_weights(about, "c_1")) == {"c_10_deep/weights"}


def load_like(input_name, output, graph_def):
    from retraining.graphs.preprocessing import Preprocessing
    from retraining.networks.network import BaseNetwork

    return BaseNetwork("x", graph_def, input_name, output, Preprocessing((8, 8), 0, 1), 3, "")


def test_scales_behind_a_convolution_are_trained_and_arithmetic_before_it_is_not():
    b = tiny.GraphBuilder(producer=0)
    b.add("input", "Placeholder", dtype=b.tf.float32, shape=(1, 8, 8, 3))
    b.float_op("mean", "Sub", "input", b.const("mean/y", np.ones(3, "f4")))
    weights = b.const("weights", np.ones((1, 1, 3, 3), "f4"))
    b.float_op("conv", "Conv2D", "mean", weights, strides=[1, 1, 1, 1], padding="SAME")
    b.float_op("relu", "Relu", "conv")
    b.float_op("scaled", "Mul", "relu", b.const("scale", np.ones(3, "f4")))
    b.float_op("moved", "AddV2", b.const("shift", np.ones(3, "f4")), "scaled")
    b.float_op("half", "Mul", "moved", b.const("half/y", np.float32(0.5)))
    found = find_weights(load_like("input", "half", b.graph_def))
    assert found == {"weights": "weights", "scale": "scale", "shift": "shift"}


@pytest.mark.parametrize("hidden", [(), (7,)])
def test_gradients_are_those_of_finite_differences(network, hidden):
    folded = fold_network(network)
    nodes = nodes_by_name(folded.graph_def)
    weights = {name: constant(nodes, name) for name in find_weights(folded)}
    weights |= head_weights(first_head(hidden=hidden))
    graph = TuningGraph(folded, weights)
    rng = np.random.default_rng(0)  # noise: in plain colours all pixels pass a ReLU's kink at once
    images = rng.uniform(-1, 1, (12, tiny.SIZE, tiny.SIZE, 3)).astype("f4")
    targets, shares = np.arange(12) % 3, rng.uniform(0.1, 1, 12).astype("f4")
    batch = Batch(images, targets.astype("i4"), shares)

    def loss(moved):
        answers = graph.probabilities(moved, images).astype(float)
        return -(shares * np.log(answers[np.arange(len(targets)), targets])).sum()

    _, slopes = graph.gradients(weights, batch)
    assert set(slopes) == set(weights)
    for name, slope in slopes.items():
        # Along the gradient itself, where float32 tells most of a small step.
        length = float(np.linalg.norm(slope))
        step = np.float32(3e-4) * slope / length
        ahead, behind = (loss({**weights, name: weights[name] + s}) for s in (step, -step))
        assert (ahead - behind) / 6e-4 == pytest.approx(length, rel=0.03), name


def test_steps_are_sized_by_each_output_channel():
    b = tiny.GraphBuilder(producer=0)
    b.add("input", "Placeholder", dtype=b.tf.float32, shape=(1, 8, 8, 3))
    wide = np.stack([np.full((1, 1, 3), 2.0), np.full((1, 1, 3), 0.01)], axis=-1).astype("f4")
    ones = {"strides": [1, 1, 1, 1], "padding": "SAME"}
    b.float_op("conv", "Conv2D", "input", b.const("wide", wide), **ones)
    deep = np.reshape([[3.0, 4.0], [3.0, 4.0]], (2, 1, 2, 1)).astype("f4")
    b.float_op("deep", "DepthwiseConv2dNative", "conv", b.const("deep/weights", deep), **ones)
    b.float_op("biased", "BiasAdd", "deep", b.const("bias", np.array([3.0, 4.0], "f4")))
    moved = b.float_op("moved", "BiasAdd", "biased", b.const("zeros", np.zeros(2, "f4")))
    weights = {"wide": wide, "deep/weights": deep, "zeros": np.zeros(2, "f4")}
    weights |= head_weights(Head(np.array([[3.0, 0.1], [4.0, 0.1]], "f4"), np.zeros(2, "f4")))
    weights["bias"] = np.array([3.0, 4.0], "f4")
    sizes = weight_sizes(load_like("input", moved, b.graph_def), weights)
    np.testing.assert_allclose(sizes["wide"], [[[[2.0, 0.01]]]], rtol=1e-5)
    np.testing.assert_allclose(sizes["deep/weights"], [[[[3.0], [4.0]]]], rtol=1e-5)
    assert sizes["bias"] == pytest.approx(np.sqrt(12.5))
    assert sizes["zeros"] == 1
    head, bias = (sizes[f"{OWN}/0/{part}"] for part in ("weights", "bias"))
    np.testing.assert_allclose(head, [[np.sqrt(12.5), 0.1]], rtol=1e-6)
    assert bias == 1


def test_random_weights_have_hes_deviation(network):
    folded = fold_network(network)
    wide = np.zeros((3, 3, 8, 4000), "f4")
    widened = with_weights(folded, {"mixed/tower/conv2d_params": wide})
    made = random_weights(widened, {"mixed/tower/conv2d_params": "weights"}, 0)
    deviation = made["mixed/tower/conv2d_params"].std()
    assert deviation == pytest.approx(np.sqrt(2 / (3 * 3 * 8)), rel=0.01)
