"""Labelling with models of other formats: those that retrain.py exports, and those of others."""

import importlib.util
import io
import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from retraining.export import build
from retraining.export.pixels_graph import Source
from retraining.export.registry import CONVERTERS
from retraining.graphs.nodes import GraphError
from retraining.graphs.preprocessing import Preprocessing
from retraining.graphs.read import to_tensorflow
from retraining.graphs.tensorflow import import_tensorflow
from retraining.graphs.write import graph_bytes
from retraining.labelling.classifier import load_classifier
from retraining.labelling.labels import LabelsError
from retraining.labelling.resolve import Overrides
from retraining.networks.mirror import mirror_average
from retraining.networks.pair import NetworkPair
from retraining.photos.reader import ImageReader
from retraining.training.head import Head
from tests import ROOT, tiny
from tests.fuzz import damaged
from tests.labelling.test_runtimes import label_without_tensorflow

LABELS = ["a", "b", "Blüte"]
TEMPERATURE = 1.7
HAS_ONNX = all(map(importlib.util.find_spec, CONVERTERS["onnx"].packages))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="what ONNX files need is not installed")
FILES = {"tflite": "m.tflite", "onnx": "m.onnx", "saved_model": "saved"}
LIGHT = ["tflite", pytest.param("onnx", marks=needs_onnx)]
KINDS = [*LIGHT, "saved_model"]
GRAPHS = ["inception", "mobilenet", "both", "mirrored"]


def retrained(network):
    """The GraphDef of a network, or two, with a random layer to three classes."""
    weights = np.random.default_rng(0).normal(size=(network.width, 3)) / network.width**0.5
    head = Head((3 * weights).astype("f4"), np.zeros(3, "f4"))
    graph_def = build.build_graph(network, head, "result")
    about = build.describe(network, LABELS, "result", {"trust": {"temperature": TEMPERATURE}})
    graph_def.MergeFromString(build.metadata_bytes(about))
    return graph_def


@pytest.fixture(scope="module")
def graphs(inception_file, tmp_path_factory):
    """{name: retrained GraphDef} of the tiny networks, both together, and with mirror images."""
    networks = tiny.base_networks(inception_file, tmp_path_factory.mktemp("m"))
    both, mirrored = NetworkPair(*networks), mirror_average(networks[1])
    return dict(zip(GRAPHS, map(retrained, (*networks, both, mirrored)), strict=True))


@pytest.fixture(scope="module")
def export(graphs, tmp_path_factory):
    """Writes a format of one of the `graphs`, once; returns its path."""
    folder, written = tmp_path_factory.mktemp("exported"), {}

    def export(kind, name="inception"):
        path = folder / name / FILES[kind]
        if path not in written:
            path.parent.mkdir(exist_ok=True)
            CONVERTERS[kind].save(Source.of(graphs[name]), str(path))
            written[path] = True
        return path

    return export


@pytest.fixture(scope="module")
def frozen(graphs, tmp_path_factory):
    """{name: path} of the `graphs`."""
    folder = tmp_path_factory.mktemp("frozen")
    for name, graph_def in graphs.items():
        (folder / f"{name}.pb").write_bytes(graph_bytes(graph_def))
    return {name: folder / f"{name}.pb" for name in graphs}


@pytest.fixture(scope="module")
def pictures(photos, tmp_path_factory):
    """Photos of several sizes, one of which must be turned upright."""
    folder = tmp_path_factory.mktemp("pictures")
    with Image.open(f"{photos}/red/photo_00.jpg") as picture:
        exif = picture.getexif()
        exif[274] = 6
        picture.crop((0, 0, 50, 20)).save(folder / "turned.jpg", exif=exif)
        picture.resize((200, 90)).save(folder / "large.png")
    names = sorted(Path(photos).glob("*/photo_0[0-3].jpg"))
    return [*map(str, names), str(folder / "turned.jpg"), str(folder / "large.png")]


