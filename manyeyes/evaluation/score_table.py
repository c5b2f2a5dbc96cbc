"""The report's tables of scores: one line per task, and one per part of a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from manyeyes.evaluation.metrics import metric_named

if TYPE_CHECKING:
    from manyeyes.evaluation.score import Answered, Score, Scores, TaskScore
    from manyeyes.evaluation.statistics import Estimate


def interval(estimate: Estimate) -> str:
    """Say between which values a score lies."""
    return f"95 % interval {estimate.low:.1f} to {estimate.high:.1f}"


LONGEST_ANSWER = 18


@dataclass(frozen=True)
class FloorCell:
    """What a line gives without looking, and the share of the way up from there."""

    value: float
    what: str
    """Which of the two it is."""
    headroom: float | None
    highest: float

    @property
    def share(self) -> str:
        """The headroom that is reached, as a person reads it."""
        if self.headroom is None:
            return "none"
        return f"{100.0 * self.headroom:.0f} %".replace("-", "\N{MINUS SIGN}")

    @property
    def reach(self) -> str:
        """From where to where the way leads."""
        return f"{self.value:.1f}\N{EN DASH}{self.highest:.1f}"


def floor_cell(task: TaskScore) -> FloorCell:
    """Describe a task's floor."""
    floor = task.floor
    constant = floor.value <= floor.constant_score
    what = f"always \u201c{shorten(floor.constant)}\u201d" if constant else "blank picture"
    return FloorCell(floor.value, what, floor.headroom, floor.highest)


def shorten(text: str) -> str:
    """Cut an answer to what fits into a cell."""
    return text if len(text) <= LONGEST_ANSWER else text[: LONGEST_ANSWER - 1] + "\u2026"


def answered_words(answered: Answered) -> str:
    """Say how many answers are empty, and how many equal the commonest one."""
    return f"{answered.num_empty} empty, {answered.num_equal} equal"


@dataclass(frozen=True)
class Row:
    """One line of the score table."""

    name: str
    note: str
    """Metric and protocol."""
    line: Score
    floor: FloorCell | None = None
    """None for a part of a task, whose floor is not measured."""
    answered: str = ""
    """How many answers are empty, and how many the same."""
    is_average: bool = False

    @property
    def alternative(self) -> str:
        """What the bars show, in words."""
        text = f"{self.name}: {self.line.score.value:.1f} ({interval(self.line.score)})"
        blind = self.line.blind
        text = text if blind is None else f"{text}, blank picture {blind.value:.1f}"
        return text if self.floor is None else f"{text}, floor {self.floor.value:.1f}"


def score_rows(scores: Scores) -> list[Row]:
    """Return the table's lines: tasks by score, then the average."""
    rows = [
        Row(
            name,
            f"{metric_named(task.metric).title} · {task.protocol}",
            task.total,
            floor_cell(task),
            answered_words(task.answered),
        )
        for name, task in scores.tasks.items()
    ]
    rows.sort(key=lambda row: (-row.line.score.value, row.name))
    floor = FloorCell(scores.floor, "mean of floors", scores.headroom, scores.highest)
    return [*rows, Row("average", "mean over tasks", scores.average, floor, is_average=True)]


@dataclass(frozen=True)
class SubsetTable:
    """The parts of a task, and the other figures its benchmark reports."""

    task: str
    rows: tuple[Row, ...]
    columns: tuple[str, ...]
    """Names of the other figures."""
    details: tuple[tuple[str, tuple[float, ...]], ...]
    """(part, figures); the whole task comes last."""


COLUMN_TITLES = {
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "yes_ratio": "share of yes",
}
"""Figures of POPE in the order of its papers."""


def subset_tables(scores: Scores) -> list[SubsetTable]:
    """Return one table for each task that has parts."""
    tables = []
    for name, task in scores.tasks.items():
        if not task.subsets:
            continue
        shown = tuple(Row(subset or "other", "", line) for subset, line in task.subsets.items())
        columns = tuple(COLUMN_TITLES) if task.details else ()
        details = tuple(
            (part or "other", tuple(task.details[part][column] for column in columns))
            for part in [*task.subsets, "all"]
            if part in task.details
        )
        titles = tuple(COLUMN_TITLES[column] for column in columns)
        tables.append(SubsetTable(name, shown, titles, details))
    return tables
