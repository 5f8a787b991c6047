"""Retrains an image classifier on your own photos.

A frozen network turns each photo into a vector (its bottleneck), which is kept on disk; a new
softmax layer is trained on the vectors; the result is one frozen graph and a file of labels.
"""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from retraining import evaluate, example_images, export, html_report
from retraining.cache import BottleneckStore, FileKeys
from retraining.command import (
    DONE,
    VERBOSITIES,
    Parser,
    batch_size,
    escaped,
    leave,
    number,
    progress_bar,
    reports_errors,
    set_verbosity,
)
from retraining.dataset import (
    SPLITS,
    TESTING,
    TRAINING,
    VALIDATION,
    DatasetError,
    Example,
    SplitOptions,
    hash_file,
    holds_images,
    load_dataset,
)
from retraining.example_images import is_example_folder
from retraining.extract import BATCH_SIZE, Job, Settings, fill_store
from retraining.graph import PRECISIONS, load_network, resolve_precision
from retraining.images import Distortions
from retraining.networks import DEFAULT, EMBEDDED, NETWORKS, NetworkError, obtain
from retraining.record import (
    BadImage,
    Outcome,
    Setting,
    Stopwatch,
    confusion_of,
    make_record,
    metrics_bytes,
)
from retraining.report import Projected, TensorBoardLog, write_confusion, write_projector
from retraining.thumbnails import Thumbnails
from retraining.train import Head, Labelled, Step, TrainingOptions, compare_sizes, train

PROJECT = os.path.dirname(os.path.abspath(__file__))
PERCENT = number(int, 0, 100)
COUNT = number(int, 0)
POSITIVE = number(int, 1)
MOST_PROJECTED = 10_000  # photos; their thumbnails fill one picture as large as browsers take
MOST_HELD_OUT = 2_000  # photos on which layers trained on fewer photos are compared

INTERRUPTED = "interrupted; vectors computed so far are kept, the same command goes on from there"


@partial(reports_errors, interrupted=INTERRUPTED)
def main(argv=None):
    """The whole way: photos -> vectors -> softmax layer -> graph, tested on held-out photos."""
    options = parse_flags(argv)
    log = set_verbosity(options.logging_verbosity)
    watch = Stopwatch()
    provide_example_images(options, log)
    dataset = read_photos(options, log)
    watch.lap("reading photos")
    known, path = choose_network(options, log)
    check_outputs(path, options)
    network = load_network(path, known)
    watch.lap("reading the network")
    bottlenecks = compute_bottlenecks(dataset, network, options, log)
    watch.lap("bottlenecks")
    trained = train_head(bottlenecks, network, options, log)
    watch.lap("training")
    sizes = try_fewer_photos(bottlenecks, options)
    watch.lap("trying fewer photos")
    result, graph = export_and_test(trained.head, bottlenecks, network, options, log)
    watch.lap("export and test")
    setting = describe_setting(network, bottlenecks, dataset, watch, options)
    record = make_record(setting, bottlenecks.outcome(result, trained.course, sizes))
    write_outputs(graph, record, bottlenecks, trained.log_folder, options)
    print_results(result, bottlenecks.labels, options, log)
    return DONE


# -- the flags -------------------------------------------------------------------------------


def parse_flags(argv=None):
    """The checked flags. Bad ones end the program with one line and exit code 2."""
    parser = build_parser()
    options = parser.parse_args(argv)
    options.caveats = []  # what must be said of the result, filled on the way
    if options.testing_percentage + options.validation_percentage >= 100:
        parser.error("--testing_percentage and --validation_percentage leave no training images")
    _check_output_flags(parser, options)
    if not re.fullmatch(
        r"[A-Za-z0-9.][A-Za-z0-9_.\-]*(/[A-Za-z0-9_.\-]+)*", options.final_tensor_name
    ):
        parser.error(f"--final_tensor_name {options.final_tensor_name!r} cannot name a tensor")
    if options.intermediate_store_frequency and not options.intermediate_output_graphs_dir:
        parser.error("--intermediate_store_frequency needs --intermediate_output_graphs_dir")
    return options


def _check_output_flags(parser, options):
    """Ends the program if two outputs are one file, or one has no name."""
    first = {}
    for flag, path in output_paths(options).items():
        if not path:
            parser.error(f"{flag} must name a file")
        other = first.setdefault(os.path.realpath(path), flag)
        if other != flag:
            parser.error(f"{other} and {flag} name the same file")


