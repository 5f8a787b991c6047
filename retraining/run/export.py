"""Tests the graph of a run on held-out photos, and converts it to other formats."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from numpy import float32
from numpy.typing import NDArray

from retraining.bottlenecks.collect import collect
from retraining.bottlenecks.compute import Bottlenecks
from retraining.bottlenecks.extract import Job
from retraining.evaluation import trust
from retraining.evaluation.temperature import apply_temperature
from retraining.export import changes, formats, verify
from retraining.export.build import features_node, metadata_bytes
from retraining.graphs.session import return_free_memory
from retraining.metrics.classification import (
    calibration_error,
    choose_rows,
    wilson_interval,
)
from retraining.photos.dataset import Example
from retraining.photos.key_set import MOST_KEYS, pack_keys
from retraining.photos.split import SPLITS, TESTING, TRAINING, VALIDATION
from retraining.run.fine_tuning import Tuned
from retraining.run.head import fit_trust
from retraining.run.model import Model, build, describe_model
from retraining.run.notes import RunContext
from retraining.run.settings import ALL, RunSettings
from retraining.system.text import counted

log = logging.getLogger(__name__)

TRY_ON = (TESTING, VALIDATION, TRAINING)  # the first split with photos tests the other formats
MOST_CALIBRATION = 200  # training photos


@dataclass(frozen=True)
class HeldOut:
    """The photos that test the exported file, and their vectors as the head takes them."""

    examples: list[Example]
    vectors: NDArray[float32]  # float32 [n, width]


@dataclass(frozen=True)
class Exported:
    """A model, how it did on the test photos, these, and its graph as bytes, in parts.

    The last part is the graph's description, once `describe_exported` has added it. `twins` are
    the files of the LiteRT models of its networks, as far as they have one.
    """

    model: Model
    result: verify.HeldOutResult
    held_out: HeldOut
    graph: tuple[bytes, ...]
    twins: tuple[Path, ...] = ()


def export_and_test(tuned: Tuned, run: RunContext) -> Exported:
    """Calibrates the head, writes its graph to a temporary file and tests that on held-out photos.

    Raises:
        ExportError: the file does not answer as the head does, or too few answers are right.
    """
    bottlenecks, head = tuned.bottlenecks, tuned.trained.head
    model = Model(head, fit_trust(head, bottlenecks), bottlenecks.factors)
    held_out = choose_held_out(tuned, run)
    graph, result = write_and_evaluate(model, held_out, tuned, run)
    verify.check_accuracy(result, run.settings.evaluation.least_accuracy)
    log_test(result, model, bottlenecks, run.settings)
    return Exported(model, result, held_out, (graph,))


def write_and_evaluate(
    model: Model, held_out: HeldOut, tuned: Tuned, run: RunContext
) -> tuple[bytes, verify.HeldOutResult]:
    """Writes the graph to a temporary file and tests that; returns (bytes, result).

    The bytes lack the final description, which contains the result.

    Raises:
        ExportError: the file differs from the base network, or does not answer as the head does.
    """
    extractor, outputs = tuned.extractor, run.settings.outputs
    graph = build(model, extractor, outputs.tensor_name)
    untested = metadata_bytes(describe_model(tuned.bottlenecks.labels, extractor, run))
    size = len(graph)
    with verify.candidate(outputs.graph, graph, untested) as path:
        del graph  # as large as the network; the test needs its memory
        vectors = held_out.vectors if model.factors is None else held_out.vectors / model.factors
        result = verify.evaluate_exported(path, held_out.examples, vectors, extractor)
        verify.check_agreement(result, model.head.probabilities(held_out.vectors))
        return_free_memory()
        return verify.read_start(path, size), result


def choose_held_out(tuned: Tuned, run: RunContext) -> HeldOut:
    """Returns the test photos, with the vectors in the store.

    Imported vectors may differ from the network's in the last digits, or be of another network.
    They are computed anew. Photos that have vanished before are left out.
    """
    bottlenecks, most = tuned.bottlenecks, run.settings.evaluation.test_photos
    testing = bottlenecks.examples[TESTING]
    rows = choose_rows(len(testing), len(testing) if most == -1 else most)
    imported = [testing[row] for row in rows if testing[row].key in bottlenecks.imported]
    anew = compute_anew(imported, tuned, run) if imported else {}
    lost = {example.key for example in imported} - anew.keys()
    kept = [row for row in rows if testing[row].key not in lost]
    stored = bottlenecks.labelled[TESTING].vectors
    if not imported and len(kept) == len(testing):
        return HeldOut(list(testing), stored)  # a copy would take as much memory again
    vectors = stored[kept]
    for row, place in enumerate(kept):
        vectors[row] = anew.get(testing[place].key, vectors[row])
    return HeldOut([testing[row] for row in kept], vectors)


def compute_anew(
    examples: Sequence[Example], tuned: Tuned, run: RunContext
) -> dict[str, NDArray[float32]]:
    """Returns {key: vector as the head takes it} of the photos that can still be read."""
    extractor, factors = tuned.extractor, tuned.bottlenecks.factors
    bar = run.observer.progress("final test", "img")
    answers = bar(extractor.run([Job(example) for example in examples]), total=len(examples))
    kept, vectors, lost = collect(answers, examples, extractor.network.width)
    if lost:
        photos = counted(len(lost), "test photo has", "test photos have")
        log.warning(f"{photos} been deleted or changed during the run")
    if factors is not None:
        vectors *= factors
    return {example.key: vector for example, vector in zip(kept, vectors, strict=True)}


def describe_exported(exported: Exported, tuned: Tuned, run: RunContext) -> Exported:
    """Adds the description to a tested graph, with the constants of its score for unknowns."""
    model = exported.model
    final_fit = run.settings.head.final_fit
    parts = SPLITS if final_fit == ALL else (TRAINING, VALIDATION)
    seen = [tuned.bottlenecks.examples[part] for part in parts]
    trained_photos = pack_keys(example.key for part in seen for example in part)
    if trained_photos is None:
        log.info(
            f"the graph does not list its training photos, since there are more than {MOST_KEYS}"
        )
    facts = {
        "trained_photos": trained_photos,
        "final_fit": final_fit,
        "features": features_node(tuned.extractor.network, model.head),
        "results": verify.describe_result(exported.result),
        "trust": trust.described(model.trusted.temperature, model.unknown),
    }
    description = describe_model(tuned.bottlenecks.labels, tuned.extractor, run, **facts)
    content = metadata_bytes(description, trust.constants(model.unknown))
    return replace(exported, graph=(*exported.graph, content))


def log_test(
    result: verify.HeldOutResult, model: Model, bottlenecks: Bottlenecks, settings: RunSettings
) -> None:
    """Logs how the test went, and how an earlier graph that this one replaces did."""
    held_out = len(bottlenecks.examples[TESTING])
    if result.total < held_out:
        log.info(f"{result.total} of the {held_out} test photos were tested")
    log.info(describe_test(result, settings.head.final_fit))
    before = changes.read_description(settings.outputs.graph)
    for line in changes.describe_changes(before, result, bottlenecks.labels):
        log.info(line)
    if result.total and model.trusted.temperature != 1:
        log.info(describe_calibration(result, model.trusted.temperature))


def describe_test(result: verify.HeldOutResult, final_fit: str) -> str:
    """Returns one line on a HeldOutResult; `final_fit` tells if another layer is exported."""
    if result.total == 0:
        return "no photos were held out for a final test"
    low, high = wilson_interval(result.correct, result.total)
    on_all = "before the layer is trained on all photos"
    return (
        f"final test accuracy = {result.accuracy:.1%} ({result.correct} of {result.total} photos, "
        f"95 % interval {low:.1%} to {high:.1%}), measured "
        + (on_all if final_fit == ALL else "on the exported graph")
    )


def describe_calibration(result: verify.HeldOutResult, temperature: float) -> str:
    """Returns one line on the calibration error of the test photos."""
    before = calibration_error(result.probabilities, result.targets)
    scores = apply_temperature(result.probabilities, temperature)
    after = calibration_error(scores, result.targets)
    return (
        f"calibration error on the test photos: {before:.3f} without the temperature, "
        f"{after:.3f} with it"
    )


def make_other_formats(exported: Exported, tuned: Tuned, run: RunContext) -> list[formats.Made]:
    """Converts the graph to the other formats in the settings, and tests each on photos."""
    outputs, bottlenecks = run.settings.outputs, tuned.bottlenecks
    if not outputs.formats:
        return []
    # Any photos show whether answers agree; test photos are preferred.
    testing = next(bottlenecks.examples[part] for part in TRY_ON if bottlenecks.examples[part])
    targets = {label: index for index, label in enumerate(bottlenecks.labels)}
    photos = formats.Photos(
        {example.path: targets[example.label] for example in testing},
        [example.path for example in spread(bottlenecks.examples[TRAINING], MOST_CALIBRATION)],
        run.settings.photos.max_pixels,
    )
    graph, takes = b"".join(exported.graph), outputs.export_input
    made = formats.make(outputs.formats, graph, photos, takes, run.observer)
    for other in made:
        log.info(other.agreement)
        if other.warning:
            run.notes.add_caveat(other.warning)
    return made


def spread(examples: Sequence[Example], most: int) -> list[Example]:
    """Returns at most `most` examples, as many of each class as it has, and evenly spread in it."""
    by_label: dict[str, list[Example]] = {}
    for example in examples:
        by_label.setdefault(example.label, []).append(example)
    chosen: list[Example] = []
    classes = sorted(by_label.values(), key=len)
    for number, photos in enumerate(classes):  # the smallest class first: others take its rest
        share = (most - len(chosen)) // (len(classes) - number)
        chosen += [photos[row] for row in choose_rows(len(photos), share)]
    return chosen
