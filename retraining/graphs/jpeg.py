"""Decodes JPEGs with the op of the 2015 graph."""

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from retraining.graphs.messages import GraphDef
from retraining.graphs.nodes import IMAGE_BYTES, add_node
from retraining.graphs.read import import_graph
from retraining.graphs.tensorflow import (
    MissingTensorFlowError,
    import_tensorflow,
    without_lines_of_libjpeg,
)


def decode_jpeg(content: bytes) -> NDArray[np.uint8] | None:
    """Returns the pixels of a JPEG, uint8 [height, width, 3].

    Returns None if the op refuses it, or if there is no TensorFlow to ask.
    """
    try:
        tf = import_tensorflow()
    except MissingTensorFlowError:
        return None
    with without_lines_of_libjpeg():
        try:
            return _decoder()(content)
        except tf.errors.InvalidArgumentError:
            return None


@functools.cache
def _decoder() -> Callable[[bytes], NDArray[np.uint8]]:
    tf = import_tensorflow()
    graph_def = GraphDef()
    content = add_node(graph_def, IMAGE_BYTES, "Placeholder", dtype="string", shape=())
    add_node(graph_def, "DecodeJpeg", "DecodeJpeg", [content], channels=3)
    config = tf.ConfigProto(
        intra_op_parallelism_threads=1,
        inter_op_parallelism_threads=-1,  # the caller's own
        device_count={"GPU": 0},
    )
    session = tf.Session(graph=import_graph(graph_def), config=config)
    return lambda content: session.run("DecodeJpeg:0", {f"{IMAGE_BYTES}:0": content})
