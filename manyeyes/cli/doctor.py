"""``manyeyes doctor``: what is missing here or on the cluster, and how to mend it."""

from __future__ import annotations

import argparse
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue

from manyeyes.cli.output import no_greetings, print_json
from manyeyes.config.profile import ClusterProfile, Profile, load_profile
from manyeyes.config.recipe import Recipe, load_recipe, place_in
from manyeyes.doctor import LOCAL_CHECKS, Answer, Finding, State, run_checks, this_machine
from manyeyes.errors import UserError
from manyeyes.pipeline.preflight import CHECKS, inspect

MARKS: dict[State, str] = {"ok": "ok", "warning": "!", "problem": "X", "unchecked": "?"}
WORDS: dict[State, tuple[str, str]] = {
    "problem": ("problem", "problems"),
    "warning": ("warning", "warnings"),
    "unchecked": ("not checked", "not checked"),
    "ok": ("ok", "ok"),
}
WIDTH = 110


def run(arguments: argparse.Namespace) -> int:
    """Look everywhere; the exit code is 1 when there is a problem."""
    recipe = load_recipe(arguments.recipe) if arguments.recipe else None
    profile = load_profile(arguments.profile) if arguments.profile else None
    if arguments.pod:
        return _print_pod(profile)
    places = {"this machine": run_checks(LOCAL_CHECKS, this_machine(recipe))}
    if recipe is not None:
        places[f"recipe ({recipe.name})"] = recipe_answers(recipe, arguments.recipe)
    if isinstance(profile, ClusterProfile):
        from manyeyes.doctor.cluster import check_cluster

        places[f"cluster ({profile.name})"] = check_cluster(profile, recipe)
    if arguments.json:
        print_json(as_json(places))
    else:
        print(as_text(places))
    return 1 if _count(places)["problem"] else 0


def recipe_answers(recipe: Recipe, path: Path) -> list[Answer]:
    """Look at a recipe as ``check`` does, for the places of this report."""
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
    if not isinstance(profile, ClusterProfile):
        raise UserError("--pod needs the profile of a cluster: give --profile NAME.")
    from manyeyes.doctor.cluster.pod import doctor_pod

    print_json(doctor_pod(profile))
    return 0


def as_json(places: dict[str, list[Answer]]) -> JsonValue:
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
