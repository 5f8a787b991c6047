"""The flags of retrain.py: names, help and checks. Names and defaults are the classic's, if any."""

import argparse
import importlib.util
import os
import re

from retraining.command import ALLOW_UNSAFE_OPS, VERBOSITIES, Parser, batch_size, number
from retraining.dataset import DatasetError, read_listed
from retraining.graph import PRECISIONS
from retraining.image_files import MAX_PIXELS
from retraining.images import Distortions
from retraining.networks import NetworkError, find
from retraining.parquet import why_no_parquet
from retraining.places import is_url, local
from retraining.train import TrainingOptions

PERCENT = number(int, 0, 100)
COUNT = number(int, 0)
POSITIVE = number(int, 1)
BESIDE_THE_GRAPH = {
    "label_audit": "label_audit.tsv",
    "report": "retrained_report.html",
    "metrics": "retrained_metrics.json",
}
PROJECTED = 100  # photos in TensorBoard's projector, unless told otherwise
LOCAL, RAY = ENGINES = ("local", "ray")
MOST_PROJECTED = 10_000  # photos; their thumbnails fill one picture as large as browsers take


def parse_flags(argv, description):
    """The checked flags. Bad ones end the program with one line and exit code 2."""
    parser = build_parser(description)
    options = parser.parse_args(argv)
    for flag, name in BESIDE_THE_GRAPH.items():
        if getattr(options, flag) is None:
            setattr(options, flag, os.path.join(os.path.dirname(options.output_graph), name))
    options.image_dir = local(options.image_dir)
    options.caveats = []  # what must be said of the result, filled on the way
    try:
        options.listed = read_listed(options.exclude) if options.exclude else []
    except DatasetError as error:
        parser.error(f"--exclude: {error}")
    if options.testing_percentage + options.validation_percentage >= 100:
        parser.error("--testing_percentage and --validation_percentage leave no training images")
    if options.assert_accuracy_at_least is not None and options.testing_percentage == 0:
        parser.error("--assert_accuracy_at_least needs test photos; raise --testing_percentage")
    _check_urls(parser, options)
    _check_engine(parser, options)
    _check_output_flags(parser, options)
    _check_places(parser, options)
    if not re.fullmatch(
        r"[A-Za-z0-9.][A-Za-z0-9_.\-]*(/[A-Za-z0-9_.\-]+)*", options.final_tensor_name
    ):
        parser.error(f"--final_tensor_name {options.final_tensor_name!r} cannot name a tensor")
    if options.intermediate_store_frequency and not options.intermediate_output_graphs_dir:
        parser.error("--intermediate_store_frequency needs --intermediate_output_graphs_dir")
    folder = options.import_classic_bottlenecks
    if folder is not None and not os.path.isdir(folder):
        parser.error(f"--import_classic_bottlenecks {folder} is not a folder")
    return options


def _check_urls(parser, options):
    """Ends the program if anything but --image_dir is a URL, or would not go with one."""
    flags = ["bottleneck_dir", "model_dir", "model_file", "summaries_dir"]
    folders = {f"--{flag}": getattr(options, flag) for flag in flags}
    folders["--intermediate_output_graphs_dir"] = options.intermediate_output_graphs_dir
    for flag, path in {**output_paths(options), **folders}.items():
        if path and is_url(path):
            parser.error(f"{flag} {path} is a URL; only --image_dir may be one")
    if is_url(options.image_dir) and options.import_classic_bottlenecks:
        parser.error("--import_classic_bottlenecks needs the photos in a folder of this machine")
    if options.export_vectors and (reason := why_no_parquet()):
        parser.error(f"--export_vectors {reason}")


def _check_engine(parser, options):
    """Ends the program if Ray is asked for and missing, or its flags are given without it."""
    if options.engine == RAY:
        if importlib.util.find_spec("ray") is None:
            parser.error("--engine ray needs Ray: pip install -r requirements-ray.txt")
        return
    for flag in ("ray_address", "ray_actors", "ray_resources"):
        if getattr(options, flag) != parser.get_default(flag):
            parser.error(f"--{flag} needs --engine ray")


