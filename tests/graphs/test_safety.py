"""safety.py: which files and graphs are refused, what is said; damaged ones never crash."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import op_def_registry

import label_image
from retraining.graphs.description import METADATA
from retraining.graphs.front_end import read_preprocessing
from retraining.graphs.nodes import GraphError, nodes_by_name, set_constant
from retraining.graphs.preprocessing import PartialPreprocessing
from retraining.graphs.read import import_graph, read_graph, to_tensorflow
from retraining.graphs.run import BytesRunner, Runner, Running
from retraining.graphs.safety import (
    ALLOWED_OPS,
    INPUTS,
    MAX_ELEMENTS,
    MAX_NODES,
    describe_unsafe,
    load_graph,
)
from retraining.labelling.classifier import load_classifier
from retraining.labelling.labels import LabelsError
from retraining.labelling.resolve import Overrides
from retraining.networks.network import load_network
from retraining.networks.registry import NETWORKS
from tests import ROOT, fuzz, tiny


def refusal(path, content=None, **settings):
    """What is said of a file of these bytes, or of a GraphDef; it must be one line."""
    if content is not None:
        serialized = content if isinstance(content, bytes) else content.SerializeToString()
        Path(path).write_bytes(serialized)
    with pytest.raises(GraphError) as caught:
        load_graph(path, **settings)
    line = str(caught.value)
    assert "\n" not in line
    assert str(path) in line
    assert len(line) < 600
    return line


@pytest.fixture
def path(tmp_path):
    return tmp_path / "graph.pb"


# -- files -----------------------------------------------------------------------------------

GRAPH = tiny.tiny_mobilenet(32)
ARCHIVE_HEAD = b"frozen_graph.pb".ljust(257, b"\0") + b"ustar  \0" + b"\0" * 300


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty; fetch it again"),
        (GRAPH.SerializeToString()[:-700], "cut short; fetch it again"),
        (b"\x0a\xff\xff\xff\xff\x7f", "cut short; fetch it again"),
        (bytes(range(256)) * 8, "not a frozen graph"),
        (
            b"\n <!DOCTYPE html>\n<html><body>404</body></html>",
            "a web page (HTML); this is not the graph",
        ),
        (b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "a web page (HTML)"),
        (b"daisy\ndandelion\nroses\n", "a text file; this is not the graph"),
        ("G\u00e4nsebl\u00fcmchen\n".encode(), "a text file"),
        (b'# made by hand\nnode {\n  name: "input"\n}\n', "in text form (.pbtxt)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "git lfs pull"),
        (b"PK\x03\x04" + bytes(40), "a zip archive (as .keras and .pt files are); unpack it"),
        (b"\x1f\x8b\x08\x00" + bytes(40), "a gzip archive; unpack it"),
        (ARCHIVE_HEAD, "a tar archive; unpack it"),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), "an HDF5 file of Keras (.h5); freeze it first"),
        (b"\x20\0\0\0TFL3" + bytes(40), "a TensorFlow Lite model"),
        (b"\xff\xd8\xff\xe0" + bytes(40), "a JPEG image; give the file of the graph"),
        (bytes(40) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb", "a TensorFlow checkpoint"),
        (tf.compat.v1.GraphDef(versions={"producer": 8}), "it has no nodes"),
        (b"\x08\x07\x12\x07pytorch", "not a frozen graph"),
    ],
)
def test_what_is_no_graph_is_told_apart(path, content, reason):
    assert reason in refusal(path, content)


def test_an_onnx_model_is_told_by_its_name(tmp_path):
    line = refusal(tmp_path / "model.onnx", b"\x08\x07\x12\x07pytorch\x1a\x032.1")
    assert "an ONNX model" in line


def meta_graph():
    meta = tf.compat.v1.MetaGraphDef(graph_def=to_tensorflow(GRAPH))
    meta.meta_info_def.tensorflow_version = "1.4.0"
    return meta


def test_a_checkpoints_meta_file(tmp_path):
    assert "the .meta file of a checkpoint" in refusal(tmp_path / "model.ckpt.meta", meta_graph())


def test_a_saved_model_and_its_folder(tmp_path):
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    saved = SavedModel(saved_model_schema_version=1, meta_graphs=[meta_graph()])
    line = refusal(tmp_path / "saved_model.pb", saved)
    assert "the saved_model.pb of a SavedModel" in line
    line = refusal(tmp_path)
    assert "is a SavedModel folder" in line
    assert "convert_variables_to_constants_v2" in line


def test_a_folder(tmp_path):
    assert "is a folder, not a frozen graph; name the model's file in it" in refusal(tmp_path)


def test_a_huge_file_is_refused_by_its_size(path):
    with open(path, "wb") as file:
        try:
            file.truncate(3 << 30)
        except OSError:
            pytest.skip("no sparse files here")
    if os.stat(path).st_blocks * 512 > 1 << 20:
        pytest.skip("no sparse files here")
    assert "it has 3.0 GB, and a frozen graph has less than 2" in refusal(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(path):
    os.mkfifo(path)
    assert "is a pipe or device" in refusal(path)


def test_what_cannot_be_read(path, monkeypatch):
    assert "cannot read the graph" in refusal(path)
    assert "No such file" in refusal(path)
    path.write_bytes(b"x")

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(GraphError, match=r"cannot read the graph .*: Permission denied"):
        load_graph(path)


def test_a_nul_in_the_name():
    with pytest.raises(GraphError, match="cannot read the graph 'a"):
        load_graph("a\0b.pb")


# -- ops -------------------------------------------------------------------------------------


def test_the_allowed_ops_can_only_compute():
    """By TensorFlow's own definitions: no state, no resource, no variable, no function."""
    random = {"Multinomial", "RandomStandardNormal", "RandomUniform", "RandomUniformInt"}
    stateful = {*random, "TruncatedNormal", "Assert", "CheckNumerics"}
    handles = (tf.resource.as_datatype_enum, tf.variant.as_datatype_enum)
    for name in ALLOWED_OPS:
        definition = op_def_registry.get(name)
        assert definition is not None, name
        assert definition.is_stateful == (name in stateful), name
        arguments = [*definition.input_arg, *definition.output_arg]
        assert not any(a.is_ref or a.type in handles for a in arguments), name
        assert not any("func" in attribute.type for attribute in definition.attr), name


