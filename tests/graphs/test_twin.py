"""twin.py: a network's LiteRT model is found by what the graph is, and checked before use."""

import os
from dataclasses import replace

import numpy as np
import pytest

from retraining.graphs import to_litert
from retraining.graphs import twin as twin_module
from retraining.graphs.litert import ConversionError, LiteRunner
from retraining.graphs.messages import GraphDef
from retraining.graphs.nodes import GraphError, constant, nodes_by_name, set_constant
from retraining.graphs.preprocessing import Preprocessing
from retraining.graphs.run import Runner
from retraining.graphs.twin import TwinError, VectorPart, check_images, find_twin, make_twin
from tests import tiny

PIXELS = Preprocessing((tiny.SIZE, tiny.SIZE), 128.0, 128.0)


def inception(seed=0):
    graph_def = GraphDef.FromString(tiny.tiny_inception(seed).SerializeToString())
    return VectorPart(graph_def, "Mul", "pool_3/_reshape", PIXELS)


def test_a_twin_is_made_once_and_gives_the_graphs_vectors(tmp_path):
    part = inception()
    assert find_twin(part.digest(), [tmp_path]) is None
    path = make_twin(part, [tmp_path / "new" / "folder"])
    assert path.parent == tmp_path / "new" / "folder"
    assert find_twin(part.digest(), [tmp_path, path.parent]) == path
    images = check_images(PIXELS)
    assert images.shape == (4, tiny.SIZE, tiny.SIZE, 3)
    assert -1 <= images.min() < -0.9 < 0.9 < images.max() <= 1
    expected = Runner(part.graph_def, part.input, part.bottleneck).run(images)
    np.testing.assert_allclose(LiteRunner(path).run(images), expected, atol=1e-5)


def renamed(part, prefix):
    """The same network, with other names of nodes."""
    graph_def = GraphDef.FromString(part.graph_def.SerializeToString())
    for node in graph_def.node:
        node.name = prefix + node.name
        references = [f"^{prefix}{n[1:]}" if n[0] == "^" else prefix + n for n in node.input]
        del node.input[:]
        node.input.extend(references)
    return VectorPart(graph_def, prefix + part.input, prefix + part.bottleneck, part.preprocessing)


def test_names_and_the_size_of_the_batch_do_not_count():
    part, other = inception(), renamed(inception(), "second/")
    assert other.digest() == part.digest()
    nodes = nodes_by_name(other.graph_def)
    set_constant(nodes["second/pool_3/_reshape/shape"], np.array([-1, tiny.WIDTH], np.int32))
    assert other.digest() == part.digest()
    assert replace(part, preprocessing=replace(PIXELS, mean=0.0)).digest() == part.digest()


def edit_weights(part):
    node = nodes_by_name(part.graph_def)["mixed/tower/conv2d_params"]
    value = constant({node.name: node}, node.name).copy()
    value.flat[7] = np.nextafter(value.flat[7], 9)
    set_constant(node, value)


def edit_attribute(part):
    nodes_by_name(part.graph_def)["pool_3"].attr["padding"].s = b"SAME"


def edit_op(part):
    nodes_by_name(part.graph_def)["conv"].op = "Relu6"


def edit_inputs(part):
    node = nodes_by_name(part.graph_def)["mixed/join"]
    node.input[1], node.input[2] = node.input[2], node.input[1]


def edit_epsilon(part):
    nodes_by_name(part.graph_def)["conv/batchnorm"].attr["variance_epsilon"].f = 0.002


@pytest.mark.parametrize("edit", [edit_weights, edit_attribute, edit_op, edit_inputs, edit_epsilon])
def test_every_change_of_the_network_counts(edit):
    part = inception()
    edit(part)
    assert part.digest() != inception().digest()


def test_the_size_of_the_images_counts():
    other = replace(inception(), preprocessing=replace(PIXELS, size=(tiny.SIZE, tiny.SIZE + 1)))
    assert other.digest() != inception().digest()


def test_what_lies_behind_the_vectors_does_not_count():
    part = inception()
    set_constant(nodes_by_name(part.graph_def)["softmax/biases"], np.zeros(10, np.float32))
    assert part.digest() == inception().digest()


def test_ends_that_are_not_connected_have_no_digest():
    with pytest.raises(GraphError, match="does not depend on"):
        replace(inception(), input="softmax").digest()
    with pytest.raises(GraphError, match="no node 'none'"):
        replace(inception(), bottleneck="none").digest()


@pytest.mark.parametrize("damage", [lambda c: c[:-1], lambda c: c[:999] + b"x" + c[1000:]])
def test_a_damaged_twin_is_not_found_and_made_again(tmp_path, damage):
    part = inception()
    path = make_twin(part, [tmp_path])
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert find_twin(part.digest(), [tmp_path]) is None
    assert make_twin(part, [tmp_path]) == path
    assert path.read_bytes() == whole


def test_the_twin_of_another_network_is_not_taken(tmp_path):
    path = make_twin(inception(1), [tmp_path])
    os.rename(path, tmp_path / f"{inception().digest()[:32]}-{'0' * 16}.tflite")
    assert find_twin(inception().digest(), [tmp_path]) is None


def test_a_model_with_other_vectors_gets_no_name(tmp_path, monkeypatch):
    other = make_twin(inception(1), [tmp_path / "other"]).read_bytes()
    monkeypatch.setattr(to_litert, "to_litert", lambda *ends: other)
    with pytest.raises(TwinError, match="differ from TensorFlow's by"):
        make_twin(inception(), [tmp_path])
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_the_first_folder_that_can_be_written_is_taken(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    path = make_twin(inception(), [tmp_path / "file", tmp_path / "file" / "below", tmp_path])
    assert path.parent == tmp_path
    with pytest.raises(ConversionError, match="no folder"):
        make_twin(inception(), [tmp_path / "file"])


def test_the_oldest_twins_make_room(tmp_path, monkeypatch):
    first, second = (make_twin(inception(seed), [tmp_path]) for seed in (1, 2))
    os.utime(first, (1, 1))
    monkeypatch.setattr(twin_module, "MOST_KEPT", second.stat().st_size * 2)
    third = make_twin(inception(3), [tmp_path])
    assert set(tmp_path.iterdir()) == {second, third}
