"""Computes the vectors of all splits: imports them, fills the stores, and reads them back."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from retraining.bottlenecks.classic_cache import ClassicCache, ImportCounts, take_over
from retraining.bottlenecks.extract import Extractor, Job, ShowProgress, VectorSource, fill_store
from retraining.bottlenecks.parquet import VectorFile, VectorFileError, vectors_content
from retraining.bottlenecks.ray_engine import Local, Ray
from retraining.bottlenecks.store import BottleneckStore
from retraining.bottlenecks.vectors import Labelled
from retraining.networks.pair import JOINT, scale_alike
from retraining.photos.dataset import Dataset, Example
from retraining.photos.formats import PIXELS
from retraining.photos.reader import Distortions
from retraining.photos.source import BadImage
from retraining.photos.split import SPLITS, TESTING, TRAINING
from retraining.system.observer import Bar, Late, Observer
from retraining.system.ranges import Range, check_ranges, spell_paths
from retraining.system.text import counted, some

Item = TypeVar("Item")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bottlenecks:
    """What the softmax layer is trained and tested on, by split.

    `labelled[part]` holds the vectors of `examples[part]` in their order. In the training split the
    distorted views follow all undistorted photos.
    """

    labels: list[str]
    examples: dict[str, list[Example]]
    labelled: dict[str, Labelled]
    bad: list[BadImage]
    imported: set[str]  # keys of photos whose vectors come from the classic's cache
    # For two networks: float32 [width] by which their vectors were multiplied.
    factors: NDArray[np.float32] | None = None
    given: frozenset[str] = frozenset()  # the splits that the source gives


@dataclass(frozen=True)
class BottleneckSettings:
    """How a run computes, keeps, imports and exports vectors."""

    folder: str = "bottleneck_cache"
    batch_size: int | None = None  # photos; None: 8, or 32 on a GPU
    engine: Local | Ray = field(default_factory=Local)
    distortions: Distortions = field(default_factory=Distortions)
    classic_folder: str | None = None  # the classic's cache, to import vectors from
    import_file: str | None = None  # Parquet
    export_file: str | None = None  # Parquet

    RANGES: ClassVar[Mapping[str, Range]] = {
        "batch_size": (1, 256),
    }

    def __post_init__(self) -> None:
        spell_paths(self)
        check_ranges(self, self.RANGES)


def compute_bottlenecks(
    dataset: Dataset, extractor: VectorSource, settings: BottleneckSettings, observer: Observer
) -> Bottlenecks:
    """Computes the vectors that the stores lack, and reads them all; leaves out bad photos."""
    good = make_jobs(dataset.examples, settings.distortions)
    reasons: dict[str, str] = {}
    bar = observer.progress("bottlenecks", "img")
    with contextlib.ExitStack() as stack:
        stores = [
            stack.enter_context(open_store(part, settings.folder)) for part in extractor.parts
        ]
        for store, part in zip(stores, extractor.parts, strict=True):
            import_vectors(store, dataset, part, settings.classic_folder)
            with Late(observer.progress("looking up vectors", "img")) as shown:
                store.seen = shown.update
                reasons |= fill_store(store, good, part, after(shown, bar), dataset.broken)
            good = [job for job in good if job.example.key not in reasons]
        with Late(observer.progress("reading vectors", "img")) as shown:
            for store in stores:
                store.seen = shown.update
            labelled = {part: read_split(stores, good, part, dataset.labels) for part in SPLITS}
        imported = imported_into(stores, [job.example.key for job in good])
        tell_notes(stores)
    factors = scale_alike(labelled, TRAINING, extractor.network)
    examples = {part: [j.example for j in good if j.example.split == part] for part in SPLITS}
    if any(example.key in imported for example in examples[TESTING]):
        extractor.start()  # in the background: the final test computes these anew
    else:
        for part in extractor.parts:
            part.stop()
    unreadable = [BadImage(e.path, reasons[e.key]) for e in dataset.examples if e.key in reasons]
    bad = [*dataset.bad, *unreadable]
    return Bottlenecks(dataset.labels, examples, labelled, bad, imported, factors, dataset.given)


def after(shown: Late, bar: Bar) -> ShowProgress:
    """Returns a function that ends the display `shown` and then starts the `bar`."""

    def start(iterable: Iterable[Item], /, total: int) -> Iterable[Item]:
        shown.end()
        return bar(iterable, total=total)

    return start


def open_store(extractor: Extractor, folder: str) -> BottleneckStore:
    """Opens the BottleneckStore of one network at its precision."""
    network, fingerprint = extractor.network, fingerprint_of(extractor)
    return BottleneckStore(folder, network.name, fingerprint, network.width)


def tell_notes(stores: Iterable[BottleneckStore]) -> None:
    """Logs what the stores moved aside or have to recompute."""
    for store in stores:
        for note in store.notes:
            log.warning(note)


def imported_into(stores: Iterable[BottleneckStore], keys: Sequence[str]) -> set[str]:
    """Returns those of the keys that have an imported vector in any of the stores."""
    return {key for store in stores for key in store.imported(keys)}


def import_vectors(
    store: BottleneckStore, dataset: Dataset, extractor: Extractor, folder: str | None
) -> None:
    """Imports vectors from the classic's folder, if one is given; logs the result."""
    if not folder:
        return
    network = extractor.network
    cache = ClassicCache(folder, network.name, network.width, dataset.labels)
    examples = dataset.examples

    def compute(sample: Sequence[Example]) -> None:
        fill_store(store, [Job(example) for example in sample], extractor, lambda jobs, total: jobs)

    counts = take_over(store, examples, cache, compute)
    warn_of_import(counts, examples, cache)
    skipped = sum(map(len, counts.skipped.values())) + sum(m.files for m in counts.misfits)
    taken = counted(counts.taken, "vector")
    log.info(
        f"{taken} imported from {cache.folder}; {counts.checked} recomputed "
        f"to check them, {counts.known} already cached, {skipped} skipped, {counts.absent} "
        f"without a file"
    )