def test_inputs_are_counted_as_tensorflow_counts_them():
    """An op takes `more` inputs, and `times` as many as an attribute, `key`, tells."""
    for name, (times, key, more) in INPUTS.items():
        arguments = op_def_registry.get(name).input_arg
        keys = [a.number_attr or a.type_list_attr for a in arguments]
        assert [k for k in keys if k] == [key] * times, name
        assert keys.count("") == more, name
        lists = {a.type_list_attr for a in arguments} - {""}
        assert lists == ({"T"} if key == "T" else set()), name


def test_inputs_of_some_ops():
    some = ("Identity", "Add", "NoOp", "ConcatV2", "QuantizedConcat", "Assert", "AddN")
    expected = [(0, "", 1), (0, "", 2), (0, "", 0), (1, "N", 1), (3, "N", 1), (1, "T", 1)]
    assert [INPUTS[op] for op in some] == [*expected, (1, "N", 0)]


def with_writer(needed):
    """A tiny MobileNet with a WriteFile node, which its output needs or not, and a ReadFile."""
    graph_def = tiny.tiny_mobilenet(32)
    for name, value in (("name", "written.txt"), ("text", "hello")):
        set_constant(graph_def.node.add(name=name), np.array(value.encode(), object))
    graph_def.node.add(name="writer", op="WriteFile", input=["name", "text"])
    graph_def.node.add(name="reader", op="ReadFile", input=["name"])
    if needed:
        nodes_by_name(graph_def)["MobilenetV1/Predictions/Softmax"].input.append("^writer")
    return graph_def


@pytest.mark.parametrize("needed", [True, False])
def test_ops_that_touch_files_are_refused_by_name(path, needed):
    line = refusal(path, with_writer(needed))
    assert "it holds 'WriteFile' (node 'writer'), 'ReadFile' (node 'reader')" in line
    assert "`Choice.allow_unsafe_ops`" in line


