"""formats.py and its converters: files as other programs use them, and what makes a run fail."""

import contextlib
import errno
import functools
import importlib.util
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import flatbuffers
import numpy as np
import pytest
import tensorflow as tf
from flatbuffers.table import Table
from PIL import Image

from retraining import load_classifier
from retraining.cli import flags as cli_flags
from retraining.cli import settings as cli_settings
from retraining.export import build, convert, formats, to_saved_model
from retraining.export.convert import convert_and_run, read_calibration, read_samples
from retraining.export.formats import Photos
from retraining.export.pixels_graph import Source
from retraining.export.registry import CONVERTERS
from retraining.export.tflite_model import TFLiteModel
from retraining.graphs import description, write
from retraining.graphs.description import read_metadata
from retraining.graphs.messages import GraphDef
from retraining.graphs.nodes import GraphError, nodes_by_name, set_constant, shape_of, sizes_of
from retraining.graphs.preprocessing import Preprocessing
from retraining.graphs.read import import_graph, read_graph
from retraining.graphs.tensorflow import import_tensorflow
from retraining.networks import dinov2
from retraining.networks.mirror import mirror_average
from retraining.networks.network import load_network
from retraining.networks.pair import NetworkPair
from retraining.networks.registry import find
from retraining.photos.reader import ImageReader, read_file
from retraining.system.children import run_module
from retraining.training.head import Head
from tests import tiny
from tests.networks.dinov2_weights import random_weights

LABELS = ["blue", "green", "red"]
HAS_ONNX = all(map(importlib.util.find_spec, CONVERTERS["onnx"].packages))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="what --onnx_file needs is not installed")


def in_this_process(_, arguments, scratch):
    """In place of run_module: the same converters, so that a test can break them."""
    convert.main(arguments[-1])
    return SimpleNamespace(returncode=0)


def mostly_here(module, arguments, scratch):
    """In place of run_module: only the SavedModel is made in a process of its own."""
    request = json.loads((scratch / "request.json").read_text())
    run = run_module if request["format"] == "saved_model" else in_this_process
    return run(module, arguments, scratch)


@pytest.fixture(scope="module")
def run(tmp_path_factory, run_retrain, photos):
    """One run that writes every format: its folder, paths, stdout and stderr."""
    folder = tmp_path_factory.mktemp("formats")
    (folder / "saved" / "7").mkdir(parents=True)
    flags = ["--saved_model_dir", folder / "saved", "--tflite_file", folder / "m.tflite"]
    flags += ["--pixels_graph", folder / "pixels.pb"]
    flags += ["--onnx_file", folder / "m.onnx"] if HAS_ONNX else []
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(formats, "run_module", mostly_here)
        assert run_retrain(folder, photos, "--precision", "float32", *flags) == 0
    return SimpleNamespace(
        folder=folder,
        graph=read_graph(folder / "models" / "retrained_graph.pb"),
        graph_path=folder / "models" / "retrained_graph.pb",
        pixels=str(folder / "pixels.pb"),
        saved=str(folder / "saved" / "8"),
        tflite=str(folder / "m.tflite"),
        onnx=str(folder / "m.onnx"),
        out=out.getvalue(),
        err=err.getvalue(),
    )


@pytest.fixture(scope="module")
def some(photos):
    """Paths of four photos."""
    return [f"{photos}/{label}/photo_{n:02d}.jpg" for label in ("red", "blue") for n in (3, 4)]


@pytest.fixture(scope="module")
def pixels(run, some):
    about = read_metadata(run.graph)
    reader = ImageReader(Preprocessing.of(about))
    return np.concatenate([reader.read(path) for path in some])


@pytest.fixture(scope="module")
def expected(run, some):
    """The frozen graph's own answers, by TensorFlow 1's ways, one file's bytes at a time."""
    with tf.compat.v1.Session(graph=import_graph(run.graph)) as session:
        feed = "DecodeJpeg/contents:0"
        answers = [session.run("final_result:0", {feed: read_file(path)}) for path in some]
    return np.concatenate(answers)


