"""The examples of docs/ that other programs run, against what this project computes."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from retraining import load_classifier
from retraining.graphs.preprocessing import resize_bilinear
from tests import ROOT


@pytest.fixture(scope="module")
def model_input():
    page = (ROOT / "docs" / "other-programs.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(# pixels.py\n.*?)```", page, flags=re.S)
    names = {}
    exec(compile(code, "pixels.py", "exec"), names)
    return names["model_input"]


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
