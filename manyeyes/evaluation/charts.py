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
SMOOTHING = 0.85
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
    title: str,
    series: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    *,
    noisy: bool,
) -> Chart | None:
    """Lay out a chart.

    Args:
        title: what is drawn.
        series: (name, steps, values); values that are not finite are left out.
        noisy: also draw a smoothed line over each measured one.

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
    x_high = max(xs[-1] for _, xs, _ in drawn) or 1.0
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
            Line(name, path(xs, ys), path(xs, smooth(ys)) if noisy and len(ys) > 20 else "", ys[-1])
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
    if size < 0.01:
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
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
    """Cut to what fits into the box."""
    note: str
    state: str


@dataclass(frozen=True)
class Heading:
    """A word above a column, at its middle."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Graph:
    """The pipeline, laid out in columns."""

    width: float
    height: float
    headings: tuple[Heading, ...]
    boxes: tuple[Box, ...]
    edges: tuple[str, ...]
    """SVG paths."""


BOX_WIDTH, BOX_HEIGHT = 120, 46
LONGEST_NAME = 16
_GAP_X, _GAP_Y, _MARGIN, _HEADING = 28, 12, 4, 22


@dataclass(frozen=True)
class Column:
    """Steps that wait for nothing but the column before."""

    heading: str
    """Empty where the one step says it itself."""
    steps: tuple[tuple[str, str, str], ...]
    """(name, note, state)."""


def graph(columns: Sequence[Column]) -> Graph:
    """Lay out a pipeline whose every column depends on the whole column before."""
    tallest = max(_height(column) for column in columns)
    height = 2 * (_MARGIN + _HEADING) + tallest
    placed: list[list[Box]] = []
    headings = []
    for number, column in enumerate(columns):
        x, top = _MARGIN + number * (BOX_WIDTH + _GAP_X), (height - _height(column)) / 2
        placed.append(
            [
                Box(x, top + row * (BOX_HEIGHT + _GAP_Y), shorten(name), note, state)
                for row, (name, note, state) in enumerate(column.steps)
            ]
        )
        if column.heading:
            headings.append(Heading(x + BOX_WIDTH / 2, top - 8, column.heading))
    edges = [
        _edge(start, end)
        for left, right in itertools.pairwise(placed)
        for start in left
        for end in right
    ]
    width = 2 * _MARGIN + len(columns) * BOX_WIDTH + (len(columns) - 1) * _GAP_X
    boxes = tuple(box for column in placed for box in column)
    return Graph(width, height, tuple(headings), boxes, tuple(edges))


def shorten(name: str) -> str:
    """Cut a name to what fits into a box."""
    return (
        name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "\N{HORIZONTAL ELLIPSIS}"
    )


def _height(column: Column) -> float:
    return len(column.steps) * BOX_HEIGHT + (len(column.steps) - 1) * _GAP_Y


def _edge(start: Box, end: Box) -> str:
    x, y = start.x + BOX_WIDTH, start.y + BOX_HEIGHT / 2
    end_x, end_y = end.x, end.y + BOX_HEIGHT / 2
    middle = (x + end_x) / 2
    return f"M{x:g} {y:g}C{middle:g} {y:g} {middle:g} {end_y:g} {end_x:g} {end_y:g}"