def test_a_saved_model_takes_files_and_pixels(run, some, pixels, expected):
    loaded = tf.saved_model.load(run.saved)
    contents = tf.constant([read_file(path) for path in some])
    answers = [
        loaded.signatures["serving_default"](image_bytes=contents),
        loaded.signatures["images"](images=tf.constant(pixels)),
    ]
    for answer in answers:
        np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)
        assert answer["label"].numpy().tolist() == [b"red", b"red", b"blue", b"blue"]
        assert answer["labels"].numpy().tolist() == [[b"blue", b"green", b"red"]] * 4
    alone = loaded.signatures["pixels"](images=tf.constant(pixels))
    assert list(alone) == ["probabilities"]  # converters to runtimes without strings need this
    np.testing.assert_allclose(alone["probabilities"], expected, atol=1e-5)
    single = loaded.signatures["one_image"](image_bytes=contents[2])
    np.testing.assert_allclose(single["probabilities"], expected[2:3], atol=1e-5)


def test_a_pixels_graph_takes_pixels_and_holds_nothing_else(run, pixels, expected):
    graph_def = read_graph(run.pixels)
    with tf.compat.v1.Session(graph=import_graph(graph_def)) as session:
        answers = session.run("final_result:0", {"Mul:0": pixels})
    np.testing.assert_allclose(answers, expected, atol=1e-5)
    (placeholder,) = (n for n in graph_def.node if n.op.startswith("Placeholder"))
    assert (placeholder.op, sizes_of(placeholder)) == ("Placeholder", [-1, tiny.SIZE, tiny.SIZE, 3])
    left = {node.op for node in graph_def.node} - {"Placeholder", "Const", "Conv2D", "BiasAdd"}
    ops = {"Relu", "ConcatV2", "AvgPool", "Reshape", "MatMul", "Add", "Softmax"}
    assert left == ops  # no decoder, batch norm, CheckNumerics, Identity or old Concat
    assert not any(name.startswith("^") for node in graph_def.node for name in node.input)


def test_label_image_reads_a_pixels_graph(run, some):
    graphs = run.pixels, run.graph_path
    answers = [load_classifier(graph, precision="float32").label(some) for graph in graphs]
    for one, other in zip(*answers, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-5)


def test_a_pixels_graph_tells_the_temperature(mobilenet, tmp_path):
    """It is not in the output, as in the retrained graph; label_image.py applies it."""
    graph_def = GraphDef()
    graph_def.MergeFrom(mobilenet)
    about = read_metadata(graph_def) | {"trust": {"temperature": 2.5}}
    set_constant(nodes_by_name(graph_def)[description.METADATA], build_text(about))
    CONVERTERS["pixels_graph"].save(Source.of(graph_def), str(tmp_path / "p.pb"))
    assert load_classifier(tmp_path / "p.pb").temperature == 2.5


def test_label_image_refuses_a_pixels_graph_of_two_networks(two_networks, tmp_path):
    CONVERTERS["pixels_graph"].save(Source.of(two_networks), str(tmp_path / "p.pb"))
    about = read_metadata(read_graph(tmp_path / "p.pb"))
    assert list(about["inputs"]) == ["Mul", "second/input"]
    assert about["inputs"]["second/input"] == {"size": [128, 128], "mean": 127.5, "std": 127.5}
    with pytest.raises(GraphError, match="the graph needs a value for 'second/input'"):
        load_classifier(tmp_path / "p.pb")


def build_text(about):
    """The value of a metadata node."""
    return np.array(json.dumps(about).encode(), object)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGB", "L", "P", "JPEG"])
def test_a_saved_model_sees_white_behind_what_is_transparent(run, mode):
    photo = tiny.photo(tiny.COLOURS["red"], np.random.default_rng(2))
    photo.putalpha(Image.linear_gradient("L").resize(photo.size).point(lambda a: max(0, a - 99)))
    photo = (
        photo.convert("RGB").quantize(16)
        if mode == "P"
        else photo.convert(mode.replace("JPEG", "RGB"))
    )
    file = io.BytesIO()
    photo.save(file, "JPEG" if mode == "JPEG" else "PNG")
    loaded = tf.saved_model.load(run.saved)
    seen = ImageReader(Preprocessing.of(read_metadata(run.graph))).decode(file.getvalue())
    expected = loaded.signatures["images"](images=tf.constant(seen))["probabilities"]
    for name, content in (("one_image", file.getvalue()), ("serving_default", [file.getvalue()])):
        answer = loaded.signatures[name](image_bytes=tf.constant(content))
        np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)