@pytest.mark.parametrize(
    "op",
    [
        *("ReadFile", "MatchingFiles", "SaveV2", "RestoreV2", "TFRecordReaderV2", "ImmutableConst"),
        *("PyFunc", "EagerPyFunc", "PyFuncStateless", "PrintV2"),
        *("FIFOQueueV2", "TensorArrayV3", "IteratorV2", "TFRecordDataset", "HashTableV2"),
        *("PartitionedCall", "StatefulPartitionedCall", "While", "If", "XlaLaunch", "Send"),
        *("NextIteration", "DebugIdentity", "CollectiveReduce", "NobodysOp", "", "_FusedConv2D"),
    ],
)
def test_these_ops_are_refused(path, op):
    graph_def = tiny.tiny_mobilenet(32)
    graph_def.node.add(name="odd", op=op)
    assert f"it holds '{op}' (node 'odd');" in refusal(path, graph_def)


@pytest.mark.parametrize("op", ["Variable", "VariableV2", "VarHandleOp"])
def test_variables_are_refused_as_not_frozen(path, op):
    graph_def = tiny.tiny_mobilenet(32)
    graph_def.node.add(name="odd", op=op)
    text = refusal(path, graph_def)
    assert "is not frozen: it lacks the values of its variables, such as 'odd'; freeze" in text
    assert "allow_unsafe_ops" not in text


def test_many_refused_ops_are_counted(path):
    graph_def = tiny.tiny_mobilenet(32)
    for number in range(9):
        graph_def.node.add(name=f"node{number}", op=f"Op{number}")
    assert "'Op4' (node 'node4'), 4 more;" in refusal(path, graph_def)


def test_a_function_library_is_refused(path):
    graph_def = tiny.tiny_mobilenet(32)
    graph_def.library.function.add().signature.name = "sneaky"
    assert "it holds the function 'sneaky'" in refusal(path, graph_def)


def test_a_function_in_an_attribute_is_refused(path):
    graph_def = tiny.tiny_mobilenet(32)
    nodes_by_name(graph_def)["MobilenetV1/relu"].attr["f"].func.name = "sneaky"
    assert "'Relu6' (node 'MobilenetV1/relu')" in refusal(path, graph_def)


def test_a_name_cannot_break_the_line(path):
    graph_def = tiny.tiny_mobilenet(32)
    graph_def.node.add(name="a\nb\x1b[31m" + "x" * 5000, op="Odd\r\n")
    line = refusal(path, graph_def)
    assert r"'a\nb\x1b[31mxxx" in line


def test_with_the_flag_the_graph_runs(path, tmp_path, monkeypatch):
    """...and does what it was refused for, which shows that the refusal was needed."""
    graph_def = with_writer(needed=True)
    target = tmp_path / "out" / "written.txt"
    set_constant(nodes_by_name(graph_def)["name"], np.array(str(target).encode(), object))
    path.write_bytes(graph_def.SerializeToString())
    loaded = read_graph(path, allow_unsafe_ops=True)
    with tf.compat.v1.Session(graph=import_graph(loaded)) as session:
        session.run("MobilenetV1/Predictions/Softmax:0", {"input:0": np.zeros((1, 32, 32, 3))})
    assert target.read_text() == "hello"


def test_functions_run_with_the_flag(path):
    @tf.function
    def double(x):
        return tf.function(lambda y: y * 2, experimental_implements="double")(x)

    concrete = double.get_concrete_function(tf.TensorSpec([1, 4, 4, 3], tf.float32, "x"))
    path.write_bytes(concrete.graph.as_graph_def().SerializeToString())
    assert "PartitionedCall" in refusal(path)
    graph_def = read_graph(path, allow_unsafe_ops=True)
    images = np.ones((1, 4, 4, 3), np.float32)
    np.testing.assert_array_equal(Runner(graph_def, "x", "Identity").run(images), images * 2)


def test_what_tensorflow_refuses_is_an_error_too(path):
    graph_def = tiny.tiny_mobilenet(32)
    nodes_by_name(graph_def)["MobilenetV1/relu"].op = "NobodysOp"
    path.write_bytes(graph_def.SerializeToString())
    with pytest.raises(GraphError, match="Op type not registered 'NobodysOp'") as caught:
        Runner(read_graph(path, allow_unsafe_ops=True), "input", "MobilenetV1/Predictions/Softmax")
    assert "\n" not in str(caught.value)


# -- real graphs -----------------------------------------------------------------------------


def test_what_is_exported_passes(finished):
    assert describe_unsafe(load_graph(finished.graph)[0]) == ""


