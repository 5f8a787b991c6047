"""The photos of a run: provides the examples, reads photos, reports bad ones."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from retraining.bottlenecks.compute import (
    Bottlenecks,
    compute_bottlenecks,
    import_exported,
    open_store,
    tell_notes,
)
from retraining.bottlenecks.extract import VectorSource
from retraining.bottlenecks.file_keys import FileKeys
from retraining.bottlenecks.prefill import learn_keys, prefill
from retraining.bottlenecks.ray_engine import Ray
from retraining.examples import provide
from retraining.photos.dataset import FEW_IMAGES, Dataset, Example, load_dataset
from retraining.photos.exclude import without
from retraining.photos.listing import list_url
from retraining.photos.places import facts_of as facts_of_file
from retraining.photos.places import is_url
from retraining.photos.scan import (
    BadImage,
    DatasetError,
    ScanOptions,
    hash_file,
    holds_images,
    list_photos,
)
from retraining.photos.split import SPLITS, TESTING, TRAINING, VALIDATION
from retraining.run.notes import RunContext
from retraining.run.settings import OutputSettings, PhotoSettings, RunSettings
from retraining.system.atomic import write_files
from retraining.system.package import project_folder
from retraining.system.text import counted, table

log = logging.getLogger(__name__)

MOST_LISTED = 20  # bad files that the log names; a file lists all of them


def provide_example_images(run: RunContext) -> None:
    """Fills the example folder if it is wanted and empty; notes if its pictures are drawings."""
    folder = run.settings.photos.image_dir
    if provide.is_example_folder(folder, project_folder()) and not holds_images(folder):
        bar = run.observer.progress("drawing", "img")
        reason = provide.provide(
            folder, run.settings.network.offline, bar, quiet=run.observer.quiet
        )
        if reason:
            log.warning(f"the example photos could not be fetched ({reason}); drew flowers instead")
    if caveat := provide.caveat(folder):
        run.notes.add_caveat(caveat)


@dataclass(frozen=True)
class FoundPhotos:
    """The photos of a run; `dataset` is None where they are read once, for keys and vectors."""

    scan: ScanOptions
    dataset: Dataset | None


def find_photos(run: RunContext) -> FoundPhotos:
    """Finds the photos, and reads and splits them unless they are read later, once for all.

    Raises:
        DatasetError: there are too few of them; see photos.dataset.load_dataset.
        PlaceError: their URL cannot be listed.
    """
    provide_example_images(run)
    scan = look_at_photos(run.settings.photos)
    return FoundPhotos(scan, None if reads_once(run.settings) else read_photos(scan, run))


def compute_vectors(photos: FoundPhotos, extractor: VectorSource, run: RunContext) -> Bottlenecks:
    """Gathers the vectors of all photos: imports, looks up or computes them; tells bad photos.

    Raises:
        DatasetError: too many photos cannot be read.
    """
    import_exported(extractor, run.settings.bottlenecks, run.observer)
    dataset = photos.dataset or read_photos_once(photos.scan, extractor, run)
    bottlenecks = compute_bottlenecks(dataset, extractor, run.settings.bottlenecks, run.observer)
    bad = [replace(image, reason=run.notes.worded(image.reason)) for image in bottlenecks.bad]
    bottlenecks = replace(bottlenecks, bad=bad)
    report_bad_images(bottlenecks, dataset, run.settings)
    return bottlenecks


def reads_once(settings: RunSettings) -> bool:
    """Returns whether a photo is read only once, for key and vector: at a URL, or by Ray."""
    return is_url(settings.photos.image_dir) or isinstance(settings.bottlenecks.engine, Ray)


def look_at_photos(settings: PhotoSettings) -> ScanOptions:
    """Returns the ScanOptions of the photos, with a listing if they are at a URL.

    Raises:
        PlaceError: the URL cannot be listed.
        DatasetError: `list_photos` raises it for the URL.
    """
    scan = ScanOptions(settings.recursive, settings.max_pixels, settings.excluded)
    if is_url(settings.image_dir):
        scan = replace(scan, listing=list_url(settings.image_dir))
        list_photos(settings.image_dir, scan)  # fails before anything else happens
    return scan


def file_keys(scan: ScanOptions, folder: str) -> FileKeys:
    """Returns the FileKeys of the photos, which are stored in the folder of bottlenecks."""
    facts_of = scan.listing.facts.__getitem__ if scan.listing else facts_of_file
    return FileKeys(folder, hash_file, facts_of)


def read_photos_once(
    scan: ScanOptions,
    extractor: VectorSource,
    run: RunContext,
) -> Dataset:
    """Does as `read_photos`, but first fetches each photo without a known key or vector, once."""
    image_dir, vectors = run.settings.photos.image_dir, run.settings.bottlenecks
    photos, _, _ = list_photos(image_dir, scan)
    photos, _, _ = without(photos, scan.listed, image_dir)
    paths = [path for of_class in photos.values() for path in of_class]
    bar = run.observer.progress("bottlenecks", "img")
    first, *_ = extractor.parts  # a second network reads the photos again
    with file_keys(scan, vectors.folder) as files, open_store(first, vectors.folder) as store:
        if vectors.import_file:  # the keys tell which vectors are there now
            learn_keys(paths, files, run.observer.progress("hashing photos", "img"))
        filled = prefill(paths, files, store, first.read, bar)
        tell_notes([store])
    if scan.listing:
        reasons = {**scan.listing.reasons, **filled.no_images}
        scan = replace(scan, listing=replace(scan.listing, reasons=reasons))
    dataset = read_photos(scan, run, filled.keys)
    return replace(dataset, broken=filled.broken)


def read_photos(
    scan: ScanOptions,
    run: RunContext,
    keys: Mapping[str, str] | None = None,
) -> Dataset:
    """Reads the Dataset in the image folder and logs its oddities; `keys` are known {path: key}."""
    photos, known = run.settings.photos, keys or {}
    with file_keys(scan, run.settings.bottlenecks.folder) as files:
        dataset = load_dataset(
            photos.image_dir,
            photos.split,
            lambda path: known.get(path) or files.key_of(path),
            scan,
        )
    for warning in dataset.warnings:
        log.warning(warning)
    run.notes.excluded_photos = dataset.excluded
    run.notes.warnings = list(map(run.notes.worded, dataset.warnings))
    if photos.excluded_by:
        log.info(
            f"{counted(dataset.excluded, 'photo is', 'photos are')} excluded by "
            f"{photos.excluded_by}; where what is excluded is hard, not wrong, the test accuracy "
            f"looks better than it is"
        )
    describe_photos(dataset)
    if run.settings.evaluation.least_accuracy is not None and not dataset.split(TESTING):
        raise DatasetError(
            "no photo is held out, which `EvaluationSettings.least_accuracy` needs; add some"
        )
    return dataset


def describe_photos(dataset: Dataset) -> None:
    """Logs how many photos there are, and in which splits."""
    counts = ", ".join(
        f"{len(dataset.split(part))} for {part}" for part in (TRAINING, VALIDATION, TESTING)
    )
    copies = len(dataset.examples) - len({example.key for example in dataset.examples})
    if copies:
        said = counted(copies, "photo is a copy of another", "photos are copies of others")
        log.info(f"{said}; each content is computed once")
    log.info(f"{len(dataset.examples)} photos of {len(dataset.labels)} classes: {counts}")


def check_classes(examples: Mapping[str, Sequence[Example]], labels: Sequence[str]) -> None:
    """Warns of classes that bad photos have made small; `examples` holds a list for each split.

    Raises:
        DatasetError: a class has no training images left.
    """
    for label in labels:
        left = {part: sum(e.label == label for e in examples[part]) for part in SPLITS}
        if not left[TRAINING]:
            raise DatasetError(f"no readable image of {label} is left for training; add some")
        if sum(left.values()) < FEW_IMAGES:
            log.warning(f"only {counted(sum(left.values()), 'readable image')} of {label} left")


def report_bad_images(bottlenecks: Bottlenecks, dataset: Dataset, settings: RunSettings) -> None:
    """Writes the list of bad images that were left out.

    Raises:
        DatasetError: they are too many.
    """
    bad, path = bottlenecks.bad, settings.outputs.bad_images
    if bad or os.path.exists(path):
        text = table([("path", "reason"), *((image.path, image.reason) for image in bad)])
        write_files({path: text.encode("utf-8", "surrogateescape")})
    claimed = sum(image.claimed for image in bad)
    images = claimed + sum(len(examples) for examples in bottlenecks.examples.values())
    if claimed > settings.photos.max_bad_fraction * images:
        list_bad_images(bad, settings.outputs)
        raise DatasetError(
            f"{claimed} of {images} images cannot be read, more than "
            f"`PhotoSettings.max_bad_fraction` {settings.photos.max_bad_fraction:g} allows; see "
            f"{path}"
        )
    if len(bad) > len(dataset.bad):
        check_classes(bottlenecks.examples, bottlenecks.labels)


def list_bad_images(bad: Sequence[BadImage], outputs: OutputSettings) -> None:
    """Logs the first bad images that were left out, with the reasons."""
    for image in bad[:MOST_LISTED]:
        log.warning(f"left out: {image.path} {image.reason}")
    if len(bad) > MOST_LISTED:
        log.warning(f"{len(bad)} files were left out, see {outputs.bad_images}")