def test_a_saved_model_is_the_next_version_in_its_folder(run):
    assert sorted(os.listdir(run.folder / "saved")) == ["7", "8"]
    assert os.listdir(run.folder / "saved" / "7") == []
    saved = Path(run.saved)
    assert (saved / "saved_model.pb").is_file()
    assert (saved / "variables").is_dir()
    assert (saved / "assets" / "labels.txt").read_text() == "blue\ngreen\nred\n"


def test_a_saved_model_holds_the_network_once(run):
    saved = import_tensorflow().SavedModel.FromString(
        Path(run.saved, "saved_model.pb").read_bytes()
    )
    functions = saved.meta_graphs[0].graph_def.library.function
    assert sum(any(node.op == "Conv2D" for node in f.node_def) for f in functions) == 1
    kernels = [sizes for _, sizes in tf.train.list_variables(f"{run.saved}/variables/variables")]
    wide = [n for n in Source.of(run.graph).graph_def.node if len(shape_of(n)) > 1]
    assert sorted(filter(None, kernels)) == sorted(list(shape_of(n)) for n in wide)
    largest = max(len(n.attr["value"].tensor.tensor_content) for f in functions for n in f.node_def)
    assert largest < 1000  # no kernel is a constant, of which each function would have a copy


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
def test_a_tflite_file_takes_pixels(run, pixels, expected):
    answers = TFLiteModel(run.tflite).run({"images": pixels})
    np.testing.assert_allclose(answers, expected, atol=1e-5)
    interpreter = tf.lite.Interpreter(run.tflite)
    (about,) = interpreter.get_input_details()
    assert about["shape"].tolist() == [1, tiny.SIZE, tiny.SIZE, 3]
    interpreter.resize_tensor_input(about["index"], pixels.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(about["index"], pixels)
    interpreter.invoke()
    answers = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(answers, expected, atol=1e-5)


def field(table, number, kind=None):
    """A field of a FlatBuffer's table by its number: a table, or what `kind` reads."""
    place = table.Pos + table.Offset(4 + 2 * number)
    if kind is None:
        return Table(table.Bytes, table.Indirect(place))
    return kind(table, place)


def text(table, place):
    return table.String(place).decode()


def byte(table, place):
    return table.Get(flatbuffers.number_types.Uint8Flags, place)


def first(table, place):
    """The first table of a list."""
    return Table(table.Bytes, table.Indirect(table.Vector(place - table.Pos)))


def number(table, place):
    """The only number in a list of floats."""
    assert table.VectorLen(place - table.Pos) == 1
    start = table.Vector(place - table.Pos)
    return table.Get(flatbuffers.number_types.Float32Flags, start)


def test_a_tflite_file_holds_labels_and_normalisation(run):
    """Numbers of the fields as in metadata_schema.fbs of TensorFlow Lite Support."""
    from tensorflow.lite.tools import flatbuffer_utils

    with zipfile.ZipFile(run.tflite) as archive:
        assert archive.read("labels.txt").decode().splitlines() == LABELS
        assert archive.getinfo("labels.txt").compress_type == zipfile.ZIP_STORED
    tree = flatbuffer_utils.read_model(run.tflite)
    (entry,) = (each for each in tree.metadata if each.name == b"TFLITE_METADATA")
    content = bytearray(tree.buffers[entry.buffer].data)
    assert flatbuffers.util.BufferHasIdentifier(content, 0, b"M001")
    root = flatbuffers.encode.Get(flatbuffers.packer.uoffset, content, 0)
    model = Table(content, root)
    assert field(model, 7, text) == "1.0.0"  # min_parser_version
    parts = field(model, 3, first)  # subgraph_metadata
    image, output = field(parts, 2, first), field(parts, 3, first)
    assert (field(image, 0, text), field(output, 0, text)) == ("images", "probabilities")
    shown = field(image, 3)  # content
    assert field(shown, 0, byte) == 2  # ImageProperties
    assert field(field(shown, 1), 0, byte) == 1  # RGB
    unit = field(image, 4, first)  # process_units
    assert field(unit, 0, byte) == 1  # NormalizationOptions
    assert (field(field(unit, 1), 0, number), field(field(unit, 1), 1, number)) == (128, 128)
    file = field(output, 6, first)  # associated_files
    assert (field(file, 0, text), field(file, 2, byte)) == ("labels.txt", 2)


def described_in(kind, run):
    """The description in a file of a format."""
    if kind == "saved_model":
        return Path(run.saved, "assets", "retraining.json").read_bytes()
    if kind == "tflite":
        with zipfile.ZipFile(run.tflite) as archive:
            return archive.read("retraining.json")
    import onnxruntime

    session = onnxruntime.InferenceSession(run.onnx, providers=["CPUExecutionProvider"])
    return session.get_modelmeta().custom_metadata_map["retraining"]


@pytest.mark.parametrize("kind", ["saved_model", "tflite", pytest.param("onnx", marks=needs_onnx)])
def test_every_format_tells_how_to_use_it(run, kind):
    size = [tiny.SIZE, tiny.SIZE]
    image = {"takes": "pixels", "size": size, "mean": 128, "std": 128, "kernel": "legacy_bilinear"}
    trust = read_metadata(run.graph)["trust"]
    assert json.loads(described_in(kind, run)) == {
        "format": 1,
        "labels": LABELS,
        "network": read_metadata(run.graph)["network"],
        "inputs": {"images": image},
        "output": "probabilities",
        "temperature": trust["temperature"],
        "temperature_inside": False,
    }


@needs_onnx
def test_an_onnx_file_takes_pixels_and_describes_itself(run, pixels, expected):
    import onnxruntime

    session = onnxruntime.InferenceSession(run.onnx, providers=["CPUExecutionProvider"])
    (feed,) = session.get_inputs()
    assert (feed.name, feed.shape) == ("images", ["batch", tiny.SIZE, tiny.SIZE, 3])
    (answers,) = session.run(["probabilities"], {"images": pixels})
    np.testing.assert_allclose(answers, expected, atol=1e-5)
    import onnx

    ops = Counter(node.op_type for node in onnx.load(run.onnx).graph.node)
    assert (ops["Transpose"], ops["Identity"], ops["Cast"]) == (1, 0, 0)  # pixels to NCHW
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["labels"]) == LABELS
    size = [tiny.SIZE, tiny.SIZE]
    assert json.loads(about["inputs"]) == {"images": {"size": size, "mean": 128, "std": 128}}


