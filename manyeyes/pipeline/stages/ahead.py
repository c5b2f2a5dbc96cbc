"""Before the first step of a training: can every later stage work on these data?

A training takes hours, and what ends the run after it (no question in the test split, a source that
is misspelt two stages on, a question longer than the model reads) is told by the data that already
lie there. A stage's result depends on its own slice alone; so what it looks at here decides only
whether it starts, is no part of its key, and comes in the environment, not as an input.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from manyeyes.config.recipe import Recipe
from manyeyes.data.contract.needs import lacking, stock_of
from manyeyes.data.dataset.dataset import Dataset
from manyeyes.data.dataset.quarantine import quarantined_ids
from manyeyes.errors import UserError
from manyeyes.runtime import ranks
from manyeyes.runtime.home import WHOLE_RECIPE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


def recipe_ahead() -> Recipe | None:
    """Return the recipe that the environment tells of; process 0 looks for all of them."""
    text = os.environ.get(WHOLE_RECIPE)
    return Recipe.model_validate_json(text) if text and not ranks.rank() else None


def check_ahead(recipe: Recipe, inputs: Mapping[str, Path]) -> None:
    """Hold what all stages of a recipe need against the validated data.

    Args:
        recipe: the whole.
        inputs: ``dataset`` and ``validation``.

    Raises:
        UserError: a stage could not do its work; one line per reason.
    """
    dataset = Dataset.open(inputs["dataset"])
    excluded = quarantined_ids(inputs["validation"])
    left_out = f", {len(excluded):,} samples of which are in quarantine," if excluded else ""
    stock = stock_of(dataset, f"the dataset{left_out}", excluded)
    problems = [f"{'.'.join(map(str, key))}: {text}" for key, text in lacking(recipe, stock)]
    if not problems:
        problems += _about_questions(recipe, dataset, excluded)
    dataset.close()
    if problems:
        raise UserError("\n".join(["Nothing was trained: a later stage would fail.", *problems]))


def _about_questions(recipe: Recipe, dataset: Dataset, excluded: frozenset[str]) -> Iterator[str]:
    from manyeyes.evaluation.lengths import reader_of, sentence, too_long
    from manyeyes.evaluation.run import check_tasks, choose_samples

    section = recipe.evaluation
    samples = choose_samples(dataset, section, excluded)
    for task, answers in check_tasks(samples, section.tasks).items():
        yield from (f"eval.tasks.{task}: {text}." for text in answers.refusals)
    if section.too_long is None:
        found = too_long(samples, reader_of(recipe.final_model))
        if found:
            text = sentence(found, recipe.final_model.max_length)
            yield f"model.max_length: {text}"
