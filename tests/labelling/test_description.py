"""A graph's description of itself that was damaged, or written by somebody else."""

import copy
import json
import logging
import random
from types import SimpleNamespace

import numpy as np
import pytest

from retraining.errors import RetrainingError
from retraining.export.changes import describe_changes, read_description
from retraining.export.verify import HeldOutResult
from retraining.graphs.description import METADATA, DescriptionError, read_metadata
from retraining.graphs.nodes import constant, nodes_by_name, set_constant
from retraining.graphs.read import read_graph
from retraining.labelling.classifier import load_classifier
from retraining.labelling.resolve import Overrides
from retraining.photos.reader import ImageError
from tests import tiny

NASTY = (None, True, -1, 0, 3, 10**400, 1e308, 1e-320, float("nan"), float("inf"), "", "x")
NASTY += ([], {}, [None], [[1]], ["x", 1, 2], [0.5] * 101, {"x": 1}, [1, 2], [1.0, 2.0, 3.0])


@pytest.fixture(scope="module")
def own(tmp_path_factory, run_retrain):
    """A retrained graph with a temperature and a score for unknown images: its path and a photo."""
    folder = tmp_path_factory.mktemp("own")
    photos = tiny.write_photos(folder / "photos", {"red": 40, "green": 40})
    assert run_retrain(folder, photos, "--precision", "float32", "--validation_percentage", 40) == 0
    path = folder / "models" / "retrained_graph.pb"
    return SimpleNamespace(path=path, photo=f"{photos}/red/photo_01.jpg", graph=read_graph(path))


def places(value, way=()):
    """Yields the way to each entry of nested dicts and lists; of long lists, to the first three."""
    if way:
        yield way
    names = {dict: list, list: lambda found: range(min(3, len(found)))}.get(type(value))
    for name in names(value) if names else ():
        yield from places(value[name], (*way, name))


def changed(description, way, value):
    description = copy.deepcopy(description)
    at = description
    for name in way[:-1]:
        at = at[name]
    if value is DELETED:
        del at[way[-1]]
    else:
        at[way[-1]] = value
    return description


DELETED = object()


def write(own, path, description):
    graph_def = copy.deepcopy(own.graph)
    text = description if isinstance(description, bytes) else json.dumps(description).encode()
    set_constant(nodes_by_name(graph_def)[METADATA], np.array(text, object))
    path.write_bytes(graph_def.SerializeToString())
    return path


def mutations(description, count):
    rng = random.Random(0)
    everywhere = [way for way in places(description) if way[0] != "options"]
    return [
        changed(description, rng.choice(everywhere), rng.choice((DELETED, *NASTY)))
        for _ in range(count)
    ]


@pytest.mark.numbers
def test_a_damaged_description_is_an_error_or_harmless(own, tmp_path):
    refused = 0
    for description in mutations(read_metadata(own.graph), 150):
        path = write(own, tmp_path / "graph.pb", description)
        try:
            classifier = load_classifier(path)
            share = 0.05 if classifier.unknown else None
            ((_, answer, novelty),) = classifier.predict([own.photo], count=1, share=share)
        except RetrainingError:
            refused += 1
        else:
            assert isinstance(answer, ImageError) or np.isfinite(answer).all()
            assert novelty is None or 0 <= novelty <= 1
    assert 50 < refused < 150


def test_a_damaged_description_of_the_replaced_graph_costs_the_comparison_only(
    own, tmp_path, caplog
):
    caplog.set_level(logging.WARNING)
    whole = read_metadata(own.graph)
    keys = [key for key, _, _ in whole["results"]["held_out"]]
    scores = np.eye(2, dtype="f4")[[0] * len(keys)]
    result = HeldOutResult(keys, keys, np.zeros(len(keys), int), scores, scores)
    assert any(
        "also tested the previous graph" in line
        for line in describe_changes(read_description(str(own.path)), result, whole["labels"])
    )
    descriptions = [*mutations(whole, 300), {"labels": None}, 5, [], b"{", b"\xff", b"[" * 100_000]
    for description in descriptions:
        path = write(own, tmp_path / "graph.pb", description)
        before = read_description(str(path))
        lines = list(describe_changes(before, result, whole["labels"]))
        assert before or lines == []
    assert (
        f"{tmp_path}/graph.pb is replaced without comparing it with the new graph: the graph's own"
        in caplog.text
    )
    assert read_description(str(tmp_path / "no.pb")) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("results", {"held_out": [["key", 2, 0.5]]}),
        ("results", {"held_out": [["key", 1, 0.5]], "held_out_targets": []}),
        ("results", {"held_out": [["key", True, 0.5]]}),
        ("trust", []),
        ("logits", 5),
        ("options", "x"),
        ("mean", 10**400),
        ("size", [True, True]),
        ("second", {"input": "Mul"}),
    ],
)
def test_the_entry_that_is_damaged_is_named(own, name, value):
    graph_def = copy.deepcopy(own.graph)
    text = json.dumps(changed(read_metadata(graph_def), (name,), value)).encode()
    set_constant(nodes_by_name(graph_def)[METADATA], np.array(text, object))
    with pytest.raises(DescriptionError, match=r"the graph's own description .* has no sound "):
        read_metadata(graph_def)


@pytest.mark.parametrize("override", [{"input_std": 1e-320}, {"input_mean": 1e308}])
def test_a_scale_beyond_float32_is_refused(own, override):
    with pytest.raises(RetrainingError, match="input_mean"):
        load_classifier(own.path, overrides=Overrides(**override))


def test_answers_that_are_no_numbers_are_errors_of_their_images(own):
    graph_def = copy.deepcopy(own.graph)
    name = "final_training_ops/biases/final_biases"
    set_constant(nodes_by_name(graph_def)[name], np.array([np.nan, 0], np.float32))
    path = own.path.with_name("nan.pb")
    path.write_bytes(graph_def.SerializeToString())
    ((_, answer, _),) = load_classifier(path).predict([own.photo], count=1)
    assert isinstance(answer, ImageError)
    assert "infinity or NaN" in str(answer)


def test_a_score_of_another_shape_is_refused(own):
    graph_def = copy.deepcopy(own.graph)
    nodes = nodes_by_name(graph_def)
    axes = constant(nodes, "retraining/unknown/axes")
    for wrong in (axes[:, 0], axes[:-1], axes * np.nan):
        set_constant(nodes["retraining/unknown/axes"], wrong)
        path = own.path.with_name("wrong.pb")
        path.write_bytes(graph_def.SerializeToString())
        with pytest.raises(RetrainingError, match="unknown score is damaged"):
            load_classifier(path)
