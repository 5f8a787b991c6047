"""messages.py, tensors.py: our messages are TensorFlow's, and serve where TensorFlow is absent."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel as TheirSavedModel
from tensorflow.python.framework import dtypes

from retraining.graphs.messages import TYPE_NAMES, GraphDef, SavedModel, TensorProto
from retraining.graphs.nodes import GraphError, constant, nodes_by_name, set_constant, type_of
from retraining.graphs.read import import_graph, to_tensorflow
from retraining.graphs.tensors import FIELDS, array_type, fill, to_array
from retraining.graphs.write import graph_bytes
from tests import ROOT, tiny

TheirGraphDef = tf.compat.v1.GraphDef

# -- messages --------------------------------------------------------------------------------


def facts(field):
    """What the bytes of a field depend on; those of an enum are those of an int32."""
    kind = FieldDescriptor.TYPE_INT32 if field.enum_type else field.type
    oneof = field.containing_oneof and field.containing_oneof.name
    return field.name, kind, field.is_repeated, field.is_packed, oneof


def compare(ours, theirs, seen):
    """Compares all fields that we have, of a message and of those in it."""
    if ours.name in seen:
        return
    seen.add(ours.name)
    assert ours.GetOptions().map_entry == theirs.GetOptions().map_entry
    for field in ours.fields:
        other = theirs.fields_by_number[field.number]
        assert facts(field) == facts(other), ours.name
        if field.message_type:
            compare(field.message_type, other.message_type, seen)


def test_fields_are_those_of_tensorflow():
    seen = set()
    compare(SavedModel.DESCRIPTOR, TheirSavedModel.DESCRIPTOR, seen)
    assert {"GraphDef", "NodeDef", "AttrEntry", "AttrValue", "TensorProto", "OpDef"} < seen


SAMPLES = {
    FieldDescriptor.CPPTYPE_BOOL: True,
    FieldDescriptor.CPPTYPE_DOUBLE: 0.25,
    FieldDescriptor.CPPTYPE_FLOAT: 0.5,
    FieldDescriptor.CPPTYPE_STRING: "/wA=",  # which stands for bytes, too
}


def whole(kind, depth, one="i"):
    """{name: sample} of all fields down to a depth, as JSON; of a oneof, only the field `one`."""
    fields = [f for f in kind.fields if f.name == one or not f.containing_oneof]
    return {f.name: sample(f, depth) for f in fields if depth or not f.message_type}


def sample(field, depth):
    kind = field.message_type
    if kind and kind.GetOptions().map_entry:
        value = kind.fields_by_name["value"]
        if value.message_type and value.message_type.name == "AttrValue":
            attributes = value.message_type
            return {f.name: whole(attributes, depth - 1, f.name) for f in attributes.fields}
        return {"1": sample(value, depth - 1)}
    single = whole(kind, depth - 1) if kind else SAMPLES.get(field.cpp_type, field.number)
    return [single, single] if field.is_repeated else single


def test_every_field_of_tensorflow_survives():
    theirs = json_format.ParseDict(whole(TheirGraphDef.DESCRIPTOR, 6), TheirGraphDef())
    attributes = theirs.node[1].attr
    assert len(attributes["list"].list.tensor[1].resource_handle_val[0].name) == 4
    assert theirs.library.function[1].node_def[0].attr["func"].func.name
    content = theirs.SerializeToString()
    ours = GraphDef.FromString(content)
    assert TheirGraphDef.FromString(ours.SerializeToString()) == theirs
    copy = GraphDef()
    copy.node.extend(ours.node)
    assert list(TheirGraphDef.FromString(graph_bytes(copy)).node) == list(theirs.node)


def test_bytes_are_those_of_tensorflow():
    ours = tiny.tiny_inception()
    ours.library.function.add().signature.name = "f"
    ours.node[0].attr["falsity"].b = False
    theirs = TheirGraphDef.FromString(ours.SerializeToString())
    assert graph_bytes(ours) == theirs.SerializeToString(deterministic=True)
    assert ours.node[0].attr["falsity"].HasField("b")


def test_what_only_tensorflow_reads_may_be_damaged():
    """The field 6 of a node is a message there, and here only bytes."""
    graph_def = tiny.tiny_mobilenet(32)
    graph_def.node[0].MergeFromString(b"\x32\x01\xff")
    with pytest.raises(GraphError, match="TensorFlow cannot load this graph"):
        import_graph(graph_def)


def test_conversion_keeps_all_or_only_what_is_wanted():
    graph_def = tiny.tiny_mobilenet(32)
    graph_def.versions.producer = 27
    graph_def.library.function.add().signature.name = "f"
    expected = TheirGraphDef.FromString(graph_def.SerializeToString())
    assert to_tensorflow(graph_def) == expected
    (one,) = to_tensorflow(graph_def, {"input"}).node
    assert one == expected.node[0]


# -- types and tensors -----------------------------------------------------------------------


def test_types_have_tensorflows_names():
    assert {number: kind.name for number, kind in dtypes._INTERN_TABLE.items()} == TYPE_NAMES


def test_an_unknown_type_is_refused():
    node = GraphDef().node.add(name="x")
    assert type_of(node) is None
    for number, name in ((1, "float32"), (101, "float32_ref"), (20, "resource")):
        node.attr["dtype"].type = number
        assert type_of(node) == name
    node.attr["dtype"].type = 999
    with pytest.raises(GraphError, match="the node 'x' has an unknown type 999"):
        type_of(node)


SHAPES = [(), (1,), (1, 1), (2,), (0,), (2, 0), (2, 3), (1, 2, 2, 3)]


def example(name, shape):
    """Values of a type, some at its limits."""
    size, kind = int(np.prod(shape)), array_type(name)
    if name == "string":
        texts = [b"", b"a\0", b"\xff\xfe", "ä".encode(), b"x" * 300]
        return np.array((texts * 3)[:size], object).reshape(shape)
    plain = np.dtype(name[1:]) if name.startswith("q") else kind
    if plain.kind in "iu":
        limits = np.iinfo(plain)
        values = np.array([limits.max, limits.min, 1, 0] * 3, plain)
    else:
        values = np.array([1.1, -0.0, np.nan, np.inf, -3, 0] * 2, plain)
    return values[:size].view(kind).reshape(shape)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_arrays_are_written_as_by_tensorflow_and_read_back(name, shape):
    value = example(name, shape)
    tensor, theirs = TensorProto(), tf.make_tensor_proto(value)
    fill(tensor, value)
    assert tensor.SerializeToString() == theirs.SerializeToString()
    found = to_array(tensor)
    assert (found.dtype, found.shape) == (array_type(name), shape)
    assert found.dtype == tf.make_ndarray(theirs).dtype
    assert found.tobytes() == value.tobytes() if name != "string" else (found == value).all()
    assert found.flags.writeable


def test_rows_of_another_array_are_written_in_order():
    value = np.arange(6, dtype=np.float32).reshape(2, 3).T
    tensor = TensorProto()
    fill(tensor, value)
    assert tensor.SerializeToString() == tf.make_tensor_proto(value).SerializeToString()


LISTS = [
    ("float32", (2, 2), [0.5], [[0.5, 0.5], [0.5, 0.5]]),
    ("float64", (3,), [0.1, 2], [0.1, 2, 2]),
    ("float16", (3,), [0x3C00, 0xC000], [1, -2, -2]),
    ("bfloat16", (2,), [0x3F80], [1, 1]),
    ("int32", (), [7], 7),
    ("int32", (2, 0), [], [[], []]),
    ("int64", (2,), [], [0, 0]),
    ("uint64", (2,), [2**64 - 1], [2**64 - 1] * 2),
    ("int8", (3,), [-128, 127], [-128, 127, 127]),
    ("uint16", (2,), [65535, 1], [65535, 1]),
    ("bool", (3,), [True, False], [True, False, False]),
]


@pytest.mark.parametrize(("name", "shape", "given", "expected"), LISTS)
def test_the_last_value_of_a_list_stands_for_the_rest(name, shape, given, expected):
    theirs = tf.make_tensor_proto(np.zeros(shape, array_type(name)))
    for field in ("tensor_content", FIELDS[name]):
        theirs.ClearField(field)
    getattr(theirs, FIELDS[name]).extend(given)
    found = to_array(TensorProto.FromString(theirs.SerializeToString()))
    reference = tf.make_ndarray(theirs)
    assert found.tolist() == reference.tolist() == np.array(expected).tolist()
    assert (found.dtype, found.shape) == (reference.dtype, reference.shape)


def test_strings_and_quantised_numbers_repeat_the_last_value_too():
    tensor = TensorProto(dtype=7, string_val=[b"a", b"bc"])
    tensor.tensor_shape.dim.add(size=4)
    assert to_array(tensor).tolist() == [b"a", b"bc", b"bc", b"bc"]
    del tensor.string_val[:]
    assert to_array(tensor).tolist() == [b""] * 4
    tensor.dtype = tf.qint8.as_datatype_enum
    tensor.int_val.extend([-3, 5])
    assert to_array(tensor)["qint8"].tolist() == [-3, 5, 5, 5]


def test_16_bits_of_a_larger_number_are_read():
    """As TensorFlow's C++ does; its Python ends in an OverflowError."""
    tensor = TensorProto(dtype=tf.float16.as_datatype_enum, half_val=[0x13C00])
    assert to_array(tensor) == np.float16(1)


