"""read.py, surgery.py, fold.py, precision.py, run.py, against the untouched graph."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from retraining.graphs import fold as fold_module
from retraining.graphs import precision, read, surgery
from retraining.graphs.nodes import GraphError, constant, nodes_by_name, set_constant
from retraining.graphs.preprocessing import Preprocessing
from retraining.graphs.read import read_graph
from retraining.graphs.run import BytesRunner, Runner, Running
from retraining.networks import precision as network_precision
from retraining.networks.network import load_network
from retraining.networks.precision import resolve_precision
from retraining.networks.registry import NETWORKS
from retraining.photos.reader import ImageReader, read_file
from tests import needs_bfloat16, tiny

pytestmark = pytest.mark.numbers

INCEPTION = NETWORKS["inception_v3"]
MOBILENET = NETWORKS["mobilenet_0.25_128"]


@pytest.fixture(scope="module")
def base(inception_file):
    return load_network(inception_file, INCEPTION)


@pytest.fixture(scope="module")
def some_paths(photos):
    return [f"{photos}/{label}/photo_{n:02d}.jpg" for label in ("red", "blue") for n in range(5)]


@pytest.fixture(scope="module")
def untouched(base, some_paths):
    """Vectors of the graph as it is, one image's bytes at a time."""
    runner = BytesRunner(base.graph_def, base.bottleneck)
    return np.concatenate([runner.run(read_file(path)) for path in some_paths])


@pytest.fixture(scope="module")
def pixels(base, some_paths):
    about = base.preprocessing
    reader = ImageReader(about)
    return np.concatenate([reader.read(path) for path in some_paths])


def test_folded_and_batched_equals_the_untouched_graph(base, untouched, pixels):
    vectors = Runner(base.graph_def, base.input, base.bottleneck).run(pixels)
    assert vectors.shape == (10, tiny.WIDTH)
    assert vectors.std() > 0.1  # the vectors do tell images apart
    np.testing.assert_allclose(vectors, untouched, atol=1e-5)


@pytest.mark.parametrize("optimize", [True, False])
@needs_bfloat16
def test_bfloat16_is_close(base, untouched, pixels, optimize):
    runner = Runner(base.graph_def, base.input, base.bottleneck, Running("bfloat16", optimize))
    vectors = runner.run(pixels)
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(untouched, axis=1)
    assert ((vectors * untouched).sum(axis=1) / norms).min() > 0.999


@needs_bfloat16
def test_what_follows_the_last_convolution_stays_float32(base, pixels):
    how = Running("bfloat16")
    nodes = nodes_by_name(base.graph_def)
    weights, bias = (constant(nodes, f"softmax/{name}") for name in ("weights", "biases"))
    vectors = Runner(base.graph_def, base.input, base.bottleneck, how).run(pixels)
    logits = Runner(base.graph_def, base.input, "softmax/logits", how).run(pixels)
    np.testing.assert_allclose(logits, vectors @ weights + bias, atol=1e-5)


def test_folding_removes_the_old_ops(base):
    folded = surgery.cut(base.graph_def, "Mul", "pool_3/_reshape")
    fold_module.fold(folded, "pool_3/_reshape")
    ops = {node.op for node in folded.node}
    assert ops == {
        *("Placeholder", "Const", "Conv2D", "BiasAdd", "Relu"),
        *("ConcatV2", "AvgPool", "Reshape"),
    }


def spelled_out_batch_norm(depthwise):
    """A convolution with MobileNet's batch norm: Mul, Add, Sub, Rsqrt of constants, Identities."""
    b, rng = tiny.GraphBuilder(producer=0), np.random.default_rng(1)
    b.add("input", "Placeholder", dtype=b.tf.float32, shape=(1, 8, 8, 4))
    shape = (3, 3, 4, 2) if depthwise else (3, 3, 4, 8)
    values = {"weights": rng.normal(size=shape), "epsilon": np.float32(0.001)}
    for name in ("beta", "gamma", "mean"):
        values[name] = rng.normal(size=8)
    values["variance"] = rng.uniform(0.5, 2, 8)
    for name, value in values.items():
        b.const(name, np.asarray(value, np.float32))
        b.float_op(f"{name}/read", "Identity", name)
    op = "DepthwiseConv2dNative" if depthwise else "Conv2D"
    b.float_op("conv", op, "input", "weights/read", strides=[1, 1, 1, 1], padding="SAME")
    b.float_op("norm/add", "Add", "variance/read", "epsilon/read")
    b.float_op("norm/Rsqrt", "Rsqrt", "norm/add")
    b.float_op("norm/mul", "Mul", "norm/Rsqrt", "gamma/read")
    b.float_op("norm/mul_1", "Mul", "conv", "norm/mul")
    b.float_op("norm/mul_2", "Mul", "mean/read", "norm/mul")
    b.float_op("norm/sub", "Sub", "beta/read", "norm/mul_2")
    b.float_op("norm/add_1", "Add", "norm/mul_1", "norm/sub")
    b.float_op("output", "Relu6", "norm/add_1")
    return b.graph_def


