"""The end of a run: its record, its report, and all its files, written together."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retraining.bottlenecks.compute import Bottlenecks, export_content
from retraining.bottlenecks.extract import Extractor, VectorSource
from retraining.evaluation import label_audit, trust
from retraining.evaluation.cross_validation import CrossValidated, CrossValidation
from retraining.evaluation.learning_curve import SizePoint
from retraining.evaluation.temperature import apply_temperature
from retraining.export.build import labels_bytes
from retraining.export.formats import Made
from retraining.export.verify import HeldOutResult
from retraining.metrics.classification import choose_rows
from retraining.photos.source import BadImage
from retraining.photos.split import TESTING, TRAINING, VALIDATION
from retraining.photos.thumbnails import Thumbnails
from retraining.report import advice, card, html
from retraining.report.record import (
    Outcome,
    Record,
    Setting,
    confusion_of,
    make_record,
    metrics_bytes,
)
from retraining.report.tensorboard import (
    Projected,
    warns_of_failure,
    write_confusion,
    write_projector,
)
from retraining.run.bundle import bundle_contents, drop_earlier_twins
from retraining.run.export import Exported
from retraining.run.fine_tuning import Tuned, comparison_contents
from retraining.run.notes import RunContext
from retraining.run.outputs import replace_outputs
from retraining.run.photos import bad_images_contents, log_bad_images
from retraining.run.settings import OutputSettings, RunSettings
from retraining.system.atomic import Content
from retraining.system.text import counted
from retraining.training.methods import Attempt

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Results:
    """The results of a run. `record` is the content of the metrics file; see docs/metrics.md."""

    settings: RunSettings
    labels: list[str]
    test: HeldOutResult
    validated: CrossValidated | None
    record: Record
    formats: list[Made]
    attempts: list[Attempt]
    comparison: list[dict[str, Any]] | None
    bad_images: list[BadImage]
    caveats: list[str]


@dataclass(frozen=True)
class Diagnostics:
    """What a run tells of its photos: labels that look wrong, and whether more photos help."""

    audit: list[label_audit.Finding] | None  # None: without an audit
    sizes: list[SizePoint]
    validated: CrossValidation | None = None


def deliver(
    tuned: Tuned, exported: Exported, others: list[Made], diagnostics: Diagnostics, run: RunContext
) -> Results:
    """Makes record, report and model card, writes all outputs together, and returns the Results.

    Raises:
        WriteError: an output cannot be written; then none is replaced.
    """
    outputs, bottlenecks = run.settings.outputs, tuned.bottlenecks
    final_fit = run.settings.head.final_fit
    outcome = make_outcome(tuned, exported, others, diagnostics, final_fit)
    record = make_record(describe_setting(tuned.extractor, run), outcome)
    thumbnails = Thumbnails(run.settings.photos.max_pixels)
    contents: dict[str, Content] = {**bad_images_contents(bottlenecks.bad, outputs)}
    if vectors_file := run.settings.bottlenecks.export_file:
        contents[vectors_file] = export_content(bottlenecks, tuned.extractor)
    contents |= comparison_contents(tuned, run.settings)
    contents |= make_outputs(record, diagnostics.audit, bottlenecks.labels, thumbnails, outputs)
    if outputs.model_card:
        contents[outputs.model_card] = card.render(record, describe_files(exported, outputs))
    contents |= {other.path: other.content for other in others}
    contents |= bundle_contents(exported, contents, outputs)
    replace_outputs({**contents, outputs.graph: exported.graph}, run.settings)
    drop_earlier_twins(exported, outputs)
    for line in advice.warnings(record):
        log.warning(line)
    if line := describe_twins(record["test"]):
        log.info(line)
    tuned.remove_checkpoints()
    if vectors_file:
        count = sum(map(len, bottlenecks.examples.values()))
        log.info(f"wrote the vectors of {count} photos to {vectors_file}")
    projected = choose_projected(bottlenecks, outputs.projector_photos)
    write_summaries(tuned.trained.log_folder, record, projected, thumbnails)
    log_bad_images(bottlenecks.bad, outputs)
    return Results(
        settings=run.settings,
        labels=bottlenecks.labels,
        test=exported.result,
        validated=diagnostics.validated.result if diagnostics.validated else None,
        record=record,
        formats=others,
        attempts=list(tuned.attempts),
        comparison=tuned.comparison,
        bad_images=bottlenecks.bad,
        caveats=[text for text in run.notes.caveats if text not in run.notes.remarks],
    )


def describe_twins(test: dict[str, Any]) -> str:
    """Returns one line on the accuracy without twins of a record's `test`; '' if there are none."""
    alone = test["without_twins"]
    if not alone:
        return ""
    twins = counted(test["photos"] - alone["photos"], "test photo looks", "test photos look")
    line = f"{twins} the same as a photo that the model has seen"
    return (
        line
        + f"; {alone['correct']} of the other {alone['photos']} are labelled correctly"
        * bool(alone["photos"])
    )


