"""preprocessing.py: the record of how an image becomes pixels, and what is written of it."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from retraining.graphs.front_end import look_after, look_before, read_preprocessing
from retraining.graphs.messages import GraphDef
from retraining.graphs.nodes import add_node, nodes_by_name
from retraining.graphs.preprocessing import (
    ANTIALIASED_CUBIC,
    Preprocessing,
    PreprocessingError,
    add_front_end,
    per_channel,
    resize_bilinear,
    spelled,
)
from retraining.graphs.read import to_tensorflow

USUAL = Preprocessing((299, 200), 128.0, 64.0)
IMAGENET = Preprocessing((224, 224), (123.7, 116.0, 103.5), (58.4, 57.1, 57.4))
CUBIC = replace(IMAGENET, size=(32, 30), kernel=ANTIALIASED_CUBIC)
UNKNOWN = replace(IMAGENET, kernel="bicubic", orientation="none")


def test_a_usual_record_is_written_as_before_there_were_others():
    assert repr(USUAL.facts()) == "((299, 200), 128.0, 64.0)"
    assert json.dumps(USUAL.describe()) == '{"size": [299, 200], "mean": 128.0, "std": 64.0}'
    assert (spelled(USUAL.mean), spelled(127.5)) == ("128", "127.5")


def test_another_record_is_written_in_full():
    assert repr(UNKNOWN.facts()) == (
        "((224, 224), (123.7, 116.0, 103.5), (58.4, 57.1, 57.4), "
        "('kernel', 'bicubic'), ('orientation', 'none'))"
    )
    assert spelled(UNKNOWN.mean) == "(123.7, 116, 103.5)"


@pytest.mark.parametrize("record", [USUAL, IMAGENET, CUBIC, UNKNOWN])
def test_a_description_is_read_back(record):
    assert Preprocessing.of(json.loads(json.dumps(record.describe()))) == record


@pytest.mark.parametrize("value", [[1, 2], "x", None, [1, 2, "x"]])
def test_other_numbers_than_one_or_three_are_refused(value):
    with pytest.raises((TypeError, ValueError)):
        per_channel(value)


def test_the_front_end_is_byte_for_byte_what_it_always_was():
    graph_def = GraphDef()
    assert add_front_end(graph_def, Preprocessing((299, 299), 128.0, 128.0)) == "Mul"
    content = graph_def.SerializeToString(deterministic=True)
    assert hashlib.sha1(content).hexdigest() == "be3e867d51e2ad1cd368333c0bcc65c871ba7203"


def test_the_front_end_of_an_unknown_kernel_is_refused():
    graph_def = GraphDef()
    with pytest.raises(PreprocessingError, match="not by bicubic"):
        add_front_end(graph_def, replace(USUAL, kernel="bicubic"))


@pytest.mark.parametrize("old", [(1, 1), (7, 500), (333, 500), (240, 320), (1000, 3)])
@pytest.mark.parametrize("new", [(299, 299), (128, 130), (1, 1)])
def test_images_are_resized_to_the_bits_of_tensorflows_op(old, new):
    pixels = np.random.default_rng(0).integers(0, 256, (*old, 3), dtype=np.uint8)
    expected = tf.compat.v1.image.resize_bilinear(pixels[None].astype(np.float32), new)[0]
    found = resize_bilinear(pixels, new)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected.numpy())


def run_graph(nodes, feeds, output):
    """The value of a node, by TensorFlow."""
    with tf.Graph().as_default() as graph, tf.compat.v1.Session() as session:
        tf.graph_util.import_graph_def(to_tensorflow(nodes), name="")
        fed = {graph.get_tensor_by_name(f"{name}:0"): value for name, value in feeds.items()}
        return session.run(f"{output}:0", fed)


@pytest.mark.parametrize("shape", [(500, 375), (40, 90), (31, 17), (1, 1), (7, 600), (33, 31)])
def test_the_antialiased_kernel_is_tensorflows(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    nodes = GraphDef()
    add_node(nodes, "images", "Placeholder", dtype="float32", shape=(-1, -1, -1, 3))
    kernel = CUBIC.resizing()
    end = kernel.add(nodes, "images", CUBIC.size)
    expected = run_graph(nodes, {"images": pixels[None].astype(np.float32)}, end)[0]
    # The op computes its weights in float32. Over 200 photos, the most was 0.008 of 255.
    np.testing.assert_allclose(kernel.resize(pixels, CUBIC.size), expected, atol=1e-2)


def test_the_antialiased_kernel_counts_every_pixel():
    stripes = np.zeros((80, 80, 3), np.uint8)
    stripes[::2] = 200
    inner = CUBIC.resizing().resize(stripes, CUBIC.size)[2:-2]
    np.testing.assert_allclose(
        inner, 100, atol=15
    )  # the kernel without antialiasing gives 0 or 200


def test_the_front_end_resizes_by_the_kernel():
    nodes = GraphDef()
    add_front_end(nodes, CUBIC)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 50, 60, 3)).astype(np.float32)
    found = run_graph(nodes, {"ExpandDims/any_batch": pixels}, "Mul")
    resized = [CUBIC.resizing().resize(image.astype(np.uint8), CUBIC.size) for image in pixels]
    expected = (np.stack(resized) - CUBIC.offset) * CUBIC.factor
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert CUBIC.facts()[-1] == ("kernel", "antialiased_cubic")
    assert Preprocessing.of(CUBIC.describe()) == CUBIC


def test_readers_of_graphs_pass_the_kernel_on():
    """Its weights add up to 1, so that the arithmetic behind it is that of the image's pixels."""
    graph_def = GraphDef()
    add_front_end(graph_def, CUBIC)
    nodes = nodes_by_name(graph_def)
    after = look_after(nodes, "Cast")
    assert after.resized
    assert after.passed[2:] == ("ScaleAndTranslate", "Sub", "Mul")
    mean, std = after.affine.scale()
    np.testing.assert_allclose(mean, CUBIC.mean, rtol=1e-6)
    np.testing.assert_allclose(std, CUBIC.std, rtol=1e-6)


def test_readers_of_graphs_do_not_take_the_kernel_for_the_usual_one():
    """Whoever resized the pixels by the legacy kernel would give the network others."""
    graph_def = GraphDef()
    add_front_end(graph_def, CUBIC)
    found = look_before(nodes_by_name(graph_def), "Mul")
    assert (found.source.op, found.is_pixels) == ("ScaleAndTranslate", False)
    assert read_preprocessing(nodes_by_name(graph_def), "Mul").mean is None
