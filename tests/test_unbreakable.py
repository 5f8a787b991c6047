"""Both scripts and the store against what happens: hostile files, kills, full disks, odd names."""

import contextlib
import multiprocessing
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import label_image
import retrain
from retraining.cli import flags
from retraining.cli import label_flags as labelling_command
from retraining.cli.retrain import INTERRUPTED
from retraining.photos.dataset import load_dataset
from retraining.photos.source import DatasetError, ScanOptions
from tests import ROOT, hostile, tiny
from tests.extraction import extract_all

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs signals, pipes and odd names")


def listed(folder):
    """{path: reason} of bad_images.tsv."""
    with open(folder / "models" / "bad_images.tsv", errors="surrogateescape") as file:
        header, *rows = file.read().splitlines()
    assert header == "path\treason"
    return dict(row.split("\t") for row in rows)


def unescaped(name):
    if not any(mark in name for mark in ("\\t", "\\n", "\\r")):
        return name
    marks = {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}
    parts = iter(name)
    return "".join(marks[next(parts)] if part == "\\" else part for part in parts)


def test_hostile_files_are_left_out_and_named(tmp_path, run_retrain, photos, capfd):
    work = tmp_path / "photos"
    shutil.copytree(photos, work)
    put = hostile.mix_in(work, 60, random.Random(1))
    code = run_retrain(tmp_path, work, "--precision", "float32")
    out, err = capfd.readouterr()
    assert code == 0
    assert "test_accuracy\t1.0000" in out
    assert "test_photos\t11" in out
    found = listed(tmp_path)
    assert {unescaped(path) for path in found} == set(put)
    assert all(reason.startswith(("is ", "has ", "cannot be read")) for reason in found.values())
    assert "left out: " in err
    assert "60 files were left out; see" in err
    assert "Traceback" not in err
    assert "Warning" not in err
    # label_image.py says the same of the same files, and goes on.
    code = label_image.main(
        ["--graph", f"{tmp_path}/models/retrained_graph.pb", "--top_k", "1", str(work)]
    )
    out, err = capfd.readouterr()
    assert code == 1
    assert len(out.splitlines()) == 90
    assert sum(str(work) in line for line in err.splitlines()) == 60


def test_too_many_bad_images_end_the_run_with_the_list(tmp_path, run_retrain, photos, capsys):
    work = tmp_path / "photos"
    shutil.copytree(photos, work)
    put = hostile.mix_in(work, 60, random.Random(2))
    assert run_retrain(tmp_path, work, "--max_bad_fraction", "0.3") == 1
    assert "60 of 150 images cannot be read, more than --max_bad_fraction 0.3" in (
        capsys.readouterr().err
    )
    assert len(listed(tmp_path)) == len(put)
    assert not (tmp_path / "models" / "retrained_graph.pb").exists()


def test_the_list_of_bad_images_is_of_this_run(tmp_path, run_retrain, photos):
    work = tmp_path / "photos"
    shutil.copytree(photos, work)
    bad = work / "red" / "bad.jpg"
    bad.write_bytes(b"\xff\xd8\xff bad")
    assert run_retrain(tmp_path, work, steps=5) == 0
    assert list(listed(tmp_path)) == [str(bad)]
    bad.unlink()
    assert run_retrain(tmp_path, work, steps=5) == 0
    assert listed(tmp_path) == {}


def test_a_class_that_bad_images_have_made_small_is_warned_of(
    tmp_path, run_retrain, photos, capsys
):
    work = tmp_path / "photos"
    shutil.copytree(photos, work)
    for name in sorted(os.listdir(work / "red"))[:15]:
        (work / "red" / name).write_bytes(b"\xff\xd8\xff bad " + name.encode())
    assert run_retrain(tmp_path, work, steps=5) == 0
    assert "red has only 15 readable images left" in capsys.readouterr().err


# -- killed at any instant -------------------------------------------------------------------


@pytest.fixture(scope="module")
def many_photos(tmp_path_factory, photos):
    """A class folder of 1,500 files of different bytes."""
    folder = tmp_path_factory.mktemp("many") / "red"
    folder.mkdir()
    source = (Path(photos) / "red" / "photo_00.jpg").read_bytes()
    for number in range(1500):
        (folder / f"{number:04d}.jpg").write_bytes(source + number.to_bytes(2, "big"))
    return str(folder)


def rows_of(folder):
    """{key: (vector, imported, check sum)} of the one store in a folder."""
    (path,) = Path(folder).glob("*.sqlite")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return {row[0]: row[1:] for row in connection.execute("SELECT * FROM vectors")}


