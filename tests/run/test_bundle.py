"""bundle.py: one folder with all that labels photos on another machine."""

import os
import shutil

import pytest

from retraining.export.build import ExportError
from retraining.graphs.twin import find_twin, is_twin
from retraining.run.bundle import check_bundle
from retraining.run.settings import OutputSettings
from tests.labelling.test_runtimes import label_without_tensorflow

TWIN = f"{'a' * 32}-{'b' * 16}.tflite"
FILES = ["retrained_graph.pb", "retrained_labels.txt", "retrained_metrics.json"]


def files_of(folder):
    names = sorted(os.listdir(folder))
    return [name for name in names if not is_twin(name)], [name for name in names if is_twin(name)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, run_retrain, photos):
    folder = tmp_path_factory.mktemp("bundled")
    flags = ("--precision", "float32", "--bundle", folder / "bundle")
    assert run_retrain(folder, photos, *flags) == 0
    return folder / "bundle"


def test_a_bundle_holds_the_outputs_and_the_twin(bundle):
    files, (twin,) = files_of(bundle)
    assert files == FILES
    for name in files:
        assert (bundle / name).read_bytes() == (bundle.parent / "models" / name).read_bytes()
    assert find_twin(twin[:32], [bundle]) == bundle / twin


def test_a_bundle_labels_photos_elsewhere_without_tensorflow(bundle, photos, tmp_path, monkeypatch):
    shutil.copytree(bundle, tmp_path / "copy")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    graph = tmp_path / "copy" / "retrained_graph.pb"
    done = label_without_tensorflow("--graph", graph, f"{photos}/blue/photo_02.jpg")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("blue (score=0.")


def test_an_earlier_bundle_is_replaced(bundle, photos, run_retrain, tmp_path, capsys):
    shutil.copytree(bundle, tmp_path / "bundle")
    (tmp_path / "bundle" / TWIN).write_bytes(b"of another network")
    flags = ("--mirror_average", "--precision", "float32", "--bundle", tmp_path / "bundle")
    assert run_retrain(tmp_path, photos, *flags) == 0
    files, twins = files_of(tmp_path / "bundle")
    assert files == FILES
    assert len(twins) == 1
    assert twins[0] not in (TWIN, files_of(bundle)[1][0])
    new = (tmp_path / "models" / FILES[0]).read_bytes()
    assert (tmp_path / "bundle" / FILES[0]).read_bytes() == new
    assert f"bundle\t{tmp_path}/bundle\n" in capsys.readouterr().out


def test_a_bundle_without_a_twin_is_told_in_one_line(photos, run_retrain, tmp_path, capsys):
    flags = ("--runtime", "tensorflow", "--bundle", tmp_path / "bundle")
    assert run_retrain(tmp_path, photos, *flags) == 0
    assert files_of(tmp_path / "bundle") == (FILES, [])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "needs TensorFlow" in line]
    assert "no LiteRT model of the network: --runtime is tensorflow" in line


def test_a_folder_of_other_files_is_refused_at_once(photos, run_retrain, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    assert run_retrain(tmp_path, photos, "--bundle", tmp_path / "mine") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert (
        "is not an earlier bundle: it holds 'letter.txt'; name a new folder with --bundle" in last
    )
    assert sorted(os.listdir(tmp_path / "mine")) == ["letter.txt"]
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (FILES, None),
        ([], None),
        ([*FILES, TWIN], None),
        ([*FILES, "weights.tflite"], "it holds 'weights.tflite'"),
        ([TWIN], "it holds no graph"),
    ],
)
def test_what_counts_as_a_bundle(tmp_path, names, message):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    outputs = OutputSettings(bundle=str(tmp_path))
    if message is None:
        check_bundle(outputs)
        return
    with pytest.raises(ExportError, match=message):
        check_bundle(outputs)


def test_a_bundle_takes_no_name_of_another_output(photos, run_retrain, tmp_path, capsys):
    assert run_retrain(tmp_path, photos, "--bundle", tmp_path / "models") == 2
    assert "name the same file" in capsys.readouterr().err
