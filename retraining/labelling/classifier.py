"""A classifier's graph, ours or anyone's -> class probabilities of image files."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from retraining.bottlenecks import extract
from retraining.errors import RetrainingError
from retraining.evaluation import trust
from retraining.evaluation.temperature import FEWEST_PHOTOS, apply_temperature
from retraining.evaluation.unknown import UnknownScore
from retraining.graphs.description import Preprocessing, read_metadata, read_preprocessing
from retraining.graphs.nodes import IMAGE_BYTES, GraphError, constant, node_name, nodes_by_name
from retraining.graphs.read import read_graph
from retraining.graphs.run import BytesRunner, Runner, Running
from retraining.graphs.safety import describe_unsafe
from retraining.graphs.tensorflow import import_tensorflow
from retraining.networks.pair import PREFIX
from retraining.networks.registry import NETWORKS, resolve_precision
from retraining.photos.decode import MAX_PIXELS
from retraining.photos.reader import ImageError, ImageReader, read_file, run_on_bytes

# Where old graphs take images and give probabilities, the likeliest first.
KNOWN_INPUTS = ("Mul", "input", "Placeholder", IMAGE_BYTES)
UNKNOWN = ("unknown", "(unknown)", "((unknown))", "(((unknown)))")  # the first that is no class
KNOWN_OUTPUTS = ("final_result", "softmax", "MobilenetV1/Predictions/Reshape_1")


class LabelsError(RetrainingError):
    """The labels file is missing or does not fit the graph."""


@dataclass(frozen=True)
class Overrides:
    """What the user says of a graph; None where the graph shall tell."""

    input_layer: str | None = None
    output_layer: str | None = None
    input_height: int | None = None
    input_width: int | None = None
    input_mean: float | None = None
    input_std: float | None = None
    allow_unsafe_ops: bool = False


@dataclass(frozen=True)
class Part:
    """One of two networks in a graph: its ends, its pixels, its arithmetic."""

    input: str
    bottleneck: str
    preprocessing: Preprocessing
    precision: str


@dataclass(frozen=True)
class Classifier:
    """A graph and what is needed to use it; `preprocessing` is None where it takes file bytes."""

    graph_def: object
    input: str
    output: str
    preprocessing: Preprocessing | None
    labels: tuple[str, ...]
    precision: str = "float32"
    notes: tuple[str, ...] = ()  # what had to be assumed, a line each
    described: dict = field(default_factory=dict)  # what the graph says of itself, if it does
    max_pixels: int = MAX_PIXELS  # larger images are refused
    temperature: float = 1.0  # applied to the output's probabilities
    unknown: UnknownScore | None = None
    unknown_inputs: tuple[str, ...] = ()  # the nodes that give the score's vectors and logits
    parts: tuple[Part, ...] = ()  # the networks, if there are two; their vectors go into the head

    @property
    def unknown_label(self):
        """What an image of no class is called; never the label of a class."""
        return next(label for label in UNKNOWN if label not in self.labels)

    def classify(self, paths, few=False):
        """Yields (path, probabilities float32 [classes] or ImageError) for each path, in order.

        `few` saves the start-up work that only pays for many images.

        Raises:
            GraphError: TensorFlow cannot load or run the graph.
            LabelsError: there are more or fewer labels than probabilities; said before an image
                is read where the graph tells its width.
        """
        for path, answer, _ in self.judge(paths, few):
            yield path, answer

    def judge(self, paths, few=False, share=None):
        """Yields what `classify` does and, of each image, its strangeness if it counts as unknown.

        That is where it looks less like the classes than all but `share` (0..1) of the validation
        photos; else, or with a share of None, None takes its place.

        Raises:
            trust.TrustError: there is a share, but the graph has no score for unknown images.
        """
        if share is not None and not self.unknown:
            raise trust.TrustError(
                "--unknown_threshold needs a graph that retrain.py made with "
                f"{FEWEST_PHOTOS} validation photos or more; this one has no such score"
            )
        also = () if share is None else self.unknown_inputs
        stream = self._stream_of_both if self.parts else self._stream
        for path, outputs in stream(paths, not few, also):
            if isinstance(outputs, ImageError):
                yield path, outputs, None
                continue
            outputs = outputs.reshape(1, -1)
            rest = outputs[:, len(self.labels) :] if also else outputs[:, :0]
            answer = self._checked(outputs[:, : outputs.shape[1] - rest.shape[1]])
            yield path, answer, self._strangeness(rest, share) if also else None

    def _strangeness(self, rest, share):
        """0..1 of an image that counts as unknown, or None; `rest` [1, width + classes]."""
        width = len(self.unknown.origin)
        score = self.unknown.score(rest[:, :width], rest[:, width:])
        if score[0] >= self.unknown.threshold(share):
            return None
        return float(self.unknown.strangeness(score)[0])

    def _stream(self, paths, optimize, also):
        """As extract.stream: (path, the output's columns and those of `also`, or ImageError)."""
        return extract.stream(paths, *self._loader(optimize, also))

    def _stream_of_both(self, paths, optimize, also):
        """As `_stream`: through each network on its own, then both vectors through the head."""
        joint = self.described["bottleneck_input"]
        head = Runner(self.graph_def, joint, self.output, Running(optimize=False, also=also))
        self._check_width(head.width)
        streams = [self._stream_of_part(part, optimize) for part in self.parts]
        for path, vectors in extract.side_by_side(paths, streams):
            yield path, vectors if isinstance(vectors, ImageError) else head.run(vectors)

    def _stream_of_part(self, part, optimize):
        """A function that gives one network's vectors of paths, as extract.stream does."""
        about, ends = part.preprocessing, (part.input, part.bottleneck)
        load = ImageReader(about.size, about.mean, about.std, self.max_pixels).read
        runner = Runner(self.graph_def, *ends, Running(part.precision, optimize))
        return partial(extract.stream, load=load, runner=runner)

    def _loader(self, optimize, also):
        """(how a path is loaded, what runs the loaded batch)."""
        if self.preprocessing is None:
            from_bytes = BytesRunner(self.graph_def, self.output, self.input, also)
            self._check_width(from_bytes.width)
            most = self.max_pixels

            def load(path):
                return run_on_bytes(from_bytes, read_file(path, most)).reshape(1, -1)

            return load, _Done()
        about, ends = self.preprocessing, (self.graph_def, self.input, self.output)
        runner = Runner(*ends, Running(self.precision, optimize, also))
        self._check_width(runner.width)
        return ImageReader(about.size, about.mean, about.std, self.max_pixels).read, runner

    def _checked(self, outputs):
        probabilities = outputs.reshape(-1)
        self._check_width(len(probabilities))
        return apply_temperature(probabilities[None], self.temperature)[0]

    def _check_width(self, width):
        if width not in (None, len(self.labels)):
            raise LabelsError(
                f"the graph gives {width} probabilities for {len(self.labels)} "
                f"labels; name the labels file that belongs to it with --labels"
            )


class _Done:
    """A runner for what has been computed while loading."""

    parallel = 1

    def run(self, batch):
        return batch


def load_classifier(graph_path, labels_path=None, overrides=None, precision="auto"):
    """Reads a retrained graph, or any frozen image classifier.

    `labels_path` may also be the labels themselves, a tuple.

    A graph that describes itself needs nothing else. For others the flags count first, then what
    the graph's nodes tell, then what was usual for such graphs (said in `notes`).

    Raises:
        GraphError: not a frozen graph, one that is not known to be harmless, or it does not tell
            what the flags leave open.
        LabelsError: no labels file, or an unreadable one.
    """
    overrides = overrides or Overrides()
    graph_def = read_graph(graph_path, overrides.allow_unsafe_ops)
    described = read_metadata(graph_def) or {}
    labels = _find_labels(graph_path, labels_path, described)
    unsafe = describe_unsafe(graph_def)
    notes = [f"{graph_path} is run though it holds {unsafe}"] if unsafe else []
    input_name, output, preprocessing = _find_ends(graph_def, overrides, described, notes)
    parts = ()
    if described.get("second") and preprocessing:
        parts = _find_parts(graph_def, described, overrides, precision)
    precision = resolve_precision(precision, graph_def)
    classifier = Classifier(
        graph_def, input_name, output, preprocessing, labels, precision, tuple(notes), described
    )
    classifier = replace(classifier, parts=parts)
    if output != described.get("output"):
        return classifier  # another output than the one for which all this was fitted
    return replace(classifier, **_find_trust(graph_def, described))


def _find_parts(graph_def, described, overrides, precision):
    """The Parts of a graph of two networks, which must be fed as it says.

    Raises:
        GraphError: the flags say otherwise.
    """
    size = overrides.input_height, overrides.input_width
    scale = overrides.input_mean, overrides.input_std
    other_input = overrides.input_layer and node_name(overrides.input_layer) != described["input"]
    if other_input or any(value is not None for value in (*size, *scale)):
        raise GraphError(
            f"this graph holds two networks and knows how to feed them; drop --input_height, "
            f"--input_width, --input_mean and --input_std, and --input_layer or give {IMAGE_BYTES}"
        )
    return tuple(
        Part(
            about["input"],
            about["bottleneck"],
            Preprocessing(tuple(about["size"]), about["mean"], about["std"]),
            resolve_precision(precision, graph_def, prefix),
        )
        for about, prefix in ((described, ""), (described["second"], PREFIX))
    )


def _find_trust(graph_def, described):
    """What a graph tells of how far to trust it, as fields of a Classifier."""
    nodes = nodes_by_name(graph_def)
    temperature, unknown = trust.read(
        described.get("trust", {}), lambda name: constant(nodes, name)
    )
    if not unknown:
        return {"temperature": temperature}
    # Older graphs have no hidden layers, and no name for what comes behind them.
    features = described.get("features") or described["bottleneck_input"]
    inputs = (features, described["logits"])
    return {"temperature": temperature, "unknown": unknown, "unknown_inputs": inputs}


def _find_labels(graph_path, labels_path, described):
    beside = Path(graph_path).with_name("retrained_labels.txt")  # as retrain.py calls it
    if isinstance(labels_path, tuple):
        return labels_path
    if labels_path:
        return read_labels(labels_path)
    if described:
        return tuple(described["labels"])
    if beside.is_file():
        return read_labels(beside)
    raise LabelsError("this graph does not carry its labels; name their file with --labels")


def _find_ends(graph_def, overrides, described, notes):
    """(input, output, Preprocessing or None): by flag, by description, by what is usual."""
    nodes = nodes_by_name(graph_def)
    known_inputs = [described["input"]] if described else KNOWN_INPUTS
    known_outputs = [described["output"]] if described else KNOWN_OUTPUTS
    input_name = _named(nodes, overrides.input_layer, known_inputs, "--input_layer")
    output = _named(nodes, overrides.output_layer, known_outputs, "--output_layer")
    if _takes_bytes(graph_def, input_name):
        return input_name, output, None
    found = read_preprocessing(graph_def, input_name)
    if described and input_name == described["input"]:
        size = tuple(described["size"])
        found = Preprocessing(size, described["mean"], described["std"])
    return input_name, output, _preprocessing(graph_def, found, overrides, notes)


def _named(nodes, given, known, flag):
    if given is not None:
        if node_name(given) not in nodes:
            raise GraphError(f"the graph has no node {given!r}; see {flag}")
        return node_name(given)
    for name in known:
        if name in nodes:
            return name
    raise GraphError(f"cannot tell which node of the graph to use; name it with {flag}")


def _takes_bytes(graph_def, input_name):
    """Whether the node gives strings: a Placeholder or Const of that type."""
    node = nodes_by_name(graph_def)[input_name]
    if "dtype" not in node.attr:  # (asking for it would add it)
        return False
    return node.attr["dtype"].type == import_tensorflow().dtypes.string.as_datatype_enum


def _preprocessing(graph_def, found, overrides, notes):
    """Flags first, then what was found in the graph, then what was usual."""
    height, width = found.size or (None, None)
    height = _first(overrides.input_height, height)
    width = _first(overrides.input_width, width)
    if not height or not width:
        raise GraphError(
            "the graph does not tell its image size; give --input_height and --input_width"
        )
    if found.fixed_size and found.size != (height, width):
        raise GraphError(
            f"the graph takes images of {found.size[0]} x {found.size[1]} pixels; drop "
            f"--input_height and --input_width"
        )
    usual = _usual_scale(graph_def)
    mean, std = _first(overrides.input_mean, found.mean), _first(overrides.input_std, found.std)
    if mean is None or std is None:
        mean, std = _first(mean, usual.mean), _first(std, usual.std)
        notes.append(
            f"this graph does not tell how pixels are scaled; assuming --input_mean {mean:g} "
            f"--input_std {std:g}"
        )
    return Preprocessing((height, width), mean, std)


def _usual_scale(graph_def):
    """mean and std of MobileNets, or those of the classic label_image.py (0 and 255)."""
    if any(node.name.startswith("MobilenetV1/") for node in graph_def.node):
        network = NETWORKS["mobilenet_1.0_224"]
        return Preprocessing(None, network.mean, network.std)
    return Preprocessing(None, 0.0, 255.0)


def _first(*values):
    return next((value for value in values if value is not None), None)


def read_labels(path):
    """The lines of a labels file, without line ends.

    Raises:
        LabelsError: unreadable, empty or not UTF-8 text.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            labels = tuple(line.rstrip("\r\n") for line in file)
    except OSError as error:
        raise LabelsError(f"cannot read the labels file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise LabelsError(f"the labels file {path} is not UTF-8 text") from error
    if not any(labels):
        raise LabelsError(f"the labels file {path} is empty")
    return labels
