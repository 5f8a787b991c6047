"""Checks that a run can write its outputs, before it spends hours; puts them in place together."""

import logging
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from retraining.export import formats
from retraining.export.build import ExportError
from retraining.export.registry import CONVERTERS
from retraining.run.bundle import check_bundle
from retraining.run.settings import BESIDE_THE_GRAPH, COMPARISON, RunSettings
from retraining.system.atomic import (
    Content,
    WriteError,
    check_writable,
    finish_writing,
    journal_of,
    write_files,
)
from retraining.system.text import counted

log = logging.getLogger(__name__)

EARLIER = "-of-earlier-model"  # ends the name of a file that does not belong to the new graph


def check_outputs(network_paths: Iterable[str | Path], settings: RunSettings) -> None:
    """Refuses, before the run spends hours, outputs that cannot be written or replace a network.

    Raises:
        ExportError: an output is, or may become, the file of a base network; or the folder of the
            bundle holds something else.
        WriteError: an output is a folder, or lies in a folder that cannot be written to; or the
            outputs of an interrupted run cannot be put in place.
    """
    journal = journal_of(settings.outputs.graph)
    if finished := finish_writing(journal):
        files = counted(len(finished), "file is", "files are")
        log.info(
            f"an earlier run was interrupted while it replaced its outputs; {files} now in place"
        )
    networks, outputs = {os.path.realpath(path) for path in network_paths}, settings.outputs
    for path in settings.output_files.values():
        if os.path.realpath(path) in networks:
            raise ExportError(f"{path} is the base network; choose another output")
        check_writable(path, journal)
    check_bundle(outputs)
    formats.check_installed(outputs.formats)
    check_summaries(outputs.summaries_folder)
    folders = [path for kind, path in outputs.formats.items() if CONVERTERS[kind].is_folder]
    if settings.head.intermediate_steps:
        folders.append(settings.head.intermediate_folder)
        if os.path.realpath(folders[-1]) in map(os.path.dirname, networks):
            raise ExportError(f"{folders[-1]} holds the base network; choose another folder")
    for folder in folders:
        check_writable(os.path.join(folder, "any file"), journal)


def check_summaries(folder: str) -> None:
    """Warns if nothing can be written for TensorBoard, which a model can do without."""
    try:
        check_writable(os.path.join(folder, "any file"))
    except WriteError as error:
        log.warning(f"the run cannot write files for TensorBoard: {error}")


def replace_outputs(contents: Mapping[str, Content], settings: RunSettings) -> None:
    """Writes all outputs, {path: content}, and puts them in place together.

    A report, a model card, a label audit or a comparison of an earlier model that this run does not
    replace is renamed, so that nobody takes it for one of the new model.

    Raises:
        WriteError: an output cannot be written; then none is replaced.
    """
    earlier = find_earlier(contents, settings)
    write_files(contents, journal_of(settings.outputs.graph), earlier)
    for path, new in earlier.items():
        log.info(f"renamed {path} to {new.name}, since it belongs to an earlier model")


def find_earlier(contents: Collection[str], settings: RunSettings) -> dict[Path, Path]:
    """Returns {path: new path} of outputs beside the graph that are not among `contents`."""
    outputs = settings.outputs
    kept = {os.path.realpath(path) for path in (*contents, settings.photos.excluded_by or "")}
    names = [BESIDE_THE_GRAPH[name] for name in ("report", "model_card", "label_audit")]
    paths = [Path(outputs.beside(name)) for name in (*names, COMPARISON)]
    return {
        path: path.with_stem(path.stem + EARLIER)
        for path in paths
        if path.is_file() and os.path.realpath(path) not in kept
    }
