"""to_litert.py, litert.py, head.py: graphs in LiteRT and NumPy give what TensorFlow gives."""

import numpy as np
import pytest
import tensorflow as tf

from retraining.graphs.head import HeadRunner
from retraining.graphs.litert import ConversionError, LiteRunner
from retraining.graphs.messages import GraphDef
from retraining.graphs.nodes import GraphError, set_constant
from retraining.graphs.run import BytesRunner, Runner, Running
from retraining.graphs.to_litert import to_litert
from tests import tiny

tf1 = tf.compat.v1
SIZE = (13, 10)  # odd and even, so that SAME pads on one side only
RNG = np.random.default_rng(5)


def weights(*shape):
    return RNG.normal(0, 0.5, shape).astype(np.float32)


def graph_of(network, size=SIZE):
    """The GraphDef of a function from a float batch `input` to the node `output`."""
    with tf.Graph().as_default() as graph:
        pixels = tf1.placeholder(tf.float32, [1, *size, 3], name="input")
        tf.identity(network(pixels), name="output")
    return GraphDef.FromString(graph.as_graph_def().SerializeToString())


def images(count=3, size=SIZE):
    return np.random.default_rng(1).normal(size=(count, *size, 3)).astype(np.float32)


def flat(x):
    return tf.reshape(x, [1, -1])


def batch_norm(x):
    statistics = [np.abs(weights(4)) + 0.1 for _ in range(4)]
    return tf1.nn.fused_batch_norm(x, *statistics, epsilon=0.01, is_training=False)[0]


def conv(x, *shape, **how):
    how = {"strides": 1, "padding": "SAME"} | how
    return tf1.nn.conv2d(x, weights(*shape), **how)


def gelu(x, half=0.5, root=0.5**0.5, one=1.0):
    return (x * np.float32(half)) * (tf.math.erf(x * np.float32(root)) + np.float32(one))


CASES = {
    "strides": lambda x: conv(x, 3, 3, 3, 5, strides=2),
    "unequal strides": lambda x: conv(x, 3, 2, 3, 5, strides=[1, 2, 1, 1]),
    "valid": lambda x: conv(x, 4, 3, 3, 5, padding="VALID", strides=2),
    "dilation": lambda x: conv(x, 3, 3, 3, 4, dilations=[1, 2, 1, 1]),
    "bias and relu": lambda x: tf.nn.relu(tf.nn.bias_add(conv(x, 3, 3, 3, 5), weights(5))),
    "two biases": lambda x: tf.nn.bias_add(
        tf.nn.bias_add(conv(x, 3, 3, 3, 5), weights(5)), weights(5)
    ),
    "bias behind relu": lambda x: tf.nn.bias_add(tf.nn.relu(conv(x, 3, 3, 3, 5)), weights(5)),
    "relu6": lambda x: tf.nn.relu6(5 * conv(x, 3, 3, 3, 5)),
    "two relus": lambda x: tf.nn.relu6(tf.nn.relu(5 * conv(x, 3, 3, 3, 5))),
    "relu alone": tf.nn.relu,
    "batch norm": lambda x: tf.nn.relu(batch_norm(conv(x, 3, 3, 3, 4))),
    "batch norm alone": lambda x: batch_norm(tf.nn.relu(conv(x, 1, 1, 3, 4))),
    "depthwise": lambda x: tf1.nn.depthwise_conv2d(x, weights(3, 3, 3, 1), [1, 2, 2, 1], "SAME"),
    "depthwise, many": lambda x: tf1.nn.depthwise_conv2d(
        x, weights(3, 3, 3, 2), [1, 1, 1, 1], "VALID"
    ),
    "average": lambda x: tf1.nn.avg_pool2d(x, 3, 2, "SAME"),
    "maximum": lambda x: tf1.nn.max_pool2d(x, [1, 2, 3, 1], [1, 1, 2, 1], "VALID"),
    "branches": lambda x: tf.concat([conv(x, 1, 1, 3, 2), x, conv(x, 3, 3, 3, 4)], 3),
    "concat before the last axis": lambda x: tf.concat([x, conv(x, 1, 1, 3, 3)], -2),
    "residual": lambda x: tf.nn.relu(conv(x, 3, 3, 3, 3) + x),
    "a relu that two read": lambda x: (lambda y: conv(tf.nn.relu(y), 1, 1, 4, 4) + y)(
        conv(x, 3, 3, 3, 4)
    ),
    "gelu": gelu,
    "gelu, approximately": lambda x: x * (tf.math.tanh(0.8 * x) + 1) / 2,
    "attention": lambda x: tf.matmul(tf.nn.softmax(tf.matmul(x, x, transpose_b=True)), x),
    "transposed product": lambda x: tf.matmul(x, x, transpose_a=True),
    "transposed": lambda x: tf.transpose(x, [0, 3, 1, 2]),
    "slices": lambda x: tf.concat([x[:, 2:], x[:, :-2], x[:, 1:-1]], 2),
    "slice of the last axis": lambda x: x[:, :, :, 1:],
    "swish": lambda x: x * tf.sigmoid(x),
    "scale": lambda x: (x - np.float32([1, 2, 3])) / np.float32(4),
    "constant minus": lambda x: np.float32(2) - x,
    "mean": lambda x: tf.reduce_mean(conv(x, 3, 3, 3, 5), [1, 2]),
    "mean, kept": lambda x: tf.reduce_mean(x, [1, 2], keepdims=True) * x,
    "squeeze": lambda x: tf.squeeze(tf1.nn.avg_pool2d(x, SIZE, 1, "VALID"), [1, 2]),
    "pad": lambda x: conv(tf.pad(x, [[0, 0], [1, 2], [0, 1], [0, 0]]), 3, 3, 3, 4, padding="VALID"),
    "mirror": lambda x: conv(tf1.reverse_v2(x, [2]), 3, 3, 3, 4),
    "dense": lambda x: tf.nn.softmax(tf.matmul(flat(x), weights(390, 7)) + weights(7)),
    "dense, transposed": lambda x: tf.matmul(flat(x), weights(7, 390), transpose_b=True),
}


