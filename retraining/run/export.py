"""Writes the graph of a run aside, tests it on held-out photos, converts it to other formats."""

import logging
from dataclasses import dataclass

from numpy import float32
from numpy.typing import NDArray

from retraining.bottlenecks.compute import Bottlenecks, export_vectors
from retraining.evaluation import trust
from retraining.evaluation.temperature import apply_temperature
from retraining.export import changes, formats, verify
from retraining.export.build import features_node, metadata_bytes
from retraining.graphs.session import return_free_memory
from retraining.metrics.classification import calibration_error, choose_rows, wilson_interval
from retraining.photos.split import TESTING, TRAINING, VALIDATION
from retraining.run.fine_tuning import Tuned
from retraining.run.head import fit_trust
from retraining.run.model import Model, build, describe_model
from retraining.run.notes import RunContext
from retraining.system.text import counted

log = logging.getLogger(__name__)

TRY_ON = (TESTING, VALIDATION, TRAINING)  # the first split with photos tests the other formats


@dataclass(frozen=True)
class Exported:
    """A model, how it did on the test photos, and its graph and description as bytes."""

    model: Model
    result: verify.HeldOutResult
    graph: tuple[bytes, bytes]


def export_and_test(tuned: Tuned, run: RunContext) -> Exported:
    """Calibrates the head, writes its graph aside and tests the file on the held-out photos.

    Raises:
        ExportError: the file does not answer as the head does, or too few answers are right.
    """
    bottlenecks, extractor, head = tuned.bottlenecks, tuned.extractor, tuned.trained.head
    if run.settings.bottlenecks.export_file:
        export_vectors(bottlenecks, extractor, run.settings.bottlenecks.export_file)
    model = Model(head, fit_trust(head, bottlenecks), bottlenecks.factors)
    labels, outputs = bottlenecks.labels, run.settings.outputs
    held_out = bottlenecks.examples[TESTING]
    most = run.settings.evaluation.test_photos
    most = verify.MOST_TESTED if most == -1 else min(most, verify.MOST_TESTED)
    rows = choose_rows(len(held_out), most)
    graph = build(model, extractor, outputs.tensor_name)
    untested = metadata_bytes(describe_model(labels, extractor, run))
    bar = run.observer.progress("final test", "img")
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
    verify.check_accuracy(result, run.settings.evaluation.least_accuracy)
    facts = {
        "features": features_node(extractor.network, model.head),
        "results": verify.describe_result(result),
        "trust": trust.described(model.trusted.temperature, model.unknown),
    }
    description = describe_model(labels, extractor, run, **facts)
    tested = metadata_bytes(description, trust.constants(model.unknown))
    before = changes.read_description(outputs.graph)
    if result.total < len(held_out):
        log.info(f"{result.total} of {len(held_out)} test photos were tested")
    for line in (describe_test(result), *changes.describe_changes(before, result, labels)):
        log.info(line)
    if result.total and model.trusted.temperature != 1:
        log.info(describe_calibration(result, model.trusted.temperature))
    return Exported(model, result, (graph, tested))


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


def make_other_formats(exported: Exported, tuned: Tuned, run: RunContext) -> list[formats.Made]:
    """Converts the graph to the other formats in the settings, and tests each on photos."""
    wanted, examples = run.settings.outputs.formats, tuned.bottlenecks.examples
    if not wanted:
        return []
    log.info(f"converting to {', '.join(wanted)}")
    # Any photos show whether answers agree; test photos are preferred.
    photos = next(examples[part] for part in TRY_ON if examples[part])
    rows = choose_rows(len(photos), formats.MOST_PHOTOS)
    paths = [photos[row].path for row in rows]
    made = formats.make(wanted, b"".join(exported.graph), paths, run.settings.photos.max_pixels)
    for other in made:
        log.info(other.agreement)
    return made
