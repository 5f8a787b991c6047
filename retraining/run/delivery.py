"""The end of a run: its record, its report, and all its files, written together."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from retraining.bottlenecks.compute import Bottlenecks
from retraining.bottlenecks.extract import Extractor, VectorSource
from retraining.evaluation import label_audit
from retraining.evaluation.temperature import apply_temperature
from retraining.export.build import labels_bytes
from retraining.export.verify import HeldOutResult
from retraining.metrics.classification import choose_rows
from retraining.photos.split import TESTING, TRAINING, VALIDATION
from retraining.photos.thumbnails import Thumbnails
from retraining.report import html
from retraining.report.record import Setting, confusion_of, metrics_bytes
from retraining.report.tensorboard import Projected, write_confusion, write_projector
from retraining.run.notes import RunNotes
from retraining.run.settings import OutputSettings, RunSettings

log = logging.getLogger(__name__)


def describe_setting(
    extractor: VectorSource, warnings: list[str], settings: RunSettings, notes: RunNotes
) -> Setting:
    """Returns what the run used, as a Setting; `warnings` are those on its photos."""
    about = describe_network(extractor.parts[0])
    for second in extractor.parts[1:]:
        about |= {f"second_{name}": fact for name, fact in describe_network(second).items()}
    options = {**settings.record, "excluded_photos": notes.excluded_photos}
    return Setting(about, options, notes.watch.seconds, notes.caveats, warnings)


def describe_network(extractor: Extractor) -> dict[str, Any]:
    """Returns what the record says about one network."""
    network = extractor.network
    return {
        "name": network.name,
        "sha1": network.file_sha1,
        "precision": extractor.settings.precision,
        "vector_width": network.width,
        "input_size": list(network.preprocessing.size),
    }


def trust_scores(result: HeldOutResult, temperature: float) -> HeldOutResult:
    """Returns the HeldOutResult with calibrated probabilities, as labelling gives them."""
    scores = apply_temperature(result.probabilities, temperature)
    return replace(result, probabilities=scores)


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
    try:
        write_confusion(folder, confusion_of(record), record["labels"])
        write_projector(folder, projected, thumbnails)
    except OSError as error:
        log.warning(f"TensorBoard's files in {folder} are not complete: {error.strerror}")


def choose_projected(bottlenecks: Bottlenecks, most: int) -> list[Projected]:
    """Returns at most `most` photos with their vectors, test photos first."""
    chosen: list[Projected] = []
    for part in (TESTING, VALIDATION, TRAINING):
        examples, vectors = bottlenecks.examples[part], bottlenecks.labelled[part].vectors
        rows = choose_rows(len(examples), most - len(chosen))
        chosen += [Projected(examples[row], vectors[row]) for row in rows]
    return chosen
