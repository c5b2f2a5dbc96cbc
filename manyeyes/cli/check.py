"""``manyeyes check``: are these recipes right?"""

from __future__ import annotations

import argparse

from pydantic import JsonValue

from manyeyes.cli.output import print_json
from manyeyes.errors import UserError
from manyeyes.recipe import load_recipe


def run(arguments: argparse.Namespace) -> int:
    """Check every recipe and report all problems of all files."""
    problems: list[str] = []
    results: list[JsonValue] = []
    for path in arguments.recipes:
        errors: list[str] = []
        try:
            recipe = load_recipe(path)
            from manyeyes.model.encoders.registry import check_encoders

            check_encoders(recipe.model)
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
