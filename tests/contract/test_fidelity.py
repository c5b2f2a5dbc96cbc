"""``docs/fidelity.md`` and ``docs/trust.md``: every row names tests that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/fidelity.md").read_text(encoding="utf-8")
SYSTEMS = (
    "Shared: LLaVA-1.5's data, training and serving code",
    "Eagle",
    "EVE",
    "Mini-Gemini",
    "Cambrian-1",
)
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| the authors' code")
]
TRUST = (ROOT / "docs/trust.md").read_text(encoding="utf-8")
PROMISES = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TRUST.splitlines()
    if line.startswith("| ") and not line.startswith(("| promise", "| ---"))
]
NAMED = sorted(
    set(re.findall(r"`(tests/[^`]+)`", PAGE + TRUST)) - {"tests/contract/test_fidelity.py"}
)


def test_every_system_has_its_table():
    for system in SYSTEMS:
        assert (
            f"## {system}\n\n| the authors' code | here by default | switch for theirs | test |"
            in PAGE
        )


@pytest.mark.parametrize("row", ROWS, ids=[row[0][:50] for row in ROWS])
def test_a_row_says_what_they_do_what_we_do_the_switch_and_the_test(row):
    theirs, ours, switch, tests = row
    assert theirs
    assert ours
    assert switch
    assert re.fullmatch(r"(`tests/[\w/]+\.py::\w+` ?)+", tests)


@pytest.mark.parametrize("row", PROMISES, ids=[row[0][:50] for row in PROMISES])
def test_a_promise_says_how_it_is_kept_and_names_its_test(row):
    promise, kept, tests = row
    assert promise
    assert kept
    assert re.fullmatch(r"`tests/[\w/]+\.py(::\w+)?`(, `[^`]+`)*", tests)


@pytest.mark.parametrize("name", NAMED)
def test_a_test_that_is_named_exists(name):
    path, _, function = name.partition("::")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    tests = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert function in tests or (not function and any(test.startswith("test_") for test in tests))
