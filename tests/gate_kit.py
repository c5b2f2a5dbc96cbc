"""Reports as ``eval`` leaves them, made of answers that are known."""

from __future__ import annotations

from manyeyes.artifact.manifest import Header, read_manifest, write_manifest
from manyeyes.evaluation.metrics import METRICS
from manyeyes.evaluation.predictions import Prediction, write_predictions
from manyeyes.evaluation.score import Conditions, score_predictions, write_scores

TASKS = {"charts": "exact_match", "pope": "pope_f1"}


def rows(task, said, labels, blind="?", *, name="q"):
    """Return judged answers.

    Args:
        task: one of ``TASKS``.
        said: the model's answers, one per question.
        labels: the accepted answers.
        blind: the answer to the blank picture; None where it was not asked.
        name: how the questions are called: other names are other questions.
    """
    judge = METRICS[TASKS[task]].per_answer
    return [
        Prediction(
            id=f"{name}-{task}-{number:05}", task=task, subset="", question="?", answers=(label,),
            prediction=answer, blind_prediction=blind, score=judge(answer, (label,)),
            blind_score=None if blind is None else judge(blind, (label,)),
        )
        for number, (answer, label) in enumerate(zip(said, labels, strict=True))
    ]  # fmt: skip


def labels(count):
    """Return labels of which none is common: an eighth each."""
    return [f"{number % 8}" for number in range(count)]


def answers(count, right, *, first=0):
    """Return answers to ``labels(count)``: ``right`` of 100 are right, the others are ``none``.

    Args:
        count: questions.
        right: hits of a hundred questions.
        first: where in each hundred the hits begin, so that two models may differ.
    """
    return [
        label if (number - first) % 100 < right else f"none {number % 7}"
        for number, label in enumerate(labels(count))
    ]


def write_report(folder, checkpoint, predictions, *, limit=0, edit=None):
    """Write the report of a checkpoint and finish it.

    Args:
        folder: where; it must not be there.
        checkpoint: whose scores they are.
        predictions: judged answers.
        limit: what ``eval.limit`` was.
        edit: takes the scores and returns what shall be written.
    """
    folder.mkdir(parents=True)
    tasks = {row.task: TASKS[row.task] for row in predictions}
    conditions = Conditions("test", limit, 12)
    scores = score_predictions(predictions, tasks, conditions, seed=0)
    write_scores(edit(scores) if edit else scores, folder)
    write_predictions(predictions, folder)
    header = Header(
        kind="report", stage="eval", name="eval", recipe_slice="a" * 64, fingerprint="e" * 64,
        parents={"checkpoint": read_manifest(checkpoint).digest, "dataset": "d" * 64}, code="c",
        revision="r", libraries={}, seed=0,
    )  # fmt: skip
    return write_manifest(folder, header)
