"""resolve.py: which node of a graph is fed, with what; each graph against its network run by hand.

All graphs end in the same tiny network. The expected answer comes from that network alone:
TensorFlow decodes and resizes the photo, NumPy scales its pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.tools.strip_unused_lib import strip_unused

from retraining.graphs.description import METADATA
from retraining.graphs.nodes import GraphError
from retraining.graphs.read import read_graph, to_tensorflow
from retraining.labelling.classifier import load_classifier
from retraining.labelling.resolve import Overrides
from tests import tiny

tf1 = tf.compat.v1
SIZE, CLASSES = (12, 10), 4
LABELS = ("a", "b", "c", "d")
MEAN, STD = 127.5, 127.5
MEANS, STDS = np.float32([123, 117, 104]), np.float32([58, 57, 59])
UNIT = "assuming `Overrides.input_mean` 0 `Overrides.input_std` 255"
RAW = "assuming `Overrides.input_mean` 0 `Overrides.input_std` 1"
SIGNED = "assuming `Overrides.input_mean` 127.5 `Overrides.input_std` 127.5"
SIZED = {"input_height": SIZE[0], "input_width": SIZE[1]}

# -- the network, and what it is given by hand -----------------------------------------------


def features(x):
    kernel = np.random.default_rng(3).normal(0, 0.6, (3, 3, 3, 6)).astype(np.float32)
    return tf.nn.relu(tf.nn.conv2d(x, kernel, 2, "SAME"))


def vectors(x):
    return tf.reduce_mean(features(x), [1, 2])


def head(x):
    weights = np.random.default_rng(4).normal(0, 2, (6, CLASSES)).astype(np.float32)
    return tf.nn.softmax(tf.matmul(x, weights), name="final_result")


def network(x):
    """float32 [n, 4] of float32 [n, height, width, 3]."""
    return head(vectors(x))


def usual(pixels):
    return (pixels - MEAN) / STD


def per_channel(pixels):
    return (pixels - MEANS) / STDS


def unit(pixels):
    return pixels / 255


def centred(pixels):
    return (pixels - MEAN) / 100


def rounded(pixels):
    return usual(np.rint(pixels))


def shrunk_pixels(path, **options):
    """float32 [1, *SIZE, 3] of 0..255, by TensorFlow's ops."""
    with tf.Graph().as_default(), tf1.Session() as session:
        return session.run(shrunk(batch_of(path.read_bytes()), **options))


def by_hand(paths, wants, how):
    """float32 [n, 4]: the network alone, given pixels scaled by `wants`."""
    pixels = np.concatenate([shrunk_pixels(path, **how) for path in paths])
    with tf.Graph().as_default(), tf1.Session() as session:
        return session.run(network(tf.constant(np.float32(wants(pixels)))))


# -- front ends ------------------------------------------------------------------------------


def placeholder(name="input", shape=(None, *SIZE, 3), dtype=tf.float32):
    return tf1.placeholder(dtype, shape, name=name)


def contents():
    return placeholder("DecodeJpeg/contents", (), tf.string)


def batch_of(content, kind=tf.float32):
    pixels = tf.cast(tf1.image.decode_jpeg(content, channels=3, name="DecodeJpeg"), kind, "Cast")
    return tf.expand_dims(pixels, 0)


def shrunk(pixels, **options):
    return tf1.image.resize_bilinear(pixels, SIZE, name="ResizeBilinear", **options)


def from_bytes(**options):
    return shrunk(batch_of(contents()), **options)


def scaled(x, name="Mul"):
    """As the 2015 graph does."""
    return tf.multiply(tf.subtract(x, MEAN, name="Sub"), 1 / STD, name=name)


def multiplied(x, name="normalized"):
    return tf.subtract(tf.multiply(x, 1 / STD, name="scaled"), 1.0, name=name)


def hub(x):
    """As the modules of TF Hub begin: pixels 0..1 become -1..1."""
    x = tf.multiply(x, 2.0, name="module_apply_default/hub_input/Mul")
    return tf.subtract(x, 1.0, name="module_apply_default/hub_input/Sub")


def by_channel(x):
    return tf.divide(tf.subtract(x, MEANS), STDS, name="Mul")


def of_integers():
    whole = tf.subtract(batch_of(contents(), tf.int32), 100, name="whole")
    return tf.multiply(shrunk(tf.cast(whole, tf.float32)) - 27.5, 1 / STD, name="Mul")


