"""Retrains an image classifier on your own photos.

A frozen network turns each photo into a vector (its bottleneck), which is kept on disk; a new
softmax layer is trained on the vectors; the result is one frozen graph and a file of labels.
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Until main has set its own handlers, Ctrl-C just ends the program: no traceback of imports.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from retraining.python_version import refuse_old_python

refuse_old_python()  # before imports that an old Python does not parse or have

import math
import os
import time
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial

from retraining.bottlenecks.compute import (
    compute_bottlenecks,
    export_vectors,
    import_exported,
    make_extractor,
    open_store,
    tell_notes,
)
from retraining.bottlenecks.file_keys import FileKeys
from retraining.bottlenecks.prefill import learn_keys, prefill, read_here
from retraining.bottlenecks.ray_engine import RAY
from retraining.bottlenecks.vectors import Labelled
from retraining.cli.console import (
    DONE,
    ConsoleObserver,
    is_quiet,
    leave,
    progress_bar,
    reports_errors,
    set_verbosity,
)
from retraining.cli.flags import network_choice, parse_flags
from retraining.evaluation import label_audit, trust
from retraining.evaluation.learning_curve import compare_sizes
from retraining.evaluation.temperature import (
    FEWEST_PHOTOS,
    apply_temperature,
    fit_temperature,
    temperature_gain,
    why_no_temperature,
)
from retraining.evaluation.unknown import UnknownScore, fit_unknown
from retraining.examples import provide
from retraining.examples.provide import is_example_folder
from retraining.export import changes, formats, verify
from retraining.export.build import (
    ExportError,
    build_graph,
    describe,
    features_node,
    labels_bytes,
    metadata_bytes,
)
from retraining.graphs import write
from retraining.metrics import classification
from retraining.networks import registry
from retraining.networks.pair import JOINT, fold_scale
from retraining.networks.registry import DEFAULT, EMBEDDED, NetworkError, obtain
from retraining.photos.dataset import FEW_IMAGES, load_dataset
from retraining.photos.exclude import without
from retraining.photos.listing import list_url
from retraining.photos.places import facts_of as facts_of_file
from retraining.photos.places import is_url
from retraining.photos.scan import DatasetError, ScanOptions, hash_file, holds_images, list_photos
from retraining.photos.split import SPLITS, TESTING, TRAINING, VALIDATION, SplitOptions
from retraining.photos.thumbnails import Thumbnails
from retraining.report import html
from retraining.report.record import (
    Setting,
    Stopwatch,
    confusion_of,
    make_record,
    metrics_bytes,
    outcome_of,
)
from retraining.report.tensorboard import (
    Projected,
    TensorBoardLog,
    write_confusion,
    write_projector,
)
from retraining.run.outputs import bad_images_path, output_paths
from retraining.run.tuning import (
    check_fine_tuning,
    comparison_contents,
    fine_tune,
    print_comparison,
)
from retraining.system.atomic import check_writable, write_files
from retraining.system.text import counted, escaped, table
from retraining.training import search
from retraining.training.head import Head
from retraining.training.head import evaluate as evaluate_head
from retraining.training.loop import Trained, TrainingOptions, describe_step, train

PROJECT = os.path.dirname(os.path.abspath(__file__))
MOST_HELD_OUT = 2_000  # photos on which layers trained on fewer photos are compared
TRY_ON = (TESTING, VALIDATION, TRAINING)  # other formats are tried on the first of these there is
MOST_LISTED = 20  # files that were left out; the others are in a file

INTERRUPTED = "interrupted; what was computed so far is kept, the same command goes on from there"


@partial(reports_errors, interrupted=INTERRUPTED)
def main(argv=None):
    """The whole way: photos -> vectors -> softmax layer -> graph, tested on held-out photos."""
    options = parse_flags(argv, __doc__)
    log = set_verbosity(options.logging_verbosity)
    observer, watch = ConsoleObserver(is_quiet(options)), Stopwatch()
    provide_example_images(options, log)
    scan = look_at_photos(options)
    dataset = None if reads_once(options) else read_photos(scan, options, log)
    watch.lap("reading photos")
    chosen = choose_networks(options, log)
    check_outputs([path for _, path in chosen], options)
    extractor = make_extractor(chosen, options)
    check_fine_tuning(extractor.network, options)
    watch.lap("reading the network")
    import_exported(extractor, options, observer)
    dataset = dataset or read_photos_once(scan, extractor, options, log)
    bottlenecks = compute_bottlenecks(dataset, extractor, options, observer)
    report_bad_images(bottlenecks, dataset, options, log)
    watch.lap("bottlenecks")
    findings = audit_photos(bottlenecks, options, log)
    watch.lap("label audit")
    trained = train_head(bottlenecks, extractor, options, log)
    watch.lap("training")
    sizes = try_fewer_photos(bottlenecks, trained.settings)
    watch.lap("trying fewer photos")
    tuned = fine_tune(bottlenecks, extractor, trained, options, observer)
    extractor, bottlenecks, trained = tuned.extractor, tuned.bottlenecks, tuned.trained
    watch.lap("fine-tuning")
    export_vectors(bottlenecks, extractor, options)
    model = Model(trained.head, fit_trust(trained.head, bottlenecks, log), bottlenecks.factors)
    result, graph = export_and_test(model, bottlenecks, extractor, options, log)
    watch.lap("export and test")
    others = make_other_formats(graph, bottlenecks, options, log)
    watch.lap("other formats")
    setting = describe_setting(extractor, dataset, watch, options)
    trusted = trust_scores(result, model.trusted.temperature)
    outcome = outcome_of(bottlenecks, trusted, trained.course, sizes, findings)
    record = make_record(setting, replace(outcome, comparison=tuned.comparison))
    thumbnails = Thumbnails()
    contents = comparison_contents(tuned, options)
    contents |= make_outputs(record, findings, dataset.labels, thumbnails, options)
    contents |= {other.path: other.content for other in others}
    write_files({**contents, options.output_graph: graph})
    tuned.remove_checkpoints()
    projected = choose_projected(bottlenecks, options.projector_photos)
    write_summaries(trained.log_folder, record, projected, thumbnails, log)
    print_results(result, bottlenecks, options, log)
    for other in others:
        print(f"{other.name}\t{escaped(other.path)}")
    print_comparison(tuned, options)
    return DONE


# -- the four steps --------------------------------------------------------------------------


def provide_example_images(options, log):
    """Fills the example folder if it is asked for and empty; says if its pictures are drawings."""
    folder = options.image_dir
    if is_example_folder(folder, PROJECT) and not holds_images(folder):
        bar = progress_bar("drawing", "img", is_quiet(options))
        reason = provide.provide(folder, options.offline, bar)
        if reason:
            log.warning(f"the example photos could not be fetched ({reason}); drew flowers instead")
    caveat = provide.caveat(folder)
    if caveat:
        options.caveats.append(caveat)
        log.warning(caveat)


def reads_once(options):
    """Whether photos are read once, for keys and vectors, and not here or from far away."""
    return is_url(options.image_dir) or options.engine == RAY


def look_at_photos(options):
    """The dataset.ScanOptions; with the listing of --image_dir, if that is a URL.

    Raises:
        PlaceError: it cannot be listed.
        DatasetError: as `list_photos`; of a URL only.
    """
    scan = ScanOptions(options.recursive, options.max_image_pixels, options.listed)
    if is_url(options.image_dir):
        scan = replace(scan, listing=list_url(options.image_dir))
        list_photos(options.image_dir, scan)  # before anything else is done
    return scan


def file_keys(scan, options):
    """The FileKeys of what is to be scanned."""
    facts_of = scan.listing.facts.__getitem__ if scan.listing else facts_of_file
    return FileKeys(options.bottleneck_dir, hash_file, facts_of)


def read_photos_once(scan, extractor, options, log):
    """As `read_photos`, but first the photos whose keys or vectors are not known are fetched, each
    once, for both."""
    photos, _, _ = list_photos(options.image_dir, scan)
    photos, _, _ = without(photos, scan.listed, options.image_dir)
    paths = [path for of_class in photos.values() for path in of_class]
    bar = progress_bar("bottlenecks", "img", is_quiet(options))
    first, *_ = extractor.parts  # a second network's vectors take a reading of their own
    read = first.read if options.engine == RAY else partial(read_here, first)
    with file_keys(scan, options) as files, open_store(first, options) as store:
        if options.import_vectors:  # to find those photos whose vectors are there now
            learn_keys(paths, files, progress_bar("hashing photos", "img", is_quiet(options)))
        filled = prefill(paths, files, store, read, bar)
        tell_notes([store])
    if scan.listing:
        reasons = {**scan.listing.reasons, **filled.no_images}
        scan = replace(scan, listing=replace(scan.listing, reasons=reasons))
    dataset = read_photos(scan, options, log, filled.keys)
    return replace(dataset, broken=filled.broken)


def read_photos(scan, options, log, keys=None):
    """The Dataset in --image_dir, its oddities said on stderr; {path: key} of `keys` are known."""
    split = SplitOptions(
        options.validation_percentage,
        options.testing_percentage,
        options.split_by,
        options.stratified,
    )
    keys = keys or {}
    with file_keys(scan, options) as files:
        dataset = load_dataset(
            options.image_dir, split, lambda path: keys.get(path) or files.key_of(path), scan
        )
    for warning in dataset.warnings:
        log.warning(warning)
    options.excluded_photos = dataset.excluded
    if options.exclude:
        log.info(
            f"{counted(dataset.excluded, 'photo is', 'photos are')} excluded by {options.exclude}; "
            f"where what is excluded is hard, not wrong, the test accuracy looks better than it is"
        )
    counts = ", ".join(
        f"{len(dataset.split(part))} for {part}" for part in (TRAINING, VALIDATION, TESTING)
    )
    copies = len(dataset.examples) - len({example.key for example in dataset.examples})
    if copies:
        said = counted(copies, "photo is a copy of another", "photos are copies of others")
        log.info(f"{said}; each content is computed once")
    log.info(f"{len(dataset.examples)} photos of {len(dataset.labels)} classes: {counts}")
    if options.assert_accuracy_at_least is not None and not dataset.split(TESTING):
        raise DatasetError("no photo is held out, which --assert_accuracy_at_least needs; add some")
    return dataset


def choose_networks(options, log):
    """[(Network, its file)] of one network, or of the two that were asked for."""
    names = (options.architecture or "").split(JOINT)
    if len(names) == 1:
        return [choose_network(options, log)]
    places = options.model_dir, is_quiet(options), options.offline
    both = [registry.find(name, network_choice(options, name)) for name in names]
    return [(known, obtain(known, *places, by_file=False)) for known in both]


def choose_network(options, log):
    """(Network, its file): what was asked for, or Inception-v3, or else the embedded network."""
    name = options.architecture or DEFAULT
    wanted = registry.find(name, network_choice(options, name))
    if options.model_file and options.architecture != registry.SAVED_MODEL:
        return wanted, options.model_file
    quiet, folder = is_quiet(options), options.model_dir
    try:
        return wanted, obtain(wanted, folder, quiet, options.offline)
    except NetworkError as error:
        if options.architecture:
            raise
        options.caveats.append(f"{EMBEDDED} is used, since {error}")
        log.warning(options.caveats[-1])
    return registry.find(EMBEDDED), obtain(registry.find(EMBEDDED), folder, quiet, options.offline)


def check_outputs(network_paths, options):
    """Refuses, before hours are spent, outputs that cannot be written or would replace a network.

    Raises:
        ExportError: one of them is, or may become, a base network.
        WriteError: one of them is a folder, or in one that cannot be written to.
    """
    taken = set(map(os.path.realpath, network_paths))
    for path in output_paths(options).values():
        if os.path.realpath(path) in taken:
            raise ExportError(f"{path} is the base network; choose another output")
        check_writable(path)
    formats.check_possible(formats.asked_for(options))
    folders = [options.summaries_dir]
    if options.saved_model_dir:
        folders.append(options.saved_model_dir)
    if options.intermediate_store_frequency:
        folders.append(options.intermediate_output_graphs_dir)
        if os.path.realpath(folders[-1]) in map(os.path.dirname, taken):
            raise ExportError(f"{folders[-1]} holds the base network; choose another folder")
    for folder in folders:
        check_writable(os.path.join(folder, "any file"))


def check_classes(examples, labels, log):
    """Says which classes bad photos have made small; `examples` is a dict of the splits' lists.

    Raises:
        DatasetError: one has no training images left.
    """
    for label in labels:
        left = {part: sum(e.label == label for e in examples[part]) for part in SPLITS}
        if not left[TRAINING]:
            raise DatasetError(f"no readable image of {label} is left for training; add some")
        if sum(left.values()) < FEW_IMAGES:
            log.warning(f"only {counted(sum(left.values()), 'readable image')} of {label} left")


def report_bad_images(bottlenecks, dataset, options, log):
    """Writes the list of files that were left out; refuses to go on if they are too many."""
    bad = bottlenecks.bad
    path = bad_images_path(options)
    if bad or os.path.exists(path):
        text = table([("path", "reason"), *((image.path, image.reason) for image in bad)])
        write_files({path: text.encode("utf-8", "surrogateescape")})
    claimed = sum(image.claimed for image in bad)
    images = claimed + sum(len(examples) for examples in bottlenecks.examples.values())
    if claimed > options.max_bad_fraction * images:
        list_bad_images(bad, options, log)
        raise DatasetError(
            f"{claimed} of {images} images cannot be read, more than --max_bad_fraction "
            f"{options.max_bad_fraction:g} allows; see {path}"
        )
    if len(bad) > len(dataset.bad):
        check_classes(bottlenecks.examples, bottlenecks.labels, log)


def list_bad_images(bad, options, log):
    """Names files that were left out, with the reasons; where there are many, the first."""
    for image in bad[:MOST_LISTED]:
        log.warning(f"left out: {image.path} {image.reason}")
    if len(bad) > MOST_LISTED:
        log.warning(f"{len(bad)} files were left out, see {bad_images_path(options)}")


def audit_photos(bottlenecks, options, log):
    """The audit.Findings on all photos, or None if there is no audit."""
    if not options.label_audit:
        return None
    count = sum(map(len, bottlenecks.examples.values()))
    reason = label_audit.limit(count, len(bottlenecks.labels))
    if reason:
        log.warning(f"no label audit: {reason}")
        return None
    findings = label_audit.audit(undistorted(bottlenecks), options.seed)
    log.info(f"{describe_audit(findings)}: {options.label_audit}")
    return findings


def undistorted(bottlenecks):
    """The audit.Photos of all splits: each photo once, without its distorted views."""
    parts = [
        (bottlenecks.examples[part], bottlenecks.labelled[part])
        for part in SPLITS
        if bottlenecks.examples[part]
    ]
    examples = [example for of_split, _ in parts for example in of_split]
    photos = Labelled.join([labelled.first(len(of_split)) for of_split, labelled in parts])
    return label_audit.Photos(
        [example.path for example in examples],
        [example.key for example in examples],
        bottlenecks.labels,
        photos.truth,
        photos.vectors,
    )


def describe_audit(findings):
    """One line on audit.Findings."""
    counts = Counter(finding.reason for finding in findings)
    wrong = counted(counts[label_audit.LABEL], "label looks", "labels look")
    doubles = counted(counts[label_audit.DUPLICATE], "near-duplicate")
    return (
        f"label audit: {wrong} wrong, {counts[label_audit.DOUBT]} doubtful, {doubles}, "
        f"{counts[label_audit.ELSEWHERE]} in another class"
    )


def training_options(options):
    """The flags as TrainingOptions."""
    return TrainingOptions(
        options.how_many_training_steps,
        options.learning_rate,
        options.train_batch_size,
        options.validation_batch_size,
        options.eval_step_interval,
        options.seed,
        options.optimizer,
        options.hidden_units or (),
        options.dropout,
        options.l2,
        options.label_smoothing,
        options.class_weights,
        options.epochs,
        options.early_stopping,
    )


def find_head(bottlenecks, options, log):
    """The Trained softmax layer of --head auto, a line per candidate on the way."""
    found, started = [], time.perf_counter()
    training, validation = (bottlenecks.labelled[part] for part in (TRAINING, VALIDATION))
    classes, settings = len(bottlenecks.labels), training_options(options)
    for candidate in search.candidates(training, validation, classes, settings):
        found.append(candidate)
        log.info(describe_candidate(candidate))
    best, course = search.best(found), search.course_of(found)
    with TensorBoardLog(options.summaries_dir) as tensorboard:
        for step in course:
            tensorboard.add(step)
    log.info(f"--l2 {best.options.l2:.3g} has the lowest validation cross entropy and is taken")
    seconds = time.perf_counter() - started
    return Trained(best.head, course, tensorboard.folder, best.options, seconds)


def describe_candidate(candidate):
    """One line on a heads.Candidate."""
    found = candidate.validation
    return (
        f"--l2 {candidate.options.l2:.3g}: validation accuracy {found.accuracy:.1%}, cross "
        f"entropy {found.cross_entropy:.3f}"
    )


def train_head(bottlenecks, extractor, options, log):
    """The Trained head; its course goes to TensorBoard and onto a progress line."""
    if options.head == "auto":
        return find_head(bottlenecks, options, log)
    settings, course, started = training_options(options), [], time.perf_counter()
    training, validation = (bottlenecks.labelled[part] for part in (TRAINING, VALIDATION))
    steps = train(training, validation, len(bottlenecks.labels), settings)
    total = settings.steps_for(len(training.truth))
    bar = progress_bar("training", "step", is_quiet(options))(steps, total=total)
    with TensorBoardLog(options.summaries_dir) as tensorboard:
        for step in bar:
            if step.training:
                tensorboard.add(step)
                course.append(step)
                log.debug(describe_step(step))
                if step.validation.count:
                    accuracy = f"validation {step.validation.accuracy:.1%}"
                    bar.set_postfix_str(accuracy, refresh=False)
            store_intermediate(step, bottlenecks, extractor, options)
    log.info(describe_step(step))
    if step.kept is not None:
        log.info(
            f"ended at step {step.number}; the head of step {step.kept} is kept, which had the "
            f"lowest validation cross entropy"
        )
    held_out = evaluate_head(step.head, validation.vectors, validation.truth)
    warn_of_scores(held_out, len(bottlenecks.labels), log)
    seconds = time.perf_counter() - started
    return Trained(step.head, course, tensorboard.folder, settings, seconds)


def warn_of_scores(found, classes, log):
    """Says if an Evaluation on the validation photos has scores that are worse than guessing's."""
    if found.count and found.cross_entropy > math.log(classes) + 1:
        log.warning(
            f"the cross entropy {found.cross_entropy:.2f} on the validation photos is far above "
            f"that of guessing, {math.log(classes):.2f}: wrong answers are given as sure; train "
            f"shorter, lower --learning_rate, or give --head auto"
        )


