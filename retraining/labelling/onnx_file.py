"""Opens ONNX files: what retrain.py exports, and models of others."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retraining.graphs import onnx_safety
from retraining.graphs.description import ONNX_PROPERTY
from retraining.graphs.nodes import GraphError
from retraining.graphs.safety import MAX_BYTES
from retraining.labelling.program import Input, Program, as_rows, read_file, refuse_unsafe
from retraining.system.text import one_line

QUIET = 4  # ONNX Runtime logs fatal errors alone
TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}


def open_onnx_file(path: str | Path, allow_unsafe_ops: bool) -> Program:
    """Opens an ONNX file.

    Raises:
        GraphError: it is unreadable, damaged, or not known to be harmless, or ONNX Runtime is
            missing.
    """
    content = read_file(path, MAX_BYTES)
    model = onnx_safety.parse(content)
    unsafe = onnx_safety.describe_unsafe(model)
    refuse_unsafe(unsafe, allow_unsafe_ops)
    onnx_safety.check(model)
    description = onnx_safety.entries(model).get(ONNX_PROPERTY)
    together = description is not None and not onnx_safety.depends_on_batch(model)
    del model  # a second copy of the weights
    session = OnnxSession(content)
    inputs = {each.name: _input(each) for each in session.inputs}
    return Program(
        inputs,
        session.width,
        lambda count: session,
        batches=together and all(each.shape[:1] == (None,) for each in inputs.values()),
        description=None if description is None else description.encode(),
        unsafe=unsafe,
    )


def _input(each: Any) -> Input:
    shape = tuple(size if isinstance(size, int) else None for size in each.shape)
    return Input(shape, TYPES.get(each.type, each.type))


class OnnxSession:
    """Runs an ONNX model on all cores."""

    parallel = 1

    def __init__(self, content: bytes) -> None:
        """Loads the model.

        Raises:
            GraphError: ONNX Runtime cannot, or is not installed.
        """
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise GraphError(
                "ONNX files need the package onnxruntime; pip install -r requirements-onnx.txt"
            ) from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = QUIET
        try:
            self._session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors have no common class but this
            raise GraphError(f"ONNX Runtime cannot load it: {one_line(error)}") from error
        self.inputs = self._session.get_inputs()
        outputs = self._session.get_outputs()
        if len(outputs) != 1:
            raise GraphError(f"it has {len(outputs)} outputs, not one of probabilities")
        sizes = outputs[0].shape
        self.width = sizes[-1] if sizes and isinstance(sizes[-1], int) else None
        self._types = {each.name: TYPES.get(each.type, "float32") for each in self.inputs}

    def run_feeds(self, feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Returns float32 [n, k] for {name of an input: n images}.

        Raises:
            GraphError: ONNX Runtime cannot run the model.
        """
        typed = {name: pixels.astype(self._types[name]) for name, pixels in feeds.items()}
        try:
            (answers,) = self._session.run(None, typed)
        except Exception as error:
            raise GraphError(f"ONNX Runtime cannot run it: {one_line(error)}") from error
        return as_rows(answers, feeds)
