"""Runs LiteRT models (.tflite) on images."""

import os
import queue
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retraining.errors import RetrainingError
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
            return np.concatenate([interpreter.run(image[None]) for image in batch])
        finally:
            self._idle.put(interpreter)


class _Interpreter:
    """An interpreter of a model; one thread at a time may use it."""

    def __init__(self, model: Path | bytes, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        source = (
            {"model_content": model} if isinstance(model, bytes) else {"model_path": str(model)}
        )
        try:
            self._interpreter = Interpreter(**source, num_threads=threads)
            self._interpreter.allocate_tensors()
            (self._input,) = self._interpreter.get_input_details()
            (self._output,) = self._interpreter.get_output_details()
        except (RuntimeError, ValueError) as error:
            raise GraphError(f"LiteRT cannot load the model: {one_line(error)}") from error
        self.width = int(self._output["shape"][-1])

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns float32 [1, width] for float32 [1, height, width, 3]."""
        try:
            self._interpreter.set_tensor(self._input["index"], image)
            self._interpreter.invoke()
            vector: NDArray[np.float32] = self._interpreter.get_tensor(self._output["index"])
        except (RuntimeError, ValueError) as error:
            raise GraphError(f"LiteRT cannot run the model: {one_line(error)}") from error
        return vector