def _check_output_flags(parser, options):
    """Ends the program if an output has no name, or would replace another or --exclude's file."""
    first = {os.path.realpath(options.exclude): "--exclude"} if options.exclude else {}
    for flag, path in output_paths(options).items():
        if not path:
            parser.error(f"{flag} must name a file")
        other = first.setdefault(os.path.realpath(path), flag)
        if other == "--exclude":
            parser.error(f"{flag} would replace the file of --exclude; copy that elsewhere")
        if other != flag:
            parser.error(f"{other} and {flag} name the same file")


def output_paths(options):
    """{flag, or what it is: path} of the files that a run writes."""
    flags = ["output_graph", "output_labels", "metrics"]
    flags += ["export_vectors"] * (options.export_vectors is not None)
    flags += ["report"] * (not options.no_report) + ["label_audit"] * bool(options.label_audit)
    paths = {f"--{flag}": getattr(options, flag) for flag in flags}
    return {**paths, "the list of bad images": bad_images_path(options)}


def bad_images_path(options):
    """Where the list of files that were left out goes: beside the graph."""
    return os.path.join(os.path.dirname(options.output_graph), "bad_images.tsv")


def _check_places(parser, options):
    """Ends the program if it would write into the photos' folder or among the stored vectors."""
    folders = {
        "--bottleneck_dir": options.bottleneck_dir,
        "--summaries_dir": options.summaries_dir,
        "--intermediate_output_graphs_dir": options.intermediate_output_graphs_dir,
    }
    photos, vectors = map(os.path.realpath, (options.image_dir, options.bottleneck_dir))
    for flag, path in {**output_paths(options), **folders}.items():
        if _is_below(path, photos):
            parser.error(f"{flag} {path} is in --image_dir, where each folder is a class")
    for flag, path in output_paths(options).items():
        if _is_below(path, vectors):
            parser.error(f"{flag} {path} is in --bottleneck_dir; choose another folder")


def _is_below(path, folder):
    return os.path.realpath(path).startswith(os.path.join(folder, ""))


def build_parser(description=None):
    """All flags, in groups; names and defaults are the classic's where it had them."""
    parser = Parser(prog="retrain.py", description=description)
    for add in (
        _add_data,
        _add_network,
        _add_cluster,
        _add_training,
        _add_distortions,
        _add_outputs,
        _add_words,
    ):
        add(parser)
    return parser


def _add_data(parser):
    add = parser.add_argument_group("photos").add_argument
    add(
        "--image_dir",
        required=True,
        help="folder with one sub-folder of photos per class, or the URL of such a place in object "
        "storage (s3://, gs:// ...; needs requirements-remote.txt)",
    )
    add(
        "--exclude",
        metavar="FILE",
        help="leave out the photos listed there: a path a line, or a label_audit.tsv",
    )
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
    add(
        "--recursive",
        action="store_true",
        help="take photos from folders below the class folders, too",
    )
    add(
        "--max_image_pixels",
        type=POSITIVE,
        default=MAX_PIXELS,
        help="larger images are left out, before they are decoded",
    )
    add(
        "--max_bad_fraction",
        type=number(float, 0, 1),
        default=0.5,
        help="share of unreadable images above which the run ends",
    )


def _network(name):
    """A flag type: the name of a network that is known."""
    try:
        return find(name).name
    except NetworkError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _add_network(parser):
    add = parser.add_argument_group("network").add_argument
    add(
        "--architecture",
        type=_network,
        metavar="NAME",
        help="base network: inception_v3, efficientnet_lite0 (or 1, 2), or "
        "mobilenet_<1.0|0.75|0.50|0.25>_<224|192|160|128>. Default: inception_v3 if it is in "
        "--model_dir or can be fetched, else efficientnet_lite0, which comes with the requirements",
    )
    add("--offline", action="store_true", help="use no network connection: fetch nothing")
    add("--model_dir", default="models", help="where network files are looked for and fetched to")
    add("--model_file", help="the network's frozen graph, instead of one in --model_dir")
    add("--allow_unsafe_ops", action="store_true", help=ALLOW_UNSAFE_OPS)
    add("--bottleneck_dir", default="bottleneck_cache", help="where vectors are kept")
    add(
        "--import_classic_bottlenecks",
        metavar="DIR",
        help="take vectors over from the classic retrain.py's --bottleneck_dir, where they fit "
        "the photos and the network (float32 ones, whatever --precision is); needed once",
    )
    add(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="arithmetic of the base network; auto is bfloat16 for inception_v3 where the "
        "processor has it, else float32",
    )
    add(
        "--batch_size",
        type=number(int, 1, 256),
        help="images that go through the base network together, on each core; default: 8 (32 on "
        "a GPU), less where memory is short",
    )