def test_where_they_went_is_a_result_and_how_they_agree_is_said(run):
    results = [line.split("\t") for line in run.out.splitlines()]
    written = [["pixels_graph", run.pixels], ["saved_model", run.saved], ["tflite", run.tflite]]
    written += [["onnx", run.onnx]] if HAS_ONNX else []
    assert results[-len(written) :] == written
    count = re.search(r"\(\d+ of (\d+) photos,", run.err).group(1)
    same = f"the same first label for {count} of {count} photos, probabilities up to "
    kinds = "pixels_graph|saved_model|tflite|onnx"
    assert re.findall(f"^({kinds}), .*MB: from pixels, {same}", run.err, re.M)
    assert f"from files' bytes, {same.replace(count, str(min(10, int(count))))}" in run.err
    assert run.err.count(": from pixels") == len(written)
    total = len(written)
    announced = re.findall(r"^converting to (\w+) \((\d) of (\d)\)$", run.err, re.M)
    assert announced == [(name, str(n), str(total)) for n, (name, _) in enumerate(written, 1)]


def test_the_metrics_file_tells_how_to_use_each_file(run):
    record = json.loads((run.folder / "models" / "retrained_metrics.json").read_text())
    network = record["network"]
    assert (network["input_size"], network["input_mean"]) == ([tiny.SIZE, tiny.SIZE], 128)
    assert (network["input_std"], network["kernel"]) == (128, "legacy_bilinear")
    assert record["temperature"] == read_metadata(run.graph)["trust"]["temperature"]
    written = [("pixels_graph", run.pixels), ("saved_model", run.saved), ("tflite", run.tflite)]
    written += [("onnx", run.onnx)] if HAS_ONNX else []
    for (name, path), told in zip(written, record["exports"], strict=True):
        assert (told["format"], told["path"], told["takes"]) == (name, path, "pixels")
        assert told["temperature_inside"] is False
        assert told["checks"][0]["same_label"] == 1


# -- graphs of other kinds ----------------------------------------------------------------------


def random_head(*widths):
    """A Head of layers of these widths, from the vector's to the number of classes."""
    rng = np.random.default_rng(0)
    layers = [
        ((rng.normal(size=shape) / shape[0] ** 0.5).astype("f4"), np.zeros(shape[1], "f4"))
        for shape in itertools.pairwise(widths)
    ]
    return Head(*layers[-1], hidden=tuple(layers[:-1]))


