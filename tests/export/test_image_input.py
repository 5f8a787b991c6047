"""image_input.py, and formats that take an image as it was decoded instead of pixels."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from retraining import load_classifier
from retraining.cli.flags import parse_flags
from retraining.export import formats
from retraining.export.image_input import KERNELS, preprocess
from retraining.export.pixels_graph import Input
from retraining.export.registry import CONVERTERS
from retraining.graphs import preprocessing
from retraining.graphs.description import IMAGE, METADATA, read_metadata
from retraining.graphs.nodes import nodes_by_name, set_constant
from retraining.graphs.preprocessing import Preprocessing
from retraining.graphs.write import graph_bytes
from retraining.networks.mirror import mirror_average
from retraining.networks.network import load_network
from retraining.networks.pair import NetworkPair
from retraining.networks.registry import NETWORKS
from retraining.photos.decode import decode
from tests import tiny
from tests.export.test_formats import (
    build_text,
    field,
    first,
    in_this_process,
    needs_onnx,
    retrained,
    text,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")

TEMPERATURE = 2.5
LABELS = ["a", "b", "Blüte"]
SIZES = [(1, 1), (5, 7), (40, 299), (600, 451)]


@pytest.mark.parametrize("kernel", preprocessing.KERNELS)
@pytest.mark.parametrize("old", SIZES)
@pytest.mark.parametrize("size", [(32, 32), (30, 50)])
def test_a_model_preprocesses_as_training_does(kernel, old, size):
    photo = np.random.default_rng(0).integers(0, 256, (*old, 3), np.uint8)
    record = Preprocessing(size, (10.0, 20.0, 30.0), (1.0, 2.0, 5.0), kernel)
    expected = (preprocessing.KERNELS[kernel].resize(photo, size) - record.offset) * record.factor
    (pixels,) = preprocess(tf, tf.constant(photo[None]), [Input("input", "images", record)])
    assert (pixels.shape, pixels.dtype) == ((1, *size, 3), tf.float32)
    np.testing.assert_allclose(pixels[0], expected, rtol=0, atol=0.01)
    assert KERNELS.keys() == preprocessing.KERNELS.keys()


def with_temperature(graph_def):
    """A graph whose description tells a temperature; its output does not have it."""
    about = read_metadata(graph_def) | {"trust": {"temperature": TEMPERATURE}}
    set_constant(nodes_by_name(graph_def)[METADATA], build_text(about))
    return graph_def


@pytest.fixture(scope="module")
def graphs(inception_file, tmp_path_factory):
    """{name: the bytes of a retrained graph}."""
    path = str(tmp_path_factory.mktemp("m") / "frozen_graph.pb")
    tiny.write_graph(path, tiny.tiny_mobilenet())
    mobilenet = load_network(path, NETWORKS["mobilenet_0.25_128"])
    inception = load_network(inception_file, NETWORKS["inception_v3"])
    made = {
        "mobilenet": retrained(mobilenet),
        "two_networks": retrained(NetworkPair(inception, mobilenet)),
        "hidden_and_mirrored": retrained(mirror_average(mobilenet), 16, 8),
    }
    return {name: graph_bytes(with_temperature(graph)) for name, graph in made.items()}


@pytest.fixture(scope="module")
def some(photos, tmp_path_factory):
    """Paths of four photos of different sizes."""
    folder = tmp_path_factory.mktemp("some")
    for number, size in enumerate([(50, 70), (300, 200), (128, 128), (31, 17)]):
        label = ("red", "blue")[number % 2]
        photo = Image.open(f"{photos}/{label}/photo_{number:02d}.jpg")
        photo.resize(size).save(folder / f"{number}.png")
    return sorted(map(str, folder.iterdir()))


@pytest.fixture(scope="module")
def exported(graphs, some, tmp_path_factory):
    """Gives the path of a graph in a format that takes an image; makes each once."""
    made = {}

    def export(kind, name):
        if (kind, name) not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(formats, "run_module", in_this_process)
                (one,) = formats.make(
                    {kind: "x"}, graphs[name], formats.Photos(dict.fromkeys(some, 0)), IMAGE
                )
            assert one.describe()["takes"] == IMAGE
            assert one.describe()["temperature_inside"] is True
            path = tmp_path_factory.mktemp("exported") / kind
            if kind == "saved_model":
                for name_in_it, content in one.content.items():
                    (path / name_in_it).parent.mkdir(parents=True, exist_ok=True)
                    (path / name_in_it).write_bytes(content)
            else:
                path.write_bytes(one.content)
            made[kind, name] = str(path), one.agreement
        return made[kind, name]

    return export


KINDS = ["saved_model", "tflite", pytest.param("onnx", marks=needs_onnx)]


@pytest.mark.parametrize("name", ["mobilenet", "two_networks", "hidden_and_mirrored"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_gives_the_scores_of_label_image(kind, name, exported, graphs, some, tmp_path):
    path, agreement = exported(kind, name)
    assert "from image the same first label for 4 of 4 photos, " in agreement
    (tmp_path / "g.pb").write_bytes(graphs[name])
    classifier = load_classifier(tmp_path / "g.pb", precision="float32")
    assert classifier.temperature == TEMPERATURE
    model = CONVERTERS[kind].load(path)
    answers = []
    for photo in some:
        with open(photo, "rb") as file:
            answers.append(model.run({IMAGE: decode(file.read())[None]})[0])
    expected = [[answer.scores[label] for label in LABELS] for answer in classifier.label(some)]
    np.testing.assert_allclose(answers, expected, rtol=0, atol=2e-5)
    assert np.ptp(expected, axis=0).max() > 0.01  # photos are told apart


def test_a_tflite_file_declares_the_size_of_the_network_and_takes_any(exported):
    interpreter = tf.lite.Interpreter(exported("tflite", "mobilenet")[0])
    (about,) = interpreter.get_input_details()
    assert (about["dtype"], about["shape"].tolist()) == (np.uint8, [1, 128, 128, 3])
    assert about["shape_signature"].tolist() == [1, -1, -1, 3]
    (output,) = interpreter.get_output_details()
    scores = []
    for size in ((128, 128), (128, 256)):
        image = np.full((1, *size, 3), (200, 60, 20), np.uint8)
        if size != (128, 128):
            interpreter.resize_tensor_input(about["index"], image.shape, strict=True)
        interpreter.allocate_tensors()
        interpreter.set_tensor(about["index"], image)
        interpreter.invoke()
        scores.append(interpreter.get_tensor(output["index"]))
    np.testing.assert_allclose(*scores, atol=1e-6)  # one colour is the same at any size


def test_the_metadata_of_a_tflite_file_asks_for_no_normalisation(exported):
    """MediaPipe would apply it to the uint8 image."""
    import flatbuffers
    from flatbuffers.table import Table
    from tensorflow.lite.tools import flatbuffer_utils

    tree = flatbuffer_utils.read_model(exported("tflite", "mobilenet")[0])
    (entry,) = (each for each in tree.metadata if each.name == b"TFLITE_METADATA")
    content = bytearray(tree.buffers[entry.buffer].data)
    root = flatbuffers.encode.Get(flatbuffers.packer.uoffset, content, 0)
    parts = field(Table(content, root), 3, first)  # subgraph_metadata
    image, output = field(parts, 2, first), field(parts, 3, first)
    assert (field(image, 0, text), image.Offset(4 + 2 * 4)) == ("image", 0)  # no process_units
    assert field(output, 1, text) == "the softmax at the temperature 2.5"


def described_in(kind, path):
    """The description in a file of a format."""
    if kind == "saved_model":
        return Path(path, "assets", "retraining.json").read_bytes()
    if kind == "tflite":
        with zipfile.ZipFile(path) as archive:
            return archive.read("retraining.json")
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    properties = session.get_modelmeta().custom_metadata_map
    assert "inputs" not in properties  # it tells programs to normalise
    return properties["retraining"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_description_tells_that_all_is_inside(kind, exported):
    about = json.loads(described_in(kind, exported(kind, "two_networks")[0]))
    small = {"size": [128, 128], "mean": 127.5, "std": 127.5, "kernel": "legacy_bilinear"}
    large = {"size": [tiny.SIZE] * 2, "mean": 128, "std": 128, "kernel": "legacy_bilinear"}
    assert about["inputs"] == {"image": {"takes": "image", **large, "second": small}}
    assert (about["temperature"], about["temperature_inside"]) == (TEMPERATURE, True)


@needs_onnx
def test_an_onnx_file_takes_one_image_of_any_size(exported):
    import onnxruntime

    path, _ = exported("onnx", "mobilenet")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (image,), (output,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type) == ("image", "tensor(uint8)")
    assert image.shape == [1, "height", "width", 3]
    assert (output.name, output.shape) == ("probabilities", [1, 3])


def test_the_signatures_of_a_saved_model_give_calibrated_scores(exported, graphs, some, tmp_path):
    (tmp_path / "g.pb").write_bytes(graphs["mobilenet"])
    (labels,) = load_classifier(tmp_path / "g.pb", precision="float32").label(some[:1])
    expected = pytest.approx([labels.scores[label] for label in LABELS], abs=2e-5)
    signatures = tf.saved_model.load(exported("saved_model", "mobilenet")[0]).signatures
    content = Path(some[0]).read_bytes()
    image = tf.constant(decode(content)[None])
    answers = {
        "serving_default": signatures["serving_default"](image_bytes=tf.constant([content])),
        "one_image": signatures["one_image"](image_bytes=tf.constant(content)),
        "images": signatures["images"](image=image),
        "pixels": signatures["pixels"](image=image),
    }
    for name, answer in answers.items():
        assert answer["probabilities"].numpy()[0].tolist() == expected, name
    assert list(answers["pixels"]) == ["probabilities"]
    assert answers["images"]["label"].numpy()[0].decode() == labels.best


def test_a_pixels_graph_stays_one_of_pixels():
    assert CONVERTERS["pixels_graph"].taking(IMAGE) == "pixels"
    assert CONVERTERS["onnx"].taking(IMAGE) == "image"


INTEGERS = ["--tflite_file", "m.tflite", "--tflite_quantize", "int8"]


@pytest.mark.parametrize("others", [["--pixels_graph", "p.pb"], INTEGERS, []])
def test_the_flag_needs_a_format_that_takes_images(others, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_flags(["--image_dir", "p", "--export_input", "image", *others], None)
    assert ended.value.code == 2
    assert (
        "--export_input image needs --saved_model_dir or --tflite_file or --onnx_file"
        in capsys.readouterr().err
    )
