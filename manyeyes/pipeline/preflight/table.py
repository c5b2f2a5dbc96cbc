"""The table of checks, and looking through it."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from manyeyes.pipeline.preflight import data, models, names
from manyeyes.pipeline.preflight.subject import Check, Report, Subject

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from manyeyes.config.recipe import Recipe

NAMES: tuple[Check, ...] = (
    Check("names", "the tables of encoders, zoo, packages, templates and metrics", names.unknown),
)
"""What every verb that reads a recipe looks at."""

CHECKS: tuple[Check, ...] = (
    *NAMES,
    Check("parts", "whether weights are here: folders, packages, the hub's cache", names.absent),
    Check("data", "data/NAME, or the table of the starter data: tasks and splits", data.tasks),
    Check("answers", "the accepted answers in data/NAME, by the metrics", data.answers),
    Check("lengths", "config.json of the language model", models.lengths, heavy=True),
    Check("end tokens", "the tokenizer of the language model", models.end_tokens, heavy=True),
    Check("patterns", "the model's parameters, without memory", models.patterns, heavy=True),
    Check("weights", "the headers of .safetensors files", models.weights, heavy=True),
    Check("questions", "the questions in data/NAME, by the tokenizer", data.questions, heavy=True),
)
"""What check, run, submit, the stages and doctor look at, in this order."""


def inspect(
    recipe: Recipe, checks: Sequence[Check] = CHECKS, dataset: Path | None = None
) -> Report:
    """Look at a recipe.

    Args:
        recipe: one that the schema accepts.
        checks: rows of the table.
        dataset: looked at in place of the recipe's own.
    """
    report, subject = Report(), Subject(recipe, dataset)
    for heavy in (False, True):
        why = _why_not(report) if heavy else ""
        for check in checks:
            if check.heavy != heavy:
                continue
            if why:
                report.left_out[check.name] = why
                continue
            report.answers[check.name] = list(check.look(subject))
    return report


def _why_not(report: Report) -> str:
    if report.wrong():
        return "the recipe is wrong already"
    return "" if importlib.util.find_spec("torch") else "torch is not installed here"
