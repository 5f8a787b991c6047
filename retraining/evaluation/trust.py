"""What a graph stores of its temperature and its score for unknown images."""

import numpy as np

from retraining.errors import RetrainingError
from retraining.evaluation.unknown import QUANTILES, UnknownScore


class TrustError(RetrainingError):
    """What a graph stores of its trust cannot be used."""


# -- in the graph ----------------------------------------------------------------------------

ORIGIN, AXES_NODE = "retraining/unknown/origin", "retraining/unknown/axes"
FACTORS = "retraining/unknown/factors"  # only there where there are factors


def described(temperature, unknown):
    """The part of a graph's description (dict for JSON) that goes with `constants`."""
    about = {"temperature": temperature}
    if unknown:
        about["unknown"] = {
            "score": "vim",
            "scale": unknown.scale,
            "quantiles": unknown.quantiles.tolist(),
        }
    return about


def constants(unknown):
    """{node name: array} to be stored in the graph."""
    if not unknown:
        return {}
    factors = {} if unknown.factors is None else {FACTORS: unknown.factors}
    return {ORIGIN: unknown.origin, AXES_NODE: unknown.axes, **factors}


def read(about, constant):
    """(temperature, UnknownScore or None) of a graph's description; (1.0, None) of others.

    Args:
        about: dict, the description; constant: gives the array of a node's name, or None.

    Raises:
        TrustError: the description is damaged.
    """
    stored = about.get("unknown")
    try:
        temperature = float(about.get("temperature", 1.0))
        if not 0 < temperature < np.inf:
            raise ValueError
        if not stored or stored["score"] != "vim":
            return temperature, None
        quantiles = np.array(stored["quantiles"], np.float64)
        unknown = UnknownScore(
            constant(ORIGIN),
            constant(AXES_NODE),
            float(stored["scale"]),
            quantiles,
            constant(FACTORS),
        )
        if unknown.factors is not None and unknown.factors.shape != unknown.origin.shape:
            raise ValueError
        if quantiles.shape != QUANTILES.shape or unknown.origin.shape != unknown.axes.shape[:1]:
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TrustError("the graph's own temperature or unknown score is damaged") from error
    return temperature, unknown
