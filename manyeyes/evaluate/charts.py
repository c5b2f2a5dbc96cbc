"""Geometry of the report's drawings: numbers in, coordinates out, no markup.

Design decisions:

- The template draws; here only places are computed, so that every text on the page passes through
  the template's escaping, axis labels and names of experts included.
- A curve of any length becomes at most ``MAX_POINTS`` means of equal stretches: a page with twelve
  charts of 100,000 steps stays under a megabyte and shows the same line.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_POINTS = 240
SMOOTHING = 0.9
"""Weight of the past in the smoothed line, per drawn point."""

WIDTH, HEIGHT = 360, 190
"""Size of a chart in its own units, about one CSS pixel each."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 26


@dataclass(frozen=True)
class Tick:
    """One mark of an axis."""

    place: float
    label: str


@dataclass(frozen=True)
class Line:
    """One series: an SVG path, and a smoothed one where the series is long enough."""

    name: str
    path: str
    smooth: str
    last: float


@dataclass(frozen=True)
class Chart:
    """A line chart."""

    title: str
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    description: str
    """What the chart says, in words."""


def line_chart(
    title: str, series: Sequence[tuple[str, Sequence[float], Sequence[float]]]
) -> Chart | None:
    """Lay out a chart.

    Args:
        title: what is drawn.
        series: (name, steps, values); values that are not finite are left out.

    Returns:
        The chart, or None when no series has two points.
    """
    drawn = [
        (name, *thin([(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]))
        for name, xs, ys in series
    ]
    drawn = [item for item in drawn if len(item[1]) > 1]
    if not drawn:
        return None
    x_high = max(xs[-1] for _, xs, _ in drawn)
    y_marks = nice_ticks(
        min(0.0, *(min(ys) for _, _, ys in drawn)), max(max(ys) for _, _, ys in drawn)
    )
    y_low, y_high = y_marks[0], y_marks[-1]

    def place_x(value: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * value / x_high

    def place_y(value: float) -> float:
        share = (value - y_low) / (y_high - y_low)
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * share

    def path(xs: Sequence[float], ys: Sequence[float]) -> str:
        places = (f"{place_x(x):.1f} {place_y(y):.1f}" for x, y in zip(xs, ys, strict=True))
        return "M" + "L".join(places)

    x_marks = [mark for mark in nice_ticks(0.0, x_high) if mark <= x_high]
    return Chart(
        title=title,
        left=_LEFT,
        right=WIDTH - _RIGHT,
        top=_TOP,
        bottom=HEIGHT - _BOTTOM,
        x_ticks=tuple(Tick(place_x(mark), compact(mark)) for mark in x_marks),
        y_ticks=tuple(Tick(place_y(mark), compact(mark)) for mark in y_marks),
        lines=tuple(
            Line(name, path(xs, ys), path(xs, smooth(ys)) if len(ys) > 20 else "", ys[-1])
            for name, xs, ys in drawn
        ),
        description="; ".join(
            f"{name}: from {compact(ys[0])} to {compact(ys[-1])} over {compact(xs[-1])} steps"
            for name, xs, ys in drawn
        ),
    )


def thin(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Replace a long curve by the means of equal stretches."""
    size = max(1, -(-len(points) // MAX_POINTS))
    stretches = [points[i : i + size] for i in range(0, len(points), size)]
    xs = [stretch[-1][0] for stretch in stretches]
    ys = [sum(y for _, y in stretch) / len(stretch) for stretch in stretches]
    return xs, ys


def smooth(values: Sequence[float]) -> list[float]:
    """Return the exponential moving average, corrected for its start."""
    result, mean, weight = [], 0.0, 0.0
    for value in values:
        mean = SMOOTHING * mean + (1.0 - SMOOTHING) * value
        weight = SMOOTHING * weight + (1.0 - SMOOTHING)
        result.append(mean / weight)
    return result


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return round numbers from at most ``low`` to at least ``high``, about ``count`` steps."""
    span = (high - low) or abs(high) or 1.0
    rough = span / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * magnitude for unit in (1, 2, 2.5, 5, 10) if unit * magnitude >= rough * 0.99)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def compact(value: float) -> str:
    """Write a number in few characters: ``0``, ``2.5``, ``12k``, ``3e-4``."""
    size = abs(value)
    if size == 0:
        return "0"
    if size < 0.001:
        return f"{value:.2g}".replace("e-0", "e-")
    if size >= 1_000_000:
        return f"{value / 1_000_000:.3g}M"
    if size >= 10_000:
        return f"{value / 1000:.3g}k"
    return f"{value:.4g}"


@dataclass(frozen=True)
class Box:
    """One step of the pipeline, placed."""

    x: float
    y: float
    name: str
    note: str
    state: str


@dataclass(frozen=True)
class Graph:
    """The pipeline, laid out in columns."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    edges: tuple[str, ...]
    """SVG paths."""


BOX_WIDTH, BOX_HEIGHT = 118, 46
_GAP_X, _GAP_Y, _MARGIN = 30, 12, 4


def graph(columns: Sequence[Sequence[tuple[str, str, str]]]) -> Graph:
    """Lay out a pipeline whose every column depends on the whole column before.

    Args:
        columns: per column its steps, (name, note, state).
    """
    tallest = max(len(column) for column in columns)
    height = 2 * _MARGIN + tallest * BOX_HEIGHT + (tallest - 1) * _GAP_Y
    placed: list[list[Box]] = []
    for number, column in enumerate(columns):
        used = len(column) * BOX_HEIGHT + (len(column) - 1) * _GAP_Y
        x, top = _MARGIN + number * (BOX_WIDTH + _GAP_X), (height - used) / 2
        placed.append(
            [
                Box(x, top + row * (BOX_HEIGHT + _GAP_Y), name, note, state)
                for row, (name, note, state) in enumerate(column)
            ]
        )
    edges = [
        _edge(start, end)
        for left, right in itertools.pairwise(placed)
        for start in left
        for end in right
    ]
    width = 2 * _MARGIN + len(columns) * BOX_WIDTH + (len(columns) - 1) * _GAP_X
    return Graph(width, height, tuple(box for column in placed for box in column), tuple(edges))


def _edge(start: Box, end: Box) -> str:
    x, y = start.x + BOX_WIDTH, start.y + BOX_HEIGHT / 2
    end_x, end_y = end.x, end.y + BOX_HEIGHT / 2
    middle = (x + end_x) / 2
    return f"M{x:g} {y:g}C{middle:g} {y:g} {middle:g} {end_y:g} {end_x:g} {end_y:g}"