def answers(path, pictures, **options):
    """float32 [photos, classes]."""
    overrides = options.pop("overrides", None)
    classifier = load_classifier(path, overrides=overrides, **options)
    assert classifier.labels == tuple(LABELS)
    return np.stack([answer for _, answer, _ in classifier.predict(pictures)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", GRAPHS)
def test_an_export_answers_as_the_frozen_graph_does(kind, name, export, frozen, pictures):
    expected = answers(frozen[name], pictures, precision="float32")
    assert np.ptp(expected, axis=0).max() > 0.01  # photos are told apart
    assert len({tuple(row) for row in expected}) == len(pictures)
    np.testing.assert_allclose(answers(export(kind, name), pictures), expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_one_photo_has_the_answer_that_it_has_among_many(kind, export, pictures):
    many = answers(export(kind), pictures)
    classifier = load_classifier(export(kind))
    for number in (0, len(pictures) - 1):
        ((_, alone, _),) = classifier.predict(pictures[number : number + 1], 1)
        np.testing.assert_allclose(alone, many[number], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_and_pixels_are_labelled_too(kind, export, pictures):
    classifier = load_classifier(export(kind))
    path = pictures[-1]
    expected, from_bytes, from_pixels = classifier.label(
        [path, Path(path).read_bytes(), np.asarray(Image.open(path))]
    )
    assert dict(from_bytes.scores) == dict(expected.scores) == dict(from_pixels.scores)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_photo_does_not_stop_the_rest(kind, export, pictures, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    found = list(load_classifier(export(kind)).label([pictures[0], tmp_path / "bad.jpg"]))
    assert [bool(labels.scores) for labels in found] == [True, False]
    assert "is not an image" in found[1].error


# -- what files tell of themselves --------------------------------------------------------------


def with_files(model, files):
    """The bytes of a LiteRT model with other files behind it."""
    file = io.BytesIO(bare(model))
    with zipfile.ZipFile(file, "a") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def bare(model):
    """The bytes of an exported LiteRT model without the archive behind it."""
    with zipfile.ZipFile(io.BytesIO(model)) as archive:
        return model[: min(member.header_offset for member in archive.infolist())]


def converter_of(function, *specs):
    """A TFLiteConverter of a function, with a signature if it returns a dict."""
    module = tf.Module()
    module.function = tf.function(function, autograph=False)
    concrete = module.function.get_concrete_function(*specs)
    return tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)


def lite(function, *specs):
    """The bytes of a LiteRT model of a function."""
    return converter_of(function, *specs).convert()


@pytest.fixture(scope="module")
def source(graphs):
    return Source.of(graphs["inception"])


def described(source, **entries):
    """The JSON of a Source with other entries for its input, `takes` and so on."""
    about = source.describe()
    for name in ("temperature", "temperature_inside", "labels"):
        if name in entries:
            about[name] = entries.pop(name)
    about["inputs"]["images"] |= entries
    if "name" in entries:
        about["inputs"] = {entries["name"]: about["inputs"]["images"]}
    return json.dumps(about)


def network_of(source):
    """The function of a Source, from pixels to probabilities."""

    def network(pixels):
        ends = {f"{source.inputs[0].node}:0": pixels}, [f"{source.output}:0"]
        return tf.graph_util.import_graph_def(to_tensorflow(source.graph_def), *ends, name="")[0]

    return network


def scaled(source, pixels):
    record = source.inputs[0].preprocessing
    return (pixels - record.offset) * record.factor


def test_an_image_of_any_size_is_resized_and_scaled_in_the_file(source, frozen, pictures, tmp_path):
    def network(image):
        size = source.inputs[0].size
        resized = tf.raw_ops.ResizeBilinear(images=tf.cast(image, tf.float32), size=size)
        plain = network_of(source)(scaled(source, resized))
        return {"probabilities": tf.nn.softmax(tf.math.log(plain) / TEMPERATURE)}

    model = lite(network, tf.TensorSpec([1, None, None, 3], tf.uint8, "image"))
    text = described(source, takes="image", name="image", temperature_inside=True)
    path = tmp_path / "image.tflite"
    path.write_bytes(with_files(added_archive(model), {"retraining.json": text}))
    expected = answers(frozen["inception"], pictures, precision="float32")
    np.testing.assert_allclose(answers(path, pictures), expected, atol=1e-4)
    classifier = load_classifier(path)
    raw = replace(classifier, temperature=classifier.raw_temperature)
    before = load_classifier(frozen["inception"], precision="float32")
    plain = replace(before, temperature=before.raw_temperature)
    for (_, found, _), (_, wanted, _) in zip(
        raw.predict(pictures), plain.predict(pictures), strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    for setting in ("input_mean", "input_std", "input_height"):
        with pytest.raises(GraphError, match=rf"; drop `Overrides\.{setting}`|and `Overrides"):
            load_classifier(path, overrides=Overrides(**{setting: 7}))


def added_archive(model):
    """A LiteRT model with an empty file behind it."""
    file = io.BytesIO(model)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("empty", "")
    return file.getvalue()


def quantized(source, pictures, dtype):
    """The bytes of a LiteRT model of integers; its input's type is `dtype`."""
    reader = ImageReader(source.inputs[0].preprocessing)
    spec = tf.TensorSpec([1, *source.inputs[0].size, 3], tf.float32, "images")
    network = network_of(source)
    converter = converter_of(lambda images: {"probabilities": network(images)}, spec)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = dtype

    def photos():
        for path in pictures:
            pixels = reader.read(path)
            pixels[0, 0, :2] = scaled(source, np.float32([[0], [255]]))
            yield {"images": pixels}

    converter.representative_dataset = photos
    return added_archive(converter.convert())


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
@pytest.mark.filterwarnings("ignore:Statistics for quantized inputs")
@pytest.mark.parametrize(
    ("takes", "dtype"), [("pixels", tf.int8), ("pixels", tf.uint8), ("uint8 pixels", tf.uint8)]
)
def test_integers_are_made_and_read_by_the_scales_of_the_tensors(
    takes, dtype, source, frozen, pictures, tmp_path
):
    model = with_files(
        quantized(source, pictures, dtype), {"retraining.json": described(source, takes=takes)}
    )
    path = tmp_path / "integers.tflite"
    path.write_bytes(model)
    expected = answers(frozen["inception"], pictures, precision="float32")
    found = answers(path, pictures)
    np.testing.assert_allclose(found, expected, atol=0.06)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"takes": "x" * 99}, "this version cannot make what it takes: 'x"),
        ({"kernel": "sinc"}, "this version resizes images by"),
        ({"size": [0, 32]}, "its own description"),
        ({"size": [64, 64]}, "its input is not that of its own description"),
        ({"size": [1e9, 32]}, "its own description"),
        ({"std": 0}, "its own description"),
        ({"mean": "x"}, "its own description"),
        ({"takes": "uint8 pixels"}, "its input is not that of its own description"),
        ({"name": "other"}, "its inputs are not those of its own description"),
        ({"temperature": -1}, "its own description"),
        ({"temperature": "NaN"}, "its own description"),
        ({"temperature_inside": 1}, "its own description"),
        ({"labels": 5}, "its own description"),
    ],
)
def test_a_damaged_description_is_one_line(entries, reason, export, source, tmp_path):
    path = tmp_path / "odd.tflite"
    text = described(source, **entries)
    path.write_bytes(with_files(export("tflite").read_bytes(), {"retraining.json": text}))
    with pytest.raises(GraphError) as caught:
        load_classifier(path)
    assert str(caught.value).startswith(f"{path} is a LiteRT file that cannot be used: ")
    assert reason in str(caught.value)


@pytest.mark.parametrize("text", ["", "[" * 100_000, "[]", "null", '{"labels": []}', b"\xff"])
def test_what_is_no_description_is_one_line(text, export, tmp_path):
    path = tmp_path / "odd.tflite"
    path.write_bytes(with_files(export("tflite").read_bytes(), {"retraining.json": text}))
    with pytest.raises(GraphError, match=r"its own description|no labels"):
        load_classifier(path, overrides=Overrides(input_mean=0, input_std=1))


@pytest.mark.parametrize("kind", KINDS)
def test_labels_may_rename_classes_but_must_be_as_many(kind, export, pictures):
    renamed = load_classifier(export(kind), ("x", "y", "z"))
    (labels,) = renamed.label(pictures[0])
    assert set(labels.scores) == {"x", "y", "z"}
    with pytest.raises(LabelsError, match="gives 3 probabilities for 2 labels"):
        next(load_classifier(export(kind), ("x", "y")).predict(pictures))
    with pytest.raises(LabelsError, match="in another order"):
        load_classifier(export(kind), ("b", "a", "Blüte"))


# -- what only frozen graphs can do ---------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"precision": "bfloat16"}, "precision"),
        ({"runtime": "nothing"}, "runtime"),
        ({"overrides": Overrides(output_layer="x")}, r"Overrides\.output_layer"),
        ({"overrides": Overrides(input_layer="x")}, r"Overrides\.input_layer"),
    ],
)
def test_options_of_frozen_graphs_are_refused(kind, options, name, export):
    with pytest.raises(GraphError, match=rf"for which `{name}` cannot be chosen; drop it, or give"):
        load_classifier(export(kind), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_no_score_for_unknown_images(kind, export, pictures):
    from retraining.evaluation.trust import TrustError

    with pytest.raises(TrustError, match="needs a frozen graph"):
        next(load_classifier(export(kind)).label(pictures, unknown_share=0.05))


# -- LiteRT files of others -----------------------------------------------------------------------

SCALE = Overrides(input_mean=128, input_std=128)


@pytest.fixture
def foreign(export, tmp_path):
    """Writes an exported LiteRT file without its description; returns its path."""

    def write(files):
        path = tmp_path / "foreign.tflite"
        model = export("tflite").read_bytes()
        path.write_bytes(with_files(model, files) if files else bare(model))
        return path

    return write


def test_the_standard_metadata_tells_labels_and_scale(foreign, export, pictures):
    path = foreign({"names.txt": "a\nb\nBlüte\n"})
    classifier = load_classifier(export("tflite"))
    plain = replace(classifier, temperature=classifier.raw_temperature)
    expected = [answer for _, answer, _ in plain.predict(pictures)]
    np.testing.assert_array_equal(answers(path, pictures), expected)
    assert load_classifier(path).notes == ()


def without_metadata(path):
    content = path.read_bytes()
    assert content.count(b"TFLITE_METADATA") == 1
    path.write_bytes(content.replace(b"TFLITE_METADATA", b"TFLITE_METADATX"))


def test_what_a_file_does_not_tell_is_asked_for(foreign, export, pictures):
    path = foreign({})
    with pytest.raises(LabelsError, match="holds no labels; give their file with `labels_path`"):
        load_classifier(path)
    without_metadata(path)
    with pytest.raises(GraphError, match=r"how pixels are scaled; give `Overrides\.input_mean`"):
        load_classifier(path, tuple(LABELS))
    with pytest.raises(GraphError, match=r"takes images of 32 x 32 pixels; drop"):
        load_classifier(path, tuple(LABELS), replace(SCALE, input_height=33))
    told = load_classifier(path, tuple(LABELS), SCALE)
    known = load_classifier(export("tflite"))
    expected = replace(known, temperature=1.0).predict(pictures)
    for (_, found, _), (_, wanted, _) in zip(told.predict(pictures), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_an_image_size_that_nothing_tells_is_asked_for(tmp_path, pictures):
    spec = tf.TensorSpec([1, None, None, 3], tf.float32, "x")
    path = tmp_path / "any.tflite"
    path.write_bytes(lite(lambda x: tf.nn.softmax(tf.reduce_mean(x, (1, 2))), spec))
    with pytest.raises(GraphError, match=r"not tell its image size; give `Overrides.input_height`"):
        load_classifier(path, tuple("rgb"), replace(SCALE, input_width=20))
    sized = replace(SCALE, input_width=20, input_height=30)
    ((_, answer, _),) = load_classifier(path, tuple("rgb"), sized).predict([pictures[-1]])
    assert answer.argmax() == 0  # it is red
    assert answer.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ([1, 30], tf.float32, "takes [1, 30], not images"),
        ([1, 8, 8, 3], tf.int32, "takes int32, not images"),
        ([1, 8, 8, 3], tf.int8, "takes int8, not images"),
        ([1, 8, 8, 1], tf.float32, "takes [1, 8, 8, 1], not images"),
        ([4, 8, 8, 3], tf.float32, "takes 4 images at once"),
        ([1, 8, 8, 3], tf.uint8, "takes pixels of 0..255; drop `Overrides.input_mean`"),
    ],
)
def test_what_cannot_be_fed_as_the_user_tells_is_one_line(shape, dtype, reason, tmp_path):
    path = tmp_path / "other.tflite"
    path.write_bytes(lite(lambda x: tf.cast(x, tf.float32) * 2, tf.TensorSpec(shape, dtype, "x")))
    with pytest.raises(GraphError) as caught:
        load_classifier(path, tuple("ab"), SCALE)
    assert reason in str(caught.value)


