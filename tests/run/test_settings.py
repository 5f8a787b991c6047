"""settings.py: what contradicts itself or is out of range is refused when it is made."""

import json
from dataclasses import FrozenInstanceError, replace

import pytest

from retraining.bottlenecks.compute import BottleneckSettings
from retraining.bottlenecks.ray_engine import Ray
from retraining.cli.flags import parse_flags
from retraining.photos.reader import Distortions
from retraining.photos.split import SplitOptions
from retraining.run.settings import (
    EvaluationSettings,
    FineTuningSettings,
    HeadSettings,
    NetworkSettings,
    OutputSettings,
    PhotoSettings,
    RunSettings,
)
from retraining.system.ranges import SettingsError
from retraining.training.fine_tune import TuningOptions
from retraining.training.loop import TrainingOptions
from retraining.training.optimizers import RATES


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: PhotoSettings("x", max_pixels=0), "max_pixels must be 1 or more, not 0"),
        (lambda: PhotoSettings("x", max_bad_fraction=1.5), "must be from 0 to 1, not 1.5"),
        (lambda: SplitOptions(60, 40), "leave no training images"),
        (
            lambda: SplitOptions(by="luck"),
            "by must be one of auto, folders, content, path, not 'luck'",
        ),
        (PhotoSettings, "give `PhotoSettings.image_dir` or `PhotoSettings.photo_table`"),
        (lambda: PhotoSettings(photo_table="x", recursive=True), "is for folders"),
        (lambda: PhotoSettings(photo_table="x", label_from="name"), "label_from` is for folders"),
        (lambda: PhotoSettings("x", label_from="luck"), "label_from"),
        (lambda: PhotoSettings("x", classes=("a", "b", "a")), "classes` names a twice"),
        (lambda: PhotoSettings("x", classes=("a",)), "at least two classes, but names only a"),
        (lambda: PhotoSettings("s3://b/p", photo_table="x"), "is a URL"),
        (lambda: BottleneckSettings(batch_size=0), "batch_size must be from 1 to 256, not 0"),
        (lambda: Distortions(random_crop=101), "random_crop must be from 0 to 100, not 101"),
        (lambda: TrainingOptions(dropout=float("nan")), "dropout must be from 0 to 0.99"),
        (lambda: TrainingOptions(optimizer="luck"), "optimizer must be one of"),
        (lambda: TrainingOptions(train_batch_size=0), "a batch holds at least 1 vector"),
        (lambda: TuningOptions(epochs=0), "epochs must be from 1 to 10000, not 0"),
        (lambda: EvaluationSettings(least_accuracy=2), "least_accuracy must be from 0 to 1"),
        (lambda: NetworkSettings(precision="float8"), "precision must be one of auto"),
        (
            lambda: OutputSettings(formats={"gif": "x"}),
            "formats must be one of pixels_graph, saved_model",
        ),
    ],
)
def test_a_value_out_of_range_is_refused(make, error):
    with pytest.raises(SettingsError, match=error):
        make()


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ({"head": HeadSettings(search=True)}, "`HeadSettings.search` needs photos for validation"),
        (
            {"head": HeadSettings(TrainingOptions(early_stopping=3))},
            "`TrainingOptions.early_stopping` needs photos for validation",
        ),
        ({"evaluation": EvaluationSettings(least_accuracy=0.5)}, "needs photos for testing"),
        (
            {
                "network": NetworkSettings("inception_v3+mobilenet_1.0_224"),
                "fine_tuning": FineTuningSettings(("two_rates",)),
            },
            "for one network",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(parts, error):
    with pytest.raises(SettingsError, match=error):
        RunSettings(PhotoSettings("x", split=SplitOptions(0, 0, by="content")), **parts)


def test_photos_that_the_source_may_hold_out_are_not_missed_before_it_is_read():
    needing = {
        "head": HeadSettings(search=True),
        "evaluation": EvaluationSettings(least_accuracy=0.5),
    }
    settings = RunSettings(PhotoSettings("x", split=SplitOptions(0, 0)), **needing)
    assert settings.needed_splits == {
        "HeadSettings.search": "validation",
        "EvaluationSettings.least_accuracy": "testing",
    }


def test_settings_do_not_change():
    settings = RunSettings(PhotoSettings("x"))
    with pytest.raises(FrozenInstanceError):
        settings.seed = 3


def test_one_seed_goes_to_all_steps():
    settings = RunSettings(PhotoSettings("x"), seed=7)
    assert settings.head.training.seed == 7
    assert settings.fine_tuning.tuning.seed == 7
    assert settings.bottlenecks.distortions.seed == 7


def test_outputs_lie_beside_the_graph_unless_they_are_named():
    outputs = OutputSettings("there/graph.pb", report="here.html")
    assert outputs.labels == "there/retrained_labels.txt"
    assert outputs.metrics == "there/retrained_metrics.json"
    assert outputs.report == "here.html"
    assert outputs.model_card == "there/retrained_model_card.md"
    assert outputs.bad_images == "there/bad_images.tsv"


def test_the_defaults_are_those_of_the_flags():
    _, by_flags = parse_flags(["--image_dir", "x"], "")
    by_hand = RunSettings(
        PhotoSettings("x"), head=HeadSettings(TrainingOptions(learning_rate=RATES["sgd"]))
    )
    assert replace(by_flags, record={"a": 1}) == replace(by_hand, record={"a": 1})


def test_a_record_keeps_no_password_of_an_address():
    secret = PhotoSettings("https://bob:word@example.org/photos.zip?sig=1")
    record = RunSettings(secret).record
    assert record["image_dir"] == record["photos.image_dir"] == "https://example.org/photos.zip"
    given = parse_flags(["--image_dir", "https://bob:word@example.org/photos.zip?sig=1"], "")[1]
    assert given.record["image_dir"] == "https://example.org/photos.zip"
    assert "word" not in repr(given)


def test_a_record_is_made_where_none_is_handed_through():
    record = RunSettings(PhotoSettings("x"), seed=5).record
    assert record["image_dir"] == "x"
    assert record["seed"] == 5
    assert record["label_audit"] == "models/label_audit.tsv"
    assert record["head.training.optimizer"] == "sgd"
    assert "record" not in record


def test_paths_may_be_paths(tmp_path):
    settings = RunSettings(
        PhotoSettings(tmp_path),
        NetworkSettings("saved_model", model_file=tmp_path / "model"),
        BottleneckSettings(tmp_path / "cache"),
        outputs=OutputSettings(tmp_path / "graph.pb", formats={"tflite": tmp_path / "m.tflite"}),
    )
    json.dumps(settings.record)
    assert settings.outputs.labels == f"{tmp_path}/retrained_labels.txt"
    assert settings.outputs.formats == {"tflite": f"{tmp_path}/m.tflite"}
    assert settings.network.choice_for("saved_model").model_file == f"{tmp_path}/model"


def test_flags_choose_formats_in_one_order():
    flags = ["--onnx_file", "m.onnx", "--tflite_quantize", "dynamic", "--tflite_file", "m.tflite"]
    _, settings = parse_flags(["--image_dir", "x", "--saved_model_dir", "s", *flags], "")
    formats = {"saved_model": "s", "tflite_int8": "m.tflite", "onnx": "m.onnx"}
    assert list(settings.outputs.formats.items()) == list(formats.items())
    assert settings.record["tflite_quantize"] == "dynamic"
    files = settings.output_files
    assert {name: files[name] for name in files if name in formats} == {
        "tflite_int8": "m.tflite",
        "onnx": "m.onnx",
    }


def test_litert_is_not_for_a_cluster():
    network, vectors = NetworkSettings(runtime="litert"), BottleneckSettings(engine=Ray())
    with pytest.raises(SettingsError, match=r"drop `NetworkSettings\.runtime`"):
        RunSettings(PhotoSettings("photos"), network, vectors)


def test_litert_computes_in_float32():
    with pytest.raises(SettingsError, match=r"drop `NetworkSettings\.precision`"):
        NetworkSettings(runtime="litert", precision="bfloat16")
