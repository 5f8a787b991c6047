"""A retrained graph as a TensorFlow Lite (LiteRT) file, with labels and normalisation inside."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from retraining.export.bias_correction import correct_biases
from retraining.export.converter import Calibration, Converter
from retraining.export.image_input import SHAPE, preprocess
from retraining.export.network_function import network_function
from retraining.export.pixels_graph import Source
from retraining.export.tflite_int8 import calibration_feeds, integer_source, quantize
from retraining.export.tflite_metadata import add_metadata
from retraining.export.tflite_model import Int8Model, TFLiteModel
from retraining.graphs.description import IMAGE, OUTPUT, RAW_PIXELS, TAKES
from retraining.graphs.tensorflow import Tensor, import_whole_tensorflow


def save(source: Source, path: str) -> None:
    """Writes a Source to `path`, in float32.

    The input `images` is float32 [1, height, width, 3] of `(pixel - mean) / std`, or of another
    batch size after `resize_tensor_input`; the output `probabilities` is float32 [1, k]. Where the
    Source takes IMAGE, the input is `image`, uint8 [1, height, width, 3] of the network's size, or
    of any other after `resize_tensor_input`.
    """
    _convert(source, path)


def save_dynamic(source: Source, path: str) -> None:
    """Writes a Source with int8 weights, a quarter of the size (dynamic-range quantization)."""

    def set_up(converter: Any) -> None:
        converter.optimizations = [import_whole_tensorflow().lite.Optimize.DEFAULT]

    _convert(source, path, set_up)


def save_integer(source: Source, path: str, calibration: Calibration) -> None:
    """Writes a Source that computes with integers alone; see `tflite_int8`.

    The input `images` is uint8 [1, height, width, 3] of pixels, the output `probabilities` uint8
    [1, k], which the scale of its tensor turns into probabilities.
    """
    source = integer_source(source)
    feeds = partial(calibration_feeds, source, calibration)
    source = correct_biases(source, feeds())
    _convert(source, path, lambda converter: quantize(converter, feeds))


def _convert(source: Source, path: str, set_up: Callable[[Any], None] | None = None) -> None:
    """Writes a Source to `path`; `set_up` may change the TFLiteConverter."""
    tf = import_whole_tensorflow()
    module = tf.Module()
    network, module.kernels = network_function(tf, source)

    def named(*pixels: Tensor) -> dict[str, Tensor]:
        return {OUTPUT: network(*pixels)}

    def named_of_image(image: Tensor) -> dict[str, Tensor]:
        return named(*preprocess(tf, image, source.inputs))

    of_image = source.takes == IMAGE
    specs = [tf.TensorSpec([1, *i.size, 3], tf.float32, i.feed) for i in source.inputs]
    if of_image:
        specs = [tf.TensorSpec(SHAPE, tf.uint8, IMAGE)]
    function = tf.function(named_of_image if of_image else named, autograph=False)
    function = function.get_concrete_function(*specs)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], module)
    if set_up:
        set_up(converter)
    with open(path, "wb") as file:
        file.write(add_metadata(converter.convert(), source))


FLOAT = Converter(
    kind="tflite",
    name="tflite",
    option="tflite_file",
    help="also write a TensorFlow Lite (LiteRT) file",
    save=save,
    load=TFLiteModel,
    takes=TAKES,
)
INT8_WEIGHTS = replace(
    FLOAT,
    kind="tflite_int8",
    save=save_dynamic,
    quantized=True,
    least_same=0.5,  # a run warns of far more
    most_apart=1.0,
    test_photos=200,
)
FULL_INT8 = replace(
    INT8_WEIGHTS,
    kind="tflite_full_int8",
    calibrate=save_integer,
    load=Int8Model,
    takes=(RAW_PIXELS,),
)
CONVERTER = replace(
    FLOAT,
    variants={"dynamic": INT8_WEIGHTS, "int8": FULL_INT8},
    variant_option="tflite_quantize",
    variant_help="write the TensorFlow Lite file in a quarter of the size. dynamic: int8 weights, "
    "float in and out; int8: calibrated on training photos, computes with integers alone, uint8 in "
    "and out",
)
