"""Writes the graph of a run aside, tests it on held-out photos, converts it to other formats."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from numpy import float32
from numpy.typing import NDArray

from retraining.bottlenecks.compute import Bottlenecks
from retraining.bottlenecks.extract import VectorSource
from retraining.evaluation import trust
from retraining.evaluation.temperature import apply_temperature
from retraining.export import changes, formats, verify
from retraining.export.build import ExportError, features_node, metadata_bytes
from retraining.graphs.session import return_free_memory
from retraining.metrics.classification import calibration_error, choose_rows, wilson_interval
from retraining.photos.split import TESTING, TRAINING, VALIDATION
from retraining.run.model import Model, build, describe_model
from retraining.run.notes import RunNotes
from retraining.run.settings import OutputSettings, RunSettings
from retraining.system.atomic import check_writable
from retraining.system.observer import Observer
from retraining.system.text import counted

log = logging.getLogger(__name__)

TRY_ON = (TESTING, VALIDATION, TRAINING)  # the first split with photos tests the other formats


def formats_of(outputs: OutputSettings) -> list[formats.Format]:
    """Returns the Formats that the settings ask for besides the frozen graph."""
    wanted = []
    if outputs.saved_model_folder:
        wanted.append(formats.Format("saved_model", outputs.saved_model_folder))
    if outputs.tflite_file:
        kind = formats.INT8 if outputs.tflite_int8 else "tflite"
        wanted.append(formats.Format(kind, outputs.tflite_file))
    if outputs.onnx_file:
        wanted.append(formats.Format("onnx", outputs.onnx_file))
    return wanted


def check_outputs(network_paths: Iterable[str | Path], settings: RunSettings) -> None:
    """Refuses, before the run spends hours, outputs that cannot be written or replace a network.

    Raises:
        ExportError: an output is, or may become, the file of a base network.
        WriteError: an output is a folder, or lies in a folder that cannot be written to.
    """
    taken, outputs = {os.path.realpath(path) for path in network_paths}, settings.outputs
    for path in settings.output_files.values():
        if os.path.realpath(path) in taken:
            raise ExportError(f"{path} is the base network; choose another output")
        check_writable(path)
    formats.check_possible(formats_of(outputs))
    folders = [outputs.summaries_folder]
    if outputs.saved_model_folder:
        folders.append(outputs.saved_model_folder)
    if settings.head.intermediate_steps:
        folders.append(settings.head.intermediate_folder)
        if os.path.realpath(folders[-1]) in map(os.path.dirname, taken):
            raise ExportError(f"{folders[-1]} holds the base network; choose another folder")
    for folder in folders:
        check_writable(os.path.join(folder, "any file"))


def export_and_test(
    model: Model,
    bottlenecks: Bottlenecks,
    extractor: VectorSource,
    settings: RunSettings,
    notes: RunNotes,
    observer: Observer,
) -> tuple[verify.HeldOutResult, tuple[bytes, bytes]]:
    """(HeldOutResult, the graph and its description as bytes): written aside and tried there."""
    labels, outputs, held_out = bottlenecks.labels, settings.outputs, bottlenecks.examples[TESTING]
    most = settings.evaluation.test_photos
    most = verify.MOST_TESTED if most == -1 else min(most, verify.MOST_TESTED)
    rows = choose_rows(len(held_out), most)
    graph = build(model, extractor, outputs.tensor_name)
    untested = metadata_bytes(describe_model(labels, extractor, settings, notes))
    bar = observer.progress("final test", "img")
    size = len(graph)
    with verify.candidate(outputs.graph, graph, untested) as path:
        del graph  # as large as the network; the test needs its memory
        result = verify.test_exported(path, [held_out[row] for row in rows], extractor, bar)
        return_free_memory()
        graph = verify.read_start(path, size)
    if result.total < len(rows):
        lost = counted(len(rows) - result.total, "test photo has", "test photos have")
        log.warning(f"{lost} vanished or changed meanwhile")
    expected = model.head.probabilities(expected_vectors(result, bottlenecks))
    verify.check_agreement(result, expected)
    verify.check_accuracy(result, settings.evaluation.least_accuracy)
    facts = {
        "features": features_node(extractor.network, model.head),
        "results": verify.describe_result(result),
        "trust": trust.described(model.trusted.temperature, model.unknown),
    }
    description = describe_model(labels, extractor, settings, notes, **facts)
    tested = metadata_bytes(description, trust.constants(model.unknown))
    before = changes.read_description(outputs.graph)
    if result.total < len(held_out):
        log.info(f"{result.total} of {len(held_out)} test photos were tested")
    for line in (describe_test(result), *changes.describe_changes(before, result, labels)):
        log.info(line)
    if result.total and model.trusted.temperature != 1:
        log.info(describe_calibration(result, model.trusted.temperature))
    return result, (graph, tested)


def expected_vectors(result: verify.HeldOutResult, bottlenecks: Bottlenecks) -> NDArray[float32]:
    """Returns the stored vectors, float32 [n, width], of the tested photos.

    Imported vectors may differ from the network's in the last digits. Those that the network
    computed in the test take their place.
    """
    factors = 1 if bottlenecks.factors is None else bottlenecks.factors
    rows = {example.key: row for row, example in enumerate(bottlenecks.examples[TESTING])}
    vectors = bottlenecks.labelled[TESTING].vectors[[rows[key] for key in result.keys]]
    for place, key in enumerate(result.keys):
        if key in bottlenecks.imported:
            vectors[place] = result.vectors[place] * factors
    return vectors


def describe_test(result: verify.HeldOutResult) -> str:
    """Returns one line on a HeldOutResult."""
    if result.total == 0:
        return "no test photos: the accuracy of this model is unknown"
    low, high = wilson_interval(result.correct, result.total)
    return (
        f"final test accuracy = {result.accuracy:.1%} (N={result.total}, 95 % interval "
        f"{low:.1%} to {high:.1%}), measured on the exported graph"
    )


def describe_calibration(result: verify.HeldOutResult, temperature: float) -> str:
    """Returns one line on the calibration error of the test photos."""
    scores = result.probabilities
    before = calibration_error(scores, result.truth)
    scores = apply_temperature(scores, temperature)
    after = calibration_error(scores, result.truth)
    return f"calibration error on the test photos {before:.3f}, with the temperature {after:.3f}"


def make_other_formats(
    graph: tuple[bytes, bytes], bottlenecks: Bottlenecks, settings: RunSettings
) -> list[formats.Made]:
    """Converts the graph to each Format that the settings ask for, and tests it on photos."""
    wanted = formats_of(settings.outputs)
    if not wanted:
        return []
    log.info(f"converting to {', '.join(each.kind for each in wanted)}")
    # Any photos show whether answers agree; test photos are preferred.
    photos = next(bottlenecks.examples[part] for part in TRY_ON if bottlenecks.examples[part])
    rows = choose_rows(len(photos), formats.MOST_PHOTOS)
    paths = [photos[row].path for row in rows]
    made = formats.make(wanted, b"".join(graph), paths, settings.photos.max_pixels)
    for each in made:
        log.info(f"{each.agreement}")
    return made