def make_outcome(
    tuned: Tuned,
    exported: Exported,
    others: Sequence[Made],
    diagnostics: Diagnostics,
    final_fit: str,
) -> Outcome:
    """Returns what came of the run, as an Outcome."""
    bottlenecks, temperature = tuned.bottlenecks, exported.model.trusted.temperature
    return Outcome(
        labels=bottlenecks.labels,
        examples=bottlenecks.examples,
        result=calibrated(exported.result, temperature),
        course=tuned.trained.course,
        sizes=diagnostics.sizes,
        bad_images=bottlenecks.bad,
        audit=diagnostics.audit,
        comparison=tuned.comparison,
        validated=calibrated_validation(diagnostics.validated, temperature),
        final_fit=final_fit,
        temperature=temperature,
        exports=[other.describe() for other in others],
    )


def describe_files(exported: Exported, outputs: OutputSettings) -> card.ModelFiles:
    """Returns what the model card tells of the files of the model."""
    digest, model = hashlib.sha256(), exported.model
    for part in exported.graph:
        digest.update(part)
    return card.ModelFiles(
        graph=outputs.graph,
        labels=outputs.labels,
        sha256=digest.hexdigest(),
        trust=trust.described(model.trusted.temperature, model.unknown),
        formats=outputs.formats,
    )


def describe_setting(extractor: VectorSource, run: RunContext) -> Setting:
    """Returns what the run used, as a Setting."""
    network = describe_network(extractor.parts[0])
    for second in extractor.parts[1:]:
        network |= {f"second_{name}": fact for name, fact in describe_network(second).items()}
    options = {**run.settings.record, "excluded_photos": run.notes.excluded_photos}
    notes = run.notes
    kept = notes.caveats, notes.warnings, notes.remarks
    return Setting(network, options, notes.watch.seconds, *kept)


def describe_network(extractor: Extractor) -> dict[str, Any]:
    """Returns the part of the record on one network."""
    network = extractor.network
    record = network.preprocessing
    return {
        "name": network.name,
        "sha1": network.file_sha1,
        "precision": extractor.settings.precision,
        "runtime": extractor.runtime,
        "vector_width": network.width,
        "input_size": list(record.size),
        "input_mean": record.mean,
        "input_std": record.std,
        "kernel": record.kernel,
    }


def calibrated(result: HeldOutResult, temperature: float) -> HeldOutResult:
    """Returns the HeldOutResult with calibrated probabilities, as labelling gives them."""
    scores = apply_temperature(result.probabilities, temperature)
    return replace(result, probabilities=scores, logits=result.logits / temperature)


def calibrated_validation(
    validated: CrossValidation | None, temperature: float
) -> CrossValidation | None:
    """Returns the cross-validation with the exported model's temperature.

    A cross-validation of the network before fine-tuning keeps its temperature of 1: the exported
    model is the fine-tuned one.
    """
    if validated is None or validated.untuned:
        return validated
    return replace(validated, temperature=temperature)


def make_outputs(
    record: dict[str, Any],
    findings: Sequence[label_audit.Finding] | None,
    labels: Sequence[str],
    thumbnails: Thumbnails,
    outputs: OutputSettings,
) -> dict[str, bytes]:
    """Returns {path: bytes} of the files beside the graph, except the list of bad images."""
    contents = {outputs.labels: labels_bytes(labels), outputs.metrics: metrics_bytes(record)}
    if findings is not None:
        contents[outputs.label_audit] = label_audit.table_bytes(findings)
    if outputs.report:
        contents[outputs.report] = html.render(record, thumbnails)
    return contents


def write_summaries(
    folder: Path, record: dict[str, Any], projected: list[Projected], thumbnails: Thumbnails
) -> None:
    """Adds the confusion matrix and the projector to TensorBoard's folder; warns if it cannot."""
    with warns_of_failure(folder):
        write_confusion(folder, confusion_of(record), record["labels"])
        write_projector(folder, projected, thumbnails)


def choose_projected(bottlenecks: Bottlenecks, most: int) -> list[Projected]:
    """Returns at most `most` photos with their vectors, test photos first."""
    projected: list[Projected] = []
    for part in (TESTING, VALIDATION, TRAINING):
        examples, vectors = bottlenecks.examples[part], bottlenecks.labelled[part].vectors
        rows = choose_rows(len(examples), most - len(projected))
        projected += [Projected(examples[row], vectors[row]) for row in rows]
    return projected
