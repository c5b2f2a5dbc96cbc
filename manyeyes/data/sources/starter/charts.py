"""Bar charts of real table rows, drawn with matplotlib and asked about as ChartQA does.

Design decisions:

- Each bar is the mean of one feature over a few rows of one table (``sources.FEATURES``); its
  rounded value is printed above it, as in most charts of ChartQA.
- One figure is kept and its artists moved: a fresh figure would cost twenty times as long.
- matplotlib reads settings while it draws, so all drawing happens inside :class:`ChartPen`, which
  holds the library's defaults and gives the user's own settings back.
- The axes span the picture, one data unit per layout unit. Bars stand in the middle of a column
  of cells and values in the middle of a row, where one visual token sees them whole.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from manyeyes.data.dataset.annotation import SceneObject
from manyeyes.data.sources.starter.drawing import (
    CELL,
    UNITS,
    Drawing,
    Question,
    choose,
    font_file,
    paper,
    pick,
    scale_box,
    tint,
)
from manyeyes.data.sources.starter.sources import FEATURES, Feature, Material
from manyeyes.data.sources.starter.vocabulary import COLOURS

if TYPE_CHECKING:
    from types import TracebackType

    from matplotlib.text import Text

FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "STIXGeneral")
_BASELINE = 112.0
_TALLEST = 78.0
"""Height of a bar that reaches the top of the axis, in layout units."""
_COLUMNS = {
    3: ((0.5, 3.0, 5.5), 26.0),
    4: ((0.0, 2.0, 4.0, 6.0), 20.0),
    5: ((0.0, 1.5, 3.0, 4.5, 6.0), 17.0),
}
"""Number of bars to the left edges of their columns (in cells) and the bars' width (in units)."""
_CLEAR = 4
"""Least difference between the tallest (smallest) bar and the next for a question about it."""
_INK = "#202020"


@dataclass(frozen=True)
class Bar:
    """One bar before it is drawn."""

    colour: str
    value: int
    entity: str


