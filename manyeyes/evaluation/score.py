"""From answers to scores: points of 100 by each task's metric, beside what needs no looking.

Design decisions:

- A score alone says little: a question may be answered well without looking. Each score stands
  beside that of the same model, the same questions and a blank picture, and beside the best
  constant answer's. The better of the two is the task's floor; what counts is the share of the way
  from there to the highest score that the references allow.
- Scores carry what they were measured on: a digest of the questions, the split, the limit, the
  metric and its version. Scores of other questions are never compared as equals.
- Intervals are of 95 % over questions (``manyeyes.evaluation.statistics``); the gain's is a paired
  one.
- The generators are seeded by (seed, task, subset): adding a task changes no other interval.
- The average is the plain mean over tasks. A task without questions is an error, never left out.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pydantic import JsonValue, TypeAdapter, ValidationError

from manyeyes.artifact.files import METRICS_FILE
from manyeyes.artifact.manifest import atomic_write_json
from manyeyes.errors import UserError
from manyeyes.evaluation import statistics
from manyeyes.evaluation.answers import Question, best_constant, highest_score, outcomes
from manyeyes.evaluation.metrics import Metric, metric_named, pope
from manyeyes.evaluation.predictions import Prediction, by_task
from manyeyes.evaluation.statistics import Draws, Estimate, Outcomes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

FORMAT = 2
_DIGITS = statistics.DIGITS


@dataclass(frozen=True)
class Conditions:
    """How a model was asked, the same for every task."""

    split: str
    limit: int = 0
    """Questions per task; 0 takes all."""
    max_new_tokens: int = 0


@dataclass(frozen=True)
class Score:
    """One line of the score table."""

    count: int
    """Questions."""
    score: Estimate
    """0..100."""
    blind: Estimate | None
    """The same with a blank picture; None if that was not run."""
    gain: Estimate | None
    """Score minus blind, with a paired interval."""


@dataclass(frozen=True)
class Floor:
    """What a task gives without looking, and how far the model is above it; in points."""

    value: float
    """The better of the blank picture and the best constant answer."""
    constant: str
    """That answer."""
    constant_score: float
    highest: float
    """The highest score there is; less than 100 where questions have too few accepted answers."""
    headroom: float | None
    """Share of the way from the floor to the highest score, 1 at the top, negative below the floor;
    None where there is no such way: a constant answer gets all."""


@dataclass(frozen=True)
class Answered:
    """How often a model said nothing, or the same; a count of questions each."""

    num_empty: int
    """Answers without a character."""
    num_equal: int
    """Answers that are the commonest one."""
    commonest: str
    num_equal_labels: int
    """Questions whose first accepted answer is the commonest one of those."""


@dataclass(frozen=True)
class TaskScore:
    """A task's score, its subsets', and what else its benchmark reports."""

    metric: str
    version: int
    """Of the metric's arithmetic."""
    protocol: str
    """Whose implementation the metric follows."""
    questions: str
    """Digest of the questions: ids, words, pictures and accepted answers."""
    visual: bool
    """Whether any question shows a picture."""
    floor: Floor
    answered: Answered
    total: Score
    subsets: dict[str, Score]
    """Empty where the task has one part."""
    details: dict[str, dict[str, float]]
    """POPE: accuracy, precision, recall, F1, yes-ratio in points, per subset and over ``all``."""


@dataclass(frozen=True)
class Scores:
    """All of ``metrics.json``."""

    format: int
    conditions: Conditions
    seed: int
    num_draws: int
    average: Score
    """Plain mean over tasks."""
    floor: float
    """Mean of the tasks' floors."""
    highest: float
    """Mean of the tasks' highest scores."""
    tasks: dict[str, TaskScore]

    @property
    def split(self) -> str:
        """Where the questions come from."""
        return self.conditions.split

    @property
    def headroom(self) -> float | None:
        """Share of the way from the mean floor to the mean highest score."""
        return share_of_headroom(self.average.score.value, self.floor, self.highest)

    def flat(self) -> dict[str, JsonValue]:
        """Return the values alone, for a tracker: ``charts``, ``charts_floor``, ``average``."""
        lines = {name: task.total for name, task in self.tasks.items()}
        floors = {name: task.floor.value for name, task in self.tasks.items()}
        values: dict[str, JsonValue] = {}
        for name, line in {"average": self.average, **lines}.items():
            values[name] = line.score.value
            values[f"{name}_floor"] = floors.get(name, self.floor)
            if line.blind is not None and line.gain is not None:
                values[f"{name}_blind"] = line.blind.value
                values[f"{name}_gain"] = line.gain.value
        return values