def of_signed(x):
    return tf.cast(tf.subtract(tf.cast(x, tf.int32), 100, name="signed"), tf.float32)


def by_variance():
    """As the layer Normalization of Keras does."""
    deviation = tf.maximum(tf.sqrt(tf.constant(STDS**2)), 1e-7)
    return (placeholder() - tf.reshape(tf.constant(MEANS), (1, 1, 1, 3))) / deviation


def of_rounded_integers():
    whole = tf.cast(tf.cast(from_bytes() + 0.5, tf.int32), tf.float32)
    return scaled(whole)


def sliced(*where, **options):
    pixels = tf1.image.decode_jpeg(contents(), channels=3, name="DecodeJpeg", **options)
    return scaled(shrunk(tf.cast(pixels, tf.float32)[(None, *where)]))


def cropped():
    return scaled(shrunk(batch_of(contents())[:, 5:, 5:]))


def late_product(x, name="Mul"):
    """The network's vectors are multiplied, and TensorFlow calls that `Mul`."""
    return head(tf.multiply(tf.multiply(vectors(x), 2.0, name=name), 0.5))


def fed_by_two():
    return network((placeholder("left") + placeholder("right")) / 2)


def fed_by_bytes_too():
    return network((placeholder() + scaled(from_bytes())) / 2)


def beside_mul():
    """As in our graphs of two networks, `Mul` is not all that the output needs."""
    x = from_bytes()
    return (scaled(x) + x / STD - 1) / 2


def quantised(x):
    low, high = tf.reduce_min(x), tf.reduce_max(x)
    return tf.quantization.dequantize(*tf.quantization.quantize(x, low, high, tf.quint8))


def with_bottlenecks(x):
    name = "input_1/BottleneckInputPlaceholder"
    return head(tf1.placeholder_with_default(vectors(x), (None, 6), name))


def with_default(x, name="input"):
    return tf1.placeholder_with_default(x, (None, *SIZE, 3), name)


def with_training_switch():
    rate = tf1.placeholder_with_default(1.0, (), "keep_prob")
    return head(vectors(placeholder("images")) * rate)


def of_mobilenet(x):
    """With the names of its nodes, by which it is recognised."""
    return network(tf.identity(x, name="MobilenetV1/MobilenetV1/input"))


def graph_of(front, strip=None):
    """The GraphDef of a front end and the network, stripped at a node as TensorFlow's tool does."""
    with tf.Graph().as_default() as graph:
        x = front()
        if x.op.type != "Softmax":
            network(x)
        graph_def = tf1.graph_util.extract_sub_graph(graph.as_graph_def(), ["final_result"])
    if strip:
        kind = tf.uint8 if strip == "DecodeJpeg" else tf.float32
        graph_def = strip_unused(graph_def, [strip], ["final_result"], kind.as_datatype_enum)
    return graph_def


# -- the matrix ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """A graph; what the user says; the pixels that its network wants; what the tool says."""

    front: Callable[[], Any]
    strip: str | None = None
    flags: dict[str, Any] = field(default_factory=dict)
    wants: Callable[[Any], Any] = usual
    how: dict[str, bool] = field(default_factory=dict)  # options of the resizing
    said: str | None = None
    within: float = 2e-5


def named(layer, **flags):
    return {"input_layer": layer, **flags}


def stripped(at, said=RAW, **flags):
    return Member(lambda: scaled(from_bytes()), at, flags, said=said)