def output_paths(options):
    """{flag: path} of the files that a run writes."""
    flags = ["output_graph", "output_labels", "metrics"] + ["report"] * (not options.no_report)
    return {f"--{flag}": getattr(options, flag) for flag in flags}


def build_parser():
    """All flags, in groups; names and defaults are the classic's where it had them."""
    parser = Parser(prog="retrain.py", description=__doc__)
    for add in (_add_data, _add_network, _add_training, _add_distortions, _add_outputs):
        add(parser)
    return parser


def _add_data(parser):
    add = parser.add_argument_group("photos").add_argument
    add("--image_dir", required=True, help="folder with one sub-folder of photos per class")
    add(
        "--testing_percentage",
        type=PERCENT,
        default=10,
        help="percent of the photos held out for the final test",
    )
    add(
        "--validation_percentage",
        type=PERCENT,
        default=10,
        help="percent of the photos held out to look at while training",
    )
    add(
        "--split_by",
        choices=("content", "path"),
        default="content",
        help="what decides a photo's split: its bytes, so that moving or renaming changes "
        "nothing, or its path, as in the classic retrain.py",
    )


def _add_network(parser):
    add = parser.add_argument_group("network").add_argument
    add(
        "--architecture",
        choices=NETWORKS,
        metavar="NAME",
        help="base network: inception_v3, efficientnet_lite0 (or 1, 2), or "
        "mobilenet_<1.0|0.75|0.50|0.25>_<224|192|160|128>. Default: inception_v3 if it is in "
        "--model_dir or can be fetched, else efficientnet_lite0, which comes with the requirements",
    )
    add("--offline", action="store_true", help="use no network connection: fetch nothing")
    add("--model_dir", default="models", help="where network files are looked for and fetched to")
    add("--model_file", help="the network's frozen graph, instead of one in --model_dir")
    add("--bottleneck_dir", default="bottleneck_cache", help="where vectors are kept")
    add(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="arithmetic of the base network; auto is bfloat16 for inception_v3 where the "
        "processor has it, else float32",
    )
    add(
        "--batch_size",
        type=POSITIVE,
        default=BATCH_SIZE,
        help="images that go through the base network together, on each core",
    )


def _add_training(parser):
    add = parser.add_argument_group("training").add_argument
    defaults = TrainingOptions()
    add("--how_many_training_steps", type=POSITIVE, default=defaults.steps, help="steps to train")
    add(
        "--learning_rate",
        type=number(float, 0),
        default=defaults.learning_rate,
        help="step size of the gradient descent",
    )
    for part, default, unit in (
        ("train", defaults.train_batch_size, "a training step"),
        ("validation", defaults.validation_batch_size, "an evaluation while training"),
        ("test", -1, "the final test, and never more than 200"),
    ):
        add(
            f"--{part}_batch_size",
            type=batch_size,
            default=default,
            help=f"images in {unit}; -1 for all there are",
        )
    add(
        "--eval_step_interval",
        type=POSITIVE,
        default=defaults.eval_step_interval,
        help="steps between evaluations",
    )
    add("--seed", type=COUNT, default=defaults.seed, help="the same seed gives the same result")


def _add_distortions(parser):
    add = parser.add_argument_group("distortions of the training photos").add_argument
    defaults = Distortions()
    add("--flip_left_right", action="store_true", help="mirror each view with probability 1/2")
    add(
        "--random_crop",
        type=PERCENT,
        default=0,
        help="percent of its size by which a view is enlarged, to be cropped at random",
    )
    add(
        "--random_scale",
        type=PERCENT,
        default=0,
        help="percent by which a view is enlarged at most, at random",
    )
    add(
        "--random_brightness",
        type=PERCENT,
        default=0,
        help="percent by which a view is brightened or darkened at most",
    )
    add(
        "--distorted_views",
        type=POSITIVE,
        default=defaults.views,
        help="distorted versions of each training photo, if any distortion is asked for",
    )


