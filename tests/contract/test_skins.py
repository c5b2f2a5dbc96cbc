"""The command line against the step table; DVC and KFP have contract tests of their own."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from manyeyes.cli import main
from manyeyes.cli.parser import VERBS, build_parser
from manyeyes.steps import STEPS

ROOT = Path(__file__).parents[2]
HEAVY = (
    "torch",
    "transformers",
    "mlflow",
    "kfp",
    "great_expectations",
    "matplotlib",
    "pandas",
    "pydantic",
    "numpy",
)


def options(verb):
    actions = build_parser()._subparsers._group_actions[0].choices[verb]._actions
    return {action.dest: action for action in actions}


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_every_stage_is_a_verb_with_a_flag_per_input(step):
    given = options(step.name)
    assert {needed.role for needed in step.inputs} <= set(given)
    assert ("expert" in given) == step.per_expert
    assert {"recipe", "out", "json"} <= set(given)
    for needed in step.inputs:
        assert (given[needed.role].nargs == "*") == needed.many
        assert given[needed.role].required != needed.many


def test_stage_verbs_stand_in_pipeline_order():
    names = [step.name for step in STEPS]
    assert [verb for verb in VERBS if verb in names] == names


def test_every_verb_has_a_module_and_a_parser():
    parsers = build_parser()._subparsers._group_actions[0].choices
    assert set(parsers) == set(VERBS)
    for module in VERBS.values():
        assert (ROOT / "manyeyes/cli" / f"{module}.py").is_file()


def test_help_imports_nothing_heavy():
    code = (
        "import sys, json, contextlib, io\n"
        "from manyeyes.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    main(['--help'])\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert json.loads(answer.stdout) == []


def _valued():
    """Each option that takes a value, of each verb and each action of one: its words and itself."""
    found = []
    waiting = [([], build_parser())]
    while waiting:
        words, parser = waiting.pop()
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                waiting += [([*words, name], one) for name, one in action.choices.items()]
            elif action.option_strings and action.nargs != 0:
                found.append((words, action))
    return found


@pytest.mark.parametrize(
    ("words", "action"), _valued(), ids=lambda one: getattr(one, "dest", None) or "-".join(one)
)
def test_two_dashes_are_no_value_of_an_option(words, action, capsys):
    for name in action.option_strings:
        with pytest.raises(SystemExit) as caught:
            main([*words, f"{name}=--"])
        assert caught.value.code == 2
        *_, last = capsys.readouterr().err.splitlines()
        assert last == (
            f"manyeyes {' '.join(words)}: error: argument {'/'.join(action.option_strings)}: its "
            "value cannot be '--'; give another one"
        )