# -- damaged and hostile LiteRT files -------------------------------------------------------------


def looping():
    def network(x):
        def body(n, total):
            return n + 1, total + tf.reduce_mean(x, (1, 2))

        start = tf.constant(0), tf.zeros([1, 3])
        return tf.while_loop(lambda n, _: n >= 0, body, start)[1]

    return lite(network, tf.TensorSpec([1, 8, 8, 3], tf.float32, "x"))


def huge():
    def network(x):
        return tf.reduce_mean(tf.image.resize(x, (60_000, 60_000)), (1, 2))

    return lite(network, tf.TensorSpec([1, 8, 8, 3], tf.float32, "x"))


def foreign_op():
    spec = tf.TensorSpec([1, 8, 8, 3], tf.float32, "x")
    converter = converter_of(lambda x: tf.math.erfinv(tf.reduce_mean(x, (1, 2))), spec)
    converter.allow_custom_ops = True
    return converter.convert()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (looping, "could do more than compute: it holds 'WHILE'; if you trust whoever made it"),
        (foreign_op, "could do more than compute: it holds 'Erfinv'; if you trust whoever made it"),
        (huge, "a tensor of 10800000000 elements, more than"),
    ],
)
def test_what_computes_more_than_it_should_is_not_run(make, reason, tmp_path):
    path = tmp_path / "hostile.tflite"
    path.write_bytes(make())
    with pytest.raises(GraphError) as caught:
        load_classifier(path, tuple("abc"), SCALE)
    assert reason in str(caught.value)


