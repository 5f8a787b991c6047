"""Leaves a LiteRT model of each exported network, with which label_image.py starts fast."""

import logging
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from retraining.bottlenecks.extract import VectorSource
from retraining.graphs.litert import ConversionError
from retraining.graphs.nodes import GraphError
from retraining.graphs.runtimes import TENSORFLOW
from retraining.graphs.twin import TwinError, VectorPart, cache_folder, find_twin, make_twin
from retraining.run.settings import RunSettings
from retraining.system.background import beside

log = logging.getLogger(__name__)


def start_twins(extractor: VectorSource, settings: RunSettings) -> "Future[Twins] | None":
    """Starts to make the twins that are not at hand, on a thread of its own."""
    if settings.network.runtime == TENSORFLOW:
        return None
    networks = extractor.network.exported
    ends = [(n.graph_def, n.input, n.bottleneck, n.preprocessing) for n in networks]
    return beside(_leave_twins, [VectorPart(*each) for each in ends])


def end_twins(making: "Future[Twins] | None", settings: RunSettings) -> tuple[Path, ...]:
    """Waits for the twins; returns their files. Warns if the bundle lacks one."""
    unused = Twins((), ("`NetworkSettings.runtime` is tensorflow",))
    twins = making.result() if making else unused
    if settings.outputs.bundle and twins.missing:
        log.warning(
            f"labelling with {settings.outputs.bundle} needs TensorFlow, since it has no LiteRT "
            f"model of the network: {twins.missing[0]}"
        )
    return twins.files


@dataclass(frozen=True)
class Twins:
    """The files of twins, and the reason of each that is missing."""

    files: tuple[Path, ...]
    missing: tuple[str, ...]


def _leave_twins(parts: Sequence[VectorPart]) -> Twins:
    files, missing, folders = [], [], [cache_folder()]
    for part in parts:
        try:
            files.append(find_twin(part.digest(), folders) or make_twin(part, folders))
        except (ConversionError, TwinError, GraphError, ModuleNotFoundError) as error:
            log.debug("there is no LiteRT model of the network: %s", error)
            missing.append(str(error))
    return Twins(tuple(files), tuple(missing))
