"""retrain.py --fine_tune and --compare from end to end, on a tiny network and generated photos."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import label_image
from retraining.bottlenecks.compute import Bottlenecks
from retraining.bottlenecks.vectors import Labelled
from retraining.cli.flags import parse_flags
from retraining.graphs.description import read_metadata
from retraining.graphs.nodes import constant, nodes_by_name
from retraining.graphs.read import read_graph
from retraining.photos.dataset import Example
from retraining.photos.reader import Distortions, ImageError
from retraining.photos.source import BadImage
from retraining.photos.split import SPLITS
from retraining.run.fine_tuning import Tuned, recompute, views_of
from retraining.system.observer import Silent
from retraining.training.fine_tune import RANDOM_VIEWS
from tests import ROOT

RATES = ("--base_learning_rate", 0.01, "--head_learning_rate", 0.01, "--fine_tune_epochs", 3)


def results(capsys):
    return dict(line.split("\t", 1) for line in capsys.readouterr().out.splitlines())


@pytest.mark.numbers
def test_a_fine_tuned_graph_is_exported_and_labels(tmp_path, run_retrain, photos, finished, capsys):
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
    assert not list((tmp_path / "bottleneck_cache" / "fine_tuning").iterdir())


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
    assert "Ways of training compared" in Path(out["report"]).read_text("utf-8")
    table, header = Path(out["comparison"]), "\t".join(rows["head"]) + "\n"
    best = min(float(row["validation_cross_entropy"]) for row in rows.values())
    assert float(rows[exported]["validation_cross_entropy"]) == best
    assert run_retrain(tmp_path, photos) == 0  # another graph, of which the table tells nothing
    assert table.read_text() == header
    table.write_text("method\tsomeone else's")
    assert run_retrain(tmp_path, photos) == 0
    assert table.read_text() == "method\tsomeone else's"


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


def test_photos_and_vectors_are_kept_apart_from_saved_models(tmp_path, run_retrain, photos, capsys):
    assert run_retrain(tmp_path, photos, "--saved_model_dir", photos) == 2
    assert "is in --image_dir" in capsys.readouterr().err
    assert run_retrain(tmp_path, photos, "--saved_model_dir", tmp_path / "bottleneck_cache") == 2
    assert "is in --bottleneck_dir" in capsys.readouterr().err
    assert run_retrain(tmp_path, photos, "--fine_tune", "all", "--compare", "head,all") == 2
    assert "drop --fine_tune all" in capsys.readouterr().err


def test_an_unknown_layer_is_refused_before_vectors_are_computed(
    tmp_path, run_retrain, photos, capsys
):
    flags = ("--fine_tune", "all", "--freeze_until", "mixed/towr")
    assert run_retrain(tmp_path, photos, *flags) == 1
    err = capsys.readouterr().err
    assert "no layer mixed/towr; did you mean mixed/tower" in err
    assert "bottlenecks:" not in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--fine_tune_epochs", "3"], "--fine_tune_epochs needs --fine_tune all or --compare"),
        (["--freeze_until", "conv"], "--freeze_until needs --fine_tune all or --compare"),
        (["--fine_tune", "some"], "invalid choice: 'some'"),
        (["--fine_tune", "all", "--freeze_until", ""], "must be the name of a layer"),
        (["--fine_tune", "all", "--base_learning_rate", "-1"], "must be 0 or more, not -1"),
        (["--fine_tune", "all", "--fine_tune_epochs", "0"], "must be from 1 to"),
        (["--compare", "head,half"], "'half' is none of head, two_rates, all, scratch"),
        (["--compare", "all,all"], "names a method twice"),
        (["--compare", "head"], "or only head"),
        (["--compare", "all", "--validation_percentage", "0"], "--compare needs validation"),
        (
            ["--fine_tune", "all", "--base_learning_rate", "0", "--head_learning_rate", "0"],
            "are both 0: nothing is trained",
        ),
        (["--compare", "all", "--base_learning_rate", "0"], "need a --base_learning_rate above 0"),
        (["--fine_tune_views", "plain"], "--fine_tune_views needs --fine_tune all or --compare"),
        (
            ["--fine_tune", "all", "--architecture", "inception_v3+efficientnet_lite0"],
            "fine-tuning is for one network; name one --architecture",
        ),
        (["--compare", "all", "--metrics", "{}/models/comparison.tsv"], "name the same file"),
    ],
)
def test_flags_that_make_no_sense_are_refused(
    tmp_path, run_retrain, photos, capsys, flags, message
):
    assert run_retrain(tmp_path, photos, *(flag.format(tmp_path) for flag in flags)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], replace(RANDOM_VIEWS, seed=3)),
        (["--random_brightness", "20"], Distortions(random_brightness=20, seed=3)),
        (["--fine_tune_views", "plain", "--random_brightness", "20"], Distortions()),
    ],
)
def test_views_are_random_unless_flags_say_otherwise(flags, expected):
    given = ["--image_dir", "photos", "--fine_tune", "all", "--seed", "3", *flags]
    assert views_of(parse_flags(given, "")[1]) == expected


def test_a_damaged_checkpoint_is_named_and_begun_anew(
    tmp_path, run_retrain, photos, capsys, monkeypatch
):
    monkeypatch.setattr(Tuned, "remove_checkpoints", lambda _: None)  # as if killed before
    flags = ("--fine_tune", "all", *RATES)
    assert run_retrain(tmp_path, photos, *flags) == 0
    assert "begins anew" not in capsys.readouterr().err
    (path,) = (tmp_path / "bottleneck_cache" / "fine_tuning").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert run_retrain(tmp_path, photos, *flags) == 0
    err = capsys.readouterr().err
    assert f"{path} is damaged or cannot be read; fine-tuning two_rates begins anew" in err
    assert "goes on after epoch" not in err
    assert run_retrain(tmp_path, photos, *flags) == 0
    err = capsys.readouterr().err
    assert "fine-tuning two_rates goes on after epoch 3" in err
    assert "begins anew" not in err


def test_a_killed_run_goes_on_and_gives_the_same_graph(tmp_path, photos, inception_file):
    def command(folder):
        rates = ("--base_learning_rate", "0.001", "--fine_tune_epochs", "4")
        return [
            *(sys.executable, str(ROOT / "retrain.py"), "--image_dir", str(photos)),
            *("--model_file", inception_file, "--bottleneck_dir", f"{folder}/cache"),
            *("--output_graph", str(folder / "graph.pb"), "--fine_tune", "all", *rates),
            *("--output_labels", f"{folder}/labels.txt", "--summaries_dir", f"{folder}/logs"),
            *("--how_many_training_steps", "100", "--no_report"),
        ]

    def weights(folder):
        nodes = nodes_by_name(read_graph(folder / "graph.pb"))
        return {name: constant(nodes, name) for name in nodes if nodes[name].op == "Const"}

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert subprocess.run(command(whole), capture_output=True).returncode == 0
    run = subprocess.Popen(command(killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(killed.glob("cache/fine_tuning/*.npz")):
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
    run.wait()
    if (killed / "graph.pb").exists():
        pytest.skip("it had ended before it could be killed")
    done = subprocess.run(command(killed), capture_output=True, text=True)
    assert done.returncode == 0
    assert "fine-tuning two_rates goes on after epoch" in done.stderr
    expected, found = weights(whole), weights(killed)
    trained = [name for name in expected if not name.startswith("retraining/")]
    for name in trained:
        np.testing.assert_array_equal(found[name], expected[name])
    assert not list(killed.glob("cache/fine_tuning/*"))