@pytest.mark.parametrize("case", CASES)
def test_each_operator_computes_what_tensorflow_does(case):
    graph_def = graph_of(lambda x: flat(CASES[case](x)))
    batch = images()
    runner = BytesRunner(graph_def, "output", "input")
    expected = np.concatenate([runner.run_pixels({"input": image[None]}) for image in batch])
    lite = LiteRunner(to_litert(graph_def, "input", "output", SIZE), parallel=1)
    assert lite.width == expected.shape[1]
    np.testing.assert_allclose(
        lite.run(batch), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )
    assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda x: tf.nn.elu(x), "no operator for Elu"),
        (lambda x: tf.cast(tf.cast(x, tf.float64) * 2, tf.float32), "no operator for Cast"),
        (lambda x: conv(x, 3, 3, 1, 6), "groups of channels"),
        (tf.math.erf, "no operator for Erf"),
        (lambda x: gelu(x, half=0.6), "no operator for Erf"),
        (lambda x: gelu(x, root=0.6), "no operator for Erf"),
        (lambda x: gelu(x, one=1.1), "no operator for Erf"),
        (lambda x: x[:, ::2], "slices in a way"),
        (lambda x: x[:, 1], "slices in a way"),
        (lambda x: tf.matmul(x[:, :1], x, transpose_b=True), "do not fit each other"),
        (lambda x: tf.pad(x, [[0, 0], [1, 1], [0, 0], [0, 0]], "REFLECT"), "MirrorPad"),
        (lambda x: tf.split(x, 3, 3)[1], "no operator for"),
    ],
)
def test_other_operators_are_refused(network, message):
    with pytest.raises(ConversionError, match=message):
        to_litert(graph_of(lambda x: flat(network(x))), "input", "output", SIZE)


@pytest.mark.parametrize(
    ("graph_def", "ends", "side"),
    [
        (tiny.tiny_inception(), ("Mul", "pool_3/_reshape"), tiny.SIZE),
        (tiny.tiny_mobilenet(), ("input", "MobilenetV1/Predictions/Reshape"), 128),
    ],
)
def test_networks_of_the_classic(graph_def, ends, side):
    batch = images(3, (side, side))
    graph_def = GraphDef.FromString(graph_def.SerializeToString())
    lite = LiteRunner(to_litert(graph_def, *ends, (side, side)), parallel=2)
    expected = Runner(graph_def, *ends).run(batch)
    np.testing.assert_allclose(lite.run(batch), expected, atol=1e-5 * np.abs(expected).max())


def test_a_damaged_model_is_an_error_in_words():
    with pytest.raises(GraphError, match="LiteRT cannot load the model"):
        LiteRunner(b"TFL3 is not at this place", parallel=1)


def test_numpy_computes_the_layers_behind_the_vectors():
    def layers(x):
        vector = tf.identity(tf.reduce_mean(x, [1, 2]), name="vector")
        hidden = tf.nn.relu(tf.matmul(vector, weights(3, 6)) + weights(6), name="hidden")
        return tf.nn.softmax(tf.nn.bias_add(tf.matmul(hidden, weights(6, 4)), weights(4)))

    graph_def, batch = graph_of(layers), images()
    vectors = batch.mean(axis=(1, 2))
    expected = Runner(graph_def, "input", "output", Running(also=("hidden",))).run(batch)
    found = HeadRunner(graph_def, "vector", ["output", "hidden"]).run(vectors)
    assert found.shape == (3, 10)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_numpy_does_not_guess_at_other_layers():
    graph_def = graph_of(lambda x: tf.nn.elu(tf.identity(tf.reduce_mean(x, [1, 2]), name="vector")))
    with pytest.raises(GraphError, match="NumPy does not compute Elu"):
        HeadRunner(graph_def, "vector", ["output"])


def test_layers_that_do_not_fit_are_an_error_in_words(recwarn):
    def layers(x):
        vector = tf.identity(tf.reduce_mean(x, [1, 2]), name="vector")
        return tf.nn.softmax(tf.matmul(vector, weights(3, 4)))

    runner = HeadRunner(graph_of(layers), "vector", ["output"])
    with pytest.raises(GraphError, match="the layers behind the vectors do not fit"):
        runner.run(np.zeros((1, 5), np.float32))
    assert np.isnan(runner.run(np.full((1, 3), np.inf, np.float32))).all()
    assert list(recwarn) == []


def no_strides(graph_def):
    graph_def.node[CONV].attr["strides"].list.i[1] = 0


def two_axes(graph_def):
    set_constant(graph_def.node[CONV - 1], weights(3, 5))


def no_inputs(graph_def):
    del graph_def.node[CONV].input[:]


CONV = 2  # behind the pixels and the weights


@pytest.mark.parametrize("damage", [no_strides, two_axes, no_inputs])
def test_a_malformed_node_is_refused_in_words(damage):
    graph_def = graph_of(lambda x: conv(x, 3, 3, 3, 5))
    assert graph_def.node[CONV].op == "Conv2D"
    damage(graph_def)
    with pytest.raises(GraphError if damage is no_inputs else ConversionError):
        to_litert(graph_def, "input", "output", SIZE)
