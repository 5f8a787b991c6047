"""The head of a run: trains it, fits its temperature and its score for unknown images."""

import logging
import math
import time

from retraining.bottlenecks.compute import Bottlenecks
from retraining.bottlenecks.extract import VectorSource
from retraining.bottlenecks.vectors import Labelled
from retraining.evaluation import learning_curve
from retraining.evaluation.learning_curve import SizePoint
from retraining.evaluation.temperature import (
    FEWEST_PHOTOS,
    TEMPERATURES,
    fit_temperature,
    temperature_gain,
    why_no_temperature,
)
from retraining.evaluation.unknown import fit_unknown
from retraining.metrics.classification import far_below
from retraining.photos.split import SPLITS, TRAINING, VALIDATION
from retraining.report.tensorboard import TensorBoardLog
from retraining.run.model import Trusted, store_intermediate
from retraining.run.notes import RunContext
from retraining.run.settings import RunSettings
from retraining.system.addresses import dataset_name
from retraining.system.observer import Late
from retraining.training import search
from retraining.training.head import Evaluation, Head
from retraining.training.head import evaluate as evaluate_head
from retraining.training.loop import Step, Trained, describe_step, train

log = logging.getLogger(__name__)

SHORT_TRIAL = 100  # steps; plain descent overshoots in the first ones
LIMITED = "; this is the limit of the search, and a value beyond it would be better"
MOST_HELD_OUT = 2_000  # photos that judge heads trained on fewer photos


def train_head(
    bottlenecks: Bottlenecks,
    extractor: VectorSource,
    run: RunContext,
) -> Trained:
    """Trains the head; shows its course in TensorBoard and to the observer."""
    if run.settings.head.search:
        return find_head(bottlenecks, extractor, run)
    how, started = run.settings.head.training, time.perf_counter()
    course: list[Step] = []
    training, validation = (bottlenecks.labelled[part] for part in (TRAINING, VALIDATION))
    steps = train(training, validation, len(bottlenecks.labels), how)
    bar = run.observer.progress("training", "step")(
        steps, total=how.steps_for(len(training.targets))
    )
    with open_log(extractor, run.settings) as tensorboard:
        for step in bar:
            if step.training and step.validation:
                tensorboard.add(step)
                course.append(step)
                log.debug(describe_step(step))
                if step.validation.count:
                    accuracy = f"validation {step.validation.accuracy:.1%}"
                    bar.set_postfix_str(accuracy, refresh=False)
            store_intermediate(step, bottlenecks, extractor, run)
    describe_end(step)
    held_out = evaluate_head(step.head, validation.vectors, validation.targets)
    warn_of_scores(held_out, len(bottlenecks.labels), step.number + 1)
    seconds = time.perf_counter() - started
    return Trained(step.head, course, tensorboard.folder, how, seconds)


def open_log(extractor: VectorSource, settings: RunSettings) -> TensorBoardLog:
    """Returns the log of a run for TensorBoard, in a new folder named after what it trains."""
    networks = [part.network.name for part in extractor.parts]
    tags = [dataset_name(settings.photos.image_dir), *networks]
    return TensorBoardLog(settings.outputs.summaries_folder, tags=tags)


def describe_end(step: Step) -> None:
    """Logs how training ended; `step` is the last one."""
    log.info(describe_step(step))
    if step.kept is not None:
        log.info(
            f"training ended at step {step.number}; the run keeps the head of step "
            f"{step.kept}, which has the lowest validation cross entropy"
        )


def find_head(bottlenecks: Bottlenecks, extractor: VectorSource, run: RunContext) -> Trained:
    """Trains heads with several strengths of L2; logs each candidate and returns the best."""
    found, settings, started = [], run.settings, time.perf_counter()
    training, validation = (bottlenecks.labelled[part] for part in (TRAINING, VALIDATION))
    classes, how = len(bottlenecks.labels), settings.head.training
    with Late(run.observer.progress("training", "step")) as shown:
        for candidate in search.candidates(training, validation, classes, how, shown.update):
            found.append(candidate)
            log.info(describe_candidate(candidate))
    best, course = search.best(found), search.course_of(found)
    with open_log(extractor, settings) as tensorboard:
        for step in course:
            tensorboard.add(step)
    log.info(
        f"`TrainingOptions.l2` {best.options.l2:.3g} has the lowest validation cross entropy, "
        f"so the run uses it"
    )
    seconds = time.perf_counter() - started
    return Trained(best.head, course, tensorboard.folder, best.options, seconds)


