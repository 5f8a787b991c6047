"""Reads and writes a TensorProto as a NumPy array, in the forms that TensorFlow's Python has."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retraining.graphs.messages import TYPE_NAMES, TYPE_NUMBERS, TensorProto

# The field that lists values of a type, unless tensor_content holds their bytes (tensor.proto).
# Classifiers have no other types.
FIELDS = {
    "float32": "float_val",
    "float64": "double_val",
    **dict.fromkeys(("float16", "bfloat16"), "half_val"),
    **dict.fromkeys(("int8", "uint8", "int16", "uint16", "int32"), "int_val"),
    **dict.fromkeys(("qint8", "quint8", "qint16", "quint16", "qint32"), "int_val"),
    "int64": "int64_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
    "bool": "bool_val",
    "string": "string_val",
}
LISTED = ("bool", "string", "uint16")  # arrays of these never become tensor_content


def array_type(name: str) -> np.dtype[Any]:
    """Returns NumPy's type for a type in FIELDS: objects for strings, fields for quantised ones."""
    if name == "string":
        return np.dtype(object)
    if name == "bfloat16":
        import ml_dtypes  # comes with tensorflow; few graphs need it

        kind: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return kind
    return np.dtype([(name, name[1:])] if name.startswith("q") else name)


def _listed_type(name: str) -> np.dtype[Any]:
    """Returns NumPy's type for the values in a list: 16-bit floats are listed by their bits."""
    return np.dtype("uint16") if FIELDS[name] == "half_val" else array_type(name.removeprefix("q"))


def to_array(tensor: TensorProto) -> NDArray[Any]:
    """Returns the value of a TensorProto; the last value in a list stands for all that are missing.

    Raises:
        TypeError: its type is none in FIELDS.
        ValueError: it has more values than its shape, or too few bytes.
    """
    name = TYPE_NAMES.get(tensor.dtype, "")
    if name not in FIELDS:
        raise TypeError(f"a tensor of the type {name or tensor.dtype}, which no classifier has")
    kind, shape = array_type(name), [dim.size for dim in tensor.tensor_shape.dim]
    if tensor.tensor_content:
        return np.frombuffer(tensor.tensor_content, kind).copy().reshape(shape)
    values, listed = getattr(tensor, FIELDS[name]), _listed_type(name)
    held = np.dtype("int32") if FIELDS[name] in ("int_val", "half_val") else listed
    given = np.fromiter(values, held).astype(listed, copy=False).view(kind)
    missing = math.prod(shape) - len(given)
    if missing > 0:
        last = given[-1:] if values else np.array([b"" if name == "string" else 0], kind)
        given = np.concatenate([given, np.repeat(last, missing)])
    return given.reshape(shape)


def fill(tensor: TensorProto, value: NDArray[Any] | np.generic) -> None:
    """Sets an empty TensorProto to a value, as tf.make_tensor_proto writes it.

    Raises:
        TypeError: the type of `value` is none in FIELDS.
    """
    array = np.asarray(value)
    name = array.dtype.names[0] if array.dtype.names else array.dtype.name
    name = "string" if array.dtype == object else name
    if name not in FIELDS:
        raise TypeError(f"a tensor of the type {name}, which no classifier has")
    tensor.dtype = TYPE_NUMBERS[name]
    tensor.tensor_shape.SetInParent()
    for size in array.shape:
        tensor.tensor_shape.dim.add(size=size)
    if array.size > 1 and name not in LISTED:
        tensor.tensor_content = array.tobytes()
    elif name == "string":
        tensor.string_val.extend(array.ravel())
    else:
        getattr(tensor, FIELDS[name]).extend(array.ravel().view(_listed_type(name)).tolist())
