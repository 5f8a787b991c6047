"""A retrained graph as an ONNX file, by tf2onnx, with its labels and normalisation inside."""

import importlib.util
import json

from retraining.errors import RetrainingError

OPSET = 15  # tf2onnx's own choice; read by every ONNX runtime since 2022
PACKAGES = ("tf2onnx", "onnx", "onnxruntime")
OUTPUT = "probabilities"


class MissingPackageError(RetrainingError):
    """What --onnx_file needs is not installed; says how to get it."""


def check_installed():
    """Whether what converts to ONNX and runs it is installed; nothing is imported.

    Raises:
        MissingPackageError: it is not.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackageError(
            f"--onnx_file needs {', '.join(missing)}: pip install -r requirements-onnx.txt"
        )


def save(source, path):
    """Writes a source.Source to `path`.

    The input `images` (and `images_2` of a second network) is float32 [batch, height, width, 3] of
    `(pixel - mean) / std`, the output `probabilities` float32 [batch, k].
    """
    import tf2onnx

    names = {f"{each.node}:0": each.feed for each in source.inputs}
    output = f"{source.output}:0"
    model, _ = tf2onnx.convert.from_graph_def(
        source.graph_def,
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


def _properties(source):
    """{name: text} of what a program must know to use the file."""
    normalisation = {
        each.feed: {"size": each.size, "mean": each.mean, "std": each.std} for each in source.inputs
    }
    return {
        "network": source.network,
        "labels": json.dumps(source.labels),
        "inputs": json.dumps(normalisation),
    }


class OnnxModel:
    """An ONNX file as read by ONNX Runtime."""

    def __init__(self, path):
        import onnxruntime

        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(self, feeds):
        """float32 [n, k] for {name of an input: float32 [n, height, width, 3]}."""
        return self._session.run([OUTPUT], feeds)[0]
