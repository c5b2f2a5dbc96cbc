"""``manyeyes explain``: what is cached and what will run, and why."""

from __future__ import annotations

from pathlib import Path

from manyeyes.cli.command import json_option, recipe_argument, set_option, verb
from manyeyes.cli.output import print_json, print_table


@verb("explain")
@recipe_argument
@set_option
@json_option
def explain_verb(path: Path, overrides: tuple[str, ...], as_json: bool) -> int:
    """Explain every stage of a recipe."""
    from manyeyes.cli.loading import load_checked
    from manyeyes.pipeline.explain import explain

    recipe = load_checked(path, overrides=overrides)
    answers = explain(recipe)
    if as_json:
        print_json([answer.as_json() for answer in answers])
        return 0
    rows = [(answer.task.label, *answer.reason.split(": ", 1)) for answer in answers]
    print_table(recipe.name, ("stage", "state", "why"), rows)
    return 0


COMMANDS = (explain_verb,)