SHAPELESS, ANY_SIZES = None, (None, None, None, 3)
HALF = {"half_pixel_centers": True}
MATRIX = {
    # Bytes in, the front end in the graph.
    "2015": Member(lambda: scaled(from_bytes())),
    "2015, fed with bytes": Member(
        lambda: scaled(from_bytes()), flags=named("DecodeJpeg/contents:0")
    ),
    "2015, fed at Sub": Member(lambda: scaled(from_bytes()), flags=named("Sub")),
    "2015, fed at ResizeBilinear": Member(
        lambda: scaled(from_bytes()), flags=named("ResizeBilinear:0")
    ),
    "2015, fed at Cast": Member(lambda: scaled(from_bytes()), flags=named("Cast")),
    "2015, fed at DecodeJpeg": Member(lambda: scaled(from_bytes()), flags=named("DecodeJpeg")),
    "product first": Member(lambda: multiplied(from_bytes())),
    "product first, fed at its end": Member(
        lambda: multiplied(from_bytes()), flags=named("normalized")
    ),
    "product first, fed in the middle": Member(
        lambda: multiplied(from_bytes()), flags=named("scaled")
    ),
    "product first, called Mul": Member(lambda: multiplied(from_bytes(), "Mul")),
    "quotient": Member(lambda: tf.divide(from_bytes() - MEAN, STD, name="Mul")),
    "AddV2": Member(lambda: tf.multiply(from_bytes() + -MEAN, 1 / STD, name="Mul")),
    "constants on the left": Member(lambda: tf.multiply(-1 / STD, MEAN - from_bytes(), "Mul")),
    "no product": Member(
        lambda: (from_bytes() - MEAN) / 100, flags=named("truediv"), wants=centred
    ),
    "no difference": Member(lambda: tf.multiply(from_bytes(), 1 / 255, name="Mul"), wants=unit),
    "twice": Member(lambda: tf.multiply(from_bytes() / 255, 2.0, name="Mul") - 1),
    "before the resizing": Member(lambda: tf.multiply(shrunk(batch_of(contents()) / 255), 2) - 1),
    "per channel": Member(lambda: by_channel(from_bytes()), wants=per_channel),
    "integers": Member(of_integers),
    "rounded integers": Member(of_rounded_integers, wants=lambda x: usual(np.floor(x + 0.5))),
    "half pixels": Member(lambda: scaled(from_bytes(**HALF)), how=HALF),
    "corners": Member(lambda: scaled(from_bytes(align_corners=True)), how={"align_corners": True}),
    "a way around Mul": Member(beside_mul),
    "a new axis": Member(lambda: sliced()),
    # Placeholders of images.
    "late Mul": Member(lambda: late_product(placeholder()), said=UNIT, wants=unit),
    "late Mul, told": Member(
        lambda: late_product(placeholder()), flags={"input_mean": MEAN, "input_std": STD}
    ),
    "raw, scaled by the graph": Member(lambda: scaled(placeholder()), said=RAW),
    "raw, product first": Member(lambda: multiplied(placeholder()), said=RAW),
    "raw, per channel": Member(lambda: by_channel(placeholder()), wants=per_channel, said=RAW),
    "raw, of any size": Member(lambda: scaled(shrunk(placeholder(shape=ANY_SIZES))), said=RAW),
    "raw, of any size, size told": Member(
        lambda: scaled(shrunk(placeholder(shape=ANY_SIZES))), flags=SIZED, said=RAW
    ),
    "raw, by half pixels": Member(
        lambda: scaled(shrunk(placeholder(shape=ANY_SIZES), **HALF)), how=HALF, said=RAW
    ),
    "any size, not resized": Member(
        lambda: placeholder(shape=ANY_SIZES), flags=SIZED, wants=unit, said=UNIT
    ),
    "one image": Member(
        lambda: scaled(shrunk(placeholder(shape=(None, None, 3))[None])),
        flags={"input_mean": 0, "input_std": 1},
    ),
    "no shape": Member(lambda: scaled(placeholder(shape=SHAPELESS)), flags=SIZED, said=RAW),
    "TF Hub": Member(lambda: hub(placeholder("Placeholder")), said=UNIT),
    "TF Hub, fed at its end": Member(
        lambda: hub(placeholder("Placeholder")),
        flags=named("module_apply_default/hub_input/Sub"),
        said=SIGNED,
    ),
    "Keras": Member(lambda: multiplied(placeholder("x"), "sequential/rescaling/add"), said=RAW),
    "a batch of one": Member(lambda: placeholder(shape=(1, *SIZE, 3)), wants=unit, said=UNIT),
    "MobileNet": Member(lambda: of_mobilenet(placeholder()), said=SIGNED),
    "MobileNet, 0..1": Member(
        lambda: of_mobilenet(multiplied(placeholder() * 255, "Mul")), said=UNIT
    ),
    "MobileNet, clipped": Member(
        lambda: of_mobilenet(multiplied(tf.clip_by_value(placeholder(), 0, 255))), said=RAW
    ),
    "MobileNet, per channel": Member(
        lambda: of_mobilenet(by_channel(placeholder())), wants=per_channel, said=RAW
    ),
    "MobileNet, by 128": Member(
        lambda: of_mobilenet((placeholder() - 128) / 128),
        wants=lambda x: (x - 128) / 128,
        said=RAW,
    ),
    "MobileNet, imported": Member(
        lambda: network(tf.identity(placeholder(), "import/MobilenetV1/MobilenetV1/input")),
        said=SIGNED,
    ),
    "raw, clipped": Member(lambda: multiplied(tf.clip_by_value(placeholder(), 0, 255)), said=RAW),
    "raw, padded": Member(
        lambda: multiplied(tf.pad(placeholder(), [[0, 0], [2, 2], [2, 2], [0, 0]], "REFLECT")),
        wants=lambda x: usual(np.pad(x, [(0, 0), (2, 2), (2, 2), (0, 0)], "reflect")),
        said=RAW,
    ),
    "raw, blue first": Member(
        lambda: by_channel(placeholder()[..., ::-1]),
        wants=lambda x: per_channel(x[..., ::-1]),
        said=RAW,
    ),
    "raw, negated": Member(lambda: (MEAN + tf.negative(placeholder())) / -STD, said=RAW),
    "raw, by a variance": Member(by_variance, wants=per_channel, said=RAW),
    "uint8": Member(lambda: scaled(tf.cast(placeholder(dtype=tf.uint8), "float")), wants=rounded),
    "uint8, of any size": Member(
        lambda: scaled(shrunk(placeholder("image_tensor", ANY_SIZES, tf.uint8)))
    ),
    "uint8, one image": Member(
        lambda: scaled(shrunk(tf.expand_dims(placeholder("x", (None, None, 3), tf.uint8), 0)))
    ),
    "float64": Member(lambda: scaled(tf.cast(placeholder(dtype=tf.float64), tf.float32)), said=RAW),
    "float16": Member(
        lambda: tf.cast(placeholder(dtype=tf.float16), tf.float32),
        wants=unit,
        said=UNIT,
        within=1e-3,
    ),
    "quantised": Member(lambda: quantised(placeholder()), wants=unit, said=UNIT, within=1e-2),
    "quantised, from bytes": Member(lambda: quantised(scaled(from_bytes())), within=1e-2),
    "int8": Member(
        lambda: tf.cast(placeholder(dtype=tf.int8), tf.float32) / STD,
        flags={"input_mean": 128, "input_std": 1},
        wants=lambda x: (np.rint(x) - 128) / STD,
    ),
    "quint8": Member(
        lambda: tf.quantization.dequantize(placeholder(dtype=tf.quint8), 0, 255) / 255,
        wants=lambda x: np.rint(x) / 255,
    ),
    "uint16": Member(
        lambda: tf.cast(placeholder(dtype=tf.uint16), tf.float32) / 65535,
        flags={"input_mean": 0, "input_std": 1 / 257},
        wants=unit,
    ),
    "integers below 0": Member(of_integers, flags=named("whole"), wants=usual),
    "integers below 0, of a fixed size": Member(
        lambda: multiplied(of_signed(placeholder(dtype=tf.uint8))),
        flags=named("signed"),
        wants=lambda x: usual(np.rint(x) - 100),
    ),
    "a batch of several": Member(lambda: placeholder(shape=(4, *SIZE, 3)), wants=unit, said=UNIT),
    "bytes in a vector": Member(
        lambda: scaled(shrunk(batch_of(tf.reshape(placeholder("files", (None,), tf.string), ())))),
        flags=named("files"),
    ),
    "bottlenecks": Member(lambda: with_bottlenecks(placeholder()), wants=unit, said=UNIT),
    "bottlenecks, from bytes": Member(lambda: with_bottlenecks(scaled(from_bytes()))),
    "a default from bytes": Member(lambda: network(with_default(scaled(from_bytes())))),
    "a default of zeros": Member(
        lambda: network(with_default(np.zeros((1, *SIZE, 3), np.float32))), wants=unit, said=UNIT
    ),
    "a default of uint8": Member(
        lambda: scaled(tf.cast(with_default(np.zeros((1, *SIZE, 3), np.uint8)), tf.float32)),
        wants=rounded,
    ),
    "a default from a placeholder": Member(
        lambda: network(with_default(multiplied(placeholder("raw")))), said=RAW
    ),
    "a switch beside the images": Member(with_training_switch, wants=unit, said=UNIT),
    # Stripped by TensorFlow's own tool, which forgets shapes.
    "stripped at Mul": Member(
        lambda: scaled(from_bytes()), "Mul", {"input_mean": MEAN, "input_std": STD, **SIZED}
    ),
    "stripped at Sub": Member(
        lambda: scaled(from_bytes()), "Sub", {"input_mean": MEAN, "input_std": 1, **SIZED}
    ),
    "stripped at ResizeBilinear": stripped("ResizeBilinear", **SIZED),
    "stripped at ExpandDims": stripped("ExpandDims"),
    "stripped at Cast": stripped("Cast"),
    "stripped at DecodeJpeg": stripped("DecodeJpeg", None),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three photos of different colours and sizes."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(1)
    for colour, size in (("red", (60, 44)), ("green", (31, 57)), ("blue", (90, 90))):
        tiny.photo(tiny.COLOURS[colour], rng, size).save(folder / f"{colour}.jpg", quality=95)
    return sorted(folder.iterdir())


def load(tmp_path, graph_def, labels=LABELS, **flags):
    path = tmp_path / "graph.pb"
    path.write_bytes(graph_def.SerializeToString())
    return load_classifier(path, labels, Overrides(**flags), "float32")


@pytest.mark.numbers
@pytest.mark.parametrize("member", MATRIX.values(), ids=MATRIX)
def test_a_graph_answers_as_its_network_does_by_hand(tmp_path, pictures, member):
    classifier = load(tmp_path, graph_of(member.front, member.strip), **member.flags)
    expected = by_hand(pictures, member.wants, member.how)
    assert np.ptp(expected, axis=0).max() > 0.05  # the photos are told apart
    answers = np.array([answer for _, answer, _ in classifier.predict(pictures)])
    np.testing.assert_allclose(answers, expected, atol=member.within)
    if member.said is None:
        assert classifier.notes == ()
    else:
        (note,) = classifier.notes
        assert note.endswith(member.said)


def normed_by_batch():
    x, one = placeholder(), np.ones(3, np.float32)
    return tf1.nn.fused_batch_norm(x, one, 0 * one, is_training=True)[0]


def standardised(x):
    return (x - tf.reduce_mean(x)) / tf.math.reduce_std(x)


def of_unit_length():
    found = vectors(placeholder(shape=(1, *SIZE, 3)))
    return head(found / tf.norm(found))


def against_the_batch():
    found = vectors(placeholder())
    return head(tf.matmul(tf.matmul(found, found, transpose_b=True), found))


MIXING = {
    "quantised": MATRIX["quantised"].front,
    "quantised, from bytes": MATRIX["quantised, from bytes"].front,
    "a batch norm that trains": normed_by_batch,
    "standardised": lambda: standardised(placeholder()),
    "standardised, a batch of one": lambda: standardised(placeholder(shape=(1, *SIZE, 3))),
    "vectors of length 1": of_unit_length,
    "a product of the batch": against_the_batch,
    "one row of all": lambda: head(
        tf.reshape(tf.nn.softmax(tf.reshape(vectors(placeholder()), [-1])), [-1, 6])
    ),
    "the batch last": lambda: head(
        tf.transpose(tf.nn.softmax(tf.transpose(vectors(placeholder()))))
    ),
}


@pytest.mark.numbers
@pytest.mark.parametrize("front", MIXING.values(), ids=MIXING)
def test_a_photos_answer_does_not_depend_on_other_photos(tmp_path, pictures, front):
    """Where the graph mixes the images of its batch."""
    classifier = load(tmp_path, graph_of(front))
    together = [answer for _, answer, _ in classifier.predict(pictures)]
    alone = [answer for path in pictures for _, answer, _ in classifier.predict([path])]
    # With oneDNN and AVX2, two runs on one photo have differed in the last bits.
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)