@pytest.mark.parametrize("depthwise", [False, True])
def test_a_spelled_out_batch_norm_goes_into_the_weights(depthwise):
    graph_def = spelled_out_batch_norm(depthwise)
    images = np.random.default_rng(0).normal(size=(1, 8, 8, 4)).astype("f4")
    folded = surgery.cut(graph_def, "input", "output")
    fold_module.fold(folded, "output")
    convolution = "DepthwiseConv2dNative" if depthwise else "Conv2D"
    assert sorted(node.op for node in folded.node) == sorted(
        ["Placeholder", "Const", convolution, "Const", "BiasAdd", "Relu6"]
    )
    answers = []
    for each in (graph_def, folded):
        session = tf.compat.v1.Session(graph=read.import_graph(each))
        answers.append(session.run("output:0", {"input:0": images}))
    np.testing.assert_allclose(answers[1], answers[0], atol=1e-5)


class Convolution:
    """A convolution `conv` of 8 channels, with what follows it: constants are numbered b0, b1."""

    def __init__(self, depthwise=False):
        self.builder, self.rng = tiny.GraphBuilder(producer=0), np.random.default_rng(2)
        self.float_op, count = self.builder.float_op, itertools.count()
        self.number = lambda: f"b{next(count)}"
        self.builder.add("input", "Placeholder", dtype=tf.float32, shape=(1, 6, 6, 4))
        op = "DepthwiseConv2dNative" if depthwise else "Conv2D"
        weights = self.constant((3, 3, 4, 2) if depthwise else (3, 3, 4, 8))
        self.float_op("conv", op, "input", weights, strides=[1, 1, 1, 1], padding="SAME")

    def constant(self, shape, low=-1.0):
        value = self.rng.uniform(low, 2, shape)
        return self.builder.const(self.number(), np.asarray(value, np.float32))

    def batch_norm(self, name, source, op="FusedBatchNormV3", **attributes):
        values = [self.constant(8), self.constant(8), self.constant(8), self.constant(8, low=0.5)]
        self.float_op(name, op, source, *values, **attributes)
        if op != "FusedBatchNorm":
            self.builder.graph_def.node[-1].attr["U"].type = tf.float32.as_datatype_enum

    def folded_ops(self, output="output"):
        """The ops of the folded graph, sorted, having seen that it gives what it gave before."""
        images = self.rng.normal(size=(1, 6, 6, 4)).astype("f4")
        part = surgery.cut(self.builder.graph_def, "input", output)
        answers = []
        for fold in (lambda *_: None, fold_module.fold):
            fold(part, output)
            session = tf.compat.v1.Session(graph=read.import_graph(part))
            answers.append(session.run(f"{output}:0", {"input:0": images}))
        assert np.abs(answers[0]).max() > 0.1
        np.testing.assert_allclose(answers[1], answers[0], atol=1e-5)
        return sorted(node.op for node in part.node if node.op not in ("Const", "Placeholder"))


@pytest.mark.parametrize("adds", ["BiasAdd", "Add"])
@pytest.mark.parametrize("depthwise", [False, True])
def test_a_batch_norm_after_a_bias_goes_through_it(depthwise, adds):
    """As in ResNets, and once more: (((conv + b) * scale + shift) * scale)."""
    net = Convolution(depthwise)
    net.float_op("biased", adds, "conv", net.constant(8))
    net.float_op("scaled", "Mul", net.constant(8), "biased")
    net.float_op("shifted", "AddV2", "scaled", net.constant(8))
    net.float_op("again", "Mul", "shifted", net.constant(8))
    net.float_op("output", "Relu", "again")
    assert net.folded_ops() == [
        "BiasAdd",
        "DepthwiseConv2dNative" if depthwise else "Conv2D",
        "Relu",
    ]