def test_unsafe_ops_run_if_the_user_trusts_them(tmp_path, pictures):
    def network(x):
        start = tf.constant(0), tf.zeros([1, 3])
        body = lambda n, total: (n + 1, total + tf.reduce_mean(x, (1, 2)))  # noqa: E731
        return tf.while_loop(lambda n, _: n < 3, body, start)[1]

    path = tmp_path / "loop.tflite"
    path.write_bytes(lite(network, tf.TensorSpec([1, 8, 8, 3], tf.float32, "x")))
    classifier = load_classifier(path, tuple("rgb"), replace(SCALE, allow_unsafe_ops=True))
    assert classifier.notes == (f"running {path}, although it holds 'WHILE'",)
    ((_, answer, _),) = classifier.predict([pictures[-1]])
    assert answer.argmax() == 0


DAMAGE = """
import sys
from pathlib import Path
from retraining.errors import RetrainingError
from retraining.labelling.classifier import load_classifier
from retraining.labelling.resolve import Overrides
photo, *paths = sys.argv[1:]
for path in paths:
    try:
        overrides = Overrides(input_mean=128, input_std=128)
        for labels in load_classifier(path, tuple("abc"), overrides).label(photo):
            print("answer")
    except RetrainingError as error:
        assert "\\n" not in str(error)
        print("error")
"""


