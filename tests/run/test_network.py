"""network.py: the network of a run, and what the run says of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from retraining.bottlenecks.compute import BottleneckSettings
from retraining.bottlenecks.extract import ExtractionSettings, Extractor
from retraining.bottlenecks.ray_engine import Ray, RayExtractor
from retraining.bottlenecks.runtime import RuntimeSettings
from retraining.export.build import ExportError
from retraining.graphs.nodes import add_notes
from retraining.graphs.twin import cache_folder
from retraining.networks import dinov2
from retraining.networks.mirror import mirror_average
from retraining.networks.network import load_network
from retraining.networks.registry import NetworkError, find
from retraining.run.network import read_network
from retraining.run.notes import RunContext
from retraining.run.settings import NetworkSettings, OutputSettings, PhotoSettings, RunSettings
from retraining.system.observer import Silent
from tests import tiny
from tests.networks.dinov2_weights import TINY, random_weights, safetensors_bytes


@pytest.fixture
def run_of(tmp_path):
    """Makes the RunContext of network settings; its outputs lie in tmp_path."""

    def make(vectors=None, **network):
        outputs = OutputSettings(f"{tmp_path}/graph.pb", summaries_folder=f"{tmp_path}/logs")
        settings = RunSettings(
            PhotoSettings("photos"),
            NetworkSettings(offline=True, **network),
            vectors or BottleneckSettings(),
            outputs=outputs,
        )
        return RunContext(settings, Silent())

    return make


def test_the_network_is_read_as_the_settings_say(run_of, model_dir, inception_file):
    vectors = BottleneckSettings(batch_size=5)
    extractor = read_network(run_of(vectors, model_dir=model_dir, precision="float32"))
    assert type(extractor) is Extractor
    assert extractor.network.name == "inception_v3"
    folders = cache_folder(), Path(inception_file).parent
    expected = ExtractionSettings("float32", 5, runtime=RuntimeSettings("auto", folders))
    assert extractor.settings == expected
    plain = load_network(inception_file, find("inception_v3"))
    assert extractor.network.fingerprint("float32") == plain.fingerprint("float32")
    mirrored = read_network(run_of(model_dir=model_dir, mirror_average=True)).network
    assert mirrored.fingerprint("float32") == mirror_average(plain).fingerprint("float32")
    on_ray = read_network(run_of(BottleneckSettings(engine=Ray()), model_dir=model_dir))
    assert isinstance(on_ray, RayExtractor)
    assert on_ray.settings.runtime.runtime == "tensorflow"


def test_a_taken_name_of_the_output_is_refused_with_the_network(run_of, model_dir):
    run = run_of(model_dir=model_dir)
    outputs = replace(run.settings.outputs, tensor_name="Mul")
    with pytest.raises(ExportError, match="Mul is already the name of a node"):
        read_network(replace(run, settings=replace(run.settings, outputs=outputs)))


def test_notes_in_the_network_are_caveats_of_the_run(run_of, tmp_path, caplog):
    graph_def = tiny.tiny_inception()
    add_notes(graph_def, ["the weights are random"])
    path = tiny.write_graph(str(tmp_path / "net" / "any.pb"), graph_def)
    run = run_of(model_file=path)
    read_network(run)
    assert run.notes.caveats == caplog.messages == ["the weights are random"]


@pytest.fixture
def weights_file(tmp_path, monkeypatch):
    """A model.safetensors at another place than --model_dir, of a tiny `dinov2_small`."""
    monkeypatch.setattr(dinov2.Dinov2Small, "SIZES", TINY)
    path = tmp_path / "mine.safetensors"
    path.write_bytes(safetensors_bytes(random_weights()))
    return str(path)


def test_the_model_file_of_a_recipe_is_its_weights(run_of, weights_file, tmp_path):
    names = {"architecture": "dinov2_small", "model_dir": str(tmp_path / "nets")}
    network = read_network(run_of(model_file=weights_file, **names)).network
    assert (network.name, network.width) == ("dinov2_small", 2 * TINY.width)
    with pytest.raises(NetworkError, match=r"needs model\.safetensors"):
        read_network(run_of(architecture="dinov2_small", model_dir=str(tmp_path / "others")))


def test_a_graph_is_no_model_file_of_such_a_recipe(run_of, inception_file):
    run = run_of(model_file=inception_file, architecture="dinov2_small")
    with pytest.raises(NetworkError, match=r"is not a usable model\.safetensors of dinov2_small"):
        read_network(run)


def test_an_architecture_asked_for_is_that_or_an_error(run_of, tmp_path):
    for name in ("inception_v3", "mobilenet_1.0_224", "inception_v3+mobilenet_1.0_224"):
        run = run_of(model_dir=str(tmp_path / "nets"), architecture=name)
        with pytest.raises(NetworkError, match=f"{name.split('+')[0]} is not in {tmp_path}/nets"):
            read_network(run)
        assert run.notes.caveats == []
