"""How sure a score is: intervals that stay honest with few questions, paired differences, sizes.

Design decisions:

- One method for everything that is bounded: Gaffke's (2005), in the form of Learned-Miller and
  Thomas (2020, "A new confidence interval for the mean of a bounded random variable"). The
  questions get random weights from a flat Dirichlet distribution, one more question with them, of
  which the worst is assumed for the lower end and the best for the upper end. For scores of 0 and
  1 this is exactly the interval of Clopper and Pearson (1934): one question, one hit is
  "2.5 to 100", never "100 to 100"; with many questions it is the bootstrap's.
- A mean over parts or tasks has one such question, too, spread evenly over them: its weight is a
  sum of gamma variables, one for each.
- Two systems are compared question by question, with the same weights for both (paired).
- A statistic is a mean, or the F1 of "yes" (POPE), the mean over a task's parts.
- Everything is drawn from a seed: equal numbers give equal intervals.

Shapes: R draws, N questions. Values are shares (0 to 1), results points (0 to 100).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]

Aggregate = Literal["mean", "f1"]
"""Mean of the questions' scores; or F1 of "yes" in each part, and the mean of the parts."""

CONFIDENCE = 95.0
NUM_DRAWS = 2000
DIGITS = 4
MOST_QUESTIONS = 10_000_000
"""Beyond this many, a difference is called too close to decide."""
_NONE_OF_MANY = -100.0 * math.log(0.025)
"""Points, divided by the number of questions: what may hide where no question told a difference."""
_CHUNK = 100
"""Draws at once: 100 x 100,000 questions are 80 MB."""
_TAIL = (100.0 - CONFIDENCE) / 2.0
_NORMAL = 1.959964
"""The normal distribution's quantile that belongs to ``CONFIDENCE``."""


@dataclass(frozen=True)
class Estimate:
    """A value in points with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Outcomes:
    """How the questions of one task went, in a fixed order; what two systems are compared by."""

    aggregate: Aggregate
    scores: tuple[float, ...]
    """One per question, 0..1."""
    positive: tuple[bool, ...]
    """Whether the right answer is "yes"; read by F1 alone."""
    parts: tuple[str, ...]
    """The part of the task that each question belongs to."""


@dataclass(frozen=True)
class Draws:
    """A statistic in points, with what it might have been: for its lower and for its upper end."""

    value: float
    low: Floats  # (R,)
    high: Floats  # (R,)

    def estimate(self) -> Estimate:
        """Return the value with its interval."""
        return Estimate(
            round(self.value, DIGITS),
            round(float(np.percentile(self.low, _TAIL)), DIGITS),
            round(float(np.percentile(self.high, 100.0 - _TAIL)), DIGITS),
        )


@dataclass(frozen=True)
class PairDraws:
    """Two systems on the same questions, and the first one's lead."""

    first: Draws
    second: Draws
    difference: Draws


def proportion(hits: int, count: int) -> Estimate:
    """Return a share of hits in points, with the interval of Clopper and Pearson (1934).

    Raises:
        ValueError: no question, or more hits than questions.
    """
    if not 0 <= hits <= count or not count:
        raise ValueError(f"{hits} hits of {count} questions")
    from scipy.stats import beta

    tail = _TAIL / 100.0
    low = float(beta.ppf(tail, hits, count - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1.0 - tail, hits + 1, count - hits)) if hits < count else 1.0
    return Estimate(*(round(100.0 * value, DIGITS) for value in (hits / count, low, high)))


def mean(scores: Sequence[float], seed: Sequence[int] = (0,)) -> Estimate:
    """Return the mean of scores in 0..1, in points; exact where all of them are 0 or 1.

    Raises:
        ValueError: no score, or one outside 0..1.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not len(values) or not np.all((values >= 0.0) & (values <= 1.0)):
        raise ValueError("a mean needs scores between 0 and 1")
    if np.all((values == 0.0) | (values == 1.0)):
        return proportion(int(values.sum()), len(values))
    outcomes = Outcomes("mean", tuple(values), (True,) * len(values), ("",) * len(values))
    return draw(outcomes, seed).estimate()


def draw(outcomes: Outcomes, seed: Sequence[int], assumed: float = 1.0) -> Draws:
    """Draw one task's statistic; see ``draw_pair``."""
    return draw_pair(outcomes, outcomes.scores, seed, assumed).first


