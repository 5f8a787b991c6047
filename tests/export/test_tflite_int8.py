"""tflite_int8.py and bias_correction.py: files that compute with integers, and what fits them."""

import json
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from retraining.errors import RetrainingError
from retraining.export import bias_correction
from retraining.export.pixels_graph import Source
from retraining.export.registry import CONVERTERS
from retraining.export.tflite_int8 import fits_one_scale, raw_pixels
from retraining.graphs import description
from retraining.graphs.nodes import constant, nodes_by_name
from retraining.graphs.preprocessing import Preprocessing
from retraining.graphs.session import open_session
from tests import tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
SIZE = 16
RNG = np.random.default_rng(1)
GREY = RNG.uniform(90, 160, (6, SIZE, SIZE, 3))  # without black and white


def network(mean, std):
    """A Source: convolution, depthwise convolution, 1x1 convolution, mean, softmax of 3 classes."""
    b = tiny.GraphBuilder(producer=1087)
    b.add("input", "Placeholder", dtype=tf.float32, shape=(-1, SIZE, SIZE, 3))
    shapes = {"Conv2D": (3, 3, 3, 8), "DepthwiseConv2dNative": (3, 3, 8, 1), "last": (1, 1, 8, 3)}
    name = "input"
    for number, (op, shape) in enumerate(shapes.items()):
        b.const(f"weights{number}", RNG.normal(size=shape).astype("f4"))
        b.const(
            f"bias{number}", RNG.normal(size=shape[2] if number == 1 else shape[3]).astype("f4")
        )
        op = "Conv2D" if op == "last" else op
        b.float_op(
            f"conv{number}", op, name, f"weights{number}", strides=[1, 1, 1, 1], padding="SAME"
        )
        b.float_op(f"sum{number}", "BiasAdd", f"conv{number}", f"bias{number}")
        name = b.float_op(f"relu{number}", "Relu", f"sum{number}")
    b.const("axes", np.array([1, 2], np.int32))
    b.float_op("mean", "Mean", "sum2", "axes", Tidx=tf.int32, keep_dims=False)
    b.float_op("output", "Softmax", "mean")
    about = {"labels": ["a", "b", "c"], "input": "input", "output": "output"}
    about |= {"size": [SIZE, SIZE], "mean": mean, "std": std, "network": "none"}
    b.const(description.METADATA, json.dumps(about).encode())
    return Source.of(b.graph_def)


def feeds_of(source, pixels):
    """What a caller of other formats feeds, a photo at a time."""
    record = source.inputs[0].preprocessing
    for image in pixels:
        yield {"images": ((image[None] - record.offset) * record.factor).astype("f4")}


def answers(source, pixels):
    """The float graph's."""
    with open_session(source.graph_def, source.output) as session:
        feeds = np.concatenate([feed["images"] for feed in feeds_of(source, pixels)])
        return session.run(f"{source.output}:0", {f"{source.inputs[0].node}:0": feeds})


