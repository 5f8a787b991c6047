"""Two networks at once: from their vectors to the labels of photos."""

import json
import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import label_image
from retraining.bottlenecks.store import BottleneckStore
from retraining.bottlenecks.stream import FLUSH, side_by_side
from retraining.evaluation import trust
from retraining.evaluation.unknown import fit_unknown
from retraining.export import build, verify
from retraining.export.build import ExportError
from retraining.graphs import description, write
from retraining.graphs.description import read_metadata
from retraining.graphs.nodes import GraphError, constant, nodes_by_name, set_constant
from retraining.graphs.read import read_graph
from retraining.graphs.run import BytesRunner, Runner
from retraining.graphs.twin import VectorPart
from retraining.labelling.classifier import load_classifier
from retraining.networks import precision as network_precision
from retraining.networks.network import load_network
from retraining.networks.pair import NetworkPair, fold_scale, scale_factors
from retraining.networks.registry import NETWORKS
from retraining.photos.reader import ImageError, ImageReader, read_file
from retraining.run.fine_tuning import check_fine_tuning
from retraining.run.settings import FineTuningSettings
from retraining.system.atomic import write_files
from retraining.training.head import Head
from retraining.training.loop import TrainingError
from tests import tiny

pytestmark = pytest.mark.numbers

BOTH = "inception_v3+mobilenet_0.25_128"
MOBILENET_WIDTH = 8


@pytest.fixture(scope="module")
def two_networks(inception_file, tmp_path_factory):
    """A --model_dir with the tiny Inception and a tiny MobileNet."""
    folder = tmp_path_factory.mktemp("two") / "models"
    (folder / "inception_dec_2015").mkdir(parents=True)
    shutil.copy(inception_file, folder / "inception_dec_2015")
    path = folder / "mobilenet_v1_0.25_128" / "frozen_graph.pb"
    tiny.write_graph(str(path), tiny.tiny_mobilenet())
    return folder


@pytest.fixture(scope="module")
def run_pair(run_retrain, two_networks):
    """Calls retrain.main with both networks."""

    def run(folder, photos, *flags, architecture=BOTH):
        network = ("--model_dir", two_networks, "--architecture", architecture)
        return run_retrain(folder, photos, *network, "--precision", "float32", *flags)

    return run


@pytest.fixture(scope="module")
def done(run_pair, photos, tmp_path_factory):
    """A finished run with both networks; do not write to it."""
    folder = tmp_path_factory.mktemp("done")
    # 20 validation photos are needed for a score for unknown images.
    assert run_pair(folder, photos, "--validation_percentage", 35) == 0
    return SimpleNamespace(folder=folder, graph=f"{folder}/models/retrained_graph.pb")


@pytest.fixture(scope="module")
def both(two_networks):
    """[Inception, MobileNet] as network.BaseNetworks."""
    files = {
        "inception_v3": two_networks / "inception_dec_2015" / "tensorflow_inception_graph.pb",
        "mobilenet_0.25_128": two_networks / "mobilenet_v1_0.25_128" / "frozen_graph.pb",
    }
    return [load_network(path, NETWORKS[name]) for name, path in files.items()]


@pytest.fixture(scope="module")
def paths(photos):
    return [f"{photos}/{label}/photo_{n:02d}.jpg" for label in ("red", "blue") for n in range(3)]


def vectors_of(network, paths):
    about = network.preprocessing
    read = ImageReader(about).read
    runner = Runner(network.graph_def, network.input, network.bottleneck)
    return runner.run(np.concatenate([read(path) for path in paths]))


def written(folder):
    return sorted(os.listdir(folder / "bottleneck_cache"))


def test_a_run_tells_the_classes_apart_and_describes_both(done):
    about = read_metadata(read_graph(done.graph))
    assert about["results"]["test_correct"] == about["results"]["test_photos"] > 5
    assert (about["network"], about["input"]) == ("inception_v3", "Mul")
    second = about["second"]
    assert second.pop("network_sha1") != about["network_sha1"]
    assert second == {
        "network": "mobilenet_0.25_128",
        "input": "second/input",
        "bottleneck": "second/MobilenetV1/Predictions/Reshape",
        "size": [128, 128],
        "mean": 127.5,
        "std": 127.5,
    }
    network = json.loads((done.folder / "models" / "retrained_metrics.json").read_text())["network"]
    assert (network["name"], network["second_name"]) == tuple(BOTH.split("+"))
    assert (network["vector_width"], network["second_vector_width"]) == (24, MOBILENET_WIDTH)