def draw_pair(
    outcomes: Outcomes, other: Sequence[float], seed: Sequence[int], assumed: float = 1.0
) -> PairDraws:
    """Draw one task's statistic of two systems.

    Args:
        outcomes: the first system.
        other: the second one's scores of the same questions.
        seed: numbers that name the draw.
        assumed: how much of a question is assumed besides; one, but a share of it for a task that
            is averaged with others.

    Raises:
        ValueError: no question, or the systems were asked different numbers of them.
    """
    if not outcomes.scores or len(other) != len(outcomes.scores):
        raise ValueError(f"{len(outcomes.scores)} and {len(other)} scores are no pairs")
    if outcomes.aggregate == "mean":
        return _draw_part(outcomes, np.ones(len(other), dtype=bool), other, seed, assumed)
    names = sorted(set(outcomes.parts))
    parts = np.array([names.index(part) for part in outcomes.parts])
    drawn = [
        _draw_part(outcomes, parts == number, other, [*seed, number], assumed / len(names))
        for number in range(len(names))
    ]
    return PairDraws(
        average([pair.first for pair in drawn]),
        average([pair.second for pair in drawn]),
        average([pair.difference for pair in drawn]),
    )


def average(draws: Sequence[Draws]) -> Draws:
    """Return the plain mean of statistics that were drawn independently."""
    return Draws(
        float(np.mean([one.value for one in draws])),
        np.mean([one.low for one in draws], axis=0),
        np.mean([one.high for one in draws], axis=0),
    )


def score(outcomes: Outcomes, scores: Sequence[float] | None = None) -> float:
    """Return the statistic itself, in points.

    Args:
        outcomes: the questions.
        scores: to be counted in place of the outcomes' own.
    """
    given = np.asarray(outcomes.scores if scores is None else scores, dtype=np.float64)
    positive = np.asarray(outcomes.positive, dtype=bool)
    if outcomes.aggregate == "mean":
        return float(_statistic("mean", np.ones((1, len(given))), given, positive)[0])
    parts = np.asarray(outcomes.parts)
    return float(
        np.mean(
            [
                _statistic("f1", np.ones((1, int(own.sum()))), given[own], positive[own])[0]
                for own in (parts == part for part in sorted(set(outcomes.parts)))
            ]
        )
    )


def _draw_part(
    outcomes: Outcomes, own: Flags, other: Sequence[float], seed: Sequence[int], assumed: float
) -> PairDraws:
    """Draw over the questions marked by ``own`` (N,): one independent sample."""
    kind = outcomes.aggregate
    first = np.asarray(outcomes.scores, dtype=np.float64)[own]
    second = np.asarray(other, dtype=np.float64)[own]
    positive = np.append(np.asarray(outcomes.positive, dtype=bool)[own], True)
    worst = [np.append(scores, 0.0) for scores in (first, second)]
    best = [np.append(scores, 1.0) for scores in (first, second)]
    generator = np.random.default_rng(list(seed))
    rows: list[list[Floats]] = [[] for _ in range(4)]
    for _ in range(0, NUM_DRAWS, _CHUNK):
        # Exponential weights, divided by their sum, are a flat Dirichlet's.
        weights = generator.standard_exponential((_CHUNK, len(first) + 1))  # (R, N + 1)
        weights[:, -1] = generator.standard_gamma(assumed, _CHUNK)
        for row, scores in zip(rows, [*worst, *best], strict=True):
            row.append(_statistic(kind, weights, scores, positive))
    low_first, low_second, high_first, high_second = (np.concatenate(row) for row in rows)
    once = np.ones((1, len(first)))
    values = [float(_statistic(kind, once, s, positive[:-1])[0]) for s in (first, second)]
    return PairDraws(
        Draws(values[0], low_first, high_first),
        Draws(values[1], low_second, high_second),
        Draws(values[0] - values[1], low_first - high_second, high_first - low_second),
    )


