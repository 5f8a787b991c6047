"""What the commands import: nothing slow before flags are checked, no TensorFlow for labelling."""

import json
import subprocess
import sys

import pytest

from tests import ROOT

# Runs a command, and then tells on stderr which modules it has imported.
TELL = """
import json, sys
from {module} import main
code = main()
print(json.dumps([code, *sys.modules]), file=sys.stderr)
"""
FRAMEWORKS = {"tensorflow", "keras", "scipy", "jinja2", "ray", "h5py", "fsspec"}
LITERT = "ai_edge_litert"
NUMBERS = {"numpy", "PIL", "simplejpeg", "google.protobuf"}
WEB = {"urllib.request", "http.client", "ssl", "requests"}
SLOW = {"sqlite3", "multiprocessing", "importlib.metadata", "tqdm"}


def imported(command, *arguments):
    """The exit code of a command, and the names of the modules that it imports."""
    code = TELL.format(module=f"retraining.cli.{command}")
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    exit_code, *modules = json.loads(done.stderr.splitlines()[-1])
    return exit_code, set(modules)


FLAGS = {
    "help": (["--help"], 0),
    "unknown flag": (["--imagee"], 2),
    "flags that exclude each other": (["--recursive", "photo.jpg"], 2),
    "no image": ([], 2),
}


@pytest.mark.parametrize(("arguments", "code"), FLAGS.values(), ids=FLAGS)
def test_label_image_checks_its_flags_before_it_imports_anything_heavy(arguments, code):
    # main returns what argparse ends with
    exit_code, modules = imported("label_image", *arguments)
    assert exit_code == code
    assert "retraining.cli.label_flags" in modules
    assert modules & {*FRAMEWORKS, LITERT, *NUMBERS, *WEB, *SLOW} == set()


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--help"], 0), (["--learning_rat", "1"], 2), (["--seed", "x"], 2)]
)
def test_retrain_checks_its_flags_before_it_imports_a_framework(arguments, code):
    exit_code, modules = imported("retrain", *arguments)
    assert exit_code == code
    assert modules & {*FRAMEWORKS, LITERT} == set()


def test_a_photo_is_labelled_with_few_imports(finished, photos):
    exit_code, modules = imported(
        "label_image", "--graph", finished.graph, f"{photos}/red/photo_01.jpg"
    )
    assert exit_code == 0
    assert LITERT in modules
    assert modules & {*FRAMEWORKS, *WEB, *SLOW, "PIL"} == set()
    assert modules & {"retraining.networks.registry", "retraining.bottlenecks.store"} == set()