@pytest.mark.parametrize("op", ["FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"])
@pytest.mark.parametrize("biased", [False, True])
def test_a_fused_batch_norm_of_constants_goes_into_the_weights(op, biased):
    net, epsilon = Convolution(), {"epsilon": 0.5} if biased else {}  # else the op's own: 0.0001
    if biased:
        net.float_op("biased", "BiasAdd", "conv", net.constant(8))
    net.batch_norm("norm", "biased" if biased else "conv", op, is_training=False, **epsilon)
    net.float_op("output", "Relu", "norm:0")
    assert net.folded_ops() == ["BiasAdd", "Conv2D", "Relu"]


def test_a_batch_norm_that_trains_or_tells_its_statistics_is_left_alone():
    for attributes in ({}, {"is_training": True}):
        net = Convolution()
        net.batch_norm("norm", "conv", **attributes)
        # What a training batch norm is given as statistics must be empty.
        for node in net.builder.graph_def.node:
            if node.name in ("b3", "b4"):
                set_constant(node, np.zeros(0, np.float32))
        net.float_op("output", "Relu", "norm")
        assert "FusedBatchNormV3" in net.folded_ops()
    net = Convolution()
    net.batch_norm("norm", "conv", is_training=False)
    net.float_op("output", "AddV2", "norm", "norm:1")
    assert "FusedBatchNormV3" in net.folded_ops()


def test_what_others_use_is_left_as_it_is():
    """Each has two users, only one of which is scaled: a sum, a product, a constant."""
    net = Convolution()
    bias = net.constant(8)
    net.float_op("one", "BiasAdd", "conv", bias)
    net.float_op("two", "Add", "one", net.constant(8))
    net.float_op("three", "Mul", "two", net.constant(8))
    net.float_op("four", "AddV2", "three", "one")
    net.float_op("output", "BiasAdd", "four", bias)
    assert net.folded_ops() == ["Add", "AddV2", "BiasAdd", "BiasAdd", "Conv2D", "Mul"]
    net = Convolution()
    net.float_op("one", "Mul", "conv", net.constant(8))
    net.float_op("two", "Mul", "one", net.constant(8))
    net.float_op("output", "AddV2", "one", "two")
    assert net.folded_ops() == ["AddV2", "Conv2D", "Mul"]
    net = Convolution()
    bias = net.constant(8)
    net.float_op("one", "BiasAdd", "conv", bias)
    net.float_op("two", "Mul", "one", net.constant(8))
    net.float_op("output", "Add", "two", bias)
    assert net.folded_ops() == ["BiasAdd", "Conv2D"]


def test_a_constant_for_all_channels_at_once_is_no_bias():
    net = Convolution()
    net.float_op("one", "Add", "conv", net.constant(1))
    net.float_op("output", "Mul", "one", net.constant(1))
    assert net.folded_ops() == ["Add", "Conv2D", "Mul"]


def test_an_identity_can_be_the_output():
    b = tiny.GraphBuilder(producer=0)
    b.add("input", "Placeholder", dtype=b.tf.float32, shape=(1, 4, 4, 3))
    b.float_op("relu", "Relu", "input")
    b.float_op("Identity", "Identity", "relu")
    images = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype("f4")
    found = Runner(b.graph_def, "input", "Identity").run(images)
    np.testing.assert_array_equal(found, np.maximum(images, 0))


def test_an_output_that_does_not_depend_on_the_input_is_refused(base):
    with pytest.raises(GraphError, match="does not depend on"):
        Runner(base.graph_def, "Mul", "softmax/biases")


def test_a_retrained_graph_is_no_base_network(finished):
    with pytest.raises(GraphError, match="is a retrained graph"):
        load_network(finished.graph, INCEPTION)


def test_runners_leave_the_graph_they_were_given(base):
    before = base.graph_def.SerializeToString(deterministic=True)
    Runner(base.graph_def, "Mul", "pool_3/_reshape")
    BytesRunner(base.graph_def, "pool_3/_reshape")
    assert base.graph_def.SerializeToString(deterministic=True) == before


def test_batch_norm_of_shared_weights_is_left_alone():
    """Two convolutions with one weights node: scaling it for one would break the other."""
    graph_def = tiny.tiny_inception()
    nodes = nodes_by_name(graph_def)
    set_constant(nodes["mixed/tower/conv2d_params"], constant(nodes, "mixed/conv/conv2d_params"))
    nodes["mixed/tower/Conv2D"].input[1] = "mixed/conv/conv2d_params"
    image = np.random.default_rng(0).normal(size=(1, tiny.SIZE, tiny.SIZE, 3)).astype("f4")
    folded = Runner(graph_def, "Mul", "pool_3/_reshape").run(image)
    plain = tf.compat.v1.Session(graph=read.import_graph(graph_def))
    expected = plain.run("pool_3/_reshape:0", {"Mul:0": image})
    np.testing.assert_allclose(folded, expected, atol=1e-5)


