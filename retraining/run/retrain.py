"""The run: photos, network, vectors, head, evaluation, export, report, results."""

from dataclasses import dataclass, replace
from typing import Any

from retraining.bottlenecks.compute import compute_bottlenecks, export_vectors, import_exported
from retraining.export.formats import Made
from retraining.export.verify import HeldOutResult
from retraining.photos.scan import BadImage
from retraining.photos.thumbnails import Thumbnails
from retraining.report.record import make_record, outcome_of
from retraining.run.audit import audit_photos
from retraining.run.delivery import (
    choose_projected,
    describe_setting,
    make_outputs,
    trust_scores,
    write_summaries,
)
from retraining.run.export import check_outputs, export_and_test, make_other_formats
from retraining.run.fine_tuning import check_fine_tuning, comparison_contents, fine_tune
from retraining.run.head import fit_trust, train_head, try_fewer_photos
from retraining.run.model import Model
from retraining.run.network import choose_networks, make_extractor
from retraining.run.notes import RunNotes
from retraining.run.photos import (
    list_bad_images,
    look_at_photos,
    provide_example_images,
    read_photos,
    read_photos_once,
    reads_once,
    report_bad_images,
)
from retraining.run.settings import RunSettings
from retraining.system.atomic import Content, write_files
from retraining.system.observer import Observer, Silent
from retraining.training.methods import Attempt


@dataclass(frozen=True)
class Results:
    """The results of a run. `record` is the content of the metrics file; see docs/metrics.md."""

    settings: RunSettings
    labels: list[str]
    test: HeldOutResult
    record: dict[str, Any]
    formats: list[Made]
    attempts: list[Attempt]
    comparison: list[dict[str, Any]] | None
    bad_images: list[BadImage]
    caveats: list[str]


def retrain(settings: RunSettings, observer: Observer | None = None) -> Results:
    """Retrains a classifier on a folder of photos, tests it, and writes it.

    Raises:
        RetrainingError: a problem that the user can solve; no earlier output was replaced.
    """
    observer, notes = observer or Silent(), RunNotes()
    watch, outputs = notes.watch, settings.outputs
    provide_example_images(settings, notes, observer)
    scan = look_at_photos(settings.photos)
    dataset = None if reads_once(settings) else read_photos(scan, settings, notes)
    watch.lap("reading photos")
    chosen = choose_networks(settings.network, notes, observer.quiet)
    check_outputs([path for _, path in chosen], settings)
    extractor = make_extractor(chosen, settings, notes)
    check_fine_tuning(extractor.network, settings.fine_tuning)
    watch.lap("reading the network")
    import_exported(extractor, settings.bottlenecks, observer)
    dataset = dataset or read_photos_once(scan, extractor, settings, notes, observer)
    bottlenecks = compute_bottlenecks(dataset, extractor, settings.bottlenecks, observer)
    report_bad_images(bottlenecks, dataset, settings)
    watch.lap("bottlenecks")
    findings = audit_photos(bottlenecks, settings)
    watch.lap("label audit")
    trained = train_head(bottlenecks, extractor, settings, notes, observer)
    watch.lap("training")
    sizes = try_fewer_photos(bottlenecks, trained.settings)
    watch.lap("trying fewer photos")
    tuned = fine_tune(bottlenecks, extractor, trained, settings, observer)
    extractor, bottlenecks, trained = tuned.extractor, tuned.bottlenecks, tuned.trained
    watch.lap("fine-tuning")
    if settings.bottlenecks.export_file:
        export_vectors(bottlenecks, extractor, settings.bottlenecks.export_file)
    model = Model(trained.head, fit_trust(trained.head, bottlenecks), bottlenecks.factors)
    result, graph = export_and_test(model, bottlenecks, extractor, settings, notes, observer)
    watch.lap("export and test")
    others = make_other_formats(graph, bottlenecks, settings)
    watch.lap("other formats")
    setting = describe_setting(extractor, dataset.warnings, settings, notes)
    trusted = trust_scores(result, model.trusted.temperature)
    outcome = outcome_of(bottlenecks, trusted, trained.course, sizes, findings)
    record = make_record(setting, replace(outcome, comparison=tuned.comparison))
    thumbnails = Thumbnails()
    contents: dict[str, Content] = {**comparison_contents(tuned, settings)}
    contents |= make_outputs(record, findings, dataset.labels, thumbnails, outputs)
    contents |= {other.path: other.content for other in others}
    write_files({**contents, outputs.graph: graph})
    tuned.remove_checkpoints()
    projected = choose_projected(bottlenecks, outputs.projector_photos)
    write_summaries(trained.log_folder, record, projected, thumbnails)
    list_bad_images(bottlenecks.bad, outputs)
    return Results(
        settings,
        bottlenecks.labels,
        result,
        record,
        others,
        list(tuned.attempts),
        tuned.comparison,
        bottlenecks.bad,
        notes.caveats,
    )
