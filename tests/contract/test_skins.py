"""The command line against the step table; DVC and KFP have contract tests of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from manyeyes.cli import main
from manyeyes.cli.command import Several
from manyeyes.cli.program import program
from manyeyes.cli.verbs import PANELS, VERBS
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


def command_of(words, start=program):
    """The command that words name."""
    found = start
    for word in words:
        found = found.get_command(click.Context(found), word)
    return found


def all_commands():
    """Each verb and each action of one: its words and itself."""
    found = []
    waiting = [[verb] for verb in VERBS]
    while waiting:
        words = waiting.pop()
        command = command_of(words)
        found.append((words, command))
        if isinstance(command, click.Group):
            waiting += [[*words, name] for name in command.commands]
    return found


COMMANDS = all_commands()


def parameters(verb):
    return {one.name: one for one in command_of([verb]).params}


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_every_stage_is_a_verb_with_a_flag_per_input(step):
    given = parameters(step.name)
    assert {needed.role for needed in step.inputs} <= set(given)
    assert ("expert" in given) == step.per_expert
    assert {"path", "out", "as_json"} <= set(given)
    for needed in step.inputs:
        assert f"--{needed.role}" in given[needed.role].opts
        assert isinstance(given[needed.role], Several) == needed.many
        assert given[needed.role].required != needed.many


def test_stage_verbs_stand_in_pipeline_order():
    assert list(PANELS["Stages"]) == [step.name for step in STEPS]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_command_and_a_help(verb, capsys):
    assert command_of([verb]).name == verb
    assert main([verb, "--help"]) == 0
    printed = capsys.readouterr()
    text = VERBS[verb].text
    assert f"{text[0].upper()}{text[1:]}." in " ".join(printed.out.split())
    assert printed.err == ""


@pytest.mark.parametrize(
    ("words", "command"), COMMANDS, ids=lambda one: "-".join(one) if isinstance(one, list) else ""
)
def test_every_option_and_argument_says_what_it_is(words, command):
    for one in command.params:
        assert one.help, one.name
        assert not one.help.endswith("."), one.name


def loaded_by(*calls):
    """Heavy packages that a new process has imported after commands."""
    code = (
        "import sys, json, contextlib, io\n"
        "from manyeyes.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        f"    codes = [main(call) for call in {list(calls)!r}]\n"
        f"print(json.dumps([codes, [name for name in {HEAVY!r} if name in sys.modules]]))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return json.loads(answer.stdout)


def test_help_imports_nothing_heavy():
    assert loaded_by(["--help"]) == [[0], []]


def test_help_of_a_verb_and_a_mistake_import_nothing_heavy():
    calls = [[*words, "--help"] for words, _ in COMMANDS]
    calls += [[*words, "--no-such-option"] for words, _ in COMMANDS]
    codes, heavy = loaded_by(*calls)
    assert heavy == []
    assert codes == [0] * len(COMMANDS) + [2] * len(COMMANDS)


VALUED = [
    (words, option)
    for words, command in COMMANDS
    for option in command.params
    if isinstance(option, click.Option) and not option.is_flag
]


@pytest.mark.parametrize(
    ("words", "option"), VALUED, ids=lambda one: getattr(one, "name", None) or "-".join(one)
)
def test_what_is_no_value_is_refused_by_every_option(words, option, capsys):
    name = max(option.opts, key=len)
    refused = {
        "--": f"{name} cannot be '--'; give another value.\n",
        "": f"{name} is empty; give a value.\n",
    }
    for written in option.opts:
        for value, text in refused.items():
            assert main([*words, f"{written}={value}"]) == 2
            assert capsys.readouterr().err == text
        if not isinstance(option, Several):
            metavar = option.make_metavar(click.Context(program))
            assert main([*words, written]) == 2
            assert capsys.readouterr().err == f"{name} needs a value: write {name} {metavar}.\n"
            for following in ("--json", "--"):
                assert main([*words, written, following]) == 2
                assert capsys.readouterr().err == (
                    f"{name} needs a value, and '{following}' looks like an option; if it is the "
                    f"value, write {name}={following}.\n"
                )
