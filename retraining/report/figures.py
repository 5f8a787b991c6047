"""Coordinates of the report's figures; the templates draw them as SVG."""

import math
from dataclasses import dataclass

WIDTH, HEIGHT = 440, 270  # of a figure, in its own units
LEFT, RIGHT, TOP, BOTTOM = 46, 24, 12, 42  # its margins


@dataclass(frozen=True)
class Axis:
    """One axis: its range, where it lies in the figure, its ticks [(position, text)], its name."""

    low: float
    high: float
    start: float
    end: float
    ticks: list
    name: str
    logarithmic: bool = False

    def __call__(self, value):
        """The position of a value."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        share = (value - low) / (high - low)
        return round(self.start + share * (self.end - self.start), 1)

    @property
    def placed_ticks(self):
        """[(position, text)]."""
        return [(self(value), text) for value, text in self.ticks]


def across(low, high, ticks, name, logarithmic=False):
    """The horizontal Axis."""
    return Axis(low, high, LEFT, WIDTH - RIGHT, ticks, name, logarithmic)


def upwards(low, high, ticks, name):
    """The vertical Axis."""
    return Axis(low, high, HEIGHT - BOTTOM, TOP, ticks, name)


def percent_ticks(low):
    """Ticks from `low` (a multiple of 0.1) to 1."""
    step = 0.2 if low < 0.55 else 0.1 if low < 0.85 else 0.05
    values = [low + step * n for n in range(round((1 - low) / step) + 1)]
    return [(value, f"{value:.0%}") for value in values if value < 1.001]


def number_ticks(high, most=5):
    """Ticks from 0 to `high` at round steps (1, 2 or 5 times a power of ten)."""
    step = 10.0 ** math.floor(math.log10(high / most))
    step *= next(factor for factor in (1, 2, 5, 10) if step * factor * most >= high)
    return [(n * step, f"{n * step:,.10g}") for n in range(int(high / step) + 1)]


def floor_tenth(value):
    """The greatest multiple of 0.1 that is not above `value`, 0..0.9."""
    return min(0.9, max(0.0, math.floor(value * 10) / 10))


def points(xs, ys, x_axis, y_axis):
    """The `points` of a polyline or polygon; values beyond the axis are put on its end."""
    low, high = y_axis.low, y_axis.high
    pairs = zip(xs, ys, strict=True)
    return " ".join(f"{x_axis(x)},{y_axis(min(high, max(low, y)))}" for x, y in pairs)


def smooth(values, share=0.05):
    """Means of each value and its neighbours, `share` of all of them in a window."""
    reach = int(len(values) * share / 2)
    windows = (values[max(0, n - reach) : n + reach + 1] for n in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def course_figures(course):
    """{accuracy, cross_entropy}: the axes and the lines [(name, fine, smoothed)] of each."""
    if not course:
        return {}
    end = max(1, course[-1]["step"])
    x_axis = across(0, end, number_ticks(end), "step")
    return {what: _course_figure(course, what, x_axis) for what in ("accuracy", "cross_entropy")}


def _course_figure(course, what, x_axis):
    lines = {}
    for part in ("training", "validation"):
        found = [(c["step"], c[part][what]) for c in course if c[part][what] is not None]
        if found:
            lines[part] = tuple(zip(*found, strict=True))
    values = [value for _, line in lines.values() for value in line]
    if what == "accuracy":
        low = floor_tenth(sorted(values)[len(values) // 50])  # the very first may lie below
        y_axis = upwards(low, 1, percent_ticks(low), "accuracy")
    else:
        high = max(values) or 1
        y_axis = upwards(0, high, number_ticks(high), "cross entropy")
    drawn = [
        (part, points(xs, ys, x_axis, y_axis), points(xs, smooth(ys), x_axis, y_axis))
        for part, (xs, ys) in lines.items()
    ]
    return {"x": x_axis, "y": y_axis, "lines": drawn}


def sizes_figure(sizes):
    """Accuracy by number of training photos, with its band of 95 %; None without points."""
    found = sizes["points"]
    if not found:
        return None
    counts, means = [p["photos"] for p in found], [p["accuracy"] for p in found]
    low, high = zip(*(p["interval"] for p in found), strict=True)
    least = floor_tenth(min(low))
    ticks = [(count, f"{count:,}") for count in counts]
    x_axis = across(counts[0], counts[-1], ticks, "training photos", logarithmic=True)
    y_axis = upwards(least, 1, percent_ticks(least), "accuracy")
    band = points((*counts, *counts[::-1]), (*high, *low[::-1]), x_axis, y_axis)
    dots = [(x_axis(c), y_axis(m)) for c, m in zip(counts, means, strict=True)]
    line = points(counts, means, x_axis, y_axis)
    return {"x": x_axis, "y": y_axis, "band": band, "line": line, "dots": dots}


def reliability_figure(bins):
    """Per filled bin a bar (x, y, width, height), a dot at its mean confidence, its interval."""
    x_axis = across(0, 1, percent_ticks(0), "probability it gave")
    y_axis = upwards(0, 1, percent_ticks(0), "share that was right")
    bars, whiskers, dots = [], [], []
    for found in (one for one in bins if one["photos"]):
        left, right, top = x_axis(found["low"]), x_axis(found["high"]), y_axis(found["accuracy"])
        bars.append((left + 1, top, round(right - left - 2, 1), round(y_axis(0) - top, 1)))
        middle = x_axis(found["confidence"])
        dots.append((middle, top))
        whiskers.append((middle, *map(y_axis, found["interval"])))
    diagonal = (x_axis(0), y_axis(0), x_axis(1), y_axis(1))
    drawn = {"bars": bars, "whiskers": whiskers, "dots": dots, "diagonal": diagonal}
    return {"x": x_axis, "y": y_axis, **drawn}
