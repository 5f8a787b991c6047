"""Leaves a LiteRT model of each exported network, with which label_image.py starts fast."""

import logging
from collections.abc import Sequence
from concurrent.futures import Future

from retraining.bottlenecks.extract import VectorSource
from retraining.bottlenecks.runtime import TENSORFLOW
from retraining.graphs.litert import ConversionError
from retraining.graphs.nodes import GraphError
from retraining.graphs.twin import TwinError, VectorPart, cache_folder, find_twin, make_twin
from retraining.run.settings import RunSettings
from retraining.system.background import beside

log = logging.getLogger(__name__)


def start_twins(extractor: VectorSource, settings: RunSettings) -> Future[None] | None:
    """Starts to make the twins that are not at hand, on a thread of its own."""
    if settings.network.runtime == TENSORFLOW:
        return None
    networks = extractor.network.exported
    ends = [(n.graph_def, n.input, n.bottleneck, n.preprocessing) for n in networks]
    return beside(_leave_twins, [VectorPart(*each) for each in ends])


def end_twins(twins: Future[None] | None) -> None:
    """Waits for the twins."""
    if twins:
        twins.result()


def _leave_twins(parts: Sequence[VectorPart]) -> None:
    for part in parts:
        try:
            if not find_twin(part.digest(), [cache_folder()]):
                make_twin(part, [cache_folder()])
        except (ConversionError, TwinError, GraphError, ModuleNotFoundError) as error:
            log.debug("there is no LiteRT model of the network: %s", error)