def retrained(network, *hidden):
    """The GraphDef of a network, or two, with random layers to three classes."""
    graph_def = build.build_graph(network, random_head(network.width, *hidden, 3), "result")
    about = build.describe(network, ["a", "b", "Blüte"], "result", {})
    graph_def.MergeFromString(build.metadata_bytes(about))
    return graph_def


@pytest.fixture(scope="module")
def networks(inception_file, tmp_path_factory):
    """(the tiny Inception, a tiny MobileNet) as network.BaseNetworks."""
    return tiny.base_networks(inception_file, tmp_path_factory.mktemp("m"))


@pytest.fixture(scope="module")
def mobilenet(networks):
    return retrained(networks[1])


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    """A tiny DINOv2, for which photos are resized by another kernel."""
    path = tmp_path_factory.mktemp("d") / "dinov2.pb"
    file = tiny.write_graph(str(path), dinov2.build_graph(random_weights(), 42))
    return retrained(load_network(file, find("dinov2_small")))


@pytest.fixture(scope="module")
def two_networks(networks):
    return retrained(NetworkPair(*networks))


@pytest.fixture(scope="module")
def hidden_and_mirrored(networks):
    """With two layers before the last, and the mean of each photo's and its mirror image's."""
    return retrained(mirror_average(networks[1]), 16, 8)


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
@pytest.mark.parametrize(
    "kind",
    [
        "pixels_graph",
        "saved_model",
        "tflite",
        "tflite_int8",
        "tflite_full_int8",
        pytest.param("onnx", marks=needs_onnx),
    ],
)
@pytest.mark.parametrize(
    "name", ["mobilenet", "two_networks", "hidden_and_mirrored", "transformer"]
)
def test_other_graphs_agree_as_well(kind, name, request, some, tmp_path):
    graph_def = request.getfixturevalue(name)
    source = Source.of(graph_def)
    assert len(source.inputs) == (2 if name == "two_networks" else 1)
    samples = read_samples(graph_def, source, dict.fromkeys(some, 0), 10**6)
    assert np.ptp(samples.answers, axis=0).max() > 0.01  # photos are told apart
    calibration = functools.partial(read_calibration, source, some, 10**6)
    found = convert_and_run(kind, source, samples, calibration, str(tmp_path))
    for check in found.values():
        assert (check.photos, check.same) == (4, 1.0)
        assert check.difference < (0.1 if "int8" in kind else 1e-4)
        assert check.correct == check.correct_by_graph == (samples.answers.argmax(1) == 0).sum()
    assert len(found) == (2 if kind == "saved_model" else 1)


def test_int8_weights_are_a_quarter_of_the_size(tmp_path):
    b = tiny.GraphBuilder(producer=1087)
    b.add("input", "Placeholder", dtype=tf.float32, shape=(-1, 4, 4, 3))
    b.const("shape", np.array([-1, 48], np.int32))
    b.float_op("flat", "Reshape", "input", "shape")
    b.const("weights", np.random.default_rng(0).normal(size=(48, 5000)).astype("f4"))
    b.float_op("product", "MatMul", "flat", "weights")
    b.float_op("output", "Softmax", "product")
    about = {"labels": [str(n) for n in range(5000)], "input": "input", "output": "output"}
    about |= {"size": [4, 4], "mean": 0.0, "std": 1.0, "network": "none"}
    b.const(description.METADATA, json.dumps(about).encode())
    source = Source.of(b.graph_def)
    for kind in ("tflite", "tflite_int8"):
        CONVERTERS[kind].save(source, str(tmp_path / kind))
    texts = 110_000  # the labels, twice
    sizes = [os.path.getsize(tmp_path / kind) - texts for kind in ("tflite", "tflite_int8")]
    assert sizes[0] > 900_000
    assert sizes[1] < 300_000


# -- what makes a run fail ----------------------------------------------------------------------


