"""flags.py: which flags are refused, what the others are turned into."""

import importlib.util
import os
from dataclasses import replace

import pytest

from retraining.bottlenecks.ray_engine import Local, Ray
from retraining.cli.flags import parse_flags
from retraining.photos.reader import Distortions
from retraining.run.fine_tuning import views_of
from retraining.training.fine_tune import RANDOM_VIEWS

BOTH = "inception_v3+mobilenet_0.25_128"


def settings(*flags):
    return parse_flags(["--image_dir", "photos", *flags], "")[1]


@pytest.fixture
def refused(capsys):
    """Parses flags that are wrong; returns the one line that says so."""

    def parse(*flags):
        with pytest.raises(SystemExit) as stop:
            parse_flags(list(map(str, flags)), "")
        assert stop.value.code == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        return captured.err

    return parse


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--no_such_flag"], "unknown flag --no_such_flag (see"),
        (["--image_di", "x"], "did you mean --image_dir?"),
        (["--testing_percentage", "60", "--validation_percentage", "40"], "no training images"),
        (["--testing_percentage", "-1"], "must be from 0 to 100"),
        (["--how_many_training_steps", "0"], "must be 1 or more"),
        (["--how_many_training_steps", "many"], "must be a whole number, not many"),
        (["--folds", "five"], "--folds: must be a whole number, not five"),
        (["--train_batch_size", "x"], "--train_batch_size: must be a whole number, not x"),
        (["--learning_rate", "nan"], "finite"),
        (["--learning_rate", "-1"], "must be 0 or more"),
        (["--final_tensor_name", "a//b"], "cannot name a tensor"),
        (["--train_batch_size", "0"], "or -1 for all"),
        (["--architecture", "inception_v4"], "not a known network; did you mean inception_v3?"),
        (["--output_graph", "same", "--output_labels", "./same"], "name the same file"),
        (["--label_audit", "same", "--output_labels", "./same"], "name the same file"),
        (["--exclude", __file__, "--label_audit", __file__], "choose another file"),
        (["--exclude", "nowhere.txt"], "cannot read the list nowhere.txt"),
        (["--report", "same", "--metrics", "same"], "--metrics and --report name the same file"),
        (["--metrics", ""], "--metrics must name a file"),
        (["--projector_photos", "-1"], "must be from 0 to 10000"),
        (["--output_labels", "anywhere/daisy/1.jpg"], "is in --image_dir, where each folder"),
        (["--bottleneck_dir", "anywhere/cache"], "is in --image_dir, where each folder"),
        (["--output_graph", "bottleneck_cache/x.sqlite"], "is in --bottleneck_dir"),
        (["--label_audit", "models/bad_images.tsv"], "name the same file"),
        (["--batch_size", "100000"], "must be from 1 to 256"),
        (["--train_batch_size", "999999999999"], "must be from 1 to 100000, or -1 for all"),
        (["--distorted_views", "1000000000"], "must be from 1 to 1000"),
        (["--final_tensor_name", "two words"], "cannot name a tensor"),
        (["--assert_accuracy_at_least", "80"], "must be from 0 to 1"),
        (["--hidden_units", "256,0"], "must be numbers from 1 to 16384, not 256,0"),
        (["--hidden_units", "1e3"], "must be whole numbers, as 256 or 256,64, not 1e3"),
        (["--dropout", "1"], "must be from 0 to 0.99"),
        (["--dropout", "0.5"], "--dropout is for hidden layers; add --hidden_units"),
        (["--optimizer", "adamw"], "invalid choice: 'adamw'"),
        (["--epochs", "3", "--how_many_training_steps=4000"], "both set the length"),
        (
            ["--optimizer", "lbfgs", "--learning_rate", "1"],
            "--learning_rate cannot be combined with it",
        ),
        (["--optimizer", "lbfgs", "--epochs", "1"], "takes all photos at once; --epochs cannot"),
        (
            ["--head", "auto", "--hidden_units", "9"],
            "by itself; --hidden_units cannot be combined with it",
        ),
        (
            ["--head", "auto", "--optimizer=sgd", "--how_many_training_steps", "9"],
            "--optimizer, --how_many_training_steps cannot be combined with it",
        ),
        (
            ["--head", "auto", "--validation_percentage", "0", "--split_by", "content"],
            "--head auto needs photos for validation; raise --validation_percentage",
        ),
        (["--stratified", "--split_by", "path"], "drop --split_by path"),
    ],
)
def test_bad_flags_are_refused_with_one_line(flags, reason, refused):
    assert reason in refused("--image_dir", "anywhere", *flags)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["ph"], "unrecognized arguments: ph; did you mean --image_dir ph? ("),
        (["my", "ph"], "unrecognized arguments: my ph; a path with spaces needs quotes after "),
        (
            ["--image_dir", "my", "ph"],
            "unrecognized arguments: ph; a path with spaces needs quotes (",
        ),
        (["--photo_table", "x", "-v"], "unrecognized arguments: -v ("),
    ],
)
def test_words_that_belong_to_no_flag_are_explained(words, reason, refused):
    assert reason in refused(*words)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--fine_tune_epochs", "3"], "--fine_tune_epochs needs --fine_tune all or --compare"),
        (["--freeze_until", "conv"], "--freeze_until needs --fine_tune all or --compare"),
        (["--fine_tune", "some"], "invalid choice: 'some'"),
        (["--fine_tune", "all", "--freeze_until", ""], "must be the name of a layer"),
        (["--fine_tune", "all", "--base_learning_rate", "-1"], "must be 0 or more, not -1"),
        (["--fine_tune", "all", "--fine_tune_epochs", "0"], "must be from 1 to"),
        (["--compare", "head,half"], "'half' is not one of head, two_rates, all, scratch"),
        (["--compare", "all,all"], "names a method twice"),
        (["--compare", "head"], "or only head"),
        (
            ["--compare", "all", "--split_by", "path", "--validation_percentage", "0"],
            "--compare needs",
        ),
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
        (["--fine_tune", "all", "--compare", "head,all"], "drop --fine_tune all"),
    ],
)
def test_flags_of_fine_tuning_that_make_no_sense_are_refused(flags, message, refused, tmp_path):
    given = ("--image_dir", "photos", "--output_graph", tmp_path / "models" / "graph.pb")
    assert message in refused(*given, *(flag.format(tmp_path) for flag in flags))


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--architecture", "inception_v3+inception_v3"], "not one network or two different ones"),
        (["--architecture", "inception_v3+nothing"], "'nothing' is not a known network"),
        (
            ["--architecture", BOTH, "--model_file", "x.pb"],
            "--model_file gives the file of a single network",
        ),
        (["--architecture", BOTH, "--import_classic_bottlenecks", "."], "is for one network"),
        (["--mirror_average", "--import_classic_bottlenecks", "."], "is for one network"),
    ],
)
def test_flags_that_do_not_go_with_two_networks_are_refused(flags, reason, refused):
    assert reason in refused("--image_dir", "photos", *flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tflite_quantize", "dynamic"], "--tflite_quantize needs --tflite_file"),
        (["--tflite_file", "a/x", "--onnx_file", "a/x"], "name the same file"),
        (["--onnx_file", "photos/red/x.onnx"], "is in --image_dir"),
        (["--saved_model_dir", "photos"], "is in --image_dir"),
        (["--saved_model_dir", "photos/saved"], "is in --image_dir"),
        (["--saved_model_dir", "bottleneck_cache"], "is in --bottleneck_dir"),
    ],
)
def test_flags_of_other_formats_that_make_no_sense_are_refused(flags, message, refused):
    assert message in refused("--image_dir", "photos", *flags)