def test_published_graphs_pass(shared):
    graphs = sorted(shared.glob("models/**/*.pb"))
    assert graphs
    for each in graphs:
        load_graph(each)


# -- nodes -----------------------------------------------------------------------------------


def changed(change):
    graph_def = tiny.tiny_mobilenet(32)
    change(graph_def, nodes_by_name(graph_def))
    return graph_def


def duplicate(graph_def, nodes):
    graph_def.node.add(name="input", op="NoOp")


def cycle(graph_def, nodes):
    nodes["MobilenetV1/conv"].input[0] = "MobilenetV1/Predictions/Reshape"


def self_cycle(graph_def, nodes):
    graph_def.node.add(name="ring", op="Identity", input=["ring"])


def control_cycle(graph_def, nodes):
    nodes["input"].input.append("^MobilenetV1/relu")


def missing(graph_def, nodes):
    nodes["MobilenetV1/relu"].input[0] = "gone:0"


def odd_name(graph_def, nodes):
    graph_def.node.add(name="a b", op="NoOp")


def odd_input(graph_def, nodes):
    nodes["MobilenetV1/relu"].input[0] = "MobilenetV1/conv:x"


def no_input(graph_def, nodes):
    del nodes["MobilenetV1/relu"].input[:]


def control_first(graph_def, nodes):
    nodes["MobilenetV1/relu"].input.insert(0, "^input")


def many_nodes(graph_def, nodes):
    for number in range(MAX_NODES):
        graph_def.node.add(name=f"n{number}", op="NoOp")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (duplicate, "two of its nodes are called 'input'"),
        (cycle, "depends on itself"),
        (self_cycle, "the node 'ring' depends on itself"),
        (control_cycle, "depends on itself"),
        (missing, "the node 'gone:0', which others need, is missing"),
        (odd_name, "'a b' is not a node name"),
        (odd_input, "'MobilenetV1/conv:x' is not an input name ('MobilenetV1/relu')"),
        (no_input, "'MobilenetV1/relu' has 0 inputs, and Relu6 takes 1"),
        (control_first, "the inputs of 'MobilenetV1/relu' are out of order"),
        (many_nodes, f"more than {MAX_NODES}"),
    ],
)
def test_nodes_that_make_no_graph_are_refused(path, change, reason):
    assert reason in refusal(path, changed(change))


def field(tag, content):
    """A field of a protobuf message: tag, length, content."""
    length, size = len(content), b""
    while length > 127:
        size += bytes([length & 127 | 128])
        length >>= 7
    return tag + size + bytes([length]) + content


def test_nested_without_end_is_refused(path):
    value = b""
    for _ in range(2000):  # AttrValue.func (10) has attributes (2), each with a value (2)
        value = field(b"\x52", field(b"\x12", field(b"\x12", value)))
    node = field(b"\x0a", b"deep") + field(b"\x12", b"NoOp") + field(b"\x2a", field(b"\x12", value))
    assert "is not a frozen graph (.pb), or cut short" in refusal(path, field(b"\x0a", node))


def long_chain(op, length):
    b = tiny.GraphBuilder(producer=0)
    b.add("input", "Placeholder", dtype=b.tf.float32, shape=(1, 4, 4, 3))
    last = b.const("x", np.ones(3, np.float32))
    for number in range(length):
        last = b.float_op(f"n{number}", op, *[last] * (2 if op == "Mul" else 1))
    b.float_op("sum", "Mul", "input", last)
    b.float_op("output", "Softmax", "sum")
    return b.graph_def


@pytest.mark.parametrize("op", ["Mul", "Identity"])
def test_a_long_chain_of_constants_ends(path, op):
    """Each node doubles the ways back to the first; and none recurses as deep as the chain."""
    path.write_bytes(long_chain(op, 2000).SerializeToString())
    runner = Runner(read_graph(path), "input", "output", Running(optimize=False))
    answer = runner.run(np.zeros((1, 4, 4, 3), np.float32))
    np.testing.assert_allclose(answer, np.full((1, 4, 4, 3), 1 / 3), rtol=1e-6)


# -- tensors ---------------------------------------------------------------------------------

FLOAT, INT, STRING = tf.float32.as_datatype_enum, tf.int32.as_datatype_enum, 7


