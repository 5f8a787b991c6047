"""The README's first command in a fresh clone and a fresh environment, with only PyPI in reach.

Takes minutes, so it is run by `python -m pytest -m newcomer` only.
"""

import os
import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from retraining.graphs.description import read_metadata
from retraining.graphs.read import read_graph
from tests import ROOT

FLOWERS = ["daisy", "dandelion", "roses", "sunflowers", "tulips"]

pytestmark = pytest.mark.newcomer


def index_hosts():
    """The hosts pip takes packages from here."""
    settings = subprocess.run(["pip", "config", "list"], capture_output=True, text=True).stdout
    urls = re.findall(r"https?://[^\s'\"]+", settings + " " + os.environ.get("PIP_INDEX_URL", ""))
    return {"pypi.org", "files.pythonhosted.org", *(urlsplit(url).hostname for url in urls)}


def closed_network():
    """An environment in which all hosts but the package index lie behind a dead proxy."""
    dead = dict.fromkeys(
        ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"
    )
    keep = ",".join(sorted(index_hosts()))
    return {**os.environ, **dead, "no_proxy": keep, "NO_PROXY": keep}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    folder = tmp_path_factory.mktemp("newcomer") / "project"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    return folder


def type_in(command, folder):
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=closed_network(),
        capture_output=True,
        text=True,
        timeout=1500,
    )


def test_the_readmes_commands_work_with_nothing_but_the_package_index(clone):
    readme = (clone / "README.md").read_text(encoding="utf-8")
    train = re.findall(r"^(python3 -m venv .*retrain\.py.*)$", readme, flags=re.M)[0]
    done = type_in(train, clone)
    assert done.returncode == 0, done.stderr
    results = dict(line.split("\t") for line in done.stdout.splitlines())
    assert float(results["test_accuracy"]) >= 0.7
    assert (clone / results["labels"]).read_text().split() == FLOWERS
    about = read_metadata(read_graph(clone / results["graph"]))
    assert about["network"] == "efficientnet_lite0"
    lines = done.stderr.splitlines()
    assert "drawings" in lines[-2]
    said = "this run uses efficientnet_lite0, since inception_v3 is not in models"
    assert sum(said in line for line in lines) == 1

    label = ".venv/bin/python label_image.py flower_photos --top_k 1"
    done = type_in(label, clone)
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(rows) == 300
    right = sum(Path(path).parent.name == label for path, label, _ in rows)
    assert right >= 270

    one = done.stdout.split("\t", 1)[0]
    done = type_in(f".venv/bin/python label_image.py {one}", clone)
    assert done.stdout.startswith("daisy (score=")
    assert done.stderr == ""