def _add_outputs(parser):
    add = parser.add_argument_group("outputs").add_argument
    add("--output_graph", default="models/retrained_graph.pb", help="the retrained frozen graph")
    add("--output_labels", default="models/retrained_labels.txt", help="its labels, one a line")
    add("--report", default="models/retrained_report.html", help="a page on how good the model is")
    add("--no_report", action="store_true", help="write no such page")
    add("--metrics", default="models/retrained_metrics.json", help="the same figures as JSON")
    add("--final_tensor_name", default="final_result", help="name of the graph's output")
    add("--summaries_dir", default="retrain_logs", help="where TensorBoard's event files go")
    add(
        "--projector_photos",
        type=number(int, 0, MOST_PROJECTED),
        default=export.MOST_TESTED,
        help="photos whose vectors TensorBoard's projector shows at most, those for testing first",
    )
    add(
        "--intermediate_store_frequency",
        type=COUNT,
        default=0,
        help="steps between graphs stored while training; 0 is none",
    )
    add(
        "--intermediate_output_graphs_dir",
        default="intermediate_graphs",
        help="where these graphs go",
    )
    add(
        "--print_misclassified_test_images",
        action="store_true",
        help="list the test photos that the new graph gets wrong",
    )
    add(
        "--logging_verbosity",
        choices=VERBOSITIES,
        default="INFO",
        help="the least level of what is said on stderr",
    )


# -- the four steps --------------------------------------------------------------------------


def provide_example_images(options, log):
    """Fills the example folder if it is asked for and empty; says if its pictures are drawings."""
    folder = options.image_dir
    if is_example_folder(folder, PROJECT) and not holds_images(folder):
        bar = progress_bar("drawing", "img", is_quiet(options))
        reason = example_images.provide(folder, options.offline, bar)
        if reason:
            log.warning(f"the example photos could not be fetched ({reason}); drew flowers instead")
    if caveat := example_images.caveat(folder):
        options.caveats.append(caveat)
        log.warning(caveat)


def read_photos(options, log):
    """The Dataset in --image_dir, its oddities said on stderr."""
    split = SplitOptions(
        options.validation_percentage, options.testing_percentage, options.split_by
    )
    with FileKeys(options.bottleneck_dir, hash_file) as files:
        dataset = load_dataset(options.image_dir, split, files.key_of)
    for warning in dataset.warnings:
        log.warning(warning)
    counts = ", ".join(
        f"{len(dataset.split(part))} for {part}" for part in (TRAINING, VALIDATION, TESTING)
    )
    copies = len(dataset.examples) - len({example.key for example in dataset.examples})
    if copies:
        log.info(f"{copies} of the photos are copies of others; each content is computed once")
    log.info(f"{len(dataset.examples)} photos of {len(dataset.labels)} classes: {counts}")
    return dataset


def choose_network(options, log):
    """(Network, its file): what was asked for, or Inception-v3, or else the embedded network."""
    if options.model_file:
        return NETWORKS[options.architecture or DEFAULT], options.model_file
    quiet, folder = is_quiet(options), options.model_dir
    wanted = NETWORKS[options.architecture or DEFAULT]
    try:
        return wanted, obtain(wanted, folder, quiet, options.offline)
    except NetworkError as error:
        if options.architecture:
            raise
        options.caveats.append(f"{EMBEDDED} is used, since {error}")
        log.warning(options.caveats[-1])
    return NETWORKS[EMBEDDED], obtain(NETWORKS[EMBEDDED], folder, quiet, options.offline)


def check_outputs(network_path, options):
    """Refuses, before hours are spent, outputs that cannot be written or would replace the network.

    Raises:
        ExportError: one of them is such a path.
    """
    for path in output_paths(options).values():
        if os.path.realpath(path) == os.path.realpath(network_path):
            raise export.ExportError(f"{path} is the base network; choose another output")
        export.check_writable(path)


def is_quiet(options):
    """Whether progress bars are unwanted."""
    return options.logging_verbosity not in ("DEBUG", "INFO")


@dataclass(frozen=True)
class Bottlenecks:
    """What the softmax layer is trained and tested on, per split (a dict each).

    `labelled[part]` holds the vectors of `examples[part]` in their order; in training each
    example's distorted views follow all undistorted ones.
    """

    labels: list[str]
    examples: dict[str, list[Example]]
    labelled: dict[str, Labelled]
    precision: str
    bad_images: list[BadImage]

    def outcome(self, result, course, sizes):
        """The record.Outcome of a run on these photos."""
        return Outcome(self.labels, self.examples, result, course, sizes, self.bad_images)


