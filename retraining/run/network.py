"""The base network of a run: chooses it, finds its file, makes the source of its vectors."""

import logging
from dataclasses import replace
from pathlib import Path

from retraining.bottlenecks.compute import BottleneckSettings
from retraining.bottlenecks.extract import (
    ExtractionSettings,
    Extractor,
    PairExtractor,
    VectorSource,
)
from retraining.bottlenecks.ray_engine import Ray, RayExtractor
from retraining.bottlenecks.runtime import RuntimeSettings
from retraining.export.build import check_tensor_name
from retraining.graphs.nodes import read_notes
from retraining.graphs.runtimes import LITERT, TENSORFLOW
from retraining.graphs.safety import describe_unsafe
from retraining.graphs.twin import cache_folder
from retraining.networks import registry
from retraining.networks.mirror import mirror_average
from retraining.networks.network import load_network
from retraining.networks.precision import resolve_precision
from retraining.networks.registry import Network, NetworkError, obtain
from retraining.run.fine_tuning import check_fine_tuning
from retraining.run.notes import RunContext, RunNotes
from retraining.run.outputs import check_outputs
from retraining.run.settings import NetworkSettings
from retraining.system.observer import Observer

log = logging.getLogger(__name__)


def read_network(run: RunContext) -> VectorSource:
    """Finds and reads the base network, or two; checks that the run can go on with it.

    Raises:
        NetworkError: the network cannot be had.
        GraphError: its file is not that network.
        ExportError, WriteError, TrainingError: see check_outputs and check_fine_tuning.
    """
    chosen = choose_networks(run.settings.network, run.notes, run.observer)
    check_outputs([path for _, path in chosen], run.settings)
    extractor = make_extractor(chosen, run)
    check_tensor_name(extractor.network, run.settings.outputs.tensor_name)
    check_fine_tuning(extractor.network, run.settings.fine_tuning)
    return extractor


def choose_networks(
    settings: NetworkSettings, notes: RunNotes, observer: Observer
) -> list[tuple[Network, str | Path]]:
    """Returns [(Network, its file)] of one network, or of the two in the settings."""
    if len(settings.names) < 2:
        return [choose_network(settings, notes, observer)]
    places = settings.model_dir, observer, settings.offline
    both = [registry.find(name, settings.choice_for(name)) for name in settings.names]
    return [(known, obtain(known, *places, by_file=False)) for known in both]


def choose_network(
    settings: NetworkSettings, notes: RunNotes, observer: Observer
) -> tuple[Network, str | Path]:
    """Returns (Network, its file): as set, or Inception-v3, or else the embedded network."""
    name = settings.architecture or registry.DEFAULT
    wanted = registry.find(name, settings.choice_for(name))
    if settings.model_file and settings.architecture not in registry.READ_MODEL_FILE:
        return wanted, settings.model_file
    folder, offline = settings.model_dir, settings.offline
    try:
        return wanted, obtain(wanted, folder, observer, offline)
    except NetworkError as error:
        if settings.architecture:
            raise
        notes.add_remark(f"this run uses {registry.EMBEDDED}, since {error}")
    embedded = registry.find(registry.EMBEDDED)
    return embedded, obtain(embedded, folder, observer, offline)


def make_extractor(chosen: list[tuple[Network, str | Path]], run: RunContext) -> VectorSource:
    """Returns the source of vectors of the [(Network, its file)], at the chosen precision."""
    parts = [make_part(known, path, run) for known, path in chosen]
    return parts[0] if len(parts) == 1 else PairExtractor(*parts)


def make_part(known: Network, path: str | Path, run: RunContext) -> Extractor:
    """Returns the Extractor of one network, which may average the vectors of mirror images."""
    network = load_network(path, known, run.settings.network.choice.allow_unsafe_ops)
    preprocessing = replace(network.preprocessing, raw=run.settings.photos.raw)
    network = replace(network, preprocessing=preprocessing)
    if unsafe := describe_unsafe(network.graph_def):
        log.warning(f"running {path}, although it holds {unsafe}")
    for note in read_notes(network.graph_def):
        run.notes.add_caveat(note)
    vectors: BottleneckSettings = run.settings.bottlenecks
    on_ray = isinstance(vectors.engine, Ray)
    runtime = TENSORFLOW if on_ray else run.settings.network.runtime  # which all workers have
    precision = "float32"
    if runtime != LITERT:
        precision = resolve_precision(run.settings.network.precision, network.graph_def)
    if run.settings.network.mirror_average:
        network = mirror_average(network)
    how = ExtractionSettings(
        precision,
        vectors.batch_size,
        run.settings.photos.max_pixels,
        runtime=RuntimeSettings(runtime, (cache_folder(), Path(path).parent)),
    )
    if isinstance(vectors.engine, Ray):
        return RayExtractor(network, how, vectors.engine)
    return Extractor(network, how)
