"""``manyeyes check``: are these recipes right, as far as local files can tell?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from manyeyes.cli.command import json_option, set_option, verb
from manyeyes.cli.output import no_greetings, print_json
from manyeyes.cli.values import PATH
from manyeyes.errors import UserError

if TYPE_CHECKING:
    from pydantic import JsonValue


@verb("check")
@click.argument(
    "recipes", metavar="RECIPE...", nargs=-1, required=True, type=PATH, help="recipe files"
)
@set_option
@json_option
def check(recipes: tuple[Path, ...], overrides: tuple[str, ...], as_json: bool) -> int:
    """Check every recipe and report all problems of all files."""
    problems: list[str] = []
    results: list[JsonValue] = []
    for path in recipes:
        result = _look(path, overrides)
        problems += result["problems"]
        lists: dict[str, JsonValue] = {key: list(lines) for key, lines in result.items()}
        results.append({"recipe": str(path), "ok": not result["problems"], **lists})
        if not as_json and not result["problems"]:
            print(f"{path}: ok")
            for note in result["notes"]:
                print(f"  note: {note}")
    if as_json:
        print_json(results)
        return 2 if problems else 0
    if problems:
        raise UserError("\n".join(problems))
    return 0


def _look(path: Path, overrides: Sequence[str]) -> dict[str, list[str]]:
    from manyeyes.config.recipe import load_recipe
    from manyeyes.pipeline.preflight import inspect, problem_lines

    try:
        recipe = load_recipe(path, overrides)
    except UserError as error:
        return {"problems": str(error).splitlines(), "notes": [], "looked_at": []}
    with no_greetings():
        report = inspect(recipe)
    left_out = [f"not looked at: {name} ({why})" for name, why in report.left_out.items()]
    return {
        "problems": problem_lines(path, report.wrong(), overrides),
        "notes": [*problem_lines(path, report.notes(), overrides), *left_out],
        "looked_at": list(report.answers),
    }


COMMANDS = (check,)
