"""The model of a run: a head and how far to trust it, as the bytes of a graph."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy import float32
from numpy.typing import NDArray

from retraining.bottlenecks.compute import Bottlenecks
from retraining.evaluation.unknown import UnknownScore
from retraining.export.build import build_graph, describe, metadata_bytes
from retraining.graphs.write import graph_bytes
from retraining.networks.pair import fold_scale
from retraining.run.network import AnyExtractor
from retraining.run.notes import RunNotes
from retraining.run.settings import RunSettings
from retraining.system.atomic import write_files
from retraining.training.head import Head
from retraining.training.loop import Step


@dataclass(frozen=True)
class Trusted:
    """How far to trust the head's answers, as fitted on the validation photos."""

    temperature: float = 1.0
    unknown: UnknownScore | None = None


@dataclass(frozen=True)
class Model:
    """What is exported: the softmax layer, and how far to trust it.

    Both are for vectors multiplied by `factors`, float32 [width], as Bottlenecks holds them.
    """

    head: Head
    trusted: Trusted
    factors: NDArray[float32] | None = None

    @property
    def unknown(self) -> UnknownScore | None:
        """The UnknownScore for vectors as the networks give them, or None."""
        score = self.trusted.unknown
        if not score or self.head.hidden:  # behind hidden layers the factors are in the weights
            return score
        return replace(score, factors=self.factors)


def build(model: Model, extractor: AnyExtractor, tensor_name: str) -> bytes:
    """The bytes of the retrained graph, without its description."""
    head = model.head if model.factors is None else fold_scale(model.head, model.factors)
    return graph_bytes(build_graph(extractor.network, head, tensor_name))


def describe_model(
    labels: Sequence[str],
    extractor: AnyExtractor,
    settings: RunSettings,
    notes: RunNotes,
    **facts: Any,
) -> dict[str, Any]:
    """What the graph says of itself: how to use it, the settings, and what else is known."""
    facts |= {"precision": extractor.settings.precision, "caveats": notes.caveats}
    facts |= {"options": {**settings.record, "excluded_photos": notes.excluded_photos}}
    return describe(extractor.network, labels, settings.outputs.tensor_name, facts)


def store_intermediate(
    step: Step,
    bottlenecks: Bottlenecks,
    extractor: AnyExtractor,
    settings: RunSettings,
    notes: RunNotes,
) -> None:
    """Writes the graph as it is after this step, every so many steps, if that is asked for."""
    how = settings.head
    if not how.intermediate_steps or step.number == 0 or step.number % how.intermediate_steps:
        return
    path = os.path.join(how.intermediate_folder, f"intermediate_{step.number}.pb")
    model = Model(step.head, Trusted(), bottlenecks.factors)
    graph = build(model, extractor, settings.outputs.tensor_name)
    description = describe_model(bottlenecks.labels, extractor, settings, notes)
    write_files({path: graph + metadata_bytes(description)})
