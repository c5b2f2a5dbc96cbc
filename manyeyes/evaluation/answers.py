"""What can be said of a task's questions before any model answers them.

From the accepted answers alone follow the highest score there is, the score of the best constant
answer, and whether the metric can read the labels at all. The data check asks this before the
first training step, the evaluation again.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from manyeyes.errors import UserError
from manyeyes.evaluation import statistics
from manyeyes.evaluation.metrics import Metric, in_words, metric_named, pope_answer
from manyeyes.evaluation.statistics import Outcomes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MOST_CONSTANTS, FEWEST_CONSTANTS, MOST_TRIES = 100, 5, 30_000
"""The commonest accepted answers are tried as a constant answer, fewer where questions are many."""
FULL = 100.0
_NOTHING = 1e-9


@dataclass(frozen=True)
class Question:
    """What a metric needs of a question."""

    id: str
    subset: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class AnswerCheck:
    """What the accepted answers of one task tell."""

    highest: float
    """The highest score there is, in points."""
    refusals: tuple[str, ...]
    """Why the task cannot be scored; empty if it can."""
    notes: tuple[str, ...]
    """What a person should know before training."""


def check_answers(task: str, metric_name: str, questions: Sequence[Question]) -> AnswerCheck:
    """Check the accepted answers of one task against its metric.

    Raises:
        UserError: there is no metric of this name.
    """
    metric = metric_named(metric_name)
    unread = [q for q in questions if metric.label is not None and metric.label(q.answers) is None]
    if unread:
        refusal = (
            f"task {task}: {len(unread)} of {len(questions)} questions have an accepted answer "
            f"that {metric_name} cannot read (first: {unread[0].id}, "
            f"{in_words(unread[0].answers)}); write one of {' or '.join(metric.labels)}, or "
            "choose another metric"
        )
        return AnswerCheck(0.0, (refusal,), ())
    highest = round(highest_score(metric, questions), statistics.DIGITS)
    notes = [*_few_references(task, metric, questions), *_misread(task, metric, questions)]
    if highest <= _NOTHING and metric.aggregate == "mean":
        why = notes[0] if notes else f"task {task}: no accepted answer is right by its own metric"
        text = f"{why}; the highest score possible is 0.0, so nothing would be measured"
        return AnswerCheck(highest, (text,), ())
    if highest < FULL:
        said = notes or [f"task {task}: {_why_less(metric)}"]
        notes = [f"{text}; the highest score possible is {highest:.1f} of 100" for text in said]
    return AnswerCheck(highest, (), tuple(notes))


def _why_less(metric: Metric) -> str:
    if metric.aggregate == "f1":
        return (
            "a part has no accepted answer yes, and F1 counts the answers yes (accuracy does not)"
        )
    return "not every question can be answered rightly"


def _few_references(task: str, metric: Metric, questions: Sequence[Question]) -> list[str]:
    few = [q for q in questions if len(q.answers) < metric.references]
    if not few:
        return []
    return [
        f"task {task}: {len(few)} of {len(questions)} questions have fewer than "
        f"{metric.references} accepted answers (first: {few[0].id})"
    ]


def _misread(task: str, metric: Metric, questions: Sequence[Question]) -> list[str]:
    """Tell of labels that a model must not repeat as they are: the official script misreads them.

    (A label ``NO`` is a no, an answer ``NO`` is read as yes.)
    """
    if metric.label is None:
        return []
    bad = [q for q in questions if pope_answer(q.answers[0]) != metric.label(q.answers)]
    if not bad:
        return []
    return [
        f"task {task}: {len(bad)} of {len(questions)} labels are written as the official script "
        f"misreads them in an answer (first: {bad[0].id}, {in_words(bad[0].answers)}); write yes "
        "or no"
    ]


def require_scorable(task: str, metric_name: str, questions: Sequence[Question]) -> AnswerCheck:
    """Check a task's accepted answers and refuse those that cannot be scored.

    Raises:
        UserError: no metric of this name, labels it cannot read, or nothing that can score.
    """
    found = check_answers(task, metric_name, questions)
    if found.refusals:
        raise UserError(f"{'; '.join(found.refusals)}.")
    return found


def outcomes(metric: Metric, questions: Iterable[Question], scores: Iterable[float]) -> Outcomes:
    """Put scores beside what the statistics need to know of their questions."""
    asked = list(questions)
    return Outcomes(
        metric.aggregate,
        tuple(float(score) for score in scores),
        tuple(metric.label is None or metric.label(q.answers) == "yes" for q in asked),
        tuple(q.subset for q in asked),
    )


def highest_score(metric: Metric, questions: Sequence[Question]) -> float:
    """Return the score in points of who answers each question with its best accepted answer."""
    best = [
        1.0
        if metric.labels
        else max((metric.per_answer(text, q.answers) for text in set(q.answers)), default=0.0)
        for q in questions
    ]
    return statistics.score(outcomes(metric, questions, best))


@dataclass(frozen=True)
class Constant:
    """What always giving one answer scores."""

    answer: str
    score: float
    """In points."""


def best_constant(
    metric: Metric, questions: Sequence[Question], also: Iterable[str] = ()
) -> Constant:
    """Return the best of the answers that need no picture and no question.

    Args:
        metric: the task's.
        questions: the same ones the model is asked.
        also: further answers to try, like the one the model gives most often: a model that always
            says the same is then never better than this.
    """
    distinct = sorted({question.answers for question in questions})
    most = max(FEWEST_CONSTANTS, min(MOST_CONSTANTS, MOST_TRIES // max(1, len(distinct))))
    counts = Counter(text for question in questions for text in set(question.answers))
    tried = dict.fromkeys([*metric.labels, *also])
    tried.update(dict.fromkeys(text for text, _ in counts.most_common(most)))
    best = Constant("", -1.0)
    for text in tried:
        given = {answers: metric.per_answer(text, answers) for answers in distinct}
        value = statistics.score(outcomes(metric, questions, (given[q.answers] for q in questions)))
        if value > best.score + _NOTHING:
            best = Constant(text, value)
    return best