def compute_bottlenecks(dataset, network, options, log):
    """Computes the vectors that the store lacks and reads them all; bad photos are left out."""
    precision = resolve_precision(options.precision, network.graph_def)
    fingerprint = network.fingerprint(precision)
    jobs = make_jobs(dataset.examples, options)
    bar = progress_bar("bottlenecks", "img", is_quiet(options))
    with BottleneckStore(options.bottleneck_dir, network.name, fingerprint, network.width) as store:
        bad = fill_store(store, jobs, network, Settings(precision, options.batch_size), bar)
        paths = {job.example.path: job.example.key for job in jobs if job.example.key in bad}
        left_out = [BadImage(path, bad[key]) for path, key in paths.items()]
        for image in left_out:
            log.warning(f"left out: {image.path} {image.reason}")
        jobs = [job for job in jobs if job.example.key not in bad]
        labelled = {part: read_split(store, jobs, part, dataset.labels) for part in SPLITS}
    examples = {part: [j.example for j in jobs if j.example.split == part] for part in SPLITS}
    check_classes(examples[TRAINING], dataset.labels)
    return Bottlenecks(dataset.labels, examples, labelled, precision, left_out)


def make_jobs(examples, options):
    """A Job per photo; those for training with their distorted views, if any are asked for."""
    distortions = Distortions(
        options.flip_left_right,
        options.random_crop,
        options.random_scale,
        options.random_brightness,
        options.distorted_views,
        options.seed,
    )
    return [Job(e, distortions if distortions and e.split == TRAINING else None) for e in examples]


def read_split(store, jobs, part, labels):
    """The Labelled vectors of one split."""
    jobs = [job for job in jobs if job.example.split == part]
    views = max((len(job.keys) for job in jobs), default=1)
    ordered = [(job, view) for view in range(views) for job in jobs]
    vectors = store.read([job.keys[view] for job, view in ordered])
    return Labelled.of(vectors, [job.example.label for job, _ in ordered], labels)


def check_classes(training, labels):
    """Raises DatasetError if bad photos have left a class without training images."""
    for label in labels:
        if not any(example.label == label for example in training):
            raise DatasetError(f"no readable image of {label} is left for training; add some")


@dataclass(frozen=True)
class Trained:
    """The softmax layer, the Steps with evaluations on the way, and TensorBoard's folder."""

    head: Head
    course: list[Step]
    log_folder: Path


def training_options(options):
    """The flags as TrainingOptions."""
    return TrainingOptions(
        options.how_many_training_steps,
        options.learning_rate,
        options.train_batch_size,
        options.validation_batch_size,
        options.eval_step_interval,
        options.seed,
    )


def train_head(bottlenecks, network, options, log):
    """The Trained softmax layer; its course goes to TensorBoard and onto a progress line."""
    settings, course = training_options(options), []
    training, validation = (bottlenecks.labelled[part] for part in (TRAINING, VALIDATION))
    steps = train(training, validation, len(bottlenecks.labels), settings)
    bar = progress_bar("training", "step", is_quiet(options))(steps, total=settings.steps)
    with TensorBoardLog(options.summaries_dir) as tensorboard:
        for step in bar:
            if step.training:
                tensorboard.add(step)
                course.append(step)
                log.debug(describe(step))
                if step.validation.count:
                    accuracy = f"validation {step.validation.accuracy:.1%}"
                    bar.set_postfix_str(accuracy, refresh=False)
            store_intermediate(step, bottlenecks, network, options)
    log.info(describe(step))
    return Trained(step.head, course, tensorboard.folder)


