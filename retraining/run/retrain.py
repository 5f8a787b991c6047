"""The run: photos, network, vectors, head, evaluation, export, report, results."""

from collections.abc import Callable
from dataclasses import replace

from retraining.run.audit import end_audit, start_audit
from retraining.run.cross_validation import cross_validate_photos
from retraining.run.delivery import Diagnostics, Results, deliver
from retraining.run.export import describe_exported, export_and_test, make_other_formats
from retraining.run.final_fit import fit_on_all
from retraining.run.fine_tuning import fine_tune
from retraining.run.head import train_head, try_fewer_photos
from retraining.run.leaks import leave_out_leaks
from retraining.run.network import read_network
from retraining.run.notes import RunContext, RunNotes
from retraining.run.photos import compute_vectors, find_photos
from retraining.run.settings import RunSettings
from retraining.run.twins import end_twins, start_twins
from retraining.system.observer import Observer, Silent


def retrain(
    settings: RunSettings,
    observer: Observer | None = None,
    worded: Callable[[str], str] = str,
) -> Results:
    """Retrains a classifier on a folder of photos, tests it, and writes it.

    `worded` may reword the texts that the files keep, and the caveats: they name settings as
    `Class.field`.

    Raises:
        RetrainingError: a problem that the user can solve. No output of an earlier run was
            replaced, but for the list of bad images if these end the run.
    """
    run = RunContext(settings, observer or Silent(), RunNotes(worded))
    photos = find_photos(run)
    run.lap("reading photos")
    extractor = read_network(run)
    run.lap("reading the network")
    bottlenecks = compute_vectors(photos, extractor, run)
    bottlenecks = leave_out_leaks(bottlenecks, run)
    run.lap("bottlenecks")
    trained = train_head(bottlenecks, extractor, run)
    run.lap("training")
    auditing = start_audit(bottlenecks, trained.head, settings)  # goes on beside the next steps
    sizes = try_fewer_photos(bottlenecks, trained, run)
    run.lap("trying fewer photos")
    validated = cross_validate_photos(bottlenecks, run)
    run.lap("cross-validation")
    tuned = fine_tune(bottlenecks, extractor, trained, run)
    run.lap("fine-tuning")
    making = start_twins(tuned.extractor, settings)  # for label_image.py
    exported = export_and_test(tuned, run)
    exported = fit_on_all(exported, tuned, run)
    exported = describe_exported(exported, tuned, run)
    run.lap("export and test")
    findings = end_audit(auditing, settings)
    run.lap("label audit")
    others = make_other_formats(exported, tuned, run)
    run.lap("other formats")
    exported = replace(exported, twins=end_twins(making, settings))
    run.lap("LiteRT model for labelling")
    return deliver(tuned, exported, others, Diagnostics(findings, sizes, validated), run)