def flattened(x):
    x = vectors(x)[:, None, ..., ::2]
    return head(tf.reshape(tf.concat([x, x], -1), [tf.shape(x)[0], 6]))


@pytest.mark.parametrize(
    "front",
    [
        *(
            MATRIX[name].front
            for name in ("late Mul", "per channel", "TF Hub", "any size, not resized")
        ),
        lambda: of_mobilenet(placeholder(shape=(1, *SIZE, 3))),
        lambda: flattened(placeholder()),
        lambda: tf.tensordot(placeholder(shape=ANY_SIZES), np.eye(3, dtype=np.float32), 1),
    ],
)
def test_images_that_do_not_mix_share_a_batch(tmp_path, front):
    assert load(tmp_path, graph_of(front), **SIZED).model.single is None


@pytest.mark.numbers
def test_two_known_networks_share_batches(tmp_path, inception, shared):
    assert load(tmp_path, inception).model.single is None
    graph_def = read_graph(shared / "models/retrained_by_others/retrained_graph.pb")
    assert load(tmp_path, graph_def, tuple("abcdef")).model.single is None


BOTH = "several nodes of the graph take images: left, right; name one with `Overrides.input_layer`"
NO_INPUT = "cannot tell which node of the graph takes images; name it with `Overrides.input_layer`"
NO_SIZE = "the graph does not specify its image size; give `Overrides.input_height`"
OTHER_SIZE = "the graph takes images of 12 x 10 pixels; drop `Overrides.input_height`"


