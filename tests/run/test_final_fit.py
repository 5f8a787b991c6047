"""final_fit.py: the exported head is trained on all photos, after its figures were taken."""

import json

import numpy as np
import pytest

from retraining.bottlenecks.compute import Bottlenecks
from retraining.bottlenecks.vectors import Labelled
from retraining.graphs.description import read_metadata
from retraining.graphs.nodes import constant, nodes_by_name
from retraining.graphs.read import read_graph
from retraining.photos.key_set import KeySet
from retraining.photos.split import SPLITS
from retraining.run import export
from retraining.run.export import choose_held_out
from retraining.run.final_fit import options_for_all, train_on_all
from retraining.run.settings import FineTuningSettings, HeadSettings, PhotoSettings, RunSettings
from retraining.system.ranges import SettingsError
from retraining.training.head import Evaluation
from retraining.training.loop import Step, Trained, TrainingOptions, train


def labelled(count, seed):
    rng = np.random.default_rng(seed)
    targets = np.arange(count) % 2
    return Labelled(rng.normal(size=(count, 5)).astype("f4") + targets[:, None], targets)


def trained(options, losses=()):
    course = [Step(n, None, None, Evaluation(0.5, loss, 9)) for n, loss in losses]
    course = [Step(s.number, None, s.validation, s.validation) for s in course]
    return Trained(None, course, None, options, 0.0)


def test_the_head_is_that_of_all_photos():
    parts = {part: labelled(count, count) for part, count in zip(SPLITS, (40, 10, 12), strict=True)}
    options = TrainingOptions(steps=30)
    found = train_on_all(Bottlenecks(["a", "b"], {}, parts, [], set()), trained(options))
    every = Labelled.join([parts[part] for part in SPLITS])
    *_, last = train(every, every.first(0), 2, options)
    np.testing.assert_array_equal(found.weights, last.head.weights)
    *_, of_training = train(parts["training"], every.first(0), 2, options)
    assert (found.weights != of_training.head.weights).any()


def test_early_stopping_gives_the_number_of_steps():
    options = TrainingOptions(steps=4000, early_stopping=3)
    found = options_for_all(trained(options, [(0, 1.0), (10, 0.4), (20, 0.6)]))
    assert (found.steps, found.early_stopping, found.epochs) == (11, None, None)
    assert options_for_all(trained(TrainingOptions(steps=7))).steps == 7


def test_it_does_not_go_with_fine_tuning():
    with pytest.raises(SettingsError, match=r"`HeadSettings.final_fit` all"):
        RunSettings(
            PhotoSettings("x"),
            head=HeadSettings(final_fit="all"),
            fine_tuning=FineTuningSettings(methods=("two_rates",)),
        )
    with pytest.raises(SettingsError, match="final_fit"):
        HeadSettings(final_fit="some")


@pytest.mark.numbers
def test_a_run_exports_it_with_the_figures_of_the_other(
    tmp_path, run_retrain, finished, photos, monkeypatch, capsys
):
    chosen = []

    def choose(*arguments):
        chosen.append(choose_held_out(*arguments))
        return chosen[-1]

    monkeypatch.setattr(export, "choose_held_out", choose)
    assert run_retrain(tmp_path, photos, "--precision", "float32", "--final_fit", "all") == 0
    assert len(chosen) == 1
    assert "), measured before the layer is trained on all photos\n" in capsys.readouterr().err
    ours, theirs = (
        read_graph(folder / "models" / "retrained_graph.pb")
        for folder in (tmp_path, finished.folder)
    )
    description = read_metadata(ours)
    assert description["final_fit"] == "all"
    assert len(KeySet(description["trained_photos"])) == 90
    assert description["results"] == read_metadata(theirs)["results"]
    name = "final_training_ops/weights/final_weights"
    one, two = (constant(nodes_by_name(graph), name) for graph in (ours, theirs))
    assert (one != two).any()
    record = json.loads((tmp_path / "models" / "retrained_metrics.json").read_text())
    assert record["final_fit"] == "all"
    page = (tmp_path / "models" / "retrained_report.html").read_text()
    assert "trained the exported layer once more, on all photos" in page
