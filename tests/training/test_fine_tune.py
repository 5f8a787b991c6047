"""fine_tune.py, tuning_graph.py and methods.py: training a tiny network's own weights."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from retraining.graphs.nodes import constant, nodes_by_name
from retraining.graphs.run import Runner
from retraining.networks.network import load_network
from retraining.networks.registry import NETWORKS
from retraining.photos.dataset import Example
from retraining.photos.reader import Distortions, ImageReader
from retraining.photos.registry import hash_file
from retraining.training import fine_tune
from retraining.training.fine_tune import (
    Material,
    Pixels,
    SplitPhotos,
    Tuner,
    TuningOptions,
    read_state,
    shares_of,
)
from retraining.training.head import Head
from retraining.training.loop import TrainingError
from retraining.training.tuning_graph import (
    find_weights,
    fold_network,
    random_weights,
)
from tests import tiny

pytestmark = pytest.mark.numbers

LABELS = ("blue", "green", "red")


@pytest.fixture(scope="module")
def network(inception_file):
    return load_network(inception_file, NETWORKS["inception_v3"])


def first_head(width=tiny.WIDTH, hidden=(), seed=0):
    rng = np.random.default_rng(seed)
    sizes = [width, *hidden, len(LABELS)]
    layers = [
        (rng.normal(size=(a, b)).astype("f4") * 0.3, np.full(b, 0.1, "f4"))
        for a, b in itertools.pairwise(sizes)
    ]
    return Head(*layers[-1], tuple(layers[:-1]))


@pytest.fixture(scope="module")
def splits(photos):
    """(training, validation) Photos: 12 and 6 of each colour."""
    parts = []
    for numbers in (range(12), range(12, 18)):
        paths = [
            (n, f"{photos}/{c}/photo_{i:02d}.jpg") for n, c in enumerate(LABELS) for i in numbers
        ]
        examples = [Example(path, LABELS[n], "", hash_file(path)) for n, path in paths]
        parts.append(SplitPhotos(examples, np.array([n for n, _ in paths])))
    return parts


OPTIONS = TuningOptions(base_rate=0.03, head_rate=0.1, epochs=4, batch_size=12)


def make_tuner(network, splits, options=OPTIONS, **settings):
    return Tuner(Material(network, first_head(), *splits, **settings), options)


def finish(tuner):
    return list(tuner.run())


def pixels_of(network, photos):
    about = network.preprocessing
    reader = ImageReader(about)
    return np.concatenate([reader.read(example.path) for example in photos.examples])


def vectors_of(network, images):
    return Runner(network.graph_def, network.input, network.bottleneck).run(images)


def constants_of(network):
    nodes = nodes_by_name(network.graph_def)
    return {name: constant(nodes, name) for name in nodes if nodes[name].op == "Const"}


def test_rare_classes_count_as_much_as_frequent_ones():
    shares = shares_of(np.array([0, 0, 0, 2]), 3)
    np.testing.assert_allclose(shares, [2 / 3, 2 / 3, 2 / 3, 2])


def test_training_lowers_the_loss_and_the_network_gives_the_sessions_answers(network, splits):
    tuner = make_tuner(network, splits)
    steps = finish(tuner)
    assert [step.number for step in steps] == list(range(12))
    assert [step.number for step in steps if step.training] == [2, 5, 8, 11]
    before, after = tuner.state.course[0][1], tuner.state.course[tuner.state.best_epoch][1]
    assert after.cross_entropy < before.cross_entropy / 2
    assert after.accuracy > 0.9
    tuned, head = tuner.result()
    assert (tuned.input, tuned.bottleneck, tuned.width) == ("Mul", "pool_3/_reshape", tiny.WIDTH)
    assert tuned.file_sha1 != network.file_sha1
    answers = head.probabilities(vectors_of(tuned, pixels_of(network, splits[1])))
    np.testing.assert_allclose(answers, tuner.best_probabilities(splits[1]), atol=1e-5)


def test_folding_alone_changes_no_vector(network, splits):
    images = pixels_of(network, splits[1])
    folded = fold_network(network)
    assert not {"BatchNormWithGlobalNormalization", "CheckNumerics"} & {
        node.op for node in folded.graph_def.node
    }
    np.testing.assert_allclose(vectors_of(folded, images), vectors_of(network, images), atol=1e-5)


def test_frozen_layers_stay_bit_for_bit(network, splits):
    tuner = make_tuner(network, splits, replace(OPTIONS, freeze_until="conv"))
    finish(tuner)
    before, after = constants_of(fold_network(network)), constants_of(tuner.result()[0])
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed == {
        *("mixed/conv/conv2d_params", "mixed/tower/conv2d_params"),
        *("mixed/conv/batchnorm/bias", "mixed/tower/batchnorm/bias"),
    }


def test_a_base_rate_of_0_leaves_the_network_as_it_is(network, splits):
    tuner = make_tuner(network, splits, replace(OPTIONS, base_rate=0))
    finish(tuner)
    tuned, head = tuner.result()
    assert tuned is network
    assert (head.weights != first_head().weights).any()


def test_training_that_does_no_good_gives_back_what_was_there(network, splits):
    material = Material(network, first_head(), *splits)
    tuner = Tuner(material, OPTIONS)
    finish(tuner)
    mislabelled = SplitPhotos(splits[0].examples, (splits[0].targets + 1) % len(LABELS))
    better = Material(*tuner.result(), mislabelled, splits[1])
    ruined = Tuner(better, replace(OPTIONS, epochs=2))
    finish(ruined)
    assert ruined.state.best_epoch == 0
    assert ruined.result()[0] is better.network
    np.testing.assert_array_equal(ruined.result()[1].weights, better.head.weights)


def test_training_ends_when_validation_gets_no_better(network, splits):
    options = replace(OPTIONS, base_rate=0, head_rate=0, epochs=50)
    tuner = make_tuner(network, splits, options)
    finish(tuner)
    assert (tuner.state.epoch, tuner.state.best_epoch) == (26, 0)
    assert tuner.steps_left() == 0


@pytest.mark.parametrize(("epochs", "ended"), [(1, 1), (2, 2), (3, 3), (5, 4), (10, 6)])
def test_half_of_the_epochs_without_a_better_one_are_borne(network, splits, epochs, ended):
    options = replace(OPTIONS, base_rate=0, head_rate=0, epochs=epochs)
    tuner = make_tuner(network, splits, options)
    finish(tuner)
    assert tuner.state.epoch == ended


def test_without_validation_photos_the_last_weights_are_kept(network, splits):
    nothing = SplitPhotos([], np.zeros(0, int))
    tuner = make_tuner(network, (splits[0], nothing))
    finish(tuner)
    assert tuner.state.epoch == tuner.state.best_epoch == OPTIONS.epochs
    assert tuner.state.best.keys() == tuner.state.weights.keys()
    for name, value in tuner.state.weights.items():
        np.testing.assert_array_equal(tuner.state.best[name], value)


def test_weights_that_are_not_finite_are_an_error(network, splits):
    tuner = make_tuner(network, splits, replace(OPTIONS, base_rate=1e38, head_rate=1e38))
    with pytest.raises(TrainingError, match=r"in epoch 1: .* lower `TuningOptions.base_rate`"):
        finish(tuner)


def test_a_photo_that_is_gone_is_named(network, splits):
    training = SplitPhotos([replace(splits[0].examples[0], path="gone.jpg")], np.array([0]))
    with pytest.raises(TrainingError, match=r"gone\.jpg cannot be read"):
        finish(make_tuner(network, (training, splits[1])))


class CountingReader(ImageReader):
    """Counts the photos that it reads."""

    count = 0

    def read(self, *arguments):
        object.__setattr__(self, "count", self.count + 1)
        return super().read(*arguments)


def reader_of(network, kind=ImageReader):
    return kind(network.preprocessing)


def test_photos_beyond_the_memory_are_decoded_anew_with_the_same_result(network, splits):
    reader = reader_of(network, CountingReader)
    scarce = Pixels(splits[0], reader, memory=5 * 12 * tiny.SIZE**2)
    expected = pixels_of(network, splits[0])
    for epoch, decoded in ((0, 36), (1, 36 + 31)):  # five of them are kept
        np.testing.assert_array_equal(scarce.read(range(36), epoch), expected)
        assert reader.count == decoded


@pytest.mark.parametrize("scale", [0, 20])  # whether photos can be kept to crop views from
def test_distorted_views_differ_from_epoch_to_epoch(network, splits, scale):
    distortions = Distortions(random_brightness=50, random_scale=scale)
    pixels = Pixels(splits[0], reader_of(network), distortions)
    one, same, other = (pixels.read([0, 1], epoch) for epoch in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any(axis=(1, 2, 3)).all()
    again = pixels.read([0, 1], 0)  # from what was kept
    np.testing.assert_array_equal(one, again)


def test_only_training_photos_are_distorted(network, splits):
    options = replace(OPTIONS, epochs=1)
    tuners = [
        make_tuner(network, splits, options, distortions=distortions)
        for distortions in (Distortions(), Distortions(random_brightness=50))
    ]
    for tuner in tuners:
        finish(tuner)
    (before, after), (distorted_before, distorted_after) = (tuner.state.course for tuner in tuners)
    assert distorted_before[1] == before[1]  # on the validation photos
    assert distorted_after != after


# -- checkpoints -----------------------------------------------------------------------------


def test_a_resumed_run_ends_with_the_same_weights(network, splits, tmp_path):
    path, undisturbed = tmp_path / "state.npz", make_tuner(network, splits)
    finish(undisturbed)
    stopped = make_tuner(network, splits)
    for step in stopped.run(path.write_bytes):
        if step.number == 4:  # amid the second epoch
            break
    resumed = make_tuner(network, splits)
    resumed.state = read_state(path, resumed.state)
    assert resumed.state.epoch == 1
    assert resumed.steps_left() == 9
    steps = finish(resumed)
    assert [step.number for step in steps] == list(range(3, 12))
    assert resumed.state.course[1:] == undisturbed.state.course[1:]
    assert [step.number for step in resumed.course()] == [2, 5, 8, 11]
    for name, value in undisturbed.state.weights.items():
        np.testing.assert_array_equal(resumed.state.weights[name], value)
        np.testing.assert_array_equal(resumed.state.best[name], undisturbed.state.best[name])


def test_a_damaged_or_other_checkpoint_is_not_used(network, splits, tmp_path):
    tuner, path = make_tuner(network, splits), tmp_path / "state.npz"
    assert read_state(path, tuner.state) is None
    content = fine_tune.state_bytes(tuner.state)
    path.write_bytes(content)
    assert read_state(path, tuner.state) is not None
    path.write_bytes(content[: len(content) // 2])
    assert read_state(path, tuner.state) is None
    spot = len(content) // 2
    path.write_bytes(content[:spot] + bytes([content[spot] ^ 1]) + content[spot + 1 :])
    assert read_state(path, tuner.state) is None
    path.write_bytes(content)
    other = make_tuner(network, splits, replace(OPTIONS, base_rate=0))
    other.state.weights = {"another": np.zeros(3, "f4")}
    assert read_state(path, other.state) is None


def test_the_digest_tells_what_leads_to_other_weights(network, splits):
    digest = make_tuner(network, splits).digest()
    assert make_tuner(network, splits).digest() == digest
    fewer = (SplitPhotos(splits[0].examples[1:], splits[0].targets[1:]), splits[1])
    others = {
        make_tuner(network, splits, replace(OPTIONS, seed=1)).digest(),
        make_tuner(network, splits, replace(OPTIONS, epochs=5)).digest(),
        make_tuner(network, fewer).digest(),
        make_tuner(network, splits, distortions=Distortions(True)).digest(),
        Tuner(Material(network, first_head(seed=1), *splits), OPTIONS).digest(),
    }
    assert len(others - {digest}) == 5


def test_scratch_starts_from_random_weights_of_all_layers(network, splits):
    tuner = make_tuner(network, splits, replace(OPTIONS, scratch=True, freeze_until="conv"))
    folded = fold_network(network)
    before = constants_of(folded)
    weights = tuner.state.weights
    assert (weights["conv/conv2d_params"] != before["conv/conv2d_params"]).all()
    assert (weights["conv/batchnorm/bias"] == 0).all()
    again = random_weights(folded, find_weights(folded), 0)
    np.testing.assert_array_equal(weights["conv/conv2d_params"], again["conv/conv2d_params"])
    assert (
        random_weights(folded, find_weights(folded), 1)["conv/conv2d_params"]
        != again["conv/conv2d_params"]
    ).any()
