"""Checks the values of settings."""

import math
import os
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, TypeAlias

from retraining.errors import RetrainingError

Range: TypeAlias = tuple[float, float]  # the lowest and the highest value


class SettingsError(RetrainingError):
    """A setting is out of range, or settings contradict each other."""


def check_ranges(settings: Any, ranges: Mapping[str, Range]) -> None:
    """Checks the fields of a dataclass that `ranges` names; None is always allowed.

    Raises:
        SettingsError: a field is no number within its range.
    """
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        if value is not None and not low <= value <= high:  # NaN is in no range
            limits = f"{low:g} or more" if math.isinf(high) else f"from {low:g} to {high:g}"
            raise SettingsError(f"{name} must be {limits}, not {value}")


def spell_paths(settings: Any) -> None:
    """Replaces the Paths in the fields of a frozen dataclass by their text."""
    for about in fields(settings):
        value = getattr(settings, about.name)
        if isinstance(value, os.PathLike):
            object.__setattr__(settings, about.name, os.fspath(value))


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raises SettingsError if a value is none of the choices."""
    if value not in choices:
        raise SettingsError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
