"""What can be told about a recipe before anything runs: one table of checks for every verb.

Design decisions:

- A check reads local files alone: the recipe, tables of this package, ``data/NAME``, the language
  model's config and tokenizer, the headers of weights. Nothing is fetched, and no weight is read.
- What is wrong is an error everywhere. What is merely not here (a dataset, a package) is a note,
  and an error only where the recipe is about to run.
- Every check looks, whatever the others found, so all mistakes are told at once. What a check
  cannot look at, because a part of it is wrong or missing, it leaves to the check that says so.
- Checks that need torch come last and only if the light ones found nothing wrong.
"""

from __future__ import annotations

from manyeyes.pipeline.preflight.requirement import problem_lines, require
from manyeyes.pipeline.preflight.subject import Check, Found, Report, Subject
from manyeyes.pipeline.preflight.table import CHECKS, NAMES, inspect

__all__ = [
    "CHECKS",
    "NAMES",
    "Check",
    "Found",
    "Report",
    "Subject",
    "inspect",
    "problem_lines",
    "require",
]  # fmt: skip
