"""What the tests share: a tiny network's file, generated photos, one finished run."""

import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # as import_tensorflow does
from tests import tiny
from tests.warm_python import WarmPython

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory):
    """The user's cache directory, which no test shares with the user."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def _fresh_log():
    """Undoes what an earlier command did to the log, so that `caplog` sees it."""
    log = logging.getLogger("retraining")
    log.handlers, log.propagate = [], True
    log.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory):
    """models/inception_dec_2015/tensorflow_inception_graph.pb of a tiny network."""
    folder = tmp_path_factory.mktemp("network") / "models" / "inception_dec_2015"
    return tiny.write_graph(str(folder / "tensorflow_inception_graph.pb"), tiny.tiny_inception())


@pytest.fixture(scope="session")
def model_dir(inception_file):
    """The --model_dir that holds `inception_file`."""
    return os.path.dirname(os.path.dirname(inception_file))


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Three classes of 30 generated JPEGs; do not write to it."""
    folder = tmp_path_factory.mktemp("photos")
    return tiny.write_photos(folder, {"red": 30, "green": 30, "blue": 30})


@pytest.fixture(scope="session")
def run_retrain(model_dir):
    """Calls retrain.main in a folder with the tiny network; returns its exit code."""
    import retrain

    def run(folder, image_dir, *flags, steps=100):
        return retrain.main(
            [
                *("--image_dir", str(image_dir), "--model_dir", model_dir),
                *("--bottleneck_dir", f"{folder}/bottleneck_cache"),
                *("--output_graph", f"{folder}/models/retrained_graph.pb"),
                *("--summaries_dir", f"{folder}/retrain_logs"),
                *("--how_many_training_steps", str(steps), "--learning_rate", "0.1"),
                *map(str, flags),
            ]
        )

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory, run_retrain, photos):
    """One finished run: its folder, the graph's and the labels' paths; do not write to it."""
    folder = tmp_path_factory.mktemp("finished")
    assert run_retrain(folder, photos, "--precision", "float32") == 0
    return SimpleNamespace(
        folder=folder,
        photos=photos,
        graph=str(folder / "models" / "retrained_graph.pb"),
        labels=str(folder / "models" / "retrained_labels.txt"),
    )


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory):
    """A `python` for shells that starts the commands at once; its `environment` has it in PATH."""
    modules = ["tensorflow", "retraining.cli.retrain", "retraining.cli.label_image"]
    with WarmPython(tmp_path_factory.mktemp("warm"), modules) as python:
        yield python


@pytest.fixture(scope="session")
def shared():
    """The folder of real photos and graphs; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the folder of real photos and graphs is not here")
    return SHARED


@pytest.fixture(scope="session")
def object_store():
    """A real S3 server with a bucket `photos`, which s3:// URLs lead to; skipped without moto."""
    for package in ("moto.server", "boto3", "s3fs"):
        pytest.importorskip(package)
    from tests.object_store import ObjectStore

    store = ObjectStore()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        yield store
    store.stop()