@pytest.mark.parametrize("kind", LIGHT)
def test_damaged_files_end_no_process(kind, export, pictures, tmp_path):
    model = export(kind).read_bytes()
    rng = np.random.default_rng(4)
    paths = []
    for number in range(60):
        cut = model[: int(rng.integers(8, len(model)))]
        content = cut if number % 4 == 0 else damaged(model, rng)
        if kind == "tflite":
            content = content[:4] + b"TFL3" + content[8:]
        paths.append(tmp_path / f"{number}.{kind}")
        paths[-1].write_bytes(content)
    command = [sys.executable, "-c", DAMAGE, pictures[0], *map(str, paths)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    said = done.stdout.split()
    assert len(said) == len(paths)
    assert said.count("error") > 25


def test_a_litert_file_that_lost_its_end_is_not_taken_for_one_of_others(export, tmp_path):
    path = tmp_path / "cut.tflite"
    path.write_bytes(export("tflite").read_bytes()[:-10])
    with pytest.raises(GraphError, match="cannot be used: it is cut short; fetch it again"):
        load_classifier(path, tuple(LABELS), SCALE)


def test_without_litert_the_remedy_is_told(export, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(GraphError, match=r"pip install -r requirements-label\.txt"):
        load_classifier(export("tflite"))


# -- ONNX files of others -------------------------------------------------------------------------


def onnx_file(path, nodes, shape=(1, 8, 8, 3), weights=None, **more):
    """Writes an ONNX model from `x` to `y`."""
    from onnx import TensorProto, helper, numpy_helper

    stored = [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        stored,
    )
    domains = {node.domain for node in nodes} | {""}
    opsets = [helper.make_opsetid(domain, 15 if domain == "" else 1) for domain in domains]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, **more)
    path.write_bytes(model.SerializeToString())
    return path


def mean_of_channels(axes):
    from onnx import helper

    return [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=axes, keepdims=0),
        helper.make_node("Softmax", ["m"], ["y"], axis=1),
    ]