def test_each_network_is_cached_on_its_own(done, run_pair, photos, tmp_path, monkeypatch):
    shutil.copytree(done.folder / "bottleneck_cache", tmp_path / "bottleneck_cache")
    before = written(tmp_path)
    monkeypatch.setattr(BottleneckStore, "put", None)  # a use of it would fail
    for name in BOTH.split("+"):
        assert run_pair(tmp_path, photos, architecture=name) == 0
    assert written(tmp_path) == before


def test_the_exported_graph_is_the_head_behind_both_vectors(done, both, paths):
    graph_def = read_graph(done.graph)
    nodes = nodes_by_name(graph_def)
    vectors = np.concatenate([vectors_of(network, paths) for network in both], axis=1)
    head = Head(
        constant(nodes, "final_training_ops/weights/final_weights"),
        constant(nodes, "final_training_ops/biases/final_biases"),
    )
    runner = BytesRunner(graph_def, "final_result")
    answers = np.concatenate([runner.run(read_file(path)) for path in paths])
    np.testing.assert_allclose(answers, head.probabilities(vectors), atol=1e-4)
    assert [answer.argmax() for answer in answers] == [2] * 3 + [0] * 3


def labelled(capsys, done, *arguments):
    """{path: {label: score}} as label_image.py prints it."""
    capsys.readouterr()
    flags = ("--graph", done.graph, "--precision", "float32", "--raw_scores")
    assert label_image.main([*flags, *map(str, arguments)]) == 0
    found = {}
    for line in capsys.readouterr().out.splitlines():
        path, label, score = line.split("\t")
        found.setdefault(path, {})[label] = float(score)
    return found


def test_label_image_gives_what_the_bytes_give(done, photos, capsys):
    found = labelled(capsys, done, photos)
    assert len(found) == 90
    runner = BytesRunner(read_graph(done.graph), "final_result")
    for path in list(found)[::10]:
        scores = [found[path][label] for label in ("blue", "green", "red")]
        np.testing.assert_allclose(scores, runner.run(read_file(path))[0], atol=1e-4)
    some = list(found)[:2]
    one_at_a_time = labelled(capsys, done, *some, "--input_layer", "DecodeJpeg/contents")
    for path in some:
        for label, score in one_at_a_time[path].items():
            assert score == pytest.approx(found[path][label], abs=1e-4)


def test_litert_runs_both_networks_as_tensorflow_does(done, paths):
    """Each by the twin that it has on its own, and NumPy the layer behind both."""
    answers = []
    for runtime in ("litert", "tensorflow"):
        classifier = load_classifier(done.graph, precision="float32", runtime=runtime)
        answers.append([a for _, a, _ in classifier.predict(paths, len(paths), share=1.0)])
    np.testing.assert_allclose(*answers, atol=1e-5)
    assert not np.array_equal(*answers)


def test_the_twins_in_the_graph_are_those_of_the_networks_alone(done, both):
    parts = load_classifier(done.graph).model.parts
    for part, network in zip(parts, both, strict=True):
        whole = VectorPart(read_graph(done.graph), part.input, part.bottleneck, part.preprocessing)
        ends = network.input, network.bottleneck
        alone = VectorPart(network.graph_def, *ends, network.preprocessing)
        assert whole.digest() == alone.digest()


def test_unknown_images_are_found(done, photos, tmp_path, capsys):
    rng = np.random.default_rng(0)
    tiny.Image.fromarray(rng.integers(0, 256, (60, 60, 3)).astype("u1")).save(tmp_path / "n.png")
    flags = ("--unknown_threshold", "auto", "--top_k", "1")
    assert "unknown" in labelled(capsys, done, tmp_path, *flags)[f"{tmp_path}/n.png"]
    known = labelled(capsys, done, photos, *flags)
    unknown = sum("unknown" in labels for labels in known.values())
    assert unknown <= 90 * 0.2


