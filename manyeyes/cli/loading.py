"""Reads the recipe of a command, and looks at it before anything is done with it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from manyeyes.config.recipe import Recipe, load_recipe
from manyeyes.pipeline.preflight import CHECKS, NAMES, Check, require


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
    require(recipe, path, checks, running, overrides)
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
