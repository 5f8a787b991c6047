"""The photos of a run: provides the examples, reads photos, reports bad ones."""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence, Set
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
from retraining.photos.archive import ArchiveSource
from retraining.photos.archive_url import archive_url, fetch_archive, kept_as
from retraining.photos.dataset import FEW_IMAGES, MOST_LINES, Dataset, Example, load_dataset
from retraining.photos.exclude import without
from retraining.photos.folder import FolderSource
from retraining.photos.registry import open_source
from retraining.photos.source import (
    BadImage,
    DatasetError,
    Photo,
    PhotoSource,
    Scan,
    ScanOptions,
    SourceError,
)
from retraining.photos.split import PATH, SPLITS, TESTING, TRAINING, VALIDATION
from retraining.run.notes import RunContext
from retraining.run.settings import OutputSettings, RunSettings
from retraining.system.atomic import write_files
from retraining.system.observer import Late
from retraining.system.package import project_folder
from retraining.system.text import counted, some, table

log = logging.getLogger(__name__)

ARCHIVES = "archives"  # the folder in that of the vectors that keeps fetched archives
MOST_LISTED = 20  # bad files that the log names; a file lists all of them


def provide_example_images(run: RunContext) -> None:
    """Fills the example folder if it is wanted and empty; notes if its pictures are drawings."""
    folder = run.settings.photos.image_dir
    if run.settings.photos.photo_table is not None:
        return
    wanted = provide.is_example_folder(folder, project_folder())
    if wanted and not FolderSource(folder).holds_images():
        reason = provide.provide(folder, run.settings.network.offline, run.observer)
        if reason:
            log.warning(
                f"could not download the example photos ({reason}); drew pictures of flowers "
                f"instead"
            )
    if caveat := provide.caveat(folder):
        run.notes.add_caveat(caveat)


def provide_archive(run: RunContext) -> str:
    """Returns the location of the photos: of an archive at a URL, where it is fetched to.

    Opens an archive, which decompresses a compressed tar. A broken one is not kept.

    Raises:
        SourceError, DownloadError: it cannot be fetched or read.
    """
    location, folder = run.settings.photos.image_dir, run.settings.bottlenecks.folder
    fetched = None
    if parts := archive_url(location):
        url, inner = parts
        fetched = kept_as(url, os.path.join(folder, ARCHIVES))
        if not fetched.is_file() and run.settings.network.offline:
            raise SourceError(f"`NetworkSettings.offline` was given, and {url} is not there")
        if fetched.is_file():
            log.info(f"reading {fetched}, fetched earlier; remove it to fetch {url} again")
        fetch_archive(url, fetched, run.observer)
        location = f"{fetched}/{inner}" if inner else str(fetched)
    if ArchiveSource.claims(location):
        try:
            ArchiveSource(location).open(run.observer)
        except SourceError:
            if fetched:
                fetched.unlink(missing_ok=True)
            raise
    return location


@dataclass(frozen=True)
class RunPhotos:
    """The photos of a run; `dataset` is None if each is read only once, for key and vector."""

    source: PhotoSource
    dataset: Dataset | None


def find_photos(run: RunContext) -> RunPhotos:
    """Finds the photos; reads and splits them unless they are remote, or Ray reads them.

    Raises:
        DatasetError: there are too few of them; see photos.dataset.load_dataset.
        SourceError: their source cannot be listed.
    """
    provide_example_images(run)
    photos, scan = run.settings.photos, scan_options(run.settings)
    source = open_source(provide_archive(run), photos.photo_table)
    once = source.remote or isinstance(run.settings.bottlenecks.engine, Ray)
    if source.remote:
        run.observer.tell("listing the photos at the URL")
    if source.remote or (once and run.settings.needed_splits):
        check_scan(source.scan(scan), run.settings)
    return RunPhotos(source, None if once else read_photos(source, scan, run))


def check_scan(content: Scan, settings: RunSettings) -> None:
    """Does as `check_splits` before any photo is read: with the splits that can have photos."""
    given = {photo.split or "" for of_class in content.photos.values() for photo in of_class}
    can_hold = settings.photos.split.can_hold
    check_splits({part for part in (VALIDATION, TESTING) if can_hold(part, given)}, settings)


def compute_vectors(photos: RunPhotos, extractor: VectorSource, run: RunContext) -> Bottlenecks:
    """Gathers the vectors of all photos: imports, looks up or computes them; lists bad photos.

    Raises:
        DatasetError: too many photos cannot be read.
    """
    import_exported(extractor, run.settings.bottlenecks, run.observer)
    dataset = photos.dataset or read_photos_once(photos.source, extractor, run)
    bottlenecks = compute_bottlenecks(dataset, extractor, run.settings.bottlenecks, run.observer)
    bad = [replace(image, reason=run.notes.worded(image.reason)) for image in bottlenecks.bad]
    bottlenecks = replace(bottlenecks, bad=bad)
    check_bad_images(bottlenecks, dataset, run.settings)
    return bottlenecks


def scan_options(settings: RunSettings) -> ScanOptions:
    """Returns which photos of the source a run takes."""
    photos = settings.photos
    return ScanOptions(
        photos.recursive,
        photos.max_pixels,
        photos.excluded,
        split_folders=photos.split.by != PATH,
        classes=photos.classes,
        label_from=photos.label_from,
    )


