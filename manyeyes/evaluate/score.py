"""From answers to scores: points of 100 by each task's metric, beside the blank picture's.

Design decisions:

- A score alone says little: a question may be answered well without looking. Each score stands
  beside that of the same model, the same questions and a blank picture; the gain is what was seen.
- Uncertainty is a percentile bootstrap of 95 % over questions, drawn within subsets, with the same
  draws for the seen and the blank run, so that the gain's interval is a paired one. Drawing counts
  (a multinomial) instead of indices makes every statistic a product of matrices.
- The generators are seeded by (seed, task, subset): adding a task changes no other interval.
- Shapes: R resamples, N questions.
- The average is the plain mean over tasks. A task without questions is an error, never left out.
"""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import JsonValue, TypeAdapter, ValidationError

from manyeyes.artifact import atomic_write_json
from manyeyes.errors import UserError
from manyeyes.evaluate.metrics import Metric, metric_named, pope
from manyeyes.evaluate.predictions import Prediction, by_task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

METRICS_FILE = "metrics.json"
FORMAT = 1
NUM_RESAMPLES = 1000
CONFIDENCE = 95.0
_CHUNK = 100
"""Resamples drawn at once: 100 x 100,000 questions are 80 MB."""
_DIGITS = 4


@dataclass(frozen=True)
class Estimate:
    """A value in points with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


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
class TaskScore:
    """A task's score, its subsets', and what else its benchmark reports."""

    metric: str
    protocol: str
    """Whose implementation the metric follows."""
    num_empty: int
    """Answers without a character."""
    total: Score
    subsets: dict[str, Score]
    """Empty where the task has one part."""
    details: dict[str, dict[str, float]]
    """POPE: accuracy, precision, recall, F1, yes-ratio in points, per subset and over ``all``."""


@dataclass(frozen=True)
class Scores:
    """All of ``metrics.json``."""

    format: int
    split: str
    seed: int
    num_resamples: int
    average: Score
    """Plain mean over tasks."""
    tasks: dict[str, TaskScore]

    def flat(self) -> dict[str, JsonValue]:
        """Return the values alone, for a tracker: ``charts``, ``charts_blind``, ``average``."""
        lines = {name: task.total for name, task in self.tasks.items()}
        values: dict[str, JsonValue] = {}
        for name, line in {"average": self.average, **lines}.items():
            values[name] = line.score.value
            if line.blind is not None and line.gain is not None:
                values[f"{name}_blind"] = line.blind.value
                values[f"{name}_gain"] = line.gain.value
        return values


@dataclass(frozen=True)
class _Draws:
    """A statistic of one line: its value and its resampled values, in points."""

    count: int
    value: float
    resampled: NDArray[np.float64]  # (R,)
    blind: float | None
    blind_resampled: NDArray[np.float64] | None  # (R,)

    def score(self) -> Score:
        blind = gain = None
        if self.blind is not None and self.blind_resampled is not None:
            blind = _estimate(self.blind, self.blind_resampled)
            gain = _estimate(self.value - self.blind, self.resampled - self.blind_resampled)
        return Score(self.count, _estimate(self.value, self.resampled), blind, gain)


def score_predictions(
    predictions: Sequence[Prediction], tasks: Mapping[str, str], *, split: str, seed: int
) -> Scores:
    """Score a table of predictions.

    Args:
        predictions: the rows, in any order; their ``score`` must be that of the task's metric.
        tasks: task -> metric name.
        split: where the questions come from.
        seed: of the bootstrap.

    Raises:
        UserError: unknown metric, or a task without a question.
    """
    rows = by_task(predictions)
    lines: dict[str, TaskScore] = {}
    totals: list[_Draws] = []
    for task in sorted(tasks):
        if not rows.get(task):
            raise UserError(
                f"The task {task!r} has no question in the split {split!r}: take it out of "
                "eval.tasks or add data for it."
            )
        line, total = _score_task(task, rows[task], tasks[task], seed)
        lines[task] = line
        totals.append(total)
    average = _combine(totals, [1.0] * len(totals)).score()
    return Scores(FORMAT, split, seed, NUM_RESAMPLES, average, lines)


def _score_task(
    task: str, rows: Sequence[Prediction], metric_name: str, seed: int
) -> tuple[TaskScore, _Draws]:
    metric = metric_named(metric_name)
    parts: dict[str, list[Prediction]] = {}
    for row in rows:
        parts.setdefault(row.subset, []).append(row)
    draws = {
        subset: _draw(part, metric, [seed, _number(task), _number(subset)])
        for subset, part in sorted(parts.items())
    }
    by_size = metric.aggregate == "mean"
    weights = [float(part.count) if by_size else 1.0 for part in draws.values()]
    total = _combine(list(draws.values()), weights)
    subsets = {name: part.score() for name, part in draws.items()} if len(draws) > 1 else {}
    return (
        TaskScore(
            metric=metric_name,
            protocol=metric.protocol,
            num_empty=sum(not row.prediction.strip() for row in rows),
            total=total.score(),
            subsets=subsets,
            details=_pope_details(parts) if metric.aggregate == "f1" else {},
        ),
        total,
    )


def _draw(rows: Sequence[Prediction], metric: Metric, seeds: list[int]) -> _Draws:
    """Compute the statistic of one part of a task, and resample its questions."""
    correct = np.array([row.score for row in rows])  # (N,)
    blind_scores = [row.blind_score for row in rows if row.blind_score is not None]
    unseen_correct = np.array(blind_scores) if len(blind_scores) == len(rows) else None
    positive = np.array([bool(row.answers) and row.answers[0] != "no" for row in rows])
    once = np.ones((1, len(rows)))
    generator = np.random.default_rng(seeds)
    share = np.full(len(rows), 1.0 / len(rows))
    seen: list[NDArray[np.float64]] = []
    unseen: list[NDArray[np.float64]] = []
    for _ in range(0, NUM_RESAMPLES, _CHUNK):
        counts = generator.multinomial(len(rows), share, size=_CHUNK).astype(float)  # (R, N)
        seen.append(_statistic(metric, counts, correct, positive))
        if unseen_correct is not None:
            unseen.append(_statistic(metric, counts, unseen_correct, positive))
    return _Draws(
        count=len(rows),
        value=float(_statistic(metric, once, correct, positive)[0]),
        resampled=np.concatenate(seen),
        blind=None
        if unseen_correct is None
        else float(_statistic(metric, once, unseen_correct, positive)[0]),
        blind_resampled=np.concatenate(unseen) if unseen else None,
    )


def _statistic(
    metric: Metric,
    counts: NDArray[np.float64],
    correct: NDArray[np.float64],
    positive: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Return the metric in points (R,) for rows of question counts (R, N)."""
    if metric.aggregate == "mean":
        mean: NDArray[np.float64] = 100.0 * (counts @ correct) / counts.sum(axis=1)
        return mean
    true_positives = counts @ (correct * positive)
    # A wrong answer is a false negative where the label is yes, otherwise a false positive:
    # F1 counts both alike.
    wrong = counts @ (1.0 - correct)
    whole = 2.0 * true_positives + wrong
    f1: NDArray[np.float64] = np.where(
        true_positives > 0, 200.0 * true_positives / np.maximum(whole, 1.0), 0.0
    )
    return f1


def _combine(parts: Sequence[_Draws], weights: Sequence[float]) -> _Draws:
    """Return the weighted mean of lines, resample by resample."""
    share = np.array(weights) / sum(weights)
    blinds = [part.blind for part in parts if part.blind is not None]
    blind_rows = [part.blind_resampled for part in parts if part.blind_resampled is not None]
    complete = len(blinds) == len(parts)
    return _Draws(
        count=sum(part.count for part in parts),
        value=float(share @ np.array([part.value for part in parts])),
        resampled=share @ np.stack([part.resampled for part in parts]),
        blind=float(share @ np.array(blinds)) if complete else None,
        blind_resampled=share @ np.stack(blind_rows) if complete else None,
    )


def _estimate(value: float, resampled: NDArray[np.float64]) -> Estimate:
    tail = (100.0 - CONFIDENCE) / 2.0
    low, high = np.percentile(resampled, [tail, 100.0 - tail])
    return Estimate(round(value, _DIGITS), round(float(low), _DIGITS), round(float(high), _DIGITS))


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
