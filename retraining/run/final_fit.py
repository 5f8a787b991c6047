"""The last training of a run: the head on all photos, after its figures were taken."""

import logging
from dataclasses import replace

from retraining.bottlenecks.compute import Bottlenecks
from retraining.bottlenecks.vectors import Labelled
from retraining.photos.split import SPLITS
from retraining.run.export import Exported, write_and_evaluate
from retraining.run.fine_tuning import Tuned
from retraining.run.notes import RunContext
from retraining.run.settings import ALL
from retraining.training.head import Head
from retraining.training.loop import Trained, TrainingOptions, train

log = logging.getLogger(__name__)


def fit_on_all(exported: Exported, tuned: Tuned, run: RunContext) -> Exported:
    """Trains the head on the photos of all splits and exports it, if the settings ask for that.

    The figures stay those of the head that has not seen the test photos, and so do the temperature
    and the score for unknown images.

    Raises:
        ExportError: the file does not answer as the head does.
        TrainingError: training went astray.
    """
    if run.settings.head.final_fit != ALL:
        return exported
    model = replace(exported.model, head=train_on_all(tuned.bottlenecks, tuned.trained))
    graph, _ = write_and_evaluate(model, exported.held_out, tuned, run)
    count = sum(map(len, tuned.bottlenecks.examples.values()))
    log.info(
        f"the exported layer was trained on all {count} photos after these figures were measured"
    )
    return replace(exported, model=model, graph=(graph,))


def train_on_all(bottlenecks: Bottlenecks, trained: Trained) -> Head:
    """Returns a head that is trained on the vectors of all splits as the run's head was."""
    photos = Labelled.join([bottlenecks.labelled[part] for part in SPLITS])
    *_, last = train(photos, photos.first(0), len(bottlenecks.labels), options_for_all(trained))
    return last.head


def options_for_all(trained: Trained) -> TrainingOptions:
    """Returns the options of the head, with as many steps as early stopping kept of it."""
    options = trained.settings
    if not options.early_stopping:
        return options
    evaluated = [step for step in trained.course if step.validation]
    kept = min(evaluated, key=lambda step: step.evaluations[1].cross_entropy)
    return replace(options, early_stopping=None, epochs=None, steps=kept.number + 1)