def test_a_type_that_no_classifier_has_is_refused():
    graph_def = GraphDef()
    node = graph_def.node.add(name="odd")
    with pytest.raises(GraphError, match="'odd' would have a tensor of the type complex64"):
        set_constant(node, np.zeros(2, np.complex64))
    set_constant(node, np.float32(1))
    for number, kind in ((8, "complex64"), (999, "999")):
        node.attr["value"].tensor.dtype = number
        with pytest.raises(GraphError, match=f"'odd' has a tensor of the type {kind}, which no"):
            constant(nodes_by_name(graph_def), "odd")


# -- without TensorFlow ----------------------------------------------------------------------

PROGRAM = """
import sys

sys.modules["tensorflow"] = sys.modules["keras"] = None
import numpy as np

from retraining.graphs import description, fold, safety, surgery
from retraining.graphs.nodes import add_constant
from retraining.graphs.lowering import lower
from retraining.graphs.scaling import sort_nodes
from retraining.graphs.write import graph_bytes
from retraining.labelling.resolve import Overrides, resolve

graph_def, content = safety.load_graph(sys.argv[1])
described = description.read_metadata(graph_def)
print(described["labels"], len(content))
ends = resolve(graph_def, Overrides(), described)
print(ends.input, ends.output, ends.preprocessing.size, ends.preprocessing.mean)
part = surgery.batched_part(graph_def, "Mul", "final_result")
before = len(part.node)
fold.fold(part, "final_result")
sort_nodes(part)
print(before > len(part.node), sorted({node.op for node in part.node}))
add_constant(part, "more", np.float16([1, 2]))
lower(part)
kinds = [node.attr["dtype"].type for node in part.node if node.op == "Const"]
print(sorted(set(kinds)), len(graph_bytes(part)) > 1000)
print(sorted(name for name in sys.modules if name.startswith("tensorflow")))
"""


def test_graphs_are_read_and_rewritten_without_tensorflow(finished):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, finished.graph], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"['blue', 'green', 'red'] {os.path.getsize(finished.graph)}",
        "Mul final_result (32, 32) 128.0",
        "True ['Add', 'AvgPool', 'BiasAdd', 'ConcatV2', 'Const', 'Conv2D', 'MatMul', "
        "'Placeholder', 'PlaceholderWithDefault', 'Relu', 'Reshape', 'Softmax']",
        "[1, 3, 14, 19] True",
        "['tensorflow']",
    ]