def share_of_headroom(score: float, floor: float, highest: float) -> float | None:
    """Return the share of the way from ``floor`` to ``highest``; None where there is no way."""
    if highest - floor <= 10**-_DIGITS:
        return None
    return round((score - floor) / (highest - floor), _DIGITS)


@dataclass(frozen=True)
class _Line:
    """One line that can be averaged with others."""

    count: int
    seen: Draws
    blind: Draws | None
    gain: Draws | None

    def score(self, outcomes: Outcomes | None = None, blind: Sequence[float] = ()) -> Score:
        """Return the line; exact intervals where outcomes are given that are 0 or 1."""
        return Score(
            self.count,
            _estimate(self.seen, outcomes, outcomes.scores if outcomes else ()),
            _estimate(self.blind, outcomes, blind) if self.blind else None,
            self.gain.estimate() if self.gain else None,
        )


def _estimate(draws: Draws, outcomes: Outcomes | None, scores: Sequence[float]) -> Estimate:
    if outcomes is None or outcomes.aggregate != "mean" or not set(scores) <= {0.0, 1.0}:
        return draws.estimate()
    return statistics.mean(scores)


def score_predictions(
    predictions: Sequence[Prediction],
    tasks: Mapping[str, str],
    conditions: Conditions,
    *,
    seed: int,
) -> Scores:
    """Score a table of predictions.

    Args:
        predictions: the rows, in any order; their ``score`` must be that of the task's metric.
        tasks: task -> metric name.
        conditions: how the questions were asked.
        seed: of the intervals.

    Raises:
        UserError: unknown metric, a task without a question, or a label that is none.
    """
    rows = by_task(predictions)
    scored: dict[str, TaskScore] = {}
    shares: list[_Line] = []
    for task in sorted(tasks):
        if not rows.get(task):
            raise UserError(
                f"The task {task!r} has no question in the split {conditions.split!r}: take it out "
                "of eval.tasks or add data for it."
            )
        scored[task] = _score_task(task, rows[task], tasks[task], seed)
        shares.append(
            _line(rows[task], metric_named(tasks[task]), [seed, _number(task)], len(tasks))
        )
    count = len(tasks)
    return Scores(
        format=FORMAT,
        conditions=conditions,
        seed=seed,
        num_draws=statistics.NUM_DRAWS,
        average=_average(shares).score(),
        floor=round(sum(task.floor.value for task in scored.values()) / count, _DIGITS),
        highest=round(sum(task.floor.highest for task in scored.values()) / count, _DIGITS),
        tasks=scored,
    )


def outcomes_of(predictions: Sequence[Prediction], tasks: Mapping[str, str]) -> dict[str, Outcomes]:
    """Return each task's outcomes, in the order of the questions' ids: what pairs are made of.

    Args:
        predictions: the rows of a report.
        tasks: task -> metric name.
    """
    rows = by_task(predictions)
    return {
        task: outcomes(metric_named(metric), _questions(rows[task]), _seen(rows[task]))
        for task, metric in sorted(tasks.items())
    }


def _score_task(task: str, rows: Sequence[Prediction], metric_name: str, seed: int) -> TaskScore:
    metric = metric_named(metric_name)
    parts: dict[str, list[Prediction]] = {}
    for row in rows:
        parts.setdefault(row.subset, []).append(row)
    subsets = {
        name: _line(part, metric, [seed, _number(task), _number(name)]).score(*_exact(metric, part))
        for name, part in sorted(parts.items())
    }
    line = _line(rows, metric, [seed, _number(task)]).score(*_exact(metric, rows))
    answered = _answered(rows)
    visual = any(row.pictures for row in rows)
    blind = line.blind.value if line.blind and visual else None
    return TaskScore(
        metric=metric_name,
        version=metric.version,
        protocol=metric.protocol,
        questions=_digest(rows),
        visual=visual,
        floor=_floor(metric, rows, line.score.value, blind, answered.commonest),
        answered=answered,
        total=line,
        subsets=subsets if len(subsets) > 1 else {},
        details=_pope_details(parts) if metric.aggregate == "f1" else {},
    )


