"""Labelling with LiteRT and NumPy gives what TensorFlow gives, and needs no TensorFlow."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retraining.graphs.description import METADATA
from retraining.graphs.nodes import constant, nodes_by_name, set_constant
from retraining.graphs.read import read_graph
from retraining.graphs.twin import cache_folder
from retraining.labelling.classifier import load_classifier

PROJECT = Path(__file__).resolve().parents[2]
KINDS = {
    "plain": ("--validation_percentage", "40"),
    "hidden layers": ("--hidden_units", "9", "--validation_percentage", "40"),
    "mirrored": ("--mirror_average",),
    "fine-tuned": ("--fine_tune", "all", "--fine_tune_epochs", "1"),
}


@pytest.fixture(scope="module", params=KINDS)
def graph(request, tmp_path_factory, run_retrain, photos):
    folder = tmp_path_factory.mktemp("kinds")
    assert run_retrain(folder, photos, "--precision", "float32", *KINDS[request.param]) == 0
    return folder / "models" / "retrained_graph.pb"


def answers(path, images, runtime):
    classifier = load_classifier(path, precision="float32", runtime=runtime)
    return np.stack([answer for _, answer, _ in classifier.predict(images, len(images))])


def some(photos):
    return sorted(map(str, Path(photos).glob("*/photo_0*.jpg")))


def test_both_runtimes_agree(graph, photos):
    images = some(photos)
    found, expected = (answers(graph, images, name) for name in ("litert", "tensorflow"))
    assert found.shape == (30, 3)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (found != expected).any()  # so that these were two runtimes


def test_a_run_leaves_what_few_images_are_labelled_with(graph, photos):
    images = some(photos)[:3]
    few, expected = (answers(graph, images, name) for name in ("auto", "litert"))
    np.testing.assert_array_equal(few, expected)


def test_an_edited_graph_is_not_answered_by_the_twin_of_the_one_before(finished, photos, tmp_path):
    graph_def = read_graph(finished.graph)
    node = nodes_by_name(graph_def)["conv/conv2d_params"]
    set_constant(node, -constant({node.name: node}, node.name))
    path = tmp_path / "edited.pb"
    path.write_bytes(graph_def.SerializeToString())
    images = some(photos)[:3]
    found, expected = (answers(path, images, name) for name in ("auto", "tensorflow"))
    np.testing.assert_array_equal(found, expected)
    before = answers(finished.graph, images, "tensorflow")
    assert np.abs(found - before).max() > 0.01


def edit_head(graph_def):
    """Another last layer, which NumPy does not compute here."""
    nodes_by_name(graph_def)["final_result"].op = "Sigmoid"


def edit_description(graph_def):
    """A bottleneck that is not between the input and the output."""
    node = nodes_by_name(graph_def)[METADATA]
    about = json.loads(constant({METADATA: node}, METADATA).item())
    set_constant(node, np.array(json.dumps({**about, "bottleneck": "Mul/y"}).encode(), object))


@pytest.mark.parametrize("edit", [edit_head, edit_description])
@pytest.mark.parametrize("count", [3, 30])
def test_tensorflow_labels_what_the_others_cannot(edit, count, finished, photos, tmp_path):
    graph_def = read_graph(finished.graph)
    edit(graph_def)
    path = tmp_path / "edited.pb"
    path.write_bytes(graph_def.SerializeToString())
    images = some(photos)[:count]
    found, expected = (answers(path, images, name) for name in ("auto", "tensorflow"))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_score_for_unknown_images_is_the_same(graph, photos):
    images = some(photos)
    classifiers = [
        load_classifier(graph, precision="float32", runtime=name)
        for name in ("litert", "tensorflow")
    ]
    if classifiers[0].unknown is None:
        pytest.skip("the run had too few validation photos for a score")
    found, expected = ([n for *_, n in c.predict(images, share=0.5)] for c in classifiers)
    # The threshold is the score of a photo, which either runtime may round to its other side.
    assert sum((n is None) != (m is None) for n, m in zip(found, expected, strict=True)) <= 1
    assert any(n is not None for n in found)


WITHOUT_TENSORFLOW = """
import importlib.util, sys
for name in ("tensorflow", "keras", "scipy", "jinja2", "ray", "filelock", "requests"):
    sys.modules[name] = None
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "tensorflow" else find(name)
from retraining.cli.label_image import main
sys.exit(main())
"""


def label_without_tensorflow(*arguments, stdin=None):
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, *map(str, arguments)]
    return subprocess.run(
        command, cwd=PROJECT, capture_output=True, text=True, timeout=120, input=stdin
    )


def test_a_photo_is_labelled_without_tensorflow(finished, photos):
    done = label_without_tensorflow("--graph", finished.graph, f"{photos}/red/photo_01.jpg")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.match(r"red \(score=0\.[5-9]\d+\)\n", done.stdout)


def test_many_photos_are_labelled_without_tensorflow(finished, photos):
    images = some(photos)[:20]
    done = label_without_tensorflow("--graph", finished.graph, "--format", "jsonl", *images)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    first = [row for row in rows if row["rank"] == 1]
    assert [row["path"] for row in first] == images
    for row, answer in zip(first, answers(finished.graph, images, "tensorflow"), strict=True):
        assert row["score"] == pytest.approx(answer.max(), abs=1e-4)


@pytest.mark.parametrize(
    ("name", "mode"), [("a.png", "RGBA"), ("cmyk.jpg", "CMYK"), ("a.gif", "P")]
)
def test_other_formats_are_read_without_tensorflow(finished, photos, tmp_path, name, mode):
    with Image.open(f"{photos}/red/photo_01.jpg") as picture:
        picture.convert(mode).save(tmp_path / name)
    done = label_without_tensorflow("--graph", finished.graph, tmp_path / name)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("red (score=0.")
    (expected,) = answers(finished.graph, [str(tmp_path / name)], "tensorflow")
    score = float(re.search(r"score=([0-9.]+)", done.stdout)[1])
    assert score == pytest.approx(expected.max(), abs=1e-3)  # of CMYK, Pillow rounds otherwise


def test_a_broken_jpeg_is_named_without_tensorflow(finished, photos, tmp_path):
    content = Path(f"{photos}/red/photo_01.jpg").read_bytes()
    (tmp_path / "broken.jpg").write_bytes(content[: len(content) // 4])
    done = label_without_tensorflow("--graph", finished.graph, tmp_path / "broken.jpg")
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(r".*broken\.jpg is a broken image \(.*\)\n", done.stderr)


def test_a_graph_is_scored_without_tensorflow(finished, photos):
    done = label_without_tensorflow("--graph", finished.graph, "--evaluate", photos)
    assert done.returncode == 0
    assert re.match(r"accuracy\t[01]\.\d+\n", done.stdout)
    assert "red" in done.stdout


def test_unknown_photos_are_told_without_tensorflow(photos, run_retrain, tmp_path):
    assert run_retrain(tmp_path, photos, "--validation_percentage", "50") == 0
    images, graph = some(photos)[:4], tmp_path / "models" / "retrained_graph.pb"
    flags = ("--unknown_threshold", "1", "--format", "csv")
    done = label_without_tensorflow("--graph", graph, *flags, *images)
    assert done.returncode == 0
    first = [line.split(",")[2] for line in done.stdout.splitlines() if line.split(",")[1] == "1"]
    assert first == ["unknown"] * 4


def test_without_tensorflow_and_twin_the_remedy_is_told(finished, photos, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = label_without_tensorflow("--graph", finished.graph, f"{photos}/red/photo_01.jpg")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "TensorFlow is not installed" in done.stderr
    assert done.stdout == ""


def test_a_twin_beside_the_graph_is_found(finished, photos, monkeypatch, tmp_path):
    for path in cache_folder().glob("*.tflite"):
        shutil.copy(path, tmp_path)
    shutil.copy(finished.graph, tmp_path / "graph.pb")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    done = label_without_tensorflow("--graph", tmp_path / "graph.pb", f"{photos}/red/photo_01.jpg")
    assert (done.returncode, done.stderr) == (0, "")
