"""``manyeyes doctor``: what is missing here or on the cluster, and how to mend it."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from manyeyes.cli.command import json_option, verb
from manyeyes.cli.output import no_greetings, print_json
from manyeyes.cli.values import PATH, PLACE
from manyeyes.errors import UserError

if TYPE_CHECKING:
    from pydantic import JsonValue

    from manyeyes.config.profile import Profile
    from manyeyes.config.recipe import Recipe
    from manyeyes.doctor import Answer, State

MARKS: dict[State, str] = {"ok": "ok", "warning": "!", "problem": "X", "unchecked": "?"}
WORDS: dict[State, tuple[str, str]] = {
    "problem": ("problem", "problems"),
    "warning": ("warning", "warnings"),
    "unchecked": ("not checked", "not checked"),
    "ok": ("ok", "ok"),
}
WIDTH = 110


@verb("doctor")
@click.argument(
    "path", metavar="[RECIPE]", required=False, type=PATH, help="check what this recipe needs too"
)
@click.option(
    "--profile",
    metavar="PROFILE",
    type=PLACE,
    help="profile of a cluster: a name, or a file in YAML",
)
@click.option("--pod", is_flag=True, help="print a pod that runs doctor inside the cluster")
@json_option
def doctor(path: Path | None, profile: str | None, pod: bool, as_json: bool) -> int:
    """Look everywhere; the exit code is 1 when there is a problem."""
    from manyeyes.config.profile import ClusterProfile, load_profile
    from manyeyes.config.recipe import load_recipe
    from manyeyes.doctor import LOCAL_CHECKS, run_checks, this_machine

    recipe = load_recipe(path) if path else None
    cluster = load_profile(profile) if profile else None
    if pod:
        return _print_pod(cluster)
    places = {"this machine": run_checks(LOCAL_CHECKS, this_machine(recipe))}
    if recipe is not None and path is not None:
        places[f"recipe ({recipe.name})"] = recipe_answers(recipe, path)
    if isinstance(cluster, ClusterProfile):
        from manyeyes.doctor.cluster import check_cluster

        places[f"cluster ({cluster.name})"] = check_cluster(cluster, recipe)
    if as_json:
        print_json(findings_json(places))
    else:
        print(as_text(places))
    return 1 if _count(places)["problem"] else 0


def recipe_answers(recipe: Recipe, path: Path) -> list[Answer]:
    """Look at a recipe as ``check`` does, for the places of this report."""
    from manyeyes.config.recipe import place_in
    from manyeyes.doctor import Answer, Finding
    from manyeyes.pipeline.preflight import CHECKS, inspect

    with no_greetings():
        report = inspect(recipe)
    wrong = report.wrong()
    answers = []
    for check in CHECKS:
        if check.name not in report.answers:
            why = f"Not looked at: {report.left_out[check.name]}."
            answers.append(Answer(check.name, [Finding("unchecked", why)]))
            continue
        findings = [
            Finding(
                "problem" if one in wrong else "warning",
                f"{place_in(path, one.key)}: {one.text}",
            )
            for one in report.answers[check.name]
        ]
        nothing = Finding("ok", f"Right, by {check.reads}.")
        answers.append(Answer(check.name, findings or [nothing]))
    return answers


def _print_pod(profile: Profile | None) -> int:
    """Print what runs doctor inside the cluster."""
    from manyeyes.config.profile import ClusterProfile

    if not isinstance(profile, ClusterProfile):
        raise UserError("--pod needs the profile of a cluster: give --profile NAME.")
    from manyeyes.doctor.cluster.pod import doctor_pod

    print_json(doctor_pod(profile))
    return 0


def findings_json(places: dict[str, list[Answer]]) -> JsonValue:
    """Return one row per finding."""
    return {
        "ok": not _count(places)["problem"],
        "findings": [
            {
                "where": where,
                "check": answer.check,
                "state": finding.state,
                "what": finding.what,
                "why": finding.why,
                "mend": finding.mend,
            }
            for where, answers in places.items()
            for answer in answers
            for finding in answer.findings
        ],
    }


def as_text(places: dict[str, list[Answer]]) -> str:
    """Write the findings for people: one line if all is well, else also why and the mend."""
    width = max(len(answer.check) for answers in places.values() for answer in answers)
    lines = []
    for where, answers in places.items():
        lines.append(where.capitalize())
        for answer in answers:
            lines += _lines(answer, width)
        lines.append("")
    count = _count(places)
    shown = [f"{count[state]} {WORDS[state][count[state] != 1]}" for state in WORDS if count[state]]
    return "\n".join([*lines, ", ".join(shown) + "."])


def _lines(answer: Answer, width: int) -> list[str]:
    lines = []
    indent = " " * (width + 7)
    for finding in answer.findings:
        head = f"  {MARKS[finding.state]:>2} {answer.check:<{width}}  "
        lines += _wrapped(finding.what, head, indent)
        if finding.why:
            lines += _wrapped(finding.why, indent, indent)
        if finding.mend:
            # A command is not broken into lines: it is there to be copied.
            lines.append(f"{indent}mend: {finding.mend}")
    return lines


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _count(places: dict[str, list[Answer]]) -> Counter[State]:
    found: Sequence[State] = [
        finding.state
        for answers in places.values()
        for answer in answers
        for finding in answer.findings
    ]
    return Counter(found)


COMMANDS = (doctor,)