def with_rate():
    return head(vectors(placeholder("images")) * tf1.placeholder(tf.float32, (), "keep_prob"))


def split():
    return tf.split(placeholder(shape=(None, *SIZE, 6)), 2, axis=3, name="parts")


def of_vectors(shape=(None, 6)):
    return head(placeholder("Placeholder", shape))


@pytest.mark.parametrize(
    ("front", "flags", "error"),
    [
        (fed_by_two, {}, BOTH),
        (fed_by_bytes_too, {}, BOTH.replace("left, right", "input, DecodeJpeg/contents")),
        (of_vectors, {}, NO_INPUT),
        (lambda: of_vectors(SHAPELESS), {}, NO_INPUT),
        (lambda: placeholder(shape=ANY_SIZES), {}, NO_SIZE),
        (lambda: placeholder(shape=SHAPELESS), {}, NO_SIZE),
        (placeholder, {"input_height": 224, "input_width": 224}, OTHER_SIZE),
        (placeholder, named("nothing"), "no node 'nothing'; see `Overrides.input_layer`"),
        (fed_by_two, named("left"), "the graph needs a value for 'right'; freeze"),
        (with_rate, {}, "at 'images', the graph needs a value for 'keep_prob'; freeze it"),
        (lambda: split()[1], named("parts:1"), "not 'parts:1'; name another node with `Ov"),
        (placeholder, {"output_layer": "final_result:1"}, "not 'final_result:1'; name another"),
        (
            lambda: tf.cast(placeholder(dtype=tf.uint8), tf.float32),
            {"input_mean": 127.5},
            "-128 to 128 with `Overrides.input_mean` 127.5 and `Overrides.input_std` 1",
        ),
        (
            lambda: tf.cast(placeholder(dtype=tf.int8), tf.float32),
            {},
            "the input takes int8, -128 to 127, but pixels would become 0 to 255 with",
        ),
        (placeholder, {"output_layer": "x"}, "no node 'x'; see `Overrides.output_layer`"),
        (lambda: placeholder(shape=(None, 5000, 5000, 3)), {}, r"images of (5000, 5000) pixels"),
    ],
)
def test_what_cannot_be_told_is_asked_for(tmp_path, front, flags, error):
    with pytest.raises(GraphError) as caught:
        load(tmp_path, graph_of(front), **flags)
    assert error in str(caught.value)


