"""``manyeyes check``: are these recipes right, as far as local files can tell?"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path

from pydantic import JsonValue

from manyeyes.cli.output import no_greetings, print_json
from manyeyes.config.recipe import Recipe, load_recipe, place_in
from manyeyes.errors import UserError
from manyeyes.pipeline.preflight import CHECKS, NAMES, Check, Found, inspect


def run(arguments: argparse.Namespace) -> int:
    """Check every recipe and report all problems of all files."""
    problems: list[str] = []
    results: list[JsonValue] = []
    for path in arguments.recipes:
        result = _look(path)
        problems += result["problems"]
        lists: dict[str, JsonValue] = {key: list(lines) for key, lines in result.items()}
        results.append({"recipe": str(path), "ok": not result["problems"], **lists})
        if not arguments.json and not result["problems"]:
            print(f"{path}: ok")
            for note in result["notes"]:
                print(f"  note: {note}")
    if arguments.json:
        print_json(results)
        return 2 if problems else 0
    if problems:
        raise UserError("\n".join(problems))
    return 0


def _look(path: Path) -> dict[str, list[str]]:
    try:
        recipe = load_recipe(path)
    except UserError as error:
        return {"problems": str(error).splitlines(), "notes": [], "looked_at": []}
    with no_greetings():
        report = inspect(recipe)
    left_out = [f"not looked at: {name} ({why})" for name, why in report.left_out.items()]
    return {
        "problems": _lines(path, report.wrong()),
        "notes": [*_lines(path, report.notes()), *left_out],
        "looked_at": list(report.answers),
    }


def load_checked(
    path: Path, checks: Sequence[Check] = NAMES, running: Collection[str] = ()
) -> Recipe:
    """Load a recipe and look at it before anything is done with it.

    Args:
        path: of the recipe.
        checks: rows of the table of checks; by default only whether all names exist.
        running: stages that are to run on this machine: what they read and is absent is wrong.

    Raises:
        UserError: with every problem on a line of its own.
    """
    recipe = load_recipe(path)
    with no_greetings():
        report = inspect(recipe, checks)
    problems = _lines(path, report.wrong(running))
    if problems:
        raise UserError("\n".join(problems))
    return recipe


def load_ready(path: Path, running: Collection[str] = ()) -> Recipe:
    """Load a recipe that is about to run; every row of the table of checks looks at it.

    Args:
        path: of the recipe.
        running: stages that are to run on this machine.

    Raises:
        UserError: with every problem on a line of its own.
    """
    return load_checked(path, CHECKS, running)


def _lines(path: Path, found: Sequence[Found]) -> list[str]:
    return [f"{place_in(path, one.key)}: {one.text}" for one in found]
