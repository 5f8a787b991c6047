"""build.py, verify.py: the written graph, used as others use it, and its checks."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from retraining.bottlenecks.extract import Extractor
from retraining.export import build, verify
from retraining.export.build import ExportError
from retraining.graphs import description, read, write
from retraining.graphs.description import read_metadata
from retraining.graphs.nodes import GraphError, nodes_by_name, set_constant
from retraining.graphs.preprocessing import Preprocessing
from retraining.graphs.read import read_graph
from retraining.graphs.run import BytesRunner
from retraining.labelling.classifier import load_classifier
from retraining.metrics import classification
from retraining.networks.network import load_network
from retraining.networks.registry import NETWORKS
from retraining.photos.bounds import MAX_PIXELS
from retraining.photos.dataset import Example
from retraining.photos.reader import ImageReader, read_file
from retraining.photos.registry import hash_file
from retraining.system.atomic import write_files
from retraining.training.head import Head
from tests import tiny

pytestmark = pytest.mark.numbers

LABELS = ["Rote Blüte", "blue"]


@pytest.fixture(scope="module")
def base(inception_file):
    return load_network(inception_file, NETWORKS["inception_v3"])


@pytest.fixture(scope="module")
def head():
    rng = np.random.default_rng(3)
    return Head(rng.normal(size=(tiny.WIDTH, 2)).astype("f4"), np.array([0.1, -0.2], "f4"))


@pytest.fixture(scope="module")
def extractor(base):
    return Extractor(base)


@pytest.fixture(scope="module")
def written(base, head, tmp_path_factory):
    path = tmp_path_factory.mktemp("written") / "graph.pb"
    content = write.graph_bytes(build.build_graph(base, head, "final_result"))
    about = build.describe(base, LABELS, "final_result", {"options": {"seed": 7}})
    write_files({path: content + build.metadata_bytes(about)})
    return str(path)


@pytest.fixture(scope="module")
def examples(photos):
    return [
        Example(f"{photos}/{folder}/photo_{n:02d}.jpg", label, "testing", "")
        for folder, label in (("red", LABELS[0]), ("blue", LABELS[1]))
        for n in range(4)
    ]


@pytest.fixture(scope="module")
def vectors(base, examples):
    """The untouched graph's vectors, one image's bytes at a time."""
    runner = BytesRunner(base.graph_def, base.bottleneck)
    return np.concatenate([runner.run(read_file(e.path)) for e in examples])


@pytest.fixture(scope="module")
def expected(head, vectors):
    return head.probabilities(vectors)


def test_bytes_in_probabilities_out(written, examples, expected):
    runner = BytesRunner(read_graph(written), "final_result")
    answers = np.concatenate([runner.run(read_file(e.path)) for e in examples])
    np.testing.assert_allclose(answers, expected, atol=1e-4)


def test_a_tf1_program_feeds_any_batch_by_the_classics_names(written, examples, expected, base):
    """Exactly what an old label_image.py does, with more than one image."""
    about = base.preprocessing
    reader = ImageReader(about)
    pixels = np.concatenate([reader.read(e.path) for e in examples])
    graph_def = tf.compat.v1.GraphDef()
    with open(written, "rb") as file:
        graph_def.ParseFromString(file.read())
    with tf.Graph().as_default() as g:
        tf.import_graph_def(graph_def)
    feed = g.get_operation_by_name("import/Mul").outputs[0]
    fetch = g.get_operation_by_name("import/final_result").outputs[0]
    with tf.compat.v1.Session(graph=g) as session:
        np.testing.assert_allclose(session.run(fetch, {feed: pixels}), expected, atol=1e-4)
        np.testing.assert_allclose(session.run(fetch, {feed: pixels[:1]}), expected[:1], atol=1e-4)
        bottleneck = g.get_tensor_by_name("import/input/BottleneckInputPlaceholder:0")
        zeros = session.run(fetch, {bottleneck: np.zeros((3, tiny.WIDTH), "f4")})
        assert zeros.shape == (3, 2)


def test_the_networks_own_nodes_stay_as_they_were(written, base):
    before, after = nodes_by_name(base.graph_def), nodes_by_name(read_graph(written))
    changed = {name for name, node in before.items() if name in after and node != after[name]}
    assert changed == {"pool_3/_reshape/shape", "ResizeBilinear"}
    assert after["ResizeBilinear"].op == "ResizeBilinear"
    dropped = set(before) - set(after)
    assert all(name.startswith("softmax") for name in dropped)
    assert read_graph(written).versions.producer == 8


def test_the_classics_names_are_there(written):
    names = set(nodes_by_name(read_graph(written)))
    assert {
        "final_training_ops/weights/final_weights",
        "final_training_ops/biases/final_biases",
        "final_training_ops/Wx_plus_b/MatMul",
        "final_training_ops/Wx_plus_b/add",
        "final_result",
    } <= names


def test_the_graph_describes_itself(written):
    about = read_metadata(read_graph(written))
    assert about["labels"] == LABELS
    assert (about["input"], about["output"]) == ("Mul", "final_result")
    assert (about["size"], about["mean"], about["std"]) == ([32, 32], 128.0, 128.0)
    assert (about["network"], about["options"]) == ("inception_v3", {"seed": 7})


@pytest.mark.parametrize("text", [b"{broken", b"5", b"{}", b'{"size": null}', b"\xff"])
def test_a_damaged_description_is_an_error(written, text):
    graph_def = read_graph(written)
    node = nodes_by_name(graph_def)[description.METADATA]
    set_constant(node, np.array(text, object))
    with pytest.raises(GraphError, match="own description"):
        read_metadata(graph_def)


def test_a_mobilenet_gets_a_decoder_and_keeps_its_input(tmp_path, examples):
    path = tiny.write_graph(str(tmp_path / "m" / "frozen_graph.pb"), tiny.tiny_mobilenet())
    base = load_network(path, NETWORKS["mobilenet_0.25_128"])
    head = Head(np.random.default_rng(0).normal(size=(8, 2)).astype("f4"), np.zeros(2, "f4"))
    graph_def = build.build_graph(base, head, "final_result")
    reader = ImageReader(Preprocessing((128, 128), 127.5, 127.5))
    pixels = np.concatenate([reader.read(e.path) for e in examples[:3]])
    with tf.compat.v1.Session(graph=read.import_graph(graph_def)) as session:
        batch = session.run("final_result:0", {"input:0": pixels})
        content = read_file(examples[1].path)
        single = session.run("final_result:0", {"DecodeJpeg/contents:0": content})
    vectors = tf.compat.v1.Session(graph=read.import_graph(base.graph_def)).run(
        "MobilenetV1/Predictions/Reshape:0", {"input:0": pixels[:1]}
    )
    np.testing.assert_allclose(batch[:1], head.probabilities(vectors), atol=1e-4)
    np.testing.assert_allclose(single[0], batch[1], atol=1e-4)
    assert "input_1/BottleneckInputPlaceholder" in nodes_by_name(graph_def)


def test_a_network_may_take_pixels_scaled_per_channel(tmp_path, examples):
    path = tiny.write_graph(str(tmp_path / "m" / "frozen_graph.pb"), tiny.tiny_mobilenet())
    pixels = Preprocessing((128, 128), (123.7, 116.0, 103.5), (58.4, 57.1, 57.4))
    base = replace(load_network(path, NETWORKS["mobilenet_0.25_128"]), preprocessing=pixels)
    head = Head(np.random.default_rng(0).normal(size=(8, 2)).astype("f4"), np.zeros(2, "f4"))
    content = write.graph_bytes(build.build_graph(base, head, "final_result"))
    described = build.metadata_bytes(build.describe(base, LABELS, "final_result", {}))
    write_files({tmp_path / "graph.pb": content + described})
    graph_def = read_graph(tmp_path / "graph.pb")
    verify.check_base(graph_def, read_metadata(graph_def), base)
    classifier = load_classifier(tmp_path / "graph.pb")
    assert classifier.model.preprocessing == pixels
    from_bytes = BytesRunner(graph_def, "final_result")
    for path, answer, _ in classifier.predict([e.path for e in examples]):
        np.testing.assert_allclose(answer, from_bytes.run(read_file(path))[0], atol=1e-4)


def test_hidden_layers_are_nodes_before_the_classics(base, examples, tmp_path):
    rng = np.random.default_rng(5)
    sizes = [(tiny.WIDTH, 7), (7, 5), (5, 2)]
    layers = [
        (rng.normal(size=size).astype("f4"), rng.normal(size=size[1]).astype("f4"))
        for size in sizes
    ]
    deep = Head(*layers[-1], tuple(layers[:-1]))
    graph_def = build.build_graph(base, deep, "final_result")
    vectors = rng.normal(size=(6, tiny.WIDTH)).astype("f4")
    inner = build.features_node(base, deep)
    assert inner == "final_training_ops/hidden_2/Relu"
    with tf.compat.v1.Session(graph=read.import_graph(graph_def)) as session:
        answers, features = session.run(
            ["final_result:0", f"{inner}:0"], {"input/BottleneckInputPlaceholder:0": vectors}
        )
        content = read_file(examples[0].path)
        single = session.run("final_result:0", {"DecodeJpeg/contents:0": content})
    by_hand = np.maximum(np.maximum(vectors @ layers[0][0] + layers[0][1], 0) @ layers[1][0]
                         + layers[1][1], 0)  # fmt: skip
    np.testing.assert_allclose(features, by_hand, atol=1e-4)
    np.testing.assert_allclose(
        answers, classification.softmax(by_hand @ layers[2][0] + layers[2][1]), atol=1e-4
    )
    bottleneck = BytesRunner(base.graph_def, base.bottleneck).run(content)
    np.testing.assert_allclose(single, deep.probabilities(bottleneck), atol=1e-4)


def test_the_nodes_of_a_linear_head_are_the_classics_and_no_others(base, head, written):
    graph_def = read_graph(written)
    nodes = [node for node in graph_def.node if node.name.startswith("final_training_ops")]
    assert [(node.name.removeprefix("final_training_ops/"), node.op) for node in nodes] == [
        ("weights/final_weights", "Const"),
        ("weights/final_weights/read", "Identity"),
        ("biases/final_biases", "Const"),
        ("biases/final_biases/read", "Identity"),
        ("Wx_plus_b/MatMul", "MatMul"),
        ("Wx_plus_b/add", "Add"),
    ]
    assert nodes[4].input[0] == build.features_node(base, head)


@pytest.mark.parametrize("name", ["Mul", "final_training_ops/Wx_plus_b/add", "retraining/metadata"])
def test_a_taken_tensor_name_is_refused(base, head, name):
    with pytest.raises(ExportError, match=f"`OutputSettings.tensor_name` {name} is already"):
        build.build_graph(base, head, name)


def test_the_held_out_test_reads_the_file(written, extractor, examples, expected, vectors):
    result = verify.evaluate_exported(written, examples, vectors, extractor)
    np.testing.assert_allclose(result.probabilities, expected, atol=1e-4)
    assert result.targets.tolist() == [0] * 4 + [1] * 4
    assert result.total == 8
    assert result.correct == (expected.argmax(axis=1) == result.targets).sum()
    verify.check_agreement(result, expected)


def test_without_photos_the_file_is_still_looked_at(written, extractor, tmp_path, vectors):
    result = verify.evaluate_exported(written, [], vectors[:0], extractor)
    assert result.probabilities.shape == (0, 2)
    (tmp_path / "cut.pb").write_bytes(b"no graph")
    with pytest.raises(GraphError):
        verify.evaluate_exported(tmp_path / "cut.pb", [], vectors[:0], extractor)


def test_the_head_that_counts_is_that_of_the_file(written, extractor, examples, tmp_path, vectors):
    graph_def = read_graph(written)
    zeros = np.zeros((tiny.WIDTH, 2), "f4")
    set_constant(nodes_by_name(graph_def)["final_training_ops/weights/final_weights"], zeros)
    write_files({tmp_path / "zeros.pb": write.graph_bytes(graph_def)})
    result = verify.evaluate_exported(tmp_path / "zeros.pb", examples, vectors, extractor)
    np.testing.assert_allclose(result.probabilities[0], result.probabilities[-1], atol=1e-4)


@pytest.mark.parametrize("name", ["conv/conv2d_params", "mixed/tower/batchnorm/beta"])
def test_a_file_with_another_base_network_fails(
    written, extractor, examples, tmp_path, name, vectors
):
    graph_def = read_graph(written)
    node = nodes_by_name(graph_def)[name]
    set_constant(node, tf.make_ndarray(node.attr["value"].tensor) * np.float32(1.0001))
    write_files({tmp_path / "wrong.pb": write.graph_bytes(graph_def)})
    with pytest.raises(ExportError, match="does not hold the base network"):
        verify.evaluate_exported(tmp_path / "wrong.pb", examples, vectors, extractor)


def test_a_file_that_describes_other_pixels_fails(
    base, head, extractor, examples, tmp_path, vectors
):
    content = write.graph_bytes(build.build_graph(base, head, "final_result"))
    about = {**build.describe(base, LABELS, "final_result", {}), "mean": 127.0}
    write_files({tmp_path / "wrong.pb": content + build.metadata_bytes(about)})
    with pytest.raises(ExportError, match="does not hold the base network"):
        verify.evaluate_exported(tmp_path / "wrong.pb", examples, vectors, extractor)


def test_disagreement_fails(written, extractor, examples, expected, vectors):
    result = verify.evaluate_exported(written, examples, vectors, extractor)
    with pytest.raises(ExportError, match="nothing was replaced"):
        verify.check_agreement(result, expected + np.float32([0.03, -0.03]))
    with pytest.raises(ExportError, match="nothing was replaced"):
        verify.check_agreement(result, expected[:, ::-1])
    with pytest.raises(ExportError, match="nothing was replaced"):
        verify.check_agreement(result, expected * np.float32("nan"))


def test_a_decoder_that_gives_other_pixels_fails(written, extractor, examples, tmp_path, vectors):
    graph_def = read_graph(written)
    set_constant(nodes_by_name(graph_def)["Mul/y"], np.float32(-1 / 128))
    write_files({tmp_path / "wrong.pb": write.graph_bytes(graph_def)})
    with pytest.raises(ExportError, match="from a file's bytes"):
        verify.evaluate_exported(tmp_path / "wrong.pb", examples, vectors, extractor)


def spots_of(written, examples):
    graph_def = read_graph(written)
    return verify.run_whole(graph_def, read_metadata(graph_def), examples, MAX_PIXELS)


def test_the_whole_file_is_run_on_files_and_on_pixels(written, examples, tmp_path, expected):
    with Image.open(examples[0].path) as image:
        image.save(tmp_path / "a.png")
    png = Example(str(tmp_path / "a.png"), LABELS[0], "testing", "")
    spots = spots_of(written, [png, *examples])
    assert [spot.path for spot in spots] == [png.path, *(e.path for e in examples)]
    assert [spot.fed for spot in spots] == ["pixels", *["a file's bytes"] * 4, *["pixels"] * 4]
    answers = [spot.probabilities for spot in spots[1:]]
    np.testing.assert_allclose(answers, expected, atol=1e-4)
    np.testing.assert_allclose(spots[0].probabilities, expected[0], atol=0.02)


def test_photos_that_have_vanished_or_changed_are_no_spots(written, examples, tmp_path):
    changed = replace(examples[0], key="0" * 40)
    gone = Example(str(tmp_path / "nowhere.jpg"), LABELS[0], "testing", "")
    assert spots_of(written, [gone, changed]) == []
    same = replace(examples[0], key=hash_file(examples[0].path))
    assert [spot.path for spot in spots_of(written, [same])] == [same.path]


def test_vectors_of_other_photos_fail(written, extractor, examples, vectors):
    with pytest.raises(ExportError, match="than it does here"):
        verify.evaluate_exported(written, examples, vectors[::-1], extractor)


def test_spots_are_spread_over_the_classes():
    def of(*labels):
        return [Example(f"{n}{label}", label, "testing", "") for n, label in enumerate(labels)]

    spread = verify.spread_over_classes(of(*"aaabbc"), 5)
    assert [example.path for example in spread] == ["0a", "3b", "5c", "1a", "4b"]
    assert len(verify.spread_over_classes(of(*"aaabbc"), 99)) == 6
    of_many = verify.spread_over_classes(of(*"abcdefghi"), 3)
    assert [example.label for example in of_many] == ["a", "e", "i"]
    assert verify.spread_over_classes([], 5) == []


def test_logits_are_those_of_the_probabilities(written, extractor, examples, vectors, head):
    result = verify.evaluate_exported(written, examples, vectors, extractor)
    np.testing.assert_allclose(result.logits, head.logits(vectors), atol=1e-4)
    np.testing.assert_allclose(
        result.probabilities, classification.softmax(result.logits), atol=1e-6
    )


def test_labels_are_a_line_each_in_utf8():
    assert build.labels_bytes(LABELS) == "Rote Blüte\nblue\n".encode()


@pytest.mark.parametrize(
    ("count", "most", "rows"), [(3, 5, [0, 1, 2]), (5, 3, [0, 2, 4]), (0, 5, [])]
)
def test_tested_photos_are_spread_evenly(count, most, rows):
    assert classification.choose_rows(count, most).tolist() == rows
