"""The graph of a Source as a function of TensorFlow 2, for SavedModels and LiteRT's converter."""

from collections.abc import Callable
from typing import Any

from retraining.export.pixels_graph import Source
from retraining.graphs.messages import GraphDef
from retraining.graphs.read import to_tensorflow
from retraining.graphs.session import is_kernel
from retraining.graphs.tensorflow import Tensor, TensorFlow
from retraining.graphs.tensors import to_array


def network_function(tf: TensorFlow, source: Source) -> tuple[Callable[..., Tensor], list[Any]]:
    """Returns a function from the pixels of each input to float32 [n, k], and its tf.Variables.

    The Variables hold the kernels. As constants, they would be in memory once more for each
    function that calls this one, and several times while a SavedModel is written or converted. They
    live as long as the caller keeps them.
    """
    rest = GraphDef(versions=source.graph_def.versions, library=source.graph_def.library)
    kernels = {}
    for node in source.graph_def.node:
        if is_kernel(node):
            value = to_array(node.attr["value"].tensor)
            kernels[f"{node.name}:0"] = tf.Variable(value, trainable=False, name=node.name)
        else:
            rest.node.append(node)

    def network(*pixels: Tensor) -> Tensor:
        names = [f"{image.node}:0" for image in source.inputs]
        inputs = dict(zip(names, pixels, strict=True))
        inputs |= {name: tf.convert_to_tensor(kernel) for name, kernel in kernels.items()}
        output = [f"{source.output}:0"]
        return tf.graph_util.import_graph_def(to_tensorflow(rest), inputs, output, name="")[0]

    return network, list(kernels.values())
