"""The settings of a run: the choices of the user, in one dataclass for each step.

Each room owns the settings of its work (SplitOptions, Distortions, TrainingOptions ...), and
RunSettings gathers them. All are frozen: nothing changes a setting once a run has begun.
"""

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

from retraining.bottlenecks.compute import BottleneckSettings
from retraining.bottlenecks.ray_engine import Ray
from retraining.evaluation.cross_validation import FEWEST_FOLDS, MOST_FOLDS
from retraining.export.registry import CONVERTERS
from retraining.graphs.description import PIXELS, TAKES
from retraining.graphs.precision import PRECISIONS
from retraining.graphs.preprocessing import PREVIEW, RAW_WAYS
from retraining.graphs.runtimes import AUTO, LITERT, RUNTIMES
from retraining.networks.pair import JOINT
from retraining.networks.recipes import Choice
from retraining.networks.registry import NETWORKS, READ_MODEL_FILE
from retraining.photos.bounds import MAX_PIXELS
from retraining.photos.source import FOLDER, LABELS_FROM
from retraining.photos.split import TESTING, VALIDATION, SplitOptions
from retraining.system.addresses import is_url, local, take_login, without_secrets
from retraining.system.ranges import Range, SettingsError, check_choice, check_ranges, spell_paths
from retraining.training.fine_tune import TuningOptions
from retraining.training.loop import TrainingOptions

PROJECTED = 100  # photos in TensorBoard's projector


def _beside_the_graph() -> Any:
    """Returns the field of a path with the default None, which OutputSettings replaces.

    Its type is Any, so that the field is declared with the type that it has from then on.
    """
    return field(default=None)


TRAINING, ALL = FINAL_FITS = ("training", "all")


@dataclass(frozen=True)
class PhotoSettings:
    """Which photos a run uses, and how it splits them."""

    image_dir: str = (
        ""  # one sub-folder per class, or the URL of such a place; `file://` is removed
    )
    photo_table: str | None = None  # lists the photos, by paths relative to image_dir if given
    recursive: bool = False  # include photos in folders below the class folders
    label_from: str = FOLDER  # or NAME: the label is in the photo's name, see photos.labelled_files
    classes: tuple[str, ...] = ()  # to take, in the order of the labels; none for all, sorted
    raw: str = PREVIEW  # or DEVELOP: what is taken of raw files of cameras
    max_pixels: int = MAX_PIXELS  # larger images are left out
    excluded: tuple[str, ...] = ()  # paths of photos to leave out
    excluded_by: str | None = None  # the file that names them, for messages
    max_bad_fraction: float = 0.5  # share of unreadable images above which the run ends
    split: SplitOptions = field(default_factory=SplitOptions)

    RANGES: ClassVar[Mapping[str, Range]] = {
        "max_pixels": (1, math.inf),
        "max_bad_fraction": (0, 1),
    }

    def __post_init__(self) -> None:
        spell_paths(self)
        object.__setattr__(self, "image_dir", take_login(local(self.image_dir)))
        check_ranges(self, self.RANGES)
        check_choice("label_from", self.label_from, LABELS_FROM)
        check_choice("raw", self.raw, RAW_WAYS)
        self._check_classes()
        if self.photo_table is None:
            if not self.image_dir:
                raise SettingsError("give `PhotoSettings.image_dir` or `PhotoSettings.photo_table`")
            return
        if self.label_from != FOLDER:
            raise SettingsError(
                "`PhotoSettings.label_from` is for folders; a `PhotoSettings.photo_table` has a "
                "label for each photo"
            )
        if self.recursive:
            raise SettingsError(
                "`PhotoSettings.recursive` is for folders; a `PhotoSettings.photo_table` names "
                "each photo"
            )
        if is_url(self.image_dir):
            raise SettingsError(
                "`PhotoSettings.photo_table` lists photos of this machine; "
                "`PhotoSettings.image_dir` is a URL"
            )

    def _check_classes(self) -> None:
        """Raises SettingsError if only one class is picked, or one of them twice."""
        counts = Counter(self.classes)
        if twice := [name for name, count in counts.items() if count > 1]:
            raise SettingsError(f"`PhotoSettings.classes` names {twice[0]} twice")
        if len(counts) == 1:
            raise SettingsError(
                f"`PhotoSettings.classes` must name at least two classes, but names only "
                f"{self.classes[0]}"
            )


