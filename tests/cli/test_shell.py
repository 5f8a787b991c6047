"""The commands in a shell, in pipelines, as docs/labelling-and-pipelines.md has them."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import ROOT, tiny

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a POSIX shell")


@pytest.fixture(scope="module")
def workplace(finished, tmp_path_factory):
    """A folder with label_image.py, a graph, and photos of two of its three classes."""
    folder = tmp_path_factory.mktemp("workplace")
    shutil.copy(ROOT / "label_image.py", folder)
    (folder / "models").mkdir()
    shutil.copy(finished.graph, folder / "models")
    tiny.write_photos(folder / "holiday", {"red": 2, "blue": 3}, seed=1)
    shutil.copytree(folder / "holiday", folder / "new_photos")
    shutil.copy(folder / "holiday" / "red" / "photo_00.jpg", folder / "photo.jpg")
    return folder


@pytest.fixture
def shell(workplace, warm_python):
    """Runs a line in the workplace; returns what it prints to stdout."""

    def run(line):
        done = subprocess.run(
            ["sh", "-e", "-c", line],
            capture_output=True,
            text=True,
            cwd=workplace,
            env=warm_python.environment,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


BLUE = [f"holiday/blue/photo_{n:02d}.jpg" for n in range(3)]
RED = [f"holiday/red/photo_{n:02d}.jpg" for n in range(2)]
FIND = "find . -name '*.jpg' -print0 | python label_image.py -0 --top_k 1"


def test_one_photo(shell):
    assert shell("python label_image.py photo.jpg").startswith("red (score=0.9")


def test_a_folder_becomes_a_table(shell):
    shell("python label_image.py holiday/ --format csv > holiday.csv")
    rows = [line.split(",") for line in shell("cat holiday.csv").splitlines()]
    assert rows[0] == ["path", "rank", "label", "score"]
    first = [(path, label) for path, rank, label, _ in rows[1:] if rank == "1"]
    assert first == [*((path, "blue") for path in BLUE), *((path, "red") for path in RED)]


def test_labels_are_counted(shell):
    assert shell(f"{FIND} | cut -f 2 | sort | uniq -c").split() == ["6", "blue", "5", "red"]


def test_sure_photos_are_listed(shell):
    sure = shell(f"{FIND} --min_score 0.9 --columns path").splitlines()
    assert "./photo.jpg" in sure
    assert "./label_image.py" not in sure


def test_each_label_is_an_object(shell):
    said = shell("find holiday -name '*.jpg' | python label_image.py - --format jsonl")
    objects = [json.loads(line) for line in said.splitlines()]
    assert sorted(one["path"] for one in objects if one["rank"] == 1) == [*BLUE, *RED]
    assert len(objects) == 5 * 3


def test_photos_are_sorted_into_folders(shell, workplace):
    shell("python label_image.py holiday/ --sort_into sorted --min_score 0.6 > labels.tsv")
    labels = [line.split("\t")[1] for line in shell("cat labels.tsv").splitlines()]
    assert labels == ["blue", "blue", "blue", "red", "red"]
    assert sorted(os.listdir(workplace / "sorted" / "blue")) == [Path(p).name for p in BLUE]


def test_new_photos_are_evaluated(shell):
    said = shell("python label_image.py --evaluate new_photos")
    assert said.startswith("accuracy\t1.0000\ninterval\t0.5655\t1.0000\nphotos\t5\n")
