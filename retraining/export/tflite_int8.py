"""TensorFlow Lite files that compute with integers alone: calibration, and how they are fed.

Weights are int8, one scale per channel. The ranges of all tensors between are those of training
photos. Input and output are uint8: MediaPipe and the Coral tools take no int8 there. The input is
raw pixels of 0 to 255, which the scale and the zero point of its tensor normalise.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retraining.export.converter import Calibration
from retraining.export.pixels_graph import Input, Pixels, Source
from retraining.graphs.description import RAW_PIXELS
from retraining.graphs.messages import GraphDef
from retraining.graphs.nodes import add_constant, add_node, nodes_by_name
from retraining.graphs.preprocessing import Preprocessing
from retraining.graphs.tensorflow import import_whole_tensorflow

WHITE = 255  # the largest value of a pixel


def integer_source(source: Source) -> Source:
    """Returns a Source that takes raw pixels.

    Where one scale and zero point cannot normalise pixels, nodes in the graph do.
    """
    graph_def = GraphDef()
    graph_def.MergeFrom(source.graph_def)
    inputs = []
    for image in source.inputs:
        node = image.node
        if not fits_one_scale(image.preprocessing):
            node = _normalise_inside(graph_def, image)
        inputs.append(replace(image, node=node))
    return replace(source, graph_def=graph_def, inputs=tuple(inputs), takes=RAW_PIXELS)


def fits_one_scale(preprocessing: Preprocessing) -> bool:
    """Tells whether a scale and a zero point, a value of uint8, make `(pixel - mean) / std`."""
    mean, std = preprocessing.mean, preprocessing.std
    return not isinstance(mean, tuple) and not isinstance(std, tuple) and 0 <= mean <= WHITE


def _normalise_inside(graph_def: GraphDef, image: Input) -> str:
    """Puts nodes that normalise in front of an Input; returns the name of the new placeholder."""
    node = nodes_by_name(graph_def)[image.node]
    raw = graph_def.node.add()
    raw.CopyFrom(node)
    raw.name = f"{node.name}/raw"
    mean = add_constant(graph_def, f"{node.name}/mean", image.preprocessing.offset)
    factor = add_constant(graph_def, f"{node.name}/factor", image.preprocessing.factor)
    centred = add_node(graph_def, f"{node.name}/centred", "Sub", [raw.name, mean], T="float32")
    node.Clear()
    add = GraphDef()
    add_node(add, image.node, "Mul", [centred, factor], T="float32")
    node.CopyFrom(add.node[0])
    return f"{node.name}/raw"


def quantize(converter: Any, calibration: Calibration) -> None:
    """Makes a TFLiteConverter write integers alone, whose ranges are those of the photos."""
    tf = import_whole_tensorflow()
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.uint8
    converter.representative_dataset = calibration


def calibration_feeds(source: Source, calibration: Calibration) -> Iterator[Pixels]:
    """Yields training photos as the graph of an `integer_source` takes them, in float32.

    The first has a black and a white pixel, so that the input's range is that of all pixels.
    """
    for number, feeds in enumerate(calibration()):
        row: dict[str, NDArray[np.float32]] = {}
        for image in source.inputs:
            pixels = raw_pixels(feeds[image.feed], image.preprocessing).astype(np.float32)
            if number == 0:
                pixels[0, 0, :2] = [[0], [WHITE]]
            if fits_one_scale(image.preprocessing):
                pixels = (pixels - image.preprocessing.offset) * image.preprocessing.factor
            row[image.feed] = pixels
        yield row


def raw_pixels(images: NDArray[np.float32], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Returns the pixels, rounded to uint8, of preprocessed ones."""
    pixels = images / preprocessing.factor + preprocessing.offset
    rounded: NDArray[np.uint8] = np.clip(np.rint(pixels), 0, WHITE).astype(np.uint8)
    return rounded