def _questions(rows: Sequence[Prediction]) -> list[Question]:
    return [Question(row.id, row.subset, row.answers) for row in rows]


def _seen(rows: Sequence[Prediction]) -> list[float]:
    return [row.score for row in rows]


def _blind(rows: Sequence[Prediction]) -> list[float]:
    """Return the scores without looking; empty if any question was not asked so."""
    found = [row.blind_score for row in rows if row.blind_score is not None]
    return found if len(found) == len(rows) else []


def _exact(metric: Metric, rows: Sequence[Prediction]) -> tuple[Outcomes, list[float]]:
    return outcomes(metric, _questions(rows), _seen(rows)), _blind(rows)


def _line(
    rows: Sequence[Prediction], metric: Metric, seeds: list[int], num_tasks: int = 1
) -> _Line:
    """Draw the statistic of a task or a part of it, seen and blind together.

    Args:
        rows: its questions.
        metric: the task's.
        seeds: numbers that name the draw.
        num_tasks: how many tasks the line is averaged with.
    """
    seen, blind = _exact(metric, rows)
    if not blind:
        return _Line(len(rows), statistics.draw(seen, seeds, 1.0 / num_tasks), None, None)
    pair = statistics.draw_pair(seen, blind, seeds, 1.0 / num_tasks)
    return _Line(len(rows), pair.first, pair.second, pair.difference)


def _average(lines: Sequence[_Line]) -> _Line:
    """Return the plain mean of lines, draw by draw."""
    blinds = [line.blind for line in lines if line.blind is not None]
    gains = [line.gain for line in lines if line.gain is not None]
    complete = len(blinds) == len(lines)
    return _Line(
        count=sum(line.count for line in lines),
        seen=statistics.average([line.seen for line in lines]),
        blind=statistics.average(blinds) if complete else None,
        gain=statistics.average(gains) if complete else None,
    )


def _floor(
    metric: Metric, rows: Sequence[Prediction], score: float, blind: float | None, commonest: str
) -> Floor:
    """Measure what needs no looking, by the task's own metric over the same questions."""
    asked = _questions(rows)
    constant = best_constant(metric, asked, also=(commonest,))
    highest = round(highest_score(metric, asked), _DIGITS)
    value = round(max(constant.score, blind if blind is not None else 0.0), _DIGITS)
    return Floor(
        value=value,
        constant=constant.answer,
        constant_score=round(constant.score, _DIGITS),
        highest=highest,
        headroom=share_of_headroom(score, value, highest),
    )


def _answered(rows: Sequence[Prediction]) -> Answered:
    said = Counter(_plain(row.prediction) for row in rows)
    (commonest, num_equal), *_ = said.most_common(1)
    labels = Counter(_plain(row.answers[0]) if row.answers else "" for row in rows)
    written = next(row.prediction for row in rows if _plain(row.prediction) == commonest)
    return Answered(said[""], num_equal, written, labels.most_common(1)[0][1])


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _digest(rows: Sequence[Prediction]) -> str:
    """Return the digest of the questions of one task."""
    facts = [
        (row.id, row.subset, row.asked or row.question, sorted(row.answers))
        for row in sorted(rows, key=lambda row: row.id)
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _pope_details(parts: Mapping[str, Sequence[Prediction]]) -> dict[str, dict[str, float]]:
    everything = [row for part in parts.values() for row in part]
    details = {}
    for name, rows in {**parts, "all": everything}.items():
        result = pope([row.prediction for row in rows], [row.answers[0] for row in rows])
        values = {
            "accuracy": result.accuracy,
            "precision": result.precision,
            "recall": result.recall,
            "f1": result.f1,
            "yes_ratio": result.yes_ratio,
        }
        details[name] = {key: round(100.0 * value, _DIGITS) for key, value in values.items()}
    return details


def _number(text: str) -> int:
    return zlib.crc32(text.encode())


def write_scores(scores: Scores, out: Path) -> Path:
    """Write ``metrics.json`` into ``out``: readable, keys sorted, whole or not at all."""
    path = out / METRICS_FILE
    atomic_write_json(path, asdict(scores))
    return path


def read_scores(report: Path) -> Scores:
    """Read the scores of a report.

    Raises:
        UserError: the file is missing or not what ``write_scores`` writes.
    """
    path = report / METRICS_FILE
    try:
        return TypeAdapter(Scores).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise UserError(f"{path} is not a readable table of scores; run eval again.") from error
