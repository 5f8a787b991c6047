"""The model of a run: a head and how far to trust it, as the bytes of a graph."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy import float32
from numpy.typing import NDArray

from retraining.bottlenecks.compute import Bottlenecks
from retraining.bottlenecks.extract import VectorSource
from retraining.evaluation.unknown import UnknownScore
from retraining.export.build import build_graph, describe, metadata_bytes
from retraining.graphs.write import graph_bytes
from retraining.networks.pair import fold_scale
from retraining.run.notes import RunContext
from retraining.system.atomic import write_files
from retraining.training.head import Head
from retraining.training.loop import Step


@dataclass(frozen=True)
class Trusted:
    """How far to trust the answers of the head, as fitted on the validation photos."""

    temperature: float = 1.0
    unknown: UnknownScore | None = None


@dataclass(frozen=True)
class Model:
    """What the run exports: the head, and how far to trust it.

    Both take vectors multiplied by `factors`, float32 [width], as Bottlenecks holds them.
    """

    head: Head
    trusted: Trusted
    factors: NDArray[float32] | None = None

    @property
    def unknown(self) -> UnknownScore | None:
        """The UnknownScore for vectors as the networks compute them, or None."""
        score = self.trusted.unknown
        if not score or self.head.hidden:  # the weights of hidden layers contain the factors
            return score
        return replace(score, factors=self.factors)


def build(model: Model, extractor: VectorSource, tensor_name: str) -> bytes:
    """Returns the bytes of the retrained graph, without its description."""
    head = model.head if model.factors is None else fold_scale(model.head, model.factors)
    return graph_bytes(build_graph(extractor.network, head, tensor_name))


def describe_model(
    labels: Sequence[str],
    extractor: VectorSource,
    run: RunContext,
    **facts: Any,
) -> dict[str, Any]:
    """Returns the description of the graph: how to use it, the settings, and `facts`."""
    facts |= {"precision": extractor.settings.precision, "caveats": run.notes.caveats}
    facts |= {"options": {**run.settings.record, "excluded_photos": run.notes.excluded_photos}}
    return describe(extractor.network, labels, run.settings.outputs.tensor_name, facts)


def store_intermediate(
    step: Step,
    bottlenecks: Bottlenecks,
    extractor: VectorSource,
    run: RunContext,
) -> None:
    """Writes the graph of this step, if it is one of the intermediate steps in the settings."""
    how = run.settings.head
    if not how.intermediate_steps or step.number == 0 or step.number % how.intermediate_steps:
        return
    path = os.path.join(how.intermediate_folder, f"intermediate_{step.number}.pb")
    model = Model(step.head, Trusted(), bottlenecks.factors)
    graph = build(model, extractor, run.settings.outputs.tensor_name)
    description = describe_model(bottlenecks.labels, extractor, run)
    write_files({path: graph + metadata_bytes(description)})
