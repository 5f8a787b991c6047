"""Computes the coordinates of the report's figures; the templates draw them as SVG."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

WIDTH, HEIGHT = 440, 270  # of a figure, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 46, 24, 12, 42  # its margins

Ticks: TypeAlias = Sequence[tuple[float, str]]  # (value, text)
Figure: TypeAlias = dict[str, Any]  # {name in the template: an Axis, or positions}


@dataclass(frozen=True)
class Axis:
    """An axis: values `low` to `high` lie at positions `start` to `end` of the figure."""

    low: float
    high: float
    start: float
    end: float
    ticks: Ticks
    name: str
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Returns the position of a value."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        share = (value - low) / (high - low)
        return round(self.start + share * (self.end - self.start), 1)

    @property
    def placed_ticks(self) -> list[tuple[float, str]]:
        """The (position, text) of each tick."""
        return [(self(value), text) for value, text in self.ticks]


def across(low: float, high: float, ticks: Ticks, name: str, logarithmic: bool = False) -> Axis:
    """Returns a horizontal Axis."""
    return Axis(low, high, LEFT, WIDTH - RIGHT, ticks, name, logarithmic)


def upwards(low: float, high: float, ticks: Ticks, name: str) -> Axis:
    """Returns a vertical Axis."""
    return Axis(low, high, HEIGHT - BOTTOM, TOP, ticks, name)


def percent_ticks(low: float) -> Ticks:
    """Returns ticks from `low` (a multiple of 0.1) to 1."""
    step = 0.2 if low < 0.55 else 0.1 if low < 0.85 else 0.05
    values = [low + step * n for n in range(round((1 - low) / step) + 1)]
    return [(value, f"{value:.0%}") for value in values if value < 1.001]


def number_ticks(high: float, most: int = 5) -> Ticks:
    """Returns ticks from 0 to `high` at round steps (1, 2 or 5 times a power of ten)."""
    step = 10.0 ** math.floor(math.log10(high / most))
    step *= next(factor for factor in (1, 2, 5, 10) if step * factor * most >= high)
    return [(n * step, f"{n * step:,.10g}") for n in range(int(high / step) + 1)]


def floor_tenth(value: float) -> float:
    """Rounds `value` down to a multiple of 0.1, from 0 to 0.9."""
    return min(0.9, max(0.0, math.floor(value * 10) / 10))


def points(xs: Iterable[float], ys: Iterable[float], x_axis: Axis, y_axis: Axis) -> str:
    """Returns the `points` of a polyline or polygon; clips values to the range of `y_axis`."""
    low, high = y_axis.low, y_axis.high
    pairs = zip(xs, ys, strict=True)
    return " ".join(f"{x_axis(x)},{y_axis(min(high, max(low, y)))}" for x, y in pairs)


def smooth(values: Sequence[float], share: float = 0.05) -> list[float]:
    """Returns moving averages; the window holds a `share` of all values."""
    reach = int(len(values) * share / 2)
    windows = (values[max(0, n - reach) : n + reach + 1] for n in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def course_figures(course: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Returns the figures of accuracy and cross entropy during training.

    Each has axes, and lines [(name, points, smoothed points)].
    """
    if not course:
        return {}
    end = max(1, course[-1]["step"])
    x_axis = across(0, end, number_ticks(end), "step")
    return {what: _course_figure(course, what, x_axis) for what in ("accuracy", "cross_entropy")}


def _course_figure(course: Sequence[Mapping[str, Any]], what: str, x_axis: Axis) -> Figure:
    lines: dict[str, tuple[tuple[float, ...], ...]] = {}  # {part: (steps, values)}
    for part in ("training", "validation"):
        measured = [(c["step"], c[part][what]) for c in course if c[part][what] is not None]
        if measured:
            lines[part] = tuple(zip(*measured, strict=True))
    values = [value for _, line in lines.values() for value in line]
    if what == "accuracy":
        low = floor_tenth(sorted(values)[len(values) // 50])  # the first steps may lie below
        y_axis = upwards(low, 1, percent_ticks(low), "accuracy")
    else:
        high = max(values) or 1
        y_axis = upwards(0, high, number_ticks(high), "cross entropy")
    drawn = [
        (part, points(xs, ys, x_axis, y_axis), points(xs, smooth(ys), x_axis, y_axis))
        for part, (xs, ys) in lines.items()
    ]
    return {"x": x_axis, "y": y_axis, "lines": drawn}


def sizes_figure(sizes: Mapping[str, Any]) -> Figure | None:
    """Returns the figure of accuracy by number of training photos; None without points.

    Its band is the 95 % interval.
    """
    trials = sizes["points"]
    if not trials:
        return None
    counts, means = [p["photos"] for p in trials], [p["accuracy"] for p in trials]
    low, high = zip(*(p["interval"] for p in trials), strict=True)
    least = floor_tenth(min(low))
    ticks = [(count, f"{count:,}") for count in counts]
    x_axis = across(counts[0], counts[-1], ticks, "training photos", logarithmic=True)
    y_axis = upwards(least, 1, percent_ticks(least), "accuracy")
    band = points((*counts, *counts[::-1]), (*high, *low[::-1]), x_axis, y_axis)
    dots = [(x_axis(c), y_axis(m)) for c, m in zip(counts, means, strict=True)]
    line = points(counts, means, x_axis, y_axis)
    return {"x": x_axis, "y": y_axis, "band": band, "line": line, "dots": dots}


def reliability_figure(bins: Iterable[Mapping[str, Any]]) -> Figure:
    """Returns the reliability diagram.

    Each bin with photos has a bar (x, y, width, height), a dot at its mean confidence, and a
    whisker (x, low, high) for its interval.
    """
    x_axis = across(0, 1, percent_ticks(0), "predicted probability")
    y_axis = upwards(0, 1, percent_ticks(0), "share of correct answers")
    bars: list[tuple[float, ...]] = []
    whiskers: list[tuple[float, ...]] = []
    dots: list[tuple[float, float]] = []
    for group in (one for one in bins if one["photos"]):
        left, right, top = x_axis(group["low"]), x_axis(group["high"]), y_axis(group["accuracy"])
        bars.append((left + 1, top, round(right - left - 2, 1), round(y_axis(0) - top, 1)))
        middle = x_axis(group["confidence"])
        dots.append((middle, top))
        whiskers.append((middle, *map(y_axis, group["interval"])))
    diagonal = (x_axis(0), y_axis(0), x_axis(1), y_axis(1))
    drawn = {"bars": bars, "whiskers": whiskers, "dots": dots, "diagonal": diagonal}
    return {"x": x_axis, "y": y_axis, **drawn}
