"""A recipe is right, or there is an error that says everything that is wrong with it."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from manyeyes.config.recipe import place_in
from manyeyes.errors import UserError
from manyeyes.pipeline.preflight.table import NAMES, inspect

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from manyeyes.config.recipe import Recipe
    from manyeyes.pipeline.preflight.subject import Check, Found


def require(
    recipe: Recipe,
    path: Path | None,
    checks: Sequence[Check] = NAMES,
    running: Collection[str] = (),
    overrides: Sequence[str] = (),
) -> None:
    """Look at a recipe before anything is done with it.

    Args:
        recipe: one that the schema accepts.
        path: its file, where it has one: errors name the line.
        checks: rows of the table of checks; by default only whether all names exist.
        running: stages that are to run on this machine: what they read and is absent is wrong.
        overrides: ``KEY=VALUE``, what was set in place of the file's values.

    Raises:
        UserError: with every problem on a line of its own.
    """
    # Libraries greet on standard output while they load, where the result of a command is read.
    with contextlib.redirect_stdout(sys.stderr):
        report = inspect(recipe, checks)
    if problems := problem_lines(path, report.wrong(running), overrides):
        raise UserError("\n".join(problems))


def problem_lines(
    path: Path | None, found: Sequence[Found], overrides: Sequence[str] = ()
) -> list[str]:
    """Write down what was found in a recipe, a line for each thing, with its place."""
    return [f"{_place(path, one.key, overrides)}: {one.text}" for one in found]


def _place(path: Path | None, key: Sequence[str | int], overrides: Sequence[str]) -> str:
    return place_in(path, key, overrides) if path else ".".join(str(part) for part in key)
