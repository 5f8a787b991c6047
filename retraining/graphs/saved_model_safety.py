"""Reads the graph of a SavedModel and tells what it could do: loading one runs functions in it."""

from collections import defaultdict
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from retraining.graphs.nodes import GraphError
from retraining.graphs.safety import (
    ALLOWED_OPS,
    MAX_BYTES,
    MAX_NODES,
    SAVED_MODEL,
    check_constants,
    first_named,
)
from retraining.graphs.tensorflow import import_tensorflow
from retraining.system.regular import open_regular
from retraining.system.text import one_line

# The ops, besides those that compute, which restore a TF2 SavedModel and call its functions.
LISTED = """
VarHandleOp ReadVariableOp AssignVariableOp VarIsInitializedOp RestoreV2 PartitionedCall
StatefulPartitionedCall Placeholder NoOp Identity Const DisableCopyOnRead
"""
SAFE_OPS = ALLOWED_OPS | frozenset(LISTED.split())


def read_meta_graph(path: Path) -> Any:
    """Returns TensorFlow's MetaGraphDef of a SavedModel's folder, with sound constants.

    Raises:
        GraphError: it is damaged, or not of TensorFlow 2.
    """
    try:
        with open_regular(path / SAVED_MODEL, MAX_BYTES) as file:
            content = file.read()
        meta = import_tensorflow().SavedModel.FromString(content).meta_graphs[0]
        if len(meta.object_graph_def.nodes) > MAX_NODES:
            raise GraphError(f"it has more than {MAX_NODES} objects")
        functions = meta.graph_def.library.function
        held = chain(meta.graph_def.node, *(function.node_def for function in functions))
        check_constants(held, len(content))
    except (OSError, DecodeError, IndexError, GraphError) as error:
        raise GraphError(f"it is damaged: {one_line(error)}") from error
    if not meta.object_graph_def.nodes:
        raise GraphError("it is of TensorFlow 1; freeze it and give the .pb file that this writes")
    return meta


def describe_unsafe(meta: Any, uncalled: Iterable[str] = (), harmless: Iterable[str] = ()) -> str:
    """Names the ops of a SavedModel that may do more than compute; empty if there are none.

    Ignores the functions that save it: every SavedModel has them, and nothing here calls them. The
    functions `uncalled` may hold the ops `harmless`, too.
    """
    left_out = set(uncalled)
    called = [name for name in meta.object_graph_def.concrete_functions if name not in left_out]
    unsafe = ops_of(meta, called) - SAFE_OPS
    unsafe |= ops_of(meta, left_out) - SAFE_OPS - set(harmless)
    return first_named([ascii(op[:80]) for op in sorted(unsafe)])


def ops_of(meta: Any, roots: Iterable[str]) -> set[str]:
    """Returns the ops of functions of a SavedModel, and of those that they call."""
    ops: defaultdict[str, set[str]] = defaultdict(set)
    calls: defaultdict[str, set[str]] = defaultdict(set)
    for function in meta.graph_def.library.function:
        name = function.signature.name
        for node in function.node_def:
            ops[name].add(node.op)
            for value in node.attr.values():
                calls[name] |= {value.func.name, *(each.name for each in value.list.func)}
            calls[name].add(node.op)  # a function may be called as if it were an op
    waiting = list(roots)
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in ops and name not in seen:
            seen.add(name)
            waiting += calls[name]
    return {op for name in seen for op in ops[name] if op not in ops}