def warn_of_import(counts: ImportCounts, examples: Sequence[Example], cache: ClassicCache) -> None:
    """Logs what is doubtful in the ImportCounts of an import, and which files were skipped."""
    if counts.times_are_of_a_copy:
        log.warning(
            f"most photos are newer than their vectors in {cache.folder}, probably because "
            f"they were copied, so their times do not show which photos have changed since"
        )
    if counts.absent == len({example.key for example in examples}):
        log.warning(
            f"{cache.folder} holds no vector of these photos: {cache.why_nothing(examples[0])}"
        )
    if counts.misfits:
        classes = some([repr(misfit.label) for misfit in counts.misfits])
        worst = min(counts.misfits, key=lambda misfit: misfit.cosine)
        log.warning(
            f"the vectors of {classes} in {cache.folder} differ from those that the network "
            f"computes (cosine {worst.cosine:.3f} for {worst.path}), so it computes them anew"
        )
    for reason, paths in counts.skipped.items():
        names = some([os.path.relpath(path, cache.folder) for path in paths])
        files = counted(len(paths), "file")
        log.warning(f"{files} in {cache.folder} not imported, {reason}: {names}")
        for path in paths:
            log.debug(f"not imported, {reason}: {path}")


def import_exported(
    extractor: VectorSource, settings: BottleneckSettings, observer: Observer
) -> None:
    """Imports the vectors of the import file that the stores lack; logs how many.

    Raises:
        VectorFileError: other networks computed them, or the file cannot be read.
    """
    if not settings.import_file:
        return
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(VectorFile(settings.import_file))
        parts = {fingerprint_of(part): part for part in extractor.parts}
        stores = [
            (stack.enter_context(open_store(parts[name], settings.folder)), columns)
            for name, columns in file.columns.items()
            if name in parts and columns.stop - columns.start == parts[name].network.width
        ]
        if not stores:
            raise VectorFileError(
                f"{file.path} holds vectors of {file.facts['network']} in {file.facts['precision']}"
                f", this run needs {extractor.network.name} in {extractor.settings.precision}; if "
                f"that is the same, its file or `NetworkSettings.mirror_average` is not; give the "
                f"settings with which they were exported"
            )
        bar = observer.progress("importing vectors", "row")
        sound = taken = 0
        with bar(None, total=len(file)) as shown:
            for keys, vectors in file.rows():
                counts = [
                    put_lacking(store, keys, vectors[:, cut], file.pixels) for store, cut in stores
                ]
                sound, taken = sound + len(keys), taken + max(counts)
                shown.update(len(keys))
        invalid = len(file) - sound
        tell_notes([store for store, _ in stores])
    known = f", {sound - taken} already cached" * (sound > taken)
    log.info(f"{counted(taken, 'vector')} imported from {file.path}{known}")
    if invalid:
        log.warning(
            f"left out: {counted(invalid, 'row')} of {file.path} without a valid key and vector"
        )


def put_lacking(
    store: BottleneckStore, keys: Sequence[str], vectors: NDArray[np.float32], pixels: int
) -> int:
    """Stores those of the vectors, a row per key, that the store lacks; returns how many.

    `pixels` is the version of the pixels that they were computed from.
    """
    rows = dict(zip(keys, vectors, strict=True))
    lacking = store.missing(rows)
    for key in lacking:
        store.put(key, rows[key], version=pixels)
    return len(lacking)


def fingerprint_of(extractor: Extractor) -> str:
    """Returns the fingerprint of one network at its precision."""
    return extractor.network.fingerprint(extractor.settings.precision)


def make_jobs(examples: Iterable[Example], distortions: Distortions | None) -> list[Job]:
    """Returns a Job for each photo; training photos get distorted views if any are wanted."""
    return [Job(e, distortions if distortions and e.split == TRAINING else None) for e in examples]


def read_split(
    stores: Sequence[BottleneckStore], jobs: Iterable[Job], part: str, labels: Sequence[str]
) -> Labelled:
    """Reads the Labelled vectors of one split; those of two stores side by side."""
    jobs = [job for job in jobs if job.example.split == part]
    views = max((len(job.keys) for job in jobs), default=1)
    ordered = [(job, view) for view in range(views) for job in jobs]
    vectors = stores[0].read_beside(stores[1:], [job.keys[view] for job, view in ordered])
    return Labelled.of(vectors, [job.example.label for job, _ in ordered], labels)


def export_content(bottlenecks: Bottlenecks, extractor: VectorSource) -> Callable[[BinaryIO], None]:
    """Returns what writes the photos' vectors to a Parquet file for other tools."""
    facts = {
        "network": extractor.network.name,
        "fingerprint": JOINT.join(fingerprint_of(part) for part in extractor.parts),
        "precision": extractor.settings.precision,
        "width": JOINT.join(str(part.network.width) for part in extractor.parts),
        "pixels": str(PIXELS),
    }
    parts = [(bottlenecks.examples[part], bottlenecks.labelled[part].vectors) for part in SPLITS]
    if bottlenecks.factors is not None:  # export what the networks give
        parts = [(examples, vectors / bottlenecks.factors) for examples, vectors in parts]
    return vectors_content(parts, extractor.network.width, facts)
