"""Stores a temperature and an UnknownScore in a graph, and reads them back."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retraining.errors import RetrainingError
from retraining.evaluation.unknown import QUANTILES, UnknownScore


class TrustError(RetrainingError):
    """The temperature or the UnknownScore stored in a graph is damaged."""


ORIGIN, AXES_NODE = "retraining/unknown/origin", "retraining/unknown/axes"
FACTORS = "retraining/unknown/factors"  # absent if the score has no factors


def described(temperature: float, unknown: UnknownScore | None) -> dict[str, Any]:
    """Returns the part of a graph's description (a dict for JSON) that belongs to `constants`."""
    description: dict[str, Any] = {"temperature": temperature}
    if unknown:
        description["unknown"] = {
            "score": "vim",
            "scale": unknown.scale,
            "quantiles": unknown.quantiles.tolist(),
        }
    return description


def constants(unknown: UnknownScore | None) -> dict[str, NDArray[np.float32]]:
    """Returns the arrays to store in the graph, {node name: array}."""
    if not unknown:
        return {}
    factors = {} if unknown.factors is None else {FACTORS: unknown.factors}
    return {ORIGIN: unknown.origin, AXES_NODE: unknown.axes, **factors}


def read(
    description: Mapping[str, Any], constant: Callable[[str], NDArray[np.float32] | None]
) -> tuple[float, UnknownScore | None]:
    """Reads (temperature, UnknownScore or None); (1.0, None) if the graph has neither.

    Args:
        description: the graph's description.
        constant: returns the array stored in the node of that name, or None.

    Raises:
        TrustError: the description is damaged, or arrays are missing.
    """
    stored = description.get("unknown")
    try:
        temperature = float(description.get("temperature", 1.0))
        if not 0 < temperature < np.inf:
            raise ValueError
        if not stored or stored["score"] != "vim":
            return temperature, None
        quantiles = np.array(stored["quantiles"], np.float64)
        origin, axes = constant(ORIGIN), constant(AXES_NODE)
        if origin is None or axes is None:
            raise ValueError
        factors = constant(FACTORS)
        unknown = UnknownScore(origin, axes, float(stored["scale"]), quantiles, factors)
        if factors is not None and factors.shape != origin.shape:
            raise ValueError
        if quantiles.shape != QUANTILES.shape or (origin.ndim, axes.ndim) != (1, 2):
            raise ValueError
        numbers = (origin, axes, unknown.scale, quantiles, 0 if factors is None else factors)
        if len(axes) != len(origin) or not all(np.isfinite(part).all() for part in numbers):
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise TrustError("the graph's own temperature or unknown score is damaged") from error
    return temperature, unknown
