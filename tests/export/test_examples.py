"""The examples of docs/ that other programs run, against what this project computes."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from retraining import load_classifier
from retraining.export.pixels_graph import Source
from retraining.export.registry import CONVERTERS
from retraining.graphs.description import IMAGE, METADATA, PIXELS, read_metadata
from retraining.graphs.nodes import nodes_by_name, set_constant
from retraining.graphs.preprocessing import resize_bilinear
from retraining.graphs.read import read_graph
from retraining.graphs.write import graph_bytes
from tests import ROOT

PAGE = (ROOT / "docs" / "other-programs.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
FILES = {name: block for block in BLOCKS for name in re.findall(r"\A# (\w+\.py)\n", block)}


def run(code):
    """Runs a block of Python; returns its names."""
    names = {}
    exec(compile(code, "example.py", "exec"), names)
    return names


@pytest.fixture(scope="module", params=["pixels.py", "opencv_pixels.py"])
def model_input(request):
    if "opencv" in request.param:
        pytest.importorskip("cv2")
    return run(FILES[request.param])["model_input"]


@pytest.mark.parametrize("old", [(1, 1), (5, 7), (40, 299), (600, 451)])
@pytest.mark.parametrize("size", [(32, 32), (299, 299), (30, 50)])
def test_the_pixels_of_the_page_are_those_of_training(model_input, old, size):
    photo = np.random.default_rng(0).integers(0, 256, (*old, 3), np.uint8)
    images = model_input(photo, size, 128, 64)
    assert (images.shape, images.dtype) == ((1, *size, 3), np.float32)
    expected = (resize_bilinear(photo, size) - np.float32(128)) / np.float32(64)
    np.testing.assert_allclose(images[0], expected, rtol=0, atol=1e-4 / 64)


def test_the_pixels_of_the_page_take_a_mean_for_each_channel(model_input):
    images = model_input(np.full((2, 2, 3), 100, np.uint8), [2, 2], [10, 20, 30], [1, 2, 5])
    np.testing.assert_array_equal(images, np.broadcast_to(np.float32([90, 40, 14]), (1, 2, 2, 3)))


@pytest.mark.slow  # it links against a library of a gigabyte
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("gcc"), reason="no gcc on Linux")
def test_the_program_in_c_gives_the_probabilities(finished, tmp_path):
    folder = Path(importlib.util.find_spec("tensorflow").origin).parent
    libraries = ["-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2"]
    flags = [f"-I{folder}/include", f"-L{folder}", f"-Wl,-rpath,{folder}", *libraries]
    program, source = tmp_path / "label", ROOT / "docs" / "examples" / "label.c"
    subprocess.run(["gcc", "-Werror", source, "-o", program, *flags], check=True)

    def label(*arguments):
        return subprocess.run([program, *arguments], capture_output=True, text=True)

    photo = str(Path(finished.photos) / "red" / "photo_00.jpg")
    done = label(finished.graph, photo)
    (labels,) = load_classifier(finished.graph).label([photo])
    assert done.returncode == 0
    likeliest = max(range(3), key=list(map(float, done.stdout.split())).__getitem__)
    assert ["blue", "green", "red"][likeliest] == labels.best == "red"
    assert label(finished.graph, "absent.jpg").returncode == 1
    assert label(photo, photo).returncode == 1
    assert label().returncode == 2


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    """A folder with a photo and files of a model that has a temperature; the photo's scores."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    folder = tmp_path_factory.mktemp("page")
    graph_def = read_graph(finished.graph)
    about = read_metadata(graph_def) | {"trust": {"temperature": 4.0}}
    set_constant(nodes_by_name(graph_def)[METADATA], np.array(json.dumps(about).encode(), object))
    (folder / "g.pb").write_bytes(graph_bytes(graph_def))
    (folder / "models").mkdir()
    for takes, name in ((PIXELS, "retrained.onnx"), (IMAGE, "image.onnx")):
        source = Source.of(read_graph(folder / "g.pb"), takes)
        CONVERTERS["onnx"].save(source, str(folder / "models" / name))
    shutil.copy(Path(finished.photos) / "red" / "photo_00.jpg", folder / "photo.jpg")
    for name, block in FILES.items():
        (folder / name).write_text(block)
    (labels,) = load_classifier(folder / "g.pb").label([str(folder / "photo.jpg")])
    return folder, labels.scores


@pytest.mark.parametrize("file", ["retrained.onnx", "image.onnx"])
def test_the_page_gives_the_scores_of_label_image(file, exported, monkeypatch):
    folder, expected = exported
    (code,) = (block for block in BLOCKS if f'InferenceSession("models/{file}")' in block)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    names = run(code)
    about = names["session"].get_modelmeta().custom_metadata_map
    scores = dict(zip(json.loads(about["labels"]), names["scores"].ravel().tolist(), strict=True))
    assert scores == pytest.approx(dict(expected), abs=0.01)
    assert max(expected.values()) < 0.9  # the temperature matters
