"""``manyeyes explain``: what is cached and what will run, and why."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from manyeyes.cli.check import load_checked
from manyeyes.cli.output import print_json, print_table
from manyeyes.pipeline.explain import explain


def run(arguments: argparse.Namespace) -> int:
    """Explain every stage of a recipe."""
    recipe = load_checked(arguments.recipe)
    answers = explain(recipe)
    if arguments.json:
        print_json([asdict(answer) for answer in answers])
        return 0
    rows = [(answer.label, *answer.reason.split(": ", 1)) for answer in answers]
    print_table(recipe.name, ("stage", "state", "why"), rows)
    return 0