@pytest.fixture
def failing(tmp_path, run_retrain, photos, capsys):
    """Runs retrain.py with flags that are to fail; gives (exit code, stderr's last line)."""

    def run(*flags):
        for flag in ("--report", "--metrics", "--label_audit"):
            flags = (*flags, flag, tmp_path / f"models/{flag[2:]}")
        code = run_retrain(tmp_path, photos, *flags, steps=20)
        return code, capsys.readouterr().err.splitlines()[-1]

    return run


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
def test_a_format_that_answers_otherwise_fails_the_run(failing, monkeypatch, tmp_path):
    tflite = CONVERTERS["tflite"]

    def save_wrongly(source, path):
        weights = nodes_by_name(source.graph_def)["final_training_ops/weights/final_weights"]
        values = tf.make_ndarray(weights.attr["value"].tensor)
        set_constant(weights, values[:, ::-1].copy())
        tflite.save(source, path)

    monkeypatch.setitem(CONVERTERS, "tflite", replace(tflite, save=save_wrongly))
    monkeypatch.setattr(formats, "run_module", in_this_process)
    (tmp_path / "m.tflite").write_bytes(b"the one before")
    code, said = failing("--tflite_file", tmp_path / "m.tflite")
    assert code == 1
    assert "tflite does not answer as the retrained graph does" in said
    assert said.endswith("nothing was replaced")
    assert (tmp_path / "m.tflite").read_bytes() == b"the one before"
    assert not (tmp_path / "models" / "retrained_graph.pb").exists()


def test_a_converter_that_fails_is_one_line(failing, monkeypatch, tmp_path):
    def run_without_graph(module, arguments, scratch):
        (scratch / "graph.pb").unlink()
        return run_module(module, arguments, scratch)

    monkeypatch.setattr(formats, "run_module", run_without_graph)
    code, said = failing("--saved_model_dir", tmp_path / "saved")
    assert code == 1
    assert re.search(r"cannot make another format: .*graph\.pb.*; nothing was replaced", said)
    assert not (tmp_path / "saved").exists()


def test_a_converter_that_is_killed_is_one_line(monkeypatch, tmp_path):
    killed = SimpleNamespace(returncode=-9, stderr=b"")
    monkeypatch.setattr(formats, "run_module", lambda *_, **__: killed)
    with pytest.raises(build.ExportError, match="ended with exit code -9; nothing was replaced"):
        formats.make({"tflite": "x"}, b"", Photos({}))


def test_a_full_disk_names_the_file_or_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    failed = SimpleNamespace(returncode=1, stderr=b"tflite: list index out of range")
    monkeypatch.setattr(formats, "run_module", lambda *_: failed)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=7_000_000))
    with pytest.raises(build.ExportError, match=r"range; nothing was replaced"):
        formats.make({"tflite": "x"}, bytes(1000), Photos({}))
    with pytest.raises(build.ExportError) as error:
        formats.make({"tflite": "x"}, bytes(2_000_000), Photos({}))
    assert f"range (7.0 MB are left for temporary files in {tmp_path}; see TMPDIR); nothing" in (
        str(error.value)
    )

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left") as unwritten:
        formats.make({"tflite": "x"}, b"", Photos({}))
    assert str(unwritten.value.filename).startswith(f"{tmp_path}/retrain-")
    assert unwritten.value.filename.endswith("graph.pb")
    assert list(tmp_path.iterdir()) == []


def test_a_decoder_that_reads_no_photo_is_said(networks, photos, tmp_path, monkeypatch):
    """A WebP file, which Pillow reads and TensorFlow's DecodeJpeg does not."""
    monkeypatch.setattr(formats, "run_module", in_this_process)
    graph_def = retrained(networks[1])
    tiny.Image.open(f"{photos}/red/photo_03.jpg").save(tmp_path / "photo.webp")
    wanted = {"saved_model": str(tmp_path / "saved")}
    content = write.graph_bytes(graph_def)
    (made,) = formats.make(wanted, content, Photos({str(tmp_path / "photo.webp"): 0}))
    assert "from pixels, the same first label for 1 of 1 photos" in made.agreement
    assert made.agreement.endswith(
        "; from files' bytes, not checked, as TensorFlow reads none of these photos, or ignores "
        "their transparency"
    )


def test_the_frozen_graph_is_no_measure_of_transparency(networks, photos, tmp_path):
    """Its own decoder shows the colours that lie hidden behind it."""
    graph_def = retrained(networks[1])
    photo = tiny.Image.open(f"{photos}/red/photo_03.jpg")
    photo.save(tmp_path / "opaque.png")
    photo.putalpha(0)
    photo.save(tmp_path / "clear.png")
    paths = [str(tmp_path / name) for name in ("clear.png", "opaque.png")]
    samples = read_samples(graph_def, Source.of(graph_def), dict.fromkeys(paths, 0), 10**6)
    assert samples.files == [(tmp_path / "opaque.png").read_bytes()]
    assert len(samples.answers) == 2