def of_a_feature_map():
    return tf.multiply(features(from_bytes())[..., :3] - 5, 0.5, name="Mul")


def of_halved_integers():
    whole = batch_of(contents(), tf.int32)
    return scaled(shrunk(tf.cast(tf.raw_ops.Div(x=whole, y=2), tf.float32)))


def of_wrapping_integers():
    return scaled(shrunk(tf.cast(batch_of(contents(), tf.uint8) + 100, tf.float32)))


def of_blue_first():
    return sliced(..., slice(None, None, -1))


def of_mirrored():
    return sliced(slice(None), slice(None, None, -1))


def of_every_third():
    return sliced(slice(None, None, 3), slice(None, None, 3))


def of_another_decoding():
    return sliced(dct_method="INTEGER_FAST")


def of_coarse_colours():
    return sliced(fancy_upscaling=False)


@pytest.mark.parametrize(
    "front",
    [
        *(of_a_feature_map, of_halved_integers, of_wrapping_integers, cropped, of_blue_first),
        *(of_mirrored, of_every_third, of_another_decoding, of_coarse_colours),
    ],
)
def test_what_does_not_start_at_pixels_is_not_believed(tmp_path, pictures, front):
    """The graph gets bytes, and gives what it gives when TensorFlow runs all of it."""
    graph_def = graph_of(front)
    classifier = load(tmp_path, graph_def)
    assert classifier.model.preprocessing is None
    with tf.Graph().as_default(), tf1.Session() as session:
        tf.import_graph_def(graph_def, name="")
        for path, answer, _ in classifier.predict(pictures):
            feed = {"DecodeJpeg/contents:0": path.read_bytes()}
            (expected,) = session.run("final_result:0", feed)
            np.testing.assert_allclose(answer, expected, atol=1e-6)
    (note,) = load(tmp_path, graph_def, **named("Mul", **SIZED)).notes
    assert "does not specify how pixels are scaled; assuming" in note