@dataclass(frozen=True)
class NetworkSettings:
    """Which base network a run uses, and how."""

    architecture: str | None = None  # a name, NAME+NAME, or None for the best available
    model_dir: str = "models"
    model_file: str | None = None
    choice: Choice = field(default_factory=Choice)  # for networks that a recipe makes
    mirror_average: bool = False
    offline: bool = False
    precision: str = "auto"
    runtime: str = AUTO  # what computes the vectors

    def __post_init__(self) -> None:
        spell_paths(self)
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("runtime", self.runtime, RUNTIMES)
        if (self.runtime, self.precision) == (LITERT, "bfloat16"):
            raise SettingsError(
                "`NetworkSettings.runtime` litert computes in float32; drop "
                "`NetworkSettings.precision`"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the networks that the user chose; none for the best available."""
        return tuple(self.architecture.split(JOINT)) if self.architecture else ()

    def choice_for(self, name: str) -> Choice:
        """Returns the Choice for one of `names`; of two networks, only recipes take it."""
        if name in NETWORKS and len(self.names) > 1:
            return Choice()
        model_file = self.model_file if name in READ_MODEL_FILE else None
        return replace(self.choice, model_file=model_file)


@dataclass(frozen=True)
class HeadSettings:
    """How a run trains the head."""

    training: TrainingOptions = field(default_factory=TrainingOptions)
    search: bool = False  # fit it with several strengths of L2 and take the best
    intermediate_steps: int = 0  # steps between intermediate graphs; 0: none
    intermediate_folder: str = "intermediate_graphs"
    final_fit: str = TRAINING  # or ALL: train the exported head on all photos, after the test

    def __post_init__(self) -> None:
        check_choice("final_fit", self.final_fit, FINAL_FITS)


@dataclass(frozen=True)
class FineTuningSettings:
    """How a run fine-tunes the base network; `methods` are names in training.methods."""

    methods: tuple[str, ...] = ()
    compare: bool = False  # compare all of them
    tuning: TuningOptions = field(default_factory=TuningOptions)
    random_views: bool = True  # mirror and crop the training photos at random


@dataclass(frozen=True)
class EvaluationSettings:
    """How a run judges the model."""

    test_photos: int = -1  # at most; -1: all
    least_accuracy: float | None = None  # of the test; below this, the run writes nothing
    folds: int | None = None  # of a cross-validation; None: 5 if few photos test the model
    least_cross_validated: float | None = None  # as least_accuracy, of the cross-validation

    RANGES: ClassVar[Mapping[str, Range]] = {
        "test_photos": (-1, math.inf),
        "least_accuracy": (0, 1),
        "folds": (FEWEST_FOLDS, MOST_FOLDS),
        "least_cross_validated": (0, 1),
    }

    def __post_init__(self) -> None:
        check_ranges(self, self.RANGES)


@dataclass(frozen=True)
class OutputSettings:
    """What a run writes, and where; outputs without a path of their own lie beside the graph."""

    graph: str = "models/retrained_graph.pb"
    labels: str = _beside_the_graph()
    metrics: str = _beside_the_graph()
    report: str = _beside_the_graph()  # '' for none
    model_card: str = _beside_the_graph()  # '' for none
    label_audit: str = _beside_the_graph()  # '' for none
    tensor_name: str = "final_result"
    summaries_folder: str = "retrain_logs"
    projector_photos: int = PROJECTED
    bundle: str | None = None  # a folder with all that labels photos on another machine
    # Further formats: {kind of export.converter.Converter: path}; of saved_model, the folder of its
    # versions.
    formats: Mapping[str, str] = field(default_factory=dict)
    export_input: str = PIXELS  # what they take, of graphs.description.TAKES

    def __post_init__(self) -> None:
        spell_paths(self)
        paths = {kind: os.fspath(path) for kind, path in self.formats.items()}
        object.__setattr__(self, "formats", paths)
        for kind in self.formats:
            check_choice("formats", kind, CONVERTERS)
        check_choice("export_input", self.export_input, TAKES)
        for name, file in BESIDE_THE_GRAPH.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, self.beside(file))

    def beside(self, name: str) -> str:
        """Returns the path of a file of that name beside the graph."""
        return os.path.join(os.path.dirname(self.graph), name)

    @property
    def bad_images(self) -> str:
        """The path of the list of bad images."""
        return self.beside("bad_images.tsv")

    @property
    def comparison(self) -> str:
        """The path of the table of compared methods."""
        return self.beside(COMPARISON)

    @property
    def bundle_files(self) -> dict[str, str]:
        """{name: path} of the files of the bundle, but for its LiteRT models; {} without one."""
        if not self.bundle:
            return {}
        names = {
            "bundle_graph": os.path.basename(OutputSettings.graph),
            "bundle_labels": BESIDE_THE_GRAPH["labels"],
            "bundle_metrics": BESIDE_THE_GRAPH["metrics"],
        }
        return {name: os.path.join(self.bundle, file) for name, file in names.items()}


BESIDE_THE_GRAPH = {
    "labels": "retrained_labels.txt",
    "metrics": "retrained_metrics.json",
    "report": "retrained_report.html",
    "model_card": "retrained_model_card.md",
    "label_audit": "label_audit.tsv",
}
COMPARISON = "comparison.tsv"


@dataclass(frozen=True)
class RunSettings:
    """All settings of a run. `record` describes them in the graph and in the metrics file."""

    photos: PhotoSettings
    network: NetworkSettings = field(default_factory=NetworkSettings)
    bottlenecks: BottleneckSettings = field(default_factory=BottleneckSettings)
    head: HeadSettings = field(default_factory=HeadSettings)
    fine_tuning: FineTuningSettings = field(default_factory=FineTuningSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    outputs: OutputSettings = field(default_factory=OutputSettings)
    seed: int = 0
    record: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._spread_seed()
        self._check_together()
        if not self.record:
            object.__setattr__(self, "record", recorded(self))

    def _spread_seed(self) -> None:
        """Gives the one seed to all steps that draw random numbers."""
        seed, head, tuned, vectors = self.seed, self.head, self.fine_tuning, self.bottlenecks
        head = replace(head, training=replace(head.training, seed=seed))
        tuned = replace(tuned, tuning=replace(tuned.tuning, seed=seed))
        vectors = replace(vectors, distortions=replace(vectors.distortions, seed=seed))
        for name, value in (("head", head), ("fine_tuning", tuned), ("bottlenecks", vectors)):
            object.__setattr__(self, name, value)

    def _check_together(self) -> None:
        """Raises SettingsError if settings of different steps contradict each other."""
        for name, part in self.needed_splits.items():
            if not self.photos.split.can_hold(part, given={part}):
                raise SettingsError(
                    f"`{name}` needs photos for {part}; raise `SplitOptions.{part}`"
                )
        if self.network.runtime == LITERT and isinstance(self.bottlenecks.engine, Ray):
            raise SettingsError(
                "the workers of a Ray cluster use TensorFlow; drop `NetworkSettings.runtime`"
            )
        if self.fine_tuning.methods and len(self.network.names) > 1:
            raise SettingsError(
                "fine-tuning is for one network; name one `NetworkSettings.architecture`"
            )
        if self.fine_tuning.methods and self.head.final_fit == ALL:
            raise SettingsError(
                "`HeadSettings.final_fit` all trains a layer on vectors; it cannot be combined "
                "with fine-tuning"
            )

    @property
    def needed_splits(self) -> dict[str, str]:
        """{name of a setting: the split that it needs photos of}."""
        needs = {
            "HeadSettings.search": (VALIDATION, self.head.search),
            "TrainingOptions.early_stopping": (VALIDATION, self.head.training.early_stopping),
            "FineTuningSettings.compare": (VALIDATION, self.fine_tuning.compare),
            "EvaluationSettings.least_accuracy": (
                TESTING,
                self.evaluation.least_accuracy is not None,
            ),
        }
        return {name: part for name, (part, wanted) in needs.items() if wanted}

    @property
    def output_files(self) -> dict[str, str]:
        """{name in OutputSettings or BottleneckSettings: path} of the files that the run writes.

        Files of other formats are named by their kind, those of the bundle `bundle_...`.
        """
        outputs = self.outputs
        files = {"graph": outputs.graph, "labels": outputs.labels, "metrics": outputs.metrics}
        optional = {
            "export_file": self.bottlenecks.export_file,
            "report": outputs.report,
            "model_card": outputs.model_card,
            "label_audit": outputs.label_audit,
            **{k: path for k, path in outputs.formats.items() if not CONVERTERS[k].is_folder},
            "comparison": outputs.comparison if self.fine_tuning.compare else None,
        }
        files |= {name: path for name, path in optional.items() if path}
        return files | {"bad_images": outputs.bad_images} | outputs.bundle_files


APART = ("record", "seed")  # not recorded as `step.setting`


def recorded(settings: RunSettings) -> dict[str, Any]:
    """Returns the settings as plain data for JSON: {name: value}.

    `image_dir`, `seed` and `label_audit` are named as the flags are, the others as `step.setting`.
    The address of photos loses its user, password and query: graphs and reports are passed on.
    """
    location = without_secrets(settings.photos.image_dir)
    named = {
        "image_dir": location,
        "seed": settings.seed,
        "label_audit": settings.outputs.label_audit,
    }
    steps = dict(_flat({k: v for k, v in asdict(settings).items() if k not in APART}))
    return named | steps | {"photos.image_dir": location}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted name, value) of what is in nested dicts."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
