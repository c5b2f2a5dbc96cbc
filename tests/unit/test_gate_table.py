"""The gate's table: who is promoted, refused, undecided, why, and with which exit code.

The same cases are the table of ``docs/gate.md``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from gate_kit import answers, labels, rows, write_report
from pipeline_kit import LONG
from track_kit import write_checkpoint

from manyeyes.artifact.manifest import read_manifest
from manyeyes.cli import gate, main
from manyeyes.registry.catalogue import list_models

PAGE = Path(__file__).parents[2] / "docs/gate.md"
NUM = 400


def charts(right, *, count=NUM, first=0, **changes):
    """Answers to the charts; ``right`` of 100 hit."""
    return rows("charts", answers(count, right, first=first), labels(count), **changes)


def pope(said, blind):
    return rows("pope", [said] * 40, ["yes", "no"] * 20, blind)


def constant(text, count=NUM):
    return rows("charts", [text] * count, labels(count))


def without_a_number(scores):
    task = scores.tasks["charts"]
    broken = replace(task.total, score=replace(task.total.score, value=float("nan")))
    return replace(scores, tasks={"charts": replace(task, total=broken)})


@dataclass(frozen=True)
class Case:
    """A model that asks to be champion."""

    name: str
    answers: list
    decision: str
    code: int
    reason: str
    """The first one; with ``{…}`` filled in by the test."""
    champion: list | None = None
    """What the present champion answered; None: there is none."""
    weights: str = "new"
    """``champion``: it is the champion that asks again."""
    report_of: str = "new"
    """Whose report is given."""
    edit: object = None
    recipe: tuple[str, str] = ("", "")
    """What to replace in the recipe."""

    @property
    def promotes(self):
        return self.decision == "promoted" and self.weights == "new"


CASES = [
    Case("the first good model", charts(80), "promoted", 0, "there is no champion yet"),
    Case("better than the champion beyond doubt", charts(90), "promoted", 0,
         "average 90.0 against 80.0 of the champion, version 1, on the same 400 questions: +10.0 "
         "points (95 % interval +7.0 to +13.3; a loss of 1.0 is allowed)", champion=charts(80)),
    Case("worse than the champion beyond doubt", charts(70), "refused", 3,
         "average 70.0 against 80.0 of the champion, version 1, on the same 400 questions: -10.0 "
         "points (95 % interval -13.4 to -7.0; a loss of 1.0 is allowed)", champion=charts(80)),
    Case("too close to tell", charts(80, first=3), "undecided", 3,
         "average 80.0 against 80.0 of the champion, version 1, on the same 400 questions: +0.0 "
         "points (95 % interval -2.7 to +2.8; a loss of 1.0 is allowed); about 2,533 questions "
         "would decide", champion=charts(80)),
    Case("the champion, scored again and worse", charts(10), "refused", 3,
         "charts scores 10.0, which is -3 % of the way from 12.5 (always '0') to 100.0, but at "
         "least 30 % is required", champion=charts(80), weights="champion",
         report_of="champion"),
    Case("the champion, scored again and as good", charts(82), "promoted", 0,
         "version 1 is the champion already", champion=charts(80), weights="champion",
         report_of="champion"),
    Case("other questions than the champion's", charts(90, name="other"), "undecided", 3,
         "the champion, version 1, was not asked the same questions: charts: other questions (400 "
         "here, 400 there). Ask it the same: run eval of this recipe with --checkpoint on the "
         "champion's weights ({champion}), register these weights with that report, then register "
         "this model again", champion=charts(80)),
    Case("fewer questions than the champion's", charts(90, count=100), "undecided", 3,
         "the champion, version 1, was not asked the same questions: charts: other questions (100 "
         "here, 400 there). Ask it the same: run eval of this recipe with --checkpoint on the "
         "champion's weights ({champion}), register these weights with that report, then register "
         "this model again", champion=charts(80)),
    Case("a threshold that is no number", charts(80), "", 2,
         "{recipe}:270: register.gate.min_gain: input should be a finite number, got nan",
         recipe=("min_gain: 0.30", "min_gain: .nan")),
    Case("a limit that is infinite", charts(80), "", 2,
         "{recipe}:269: register.gate.max_regression: input should be a finite number, got inf",
         recipe=("max_regression: 1.0", "max_regression: .inf")),
    Case("a score that is no number", charts(80), "refused", 3,
         "charts has a score that is no finite number", edit=without_a_number),
    Case("blind off in the recipe", charts(80), "", 2,
         "{recipe}:1: register.gate.min_gain asks for a gain over the blank image, which eval.blind "
         "false does not measure; write eval.blind true, or remove min_gain",
         recipe=("blind: true", "blind: false")),
    Case("blind off in the report", charts(80, blind=None), "refused", 3,
         "charts was not asked with a blank image (eval.blind), so it is not known what looking "
         "gains"),
    Case("always yes when it sees a picture, no on a blank one", pope("yes", "no"), "refused", 3,
         "pope: 40 of 40 answers are 'yes', but at most 95 % may be the same"),
    Case("always yes, where equal answers are allowed", pope("yes", "no"), "refused", 3,
         "pope scores 66.7, which is 0 % of the way from 66.7 (always 'yes') to 100.0, but at "
         "least 30 % is required",
         recipe=("min_gain: 0.30", "min_gain: 0.30\n    max_equal: 1.0")),
    Case("empty answers", constant(""), "refused", 3,
         "charts: 400 of 400 answers are empty, but at most 50 % may be"),
    Case("empty answers, no gain asked for", pope("", ""), "refused", 3,
         "pope: 40 of 40 answers are empty, but at most 50 % may be",
         recipe=("    min_gain: 0.30\n", "")),
    Case("the report of another checkpoint", charts(99), "", 2,
         "{report} was made by eval of the checkpoint {other}, not of {checkpoint} ({digest}): "
         "run eval on this checkpoint and give its result as --report.", report_of="other"),
    Case("one question, one hit", charts(80, count=1), "refused", 3,
         "charts: always answering '0' scores 100.0, the highest score there is, so asking "
         "it shows nothing; ask more questions"),
]  # fmt: skip


@pytest.fixture
def place(tmp_path, home, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("champion", "new", "other"):
        write_checkpoint(tmp_path / name, name)
    return tmp_path


def enter(place, weights, report, recipe):
    """Register, as a person does; return the exit code."""
    return main(["register", str(recipe), "--checkpoint", str(place / weights),
                 "--report", str(report), "--out", str(place / f"of-{report.name}")])  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_the_gate(case, place, capsys):
    recipe = place / "recipe.yaml"
    text = LONG.read_text(encoding="utf-8")
    recipe.write_text(text, encoding="utf-8")
    if case.champion is not None:
        write_report(place / "first", place / "champion", case.champion)
        assert enter(place, "champion", place / "first", recipe) == 0
    assert case.recipe[0] in text
    recipe.write_text(text.replace(*case.recipe), encoding="utf-8")
    write_report(place / "report", place / case.report_of, case.answers, edit=case.edit)
    capsys.readouterr()
    assert enter(place, case.weights, place / "report", recipe) == case.code
    said = capsys.readouterr()
    digests = {name: read_manifest(place / name).digest[:12] for name in ("new", "other")}
    reason = case.reason.format(
        recipe=recipe, report=place / "report", checkpoint=place / "new", digest=digests["new"],
        other=digests["other"], champion=(place / "champion").as_uri(),
    )  # fmt: skip
    if not case.decision:
        assert said.err.removeprefix("manyeyes: ").strip() == reason
        return
    found = json.loads((place / "of-report/registration.json").read_text())
    assert (found["decision"], found["passed"]) == (case.decision, case.decision == "promoted")
    assert found["reasons"][0] == reason
    assert reason in said.out
    champions = [row.version for row in list_models() if "champion" in row.aliases]
    before = [1] if case.champion is not None else []
    assert champions == ([len(before) + 1] if case.promotes else before)


def cell(case):
    places = {"recipe": "recipe.yaml", "report": "eval", "checkpoint": "sft", "digest": "6e6f…",
              "other": "6f74…", "champion": "…"}  # fmt: skip
    return case.reason.format(**places)


def table():
    lines = ["| the model that asks | decision | exit code | first reason |", "|---|---|---|---|"]
    for case in CASES:
        decision = case.decision or "not judged"
        lines.append(f"| {case.name} | {decision} | {case.code} | {cell(case)} |")
    return "\n".join(lines)


def test_the_page_has_the_table():
    assert table() in PAGE.read_text(encoding="utf-8"), table()


def test_an_undecided_model_is_judged_again_once_the_champion_was_asked_the_same(place):
    recipe = place / "recipe.yaml"
    recipe.write_text(LONG.read_text(encoding="utf-8"), encoding="utf-8")
    write_report(place / "first", place / "champion", charts(80))
    write_report(place / "report", place / "new", charts(90, name="other"))
    assert enter(place, "champion", place / "first", recipe) == 0
    assert enter(place, "new", place / "report", recipe) == 3
    # The same command: nothing changed, so nothing is judged anew.
    assert enter(place, "new", place / "report", recipe) == 3
    write_report(place / "again", place / "champion", charts(80, name="other"))
    assert enter(place, "champion", place / "again", recipe) == 0
    assert enter(place, "new", place / "report", recipe) == 0
    assert {row.version: row.aliases for row in list_models()} == {
        1: ("previous",), 2: ("candidate", "champion"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("details", "code", "text"),
    [
        ({"decision": "promoted", "passed": True, "reasons": ["a", "b"]}, 0,
         "The gate says yes: a; b."),
        ({"decision": "refused", "passed": False, "reasons": ["a"]}, 3,
         "The gate says no, not champion: a."),
        ({"decision": "undecided", "passed": False, "reasons": ["a"]}, 3,
         "The gate is undecided, not champion: a."),
    ],
)  # fmt: skip
def test_the_command_says_what_the_gate_said(details, code, text):
    assert (gate.exit_code(details), gate.words(details)) == (code, text)