def with_constant(dims, dtype=FLOAT, declared=None, **values):
    graph_def = tiny.tiny_mobilenet(32)
    node = graph_def.node.add(name="odd", op="Const")
    node.attr["dtype"].type = declared or dtype
    tensor = node.attr["value"].tensor
    tensor.dtype = dtype
    for size in dims:
        tensor.tensor_shape.dim.add(size=size)
    for field, value in values.items():
        if field == "tensor_content":
            tensor.tensor_content = value
        else:
            getattr(tensor, field).extend(value)
    return graph_def


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"dims": [1 << 40], "float_val": [0]}, f"elements, more than {MAX_ELEMENTS}"),
        ({"dims": [1 << 20] * 4, "float_val": [0]}, f"elements, more than {MAX_ELEMENTS}"),
        ({"dims": [1 << 27], "float_val": [0]}, "far larger than the file, as 'odd'"),
        ({"dims": [1 << 62, 4, 0]}, None),
        ({"dims": [-1], "float_val": [0]}, "without a definite shape"),
        ({"dims": [-5], "float_val": [0]}, "without a definite shape"),
        ({"dims": [1] * 255, "float_val": [0]}, "an impossible shape"),
        ({"dims": [2], "float_val": [1, 2, 3]}, "3 values for 2 elements"),
        ({"dims": [2], "tensor_content": bytes(7)}, "7 bytes for 2 elements of float32"),
        ({"dims": [2], "tensor_content": bytes(8)}, None),
        ({"dims": [1000, 1000], "float_val": [0.5]}, None),
        (
            {"dims": [2], "dtype": STRING, "tensor_content": b"\x01\x01ab"},
            "a form that is not read",
        ),
        (
            {"dims": [1 << 16], "dtype": STRING, "string_val": [b"x" * 2000]},
            "far larger than the file",
        ),
        ({"dims": [2], "dtype": 20}, "a type that no classifier has"),
        ({"dims": [2], "dtype": 999}, "a type that no classifier has"),
        (
            {"dims": [], "dtype": INT, "declared": FLOAT, "int_val": [1]},
            "another type than its own",
        ),
        ({"dims": [], "dtype": 4, "int_val": [256]}, "values beyond uint8"),
    ],
)
def test_constants_are_within_what_the_file_holds(path, settings, reason):
    graph_def = with_constant(**settings)
    if reason is None:
        path.write_bytes(graph_def.SerializeToString())
        load_graph(path)
    else:
        assert reason in refusal(path, graph_def)


def test_a_placeholder_of_an_impossible_shape(path):
    for size, reason in ((1 << 40, "elements, more than"), (-7, "an impossible shape")):
        graph_def = tiny.tiny_mobilenet(32)
        nodes_by_name(graph_def)["input"].attr["shape"].shape.dim[1].size = size
        assert reason in refusal(path, graph_def)


def asking(op, *inputs, **attributes):
    """A graph in which an op's constant inputs say how large its output is."""
    b = tiny.GraphBuilder(producer=30)
    b.add("input", "Placeholder", dtype=b.tf.float32, shape=(1, 4, 4, 3))
    names = [b.const(f"in{number}", value) for number, value in enumerate(inputs)]
    b.add("asks", op, *names, **attributes)
    return b.graph_def


def ints(*values):
    return np.array(values, np.int32)


LARGE = ints(1 << 15, 1 << 15)


@pytest.mark.parametrize(
    "graph_def",
    [
        asking("Fill", LARGE, np.float32(1), T=tf.float32, index_type=tf.int32),
        asking("Tile", np.ones((1, 1), "f4"), LARGE, T=tf.float32),
        asking("BroadcastTo", np.float32(1), LARGE, T=tf.float32, Tidx=tf.int32),
        asking("Range", np.int32(0), np.int32(2**31 - 1), np.int32(1), Tidx=tf.int32),
        asking("Range", np.float32(0), np.float32(1), np.float32(0), Tidx=tf.float32),
        asking("RandomUniform", LARGE, T=tf.int32, dtype=tf.float32),
        asking("OneHot", ints(1), np.int32(1 << 30), np.float32(1), np.float32(0), T=tf.float32),
        asking("Pad", np.ones(1, "f4"), np.array([[1 << 30, 0]], "i4"), T=tf.float32),
        asking("ResizeBilinear", np.ones((1, 1, 1, 1), "f4"), LARGE, T=tf.float32),
        asking("LinSpace", np.float32(0), np.float32(1), np.int32(1 << 30), T=tf.float32),
    ],
    ids=lambda graph_def: graph_def.node[-1].op,
)
def test_ops_that_ask_for_huge_tensors_are_refused(path, graph_def):
    assert "the node 'asks' asks for a tensor of" in refusal(path, graph_def)


