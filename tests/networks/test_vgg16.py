"""vgg16.py: the pickled file read safely, and a graph that gives what NumPy gives."""

import pickle

import numpy as np
import pytest

from retraining.graphs.run import Runner
from retraining.networks import vgg16
from retraining.networks.network import load_network
from retraining.networks.recipes import Choice, ChoiceError
from retraining.networks.registry import NetworkError, find, obtain
from retraining.networks.vgg16 import LAYERS, build_graph, read_npy

SIDE = 32


@pytest.fixture(scope="module")
def layers():
    """A narrow VGG16 for 32 x 32 pixels: {layer: [kernel, bias]}."""
    rng, made, depth = np.random.default_rng(0), {}, 3
    for name in vgg16.CONVOLUTIONS:
        made[name] = [rng.normal(0, (2 / 9 / depth) ** 0.5, (3, 3, depth, 4)), rng.normal(size=4)]
        depth = 4
    for name in ("fc6", "fc7", "fc8"):
        made[name] = [rng.normal(0, 0.5, (depth, 8)), rng.normal(size=8)]
        depth = 8
    return {name: [part.astype(np.float32) for part in parts] for name, parts in made.items()}


def save(path, content, protocol=2):
    """As numpy.save, but with that protocol."""
    array = np.empty((), object)
    array[()] = content
    with open(path, "wb") as file:
        header = {"descr": "|O", "fortran_order": False, "shape": ()}
        np.lib.format.write_array_header_1_0(file, header)
        pickle.dump(array, file, protocol)
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_the_file_is_read(layers, tmp_path, protocol):
    found = read_npy(save(tmp_path / "vgg16.npy", layers, protocol))
    assert sorted(found) == sorted(LAYERS)
    for name in LAYERS:
        for one, other in zip(found[name], layers[name], strict=True):
            np.testing.assert_array_equal(one, other)


def test_numpys_own_file_and_other_byte_orders_are_read(layers, tmp_path):
    swapped = {k: [np.asfortranarray(a).astype(">f4") for a in v] for k, v in layers.items()}
    np.save(tmp_path / "vgg16.npy", swapped, allow_pickle=True)
    found = read_npy(tmp_path / "vgg16.npy")
    np.testing.assert_array_equal(found["conv3_2"][0], layers["conv3_2"][0])


class Evil:
    def __reduce__(self):
        return (open, ("evil", "w"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"conv1_1": Evil()}, "asks for '_?io.open', which is refused"),
        ({"conv1_1": [np.zeros(3)]}, "not float32"),
        ({"conv1_1": 3}, "damaged"),
        ([1, 2], "damaged"),
    ],
)
def test_anything_but_arrays_is_refused(tmp_path, monkeypatch, content, reason):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ChoiceError, match=reason):
        read_npy(save(tmp_path / "vgg16.npy", content))
    assert not (tmp_path / "evil").exists()


def test_damaged_files_are_one_line(layers, tmp_path):
    whole = save(tmp_path / "whole.npy", layers).read_bytes()
    for number, content in enumerate((b"", b"no array", whole[:-50], whole[:300])):
        path = tmp_path / f"{number}.npy"
        path.write_bytes(content)
        with pytest.raises(ChoiceError) as error:
            read_npy(path)
        assert "\n" not in str(error.value)


def by_hand(layers, pixels, last):
    """The vectors that NumPy computes of RGB pixels [n, 32, 32, 3]."""
    x = pixels[..., ::-1].astype(np.float64) - vgg16.MEANS
    names = iter(vgg16.CONVOLUTIONS)
    for count in vgg16.BLOCKS:
        for _ in range(count):
            kernel, bias = layers[next(names)]
            padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
            x = np.maximum(np.einsum("nhwcij,ijco->nhwo", windows, kernel) + bias, 0)
        n, height, width, depth = x.shape
        x = x.reshape(n, height // 2, 2, width // 2, 2, depth).max((2, 4))
    x = x.reshape(len(x), -1)
    for name in ("fc6", "fc7")[:last]:
        x = np.maximum(x @ layers[name][0] + layers[name][1], 0)
    return x


@pytest.mark.parametrize(("vector", "last"), [("relu6", 1), ("relu7", 2)])
@pytest.mark.numbers
def test_the_graph_gives_what_numpy_gives(layers, vector, last):
    pixels = np.random.default_rng(1).uniform(0, 255, (2, SIDE, SIDE, 3)).astype(np.float32)
    graph_def = build_graph(layers, SIDE, vector)
    found = Runner(graph_def, "input", "bottleneck").run(pixels)
    expected = by_hand(layers, pixels, last)
    assert found.shape == (2, 8)
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.max())


def test_it_is_found_built_once_and_named(layers, tmp_path, monkeypatch):
    monkeypatch.setattr(vgg16, "build_graph", lambda found, *_: build_graph(found, SIDE))
    with pytest.raises(NetworkError, match=r"no vgg16.npy in .*there or name it with `Choice.wei"):
        obtain(find("vgg16"), tmp_path)
    save(tmp_path / "vgg16.npy", layers)
    path = obtain(find("vgg16"), tmp_path, offline=True)
    assert path.parent == tmp_path / "vgg16"
    base = load_network(path, find("vgg16"))
    assert (base.width, base.preprocessing.size, base.preprocessing.std) == (8, (32, 32), 1.0)
    monkeypatch.setattr(vgg16, "build_graph", None)
    assert obtain(find("vgg16"), tmp_path) == path
    assert obtain(find("vgg16", Choice(str(tmp_path / "vgg16.npy"))), tmp_path) == path


def test_wrong_layers_are_named(layers, tmp_path):
    del (lacking := dict(layers))["conv4_2"]
    with pytest.raises(ChoiceError, match="lacks the layer conv4_2"):
        build_graph(lacking, SIDE)
    with pytest.raises(ChoiceError, match="fc6 does not fit"):
        build_graph(layers, 64)
    with pytest.raises(NetworkError, match="gives relu6 or relu7, no 'fc8'"):
        find("vgg16", Choice(layer="fc8"))
    save(tmp_path / "vgg16.npy", lacking)
    with pytest.raises(
        NetworkError, match=r"vgg16\.npy is not a usable vgg16.npy: it lacks"
    ) as error:
        obtain(find("vgg16"), tmp_path)
    assert str(error.value).endswith("there, or use `NetworkSettings.architecture` keras:VGG16")