def _address(text):
    """A flag type: where Ray runs."""
    if text in ("auto", "local") or re.fullmatch(r"(ray://)?[^/\s]+:\d{1,5}", text):
        return text
    raise argparse.ArgumentTypeError(f"must be auto, local or ray://HOST:PORT, not {text}")


def _resources(text):
    """A flag type: (CPUs, GPUs) of "CPUS" or "CPUS,GPUS"."""
    cpus, _, gpus = text.partition(",")
    try:
        return number(int, 1)(cpus), number(float, 0)(gpus or "0")
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be CPUS or CPUS,GPUS, not {text}") from error


def _add_cluster(parser):
    add = parser.add_argument_group("beyond one machine").add_argument
    add(
        "--engine",
        choices=ENGINES,
        default=LOCAL,
        help="what computes the vectors: this machine, or actors on a Ray cluster (needs "
        "requirements-ray.txt)",
    )
    add(
        "--ray_address",
        type=_address,
        default="auto",
        metavar="ADDRESS",
        help="the Ray cluster: auto (the one that RAY_ADDRESS names or this machine belongs to), "
        "ray://HOST:PORT, or local, which starts one here and ends it",
    )
    add(
        "--ray_actors",
        type=POSITIVE,
        metavar="N",
        help="how many actors compute; default: as many as the cluster has room for",
    )
    add(
        "--ray_resources",
        type=_resources,
        default=(1, 0.0),
        metavar="CPUS[,GPUS]",
        help="what each actor gets; it computes so many batches at once as it has CPUs, or uses "
        "its GPUs",
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
        type=number(int, 1, 1000),
        default=defaults.views,
        help="distorted versions of each training photo, if any distortion is asked for",
    )


def _add_outputs(parser):
    add = parser.add_argument_group("outputs").add_argument
    add("--output_graph", default="models/retrained_graph.pb", help="the retrained frozen graph")
    add("--output_labels", default="models/retrained_labels.txt", help="its labels, one a line")
    add(
        "--label_audit",
        help="table of photos whose label looks wrong and of near-duplicates, '' for none; "
        "default: label_audit.tsv beside the graph",
    )
    add(
        "--report",
        help="a page on how good the model is; default: retrained_report.html beside the graph",
    )
    add("--no_report", action="store_true", help="write no such page")
    add(
        "--metrics",
        help="the same figures as JSON; default: retrained_metrics.json beside the graph",
    )
    add(
        "--export_vectors",
        metavar="FILE",
        help="write the photos' vectors to a Parquet file, for other tools (needs "
        "requirements-remote.txt)",
    )
    add("--final_tensor_name", default="final_result", help="name of the graph's output")
    add("--summaries_dir", default="retrain_logs", help="where TensorBoard's event files go")
    add(
        "--projector_photos",
        type=number(int, 0, MOST_PROJECTED),
        default=PROJECTED,
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
        "--assert_accuracy_at_least",
        type=number(float, 0, 1),
        help="end with exit code 1 and replace no output if the final test's accuracy, a share of "
        "1 as in test_accuracy, is lower",
    )


def _add_words(parser):
    add = parser.add_argument_group("what is said").add_argument
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
    add(
        "--quiet",
        dest="logging_verbosity",
        action="store_const",
        const="WARN",
        default=argparse.SUPPRESS,
        help="say nothing on stderr but warnings and errors: --logging_verbosity WARN",
    )