def try_fewer_photos(bottlenecks, settings):
    """The train.SizePoints that say whether more photos would help; distorted views left out."""
    training, *held_out = (bottlenecks.labelled[part] for part in SPLITS)
    return compare_sizes(
        training.first(len(bottlenecks.examples[TRAINING])),
        Labelled.join([part.thinned(MOST_HELD_OUT // 2) for part in held_out]),
        len(bottlenecks.labels),
        settings,
    )


@dataclass(frozen=True)
class Trusted:
    """How far to trust the head's answers, as fitted on the validation photos."""

    temperature: float = 1.0
    unknown: UnknownScore | None = None


@dataclass(frozen=True)
class Model:
    """What is exported: the softmax layer, and how far to trust it.

    Both are for vectors multiplied by `factors`, as Bottlenecks holds them.
    """

    head: Head
    trusted: Trusted
    factors: object = None

    @property
    def unknown(self):
        """The trust.UnknownScore for vectors as the networks give them, or None."""
        score = self.trusted.unknown
        if not score or self.head.hidden:  # behind hidden layers the factors are in the weights
            return score
        return replace(score, factors=self.factors)


def fit_trust(head, bottlenecks, log):
    """The temperature and the score for unknown images, each with a line on how it was fitted."""
    validation = bottlenecks.labelled[VALIDATION]
    logits, count = head.logits(validation.vectors), len(validation.truth)
    temperature = fit_temperature(logits, validation.truth)
    reason = why_no_temperature(logits, validation.truth)
    if reason:
        log.info(f"scores stay the plain softmax, since {reason}")
    else:
        before, after = temperature_gain(logits, validation.truth, temperature)
        log.info(
            f"temperature {temperature:.2f} fitted on {count} validation photos: cross entropy "
            f"{before:.3f} -> {after:.3f}"
        )
    # The photos themselves come first, before their distorted views.
    training = bottlenecks.labelled[TRAINING].vectors[: len(bottlenecks.examples[TRAINING])]
    unknown = fit_unknown(training, head, validation.vectors)
    log.info(
        f"a score for unknown images fitted on {count} validation photos"
        if unknown
        else f"no score for unknown images: it needs {FEWEST_PHOTOS} validation photos; see "
        "--validation_percentage"
    )
    return Trusted(temperature, unknown)


def store_intermediate(step, bottlenecks, extractor, options):
    """Writes the graph as it is after this step, every --intermediate_store_frequency steps."""
    frequency = options.intermediate_store_frequency
    if not frequency or step.number == 0 or step.number % frequency:
        return
    path = os.path.join(options.intermediate_output_graphs_dir, f"intermediate_{step.number}.pb")
    graph = build(Model(step.head, Trusted(), bottlenecks.factors), extractor, options)
    description = describe_model(bottlenecks.labels, extractor, options)
    write_files({path: graph + metadata_bytes(description)})


def build(model, extractor, options):
    """The bytes of the retrained graph, without its description."""
    head = model.head if model.factors is None else fold_scale(model.head, model.factors)
    return write.graph_bytes(build_graph(extractor.network, head, options.final_tensor_name))


def describe_model(labels, extractor, options, **facts):
    """What the graph says of itself: how to use it, the options, and what else is known."""
    chosen = dict(vars(options))
    del chosen["listed"]
    facts |= {"precision": extractor.settings.precision}
    facts |= {"caveats": chosen.pop("caveats"), "options": chosen}
    return describe(extractor.network, labels, options.final_tensor_name, facts)


def export_and_test(model, bottlenecks, extractor, options, log):
    """(export.HeldOutResult, bytes of the graph): written beside its place and tried there."""
    labels, held_out = bottlenecks.labels, bottlenecks.examples[TESTING]
    most = verify.MOST_TESTED if options.test_batch_size == -1 else options.test_batch_size
    rows = classification.choose_rows(len(held_out), min(most, verify.MOST_TESTED))
    graph = build(model, extractor, options)
    untested = metadata_bytes(describe_model(labels, extractor, options))
    bar = progress_bar("final test", "img", is_quiet(options))
    with verify.candidate(options.output_graph, graph, untested) as path:
        result = verify.test_exported(path, [held_out[row] for row in rows], extractor, bar)
    if result.total < len(rows):
        lost = counted(len(rows) - result.total, "test photo has", "test photos have")
        log.warning(f"{lost} vanished or changed meanwhile")
    expected = model.head.probabilities(expected_vectors(result, bottlenecks))
    verify.check_agreement(result, expected)
    verify.check_accuracy(result, options.assert_accuracy_at_least)
    facts = {
        "features": features_node(extractor.network, model.head),
        "results": verify.describe_result(result),
        "trust": trust.described(model.trusted.temperature, model.unknown),
    }
    description = describe_model(labels, extractor, options, **facts)
    tested = metadata_bytes(description, trust.constants(model.unknown))
    before = changes.read_description(options.output_graph)
    if result.total < len(held_out):
        log.info(f"{result.total} of {len(held_out)} test photos were tested")
    for line in (describe_test(result), *changes.describe_changes(before, result, labels)):
        log.info(line)
    if result.total and model.trusted.temperature != 1:
        log.info(describe_calibration(result, model.trusted.temperature))
    return result, graph + tested


def make_other_formats(graph, bottlenecks, options, log):
    """The formats.Made of the graph (bytes) that the flags ask for, each tried on photos."""
    wanted = formats.asked_for(options)
    if not wanted:
        return []
    log.info(f"converting to {', '.join(each.kind for each in wanted)}")
    # Whether answers agree can be seen on any photos; those held out for testing are kept to.
    photos = next(bottlenecks.examples[part] for part in TRY_ON if bottlenecks.examples[part])
    rows = classification.choose_rows(len(photos), formats.MOST_PHOTOS)
    paths = [photos[row].path for row in rows]
    made = formats.make(wanted, graph, paths, options.max_image_pixels)
    for each in made:
        log.info(f"{each.agreement}")
    return made


def expected_vectors(result, bottlenecks):
    """The cached vectors, float32 [n, width], of the photos that were tested.

    In the place of imported ones, which need not be the network's to the last digit, are those
    that it gave in the test.
    """
    factors = 1 if bottlenecks.factors is None else bottlenecks.factors
    rows = {example.key: row for row, example in enumerate(bottlenecks.examples[TESTING])}
    vectors = bottlenecks.labelled[TESTING].vectors[[rows[key] for key in result.keys]]
    for place, key in enumerate(result.keys):
        if key in bottlenecks.imported:
            vectors[place] = result.vectors[place] * factors
    return vectors


def describe_calibration(result, temperature):
    """One line on how far the scores of the test photos are from how often they are right."""
    scores = result.probabilities
    before = classification.calibration_error(scores, result.truth)
    scores = apply_temperature(scores, temperature)
    after = classification.calibration_error(scores, result.truth)
    return f"calibration error on the test photos {before:.3f}, with the temperature {after:.3f}"


def describe_test(result):
    """One line on an export.HeldOutResult."""
    if result.total == 0:
        return "no test photos: the accuracy of this model is unknown"
    low, high = classification.wilson_interval(result.correct, result.total)
    return (
        f"final test accuracy = {result.accuracy:.1%} (N={result.total}, 95 % interval "
        f"{low:.1%} to {high:.1%}), measured on the exported graph"
    )


def describe_setting(extractor, dataset, watch, options):
    """The record.Setting: what this run was made with."""
    about = describe_network(extractor.parts[0])
    for second in extractor.parts[1:]:
        about |= {f"second_{name}": fact for name, fact in describe_network(second).items()}
    flags = {k: v for k, v in vars(options).items() if k not in ("caveats", "listed")}
    return Setting(about, flags, watch.seconds, options.caveats, dataset.warnings)


def describe_network(extractor):
    """What the record says of one network (dict)."""
    network = extractor.network
    return {
        "name": network.name,
        "sha1": network.file_sha1,
        "precision": extractor.settings.precision,
        "vector_width": network.width,
        "input_size": list(network.preprocessing.size),
    }


def trust_scores(result, temperature):
    """The HeldOutResult with the probabilities that label_image.py gives."""
    scores = apply_temperature(result.probabilities, temperature)
    return replace(result, probabilities=scores)


def make_outputs(record, findings, labels, thumbnails, options):
    """{path: bytes} of the files that a run writes beside the graph, the list of bad ones apart."""
    contents = {
        options.output_labels: labels_bytes(labels),
        options.metrics: metrics_bytes(record),
    }
    if findings is not None:
        contents[options.label_audit] = label_audit.table_bytes(findings)
    if not options.no_report:
        contents[options.report] = html.render(record, thumbnails)
    return contents


def write_summaries(folder, record, projected, thumbnails, log):
    """Adds the confusion matrix and the projector to TensorBoard's folder, if that is possible."""
    try:
        write_confusion(folder, confusion_of(record), record["labels"])
        write_projector(folder, projected, thumbnails)
    except OSError as error:
        log.warning(f"TensorBoard's files in {folder} are not complete: {error.strerror}")


def choose_projected(bottlenecks, most):
    """At most so many photos with their vectors, those for testing first."""
    chosen = []
    for part in (TESTING, VALIDATION, TRAINING):
        examples, vectors = bottlenecks.examples[part], bottlenecks.labelled[part].vectors
        rows = classification.choose_rows(len(examples), most - len(chosen))
        chosen += [Projected(examples[row], vectors[row]) for row in rows]
    return chosen


def print_results(result, bottlenecks, options, log):
    """The results on stdout, a line each: name, tab, value; what limits them on stderr."""
    labels = bottlenecks.labels
    list_bad_images(bottlenecks.bad, options, log)
    for caveat in options.caveats:
        log.warning(caveat)
    print(f"test_accuracy\t{result.accuracy:.4f}")
    print(f"test_photos\t{result.total}")
    print(f"graph\t{escaped(options.output_graph)}")
    print(f"labels\t{escaped(options.output_labels)}")
    if not options.no_report:
        print(f"report\t{escaped(options.report)}")
    print(f"metrics\t{escaped(options.metrics)}")
    if options.export_vectors:
        print(f"vectors\t{escaped(options.export_vectors)}")
    if options.print_misclassified_test_images:
        for path, truth, answer in zip(
            result.paths, result.truth, result.probabilities, strict=True
        ):
            if answer.argmax() != truth:
                given, found = labels[truth], labels[answer.argmax()]
                print(f"misclassified\t{escaped(path)}\t{given}\t{found}\t{answer.max():.5f}")


if __name__ == "__main__":
    leave(main())