def is_same(row, expected):
    """Tells whether two rows hold the same vector, but for rounding; see FixedBatches."""
    found, wanted = (np.frombuffer(vector, np.float32) for vector, *_ in (row, expected))
    return np.allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def kill_often(inception_file, many_photos, tmp_path, kills, seed):
    """Kills extraction at random moments; checks after each that nothing is lost or wrong."""
    extract_all(inception_file, many_photos, tmp_path / "undisturbed")
    expected = rows_of(tmp_path / "undisturbed")
    context, rng = multiprocessing.get_context("spawn"), random.Random(seed)
    before, in_the_middle = {}, 0
    store = tmp_path / "killed"
    for _ in range(kills):
        reached, photos = context.Event(), rng.randrange(len(expected) - len(before))
        arguments = (inception_file, many_photos, store, reached, photos)
        child = context.Process(target=extract_all, args=arguments)
        child.start()
        assert reached.wait(60)
        time.sleep(rng.uniform(0, 0.03))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        found = rows_of(store)
        assert found.keys() >= before.keys()
        assert all(is_same(row, expected[key]) for key, row in found.items())
        in_the_middle += len(before) < len(found) < len(expected)
        if len(found) > 0.9 * len(expected):  # begin again, so that there is something to kill
            shutil.rmtree(store)
            found = {}
        before = found
    extract_all(inception_file, many_photos, store)
    found = rows_of(store)
    assert found.keys() == expected.keys()
    assert all(is_same(row, expected[key]) for key, row in found.items())
    return in_the_middle


def test_kills_lose_no_vector_and_leave_no_wrong_one(inception_file, many_photos, tmp_path):
    assert kill_often(inception_file, many_photos, tmp_path, kills=2, seed=0) >= 1


@pytest.mark.slow
def test_a_hundred_kills(inception_file, many_photos, tmp_path):
    assert kill_often(inception_file, many_photos, tmp_path, kills=100, seed=1) >= 50


# -- interrupted, or with no room -------------------------------------------------------------


def command(folder, photos, inception_file, *flags):
    return [
        *(sys.executable, str(ROOT / "retrain.py"), "--image_dir", str(photos)),
        *("--model_file", inception_file, "--bottleneck_dir", f"{folder}/cache"),
        *("--output_graph", f"{folder}/graph.pb", "--output_labels", f"{folder}/labels.txt"),
        *("--summaries_dir", f"{folder}/logs", *flags),
    ]


def test_a_run_that_is_told_to_end_says_how_to_go_on(tmp_path, photos, inception_file):
    (tmp_path / "graph.pb").write_bytes(b"of before")
    steps = ("--how_many_training_steps", "100000000")
    run = subprocess.Popen(
        command(tmp_path, photos, inception_file, *steps), stderr=subprocess.PIPE, text=True
    )
    seen = ""
    while "bottlenecks:" not in seen:
        seen += run.stderr.read(1)
    run.send_signal(signal.SIGTERM)
    _, rest = run.communicate(timeout=30)
    assert run.returncode == 130
    last = rest.splitlines()[-1]
    assert last == f"retrain.py: {INTERRUPTED}"
    assert (tmp_path / "graph.pb").read_bytes() == b"of before"
    assert not list(tmp_path.glob("*.part"))
    assert len(rows_of_store(tmp_path / "cache")) == 90


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="tells what is imported")
@pytest.mark.parametrize("library", ["numpy/_core", "PIL/", "tensorflow/"])
def test_ctrl_c_while_the_program_starts_is_no_traceback(tmp_path, photos, inception_file, library):
    line = command(tmp_path, photos, inception_file)
    run = subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while run.poll() is None and library not in Path(f"/proc/{run.pid}/maps").read_text():
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=30)
    assert run.returncode in (-signal.SIGINT, 130)
    assert "Traceback" not in err


def rows_of_store(folder):
    (path,) = (p for p in Path(folder).glob("*.sqlite") if p.name != "file_keys.sqlite")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return [key for (key,) in connection.execute("SELECT key FROM vectors")]