def test_another_size_is_refused_where_the_network_does_not_take_it(tmp_path):
    """The front end resizes to 12 x 10, and the shapes beyond it leave no other size."""

    def front():
        x = tf.reshape(scaled(from_bytes()), (-1, 3 * SIZE[0] * SIZE[1]))
        return tf.nn.softmax(
            tf.matmul(x, np.ones((x.shape[1], 4), np.float32)), name="final_result"
        )

    graph_def = graph_of(front)
    with pytest.raises(GraphError, match=OTHER_SIZE):
        load(tmp_path, graph_def, input_height=20)
    averaged = graph_of(lambda: scaled(from_bytes()))
    assert load(tmp_path, averaged, input_height=20).model.preprocessing.size == (20, 10)


@pytest.mark.parametrize("resource", [False, True])
@pytest.mark.parametrize("allowed", [False, True])
def test_variables_without_values_are_called_unfrozen(tmp_path, resource, allowed):
    def front():
        kernel = tf1.get_variable("kernel", (1, 1, 3, 3), use_resource=resource)
        return tf.nn.conv2d(placeholder(), kernel, 1, "SAME")

    with pytest.raises(GraphError, match="is not frozen: it lacks the values") as caught:
        load(tmp_path, graph_of(front), allow_unsafe_ops=allowed)
    assert "'kernel'; freeze it" in str(caught.value)
    assert "allow_unsafe_ops" not in str(caught.value)


def test_a_graph_of_captured_variables_is_called_unfrozen(tmp_path):
    """As a concrete function of TensorFlow 2 gives it."""

    def front():
        handle = tf1.placeholder(tf.resource, (), "captured")
        kernel = tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.float32)
        return tf.nn.conv2d(placeholder(), tf.ensure_shape(kernel, (1, 1, 3, 3)), 1, "SAME")

    with pytest.raises(GraphError, match=r"is not frozen: .* 'captured'; freeze it"):
        load(tmp_path, graph_of(front))


# -- our own graphs, and real ones -----------------------------------------------------------


def without_description(graph_def):
    """A copy as TensorFlow's tools leave it: with the nodes alone that the output needs."""
    return tf1.graph_util.extract_sub_graph(graph_def, ["final_result"])


@pytest.fixture(scope="module")
def own(finished):
    return to_tensorflow(read_graph(finished.graph))


def labels_of(tmp_path, graph_def, photos, **flags):
    """(node fed, notes, raw answers) of a graph of three classes."""
    classifier = load(tmp_path, graph_def, ("blue", "green", "red"), **flags)
    classifier = replace(classifier, temperature=1.0)
    answers = [answer for _, answer, _ in classifier.predict(photos)]
    return classifier.model.input, classifier.notes, np.array(answers)


@pytest.mark.numbers
@pytest.mark.parametrize("strip", [None, "Mul", "Sub", "ResizeBilinear", "Cast"])
def test_our_own_graph_answers_alike_when_it_is_stripped(tmp_path, own, finished, strip):
    photos = [f"{finished.photos}/{label}/photo_01.jpg" for label in ("red", "green", "blue")]
    _, notes, expected = labels_of(tmp_path, own, photos)
    assert notes == ()
    graph_def, flags, said = without_description(own), {}, {"Mul": (128, 128), "Sub": (128, 1)}
    if strip:
        graph_def = strip_unused(graph_def, [strip], ["final_result"], 1)
        flags = {} if strip == "Cast" else {"input_height": tiny.SIZE, "input_width": tiny.SIZE}
    fed, notes, answers = labels_of(tmp_path, graph_def, photos, **flags)
    assert fed == (strip or "Mul")
    np.testing.assert_allclose(answers, expected, atol=1e-5)
    mean, std = said.get(strip, (0, 1))
    assumed = f"assuming `Overrides.input_mean` {mean} `Overrides.input_std` {std}"
    assert [note.endswith(assumed) for note in notes] == ([True] if strip else [])