@needs_onnx
@pytest.mark.parametrize(
    ("shape", "axes"),
    [((1, 8, 8, 3), (1, 2)), (("n", 3, 8, 8), (2, 3)), ((1, 3, None, None), (2, 3))],
)
def test_channels_may_come_first(shape, axes, tmp_path, pictures):
    path = onnx_file(tmp_path / "m.onnx", mean_of_channels(axes), shape)
    told = replace(SCALE, input_height=8, input_width=8)
    found = list(load_classifier(path, tuple("rgb"), told).predict(pictures))
    pixels = ImageReader(Preprocessing((8, 8), 128, 128)).read(pictures[-1])
    exponents = np.exp(pixels.mean((0, 1, 2)))
    np.testing.assert_allclose(found[-1][1], exponents / exponents.sum(), atol=1e-5)
    with pytest.raises(GraphError, match=r"how pixels are scaled; give"):
        load_classifier(path, tuple("rgb"), Overrides(input_height=8, input_width=8))


@needs_onnx
def test_a_file_without_its_ending_is_known_by_its_content(tmp_path, export, pictures):
    path = tmp_path / "model.bin"
    path.write_bytes(export("onnx").read_bytes())
    np.testing.assert_array_equal(answers(path, pictures), answers(export("onnx"), pictures))


def looping_onnx(path):
    from onnx import TensorProto, helper

    body = helper.make_graph(
        [helper.make_node("Identity", ["more"], ["again"])],
        "body",
        [
            helper.make_tensor_value_info("n", TensorProto.INT64, []),
            helper.make_tensor_value_info("more", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("again", TensorProto.BOOL, [])],
    )
    loop = helper.make_node("Loop", ["", "yes"], [], body=body)
    return onnx_file(path, [loop, *mean_of_channels((1, 2))], weights={"yes": np.array(True)})


def foreign_domain(path):
    from onnx import helper

    nodes = [helper.make_node("Run", ["x"], ["z"], domain="evil"), *mean_of_channels((1, 2))]
    return onnx_file(path, nodes)


def with_function(path):
    from onnx import helper

    node = helper.make_node("Identity", ["a"], ["b"])
    opsets = [helper.make_opsetid("", 15)]
    function = helper.make_function("own", "Twice", ["a"], ["b"], [node], opsets)
    call = helper.make_node("Twice", ["x"], ["z"], domain="own")
    return onnx_file(path, [call, *mean_of_channels((1, 2))], functions=[function])


def huge_constant(path):
    from onnx import helper

    nodes = [helper.make_node("ConstantOfShape", ["sizes"], ["z"]), *mean_of_channels((1, 2))]
    return onnx_file(path, nodes, weights={"sizes": np.array([1 << 20, 1 << 20])})


def weights_elsewhere(path):
    import onnx

    model = onnx.load(huge_constant(path))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/hostname")
    path.write_bytes(model.SerializeToString())
    return path


@needs_onnx
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (looping_onnx, "could do more than compute: it holds 'Loop'; if you trust whoever"),
        (foreign_domain, "could do more than compute: it holds 'evil.Run'; if you trust"),
        (with_function, "could do more than compute: it holds 'own.Twice', the function 'Twice'"),
        (huge_constant, "it has a tensor of 1.1e+12 elements, more than"),
        (weights_elsewhere, "it keeps weights in other files; save it as one file"),
    ],
)
def test_an_onnx_file_that_does_more_than_it_should_is_not_run(make, reason, tmp_path):
    path = make(tmp_path / "hostile.onnx")
    with pytest.raises(GraphError) as caught:
        load_classifier(path, tuple("abc"), SCALE)
    assert reason in str(caught.value)
    if "other files" in reason:
        with pytest.raises(GraphError, match="other files"):
            load_classifier(path, tuple("abc"), replace(SCALE, allow_unsafe_ops=True))


