"""Opens folders of SavedModels: what retrain.py exports, and models of others."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retraining.graphs.batches import is_quantised
from retraining.graphs.description import DESCRIPTION_FILE, OUTPUT
from retraining.graphs.messages import TYPE_NAMES
from retraining.graphs.nodes import GraphError
from retraining.graphs.saved_model_safety import describe_unsafe, ops_of, read_meta_graph
from retraining.graphs.tensorflow import import_whole_tensorflow, is_installed
from retraining.labelling.labels import MOST_LABEL_BYTES
from retraining.labelling.program import Input, Program, as_rows, read_file, refuse_unsafe
from retraining.system.text import one_line

# Signatures of retrain.py that take pixels, then the usual one.
PREFERRED = ("pixels", "images", "serving_default")
# Ops of the signatures that take files' bytes, which nothing here calls.
OF_FILES_TEXT = """
StatelessIf StatelessWhile StaticRegexFullMatch StringJoin TensorListFromTensor TensorListGetItem
TensorListReserve TensorListSetItem TensorListStack
"""
OF_FILES = OF_FILES_TEXT.split()


def open_saved_folder(path: str | Path, allow_unsafe_ops: bool) -> Program:
    """Opens the folder of a SavedModel.

    Raises:
        GraphError: it is damaged, or not known to be harmless, or has no signature for images, or
            TensorFlow is missing.
    """
    if not is_installed():
        raise GraphError("it needs TensorFlow; pip install -r requirements.txt")
    folder = Path(path)
    asset = folder / "assets" / DESCRIPTION_FILE
    description = read_file(asset, MOST_LABEL_BYTES) if asset.exists() else None
    meta = read_meta_graph(folder)
    name = _signature_for_images(meta)
    signature = meta.signature_def[name]
    functions = _functions_of_signatures(meta)
    called = functions.pop(name, "")
    unsafe = describe_unsafe(meta, functions.values(), OF_FILES)
    refuse_unsafe(unsafe, allow_unsafe_ops)
    inputs = {key: _input(info) for key, info in signature.inputs.items()}
    outputs = {key: _input(info) for key, info in signature.outputs.items()}
    output = OUTPUT if OUTPUT in outputs else min(outputs, default="")
    if output != OUTPUT and len(outputs) != 1:
        raise GraphError(f"its signature {name!r} has {len(outputs)} outputs, not one")
    together = description is not None and not is_quantised(ops_of(meta, [called]))
    running = LoadedSignature(folder, name, output)
    return Program(
        inputs,
        next(iter(outputs[output].shape[-1:]), None),
        lambda count: running,
        batches=together and all(i.shape[0] is None for i in inputs.values()),
        description=description,
        unsafe=unsafe,
    )


def _signature_for_images(meta: Any) -> str:
    """Returns the name of the signature that takes images, or one for each network.

    Raises:
        GraphError: there is none.
    """
    signatures: dict[str, Any] = dict(meta.signature_def)
    for name in (*PREFERRED, *sorted(signatures)):
        inputs = signatures[name].inputs.values() if name in signatures else ()
        if inputs and all(len(info.tensor_shape.dim) == 4 for info in inputs):
            return name
    raise GraphError("none of its signatures takes images [n, height, width, 3]")


def _functions_of_signatures(meta: Any) -> dict[str, str]:
    """Returns {name of a signature: name of its function}, which no other object can call.

    Raises:
        GraphError: there are none, or others can call one.
    """
    nodes = meta.object_graph_def.nodes
    try:
        children = {child.local_name: child.node_id for child in nodes[0].children}
        signatures = nodes[children["signatures"]]
        named = {child.local_name: _function(nodes, child) for child in signatures.children}
        others = [node for node in nodes if node is not signatures]
        callable_ = {_function(nodes, child) for node in others for child in node.children}
    except (KeyError, IndexError) as error:
        raise GraphError("it is damaged: it has no functions of its signatures") from error
    callable_ |= {name for node in others for name in node.function.concrete_functions}
    if callable_ & set(named.values()):
        raise GraphError("it is damaged: an object has the function of a signature")
    return named


def _function(nodes: Any, child: Any) -> str:
    """Returns the name of the function that is a child of an object; empty if it is no function."""
    name: str = nodes[child.node_id].bare_concrete_function.concrete_function_name
    return name


def _input(info: Any) -> Input:
    shape = tuple(None if each.size < 0 else each.size for each in info.tensor_shape.dim)
    return Input(shape, TYPE_NAMES.get(info.dtype, "nothing"))


class LoadedSignature:
    """Runs a signature of a SavedModel in TensorFlow."""

    parallel = 1

    def __init__(self, folder: Path, name: str, output: str) -> None:
        """Loads the SavedModel.

        Raises:
            GraphError: TensorFlow cannot load it.
        """
        self._tf = import_whole_tensorflow()
        self._output = output
        try:
            self._loaded = self._tf.saved_model.load(str(folder))  # must live as long as it does
            self._signature = self._loaded.signatures[name]
            specs = self._signature.structured_input_signature[1]
        except Exception as error:  # TensorFlow raises any kind for a damaged folder
            raise GraphError(f"TensorFlow cannot load it: {one_line(error)}") from error
        self._types = {name: spec.dtype for name, spec in specs.items()}

    def run_feeds(self, feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Returns float32 [n, k] for {name of an input: n images}.

        Raises:
            GraphError: TensorFlow cannot run it.
        """
        tensors = {name: self._tf.cast(pixels, self._types[name]) for name, pixels in feeds.items()}
        try:
            answers = self._signature(**tensors)[self._output].numpy()
        except Exception as error:
            raise GraphError(f"TensorFlow cannot run it: {one_line(error)}") from error
        return as_rows(answers, feeds)
