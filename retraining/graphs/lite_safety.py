"""Checks a LiteRT model before it runs: a model is a program.

LiteRT verifies the structure of the bytes itself, and has no ops that touch files, connections or
Python. What remains are loops, which may never end, subgraphs, variables and tables, ops that a
plugin brings (custom ops, and TensorFlow's own as `Flex...`), and tensors that are far larger than
the file explains. The checks do not cover sizes that are computed from the image, nor time.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from retraining.graphs.nodes import GraphError
from retraining.graphs.safety import MAX_ELEMENTS, MAX_NODES, first_named

# Builtin ops that map values to values, by the names of BuiltinOperator in TensorFlow Lite's
# schema.fbs.
ALLOWED_TEXT = """
ABS ADD ADD_N ARG_MAX ARG_MIN ATAN2 AVERAGE_POOL_2D BATCH_MATMUL BATCH_TO_SPACE_ND BITCAST
BROADCAST_ARGS BROADCAST_TO CAST CEIL CONCATENATION CONV_2D COS CUMSUM DEPTHWISE_CONV_2D
DEPTH_TO_SPACE DEQUANTIZE DIV ELU EQUAL EXP EXPAND_DIMS FAKE_QUANT FILL FLOOR FLOOR_DIV FLOOR_MOD
FULLY_CONNECTED GATHER GATHER_ND GELU GREATER GREATER_EQUAL HARD_SWISH L2_NORMALIZATION L2_POOL_2D
LEAKY_RELU LESS LESS_EQUAL LOCAL_RESPONSE_NORMALIZATION LOG LOGICAL_AND LOGICAL_NOT LOGICAL_OR
LOGISTIC LOG_SOFTMAX MAXIMUM MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NEG NOT_EQUAL ONE_HOT PACK PAD
PADV2 POW PRELU QUANTIZE RANGE RANK REDUCE_ALL REDUCE_ANY REDUCE_MAX REDUCE_MIN REDUCE_PROD RELU
RELU6 RELU_0_TO_1 RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REVERSE_V2 ROUND
RSQRT SCATTER_ND SELECT SELECT_V2 SHAPE SIGN SIN SLICE SOFTMAX SPACE_TO_BATCH_ND SPACE_TO_DEPTH
SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE SQUEEZE STRIDED_SLICE SUB SUM TANH TILE TOPK_V2
TRANSPOSE TRANSPOSE_CONV UNPACK WHERE ZEROS_LIKE
"""
ALLOWED = frozenset(ALLOWED_TEXT.split())


def describe_unsafe(interpreter: Any) -> str:
    """Names the ops of LiteRT's Interpreter that may do more than compute; empty if there are none.

    Raises:
        GraphError: the model has too many ops.
    """
    details = interpreter._get_ops_details()  # the only list of them
    if len(details) > MAX_NODES:
        raise GraphError(f"it has {len(details)} ops, more than {MAX_NODES}")
    unsafe = sorted({str(each["op_name"]) for each in details} - ALLOWED)
    return first_named([ascii(name[:80]) for name in unsafe])


def check_sizes(tensors: Iterable[Mapping[str, Any]]) -> None:
    """Checks the shapes of LiteRT's details of tensors.

    Raises:
        GraphError: a tensor is too large.
    """
    for details in tensors:
        elements = math.prod(abs(int(size)) for size in details["shape"])
        if elements > MAX_ELEMENTS:
            raise GraphError(f"it has a tensor of {elements} elements, more than {MAX_ELEMENTS}")
