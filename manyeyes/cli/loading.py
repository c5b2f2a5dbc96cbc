"""Reads the recipe of a command, and looks at it before anything is done with it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from manyeyes.cli.output import no_greetings
from manyeyes.config.recipe import Recipe, load_recipe, place_in
from manyeyes.errors import UserError
from manyeyes.pipeline.preflight import CHECKS, NAMES, Check, Found, inspect


def load_checked(
    path: Path,
    checks: Sequence[Check] = NAMES,
    running: Collection[str] = (),
    overrides: Sequence[str] = (),
) -> Recipe:
    """Load a recipe and look at it before anything is done with it.

    Args:
        path: of the recipe.
        checks: rows of the table of checks; by default only whether all names exist.
        running: stages that are to run on this machine: what they read and is absent is wrong.
        overrides: ``KEY=VALUE``, as ``--set`` takes them.

    Raises:
        UserError: with every problem on a line of its own.
    """
    recipe = load_recipe(path, overrides)
    with no_greetings():
        report = inspect(recipe, checks)
    problems = problem_lines(path, report.wrong(running), overrides)
    if problems:
        raise UserError("\n".join(problems))
    return recipe


def load_ready(path: Path, running: Collection[str] = (), overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe that is about to run; every row of the table of checks looks at it.

    Args:
        path: of the recipe.
        running: stages that are to run on this machine.
        overrides: ``KEY=VALUE``, as ``--set`` takes them.

    Raises:
        UserError: with every problem on a line of its own.
    """
    return load_checked(path, CHECKS, running, overrides)


def problem_lines(path: Path, found: Sequence[Found], overrides: Sequence[str] = ()) -> list[str]:
    """Write down what was found in a recipe, a line for each thing, with its place."""
    return [f"{place_in(path, one.key, overrides)}: {one.text}" for one in found]