@needs_onnx
def test_photos_share_no_batch_where_the_scale_would_depend_on_it(export, tmp_path, pictures):
    """As in the models of onnxruntime.quantization.quantize_dynamic."""
    import onnx
    from onnx import helper

    model = onnx.load(export("onnx"))
    steps = helper.make_node("DynamicQuantizeLinear", ["images"], ["q", "scale", "zero"])
    floats = helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["coarse"])
    for node in model.graph.node:
        node.input[:] = ["coarse" if name == "images" else name for name in node.input]
    model.graph.node.insert(0, floats)
    model.graph.node.insert(0, steps)
    path = tmp_path / "dynamic.onnx"
    path.write_bytes(model.SerializeToString())
    together = answers(path, pictures)
    alone = np.concatenate([answers(path, [picture]) for picture in pictures])
    np.testing.assert_array_equal(together, alone)
    assert np.abs(together - answers(export("onnx"), pictures)).max() > 1e-4


@needs_onnx
def test_without_onnx_runtime_the_remedy_is_told(export, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(GraphError, match=r"pip install -r requirements-onnx\.txt"):
        load_classifier(export("onnx"))


# -- SavedModels of others ------------------------------------------------------------------------


def saved(folder, shape=(None, 8, 8, 3), dtype=tf.float32, **functions):
    """Writes a SavedModel of functions of images: signatures, and `called` as a plain function."""
    module, spec = tf.Module(), tf.TensorSpec(shape, dtype, "x")
    made = {
        key: tf.function(f, autograph=False, input_signature=[spec]) for key, f in functions.items()
    }
    if "called" in made:
        module.called = made.pop("called")
    signatures = {key: each.get_concrete_function() for key, each in made.items()}
    tf.saved_model.save(module, str(folder), signatures)
    return folder


def mean(x):
    return {"scores": tf.nn.softmax(tf.reduce_mean(x, (1, 2)))}


def with_file(x):
    return {
        "scores": tf.reduce_mean(x, (1, 2)) + tf.cast(tf.size(tf.io.read_file("/x")), tf.float32)
    }


def with_python(x):
    return {
        "scores": tf.ensure_shape(tf.py_function(lambda y: y[:, 0, 0], [x], tf.float32), (None, 3))
    }


def with_loop(x):
    start = tf.constant(0), tf.zeros_like(x[:, 0, 0])
    looped = tf.while_loop(lambda n, _: n >= 0, lambda n, t: (n + 1, t + x[:, 0, 0]), start)
    return {"scores": looped[1]}


def test_a_saved_model_of_half_precision_takes_halves(tmp_path, pictures):
    path = saved(tmp_path / "m", serving_default=mean, dtype=tf.float16)
    found = list(load_classifier(path, tuple("rgb"), SCALE).predict(pictures))
    expected = saved(tmp_path / "f", serving_default=mean)
    singles = list(load_classifier(expected, tuple("rgb"), SCALE).predict(pictures))
    np.testing.assert_allclose(found[-1][1], singles[-1][1], atol=2e-3)


def test_somebodys_saved_model_is_labelled_with(tmp_path, pictures):
    path = saved(tmp_path / "m", serving_default=mean, other=mean)
    with pytest.raises(GraphError, match="how pixels are scaled; give"):
        load_classifier(path, tuple("rgb"))
    found = list(load_classifier(path, tuple("rgb"), SCALE).predict(pictures))
    assert [answer.argmax() for _, answer, _ in found[-2:]] == [0, 0]
    with pytest.raises(LabelsError, match="gives 3 probabilities for 2 labels"):
        next(load_classifier(path, tuple("rg"), SCALE).predict(pictures))


@pytest.mark.parametrize(
    ("functions", "reason"),
    [
        ({"serving_default": with_file}, "it holds 'ReadFile'; if you trust whoever made it"),
        ({"serving_default": mean, "other": with_file}, "it holds 'ReadFile';"),
        ({"serving_default": mean, "called": with_file}, "it holds 'ReadFile';"),
        ({"serving_default": with_python}, "it holds 'EagerPyFunc';"),
        ({"serving_default": with_loop}, "While';"),
        ({"serving_default": mean, "called": with_loop}, "While';"),
    ],
)
def test_a_saved_model_that_does_more_than_it_should_is_not_loaded(
    functions, reason, tmp_path, monkeypatch
):
    path = saved(tmp_path / "m", **functions)
    monkeypatch.setattr(tf.saved_model, "load", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(GraphError) as caught:
        load_classifier(path, tuple("rgb"), SCALE)
    assert f"{path} is a SavedModel that cannot be used: it could do more than" in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((None, 8), "none of its signatures takes images"),
        ((None, 8, 8, 4), "not images [n, height"),
    ],
)
def test_a_saved_model_that_takes_no_images_is_one_line(shape, reason, tmp_path):
    path = saved(tmp_path / "m", shape, serving_default=lambda x: {"y": x})
    with pytest.raises(GraphError) as caught:
        load_classifier(path, tuple("rgb"), SCALE)
    assert reason in str(caught.value)


