"""Defines the messages of frozen graphs, so that reading and writing them needs no TensorFlow.

The protobuf package makes the classes from the fields below. Names and numbers are those of
graph.proto, node_def.proto, attr_value.proto, tensor.proto, tensor_shape.proto, types.proto,
versions.proto, function.proto, op_def.proto, meta_graph.proto and saved_model.proto in
tensorflow/core. Fields that no code here reads are left out: protobuf keeps what it finds in them
and writes it back.
"""

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

# The language of .proto files, with two differences: `oneof` before a message tells that only one
# of its fields can be set, and enums (a DataType) are numbers.
FIELDS_TEXT = """
message GraphDef {
    repeated NodeDef node = 1;
    FunctionDefLibrary library = 2;
    int32 version = 3;
    VersionDef versions = 4;
}
message NodeDef {
    string name = 1;
    string op = 2;
    repeated string input = 3;
    string device = 4;
    map<string, AttrValue> attr = 5;
}
oneof AttrValue {
    ListValue list = 1;
    bytes s = 2;
    int64 i = 3;
    float f = 4;
    bool b = 5;
    int32 type = 6;
    TensorShapeProto shape = 7;
    TensorProto tensor = 8;
    string placeholder = 9;
    NameAttrList func = 10;
}
message ListValue {
    repeated bytes s = 2;
    repeated int64 i = 3;
    repeated float f = 4;
    repeated bool b = 5;
    repeated int32 type = 6;
    repeated TensorShapeProto shape = 7;
    repeated TensorProto tensor = 8;
    repeated NameAttrList func = 9;
}
message NameAttrList {
    string name = 1;
    map<string, AttrValue> attr = 2;
}
message TensorShapeProto {
    repeated Dim dim = 2;
    bool unknown_rank = 3;
}
message Dim {
    int64 size = 1;
    string name = 2;
}
message TensorProto {
    int32 dtype = 1;
    TensorShapeProto tensor_shape = 2;
    int32 version_number = 3;
    bytes tensor_content = 4;
    repeated float float_val = 5;
    repeated double double_val = 6;
    repeated int32 int_val = 7;
    repeated bytes string_val = 8;
    repeated int64 int64_val = 10;
    repeated bool bool_val = 11;
    repeated int32 half_val = 13;
    repeated uint32 uint32_val = 16;
    repeated uint64 uint64_val = 17;
}
message VersionDef {
    int32 producer = 1;
    int32 min_consumer = 2;
    repeated int32 bad_consumers = 3;
}
message FunctionDefLibrary { repeated FunctionDef function = 1; }
message FunctionDef { OpDef signature = 1; }
message OpDef { string name = 1; }
message MetaGraphDef { GraphDef graph_def = 2; }
message SavedModel { repeated MetaGraphDef meta_graphs = 2; }
"""
MESSAGE = re.compile(r"(message|oneof) (\w+) \{(.*?)\}", re.DOTALL)
FIELD = re.compile(r"(repeated |map<string, )?(\w+)>? (\w+) = (\d+);")

# The names that TensorFlow's Python has for the numbers of a DataType, from 1 on (0 is none).
TYPES_TEXT = """
float32 float64 int32 uint8 int16 int8 string complex64 int64 bool qint8 quint8 qint32
bfloat16 qint16 quint16 uint16 complex128 float16 resource variant uint32 uint64 float8_e5m2
float8_e4m3fn float8_e4m3fnuz float8_e4m3b11fnuz float8_e5m2fnuz int4 uint4 int2 uint2 float4_e2m1fn
"""
TYPE_NAMES = dict(enumerate(TYPES_TEXT.split(), 1))
TYPE_NAMES |= {number + 100: f"{name}_ref" for number, name in TYPE_NAMES.items()}
TYPE_NUMBERS = {name: number for number, name in TYPE_NAMES.items()}


def _add_fields(message: DescriptorProto, package: str, fields: Iterable[tuple[str, ...]]) -> None:
    """Adds fields (`repeated `, `map<string, ` or nothing; type; name; number) to a message."""
    for kind, type_name, name, number in fields:
        field = message.field.add(name=name, number=int(number))
        field.label = field.LABEL_REPEATED if kind else field.LABEL_OPTIONAL
        if message.oneof_decl:
            field.oneof_index = 0
        if kind.startswith("map"):
            entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
            entry.options.map_entry = True
            _add_fields(entry, package, [("", "string", "key", "1"), ("", type_name, "value", "2")])
            type_name = f"{message.name}.{entry.name}"
        if type_name[0].islower():
            field.type = FieldDescriptorProto.Type.Value(f"TYPE_{type_name.upper()}")
        else:
            field.type, field.type_name = field.TYPE_MESSAGE, f".{package}.{type_name}"


def message_classes(package: str, text: str) -> Callable[[str], type[Message]]:
    """Returns a function from a message's name to its class; `text` lists the fields of all.

    The classes are in a pool of their own, since TensorFlow's messages have the same names.
    """
    file = FileDescriptorProto(name="retraining.proto", package=package, syntax="proto3")
    for kind, name, body in MESSAGE.findall(text):
        message = file.message_type.add(name=name)
        if kind == "oneof":
            message.oneof_decl.add(name="value")
        _add_fields(message, package, FIELD.findall(body))
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return lambda name: GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))


if TYPE_CHECKING:  # mypy tells the classes apart; their fields can be anything

    class _Fields(Message):
        def __init__(self, **fields: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...

    class GraphDef(_Fields): ...

    class NodeDef(_Fields): ...

    class TensorProto(_Fields): ...

    class MetaGraphDef(_Fields): ...

    class SavedModel(_Fields): ...

else:
    GraphDef, NodeDef, TensorProto, MetaGraphDef, SavedModel = map(
        message_classes("tensorflow", FIELDS_TEXT),
        ("GraphDef", "NodeDef", "TensorProto", "MetaGraphDef", "SavedModel"),
    )
