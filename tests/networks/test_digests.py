"""What old stores and checkpoints are found by: strings and digests that no renaming may change.

Each text is what `repr` gave when the first of these files were written. A digest here changes only
together with `fine_tune.FORMAT` or `reader.POLICY`, which is to say: old files are useless.
"""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from retraining.bottlenecks.store import BottleneckStore
from retraining.graphs.messages import GraphDef
from retraining.graphs.preprocessing import Preprocessing
from retraining.networks.network import BaseNetwork
from retraining.photos.dataset import Example
from retraining.photos.reader import Distortions
from retraining.training.fine_tune import (
    Material,
    SplitPhotos,
    State,
    Tuner,
    TuningOptions,
    distortions_text,
    options_text,
    read_state,
    state_bytes,
)
from retraining.training.head import Evaluation, Head

NETWORK = BaseNetwork(
    name="inception_v3",
    graph_def=GraphDef(),
    input="Mul",
    bottleneck="pool_3/_reshape",
    preprocessing=Preprocessing((299, 299), 128.0, 128.0),
    width=2,
    file_sha1="0123456789abcdef0123456789abcdef01234567",
)
OPTIONS = TuningOptions()
OTHERS = TuningOptions(0.5, 1e-05, 3, 7, "mixed/tower", True, "bfloat16", 11)
HIDDEN = ((np.eye(2, dtype=np.float32), np.zeros(2, np.float32)),)
OTHER_PIXELS = Preprocessing((224, 192), 127.5, 0.5)


def digest(network=NETWORK, options=OPTIONS, distortions=None, hidden=()):
    """The hex digest of a checkpoint of three made-up photos."""
    training = SplitPhotos(
        [Example("a.jpg", "red", "training", "a" * 40), Example("b", "blue", "", "b" * 40)],
        np.array([1, 0]),
    )
    validation = SplitPhotos([Example("c.jpg", "red", "validation", "c" * 40)], np.array([1]))
    head = Head(np.array([[1, 2], [3, 4]], np.float32), np.array([0.5, -1], np.float32), hidden)
    material = Material(network, head, training, validation, distortions or Distortions())
    return Tuner.digest(SimpleNamespace(material=material, options=options))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            OPTIONS,
            "TuningOptions(base_rate=0.002, head_rate=0.01, epochs=15, batch_size=32, "
            "freeze_until=None, scratch=False, precision='float32', seed=0)",
        ),
        (
            OTHERS,
            "TuningOptions(base_rate=0.5, head_rate=1e-05, epochs=3, batch_size=7, "
            "freeze_until='mixed/tower', scratch=True, precision='bfloat16', seed=11)",
        ),
    ],
)
def test_the_options_in_a_checkpoints_digest(options, text):
    assert options_text(options) == text


@pytest.mark.parametrize(
    ("distortions", "text"),
    [
        (
            Distortions(),
            "Distortions(flip_left_right=False, random_crop=0, random_scale=0, "
            "random_brightness=0, views=8, seed=0)",
        ),
        (
            Distortions(True, 25, 5, 10, 2, 3),
            "Distortions(flip_left_right=True, random_crop=25, random_scale=5, "
            "random_brightness=10, views=2, seed=3)",
        ),
    ],
)
def test_the_distortions_in_a_checkpoints_digest(distortions, text):
    assert distortions_text(distortions) == text


def test_a_views_key():
    key = Distortions(True, 25, 5, 10, 2, 3).view_key("a" * 40, 1)
    assert key == f"{'a' * 40} flip=1 crop=25 scale=5 brightness=10 seed=3 view=1"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "cf4c21d3ab0b0e0471d8d3e25bea9343e4bf6ac4"),
        ({"options": OTHERS}, "79e8a7d67f42dcc62e5d65ada25ef1c5ed7b53b5"),
        ({"distortions": Distortions(True, 25)}, "0e229eccfe7ed41d3c81e9a5a35a8b5645e1464c"),
        ({"hidden": HIDDEN}, "aaecba0d39b016710372259df8b6de621e096364"),
    ],
)
def test_a_checkpoints_digest(changes, expected):
    assert digest(**changes) == expected


@pytest.mark.parametrize(
    ("changes", "precision", "expected"),
    [
        ({}, "float32", "413608273f597c74b75b669736fae9958883964f"),
        ({}, "bfloat16", "05c121262ee6c4aadb6419198e64c7ecf95dd9df"),
        ({"preprocessing": OTHER_PIXELS}, "float32", "2fd46d3e67c73e057a46254957d3879aef0be533"),
    ],
)
def test_a_networks_fingerprint(changes, precision, expected):
    assert replace(NETWORK, **changes).fingerprint(precision) == expected


def test_a_stores_name(tmp_path):
    with BottleneckStore(tmp_path, "a+b/c", "0123456789abcdef0123", 2) as store:
        assert store.path == tmp_path / "a+b_c-0123456789abcdef.sqlite"


def test_a_checkpoints_file_keeps_its_names(tmp_path):
    """Its arrays, and the JSON beside them with the fields of each Evaluation."""
    arrays = {"w": np.arange(2, dtype=np.float32)}
    found = Evaluation(0.5, 1.25, 6)
    state = State(*[dict(arrays) for _ in range(4)], 1, 1, 2.5, [(found, found), (found, found)])
    (tmp_path / "state.npz").write_bytes(state_bytes(state))
    with np.load(tmp_path / "state.npz") as file:
        assert sorted(file) == ["about", "best:w", "means:w", "squares:w", "weights:w"]
        about = json.loads(file["about"].tobytes())
    evaluation = {"accuracy": 0.5, "cross_entropy": 1.25, "count": 6}
    assert about == {
        "epoch": 1,
        "best_epoch": 1,
        "seconds": 2.5,
        "course": [[evaluation, evaluation]] * 2,
    }
    assert read_state(tmp_path / "state.npz", state).course == state.course
