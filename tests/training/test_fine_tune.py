"""fine_tune.py, tuning_graph.py and methods.py: training a tiny network's own weights."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from retraining.graphs.nodes import GraphError, constant, nodes_by_name
from retraining.graphs.run import Runner
from retraining.networks.network import load_network
from retraining.networks.registry import NETWORKS
from retraining.photos.dataset import Example
from retraining.photos.reader import Distortions, ImageReader
from retraining.photos.scan import hash_file
from retraining.training import fine_tune
from retraining.training.fine_tune import (
    Material,
    Photos,
    Pixels,
    Tuner,
    TuningOptions,
    read_state,
    shares_of,
)
from retraining.training.head import Head
from retraining.training.loop import TrainingError
from retraining.training.methods import ALL, SCRATCH, TWO_RATES, options_of, tops
from retraining.training.tuning_graph import (
    OWN,
    Batch,
    TuningGraph,
    find_weights,
    fold_network,
    head_weights,
    random_weights,
    weight_sizes,
    with_weights,
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
        parts.append(Photos(examples, np.array([n for n, _ in paths])))
    return parts


OPTIONS = TuningOptions(base_rate=0.03, head_rate=0.1, epochs=4, batch_size=12)


def make_tuner(network, splits, options=OPTIONS, **settings):
    return Tuner(Material(network, first_head(), *splits, **settings), options)


def finish(tuner):
    return list(tuner.run())


def pixels_of(network, photos):
    about = network.preprocessing
    reader = ImageReader(about.size, about.mean, about.std)
    return np.concatenate([reader.read(example.path) for example in photos.examples])


def vectors_of(network, images):
    return Runner(network.graph_def, network.input, network.bottleneck).run(images)


def constants_of(network):
    nodes = nodes_by_name(network.graph_def)
    return {name: constant(nodes, name) for name in nodes if nodes[name].op == "Const"}


# -- what is trained, and its gradient -------------------------------------------------------


def test_weights_and_biases_of_the_convolutions_are_trained(network):
    assert set(find_weights(fold_network(network))) == {
        *("conv/conv2d_params", "mixed/conv/conv2d_params", "mixed/tower/conv2d_params"),
        *("conv/batchnorm/bias", "mixed/conv/batchnorm/bias", "mixed/tower/batchnorm/bias"),
    }


def test_freezing_leaves_a_layer_and_all_it_depends_on(network):
    folded = fold_network(network)
    mixed = {
        *("mixed/conv/conv2d_params", "mixed/tower/conv2d_params"),
        *("mixed/conv/batchnorm/bias", "mixed/tower/batchnorm/bias"),
    }
    assert set(find_weights(folded, "conv")) == mixed
    tower = {"mixed/tower/conv2d_params", "mixed/tower/batchnorm/bias"}
    assert set(find_weights(folded, "mixed/conv/")) == tower


def test_freezing_an_unknown_layer_names_what_is_alike(network):
    with pytest.raises(GraphError, match="no layer mixed/towr; did you mean mixed/tower"):
        find_weights(fold_network(network), "mixed/towr")


def test_freezing_a_layer_like_none_names_some_that_there_are(network):
    with pytest.raises(GraphError, match="no layer block7; it has conv, mixed/conv, mixed/tower"):
        find_weights(fold_network(network), "block7")


def test_freezing_everything_is_refused(network):
    with pytest.raises(TrainingError, match="choose an earlier layer for --freeze_until"):
        find_weights(fold_network(network), "mixed")


def test_a_prefix_ends_where_a_number_does():
    b = tiny.GraphBuilder(producer=0)
    b.add("input", "Placeholder", dtype=b.tf.float32, shape=(1, 8, 8, 3))
    source = "input"
    for name in ("c_1_deep", "c_1_wide", "c_10_deep"):
        weights = b.const(f"{name}/weights", np.ones((1, 1, 3, 3), "f4"))
        source = b.float_op(
            f"net/{name}", "Conv2D", source, weights, strides=[1, 1, 1, 1], padding="SAME"
        )
    about = load_like("input", source, b.graph_def)
    # The layer's weights alone are named so: what uses them counts as the layer.
    assert set(find_weights(about, "c_1")) == {"c_10_deep/weights"}


def load_like(input_name, output, graph_def):
    from retraining.graphs.description import Preprocessing
    from retraining.networks.network import BaseNetwork

    return BaseNetwork("x", graph_def, input_name, output, Preprocessing((8, 8), 0, 1), 3, "")


def test_scales_behind_a_convolution_are_trained_and_arithmetic_before_it_is_not():
    b = tiny.GraphBuilder(producer=0)
    b.add("input", "Placeholder", dtype=b.tf.float32, shape=(1, 8, 8, 3))
    b.float_op("mean", "Sub", "input", b.const("mean/y", np.ones(3, "f4")))
    weights = b.const("weights", np.ones((1, 1, 3, 3), "f4"))
    b.float_op("conv", "Conv2D", "mean", weights, strides=[1, 1, 1, 1], padding="SAME")
    b.float_op("relu", "Relu", "conv")
    b.float_op("scaled", "Mul", "relu", b.const("scale", np.ones(3, "f4")))
    b.float_op("moved", "AddV2", b.const("shift", np.ones(3, "f4")), "scaled")
    b.float_op("half", "Mul", "moved", b.const("half/y", np.float32(0.5)))
    found = find_weights(load_like("input", "half", b.graph_def))
    assert found == {"weights": "weights", "scale": "scale", "shift": "shift"}


@pytest.mark.parametrize("hidden", [(), (7,)])
def test_gradients_are_those_of_finite_differences(network, hidden):
    folded = fold_network(network)
    nodes = nodes_by_name(folded.graph_def)
    weights = {name: constant(nodes, name) for name in find_weights(folded)}
    weights |= head_weights(first_head(hidden=hidden))
    graph = TuningGraph(folded, weights)
    rng = np.random.default_rng(0)  # noise: in plain colours all pixels pass a ReLU's kink at once
    images = rng.uniform(-1, 1, (12, tiny.SIZE, tiny.SIZE, 3)).astype("f4")
    truth, shares = np.arange(12) % 3, rng.uniform(0.1, 1, 12).astype("f4")
    batch = Batch(images, truth.astype("i4"), shares)

    def loss(moved):
        answers = graph.probabilities(moved, images).astype(float)
        return -(shares * np.log(answers[np.arange(len(truth)), truth])).sum()

    _, slopes = graph.gradients(weights, batch)
    assert set(slopes) == set(weights)
    for name, slope in slopes.items():
        # Along the gradient itself, where float32 tells most of a small step.
        length = float(np.linalg.norm(slope))
        step = np.float32(3e-4) * slope / length
        ahead, behind = (loss({**weights, name: weights[name] + s}) for s in (step, -step))
        assert (ahead - behind) / 6e-4 == pytest.approx(length, rel=0.03), name


def test_rare_classes_count_as_much_as_frequent_ones():
    shares = shares_of(np.array([0, 0, 0, 2]), 3)
    np.testing.assert_allclose(shares, [2 / 3, 2 / 3, 2 / 3, 2])


def test_steps_are_sized_by_each_output_channel():
    b = tiny.GraphBuilder(producer=0)
    b.add("input", "Placeholder", dtype=b.tf.float32, shape=(1, 8, 8, 3))
    wide = np.stack([np.full((1, 1, 3), 2.0), np.full((1, 1, 3), 0.01)], axis=-1).astype("f4")
    ones = {"strides": [1, 1, 1, 1], "padding": "SAME"}
    b.float_op("conv", "Conv2D", "input", b.const("wide", wide), **ones)
    deep = np.reshape([[3.0, 4.0], [3.0, 4.0]], (2, 1, 2, 1)).astype("f4")
    b.float_op("deep", "DepthwiseConv2dNative", "conv", b.const("deep/weights", deep), **ones)
    b.float_op("biased", "BiasAdd", "deep", b.const("bias", np.array([3.0, 4.0], "f4")))
    moved = b.float_op("moved", "BiasAdd", "biased", b.const("zeros", np.zeros(2, "f4")))
    weights = {"wide": wide, "deep/weights": deep, "zeros": np.zeros(2, "f4")}
    weights |= head_weights(Head(np.array([[3.0, 0.1], [4.0, 0.1]], "f4"), np.zeros(2, "f4")))
    weights["bias"] = np.array([3.0, 4.0], "f4")
    sizes = weight_sizes(load_like("input", moved, b.graph_def), weights)
    np.testing.assert_allclose(sizes["wide"], [[[[2.0, 0.01]]]], rtol=1e-5)
    np.testing.assert_allclose(sizes["deep/weights"], [[[[3.0], [4.0]]]], rtol=1e-5)
    assert sizes["bias"] == pytest.approx(np.sqrt(12.5))
    assert sizes["zeros"] == 1
    head, bias = (sizes[f"{OWN}/0/{part}"] for part in ("weights", "bias"))
    np.testing.assert_allclose(head, [[np.sqrt(12.5), 0.1]], rtol=1e-6)
    assert bias == 1


# -- training --------------------------------------------------------------------------------


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
    mislabelled = Photos(splits[0].examples, (splits[0].truth + 1) % len(LABELS))
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
    nothing = Photos([], np.zeros(0, int))
    tuner = make_tuner(network, (splits[0], nothing))
    finish(tuner)
    assert tuner.state.epoch == tuner.state.best_epoch == OPTIONS.epochs
    assert tuner.state.best.keys() == tuner.state.weights.keys()
    for name, value in tuner.state.weights.items():
        np.testing.assert_array_equal(tuner.state.best[name], value)


def test_weights_that_are_not_finite_are_an_error(network, splits):
    tuner = make_tuner(network, splits, replace(OPTIONS, base_rate=1e38, head_rate=1e38))
    with pytest.raises(TrainingError, match=r"in epoch 1: .* lower --base_learning_rate"):
        finish(tuner)


def test_a_photo_that_is_gone_is_named(network, splits):
    training = Photos([replace(splits[0].examples[0], path="gone.jpg")], np.array([0]))
    with pytest.raises(TrainingError, match=r"gone\.jpg cannot be read"):
        finish(make_tuner(network, (training, splits[1])))


class CountingReader(ImageReader):
    """Counts the photos that it reads."""

    count = 0

    def read(self, *arguments):
        object.__setattr__(self, "count", self.count + 1)
        return super().read(*arguments)


def reader_of(network, kind=ImageReader):
    about = network.preprocessing
    return kind(about.size, about.mean, about.std)


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
    fewer = (Photos(splits[0].examples[1:], splits[0].truth[1:]), splits[1])
    others = {
        make_tuner(network, splits, replace(OPTIONS, seed=1)).digest(),
        make_tuner(network, splits, replace(OPTIONS, epochs=5)).digest(),
        make_tuner(network, fewer).digest(),
        make_tuner(network, splits, distortions=Distortions(True)).digest(),
        Tuner(Material(network, first_head(seed=1), *splits), OPTIONS).digest(),
    }
    assert len(others - {digest}) == 5


# -- methods ---------------------------------------------------------------------------------


def test_methods_differ_in_their_rates_and_their_start():
    flags = TuningOptions(base_rate=1.0, head_rate=2.0, freeze_until="conv")
    assert options_of(TWO_RATES, flags) == flags
    assert options_of(ALL, flags) == replace(flags, head_rate=1.0)
    expected = replace(flags, scratch=True, freeze_until=None)
    assert options_of(SCRATCH, flags) == expected


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


def test_random_weights_have_hes_deviation(network):
    folded = fold_network(network)
    wide = np.zeros((3, 3, 8, 4000), "f4")
    widened = with_weights(folded, {"mixed/tower/conv2d_params": wide})
    made = random_weights(widened, {"mixed/tower/conv2d_params": "weights"}, 0)
    deviation = made["mixed/tower/conv2d_params"].std()
    assert deviation == pytest.approx(np.sqrt(2 / (3 * 3 * 8)), rel=0.01)


def test_top_5_of_fewer_classes_is_always_right():
    scores = np.eye(3)[[0, 1, 1]]
    assert tops(scores, np.array([0, 1, 2])) == (pytest.approx(2 / 3), 1.0)
    many = np.arange(8.0)[None].repeat(2, axis=0)
    assert tops(many, np.array([3, 2])) == (0, 0.5)
