"""An evaluation from the split's questions to the score table.

The steps: choose the questions, answer them, answer them again blind, judge every answer, score
every task, write. The journals of both runs lie in ``out/state`` until the caller, having written
what it makes of the result, calls ``discard_state``: killed before that, nothing is asked twice.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from manyeyes.data.dataset.sample import IMAGE_PLACEHOLDER
from manyeyes.errors import UserError
from manyeyes.evaluation.answers import AnswerCheck, Question, check_answers, require_scorable
from manyeyes.evaluation.generate import (
    BlankPictures,
    GreedyAnswerer,
    Journal,
    answer_all,
    distinct_when_blind,
    mean_colour,
)
from manyeyes.evaluation.lengths import too_long
from manyeyes.evaluation.metrics import metric_named
from manyeyes.evaluation.predictions import Prediction, write_predictions
from manyeyes.evaluation.score import Conditions, Scores, score_predictions, write_scores

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from manyeyes.config.recipe import EvalSection
    from manyeyes.data.dataset.dataset import Dataset
    from manyeyes.data.dataset.sample import Sample
    from manyeyes.evaluation.generate import Answerer, Prompt, Subject
    from manyeyes.runtime.progress import Progress

STATE = "state"


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found."""

    scores: Scores
    predictions: tuple[Prediction, ...]
    samples: dict[str, Sample]
    """The questions by id, for those who want to show their pictures."""
    left_out: dict[str, int]
    """Task to its questions that were not asked, because they are too long."""


@dataclass(frozen=True)
class Exam:
    """Everything that determines an evaluation but the model's weights."""

    section: EvalSection
    seed: int
    identity: str
    """Digest of the model's checkpoint; answers of another model are never taken over."""
    excluded: Collection[str] = ()
    """Ids of samples that validation put into quarantine."""


