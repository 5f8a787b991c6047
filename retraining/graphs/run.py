"""Runs frozen graphs on batches of images, or on the bytes of one image."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retraining.errors import RetrainingError
from retraining.graphs.batches import is_quantised, mixes_images
from retraining.graphs.fold import fold
from retraining.graphs.lowering import lower
from retraining.graphs.messages import GraphDef
from retraining.graphs.nodes import IMAGE_BYTES, GraphError, nodes_by_name
from retraining.graphs.read import ends, width_of
from retraining.graphs.session import open_session, return_free_memory
from retraining.graphs.surgery import batched_part
from retraining.graphs.tensorflow import (
    Session,
    Tensor,
    import_tensorflow,
    without_lines_of_libjpeg,
)
from retraining.system.text import counted, one_line


@dataclass(frozen=True)
class Running:
    """How to run a graph.

    `precision` is `float32` or `bfloat16`. With `optimize=False`, the graph starts a second sooner
    but runs slower, which suits a handful of images. `cores` limits the processor's cores (None:
    all). `also` names nodes on the way to the output, whose columns are appended to the output's.
    """

    precision: str = "float32"
    optimize: bool = True
    also: tuple[str, ...] = ()
    cores: int | None = None


class Runner:
    """Runs a frozen graph from one input, a float32 batch of images, to one output.

    Up to `parallel` threads may call `run` at once. On a CPU, each call computes on one thread.
    That is faster than all threads on one batch, since no thread waits for the slowest.

    A graph that may mix the images of a batch gets them one at a time. A quantised graph runs
    unchanged, in float32: another order of its sums can move a value by a whole step.
    """

    def __init__(
        self, graph_def: GraphDef, input_name: str, output_name: str, how: Running | None = None
    ) -> None:
        tf, how = import_tensorflow(), how or Running()
        part = batched_part(graph_def, input_name, output_name)
        mixes = mixes_images(nodes_by_name(part), input_name, one_row=False)
        quantised = is_quantised(node.op for node in part.node)
        if not quantised:
            fold(part, output_name)
            if how.precision == "bfloat16":
                lower(part)
        self.parallel = 1 if tf.gpus() else how.cores or os.cpu_count() or 1
        config = tf.ConfigProto()
        if (self.parallel > 1 or how.cores) and how.optimize:
            config.intra_op_parallelism_threads = 1
            config.inter_op_parallelism_threads = self.parallel
            config.use_per_session_threads = True
        _choose_rewrites(config.graph_options.rewrite_options, how.optimize and not quantised)
        session = open_session(part, output_name, config, few=not how.optimize)
        del part
        return_free_memory()
        self._input, self._output = ends(session.graph, input_name, output_name)
        self.width = width_of(self._output)
        one_row = self._output.shape.rank == 0 or self._output.shape[0] == 1
        self.one_at_a_time = mixes or one_row
        self._fetch = _fetcher(session, self._output, how.also)
        self._started, self._first_call = False, threading.Lock()

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns float32 [n, width] for images float32 [n, height, width, 3].

        Raises:
            GraphError: TensorFlow cannot run the graph, or it does not give one row per image.
        """
        if self.one_at_a_time and len(batch) > 1:
            return np.concatenate([self.run(image[None]) for image in batch])
        if self._started:
            return self._run(batch)
        # The first call optimizes the graph; concurrent calls would all repeat that.
        with self._first_call:
            output = self._run(batch)
            self._started = True
        return output

    def _run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        with _errors_of_running():
            output = self._fetch({self._input: _of_type(self._input, batch)})
        if output.shape[:1] != (len(batch),):
            raise GraphError(
                f"the graph gives an answer of shape {output.shape} for "
                f"{counted(len(batch), 'image')}, not a row per image; name another output"
            )
        return output


@contextlib.contextmanager
def _errors_of_running() -> Iterator[None]:
    """Turns TensorFlow's errors in running a graph, or about a fed shape, into a GraphError."""
    try:
        yield
    except (import_tensorflow().errors.OpError, ValueError, TypeError) as error:
        raise GraphError(f"TensorFlow cannot run this graph: {one_line(error)}") from error