@pytest.mark.parametrize(
    "flags", [("--input_height", "9"), ("--input_mean", "0"), ("--input_layer", "second/input")]
)
def test_other_ways_to_feed_it_are_refused(done, paths, capsys, flags):
    assert label_image.main(["--graph", done.graph, *flags, paths[0]]) == 1
    assert "holds two networks and knows how to feed them" in capsys.readouterr().err


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_only_the_network_that_bears_bfloat16_computes_in_it(both, order, tmp_path, monkeypatch):
    monkeypatch.setattr(network_precision, "native_precision", lambda: "bfloat16")
    pair = NetworkPair(*(both[number] for number in order))
    head = Head(np.zeros((pair.width, 2), "f4"), np.zeros(2, "f4"))
    content = write.graph_bytes(build.build_graph(pair, head, "final_result"))
    about = build.describe(pair, ["a", "b"], "final_result", {})
    write_files({tmp_path / "graph.pb": content + build.metadata_bytes(about)})
    parts = load_classifier(tmp_path / "graph.pb").model.parts
    precisions = [part.precision for part in parts]
    assert precisions == [("bfloat16", "float32")[number] for number in order]


@pytest.mark.parametrize("second", [5, {"input": "Mul"}, {"size": [0, 0]}, {"std": 0.0}])
def test_a_damaged_description_of_the_second_is_an_error(done, second):
    graph_def = read_graph(done.graph)
    about = read_metadata(graph_def)
    whole = second if second == 5 or "input" in second else {**about["second"], **second}
    text = json.dumps({**about, "second": whole}).encode()
    set_constant(nodes_by_name(graph_def)[description.METADATA], np.array(text, object))
    with pytest.raises(GraphError, match="own description"):
        read_metadata(graph_def)


def test_a_second_network_of_2015_goes_beside_a_modern_one(both, paths):
    pair = NetworkPair(both[1], both[0])
    head = Head(np.eye(pair.width, dtype="f4"), np.zeros(pair.width, "f4"))
    graph_def = build.build_graph(pair, head, "final_result")
    vectors = np.concatenate([vectors_of(each, paths) for each in pair.networks], axis=1)
    answer = BytesRunner(graph_def, "final_result").run(read_file(paths[4]))
    np.testing.assert_allclose(answer, head.probabilities(vectors[4:5]), atol=1e-5)
    about = build.describe(pair, [], "final_result", {})
    verify.check_base(graph_def, about, pair)


@pytest.mark.parametrize("node", ["conv/conv2d_params", "second/MobilenetV1/Conv2d_0/weights"])
def test_the_final_test_looks_at_both_networks(both, node):
    pair = NetworkPair(*both)
    head = Head(np.zeros((pair.width, 2), "f4"), np.zeros(2, "f4"))
    graph_def = build.build_graph(pair, head, "final_result")
    about = build.describe(pair, ["a", "b"], "final_result", {})
    verify.check_base(graph_def, about, pair)
    with pytest.raises(ExportError, match="does not hold the base network"):
        verify.check_base(graph_def, {**about, "second": None}, pair)
    nodes = nodes_by_name(graph_def)
    set_constant(nodes[node], constant(nodes, node) * np.float32(1.0001))
    with pytest.raises(ExportError, match="does not hold the base network"):
        verify.check_base(graph_def, about, pair)


def test_mirror_images_are_averaged_in_both(run_pair, photos, tmp_path, capsys):
    assert run_pair(tmp_path, photos, "--mirror_average") == 0
    path = f"{tmp_path}/models/retrained_graph.pb"
    about = read_metadata(read_graph(path))
    assert about["second"]["bottleneck"] == "second/retraining/mirror_average"
    flags = ("--graph", path, "--precision", "float32", "--raw_scores", "--top_k", "1")
    capsys.readouterr()
    assert label_image.main([*flags, f"{photos}/red/photo_01.jpg", f"{photos}/red"]) == 0
    answer = BytesRunner(read_graph(path), "final_result").run(
        read_file(f"{photos}/red/photo_01.jpg")
    )
    score = float(capsys.readouterr().out.splitlines()[0].split("\t")[2])
    assert score == pytest.approx(answer.max(), abs=1e-4)