def test_the_graph_tells_its_own_facts(base):
    assert base.width == tiny.WIDTH
    assert base.preprocessing == Preprocessing((tiny.SIZE, tiny.SIZE), 128.0, 128.0)


def test_a_placeholder_tells_its_size(tmp_path):
    path = tiny.write_graph(str(tmp_path / "m" / "frozen_graph.pb"), tiny.tiny_mobilenet())
    network = load_network(path, MOBILENET)
    assert network.preprocessing == Preprocessing((128, 128), 127.5, 127.5)
    assert network.width == 8
    images = np.random.default_rng(0).normal(size=(3, 128, 128, 3)).astype("f4")
    runner = Runner(network.graph_def, network.input, network.bottleneck)
    together = runner.run(images)
    alone = np.concatenate([runner.run(image[None]) for image in images])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_graph_bound_to_one_image_still_gives_all(tmp_path):
    """A shape that cannot be widened (here: computed) makes the images go one by one."""
    graph_def = tiny.tiny_mobilenet()
    nodes = nodes_by_name(graph_def)
    set_constant(graph_def.node.add(name="one"), np.array([1], np.int32))
    set_constant(graph_def.node.add(name="rest"), np.array([8], np.int32))
    set_constant(graph_def.node.add(name="axis"), np.int32(0))
    shape = nodes["MobilenetV1/Predictions/Reshape/shape"]
    shape.op, shape.input[:] = "ConcatV2", ["one", "rest", "axis"]
    shape.attr.clear()
    shape.attr["N"].i = 2
    shape.attr["T"].type = shape.attr["Tidx"].type = tf.int32.as_datatype_enum
    images = np.random.default_rng(0).normal(size=(3, 128, 128, 3)).astype("f4")
    runner = Runner(graph_def, "input", "MobilenetV1/Predictions/Reshape")
    expected = Runner(tiny.tiny_mobilenet(), "input", "MobilenetV1/Predictions/Reshape").run(images)
    np.testing.assert_allclose(runner.run(images), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "channels"), [(160, 8), (128, 16)], ids=["other size", "other width"]
)
def test_another_mobilenet_is_refused(tmp_path, size, channels):
    graph_def = tiny.tiny_mobilenet(size, channels)
    path = tiny.write_graph(str(tmp_path / "m" / "frozen_graph.pb"), graph_def)
    with pytest.raises(GraphError, match="another network than"):
        load_network(path, MOBILENET)


def test_another_network_is_refused(inception_file):
    with pytest.raises(GraphError, match="it has no node MobilenetV1/Predictions/Reshape, input"):
        load_network(inception_file, MOBILENET)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x0a\xff\xff\xff\xff\x7f"])
def test_a_file_that_is_no_graph_is_refused(tmp_path, content):
    path = tmp_path / "graph.pb"
    path.write_bytes(content)
    with pytest.raises(GraphError, match="is not a frozen graph"):
        read_graph(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(GraphError, match="cannot read the graph"):
        read_graph(tmp_path / "nothing.pb")


def test_auto_is_bfloat16_only_for_networks_that_bear_it(base, monkeypatch):
    for native in ("float32", "bfloat16"):
        monkeypatch.setattr(network_precision, "native_precision", lambda native=native: native)
        assert resolve_precision("auto", base.graph_def) == native
        assert resolve_precision("auto", tiny.tiny_mobilenet()) == "float32"
        assert resolve_precision("bfloat16", tiny.tiny_mobilenet()) == "bfloat16"


def test_fingerprint_depends_on_file_and_precision(base, tmp_path):
    other_file = tiny.write_graph(str(tmp_path / "m" / "g.pb"), tiny.tiny_inception(seed=1))
    other = load_network(other_file, INCEPTION)
    prints = {n.fingerprint(p) for n in (base, other) for p in ("float32", "bfloat16")}
    assert len(prints) == 4
    again = load_network(other_file, INCEPTION)
    assert again.fingerprint("float32") == other.fingerprint("float32")


@pytest.mark.parametrize(
    ("cap", "capped"),
    [
        (None, False),
        ("AVX2", True),
        ("avx512_core_vnni", True),
        ("AVX512_CORE_BF16", False),
        ("AVX512_CORE_AMX", False),
        ("default", False),
    ],
)
def test_a_capped_onednn_computes_in_float32(monkeypatch, cap, capped):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    native = precision.native_precision()
    if cap:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
    assert precision.onednn_is_capped() is capped
    assert precision.native_precision() == ("float32" if capped else native)
