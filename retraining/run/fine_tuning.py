"""Fine-tuning as a step of a run: tries each method that the settings name, keeps the best."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retraining.bottlenecks import collect
from retraining.bottlenecks.compute import Bottlenecks
from retraining.bottlenecks.extract import Extractor, Job, VectorSource
from retraining.bottlenecks.vectors import Labelled
from retraining.networks.network import BaseNetwork
from retraining.networks.pair import NetworkPair
from retraining.photos.dataset import Example
from retraining.photos.reader import Distortions
from retraining.photos.split import SPLITS, TESTING, TRAINING, VALIDATION
from retraining.report.tensorboard import TensorBoardLog
from retraining.run.notes import RunContext
from retraining.run.settings import FineTuningSettings, RunSettings
from retraining.system.atomic import check_writable, write_files
from retraining.system.observer import Observer
from retraining.system.text import counted
from retraining.training import methods, tuning_graph
from retraining.training.fine_tune import (
    RANDOM_VIEWS,
    Material,
    SplitPhotos,
    Tuner,
    TuningOptions,
    read_state,
)
from retraining.training.head import evaluation_of
from retraining.training.loop import Trained, TrainingError, describe_step

log = logging.getLogger(__name__)


def tuning_options(extractor: Extractor, settings: RunSettings) -> TuningOptions:
    """Returns the TuningOptions, with the precision of the extractor."""
    return replace(settings.fine_tuning.tuning, precision=extractor.settings.precision)


def check_fine_tuning(network: BaseNetwork | NetworkPair, settings: FineTuningSettings) -> None:
    """Refuses, before the run spends hours, a network without weights to train.

    Raises:
        GraphError: there is no layer of the name `freeze_until`.
        TrainingError: no weights are left to train, or there are two networks.
    """
    if not settings.methods:
        return
    if isinstance(network, NetworkPair):
        raise TrainingError(
            "fine-tuning is for one network; name one `NetworkSettings.architecture`"
        )
    folded = tuning_graph.fold_network(network)
    tuning_graph.find_weights(folded, settings.tuning.freeze_until)


@dataclass(frozen=True)
class Tuned:
    """What the run exports; without fine-tuning, all of it is as it was before."""

    extractor: VectorSource
    bottlenecks: Bottlenecks
    trained: Trained
    attempts: Sequence[methods.Attempt] = ()
    comparison: list[dict[str, Any]] | None = None  # as methods.describe returns it

    def remove_checkpoints(self) -> None:
        """Removes the checkpoints of this run, once its outputs are written."""
        for attempt in self.attempts:
            if attempt.checkpoint:
                attempt.checkpoint.unlink(missing_ok=True)


def fine_tune(
    bottlenecks: Bottlenecks,
    extractor: VectorSource,
    trained: Trained,
    run: RunContext,
) -> Tuned:
    """Fine-tunes the network by each method that the settings name; returns the best as Tuned."""
    names = run.settings.fine_tuning.methods
    if not names:
        return Tuned(extractor, bottlenecks, trained)
    single, *_ = extractor.parts  # check_fine_tuning refuses two networks
    frozen = Frozen(bottlenecks, single, trained)
    attempts = [try_method(name, frozen, run) for name in names]
    best, comparison = methods.best_of(attempts), None
    if run.settings.fine_tuning.compare:
        comparison = methods.describe(attempts, best.method)
        log.info(
            f"{best.method} has the lowest cross entropy on the validation photos, so the run "
            f"exports it"
        )
    if best.network is not single.network:
        network = replace(best.network, name=f"{single.network.name}, fine-tuned")
        extractor = tuned = Extractor(network, single.settings)
        bottlenecks = recompute(bottlenecks, tuned, run.observer)
    first = trained.course[-1].number + 1 if trained.course else 0
    course = [replace(step, number=first + step.number) for step in best.course]
    trained = replace(trained, head=best.head, course=[*trained.course, *course])
    return Tuned(extractor, bottlenecks, trained, attempts, comparison)


@dataclass(frozen=True)
class Frozen:
    """The start of every method: the network as it came, its vectors, the head on them."""

    bottlenecks: Bottlenecks
    extractor: Extractor
    trained: Trained


def try_method(method: str, frozen: Frozen, run: RunContext) -> methods.Attempt:
    """Trains by one method; returns the Attempt."""
    if method == methods.HEAD:
        return attempt_head(frozen)
    tuner = make_tuner(method, frozen, run.settings)
    path = Path(run.settings.bottlenecks.folder, "fine_tuning", f"{tuner.digest()[:16]}.npz")
    check_writable(path)
    if state := read_state(path, tuner.state):
        tuner.state = state
        log.info(f"fine-tuning {method} resumes after epoch {state.epoch}")
    elif path.exists():
        log.warning(f"{path} is damaged or cannot be read; fine-tuning {method} starts over")
    steps = tuner.run(lambda content: write_files({path: content}))
    shown = run.observer.progress(f"fine-tuning {method}", "step")
    bar = shown(steps, total=tuner.steps_left())
    with TensorBoardLog(frozen.trained.log_folder, method) as tensorboard:
        for step in bar:
            if step.training and step.validation:
                tensorboard.add(step)
                log.debug(describe_step(step))
                bar.set_postfix_str(f"validation {step.validation.accuracy:.1%}", refresh=False)
    log.info(describe_tuning(tuner, method))
    return attempt_of(tuner, method, frozen.bottlenecks, path)


def attempt_head(frozen: Frozen) -> methods.Attempt:
    """Returns the Attempt of the trained head as it is."""
    head, labelled = frozen.trained.head, frozen.bottlenecks.labelled
    validation, testing = labelled[VALIDATION], labelled[TESTING]
    return methods.Attempt(
        methods.HEAD,
        frozen.extractor.network,
        head,
        evaluation_of(head.probabilities(validation.vectors), validation.targets),
        *methods.tops(head.probabilities(testing.vectors), testing.targets),
        frozen.trained.seconds,
    )


def make_tuner(method: str, frozen: Frozen, settings: RunSettings) -> Tuner:
    """Returns the Tuner of a method, at its start."""
    examples, labelled = frozen.bottlenecks.examples, frozen.bottlenecks.labelled
    training, validation = (  # leaves out the distorted views, which come after all photos
        SplitPhotos(examples[part], labelled[part].targets[: len(examples[part])])
        for part in (TRAINING, VALIDATION)
    )
    network, head = frozen.extractor.network, frozen.trained.head
    views, most = views_of(settings), settings.photos.max_pixels
    material = Material(network, head, training, validation, views, most)
    how = methods.options_of(method, tuning_options(frozen.extractor, settings))
    return Tuner(material, how)


def views_of(settings: RunSettings) -> Distortions:
    """Returns the Distortions of the training photos in fine-tuning."""
    if not settings.fine_tuning.random_views:
        return Distortions()
    return settings.bottlenecks.distortions or replace(RANDOM_VIEWS, seed=settings.seed)


def describe_tuning(tuner: Tuner, method: str) -> str:
    """Returns one line on a Tuner that has ended."""
    state = tuner.state
    first, best = (state.course[epoch][1] for epoch in (0, state.best_epoch))
    line = f"fine-tuning {method}: {counted(state.epoch, 'epoch')} in {state.seconds:.0f} s"
    if not best.count:
        return f"{line}; without validation photos, the run keeps the weights of the last epoch"
    return (
        f"{line}; epoch {state.best_epoch} is the best (0 means before fine-tuning); on "
        f"{counted(best.count, 'validation photo')}: accuracy {first.accuracy:.1%} -> "
        f"{best.accuracy:.1%}, cross entropy {first.cross_entropy:.3f} -> {best.cross_entropy:.3f}"
    )


def attempt_of(
    tuner: Tuner, method: str, bottlenecks: Bottlenecks, checkpoint: Path
) -> methods.Attempt:
    """Returns the Attempt of a Tuner that has ended; `checkpoint` is its file."""
    state, testing = tuner.state, bottlenecks.labelled[TESTING]
    network, head = tuner.result()
    scores = tuner.best_probabilities(SplitPhotos(bottlenecks.examples[TESTING], testing.targets))
    return methods.Attempt(
        method,
        network,
        head,
        state.course[state.best_epoch][1],
        *methods.tops(scores, testing.targets),
        state.seconds,
        state.epoch,
        state.best_epoch,
        tuner.course(),
        checkpoint,
    )


def recompute(bottlenecks: Bottlenecks, extractor: Extractor, observer: Observer) -> Bottlenecks:
    """Computes the Bottlenecks of another network, in memory, without distorted views.

    Photos that can no longer be read join the bad ones.
    """
    examples = [example for part in SPLITS for example in bottlenecks.examples[part]]
    bar = observer.progress("bottlenecks anew", "img")
    answers = bar(extractor.run([Job(example) for example in examples]), total=len(examples))
    kept, vectors, lost = collect.collect(answers, examples, extractor.network.width)
    split: dict[str, list[Example]] = {}
    labelled: dict[str, Labelled] = {}
    for part in SPLITS:
        rows = [row for row, example in enumerate(kept) if example.split == part]
        split[part] = [kept[row] for row in rows]
        names = [example.label for example in split[part]]
        labelled[part] = Labelled.of(vectors[rows], names, bottlenecks.labels)
    bad = [*bottlenecks.bad, *lost]
    return replace(bottlenecks, examples=split, labelled=labelled, bad=bad, imported=set())


def comparison_contents(tuned: Tuned, settings: RunSettings) -> dict[str, bytes]:
    """Returns {path: bytes} of the table of compared methods.

    Without a comparison, the table of an earlier run becomes empty, since it describes a graph that
    this run replaces. A file that is not such a table stays as it is.
    """
    path = settings.outputs.comparison
    if settings.fine_tuning.compare or methods.is_table(path):
        return {path: methods.table_bytes(tuned.comparison or ())}
    return {}