def test_a_damaged_saved_model_is_one_line(export, tmp_path):
    whole, path = export("saved_model"), tmp_path / "damaged"
    for name in ("saved_model.pb", "variables/variables.index", "assets/retraining.json"):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(whole, path)
        content = (path / name).read_bytes()
        (path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(GraphError) as caught:
            load_classifier(path)
        assert str(caught.value).startswith(f"{path} is a SavedModel that cannot be used: ")
        assert "\n" not in str(caught.value)


def test_the_function_of_a_signature_is_no_other_objects(export, tmp_path):
    """Loops may be in signatures that nothing calls, but an object could call one on loading."""
    path = tmp_path / "m"
    shutil.copytree(export("saved_model"), path)
    saved_model = import_tensorflow().SavedModel.FromString((path / "saved_model.pb").read_bytes())
    nodes = saved_model.meta_graphs[0].object_graph_def.nodes
    (at,) = (child.node_id for child in nodes[0].children if child.local_name == "signatures")
    nodes[0].children.add(node_id=nodes[at].children[0].node_id, local_name="_initialize")
    (path / "saved_model.pb").write_bytes(saved_model.SerializeToString())
    with pytest.raises(GraphError, match="an object has the function of a signature"):
        load_classifier(path)


def test_a_folder_of_versions_is_pointed_into(export, tmp_path):
    for version in "12":
        shutil.copytree(export("saved_model"), tmp_path / version)
    with pytest.raises(GraphError, match=f"name one, such as {tmp_path}/2$"):
        load_classifier(tmp_path)


def test_without_tensorflow_a_saved_model_has_its_remedy(export, photos):
    photo = f"{photos}/red/photo_00.jpg"
    done = label_without_tensorflow("--graph", export("saved_model"), photo)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "it needs TensorFlow; pip install -r requirements.txt" in done.stderr


def test_a_missing_or_unreadable_file_is_one_line(tmp_path):
    for path in (tmp_path / "none.tflite", tmp_path / "empty.tflite", tmp_path / "folder.tflite"):
        if path.name.startswith("empty"):
            path.write_bytes(b"")
        elif path.name.startswith("folder"):
            path.mkdir()
        with pytest.raises(GraphError):
            load_classifier(path)


# -- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LIGHT)
def test_the_command_labels_scores_and_reads_lists_without_tensorflow(kind, export, photos):
    images = sorted(map(str, Path(photos).glob("*/photo_0[0-9].jpg")))
    done = label_without_tensorflow("--graph", export(kind), "--format", "jsonl", *images)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    first = [row for row in rows if row["rank"] == 1]
    expected = list(load_classifier(export(kind)).label(images))
    assert [(row["path"], row["label"]) for row in first] == [(e.image, e.best) for e in expected]
    alone = label_without_tensorflow("--graph", export(kind), images[0])
    assert alone.stdout.startswith(f"{expected[0].best} (score={first[0]['score']:.4f}")
    listed = label_without_tensorflow("--graph", export(kind), "-", stdin="\n".join(images))
    assert [line.split("\t")[0] for line in listed.stdout.splitlines()[::3]] == images


@pytest.mark.parametrize("kind", LIGHT)
def test_the_command_scores_a_folder_without_tensorflow(kind, export, photos, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("blue\ngreen\nred\n")
    flags = ("--labels", names, "--evaluate", photos)
    done = label_without_tensorflow("--graph", export(kind), *flags)
    assert done.returncode == 0
    assert "photos\t90\n" in done.stdout


def test_the_command_names_flags(export, photos):
    photo = f"{photos}/red/photo_00.jpg"
    for flags, said in (
        (("--output_layer", "x"), "for which --output_layer cannot be chosen"),
        (("--precision", "bfloat16"), "for which --precision cannot be chosen"),
        (("--unknown_threshold", "auto"), "--unknown_threshold needs a frozen graph"),
    ):
        done = label_without_tensorflow("--graph", export("tflite"), *flags, photo)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert said in done.stderr