def _statistic(kind: Aggregate, weights: Floats, scores: Floats, positive: Flags) -> Floats:
    """Return the statistic in points (R,) for rows of question weights (R, N)."""
    if kind == "mean":
        mean: Floats = 100.0 * (weights @ scores) / weights.sum(axis=1)
        return mean
    true_positives = weights @ (scores * positive)
    # A wrong answer is a false negative where the label is yes, otherwise a false positive:
    # F1 counts both alike.
    wrong = weights @ (1.0 - scores)
    whole = 2.0 * true_positives + wrong
    f1: Floats = np.where(
        true_positives > 0, 200.0 * true_positives / np.where(whole > 0, whole, 1.0), 0.0
    )
    return f1


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same questions: the first one's lead, in points, with its interval."""

    count: int
    """Questions both were asked."""
    tasks: dict[str, Estimate]
    average: Estimate
    first: float
    """The first one's average, in points."""
    second: float
    spread: float
    """Half-width that the differences alone would give, by the normal distribution, in points."""

    def questions_to_decide(self, margin: float) -> int | None:
        """Say how many questions would decide whether the lead is above ``-margin``.

        The half-width of the interval has two parts, one that falls with the root of the number
        of questions and one, the assumed question's, that falls with the number itself.

        Returns:
            The number, or None where no feasible number would.
        """
        distance = abs(self.average.value + margin)
        below = self.average.value - self.average.low
        above = self.average.high - self.average.value
        width = below if self.average.value >= -margin else above
        spread = min(width, self.spread)
        rest = (width - spread) * self.count
        if spread == 0.0:
            rest = max(rest, _NONE_OF_MANY)
        root = spread * math.sqrt(self.count)
        if distance <= 0.0:
            return None
        # distance = root / sqrt(n) + rest / n, solved for 1 / sqrt(n)
        if rest > 0.0:
            inverse = (math.sqrt(root * root + 4.0 * rest * distance) - root) / (2.0 * rest)
        else:
            inverse = distance / root if root > 0.0 else 1.0
        number = math.ceil(inverse**-2) if inverse > 0.0 else MOST_QUESTIONS + 1
        return None if number > MOST_QUESTIONS else max(number, self.count + 1)


def compare(
    first: Mapping[str, Outcomes], second: Mapping[str, Outcomes], seed: int = 0
) -> Comparison:
    """Compare two systems over the tasks of the second one, question by question.

    Raises:
        ValueError: a task is missing, or was not asked the same number of questions.
    """
    tasks: dict[str, Estimate] = {}
    shares: list[PairDraws] = []
    for number, task in enumerate(sorted(second)):
        if task not in first or first[task].parts != second[task].parts:
            raise ValueError(f"the questions of {task} differ")
        mine, theirs = first[task], second[task].scores
        tasks[task] = draw_pair(mine, theirs, [seed, number]).difference.estimate()
        shares.append(draw_pair(mine, theirs, [seed, number, 1], 1.0 / len(second)))
    variance = sum(_variance(first[task], second[task]) for task in second) / len(second) ** 2
    return Comparison(
        count=sum(len(outcomes.scores) for outcomes in second.values()),
        tasks=tasks,
        average=average([pair.difference for pair in shares]).estimate(),
        first=float(np.mean([pair.first.value for pair in shares])),
        second=float(np.mean([pair.second.value for pair in shares])),
        spread=_NORMAL * math.sqrt(variance),
    )


def _variance(first: Outcomes, second: Outcomes) -> float:
    """Return the variance of the mean paired difference, in points squared.

    For F1 it is that of the share of right answers, which moves about as much.
    """
    differences = np.asarray(first.scores) - np.asarray(second.scores)
    return float(10_000.0 * differences.var() / len(differences))
