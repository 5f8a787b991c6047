"""mirror.py: the vector is the mean of an image's and of its mirror image's, on every path."""

import numpy as np
import pytest

from retraining.export import build
from retraining.graphs.run import BytesRunner, Runner, Running
from retraining.graphs.safety import describe_unsafe
from retraining.networks.mirror import mirror_average
from retraining.networks.network import load_network
from retraining.networks.registry import NETWORKS
from retraining.photos.reader import ImageReader, read_file
from retraining.training.head import Head
from tests import needs_bfloat16, tiny

pytestmark = pytest.mark.numbers


def read_network(name, folder):
    made = tiny.tiny_inception() if name == "inception_v3" else tiny.tiny_mobilenet()
    path = tiny.write_graph(str(folder / name / "graph.pb"), made)
    return load_network(path, NETWORKS[name])


@pytest.fixture(scope="module", params=["inception_v3", "mobilenet_0.25_128"])
def plain(request, tmp_path_factory):
    return read_network(request.param, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def paths(photos):
    return [f"{photos}/{label}/photo_{n:02d}.jpg" for label in ("red", "blue") for n in range(2)]


@pytest.fixture(scope="module")
def pixels(plain, paths):
    about = plain.preprocessing
    reader = ImageReader(about)
    return np.concatenate([reader.read(path) for path in paths])


@pytest.fixture(scope="module")
def expected(plain, pixels):
    """The mean of both, computed with the plain network."""
    run = Runner(plain.graph_def, plain.input, plain.bottleneck).run
    one, other = run(pixels), run(pixels[:, :, ::-1])
    assert np.abs(one - other).max() > 1e-3  # mirroring does matter
    return (one + other) / 2


def test_it_is_the_mean_for_a_batch_of_any_size(plain, pixels, expected):
    network = mirror_average(plain)
    runner = Runner(network.graph_def, network.input, network.bottleneck)
    assert runner.width == network.width == plain.width
    np.testing.assert_allclose(runner.run(pixels), expected, atol=1e-5)
    np.testing.assert_allclose(runner.run(pixels[:1]), expected[:1], atol=1e-5)


@needs_bfloat16
def test_bfloat16_is_close(plain, pixels, expected):
    network = mirror_average(plain)
    vectors = Runner(network.graph_def, network.input, network.bottleneck, Running("bfloat16")).run(
        pixels
    )
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
    assert vectors.dtype == np.float32
    assert ((vectors * expected).sum(axis=1) / norms).min() > 0.999


def test_an_exported_graph_averages_from_bytes_and_from_pixels(plain, paths, pixels, expected):
    head = Head(np.eye(plain.width, dtype="f4"), np.zeros(plain.width, "f4"))
    graph_def = build.build_graph(mirror_average(plain), head, "final_result")
    answers = head.probabilities(expected)
    from_bytes = BytesRunner(graph_def, "final_result")
    np.testing.assert_allclose(from_bytes.run(read_file(paths[1])), answers[1:2], atol=1e-5)
    from_pixels = Runner(graph_def, plain.input, "final_result")
    np.testing.assert_allclose(from_pixels.run(pixels), answers, atol=1e-5)
    assert describe_unsafe(graph_def) == ""


def test_its_vectors_are_stored_apart_and_the_network_stays_as_it_was(plain):
    before = plain.graph_def.SerializeToString(deterministic=True)
    network = mirror_average(plain)
    assert network.fingerprint("float32") != plain.fingerprint("float32")
    assert plain.graph_def.SerializeToString(deterministic=True) == before
