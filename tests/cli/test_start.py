"""start.py: --version without heavy imports, and the names of the commands."""

import subprocess
import sys

import pytest

import retraining
from retraining.cli import flags, label_flags
from retraining.cli.retrain import what_next
from retraining.cli.start import VERSION
from retraining.run.settings import OutputSettings
from tests import ROOT

# Refuses to import what --version does not need.
GUARD = """
import sys

class Guard:
    def find_spec(self, name, *_):
        assert name not in ("numpy", "tensorflow", "retraining.cli.flags"), name

sys.meta_path.insert(0, Guard())
from retraining.cli import start

sys.argv = sys.argv[1:]
start.{}()
"""


@pytest.mark.parametrize("command", ["retrain", "label_image"])
@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_the_version_comes_before_heavy_imports(command, flag):
    done = subprocess.run(
        [sys.executable, "-c", GUARD.format(command), command, flag],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"image-retraining {retraining.__version__}\n"


def test_the_guard_of_that_test_sees_imports():
    command = [sys.executable, "-c", GUARD.format("retrain"), "retrain", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "AssertionError: " in done.stderr


@pytest.mark.parametrize("build", [flags.build_parser, label_flags.build_parser])
def test_the_version_is_found_behind_other_flags(build, capsys):
    with pytest.raises(SystemExit) as stop:
        build().parse_args(["--offline", "--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"{VERSION}\n"


@pytest.mark.parametrize(
    ("called", "retrain", "label"),
    [
        ("retrain.py", "retrain.py", "python label_image.py photo.jpg"),
        ("bin/retrain", "retrain", "label-image photo.jpg"),
        ("bin/label_image", "retrain", "label-image photo.jpg"),
    ],
)
def test_messages_name_commands_as_they_are_called(monkeypatch, called, retrain, label):
    monkeypatch.setattr(sys, "argv", [called])
    assert flags.build_parser().prog == retrain
    assert label_flags.build_parser().prog in label.split()
    assert what_next(OutputSettings()).endswith(f"to label a photo, run: {label}")
