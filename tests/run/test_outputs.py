"""outputs.py: outputs that cannot be written are refused before the work."""

import json
import os
import sys
from dataclasses import fields

import pytest

from retraining.bottlenecks.compute import BottleneckSettings
from retraining.export.build import ExportError
from retraining.run.outputs import check_outputs, replace_outputs
from retraining.run.settings import HeadSettings, OutputSettings, PhotoSettings, RunSettings
from retraining.system import atomic
from retraining.system.atomic import WriteError, journal_of

FILES = ("graph", "labels", "label_audit", "report", "model_card", "metrics")


def check(folder, network="network.pb", **outputs):
    given = {"graph": folder / "graph.pb", "summaries_folder": folder / "logs", **outputs}
    names = {field.name for field in fields(OutputSettings)}
    own = {name: value for name, value in given.items() if name in names}
    others = {name: path for name, path in given.items() if name not in names}
    settings = RunSettings(PhotoSettings("photos"), outputs=OutputSettings(**own), **others)
    check_outputs([folder / network], settings)


def test_outputs_may_lie_in_folders_that_are_not_there_yet(tmp_path):
    check(tmp_path, labels=tmp_path / "new" / "labels.txt")


@pytest.mark.parametrize("name", FILES)
def test_a_folder_is_no_file_to_write(tmp_path, name):
    with pytest.raises(WriteError, match="it is a folder"):
        check(tmp_path, **{name: tmp_path})


def test_vectors_are_not_exported_to_a_folder(tmp_path):
    with pytest.raises(WriteError, match="it is a folder"):
        check(tmp_path, bottlenecks=BottleneckSettings(export_file=str(tmp_path)))


@pytest.mark.parametrize("kind", ["pixels_graph", "tflite", "tflite_int8", "onnx"])
def test_a_folder_is_no_file_of_another_format(tmp_path, kind):
    with pytest.raises(WriteError, match="it is a folder"):
        check(tmp_path, formats={kind: tmp_path})


def test_a_file_is_no_folder_to_write_into(tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(WriteError, match="cannot write into"):
        check(tmp_path, formats={"saved_model": path})


def test_a_run_goes_on_without_tensorboard(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    check(tmp_path, summaries_folder=tmp_path / "file")
    assert "the run cannot write files for TensorBoard: cannot write into" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a day must have passed")
def test_what_a_killed_run_left_in_the_folders_of_all_outputs_is_removed(tmp_path, monkeypatch):
    saved, vectors = tmp_path / "saved", tmp_path / "vectors"
    outputs = {saved / "1": {"a": b"1"}, vectors / "v.parquet": b"2", tmp_path / "graph.pb": b"3"}
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(atomic, "_write_journal", lambda *_: os._exit(9))
        atomic.write_files(outputs, journal_of(tmp_path / "graph.pb"))
    os.waitpid(child, 0)
    assert len(list(tmp_path.rglob("*.part"))) == 3
    vectors_file = BottleneckSettings(export_file=str(vectors / "v.parquet"))
    check(tmp_path, formats={"saved_model": saved}, bottlenecks=vectors_file)
    assert list(tmp_path.rglob("*.part")) == []


def test_outputs_of_an_interrupted_run_are_completed_first(tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / ".retrain-1-0.part").write_text("new")
    (tmp_path / "labels.txt").write_text("old")
    pairs = [[f"{tmp_path}/.retrain-1-0.part", f"{tmp_path}/labels.txt"]]
    journal_of(tmp_path / "graph.pb").write_text(json.dumps(pairs))
    check(tmp_path)
    assert (tmp_path / "labels.txt").read_text() == "new"
    assert (
        "an earlier run was interrupted while it replaced its outputs; 1 file is now in"
        in caplog.text
    )


def test_files_of_an_earlier_model_are_renamed(tmp_path, caplog):
    caplog.set_level("INFO")
    names = "graph.pb", "retrained_report.html", "retrained_model_card.md", "label_audit.tsv"
    graph, report, card, audit = (tmp_path / name for name in names)
    exclude = tmp_path / "comparison.tsv"  # still in use
    for path in (report, card, audit, exclude):
        path.write_text("old")
    outputs = OutputSettings(str(graph), report="", model_card="", label_audit=str(audit))
    photos = PhotoSettings("photos", excluded_by=str(exclude))
    replace_outputs({str(graph): b"g", str(audit): b"new"}, RunSettings(photos, outputs=outputs))
    names = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert names == {
        "graph.pb": "g",
        "label_audit.tsv": "new",
        "comparison.tsv": "old",
        "retrained_report-of-earlier-model.html": "old",
        "retrained_model_card-of-earlier-model.md": "old",
    }
    assert f"renamed {card} to retrained_model_card-of-earlier-model.md" in caplog.text
    assert f"renamed {report} to retrained_report-of-earlier-model.html" in caplog.text


def test_the_base_network_is_never_overwritten(tmp_path):
    with pytest.raises(ExportError, match="is the base network; choose another output"):
        check(tmp_path, network="graph.pb")
    between = HeadSettings(intermediate_steps=10, intermediate_folder=str(tmp_path))
    with pytest.raises(ExportError, match="holds the base network; choose another folder"):
        check(tmp_path, head=between)
