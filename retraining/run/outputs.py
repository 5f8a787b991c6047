"""Checks that a run can write its outputs, before it spends hours."""

import os
from collections.abc import Iterable
from pathlib import Path

from retraining.export import formats
from retraining.export.build import ExportError
from retraining.export.registry import CONVERTERS
from retraining.run.settings import RunSettings
from retraining.system.atomic import check_writable


def check_outputs(network_paths: Iterable[str | Path], settings: RunSettings) -> None:
    """Refuses, before the run spends hours, outputs that cannot be written or replace a network.

    Raises:
        ExportError: an output is, or may become, the file of a base network.
        WriteError: an output is a folder, or lies in a folder that cannot be written to.
    """
    networks, outputs = {os.path.realpath(path) for path in network_paths}, settings.outputs
    for path in settings.output_files.values():
        if os.path.realpath(path) in networks:
            raise ExportError(f"{path} is the base network; choose another output")
        check_writable(path)
    formats.check_installed(outputs.formats)
    folders = [outputs.summaries_folder]
    folders += [path for kind, path in outputs.formats.items() if CONVERTERS[kind].is_folder]
    if settings.head.intermediate_steps:
        folders.append(settings.head.intermediate_folder)
        if os.path.realpath(folders[-1]) in map(os.path.dirname, networks):
            raise ExportError(f"{folders[-1]} holds the base network; choose another folder")
    for folder in folders:
        check_writable(os.path.join(folder, "any file"))
