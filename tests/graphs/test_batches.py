"""batches.py: which graphs mix the images of a batch. tests/labelling/test_resolve.py has more."""

from types import SimpleNamespace

import numpy as np
import pytest

from retraining.export.build import build_graph
from retraining.graphs.batches import is_quantised, mixes_images
from retraining.graphs.messages import GraphDef
from retraining.graphs.nodes import add_constant, add_node, nodes_by_name
from retraining.graphs.run import BytesRunner, Runner, Running
from retraining.graphs.surgery import batched_part
from retraining.networks import dinov2
from retraining.networks.mirror import mirror_average
from retraining.networks.network import load_network
from retraining.networks.registry import NETWORKS
from retraining.training.head import Head
from tests import tiny
from tests.networks.dinov2_weights import random_weights

pytestmark = pytest.mark.numbers

MOBILENET = NETWORKS["mobilenet_0.25_128"]


def load(tmp_path, graph_def, network=MOBILENET):
    path = tiny.write_graph(str(tmp_path / "made" / "graph.pb"), graph_def)
    return load_network(path, network)


def mixes(graph_def, start, end):
    part = batched_part(graph_def, start, end)
    return mixes_images(nodes_by_name(part), start, one_row=False)


@pytest.mark.parametrize(
    ("name", "made"),
    [("inception_v3", tiny.tiny_inception()), ("mobilenet_0.25_128", tiny.tiny_mobilenet())],
)
def test_networks_with_and_without_mirror_images_and_head_keep_their_batches(tmp_path, name, made):
    network = load(tmp_path, made, NETWORKS[name])
    head = Head(np.ones((network.width, 2), "f4"), np.zeros(2, "f4"))
    for each in (network, mirror_average(network)):
        assert not mixes(each.graph_def, each.input, each.bottleneck)
        exported = build_graph(each, head, "final_result")
        assert not mixes(exported, each.input, "final_result")
        assert not is_quantised(node.op for node in exported.node)


def reduced(op, axes):
    """A tiny MobileNet whose pixels are divided by a Max or so over some axes."""
    graph_def = tiny.tiny_mobilenet()
    axes = add_constant(graph_def, "axes", np.array(axes, np.int32))
    most = add_node(graph_def, "most", op, ["input", axes], T="float32", Tidx="int32")
    graph_def.node[-1].attr["keep_dims"].b = True
    add_node(graph_def, "scaled", "RealDiv", ["input", most], T="float32")
    nodes_by_name(graph_def)["MobilenetV1/conv"].input[0] = "scaled"
    return graph_def


@pytest.mark.parametrize("op", ["Max", "Min", "Mean", "Sum"])
def test_a_reduction_over_the_batch_mixes_images(op):
    ends = MOBILENET.input, MOBILENET.bottleneck
    assert mixes(reduced(op, [0, 1, 2, 3]), *ends)
    assert mixes(reduced(op, [0]), *ends)
    assert not mixes(reduced(op, [1, 2]), *ends)


@pytest.fixture(scope="module")
def eightbit(tmp_path_factory):
    """A quantised network with four images, one of them of a much wider range."""
    network = load(tmp_path_factory.mktemp("eightbit"), tiny.tiny_mobilenet(eightbit=True))
    images = np.random.default_rng(0).uniform(-0.1, 0.1, (4, 128, 128, 3)).astype("f4")
    images[2] *= 10
    return SimpleNamespace(network=network, images=images)


def unchanged(network, images):
    """Vectors of the graph as it is, one image at a time."""
    runner = BytesRunner(network.graph_def, network.bottleneck, network.input)
    return np.concatenate([runner.run_pixels({network.input: image[None]}) for image in images])


def test_a_quantised_graph_gives_each_image_its_own_range(eightbit):
    network, images = eightbit.network, eightbit.images
    assert mixes(network.graph_def, network.input, network.bottleneck)
    vectors = Runner(network.graph_def, network.input, network.bottleneck).run(images)
    expected = unchanged(network, images)
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_in_one_batch_its_images_would_change_each_other(eightbit):
    """So that the test above can fail."""
    network, images = eightbit.network, eightbit.images
    runner = Runner(network.graph_def, network.input, network.bottleneck)
    runner.one_at_a_time = False
    expected = unchanged(network, images)
    assert np.abs(runner.run(images) - expected).max() > 1e-3 * np.abs(expected).max()


def test_bfloat16_leaves_a_quantised_graph_as_it_is(eightbit):
    network, images = eightbit.network, eightbit.images
    how = Running("bfloat16")
    vectors = Runner(network.graph_def, network.input, network.bottleneck, how).run(images)
    expected = unchanged(network, images)
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_mirror_images_of_a_quantised_network_do_not_reach_other_photos(eightbit):
    network, images = mirror_average(eightbit.network), eightbit.images
    runner = Runner(network.graph_def, network.input, network.bottleneck)
    alone = np.concatenate([runner.run(image[None]) for image in images])
    np.testing.assert_allclose(runner.run(images), alone, rtol=0, atol=1e-5 * np.abs(alone).max())
    assert runner.one_at_a_time


def test_a_transformer_keeps_its_batches():
    graph_def = dinov2.build_graph(random_weights(), 42)
    assert not mixes(graph_def, "input", "bottleneck")
    assert not Runner(graph_def, "input", "bottleneck").one_at_a_time


def product(left, right, **options):
    """A graph of products of an input that is reshaped to two shapes."""
    graph_def = GraphDef()
    add_node(graph_def, "input", "Placeholder", dtype="float32", shape=(-1, 4, 4, 3))
    for name, shape in (("left", left), ("right", right)):
        target = add_constant(graph_def, f"{name}/shape", np.array(shape, np.int32))
        add_node(graph_def, name, "Reshape", ["input", target], T="float32", Tshape="int32")
    add_node(graph_def, "product", "BatchMatMulV2", ["left", "right"], T="float32", **options)
    flat = add_constant(graph_def, "flat", np.array([-1, 16], np.int32))
    add_node(graph_def, "vector", "Reshape", ["product", flat], T="float32", Tshape="int32")
    return graph_def


@pytest.mark.parametrize(
    ("left", "right", "mixed"),
    [
        ((-1, 4, 12), (-1, 12, 4), False),
        ((-1, 1, 4, 12), (-1, 1, 12, 4), False),
        ((-1, 48), (-1, 48), True),  # each image with each other
        ((-1, 1, 4, 12), (-1, 12, 4), True),  # the images of one meet an axis of the other
    ],
)
def test_a_product_of_two_matrices_of_an_image_keeps_to_it(left, right, mixed):
    graph_def = product(left, right, adj_y=len(left) == 2)
    assert mixes(graph_def, "input", "vector") == mixed
    images = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype("f4")
    runner = BytesRunner(graph_def, "product", "input")
    together, alone = (runner.run_pixels({"input": x}) for x in (images, images[:1]))
    differs = together.size != 2 * alone.size or np.abs(together[0] - alone[0]).max() > 1e-5
    assert differs == mixed