def evaluate_model(
    subject: Subject,
    dataset: Dataset,
    exam: Exam,
    *,
    out: Path,
    progress: Progress,
    should_stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Answer, judge and score; write ``metrics.json`` and ``predictions.parquet`` into ``out``.

    Args:
        subject: the model.
        dataset: where the questions are.
        exam: which questions, and how.
        out: may hold what an earlier, killed attempt answered.
        progress: told how many questions are answered.
        should_stop: asked between batches.

    Raises:
        UserError: unknown metric, a task without a question, or a question that is too long.
        Interrupted: ``should_stop`` said so; calling again continues.
    """
    section = exam.section
    for metric in section.tasks.values():
        metric_named(metric)
    samples = choose_samples(dataset, section, exam.excluded)
    left_out: dict[str, int] = {}
    if section.too_long == "leave_out":
        samples, left_out = _without_long(samples, subject)
        for task, number in left_out.items():
            progress.note(f"{task}: {number} questions left out, longer than the model reads")
    for note in require_answers(samples, section.tasks):
        progress.note(note)
    prompts = subject.prompts(samples)
    # Predictions depend on these alone, so they are the journals' key.
    facts = (exam.identity, section.max_new_tokens, section.batch_size, questions_digest(prompts))
    seeing = GreedyAnswerer(subject, dataset.pictures, section.max_new_tokens)
    # Where there is nothing to see, the answer is the same without looking.
    pictured = [prompt for prompt in prompts if prompt.images]
    blind_prompts, instead = distinct_when_blind(pictured if section.blind else [])
    total = len(prompts) + len(blind_prompts)

    def answer(
        chosen: Sequence[Prompt], answerer: Answerer, name: str, before: int, *more: object
    ) -> dict[str, str]:
        return answer_all(
            chosen,
            answerer,
            Journal.open(out / STATE / f"{name}.jsonl", *facts, *more),
            batch_size=section.batch_size,
            report=lambda count: progress.step(before + count, total, unit="questions"),
            should_stop=should_stop,
        )

    progress.note(f"{len(prompts)} questions of the {section.split} split")
    answers = answer(prompts, seeing, "seeing", 0)
    blind_answers: dict[str, str] = {}
    if section.blind:
        colour = mean_colour(dataset, (ref for sample in samples for ref in sample.images))
        blind = GreedyAnswerer(subject, BlankPictures(colour), section.max_new_tokens)
        kept = answer(blind_prompts, blind, "blind", len(prompts), colour)
        blind_answers = answers | {key: kept[same] for key, same in instead.items()}
    predictions = judge(samples, section.tasks, answers, blind_answers)
    conditions = Conditions(section.split, section.limit, section.max_new_tokens)
    scores = score_predictions(predictions, section.tasks, conditions, seed=exam.seed)
    write_predictions(predictions, out)
    write_scores(scores, out)
    by_id = {sample.id: sample for sample in samples}
    return Evaluation(scores, tuple(predictions), by_id, left_out)


def _without_long(
    samples: Sequence[Sample], subject: Subject
) -> tuple[list[Sample], dict[str, int]]:
    """Return the questions that the model can read, and per task how many it cannot.

    Raises:
        UserError: a task has no other.
    """
    reader = subject.reader()
    long = {sample.id for sample, _ in too_long(samples, reader)}
    kept = [sample for sample in samples if sample.id not in long]
    left_out = dict(Counter(sample.task for sample in samples if sample.id in long))
    for task in left_out:
        if not any(sample.task == task for sample in kept):
            raise UserError(
                f"eval: every question of the task {task!r} is longer than model.max_length, "
                f"{reader.max_length:,}: take it out of eval.tasks, or raise max_length."
            )
    return kept, left_out


def discard_state(out: Path) -> None:
    """Remove the journals: the last thing to do before an artifact is finished."""
    shutil.rmtree(out / STATE, ignore_errors=True)


def choose_samples(
    dataset: Dataset, section: EvalSection, excluded: Collection[str] = ()
) -> list[Sample]:
    """Return the questions to ask: those of the split's tasks that have accepted answers.

    With a limit, each task gives the samples whose id's digest is smallest: the same ones for
    every model, spread over the task, and a larger limit only adds to them.

    Raises:
        UserError: a task has no question in the split.
    """
    chosen = dataset.samples(section.split, tasks=set(section.tasks), exclude=set(excluded))
    groups: dict[str, list[Sample]] = {task: [] for task in section.tasks}
    for sample in chosen:
        if sample.answers:
            groups[sample.task].append(sample)
    for task, members in groups.items():
        if not members:
            raise UserError(
                f"The task {task!r} has no question in the split {section.split!r}: take it out of "
                "eval.tasks or add data for it."
            )
        if section.limit:
            members.sort(key=lambda sample: hashlib.sha256(sample.id.encode()).digest())
            del members[section.limit :]
    return sorted((s for members in groups.values() for s in members), key=lambda s: s.id)


def questions_digest(prompts: Sequence[Prompt]) -> str:
    """Return a digest of what is asked: ids, tokens and pictures."""
    digest = hashlib.sha256()
    for prompt in prompts:
        pictures = [ref.sha256 for ref in prompt.images]
        digest.update(repr((prompt.id, prompt.input_ids, pictures)).encode())
    return digest.hexdigest()


def judge(
    samples: Sequence[Sample],
    tasks: Mapping[str, str],
    answers: Mapping[str, str],
    blind_answers: Mapping[str, str],
) -> list[Prediction]:
    """Judge every answer by its task's metric.

    Args:
        samples: the questions.
        tasks: task -> metric name.
        answers: answer by sample id.
        blind_answers: the same for the blank picture; a missing one was not asked.
    """
    predictions = []
    for sample in samples:
        metric = metric_named(tasks[sample.task]).per_answer
        blind = blind_answers.get(sample.id)
        predictions.append(
            Prediction(
                id=sample.id,
                task=sample.task,
                subset=sample.subset,
                question=last_question(sample),
                answers=sample.answers,
                prediction=answers[sample.id],
                blind_prediction=blind,
                score=metric(answers[sample.id], sample.answers),
                blind_score=None if blind is None else metric(blind, sample.answers),
                pictures=len(sample.images),
                asked=asked_digest(sample),
            )
        )
    return predictions


def require_answers(samples: Sequence[Sample], tasks: Mapping[str, str]) -> list[str]:
    """Refuse tasks whose accepted answers cannot be scored; return what else is to be told.

    Raises:
        UserError: labels that the metric cannot read, or nothing that could score.
    """
    notes: list[str] = []
    for task, metric in tasks.items():
        notes += require_scorable(task, metric, _asked(samples, task)).notes
    return notes


def check_tasks(samples: Sequence[Sample], tasks: Mapping[str, str]) -> dict[str, AnswerCheck]:
    """Return by task what its accepted answers tell of its metric."""
    return {
        task: check_answers(task, metric, _asked(samples, task)) for task, metric in tasks.items()
    }


def _asked(samples: Sequence[Sample], task: str) -> list[Question]:
    return [Question(one.id, one.subset, one.answers) for one in samples if one.task == task]


def asked_digest(sample: Sample) -> str:
    """Return a digest of what a model is shown: all turns before the answer, and the pictures."""
    turns = [(turn.speaker, turn.text) for turn in sample.turns]
    if turns and turns[-1][0] != "human":
        turns.pop()
    pictures = [ref.sha256 for ref in sample.images]
    return hashlib.sha256(json.dumps([turns, pictures]).encode()).hexdigest()


def last_question(sample: Sample) -> str:
    """Return the words of the last human turn, without the pictures' places."""
    asked = [turn.text for turn in sample.turns if turn.speaker == "human"]
    words = asked[-1] if asked else ""
    return " ".join((words.replace(IMAGE_PLACEHOLDER, " ") if sample.images else words).split())
