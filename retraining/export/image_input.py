"""Puts the preprocessing in front of a model, which then takes one image as it was decoded.

All of it is made of ops that LiteRT and ONNX have, too.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from retraining.export.build import OWN_NODES
from retraining.export.pixels_graph import Input, Source
from retraining.graphs.description import IMAGE
from retraining.graphs.preprocessing import ANTIALIASED_CUBIC, LEGACY_BILINEAR, Preprocessing, Size
from retraining.graphs.read import to_tensorflow
from retraining.graphs.tensorflow import Tensor, TensorFlow, import_whole_tensorflow

SHAPE = (1, None, None, 3)  # of the image
IMAGE_NODE = f"{OWN_NODES}{IMAGE}"


def image_graph(source: Source) -> Any:
    """Returns the graph of a Source from the node IMAGE_NODE, uint8 [1, height, width, 3], on.

    It is a GraphDef of TensorFlow's own class. TensorFlow traces the preprocessing alone, since it
    would copy the weights.
    """
    tf = import_whole_tensorflow()
    nodes = {image.node for image in source.inputs}
    with tf.Graph().as_default() as graph:
        with tf.name_scope(OWN_NODES):
            image = tf.compat.v1.placeholder(tf.uint8, SHAPE, IMAGE)
            pixels = preprocess(tf, image, source.inputs)
        for each, value in zip(source.inputs, pixels, strict=True):
            tf.identity(value, each.node)
    graph_def, network = graph.as_graph_def(), to_tensorflow(source.graph_def)
    graph_def.node.extend(node for node in network.node if node.name not in nodes)
    graph_def.versions.CopyFrom(network.versions)  # newer ones have no old ops
    return graph_def


def preprocess(tf: TensorFlow, image: Tensor, inputs: Sequence[Input]) -> list[Tensor]:
    """Returns the pixels that each input takes, float32 [1, *size, 3], of a uint8 image."""
    floats = tf.cast(image, tf.float32)
    return [_scaled(tf, floats, each.preprocessing) for each in inputs]


def _scaled(tf: TensorFlow, image: Tensor, record: Preprocessing) -> Tensor:
    """Returns `(pixel - mean) / std` of the resized image, as a product with the reciprocal."""
    resized = KERNELS[record.kernel](tf, image, record.size)
    return (resized - record.offset) * record.factor


def resize_bilinear(tf: TensorFlow, image: Tensor, size: Size) -> Tensor:
    """Resizes float32 [1, height, width, 3] to [1, *size, 3] by LEGACY_BILINEAR."""
    return tf.raw_ops.ResizeBilinear(images=image, size=size)


def resize_cubic(tf: TensorFlow, image: Tensor, size: Size) -> Tensor:
    """Resizes float32 [1, height, width, 3] to [1, *size, 3] by ANTIALIASED_CUBIC.

    LiteRT and ONNX do not have the op ScaleAndTranslate. This multiplies by its weights instead.
    """
    (height, width), shape = size, tf.shape(image)
    rows = tf.reshape(image, [shape[1], shape[2] * 3])
    rows = tf.matmul(_cubic_weights(tf, shape[1], height), rows)
    columns = tf.transpose(tf.reshape(rows, [height, shape[2], 3]), [1, 0, 2])
    columns = tf.reshape(columns, [shape[2], height * 3])
    columns = tf.matmul(_cubic_weights(tf, shape[2], width), columns)
    return tf.transpose(tf.reshape(columns, [width, height, 3]), [1, 0, 2])[None]


def _cubic_weights(tf: TensorFlow, old: Tensor, new: int) -> Tensor:
    """Returns the weight of each of `old` pixels in each of `new` ones, float32 [new, old].

    Keys' kernel with a = -0.5 (Keys 1981, doi:10.1109/TASSP.1981.1163711), as wide as the step
    between samples where the image shrinks.
    """
    step = tf.cast(old, tf.float32) / float(new)
    centres = (tf.range(new, dtype=tf.float32) + 0.5) * step
    pixels = tf.cast(tf.range(old), tf.float32) + 0.5
    x = tf.abs(pixels[None] - centres[:, None]) / tf.maximum(step, 1.0)
    near = (1.5 * x - 2.5) * x * x + 1.0  # up to 1
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0  # up to 2
    weights = tf.where(x < 1.0, near, tf.where(x < 2.0, far, tf.zeros_like(x)))
    return weights / tf.reduce_sum(weights, axis=1, keepdims=True)


KERNELS: Mapping[str, Callable[[TensorFlow, Tensor, Size], Tensor]] = {
    LEGACY_BILINEAR: resize_bilinear,
    ANTIALIASED_CUBIC: resize_cubic,
}