class ChartPen:
    """Draws charts into one reused figure; a context manager that owns matplotlib's settings."""

    def __init__(self, image_size: int) -> None:
        """Prepare for square pictures of ``image_size`` pixels."""
        self.image_size = image_size
        self._settings = contextlib.ExitStack()

    def __enter__(self) -> ChartPen:
        """Take over matplotlib's settings and make the figure."""
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.font_manager import FontProperties

        self._settings.enter_context(matplotlib.rc_context())
        matplotlib.rcdefaults()
        inches = self.image_size / 72
        # 72 dots an inch: a point is a pixel.
        self._canvas: Any = FigureCanvasAgg(Figure(figsize=(inches, inches), dpi=72))
        self._axes: Any = self._canvas.figure.add_axes((0, 0, 1, 1))
        self._axes.set_axis_off()
        self._axes.set_xlim(0, UNITS)
        self._axes.set_ylim(UNITS, 0)
        self._fonts = {name: FontProperties(fname=str(font_file(name))) for name in FONTS}
        self._lines = [self._axes.plot([0, 0], [0, 0], zorder=0.5)[0] for _ in range(5)]
        self._bars = self._axes.bar(range(5), [1] * 5)
        self._labels = [self._axes.text(0, 0, "", ha="center") for _ in range(5)]
        self._title = self._axes.text(0, 0, "", ha="center")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give matplotlib's settings back."""
        self._settings.close()

    def draw(self, rng: np.random.Generator, material: Material) -> Drawing:
        """Draw a chart of three to five bars, half of the time with a title."""
        feature = choose(rng, FEATURES)
        bars = _compose(rng, material, feature)
        titled = rng.random() < 0.5
        self._draw_frame(rng)
        boxes = self._draw_bars(rng, bars)
        size = float(rng.uniform(11.0, 13.0))
        name = choose(rng, FONTS)
        heights = [box[1] for box in boxes]
        for place, label in enumerate(self._labels):
            shown = place < len(bars)
            label.set_visible(shown)
            if shown:
                middle = (boxes[place][0] + boxes[place][2]) / 2
                line = CELL * ((heights[place] - 15) // CELL) + CELL / 2
                value = str(bars[place].value)
                self._write(label, value, (middle, line + float(rng.uniform(-1, 1))), size, name)
        self._title.set_visible(titled)
        if titled:
            middle = UNITS / 2 + float(rng.uniform(-8, 8))
            self._write(self._title, feature.title, (middle, CELL / 2), size, name)
        self._canvas.draw()
        pixels = np.asarray(self._canvas.buffer_rgba())[..., :3].copy()
        return Drawing(
            image=Image.fromarray(pixels),
            kind="charts",
            source=feature.table,
            objects=self._objects(bars, boxes, feature.title if titled else ""),
            entities=tuple(dict.fromkeys(bar.entity for bar in bars)),
            caption=_caption(bars, feature.title if titled else ""),
            questions=chart_questions(bars, feature.title if titled else ""),
        )

    def _draw_frame(self, rng: np.random.Generator) -> None:
        """Draw the paper, the axis and, half of the time, faint grid lines."""
        self._canvas.figure.set_facecolor([channel / 255 for channel in paper(rng)])
        gridded = rng.random() < 0.5
        unit = self.image_size / UNITS
        for place, line in enumerate(self._lines):
            height = _BASELINE - place * _TALLEST / 4
            line.set_data([3, UNITS - 3], [height, height])
            line.set_color(_INK if place == 0 else "#d4d4d4")
            line.set_linewidth(1.2 * unit if place == 0 else 0.6 * unit)
            line.set_visible(place == 0 or gridded)

    def _draw_bars(
        self, rng: np.random.Generator, bars: list[Bar]
    ) -> list[tuple[float, float, float, float]]:
        """Move the bars into place and return their boxes in layout units."""
        edges, width = _COLUMNS[len(bars)]
        top = next(limit for limit in (10, 20, 30, 40, 60, 80, 100) if limit >= _tallest(bars))
        shift = float(rng.uniform(0, 4))
        boxes = []
        for place, patch in enumerate(self._bars):
            patch.set_visible(place < len(bars))
            if place < len(bars):
                height = max(2.0, _TALLEST * bars[place].value / top)
                left = edges[place] * CELL + shift
                patch.set_bounds(left, _BASELINE - height, width, height)
                colour = tint(rng, bars[place].colour)
                patch.set_facecolor([channel / 255 for channel in colour])
                boxes.append((left, _BASELINE - height, left + width, _BASELINE))
        return boxes

    def _write(
        self, text: Text, words: str, middle: tuple[float, float], size: float, name: str
    ) -> None:
        """Set a text so that the middle of its small letters or digits lies at ``middle``."""
        text.set_text(words)
        text.set_fontproperties(self._fonts[name])
        text.set_fontsize(size * self.image_size / UNITS)
        text.set_color(_INK)
        text.set_verticalalignment("baseline")
        text.set_position((middle[0], middle[1] + size * 0.36))

    def _objects(
        self, bars: list[Bar], boxes: list[tuple[float, float, float, float]], title: str
    ) -> tuple[SceneObject, ...]:
        unit = self.image_size / UNITS
        objects = []
        for bar, box, label in zip(bars, boxes, self._labels, strict=False):
            objects.append(SceneObject("bar", "bar", bar.colour, scale_box(box, unit)))
            objects.append(SceneObject("number", str(bar.value), "", self._ink_box(label)))
        if title:
            objects.append(SceneObject("word", title, "", self._ink_box(self._title)))
        return tuple(objects)

    def _ink_box(self, text: Text) -> tuple[float, float, float, float]:
        """Return a drawn text's box in pixels, from baseline to the height of digits."""
        extent = text.get_window_extent()
        baseline = float(text.get_position()[1]) * self.image_size / UNITS
        return (
            float(extent.x0),
            baseline - 0.73 * float(text.get_fontsize()),
            float(extent.x1),
            baseline,
        )


def _compose(rng: np.random.Generator, material: Material, feature: Feature) -> list[Bar]:
    """Choose row groups of one table and distinct colours; bars of value 0 are left out."""
    groups = material.groups[feature.table]
    usable = [
        (group.entity, value)
        for group in groups
        if 1 <= (value := round(float(group.means[feature.column]) * feature.factor)) <= 99
    ]
    count = int(rng.integers(3, 6))
    colours = pick(rng, tuple(COLOURS), count)
    return [
        Bar(colour, value, entity)
        for colour, (entity, value) in zip(colours, pick(rng, usable, count), strict=True)
    ]


def _tallest(bars: list[Bar]) -> int:
    return max(bar.value for bar in bars)


def _caption(bars: list[Bar], title: str) -> str:
    about = f" of {title}" if title else ""
    return f"A bar chart{about}: {', '.join(f'{bar.colour} {bar.value}' for bar in bars)}."


def chart_questions(bars: list[Bar], title: str) -> tuple[Question, ...]:
    """Ask for numbers of bars, values, extremes, differences, and the title if there is one."""
    questions = [Question("count", "How many bars are there?", str(len(bars)))]
    for bar in bars:
        questions += [
            Question("value", f"What is the value of the {bar.colour} bar?", str(bar.value)),
            Question("value", f"How high is the {bar.colour} bar?", str(bar.value)),
        ]
    ranked = sorted(bars, key=lambda bar: bar.value)
    if ranked[1].value - ranked[0].value >= _CLEAR:
        questions.append(Question("extreme", "Which bar is the smallest?", ranked[0].colour))
        questions.append(Question("extreme", "What colour is the smallest bar?", ranked[0].colour))
    if ranked[-1].value - ranked[-2].value >= _CLEAR:
        questions.append(Question("extreme", "Which bar is the tallest?", ranked[-1].colour))
        questions.append(Question("extreme", "What colour is the tallest bar?", ranked[-1].colour))
    if title:
        questions.append(Question("title", "What does the chart show?", title))
    high, low = ranked[-1], ranked[0]
    text = f"What is the difference between the {high.colour} bar and the {low.colour} bar?"
    questions.append(Question("difference", text, str(high.value - low.value)))
    return tuple(questions)
