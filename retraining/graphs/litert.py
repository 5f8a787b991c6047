"""Runs LiteRT models (.tflite) on images."""

import os
import queue
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retraining.errors import RetrainingError
from retraining.graphs.lite_safety import check_sizes
from retraining.graphs.nodes import GraphError
from retraining.graphs.tensorflow import muted_stderr
from retraining.system.text import one_line


class ConversionError(RetrainingError):
    """A graph cannot become a LiteRT model; see to_litert."""


class LiteRunner:
    """Runs a LiteRT model from one image to one vector, as `Runner` runs a graph.

    Up to `parallel` threads may call `run` at once; each computes on one thread with an interpreter
    of its own. With `parallel` 1, an interpreter uses `threads` threads for an image.
    """

    one_at_a_time = True

    def __init__(self, model: Path | bytes, parallel: int | None = None, threads: int = 1) -> None:
        """Takes a model's file or its bytes; `parallel` None means as many as there are cores.

        Raises:
            GraphError: LiteRT cannot load it.
            ModuleNotFoundError: the package `ai-edge-litert` is not installed.
        """
        self.parallel = parallel or os.cpu_count() or 1
        self._idle: queue.SimpleQueue[_Interpreter] = queue.SimpleQueue()
        with muted_stderr():  # it tells which delegate it made
            for _ in range(self.parallel):
                interpreter = _Interpreter(model, threads)
                self._idle.put(interpreter)
        self.width = interpreter.width

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns float32 [n, width] for images float32 [n, height, width, 3].

        Raises:
            GraphError: LiteRT cannot run the model.
        """
        interpreter = self._idle.get()
        try:
            (name,) = interpreter.inputs
            return np.concatenate([interpreter.run({name: image[None]}) for image in batch])
        finally:
            self._idle.put(interpreter)

    def run_feeds(self, feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Returns float32 [1, width] for {name of an input: [1, height, width, 3]} of one image.

        An input takes any size if the model does. Numbers of another type than the input's are
        quantised by its scale and zero point.

        Raises:
            GraphError: LiteRT cannot run the model.
        """
        interpreter = self._idle.get()
        try:
            return interpreter.run(feeds).reshape(1, -1)
        finally:
            self._idle.put(interpreter)


class _Interpreter:
    """An interpreter of a model; one thread at a time may use it."""

    def __init__(self, model: Path | bytes, threads: int) -> None:
        self._interpreter = open_interpreter(model, threads)
        try:
            self._interpreter.allocate_tensors()
            check_sizes(self._interpreter.get_tensor_details())
            self.inputs = inputs_of(self._interpreter)
            (self._output,) = self._interpreter.get_output_details()
        except (RuntimeError, ValueError) as error:
            raise GraphError(f"LiteRT cannot load the model: {one_line(error)}") from error
        self._shapes = {name: tuple(each["shape"]) for name, each in self.inputs.items()}
        self.width = int(np.prod(self._output["shape"]))

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Returns float32 [1, width] for {name of an input: [1, height, width, 3]}."""
        try:
            self._resize({name: pixels.shape for name, pixels in feeds.items()})
            for name, pixels in feeds.items():
                details = self.inputs[name]
                self._interpreter.set_tensor(details["index"], _quantised(pixels, details))
            self._interpreter.invoke()
            vector = self._interpreter.get_tensor(self._output["index"])
        except (RuntimeError, ValueError) as error:
            raise GraphError(f"LiteRT cannot run the model: {one_line(error)}") from error
        return _dequantised(vector, self._output)

    def _resize(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Gives the inputs these shapes."""
        if shapes == self._shapes:
            return
        self._shapes = {}  # unknown, if this fails
        for name, shape in shapes.items():
            self._interpreter.resize_tensor_input(self.inputs[name]["index"], shape)
        self._interpreter.allocate_tensors()
        self._shapes = shapes


def open_interpreter(model: Path | bytes, threads: int) -> Any:
    """Returns LiteRT's Interpreter of a model, which has verified the structure of its bytes.

    Raises:
        GraphError: LiteRT cannot load it.
        ModuleNotFoundError: the package `ai-edge-litert` is not installed.
    """
    from ai_edge_litert.interpreter import Interpreter

    source = {"model_content": model} if isinstance(model, bytes) else {"model_path": str(model)}
    try:
        return Interpreter(**source, num_threads=threads)
    except (RuntimeError, ValueError) as error:
        raise GraphError(f"LiteRT cannot load the model: {one_line(error)}") from error


def inputs_of(interpreter: Any) -> dict[str, Mapping[str, Any]]:
    """Returns {name: LiteRT's details} of the inputs, as the only signature names them if any."""
    if len(interpreter.get_signature_list()) == 1:
        return dict(interpreter.get_signature_runner().get_input_details())
    return {details["name"]: details for details in interpreter.get_input_details()}


def _quantised(values: NDArray[Any], details: Mapping[str, Any]) -> NDArray[Any]:
    """Returns values in the type of a tensor."""
    dtype, (scale, zero) = np.dtype(details["dtype"]), details["quantization"]
    if values.dtype == dtype:
        return values
    if dtype.kind not in "iu":
        floats: NDArray[Any] = values.astype(dtype)
        return floats
    limits = np.iinfo(dtype)
    steps: NDArray[Any] = np.rint(values / (scale or 1) + zero).clip(limits.min, limits.max)
    return steps.astype(dtype)


def _dequantised(values: NDArray[Any], details: Mapping[str, Any]) -> NDArray[np.float32]:
    """Returns the numbers that the values of a tensor stand for."""
    scale, zero = details["quantization"]
    numbers: NDArray[np.float32] = values.astype(np.float32)
    return (numbers - np.float32(zero)) * np.float32(scale) if scale else numbers