def test_a_full_disk_is_one_line_and_loses_nothing(
    tmp_path, run_retrain, many_photos, photos, inception_file
):
    work = tmp_path / "photos"
    work.mkdir()
    os.symlink(many_photos, work / "red")
    os.symlink(Path(photos) / "blue", work / "blue")
    limit = "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
    limit += "sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    python, script, *flags = command(tmp_path, work, inception_file)
    run = subprocess.run(
        [python, "-c", limit, script, *flags], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert "the bottleneck store" in run.stderr.splitlines()[-1]
    assert "cannot be used" in run.stderr.splitlines()[-1]
    again = ("--bottleneck_dir", tmp_path / "cache", "--label_audit", "")
    assert run_retrain(tmp_path, work, *again, steps=5) == 0
    assert len(rows_of_store(tmp_path / "cache")) == 1530


def test_runs_side_by_side_share_a_store(tmp_path, photos, inception_file):
    flags = ("--how_many_training_steps", "50")
    runs, names = [], ("one", "two")
    for name in names:
        (tmp_path / name).mkdir()
        shared = ("--bottleneck_dir", f"{tmp_path}/cache", *flags)
        line = command(tmp_path / name, photos, inception_file, *shared)
        runs.append(subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    assert [run.communicate(timeout=120) and run.returncode for run in runs] == [0, 0]
    assert len(rows_of_store(tmp_path / "cache")) == 90
    graphs = {(tmp_path / name / "labels.txt").read_bytes() for name in names}
    assert graphs == {b"blue\ngreen\nred\n"}


# -- any names, any shapes of folders, any flags ---------------------------------------------

CHARACTER = st.characters(exclude_characters="/\0", exclude_categories=["Cs"])
NAME = st.text(CHARACTER | st.just("\udcff"), min_size=1, max_size=12).filter(  # a byte, too
    lambda name: name not in (".", "..") and len(os.fsencode(name)) < 200
)
CONTENT = st.sampled_from(
    [b"", b"text", b"\xff\xd8\xff\xe0one", b"\xff\xd8\xff\xe0two", b"GIF89a", b"\x89PNG\r\n\x1a\n"]
)
FOLDERS = st.dictionaries(NAME, st.dictionaries(NAME, CONTENT, max_size=6), max_size=5)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(folders=FOLDERS, recursive=st.booleans())
def test_any_folder_is_read_or_refused_in_a_line(tmp_path_factory, folders, recursive):
    root = tmp_path_factory.mktemp("any")
    with contextlib.suppress(OSError):  # some file systems do not take all names
        for folder, files in folders.items():
            (root / folder).mkdir()
            for name, content in files.items():
                (root / folder / name).write_bytes(content)
    try:
        dataset = load_dataset(str(root), scan=ScanOptions(recursive))
    except DatasetError as refused:
        message = str(refused)
    else:
        message = ""
        accounted = {e.path for e in dataset.examples} | {image.path for image in dataset.bad}
        visible = {
            str(root / folder / name)
            for folder, files in folders.items()
            if not folder.startswith(".")
            for name in files
            if not name.startswith(".") and name.lower() not in ("thumbs.db", "desktop.ini")
        }
        assert accounted == visible
        assert len(dataset.labels) >= 2
    assert len(message) < 2000


VALUES = st.one_of(
    st.integers(-3, 120).map(str), st.floats().map(str), st.text(max_size=8), st.just("auto")
)


@settings(max_examples=100, deadline=None)
@given(
    script=st.sampled_from([flags, labelling_command]),
    choices=st.lists(st.tuples(st.integers(0, 60), VALUES), max_size=4),
)
def test_any_flags_are_taken_or_refused_with_code_2(script, choices):
    parser = script.build_parser()
    names = re.findall(r"^  (--\w+)", parser.format_help(), flags=re.M)
    argv = ["--image_dir", "x"] if script is flags else ["x.jpg"]
    for number, value in choices:
        argv += [names[number % len(names)], value]
    more = ["what it is for"] if script is flags else []
    assert stopped_with(script.parse_flags, argv, *more) in (None, 2)


def stopped_with(function, *arguments):
    """The exit code that a function ends the program with, or None."""
    try:
        function(*arguments)
    except SystemExit as stop:
        return stop.code
    return None


# -- the long version on real photos ---------------------------------------------------------


@pytest.mark.slow
def test_300_hostile_files_among_real_photos(shared, tmp_path, capsys):
    """The accuracy is that without them, within two photos."""
    work = tmp_path / "photos"
    network = ("--architecture", "mobilenet_0.25_128", "--model_dir", str(shared / "models"))

    def accuracy(folder):
        code = retrain.main([*command(folder, work, "x")[2:4], *network, *rest(folder)])
        assert code == 0
        return float(capsys.readouterr().out.split("test_accuracy\t")[1].split()[0])

    def rest(folder):
        flags = command(folder, work, "x")[6:]
        return [*flags, "--logging_verbosity", "ERROR"]

    shutil.copytree(shared / "flower_photos", work)
    clean = accuracy(tmp_path)
    put = hostile.mix_in(work, 300, random.Random(3))
    assert abs(accuracy(tmp_path) - clean) <= 2 / 148 + 1e-9
    with open(tmp_path / "bad_images.tsv", errors="surrogateescape") as file:
        named = {unescaped(line.split("\t")[0]) for line in file.read().splitlines()[1:]}
    assert named >= set(put)


def test_photos_of_one_pixel_make_a_model(tmp_path, run_retrain):
    for label in ("a", "b"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(6):
            pixel = np.full((1, 1, 3), number + 100 * (label == "b"), np.uint8)
            path = tmp_path / "photos" / label / f"{number}.png"
            tiny.Image.fromarray(pixel).save(path)
    assert run_retrain(tmp_path, tmp_path / "photos", steps=5) == 0