def test_fine_tuning_two_networks_is_refused_without_the_command_line_too(both):
    check_fine_tuning(NetworkPair(*both), FineTuningSettings())
    with pytest.raises(TrainingError, match=r"for one network; name one `NetworkSettings.archi"):
        check_fine_tuning(NetworkPair(*both), FineTuningSettings(("two_rates",)))


def test_a_second_network_that_is_missing_is_one_line(run_retrain, photos, tmp_path, capsys):
    flags = ("--offline", "--architecture", "inception_v3+mobilenet_1.0_224")
    assert run_retrain(tmp_path, photos, *flags) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "mobilenet_1.0_224 is not in" in line
    assert "--offline forbids downloading it" in line


def test_each_networks_numbers_are_divided_by_their_standard_deviation():
    rng = np.random.default_rng(0)
    networks = [SimpleNamespace(width=3), SimpleNamespace(width=2)]
    vectors = np.hstack([rng.normal(0, 5, (900, 3)), rng.normal(7, 0.1, (900, 2))]).astype("f4")
    factors = scale_factors(vectors, networks)
    assert factors.shape == (5,)
    scaled = vectors * factors
    assert scaled[:, :3].std() == pytest.approx(1, abs=1e-4)
    assert scaled[:, 3:].std() == pytest.approx(1, abs=1e-4)
    assert scale_factors(np.ones((4, 5), "f4"), networks).tolist() == [1] * 5
    assert scale_factors(np.ones((0, 5), "f4"), networks).tolist() == [1] * 5


def test_the_scale_goes_into_the_first_layer():
    rng = np.random.default_rng(0)
    vectors, factors = rng.random((6, 4)).astype("f4"), np.array([1, 2, 3, 4], "f4")
    plain = Head(rng.normal(size=(4, 3)).astype("f4"), np.array([1, 2, 3], "f4"))
    layer = rng.normal(size=(4, 5)).astype("f4"), rng.normal(size=5).astype("f4")
    deep = replace(plain, weights=rng.normal(size=(5, 3)).astype("f4"), hidden=(layer,))
    for head in (plain, deep):
        expected = head.logits(vectors * factors)
        np.testing.assert_allclose(fold_scale(head, factors).logits(vectors), expected, rtol=1e-4)


def test_the_score_for_unknown_images_takes_unscaled_vectors():
    rng = np.random.default_rng(0)
    head = Head(rng.normal(size=(6, 2)).astype("f4"), np.zeros(2, "f4"))
    vectors, factors = rng.normal(size=(30, 6)).astype("f4"), np.arange(1, 7).astype("f4")
    fitted = fit_unknown(vectors * factors, head, vectors * factors)
    stored = replace(fitted, factors=factors)
    _, read = trust.read(trust.described(1.0, stored), trust.constants(stored).get)
    logits = head.logits(vectors * factors)
    expected = fitted.score(vectors * factors, logits)
    np.testing.assert_allclose(read.score(vectors, logits), expected, rtol=1e-5)
    broken = {**trust.constants(stored), trust.FACTORS: factors[:2]}
    with pytest.raises(trust.TrustError):
        trust.read(trust.described(1.0, stored), broken.get)


def test_streams_side_by_side_answer_in_order_and_before_the_next_is_asked_for():
    asked = []

    def items():
        for item in (1, 2, FLUSH, 3):
            asked.append(item)
            yield item

    def stream(width):
        def run(items):
            for item in items:
                if item is FLUSH:
                    continue
                error = item == 2 and width == 5
                yield item, ImageError("is broken") if error else np.full((1, width), item)

        return run

    answers = side_by_side(items(), [stream(3), stream(5)])
    assert next(answers)[1].tolist() == [[1] * 8]
    assert 3 not in asked
    assert isinstance(next(answers)[1], ImageError)
    item, vectors = next(answers)
    assert (item, vectors.shape) == (3, (1, 8))
    assert list(answers) == []
