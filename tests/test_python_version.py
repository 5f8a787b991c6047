"""python_version.py: an older Python is told which is needed, whatever it cannot parse."""

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from retraining.python_version import refuse_old_python
from tests import ROOT

SCRIPTS = ("retrain.py", "label_image.py")
SAID = "this needs Python 3.11, 3.12 or 3.13, and this is {}; get one with: uv venv --python 3.13\n"


def old_pythons():
    """The Pythons from 3.6 to 3.10 that are found here."""
    pyenv = Path.home() / ".pyenv" / "versions"
    names = [f"python3.{minor}" for minor in range(6, 11)]
    found = [*map(shutil.which, names), *map(str, pyenv.glob("3.*/bin/python"))]
    return {version: path for path in filter(None, found) if (version := version_of(path))}


def version_of(path):
    """`3.9.18` of a Python that starts and is too old, or None."""
    done = subprocess.run([path, "-V"], capture_output=True, text=True)
    match = re.fullmatch(r"Python (3\.([6-9]|10)\.\d+)\n", done.stdout)
    return match and match[1]


@pytest.mark.parametrize("script", SCRIPTS)
def test_old_pythons_say_which_is_needed(script):
    pythons = old_pythons()
    if not pythons:
        pytest.skip("no Python older than 3.11 is here")
    for version, path in pythons.items():
        done = subprocess.run([path, ROOT / script, "--help"], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == SAID.format(version)


@pytest.mark.parametrize(
    "file",
    [
        *SCRIPTS,
        "retraining/__init__.py",
        "retraining/cli/start.py",
        "retraining/python_version.py",
    ],
)
def test_what_old_pythons_read_first_keeps_to_their_grammar(file):
    ast.parse((ROOT / file).read_text(encoding="utf-8"), feature_version=(3, 7))


@pytest.mark.parametrize("version", [(3, 9, 18), (3, 10, 13)])
def test_before_3_11_it_ends(version):
    with pytest.raises(SystemExit) as stop:
        refuse_old_python(version)
    assert f"this needs Python 3.11, 3.12 or 3.13, and this is {version[0]}." in stop.value.code


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 13, 9), (3, 14, 0)])
def test_from_3_11_it_goes_on(version):
    assert refuse_old_python(version) is None