def try_fewer_photos(bottlenecks, options):
    """The train.SizePoints that say whether more photos would help; distorted views left out."""
    training, *held_out = (bottlenecks.labelled[part] for part in SPLITS)
    return compare_sizes(
        training.first(len(bottlenecks.examples[TRAINING])),
        Labelled.join([part.thinned(MOST_HELD_OUT // 2) for part in held_out]),
        len(bottlenecks.labels),
        training_options(options),
    )


def describe(step):
    """One line on a train.Step that has evaluations."""
    line = (
        f"step {step.number}: train accuracy {step.training.accuracy:.1%}, cross entropy "
        f"{step.training.cross_entropy:.3f}"
    )
    if step.validation.count:
        line += f", validation accuracy {step.validation.accuracy:.1%}"
    return line


def store_intermediate(step, bottlenecks, network, options):
    """Writes the graph as it is after this step, every --intermediate_store_frequency steps."""
    frequency = options.intermediate_store_frequency
    if not frequency or step.number == 0 or step.number % frequency:
        return
    path = os.path.join(options.intermediate_output_graphs_dir, f"intermediate_{step.number}.pb")
    graph_def = build(step.head, bottlenecks, network, options)
    export.write_files({path: export.graph_bytes(graph_def)})


def build(head, bottlenecks, network, options):
    """The retrained GraphDef, with the options in its description."""
    chosen = dict(vars(options))
    facts = {
        "precision": bottlenecks.precision,
        "caveats": chosen.pop("caveats"),
        "options": chosen,
    }
    return export.build_graph(network, head, bottlenecks.labels, options.final_tensor_name, facts)


def export_and_test(head, bottlenecks, network, options, log):
    """(export.HeldOutResult, bytes of the graph): written beside its place and tried there."""
    held_out = bottlenecks.examples[TESTING]
    most = export.MOST_TESTED if options.test_batch_size == -1 else options.test_batch_size
    rows = export.choose_rows(len(held_out), min(most, export.MOST_TESTED))
    examples = [held_out[row] for row in rows]
    expected = head.probabilities(bottlenecks.labelled[TESTING].vectors[rows])
    graph_def = build(head, bottlenecks, network, options)
    bar = progress_bar("final test", "img", is_quiet(options))
    with export.candidate(options.output_graph, graph_def) as path, ThreadPoolExecutor() as beside:
        bytes_path = beside.submit(export.check_bytes_path, path, examples)
        result = export.run_exported(path, examples, bottlenecks.precision, bar)
        export.check_agreement(result, expected)
        bytes_path.result()  # raises what the check raised
        tested = export.with_results(path, result)
    if result.total < len(held_out):
        log.info(f"{result.total} of {len(held_out)} test photos were tested")
    log.info(describe_test(result))
    return result, tested


def describe_test(result):
    """One line on an export.HeldOutResult."""
    if result.total == 0:
        return "no test photos: the accuracy of this model is unknown"
    low, high = evaluate.wilson_interval(result.correct, result.total)
    return (
        f"final test accuracy = {result.accuracy:.1%} (N={result.total}, 95 % interval "
        f"{low:.1%} to {high:.1%}), measured on the exported graph"
    )


def describe_setting(network, bottlenecks, dataset, watch, options):
    """The record.Setting: what this run was made with."""
    about = {
        "name": network.name,
        "sha1": network.file_sha1,
        "precision": bottlenecks.precision,
        "vector_width": network.width,
        "input_size": list(network.preprocessing.size),
    }
    flags = {name: value for name, value in vars(options).items() if name != "caveats"}
    return Setting(about, flags, watch.seconds, options.caveats, dataset.warnings)


def write_outputs(graph, record, bottlenecks, log_folder, options):
    """Puts all files in their places or, where one cannot be written, none; then TensorBoard's."""
    thumbnails = Thumbnails()
    contents = {
        options.output_labels: export.labels_bytes(bottlenecks.labels),
        options.metrics: metrics_bytes(record),
    }
    if not options.no_report:
        contents[options.report] = html_report.render(record, thumbnails)
    export.write_files({**contents, options.output_graph: graph})
    write_confusion(log_folder, confusion_of(record), record["labels"])
    chosen = choose_projected(bottlenecks, options.projector_photos)
    write_projector(log_folder, chosen, thumbnails)


def choose_projected(bottlenecks, most):
    """At most so many photos with their vectors, those for testing first."""
    chosen = []
    for part in (TESTING, VALIDATION, TRAINING):
        examples, vectors = bottlenecks.examples[part], bottlenecks.labelled[part].vectors
        rows = export.choose_rows(len(examples), most - len(chosen))
        chosen += [Projected(examples[row], vectors[row]) for row in rows]
    return chosen


def print_results(result, labels, options, log):
    """The results on stdout, a line each: name, tab, value; what limits them on stderr."""
    for caveat in options.caveats:
        log.warning(caveat)
    print(f"test_accuracy\t{result.accuracy:.4f}")
    print(f"test_photos\t{result.total}")
    print(f"graph\t{options.output_graph}")
    print(f"labels\t{options.output_labels}")
    if not options.no_report:
        print(f"report\t{options.report}")
    print(f"metrics\t{options.metrics}")
    if options.print_misclassified_test_images:
        for path, truth, answer in zip(
            result.paths, result.truth, result.probabilities, strict=True
        ):
            if answer.argmax() != truth:
                given, found = labels[truth], labels[answer.argmax()]
                print(f"misclassified\t{escaped(path)}\t{given}\t{found}\t{answer.max():.5f}")


if __name__ == "__main__":
    leave(main())