def _of_type(tensor: Tensor, images: NDArray[np.float32]) -> NDArray[Any]:
    """Returns images rounded if a tensor takes integers, no lower or higher than its type holds."""
    kind = tensor.dtype
    if not (kind.is_integer or kind.is_quantized):
        return images
    limits = np.iinfo(kind.name.removeprefix("q"))
    return np.rint(images).clip(limits.min, limits.max).astype(limits.dtype)


def _fetcher(
    session: Session, output: Tensor, also: Sequence[str]
) -> Callable[[dict[Tensor, Any]], NDArray[np.float32]]:
    """Returns a function from a feed to the output, with the columns of the nodes `also` appended.

    Raises:
        GraphError: there is no such node on the way to the output.
    """
    if not also:
        return lambda feed: session.run(output, feed)
    try:
        tensors = [session.graph.get_tensor_by_name(f"{name}:0") for name in also]
    except (KeyError, ValueError) as error:
        raise GraphError(f"the graph lacks a node that its description names: {error}") from error
    return lambda feed: np.concatenate(session.run([output, *tensors], feed), axis=1)


def _choose_rewrites(rewrites: Any, optimize: bool) -> None:
    """Turns off all optimizer passes but `remapping`, which fuses convolution, bias and ReLU.

    The others cost time, and `fold` has already done their work.
    """
    if not optimize:
        rewrites.disable_meta_optimizer = True
        return
    rewrites.meta_optimizer_iterations = rewrites.ONE
    rewrites.memory_optimization = rewrites.NO_MEM_OPT
    for name in (
        "arithmetic_optimization",
        "common_subgraph_elimination",
        "constant_folding",
        "dependency_optimization",
        "function_optimization",
        "layout_optimizer",
        "loop_optimization",
        "shape_optimization",
    ):
        setattr(rewrites, name, rewrites.OFF)


class UndecodableError(RetrainingError):
    """A graph's own decoder cannot read an image."""


class BytesRunner:
    """Runs an unchanged graph on one image at a time, as the classic did: on bytes or on pixels."""

    def __init__(
        self,
        graph_def: GraphDef,
        output_name: str,
        input_name: str = IMAGE_BYTES,
        also: Sequence[str] = (),
        few: bool = True,
    ) -> None:
        """`also` is as in Running; `few` tells that it is for a handful of images."""
        tf = import_tensorflow()
        self._refused = tf.errors.InvalidArgumentError
        config = tf.ConfigProto()
        _choose_rewrites(config.graph_options.rewrite_options, optimize=False)
        session = open_session(graph_def, output_name, config, few=few)
        self._bytes, output = ends(session.graph, input_name, output_name)
        self.width = width_of(output)
        self._fetch = _fetcher(session, output, also)
        self._tensor = session.graph.get_tensor_by_name

    def run_pixels(self, images: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """Returns float32 [1, width] for {input node: an image float32 [1, height, width, 3]}.

        Raises:
            GraphError: TensorFlow cannot run the graph.
        """
        with _errors_of_running():
            feed = {self._tensor(f"{name}:0"): image for name, image in images.items()}
            whole = {tensor: _of_type(tensor, image) for tensor, image in feed.items()}
            copies = max((t.shape[0] or 1 for t in feed if t.shape.rank == 4), default=1)
            if copies > 1:  # the graph takes batches of this size alone
                whole = {
                    tensor: np.repeat(image, copies, axis=0) for tensor, image in whole.items()
                }
            output = self._fetch(whole)
        return output if copies == 1 else output[:1]

    def run(self, content: bytes) -> NDArray[np.float32]:
        """Returns float32 [1, width] for the bytes of one image file.

        Raises:
            UndecodableError: the graph's own decoder cannot read them.
            GraphError: TensorFlow cannot run the graph.
        """
        with _errors_of_running(), without_lines_of_libjpeg():
            try:
                one = self._bytes.shape.rank != 1  # else it takes a vector of files
                return self._fetch({self._bytes: content if one else [content]})
            except self._refused as error:
                raise UndecodableError("the graph's own decoder does not read them") from error
