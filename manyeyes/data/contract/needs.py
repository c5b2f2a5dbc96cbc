"""What the stages of a recipe need of its dataset: tasks to train on, questions to ask.

Told from the index alone, so all stages' needs are known before any of them runs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from manyeyes.config.recipe import StarterData
from manyeyes.errors import suggest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from manyeyes.config.recipe import Recipe, TrainSection
    from manyeyes.data.dataset.dataset import Dataset

Key = tuple[str | int, ...]
"""Place in a recipe: ``("eval", "tasks", "vqa")``."""


@dataclass(frozen=True)
class Stock:
    """What a dataset has, by split and task; of the starter data 1 stands for any number."""

    where: str
    """The dataset in an error's words."""
    samples: Mapping[str, Mapping[str, int]]
    questions: Mapping[str, Mapping[str, int]]
    """Of the samples those that have accepted answers."""


def stock_of(dataset: Dataset, where: str, excluded: Collection[str] = ()) -> Stock:
    """Count a dataset's samples.

    Args:
        dataset: read without its texts and pictures.
        where: names it in errors.
        excluded: ids that are in quarantine.

    Raises:
        UserError: the index cannot be read.
    """
    columns = dataset.table().select(["id", "split", "task", "answers"]).to_pydict()
    left_out = frozenset(excluded)
    samples: dict[str, Counter[str]] = {}
    questions: dict[str, Counter[str]] = {}
    for name, split, task, answers in zip(*columns.values(), strict=True):
        if name not in left_out:
            samples.setdefault(split, Counter())[task] += 1
            if answers:
                questions.setdefault(split, Counter())[task] += 1
    return Stock(where, samples, questions)


def stock_of_starter(where: str = "the starter data") -> Stock:
    """Tell from the table of quotas what the starter data will have."""
    from manyeyes.data.sources.starter.quotas import SAMPLES, tasks

    return Stock(
        where,
        {split: dict.fromkeys(tasks(split), 1) for split in SAMPLES},
        {split: dict.fromkeys(tasks(split, scored=True), 1) for split in SAMPLES},
    )


def trainings(recipe: Recipe) -> dict[Key, TrainSection]:
    """Return every training section of a recipe by its place."""
    experts: dict[Key, TrainSection] = {
        ("prealign", "experts", name): part for name, part in recipe.prealign.experts.items()
    }
    return {**experts, ("pretrain",): recipe.pretrain, ("sft",): recipe.sft}


def lacking(recipe: Recipe, stock: Stock) -> Iterator[tuple[Key, str]]:
    """Yield what a recipe's stages need and a dataset has not: where in the recipe, and what."""
    trained = stock.samples.get("train", {})
    for place, section in trainings(recipe).items():
        for task in section.sources:
            if not trained.get(task):
                yield (*place, "sources", task), _nothing("samples", "train", task, stock)
    split = recipe.evaluation.split
    if not stock.questions.get(split):
        others = [name for name in stock.questions if name != split]
        having = f"; it has them in {' and '.join(others)}" if others else ""
        yield (
            ("eval", "split"),
            f"{stock.where} has no questions with accepted answers in the split {split!r}{having}. "
            f'Give samples "split": "{split}" in the data, or name another split.',
        )
        return
    for task in recipe.evaluation.tasks:
        if not stock.questions[split].get(task):
            yield ("eval", "tasks", task), _nothing("questions", split, task, stock)


def _nothing(what: str, split: str, task: str, stock: Stock) -> str:
    held = (stock.questions if what == "questions" else stock.samples).get(split, {})
    if what == "questions" and stock.samples.get(split, {}).get(task):
        return (
            f"{stock.where} has samples of the task {task!r} in the split {split!r}, but none of "
            "them has an accepted answer: take the task out or give answers."
        )
    listed = ", ".join(_counted(name, held[name]) for name in sorted(held)) or "nothing"
    hint = suggest(task, held)
    return (
        f"{stock.where} has no {what} of the task {task!r} in the split {split!r}; there it has "
        f"{listed}{hint or '.'}"
    )


def _counted(name: str, number: int) -> str:
    return f"{name} ({number:,})" if number > 1 else name


def is_starter(recipe: Recipe) -> bool:
    """Say whether the data are built and not imported."""
    return isinstance(recipe.data, StarterData)