def written(source, folder, pixels=GREY):
    """A file that these photos calibrate: its path, interpreter, tensors of input and output."""
    path = str(folder / "m.tflite")
    CONVERTERS["tflite_full_int8"].calibrate(source, path, lambda: feeds_of(source, pixels))
    interpreter = tf.lite.Interpreter(path)
    interpreter.allocate_tensors()
    (image,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()
    return SimpleNamespace(path=path, interpreter=interpreter, image=image, output=output)


ONE_SCALE, INSIDE = (127.0, 128.0), ([120.0, 110.0, 100.0], [60.0, 58.0, 56.0])


@pytest.fixture(scope="module", params=[ONE_SCALE, INSIDE], ids=["one scale", "inside"])
def made(request, tmp_path_factory):
    source = network(*request.param)
    return source, written(source, tmp_path_factory.mktemp("int8"))


def test_it_takes_raw_pixels_and_gives_steps_of_a_probability(made):
    """The range of the input is that of all pixels, although the photos have few of them."""
    source, file = made
    (scale, zero_point) = file.image["quantization"]
    one_scale = fits_one_scale(source.inputs[0].preprocessing)
    assert file.image["dtype"] == file.output["dtype"] == np.uint8
    assert (1 / scale, zero_point) == (pytest.approx(128), 127) if one_scale else (1, 0)
    pixels = np.rint(GREY).astype(np.uint8)
    for image, expected in zip(pixels, answers(source, pixels), strict=True):
        file.interpreter.set_tensor(file.image["index"], image[None])
        file.interpreter.invoke()
        steps = file.interpreter.get_tensor(file.output["index"])[0]
        scale, zero_point = file.output["quantization"]
        np.testing.assert_allclose(scale * (steps - float(zero_point)), expected, atol=0.03)


def test_it_computes_with_integers_alone_and_a_scale_for_each_channel(made):
    _, file = made
    tensors = file.interpreter.get_tensor_details()
    assert {t["dtype"] for t in tensors} <= {np.int8, np.uint8, np.int32}
    scales = {len(t["quantization_parameters"]["scales"]) for t in tensors if len(t["shape"]) == 4}
    assert {1, 8, 3} <= scales


def test_it_describes_its_input(made):
    source, file = made
    with zipfile.ZipFile(file.path) as archive:
        about = json.loads(archive.read("retraining.json"))["inputs"]["images"]
    record = source.inputs[0].preprocessing
    assert about["takes"] == "uint8 pixels"
    assert about["size"] == [SIZE, SIZE]
    assert Preprocessing.of(about) == record


def test_its_metadata_normalises_as_its_tensor_does(made):
    """As in "(pixel - 127) / 128", the words beside the numbers of NormalizationOptions."""
    source, file = made
    one_scale = fits_one_scale(source.inputs[0].preprocessing)
    with open(file.path, "rb") as content:
        words = b"(pixel - 127) / 128" if one_scale else b"(pixel - 0) / 1"
        assert words in content.read()


def test_the_loaded_model_feeds_raw_pixels(made):
    source, file = made
    (feeds,) = ({"images": np.concatenate([f["images"] for f in feeds_of(source, GREY)])},)
    model = CONVERTERS["tflite_full_int8"].load(file.path)
    np.testing.assert_allclose(model.run(feeds), answers(source, GREY), atol=0.03)


def test_raw_pixels_are_rounded_and_stay_in_their_range():
    record = Preprocessing((1, 1), 127.5, 127.5)
    pixels = np.arange(256, dtype="f4").reshape(1, 16, 16, 1).repeat(3, -1)
    fed = (pixels - record.offset) * record.factor
    np.testing.assert_array_equal(raw_pixels(fed, record), pixels)
    np.testing.assert_array_equal(raw_pixels(np.float32([-1.5, 1.5]), record), [0, 255])
    fed = (np.float32([10.4, 10.6]) - record.offset) * record.factor
    np.testing.assert_array_equal(raw_pixels(fed, record), [10, 11])


@pytest.mark.parametrize(
    ("mean", "std", "fits"),
    [
        (0, 1, True),
        (128, 128, True),
        (-3, 128, False),
        ((1, 2, 3), 1, False),
        (1, (1, 2, 3), False),
    ],
)
def test_a_scale_and_a_zero_point_fit_one_mean_among_the_pixels(mean, std, fits):
    assert fits_one_scale(Preprocessing((1, 1), mean, std)) == fits


# -- bias correction ----------------------------------------------------------------------------


def test_corrected_biases_keep_the_mean_output_of_rounded_weights(monkeypatch):
    monkeypatch.setattr(bias_correction, "STEPS", 3)  # so coarse that it shows
    source = network(*ONE_SCALE)
    corrected = bias_correction.correct_biases(source, feeds_of(source, GREY))
    before = layer_outputs(source)
    without, with_it = (layer_outputs(with_rounded_weights(s)) for s in (source, corrected))
    for name in ("sum0", "sum1"):
        lost, left = (
            np.abs((after[name] - before[name]).mean(axis=(0, 1, 2))).max()
            for after in (without, with_it)
        )
        assert left < lost / 2
    np.testing.assert_array_equal(layer_outputs(source)["sum0"], before["sum0"])  # source stays


def layer_outputs(source):
    feeds = np.concatenate([feed["images"] for feed in feeds_of(source, GREY)])
    with open_session(source.graph_def, source.output) as session:
        names = ("sum0", "sum1")
        values = session.run([f"{n}:0" for n in names], {"input:0": feeds})
        return dict(zip(names, values, strict=True))


def with_rounded_weights(source):
    graph_def = type(source.graph_def)()
    graph_def.CopyFrom(source.graph_def)
    nodes = nodes_by_name(graph_def)
    for layer in bias_correction.find_layers(graph_def):
        weights = constant(nodes, layer.weights)
        bias_correction.set_constant(
            nodes[layer.weights], bias_correction.rounded(weights, "Depthwise" in layer.op)
        )
    return replace(source, graph_def=graph_def)


def test_each_output_has_a_scale_of_its_own():
    weights = np.float32([[[[127.0, 0.4], [12.4, 12.7]]]])  # one place, two inputs, two outputs
    steps = np.float32([[[[127.0, 0.4], [12.0, 12.7]]]])
    np.testing.assert_allclose(bias_correction.rounded(weights, depthwise=False), steps, atol=1e-6)
    weights = np.float32([[[[127.0], [1.27]], [[12.4], [0.404]]]])  # two places, two channels
    steps = np.float32([[[[127.0], [1.27]], [[12.0], [0.4]]]])
    np.testing.assert_allclose(bias_correction.rounded(weights, depthwise=True), steps, atol=1e-6)


def test_a_channel_of_zeros_stays():
    weights = np.zeros((1, 1, 2, 2), "f4")
    np.testing.assert_array_equal(bias_correction.rounded(weights, depthwise=False), weights)


def test_without_photos_nothing_is_corrected():
    with pytest.raises(RetrainingError, match="none of the training photos can be read"):
        bias_correction.correct_biases(network(*ONE_SCALE), [])