def test_a_missing_package_is_said_before_anything_is_computed(failing, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, said = failing("--onnx_file", tmp_path / "m.onnx")
    assert code == 1
    assert "needs tf2onnx, onnx, onnxruntime: pip install -r requirements-onnx.txt" in said
    assert not list((tmp_path / "bottleneck_cache").glob("inception*"))


def test_unwritable_places_are_said_at_the_start(failing, tmp_path):
    (tmp_path / "file").write_text("")
    code, said = failing("--saved_model_dir", tmp_path / "file")
    assert (code, "cannot write into" in said) == (1, True)
    (tmp_path / "folder").mkdir()
    code, said = failing("--tflite_file", tmp_path / "folder")
    assert (code, "it is a folder" in said) == (1, True)


def test_versions_are_counted_on(tmp_path):
    assert to_saved_model.next_version(tmp_path / "absent") == str(tmp_path / "absent" / "1")
    for name in ("1", "12", "notes", "x13"):
        (tmp_path / name).mkdir()
    assert to_saved_model.next_version(tmp_path) == str(tmp_path / "13")


@pytest.fixture
def converted(monkeypatch):
    """Makes one format by a converter that gives these answers to pixels; also the request."""

    def make(kind, answers, photos=("here.jpg",), calibration=()):
        requests = []

        def run(module, arguments, folder):
            requests.append(json.loads((folder / "request.json").read_text()))
            (folder / kind).write_bytes(b"a model")
            (folder / "answers.json").write_text(json.dumps({"pixels": answers}))
            return SimpleNamespace(returncode=0)

        monkeypatch.setattr(formats, "run_module", run)
        numbered = {path: number for number, path in enumerate(photos)}
        (made,) = formats.make({kind: "x"}, b"", Photos(numbered, calibration, 9))
        return made, requests[0]

    return make


def test_answers_must_be_those_of_the_graph(converted):
    made, _ = converted("tflite", (50, 1.0, 0.0123, 40, 41))
    assert (made.name, made.path, made.content) == ("tflite", "x", b"a model")
    assert made.agreement == (
        "tflite, 0.0 MB: from pixels, the same first label for 50 of 50 photos, probabilities up "
        "to 0.012 apart"
    )
    for same, difference in ((0.98, 0.0), (1.0, 0.03), (1.0, float("nan"))):
        with pytest.raises(build.ExportError, match="does not answer"):
            converted("tflite", (50, same, difference, 40, 41))


@pytest.mark.parametrize("kind", ["tflite_int8", "tflite_full_int8"])
def test_rounded_files_may_answer_otherwise_with_a_warning(kind, converted):
    made, _ = converted(kind, (200, 0.95, 0.5, 140, 150))
    assert (made.name, made.kind, made.size, made.warning) == ("tflite", kind, 7, "")
    assert made.agreement == (
        f"{kind}, 0.0 MB: from pixels, the same first label for 190 of 200 photos, probabilities "
        "up to 0.5 apart; 140 right (the graph: 150)"
    )
    made, _ = converted(kind, (200, 0.945, 0.5, 140, 150))
    assert made.warning == (
        f"{kind} gives only 94.5% of 200 photos the first label that the graph gives them"
    )
    with pytest.raises(build.ExportError):
        converted(kind, (200, 0.4, 0.5, 140, 150))


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
def test_a_run_calibrates_on_training_photos_and_records_how_it_did(failing, monkeypatch, tmp_path):
    requests = []

    def run(module, arguments, scratch):
        requests.append(json.loads((scratch / "request.json").read_text()))
        return in_this_process(module, arguments, scratch)

    monkeypatch.setattr(formats, "run_module", run)
    path = tmp_path / "m.tflite"
    assert failing("--tflite_file", path, "--tflite_quantize", "int8")[0] == 0
    (request,) = requests
    assert request["calibration"]
    assert not set(request["calibration"]) & set(request["photos"])
    record = json.loads((tmp_path / "models" / "metrics").read_text())
    (described,) = record["exports"]
    assert (described["kind"], described["path"]) == ("tflite_full_int8", str(path))
    assert described["bytes"] == path.stat().st_size
    (check,) = described["checks"]
    tested = record["test"]
    assert (check["input"], check["photos"]) == ("uint8 pixels", tested["photos"])
    assert check["correct_by_graph"] == tested["correct"]
    assert record["caveats"] == []
    assert "tflite_full_int8" in (tmp_path / "models" / "report").read_text()


def test_a_run_warns_of_a_file_that_answers_otherwise_and_writes_it(failing, monkeypatch, tmp_path):
    def run(module, arguments, scratch):
        (scratch / "tflite_int8").write_bytes(b"a model")
        (scratch / "answers.json").write_text('{"pixels": [50, 0.9, 0.5, 40, 44]}')
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(formats, "run_module", run)
    path = tmp_path / "m.tflite"
    assert failing("--tflite_file", path, "--tflite_quantize", "dynamic")[0] == 0
    assert path.read_bytes() == b"a model"
    record = json.loads((tmp_path / "models" / "metrics").read_text())
    assert record["caveats"] == [
        "tflite_int8 gives only 90.0% of 50 photos the first label that the graph gives them"
    ]


def test_only_a_calibrated_format_reads_training_photos(converted):
    photos = [f"{number}.jpg" for number in range(300)]
    for kind, count, training in (
        ("tflite", 50, []),
        ("tflite_int8", 200, []),
        ("tflite_full_int8", 200, ["/t.jpg"]),
    ):
        _, request = converted(kind, (50, 1.0, 0.0, 40, 41), photos, ["/t.jpg"])
        assert (len(request["photos"]), request["calibration"]) == (count, training)
        assert (request["targets"][0], request["targets"][-1]) == (0, 299)
        assert request["photos"][-1].endswith("/299.jpg")


def test_a_format_of_ones_own_needs_no_more_than_its_converter(monkeypatch, failing, tmp_path):
    """Its flag, the check of its packages, its result on stdout and its file."""
    onnx = CONVERTERS["onnx"]
    other = replace(
        CONVERTERS["tflite"], kind="other", name="other", option="other_file", variants={}
    )
    monkeypatch.setitem(CONVERTERS, "other", other)
    for module in (cli_flags, cli_settings):
        monkeypatch.setattr(module, "FORMATS", (*module.FORMATS, other))
    monkeypatch.setitem(cli_flags.OUTPUT_FLAGS, "other", "other_file")
    monkeypatch.setattr(formats, "run_module", in_this_process)
    assert failing("--other_file", tmp_path / "models" / "retrained_graph.pb")[0] == 2
    missing = replace(other, packages=("no_such_package",), requirements=onnx.requirements)
    monkeypatch.setitem(CONVERTERS, "other", missing)
    code, said = failing("--other_file", tmp_path / "m.other")
    assert (code, "--other_file needs no_such_package: pip install -r" in said) == (1, True)
    monkeypatch.setitem(CONVERTERS, "other", other)
    assert failing("--other_file", tmp_path / "m.other")[0] == 0
    assert (tmp_path / "m.other").read_bytes()[4:8] == b"TFL3"


def test_retrain_does_not_load_what_it_is_not_asked_for():
    code = "import sys, retrain; print({'tensorflow', 'onnx', 'tf2onnx'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n"


def test_photos_run_in_small_batches():
    """All at once, fifty photos would take a gigabyte in Inception-v3."""
    sizes = []

    def run(feeds):
        sizes.append([len(pixels) for pixels in feeds.values()])
        return feeds["images"][:, 0, 0, :2] + feeds["images_2"][:, 0, 0, :2]

    pixels = np.arange(20 * 3, dtype="f4").reshape(20, 1, 1, 3)
    model = SimpleNamespace(run=run)
    answers = convert.run_in_batches(model, {"images": pixels, "images_2": pixels})
    np.testing.assert_array_equal(answers, 2 * pixels[:, 0, 0, :2])
    assert sizes == [[8, 8], [8, 8], [4, 4]]


def test_photos_at_urls_keep_their_names(converted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, request = converted("onnx", (2, 1.0, 0.0, 1, 1), ["s3://b/a.jpg", "here.jpg"])
    assert request["photos"] == ["s3://b/a.jpg", f"{tmp_path}/here.jpg"]
    assert (request["format"], request["max_image_pixels"]) == ("onnx", 9)