@pytest.mark.parametrize(
    "flag",
    [
        *("--output_graph", "--output_labels", "--report", "--metrics", "--label_audit"),
        *("--export_vectors", "--summaries_dir", "--bottleneck_dir", "--model_file"),
    ],
)
def test_a_url_as_an_output_is_refused(flag, refused):
    error = refused("--image_dir", "s3://b/p", flag, "s3://b/out")
    assert f"{flag} s3://b/out is a URL; only --image_dir may be one" in error


def test_classic_vectors_do_not_go_with_a_url(refused, tmp_path):
    error = refused("--image_dir", "s3://b/p", "--import_classic_bottlenecks", tmp_path)
    assert "needs the photos in a folder of this machine" in error


def test_a_classic_cache_that_is_not_there_is_a_wrong_flag(refused, tmp_path):
    error = refused("--image_dir", "photos", "--import_classic_bottlenecks", tmp_path / "nowhere")
    assert "nowhere is not a folder" in error


@pytest.mark.parametrize("flag", ["--export_vectors", "--import_vectors"])
def test_without_pyarrow_its_flags_are_refused(flag, refused, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "x.parquet").touch()
    error = refused("--image_dir", "photos", flag, tmp_path / "x.parquet")
    assert f"{flag} needs the package pyarrow: pip install -r requirements-" in error


