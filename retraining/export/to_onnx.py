"""A retrained graph as an ONNX file, by tf2onnx, with its labels and normalisation inside."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retraining.export.converter import Converter
from retraining.export.image_input import IMAGE_NODE, image_graph
from retraining.export.pixels_graph import Feeds, Source
from retraining.graphs.description import IMAGE, ONNX_PROPERTY, OUTPUT, PIXELS, TAKES
from retraining.graphs.read import to_tensorflow
from retraining.graphs.tensorflow import import_whole_tensorflow

OPSET = 15  # the default of tf2onnx; every ONNX runtime since 2022 reads it


def save(source: Source, path: str) -> None:
    """Writes a Source to `path`.

    The input `images` (and `images_2` of a second network) is float32 [batch, height, width, 3] of
    `(pixel - mean) / std`, the output `probabilities` float32 [batch, k]. Where the Source takes
    IMAGE, the input is `image`, uint8 [1, height, width, 3] of any size.
    """
    if source.takes == IMAGE:
        graph_def, names = image_graph(source), {f"{IMAGE_NODE}:0": IMAGE}
        sizes: list[str | int] = [1, "height", "width"]
    else:
        graph_def = to_tensorflow(source.graph_def)
        names, sizes = {f"{image.node}:0": image.feed for image in source.inputs}, ["batch"]
    model = _convert(graph_def, names, f"{source.output}:0")
    _name_sizes(model.graph.input, sizes)
    _name_sizes(model.graph.output, sizes[:1])
    for key, value in _properties(source).items():
        model.metadata_props.add(key=key, value=value)
    with open(path, "wb") as file:
        file.write(model.SerializeToString())


def _name_sizes(values: Iterable[Any], sizes: Sequence[str | int]) -> None:
    """Names or sets the first sizes of the shape of each of an ONNX graph's inputs or outputs."""
    for value in values:
        for dimension, size in zip(value.type.tensor_type.shape.dim, sizes, strict=False):
            if isinstance(size, str):
                dimension.dim_param = size
            else:
                dimension.dim_value = size


def _convert(graph_def: Any, names: Mapping[str, str], output: str) -> Any:
    """Returns the onnx.ModelProto that tf2onnx makes of TensorFlow's GraphDef, which is used up.

    `names` has the name of each input in the file, `output` is the tensor to compute.

    Takes the steps of `tf2onnx.convert.from_graph_def` one by one, since that function copies the
    weights so often that Inception-v3 takes 4 GB: TensorFlow imports and optimizes them although
    they are folded already, and each optimizer of tf2onnx works on a copy.
    """
    tf = import_whole_tensorflow()
    from tf2onnx.tf_utils import compress_graph_def
    from tf2onnx.tfonnx import process_tf_graph

    weights = compress_graph_def(graph_def)  # takes them out of the graph
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        converted = process_tf_graph(
            graph,
            input_names=list(names),
            output_names=[output],
            opset=OPSET,
            const_node_values=weights,
            tensors_to_rename={**names, output: OUTPUT},
        )
    return _optimized(converted).make_model("image classifier")


def _optimized(graph: Any) -> Any:
    """Returns a graph of tf2onnx after those of its optimizers that find something here.

    The others are for loops, quantised graphs, Einsum and resizing to the same size. Each runs
    once, since its run takes memory as large as the weights until the end. The second round, which
    tf2onnx has, changes nothing in the networks known here.
    """
    from tf2onnx import optimizer

    for optimize in (
        optimizer.TransposeOptimizer,
        optimizer.ConstFoldOptimizer,
        optimizer.MergeDuplicatedNodesOptimizer,
        optimizer.ReshapeOptimizer,
        optimizer.GlobalPoolOptimizer,
        optimizer.IdentityOptimizer,
        optimizer.BackToBackOptimizer,
    ):
        graph = optimize().optimize(graph, iteration=0)
    return graph


def _properties(source: Source) -> dict[str, str]:
    """Returns {name: text} with the facts that a program needs to use the file."""
    properties = {
        "network": source.network,
        "labels": json.dumps(source.labels),
        ONNX_PROPERTY: source.description().decode("ascii"),
    }
    if source.takes == PIXELS:  # how to normalise them, for programs that do not read the rest
        normalisation = {i.feed: i.preprocessing.describe() for i in source.inputs}
        properties["inputs"] = json.dumps(normalisation)
    return properties


class OnnxModel:
    """An ONNX file that ONNX Runtime has loaded."""

    def __init__(self, path: str) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(self, feeds: Feeds) -> NDArray[np.float32]:
        """Returns float32 [n, k] for {name of an input: images}."""
        probabilities: NDArray[np.float32] = self._session.run([OUTPUT], feeds)[0]
        return probabilities


CONVERTER = Converter(
    kind="onnx",
    name="onnx",
    option="onnx_file",
    help="also write an ONNX file; needs requirements-onnx.txt",
    save=save,
    load=OnnxModel,
    takes=TAKES,
    packages=("tf2onnx", "onnx", "onnxruntime"),
    requirements="requirements-onnx.txt",
)
