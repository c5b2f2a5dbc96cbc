"""``manyeyes check``: are these recipes right?"""

from __future__ import annotations

import argparse
from collections.abc import Callable
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
            errors = _unknown_names(load_recipe(path), path)
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


def _unknown_names(recipe: Recipe, path: Path) -> list[str]:
    """Name the encoders and packages the tables do not have; the schema cannot know the tables."""
    from manyeyes.model.encoders.registry import find_spec
    from manyeyes.model.packages import PREFIX, find_package

    names: list[tuple[str, str, Callable[[str], object]]] = []
    for index, encoder in enumerate(recipe.model.encoders):
        names.append((f"model.encoders.{index}.spec", encoder.spec, find_spec))
        names.append((f"model.encoders.{index}.weights", encoder.weights, find_package))
    names.append(("model.llm.weights", recipe.model.llm.weights, find_package))
    problems = []
    for place, name, find in names:
        if find is find_package and not name.startswith(PREFIX):
            continue
        try:
            find(name)
        except UserError as error:
            problems.append(f"{path}: {place}: {error}")
    return problems