def test_a_file_of_vectors_that_is_not_there_is_a_wrong_flag(refused, tmp_path):
    error = refused("--image_dir", "photos", "--import_vectors", tmp_path / "no.parquet")
    assert "no.parquet is not a file" in error


def test_the_file_that_is_imported_is_not_replaced(refused, tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "vectors.parquet"
    path.touch()
    error = refused("--image_dir", "photos", "--import_vectors", path, "--export_vectors", path)
    assert "would replace the file of --import_vectors" in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ray_actors", "2"], "--ray_actors needs --engine ray"),
        (
            ["--engine", "ray", "--ray_address", "nonsense"],
            "must be auto, local, [ray://]HOST:PORT",
        ),
        (["--engine", "ray", "--ray_resources", "0"], "--ray_resources: must be from 1 to 10000"),
        (["--engine", "ray", "--ray_resources", "1,x"], "must be CPUS or CPUS,GPUS, not 1,x"),
    ],
)
def test_bad_flags_of_ray_are_refused(flags, message, refused, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "something")
    assert message in refused("--image_dir", "photos", *flags)


def test_flags_without_ray_name_its_requirements(refused, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    error = refused("--image_dir", "photos", "--engine", "ray")
    assert "pip install -r requirements-ray.txt" in error


# -- what flags are turned into --------------------------------------------------------------


def test_outputs_go_beside_the_graph_unless_they_are_named():
    given = ["--image_dir", "photos", "--output_graph", os.path.join("elsewhere", "flowers.pb")]
    options = parse_flags([*given, "--metrics", "metrics.json"], "")[0]
    assert options.output_labels == os.path.join("elsewhere", "retrained_labels.txt")
    assert options.report == os.path.join("elsewhere", "retrained_report.html")
    assert options.metrics == "metrics.json"
    assert parse_flags([*given, "--output_labels", "l.txt"], "")[0].output_labels == "l.txt"


def test_the_engine_is_this_machine_or_a_ray_cluster(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "something")
    assert settings().bottlenecks.engine == Local()
    ray = ("--engine", "ray")
    assert settings(*ray).bottlenecks.engine == Ray("auto", None, 1, 0.0)
    more = ("--ray_address", "local", "--ray_actors", "3", "--ray_resources", "4,0.5")
    assert settings(*ray, *more).bottlenecks.engine == Ray("local", 3, 4, 0.5)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], replace(RANDOM_VIEWS, seed=3)),
        (["--random_brightness", "20"], Distortions(random_brightness=20, seed=3)),
        (["--fine_tune_views", "plain", "--random_brightness", "20"], Distortions()),
    ],
)
def test_views_are_random_unless_flags_say_otherwise(flags, expected):
    assert views_of(settings("--fine_tune", "all", "--seed", "3", *flags)) == expected