def test_a_size_that_only_tensorflow_infers_is_refused(path):
    graph_def = asking("Tile", np.ones((1, 1), "f4"), ints(1 << 14, 1), T=tf.float32)
    for last, name in (("asks", "more"), ("more", "most")):
        node = graph_def.node.add(name=name, op="Tile", input=[last, "in1"])
        node.attr["T"].type = FLOAT
    path.write_bytes(graph_def.SerializeToString())
    with pytest.raises(GraphError, match="would make a tensor 'most:0'"):
        import_graph(read_graph(path))


# -- where graphs are used -------------------------------------------------------------------


def test_a_base_network_is_checked(path):
    graph_def = with_writer(needed=False)
    path.write_bytes(graph_def.SerializeToString())
    with pytest.raises(GraphError, match="WriteFile"):
        load_network(path, NETWORKS["mobilenet_0.25_128"])


@pytest.fixture
def labels(tmp_path):
    def write(count):
        path = tmp_path / "labels.txt"
        path.write_text("".join(f"thing {number}\n" for number in range(count)))
        return path

    return write


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "photo.jpg"
    tiny.photo(tiny.COLOURS["red"], np.random.default_rng(0)).save(path)
    return path


def test_label_image_names_what_it_refuses_and_what_it_runs(path, labels, picture, capsys):
    path.write_bytes(with_writer(needed=False).SerializeToString())
    flags = ["--graph", str(path), "--labels", str(labels(8)), str(picture)]
    flags += ["--output_layer", "MobilenetV1/Predictions/Softmax"]
    assert label_image.main(flags) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "'WriteFile' (node 'writer')" in captured.err
    assert label_image.main([*flags, "--allow_unsafe_ops"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("thing") == 5
    assert "although it holds 'WriteFile' (node 'writer'), 'ReadFile'" in captured.err


def test_retrain_names_what_it_refuses_and_what_it_runs(
    path, tmp_path, run_retrain, photos, capsys
):
    graph_def = tiny.tiny_inception()
    graph_def.node.add(name="reader", op="ReadFile", input=["DecodeJpeg/contents"])
    path.write_bytes(graph_def.SerializeToString())
    flags = ["--model_file", path, "--precision", "float32"]
    assert run_retrain(tmp_path, photos, *flags) == 1
    captured = capsys.readouterr()
    assert "was not run, since it could do more than compute: it holds 'ReadFile'" in captured.err
    assert captured.out == ""
    assert run_retrain(tmp_path, photos, *flags, "--allow_unsafe_ops", steps=20) == 0
    assert f"warning: running {path}, although it holds 'ReadFile' (node 'reader')" in (
        capsys.readouterr().err
    )
    load_graph(tmp_path / "models" / "retrained_graph.pb")  # which does not need that node


@pytest.mark.parametrize("runner", [Runner, BytesRunner])
@pytest.mark.parametrize("count", [9, 11])
def test_labels_are_counted_before_an_image_is_run(
    path, labels, picture, monkeypatch, runner, count
):
    path.write_bytes(tiny.tiny_inception().SerializeToString())
    layer = "Mul" if runner is Runner else "DecodeJpeg/contents"
    monkeypatch.setattr(runner, "run", lambda *_: pytest.fail("an image was run"))
    classifier = load_classifier(path, labels(count), Overrides(layer, "softmax"))
    with pytest.raises(LabelsError, match=f"gives 10 probabilities for {count} labels"):
        list(classifier.predict([picture]))


def test_labels_are_counted_after_it_where_the_graph_is_silent(path, labels, picture):
    graph_def = tiny.tiny_mobilenet(32)
    nodes_by_name(graph_def)["MobilenetV1/Predictions/Reshape/shape"].op = "Placeholder"
    node = nodes_by_name(graph_def)["MobilenetV1/Predictions/Reshape/shape"]
    value = node.attr["value"].tensor.SerializeToString()
    node.attr.clear()
    node.op, node.input[:] = "PlaceholderWithDefault", ["shape"]
    node.attr["dtype"].type = INT
    node.attr["shape"].shape.dim.add(size=-1)
    constant = graph_def.node.add(name="shape", op="Const")
    constant.attr["dtype"].type = INT
    constant.attr["value"].tensor.MergeFromString(value)
    path.write_bytes(graph_def.SerializeToString())
    flags = Overrides("input", "MobilenetV1/Predictions/Softmax")
    (answer,) = load_classifier(path, labels(8), flags).predict([picture])
    assert answer[1].shape == (8,)
    with pytest.raises(LabelsError, match="gives 8 probabilities for 7 labels"):
        list(load_classifier(path, labels(7), flags).predict([picture]))


@pytest.mark.parametrize(
    "wrong",
    [
        *({"labels": [1, 2]}, {"labels": None}, {"size": [32]}, {"size": [1 << 20, 32]}),
        *({"size": [0, 32]}, {"std": 0}, {"mean": float("nan")}, {"std": "wide"}),
    ],
    ids=str,
)
def test_a_description_that_makes_no_sense_is_refused(path, wrong):
    graph_def = tiny.tiny_inception()
    text = json.dumps(fuzz.DESCRIPTION | wrong).encode()
    set_constant(graph_def.node.add(name=METADATA), np.array(text, object))
    path.write_bytes(graph_def.SerializeToString())
    with pytest.raises(GraphError, match="own description"):
        load_classifier(path)


def test_an_input_of_absurd_size_is_refused():
    with pytest.raises(GraphError, match=r"takes images of \(5000, 5000\) pixels"):
        read_preprocessing(nodes_by_name(tiny.tiny_mobilenet(5000)), "input")


def test_a_scale_per_channel_is_read():
    graph_def = tiny.tiny_inception()
    set_constant(nodes_by_name(graph_def)["Mul/y"], np.array([1, 2, 4], np.float32))
    expected = PartialPreprocessing((32, 32), 128.0, (1.0, 0.5, 0.25))
    assert read_preprocessing(nodes_by_name(graph_def), "Mul") == expected


@pytest.mark.parametrize("name", ["Mul/y", "Sub/y"])
@pytest.mark.parametrize("value", [[1, 2], [np.inf], [[[1, 2, 3]] * 2] * 2])
def test_a_scale_that_is_none_is_not_read(name, value):
    graph_def = tiny.tiny_inception()
    set_constant(nodes_by_name(graph_def)[name], np.array(value, np.float32))
    found = read_preprocessing(nodes_by_name(graph_def), "Mul")
    assert (found.mean, found.std) == (None, None)


def test_an_output_without_numbers_is_refused():
    graph_def = tiny.tiny_mobilenet(32)
    graph_def.node.add(name="wait", op="NoOp", input=["^MobilenetV1/relu"])
    with pytest.raises(GraphError, match="the node 'wait' gives nothing, not numbers"):
        Runner(graph_def, "input", "wait")


def test_an_output_without_a_row_per_image_is_refused():
    graph_def = tiny.tiny_mobilenet(32)
    graph_def.node.add(name="flat", op="Reshape", input=["MobilenetV1/relu", "all"])
    nodes_by_name(graph_def)["flat"].attr["T"].type = FLOAT
    set_constant(graph_def.node.add(name="all"), np.array([-1], np.int32))
    with pytest.raises(GraphError, match=r"of shape \(2048,\) for 1 image, not a row per image"):
        Runner(graph_def, "input", "flat").run(np.zeros((2, 32, 32, 3), np.float32))


# -- damage ----------------------------------------------------------------------------------


def test_a_damaged_graph_ends_in_an_error_or_an_answer(tmp_path):
    answers, errors = fuzz.attempts(seed=0, numbers=range(150), folder=tmp_path)
    assert answers > 15
    assert errors > 60


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_thousands_of_damaged_graphs(tmp_path, seed):
    """In a process of its own, so that one that ends it is seen."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", str(seed), "1500", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    last = (tmp_path / "last").read_text()
    assert done.returncode == 0, f"seed and number {last}: {done.stderr[-2000:]}"