@pytest.mark.numbers
def test_a_stripped_graph_that_kept_its_description_needs_nothing(tmp_path, own, finished):
    photos = [f"{finished.photos}/red/photo_01.jpg"]
    _, _, expected = labels_of(tmp_path, own, photos)
    kept = strip_unused(own, ["Mul"], ["final_result", METADATA], 1)
    fed, notes, answers = labels_of(tmp_path, kept, photos)
    assert (fed, notes) == ("Mul", ())
    np.testing.assert_allclose(answers, expected, atol=1e-5)


def test_our_own_graph_refuses_another_size_than_its_networks(tmp_path, own, finished):
    with pytest.raises(GraphError, match="takes images of 32 x 32 pixels; drop"):
        labels_of(tmp_path, own, [], input_height=64, input_width=64)
    labels_of(tmp_path, own, [], input_height=32)


@pytest.fixture(scope="module")
def inception(shared):
    """The 2015 Inception with a layer for four classes, as the classic retrain.py made them."""
    graph_def = read_graph(shared / "models/inception_dec_2015/tensorflow_inception_graph.pb")
    weights = np.random.default_rng(0).normal(0, 0.1, (2048, 4)).astype(np.float32)
    with tf.Graph().as_default() as graph:
        (found,) = tf.import_graph_def(
            to_tensorflow(graph_def), return_elements=["pool_3/_reshape:0"], name=""
        )
        bottleneck = tf1.placeholder_with_default(found, (None, 2048), "input/BottleneckInput")
        tf.nn.softmax(tf.matmul(bottleneck, weights), name="final_result")
        return without_description(graph.as_graph_def())


@pytest.mark.numbers
@pytest.mark.parametrize("strip", [None, "Mul", "Sub", "ResizeBilinear", "ExpandDims", "Cast"])
def test_the_2015_graph_answers_alike_when_it_is_stripped(tmp_path, shared, inception, strip):
    photos = sorted((shared / "flower_photos/tulips").iterdir())[:2]
    with tf.Graph().as_default(), tf1.Session() as session:
        tf.import_graph_def(inception, name="")
        feeds = [{"DecodeJpeg/contents:0": photo.read_bytes()} for photo in photos]
        expected = np.concatenate([session.run("final_result:0", feed) for feed in feeds])
    stripped = strip_unused(inception, [strip], ["final_result"], 1) if strip else inception
    stripped.versions.producer = 8
    classifier = load(tmp_path, stripped)
    assert classifier.model.input == (strip or "Mul")
    answers = np.array([answer for _, answer, _ in classifier.predict(photos)])
    np.testing.assert_allclose(answers, expected, atol=1e-4)
    sized = strip in ("Mul", "Sub", "ResizeBilinear")
    whole = "`Overrides.input_height` 299 `Overrides.input_width` 299"
    assert [whole in note for note in classifier.notes] == ([sized] if strip else [])


@pytest.mark.numbers
def test_a_mobilenet_retrained_by_others_answers_as_by_hand(tmp_path, shared):
    graph_def = read_graph(shared / "models/retrained_by_others/retrained_graph.pb")
    photo = min((shared / "flower_photos/roses").iterdir())
    with tf.Graph().as_default(), tf1.Session() as session:
        pixels = session.run(tf1.image.resize_bilinear(batch_of(photo.read_bytes()), (128, 128)))
        tf.import_graph_def(to_tensorflow(graph_def), name="")
        expected = session.run("final_result:0", {"input:0": usual(pixels)})
    classifier = load(tmp_path, graph_def, tuple("abcdef"))
    assert classifier.model.input == "input"
    (note,) = classifier.notes
    assert note.endswith(SIGNED)
    ((_, answer, _),) = classifier.predict([photo])
    np.testing.assert_allclose(answer, expected[0], atol=1e-4)  # 1.1e-5 without oneDNN
