"""A retrained graph as an ONNX file, by tf2onnx, with its labels and normalisation inside."""

import json

import numpy as np
from numpy.typing import NDArray

from retraining.export.converter import Converter
from retraining.export.pixels_graph import OUTPUT, Feeds, Source
from retraining.graphs.read import to_tensorflow

OPSET = 15  # the default of tf2onnx; every ONNX runtime since 2022 reads it


def save(source: Source, path: str) -> None:
    """Writes a Source to `path`.

    The input `images` (and `images_2` of a second network) is float32 [batch, height, width, 3] of
    `(pixel - mean) / std`, the output `probabilities` float32 [batch, k].
    """
    import tf2onnx

    names = {f"{image.node}:0": image.feed for image in source.inputs}
    output = f"{source.output}:0"
    model, _ = tf2onnx.convert.from_graph_def(
        to_tensorflow(source.graph_def),
        input_names=list(names),
        output_names=[output],
        opset=OPSET,
        tensors_to_rename={**names, output: OUTPUT},
    )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    for key, value in _properties(source).items():
        model.metadata_props.add(key=key, value=value)
    with open(path, "wb") as file:
        file.write(model.SerializeToString())


def _properties(source: Source) -> dict[str, str]:
    """Returns {name: text} with the facts that a program needs to use the file."""
    normalisation = {i.feed: i.preprocessing.describe() for i in source.inputs}
    return {
        "network": source.network,
        "labels": json.dumps(source.labels),
        "inputs": json.dumps(normalisation),
        "retraining": source.description().decode("ascii"),
    }


class OnnxModel:
    """An ONNX file that ONNX Runtime has loaded."""

    def __init__(self, path: str) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(self, feeds: Feeds) -> NDArray[np.float32]:
        """Returns float32 [n, k] for {name of an input: float32 [n, height, width, 3]}."""
        probabilities: NDArray[np.float32] = self._session.run([OUTPUT], feeds)[0]
        return probabilities


CONVERTER = Converter(
    kind="onnx",
    name="onnx",
    option="onnx_file",
    help="also write an ONNX file; needs requirements-onnx.txt",
    save=save,
    load=OnnxModel,
    packages=("tf2onnx", "onnx", "onnxruntime"),
    requirements="requirements-onnx.txt",
)