def describe_candidate(candidate: search.Candidate) -> str:
    """Returns one line on a Candidate."""
    found = candidate.validation
    return (
        f"`TrainingOptions.l2` {candidate.options.l2:.3g}: validation accuracy "
        f"{found.accuracy:.1%}, cross entropy {found.cross_entropy:.3f}"
    )


def warn_of_scores(held_out: Evaluation, classes: int, steps: int) -> None:
    """Warns if the cross entropy on held-out photos is much worse than that of guessing."""
    guessing = math.log(classes)
    if not held_out.count or held_out.cross_entropy <= guessing + 1:
        return
    shorter_or_longer = "longer" if steps < SHORT_TRIAL else "shorter"
    log.warning(
        f"the cross entropy {held_out.cross_entropy:.2f} on the validation photos is far above "
        f"that of guessing, {guessing:.2f}: the model is very sure of its wrong answers; train "
        f"{shorter_or_longer}, lower `TrainingOptions.learning_rate`, or give "
        f"`HeadSettings.search`"
    )


def try_fewer_photos(
    bottlenecks: Bottlenecks, trained: Trained, run: RunContext
) -> list[SizePoint]:
    """Returns the SizePoints, which tell whether more photos help; ignores distorted views.

    There are none if that would take too long, or if the quickly trained heads are far less
    accurate than the trained one.
    """
    training, *parts = (bottlenecks.labelled[part] for part in SPLITS)
    photos, classes = len(bottlenecks.examples[TRAINING]), len(bottlenecks.labels)
    weights = sum(array.size for array in trained.head.parameters)
    if reason := learning_curve.limit(photos, weights, classes, trained.settings):
        log.info(f"skipped training on fewer photos, which tells whether more would help: {reason}")
        return []
    held_out = Labelled.join([part.thinned(MOST_HELD_OUT // 2) for part in parts])
    bar = run.observer.progress("training on fewer photos", "head")
    with Late(bar, len(learning_curve.SIZE_SHARES)) as shown:
        points = learning_curve.compare_sizes(
            training.first(photos), held_out, classes, trained.settings, shown.update
        )
    right = trained.head.logits(held_out.vectors).argmax(axis=1) == held_out.targets
    return [] if points and far_below(points[-1].right, right) else points


def fit_trust(head: Head, bottlenecks: Bottlenecks) -> Trusted:
    """Fits the temperature and the score for unknown images; logs one line on each."""
    validation = bottlenecks.labelled[VALIDATION]
    logits, count = head.logits(validation.vectors), len(validation.targets)
    temperature = fit_temperature(logits, validation.targets)
    if reason := why_no_temperature(logits, validation.targets):
        log.info(f"scores are not calibrated (plain softmax): {reason}")
    else:
        before, after = temperature_gain(logits, validation.targets, temperature)
        log.info(
            f"temperature {temperature:.2f} fitted on {count} validation photos: cross entropy "
            f"{before:.3f} -> {after:.3f}" + LIMITED * (temperature in TEMPERATURES)
        )
    # The photos themselves come before their distorted views.
    training = bottlenecks.labelled[TRAINING].vectors[: len(bottlenecks.examples[TRAINING])]
    unknown = fit_unknown(training, head, validation.vectors)
    log.info(
        f"fitted a score for unknown images on {count} validation photos"
        if unknown
        else f"no score for unknown images: that needs {FEWEST_PHOTOS} validation photos"
    )
    if count < FEWEST_PHOTOS:
        log.info(
            "to get both, raise `SplitOptions.validation`, or put more "
            "photos into the validation split if you divide the photos yourself"
        )
    return Trusted(temperature, unknown)
