"""Gathers what labels photos on another machine in one folder, the bundle.

It holds the graph, its labels and metrics, and the LiteRT model of each network, by which
label_image.py needs no TensorFlow.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from retraining.export.build import ExportError
from retraining.graphs.twin import is_twin
from retraining.run.export import Exported
from retraining.run.settings import OutputSettings
from retraining.system.atomic import Content


def check_bundle(outputs: OutputSettings) -> None:
    """Refuses a folder that exists, unless it is empty or holds an earlier bundle alone.

    Raises:
        ExportError: it holds other files, or no graph.
    """
    folder = Path(outputs.bundle or "")
    own = {os.path.basename(path) for path in outputs.bundle_files.values()}
    if not outputs.bundle or not folder.is_dir() or not (found := set(os.listdir(folder))):
        return
    others = sorted(name for name in found - own if not is_twin(name))
    if others or not os.path.isfile(outputs.bundle_files["bundle_graph"]):
        which = f"it holds {others[0]!r}" if others else "it holds no graph"
        raise ExportError(
            f"{folder} is not an earlier bundle: {which}; name a new folder with "
            f"`OutputSettings.bundle`"
        )


def bundle_contents(
    exported: Exported, others: Mapping[str, Content], outputs: OutputSettings
) -> dict[str, Content]:
    """Returns {path: content} of the files of the bundle; none if none is asked for.

    `others` are the outputs beside the graph, among them its labels and metrics.
    """
    if not outputs.bundle:
        return {}
    files, folder = outputs.bundle_files, Path(outputs.bundle)
    contents: dict[str, Content] = {
        files["bundle_graph"]: exported.graph,
        files["bundle_labels"]: others[outputs.labels],
        files["bundle_metrics"]: others[outputs.metrics],
    }
    return contents | {str(folder / twin.name): _copy_of(twin) for twin in exported.twins}


def _copy_of(path: Path) -> Content:
    def write(file: BinaryIO) -> None:
        with path.open("rb") as source:
            shutil.copyfileobj(source, file)

    return write


def drop_earlier_twins(exported: Exported, outputs: OutputSettings) -> None:
    """Removes the LiteRT models of an earlier bundle, which belong to no network of this one."""
    kept = {twin.name for twin in exported.twins}
    for path in Path(outputs.bundle).iterdir() if outputs.bundle else ():
        if is_twin(path.name) and path.name not in kept:
            path.unlink(missing_ok=True)
