"""The report: one page that a person opens, with everything in it.

Design decisions:

- One file: styles, drawings and pictures are inside, nothing is loaded, and a content security
  policy says so to the browser. It can be mailed, archived, opened in ten years.
- What is shown comes in through ``ReportInputs``. A part without data is left out: no empty box,
  no invented number.
- Every text passes through the template engine's escaping: questions, answers and file names are
  written by others (a model may answer ``<script>``).
- Drawings are SVG with the page's own colours, so they follow a dark screen; each has a text
  alternative, and no colour is the only carrier of a meaning.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from manyeyes.artifact.files import REPORT_FILE
from manyeyes.artifact.manifest import atomic_write_text
from manyeyes.errors import UserError
from manyeyes.evaluation import charts
from manyeyes.evaluation.score_table import interval, score_rows, subset_tables
from manyeyes.runtime.json_files import parse_json, read_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import jinja2

    from manyeyes.artifact.lineage import Ancestor
    from manyeyes.evaluation.examples import Example
    from manyeyes.evaluation.score import Scores

StageState = Literal["ran", "cached", "known", "running", "next"]
"""What the run did: made a result, took it from the store, or left no word on it (``known``)."""


@dataclass(frozen=True)
class Curve:
    """How one training went: lists of equal length."""

    stage: str
    name: str
    """The expert, or the stage itself."""
    steps: tuple[float, ...]
    loss: tuple[float, ...]
    learning_rate: tuple[float, ...]
    tokens_per_second: tuple[float, ...]


@dataclass(frozen=True)
class StageTime:
    """One box of the pipeline."""

    stage: str
    expert: str
    """Empty for stages that are not per expert."""
    seconds: float | None
    """None where it is not known (yet)."""
    state: StageState


@dataclass(frozen=True)
class Note:
    """What a stage found worth telling a person."""

    stage: str
    """``sft``, ``prealign:clip``."""
    text: str


@dataclass(frozen=True)
class SourceCard:
    """One source of the data."""

    name: str
    licence: str
    provenance: str
    samples: int
    images: int


@dataclass(frozen=True)
class ReportInputs:
    """All a report can show; everything but the title and the scores may be missing."""

    title: str
    """Name of the recipe."""
    scores: Scores
    subtitle: str = ""
    """One line on what it is: the mixture, the language model."""
    created: str = ""
    """When, as a person reads it."""
    examples: tuple[Example, ...] = ()
    curves: tuple[Curve, ...] = ()
    stages: tuple[StageTime, ...] = ()
    """In pipeline order; the experts of ``prealign`` one after the other."""
    notes: tuple[Note, ...] = ()
    """In pipeline order."""
    revision: str = ""
    """Of the code."""
    lineage: tuple[Ancestor, ...] = ()
    """The stages above, in pipeline order."""
    libraries: Mapping[str, str] = field(default_factory=dict)
    """Name -> version."""
    sources: tuple[SourceCard, ...] = ()


def write_report(inputs: ReportInputs, out: Path) -> Path:
    """Write ``report.html`` into ``out``, whole or not at all, and return its path."""
    path = out / REPORT_FILE
    atomic_write_text(path, render(inputs))
    return path


def render(inputs: ReportInputs) -> str:
    """Return the page."""
    page: str = (
        _environment()
        .get_template("report.html")
        .render(
            inputs=inputs,
            verdict=verdict(inputs.scores),
            rows=score_rows(inputs.scores),
            subset_tables=subset_tables(inputs.scores),
            charts=stage_charts(inputs.curves),
            graph=pipeline_graph(inputs.stages),
            chart_size=(charts.WIDTH, charts.HEIGHT),
            box_size=(charts.BOX_WIDTH, charts.BOX_HEIGHT),
            total_seconds=duration(sum(stage.seconds or 0.0 for stage in inputs.stages)),
            examples=group_examples(inputs.examples),
        )
    )
    return page


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("manyeyes.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["points"] = lambda value: f"{value:.1f}"
    environment.filters["signed"] = lambda value: f"{value:+.1f}".replace("-", "\N{MINUS SIGN}")
    return environment


def verdict(scores: Scores) -> str:
    """Say in two sentences what the scores mean."""
    average = scores.average
    first = (
        f"Average {average.score.value:.1f} of 100 over {_tasks(len(scores.tasks))} "
        f"({interval(average.score)})"
    )
    gains = {
        name: task.total.gain for name, task in scores.tasks.items() if task.total.gain is not None
    }
    if average.gain is None or len(gains) < len(scores.tasks):
        return first + "."
    first += (
        f", {average.gain.value:.1f} points more than the same model scores on a blank picture."
    )
    least = min(gains, key=lambda name: gains[name].value)
    unsure = sorted(name for name, gain in gains.items() if gain.low <= 0.0)
    if unsure:
        return f"{first} Looking does not certainly help in {', '.join(unsure)}."
    return f"{first} Looking helps in every task, least in {least} ({gains[least].value:+.1f})."


def _tasks(count: int) -> str:
    return "one task" if count == 1 else f"{count} tasks"


@dataclass(frozen=True)
class StageCharts:
    """The curves of one stage."""

    stage: str
    names: tuple[str, ...]
    """Series in drawing order; the experts of ``prealign``."""
    charts: tuple[charts.Chart, ...]


def stage_charts(curves: Sequence[Curve]) -> list[StageCharts]:
    """Return loss, learning rate and speed of each stage, experts drawn together."""
    stages: dict[str, list[Curve]] = {}
    for curve in curves:
        stages.setdefault(curve.stage, []).append(curve)
    drawn = []
    for stage, members in stages.items():
        candidates = (
            charts.line_chart("loss", [(c.name, c.steps, c.loss) for c in members], noisy=True),
            charts.line_chart(
                "learning rate", [(c.name, c.steps, c.learning_rate) for c in members], noisy=False
            ),
            charts.line_chart(
                "tokens/s", [(c.name, c.steps, c.tokens_per_second) for c in members], noisy=True
            ),
        )
        present = tuple(chart for chart in candidates if chart is not None)
        if present:
            drawn.append(StageCharts(stage, tuple(c.name for c in members), present))
    return drawn


def pipeline_graph(stages: Sequence[StageTime]) -> charts.Graph | None:
    """Lay out the pipeline; None where no stage is known."""
    columns: dict[str, list[StageTime]] = {}
    for stage in stages:
        columns.setdefault(stage.stage, []).append(stage)
    laid = [
        charts.Column(
            heading=name if any(step.expert for step in steps) else "",
            steps=tuple((step.expert or name, _note(step), step.state) for step in steps),
        )
        for name, steps in columns.items()
    ]
    return charts.graph(laid) if laid else None


def _note(step: StageTime) -> str:
    words = [] if step.seconds is None else [duration(step.seconds)]
    return " · ".join([*words, *([] if step.state == "known" else [step.state])])


def duration(seconds: float) -> str:
    """Write a time as a person says it: ``0.8 s``, ``42 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def group_examples(examples: Sequence[Example]) -> dict[str, list[Example]]:
    """Group examples by task, in their order."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.task, []).append(example)
    return groups


def read_curve(path: Path, stage: str, name: str) -> Curve:
    """Read a stage's ``metrics.jsonl``.

    Args:
        path: one JSON object per step with ``step``, ``loss``, ``learning_rate`` and
            ``tokens_per_second``.
        stage: whose curve it is.
        name: the expert, or the stage itself.

    Raises:
        UserError: the file is missing or a line is not such an object.
    """
    try:
        rows = [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
        columns = {
            key: tuple(float(row[key]) for row in rows)
            for key in ("step", "loss", "learning_rate", "tokens_per_second")
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not hold a training's curves; train again.") from error
    return Curve(
        stage=stage,
        name=name,
        steps=columns["step"],
        loss=columns["loss"],
        learning_rate=columns["learning_rate"],
        tokens_per_second=columns["tokens_per_second"],
    )


def read_sources(path: Path) -> tuple[SourceCard, ...]:
    """Read a dataset's ``sources.json``, largest source first; nothing if there is none.

    Raises:
        UserError: the file is not what the dataset writer writes.
    """
    if not path.is_file():
        return ()
    try:
        cards = [
            SourceCard(
                name=name,
                licence=str(entry["licence"]),
                provenance=str(entry["provenance"]),
                samples=int(entry["samples"]),
                images=int(entry["images"]),
            )
            for name, entry in read_json(path).items()
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} does not describe a dataset's sources; make the dataset again."
        ) from error
    return tuple(sorted(cards, key=lambda card: (-card.samples, card.name)))