def read_photos_once(source: PhotoSource, extractor: VectorSource, run: RunContext) -> Dataset:
    """Does as `read_photos`, but first fetches each photo without a known key or vector, once."""
    scan, folder = scan_options(run.settings), run.settings.bottlenecks.folder
    left, _, _ = without(source.scan(scan).photos, scan.excluded, source)
    photos = [photo for of_class in left.values() for photo in of_class]
    bar = run.observer.progress("bottlenecks", "img")
    first, *_ = extractor.parts  # a second network reads the photos again
    with FileKeys(folder) as files, open_store(first, folder) as store:
        if run.settings.bottlenecks.import_file:  # the keys tell which vectors are there now
            learn_keys(photos, files, run.observer.progress("hashing photos", "img"))
        filled = prefill(photos, files, store, first.read, bar)
        tell_notes([store])
    scan = replace(scan, not_images=filled.not_images)
    dataset = read_photos(source, scan, run, filled.keys)
    return replace(dataset, broken=filled.broken)


def read_photos(
    source: PhotoSource,
    scan: ScanOptions,
    run: RunContext,
    keys: Mapping[str, str] | None = None,
) -> Dataset:
    """Reads the Dataset of the source and logs its oddities; `keys` are known {name: key}."""
    photos, known = run.settings.photos, keys or {}
    bars = [run.observer.progress(label, "img") for label in ("finding photos", "hashing photos")]
    with (
        FileKeys(run.settings.bottlenecks.folder) as files,
        Late(bars[0]) as finding,
        Late(bars[1]) as hashing,
    ):

        def key_of(photo: Photo) -> str:
            finding.end()
            hashing.update()
            return known.get(photo.name) or files.key_of(photo)

        scan = replace(scan, seen=finding.update)
        dataset = load_dataset(source, photos.split, key_of, scan)
    for warning in dataset.warnings:
        run.notes.add_warning(warning)
    run.notes.excluded_photos = dataset.excluded
    if dataset.excluded:
        log.info(
            f"{counted(dataset.excluded, 'photo is', 'photos are')} excluded by "
            f"{photos.excluded_by}; if these photos are hard rather than wrong, the test accuracy "
            f"looks better than it is"
        )
    if dataset.note:
        log.info(dataset.note)
    describe_photos(dataset)
    check_splits({example.split for example in dataset.examples}, run.settings)
    return dataset


def check_splits(splits: Set[str], settings: RunSettings) -> None:
    """Refuses settings that need photos of a split, if it is not among the `splits`.

    Raises:
        DatasetError: there is such a setting.
    """
    for name, part in settings.needed_splits.items():
        if part not in splits:
            raise DatasetError(
                f"`{name}` needs photos for {part}, and there are none; add some, or raise "
                f"`SplitOptions.{part}`"
            )


def describe_photos(dataset: Dataset) -> None:
    """Logs how many photos there are, and in which splits."""
    counts = ", ".join(
        f"{len(dataset.split(part))} for {part}" for part in (TRAINING, VALIDATION, TESTING)
    )
    copies = len(dataset.examples) - len({example.key for example in dataset.examples})
    if copies:
        copied = counted(copies, "photo is a copy of another", "photos are copies of others")
        log.info(f"{copied}; the network processes identical photos only once")
    log.info(f"{len(dataset.examples)} photos of {len(dataset.labels)} classes: {counts}")


def check_classes(examples: Mapping[str, Sequence[Example]], labels: Sequence[str]) -> None:
    """Warns of classes that bad photos have made small; `examples` holds a list for each split.

    Raises:
        DatasetError: a class has no training images left.
    """
    trained = {example.label for example in examples[TRAINING]}
    for label in labels:
        if label not in trained:
            raise DatasetError(f"no readable image of {label} is left for training; add some")
    left = Counter(example.label for part in SPLITS for example in examples[part])
    few = [(label, left[label]) for label in labels if left[label] < FEW_IMAGES]
    if len(few) > MOST_LINES:
        named = some([f"{label} ({count})" for label, count in few])
        log.warning(
            f"{len(few)} classes have fewer than {FEW_IMAGES} readable images left: {named}"
        )
        return
    for label, count in few:
        log.warning(f"{label} has only {counted(count, 'readable image')} left")


def check_bad_images(bottlenecks: Bottlenecks, dataset: Dataset, settings: RunSettings) -> None:
    """Checks that the bad images leave enough photos; writes the list of them if they do not.

    Raises:
        DatasetError: they are too many, or leave no training images of a class.
    """
    bad, outputs = bottlenecks.bad, settings.outputs
    claimed = sum(image.claimed for image in bad)
    images = claimed + sum(len(examples) for examples in bottlenecks.examples.values())
    try:
        if claimed > settings.photos.max_bad_fraction * images:
            log_bad_images(bad, outputs)
            raise DatasetError(
                f"{claimed} of {images} images cannot be read, more than "
                f"`PhotoSettings.max_bad_fraction` {settings.photos.max_bad_fraction:g} allows; "
                f"see {outputs.bad_images}"
            )
        if len(bad) > len(dataset.bad):
            check_classes(bottlenecks.examples, bottlenecks.labels)
    except DatasetError:
        write_files(bad_images_contents(bad, outputs))
        raise


def bad_images_contents(bad: Sequence[BadImage], outputs: OutputSettings) -> dict[str, bytes]:
    """Returns {path: bytes} of the list of bad images; without any, an earlier list gets empty."""
    if not bad and not os.path.exists(outputs.bad_images):
        return {}
    rows = [("path", "reason"), *((image.path, image.reason) for image in bad)]
    return {outputs.bad_images: table(rows)}


def log_bad_images(bad: Sequence[BadImage], outputs: OutputSettings) -> None:
    """Logs the first bad images that were left out, with the reasons.

    The scan has named the files that are no images.
    """
    images = [image for image in bad if image.claimed]
    for image in images[:MOST_LISTED]:
        log.warning(f"left out: {image.path} {image.reason}")
    if len(images) > MOST_LISTED:
        log.warning(f"{len(bad)} files were left out; see {outputs.bad_images}")
