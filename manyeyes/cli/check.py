"""``manyeyes check``: are these recipes right?"""

from __future__ import annotations

import argparse
from pathlib import Path

from pydantic import JsonValue

from manyeyes.cli.output import print_json
from manyeyes.errors import UserError
from manyeyes.recipe import Recipe, load_recipe


def run(arguments: argparse.Namespace) -> int:
    """Check every recipe and report all problems of all files."""
    problems: list[str] = []
    results: list[JsonValue] = []
    for path in arguments.recipes:
        errors: list[str] = []
        try:
            errors = _unknown_encoders(load_recipe(path), path)
        except UserError as error:
            errors = str(error).splitlines()
        problems += errors
        results.append({"recipe": str(path), "ok": not errors, "problems": list(errors)})
        if not arguments.json and not errors:
            print(f"{path}: ok")
    if arguments.json:
        print_json(results)
        return 2 if problems else 0
    if problems:
        raise UserError("\n".join(problems))
    return 0


def _unknown_encoders(recipe: Recipe, path: Path) -> list[str]:
    """Name the encoders that the table does not have; the schema cannot know the table."""
    from manyeyes.model.encoders.registry import find_spec

    problems = []
    for index, encoder in enumerate(recipe.model.encoders):
        try:
            find_spec(encoder.spec)
        except UserError as error:
            problems.append(f"{path}: model.encoders.{index}.spec: {error}")
    return problems
