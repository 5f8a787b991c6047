"""retrain.py --fine_tune and --compare from end to end, on a tiny network and generated photos."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import label_image
from retraining.bottlenecks.compute import Bottlenecks
from retraining.bottlenecks.vectors import Labelled
from retraining.graphs.description import read_metadata
from retraining.graphs.nodes import constant, nodes_by_name
from retraining.graphs.read import read_graph
from retraining.photos.dataset import Example
from retraining.photos.reader import ImageError
from retraining.photos.source import BadImage
from retraining.photos.split import SPLITS
from retraining.run.fine_tuning import Tuned, comparison_contents, recompute
from retraining.run.settings import OutputSettings, PhotoSettings, RunSettings
from retraining.system.observer import Silent
from retraining.training import methods
from tests import ROOT
from tests.records import COMPARISON

RATES = ("--base_learning_rate", 0.01, "--head_learning_rate", 0.01, "--fine_tune_epochs", 3)


def results(capsys):
    return dict(line.split("\t", 1) for line in capsys.readouterr().out.splitlines())


@pytest.mark.numbers
def test_a_fine_tuned_graph_is_exported_and_labels(tmp_path, run_retrain, photos, finished, capsys):
    checkpoints = tmp_path / "bottleneck_cache" / "fine_tuning"
    checkpoints.mkdir(parents=True)
    (checkpoints / ".retrain-1-0.part").write_text("left by a killed run")
    os.utime(checkpoints / ".retrain-1-0.part", (0, 0))
    assert run_retrain(tmp_path, photos, "--fine_tune", "all", *RATES) == 0
    out = results(capsys)
    assert float(out["test_accuracy"]) == 1.0
    graph_def = read_graph(out["graph"])
    before, after = nodes_by_name(read_graph(finished.graph)), nodes_by_name(graph_def)
    for name in ("conv/conv2d_params", "mixed/tower/conv2d_params"):
        assert (constant(before, name) != constant(after, name)).any()
    assert (
        read_metadata(graph_def)["network_sha1"]
        != read_metadata(read_graph(finished.graph))["network_sha1"]
    )
    photo = f"{photos}/red/photo_00.jpg"
    assert label_image.main(["--graph", out["graph"], "--top_k", "1", photo]) == 0
    assert capsys.readouterr().out.startswith("red (score=")
    assert not list(checkpoints.iterdir())


def test_methods_are_set_side_by_side(tmp_path, run_retrain, photos, capsys):
    methods = "head,two_rates,all,scratch"
    assert run_retrain(tmp_path, photos, "--compare", methods, *RATES) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    out = {name: values[0] for name, *values in lines}
    told = {values[0]: values[1:] for name, *values in lines if name == "method"}
    with open(out["comparison"], newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file, delimiter="\t")}
    assert list(rows) == methods.split(",")
    for method, row in rows.items():
        assert told[method] == [row["top_1"], row["top_5"], row["seconds"]]
        assert float(row["top_5"]) == 1  # of three classes
    assert [row["epochs"] for row in rows.values()] == ["0", "3", "3", "3"]
    (exported,) = (method for method, row in rows.items() if row["exported"] == "yes")
    assert out["exported_method"] == exported
    assert rows[exported]["top_1"] == out["test_accuracy"]
    told = json.loads(Path(out["metrics"]).read_text())["comparison"]
    assert [row["method"] for row in told if row["exported"]] == [exported]
    assert [f"{row['top_1']:.4f}" for row in told] == [row["top_1"] for row in rows.values()]
    assert "Comparison of training methods" in Path(out["report"]).read_text("utf-8")
    best = min(float(row["validation_cross_entropy"]) for row in rows.values())
    assert float(rows[exported]["validation_cross_entropy"]) == best


def test_photos_that_vanish_before_the_tuned_network_reads_them_are_bad():
    examples = [Example(f"{n}.jpg", "red", "training", str(n)) for n in range(3)]
    vectors = np.eye(3, 2, dtype=np.float32)
    parts = {part: [] for part in SPLITS} | {"training": examples}
    labelled = {part: Labelled.of(vectors[: len(parts[part])], [], ["red"]) for part in SPLITS}
    before = Bottlenecks(["red"], parts, labelled, [BadImage("x", "is broken")], {"0"})

    def run(jobs):
        for job in jobs:
            gone = job.example.path == "1.jpg"
            yield job, ImageError("cannot be read: gone") if gone else np.ones((1, 2), "f4")

    tuned = SimpleNamespace(run=run, network=SimpleNamespace(width=2))
    after = recompute(before, tuned, Silent())
    assert [example.path for example in after.examples["training"]] == ["0.jpg", "2.jpg"]
    assert after.labelled["training"].vectors.tolist() == [[1, 1], [1, 1]]
    assert after.bad == [BadImage("x", "is broken"), BadImage("1.jpg", "cannot be read: gone")]


def test_a_table_of_another_graph_is_emptied_and_other_files_stay(tmp_path):
    outputs = OutputSettings(graph=str(tmp_path / "graph.pb"))
    settings = RunSettings(PhotoSettings("photos"), outputs=outputs)
    tuned, table = Tuned(None, None, None), tmp_path / "comparison.tsv"
    assert comparison_contents(tuned, settings) == {}
    table.write_bytes(methods.table_bytes(COMPARISON))
    assert comparison_contents(tuned, settings) == {str(table): methods.table_bytes(())}
    table.write_text("method\tsomeone else's")
    assert comparison_contents(tuned, settings) == {}


def test_an_unknown_layer_is_refused_before_vectors_are_computed(
    tmp_path, run_retrain, photos, capsys
):
    flags = ("--fine_tune", "all", "--freeze_until", "mixed/towr")
    assert run_retrain(tmp_path, photos, *flags) == 1
    err = capsys.readouterr().err
    assert "no layer mixed/towr; did you mean mixed/tower" in err
    assert "bottlenecks:" not in err


def test_a_damaged_checkpoint_is_named_and_begun_anew(
    tmp_path, run_retrain, photos, capsys, monkeypatch
):
    monkeypatch.setattr(Tuned, "remove_checkpoints", lambda _: None)  # as if killed before
    flags = ("--fine_tune", "all", *RATES)
    assert run_retrain(tmp_path, photos, *flags) == 0
    assert "starts over" not in capsys.readouterr().err
    (path,) = (tmp_path / "bottleneck_cache" / "fine_tuning").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert run_retrain(tmp_path, photos, *flags) == 0
    err = capsys.readouterr().err
    assert f"{path} is damaged or cannot be read; fine-tuning two_rates starts over" in err
    assert "resumes after epoch" not in err


def test_a_killed_run_goes_on_and_gives_the_same_graph(
    tmp_path, run_retrain, photos, inception_file, capsys
):
    rates = ("--base_learning_rate", 0.001, "--fine_tune_epochs", 4)
    flags = ("--fine_tune", "all", *rates, "--no_report", "--label_audit", "")

    def weights(folder):
        nodes = nodes_by_name(read_graph(folder / "models" / "retrained_graph.pb"))
        return {name: constant(nodes, name) for name in nodes if nodes[name].op == "Const"}

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_retrain(whole, photos, *flags) == 0
    shutil.copytree(whole / "bottleneck_cache", killed / "bottleneck_cache")
    command = [
        *(sys.executable, ROOT / "retrain.py", "--image_dir", photos),
        *("--model_file", inception_file, "--bottleneck_dir", killed / "bottleneck_cache"),
        *("--output_graph", killed / "models" / "retrained_graph.pb"),
        *("--summaries_dir", killed / "retrain_logs"),
        *("--how_many_training_steps", 100, "--learning_rate", 0.1, *flags),
    ]
    run = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not list(killed.glob("bottleneck_cache/fine_tuning/*.npz")):
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
    run.wait()
    if (killed / "models" / "retrained_graph.pb").exists():
        pytest.skip("it had ended before it could be killed")
    capsys.readouterr()
    assert run_retrain(killed, photos, *flags) == 0
    err = capsys.readouterr().err
    assert "fine-tuning two_rates resumes after epoch" in err
    assert "starts over" not in err
    expected, found = weights(whole), weights(killed)
    trained = [name for name in expected if not name.startswith("retraining/")]
    for name in trained:
        np.testing.assert_array_equal(found[name], expected[name])
    assert not list(killed.glob("bottleneck_cache/fine_tuning/*"))
