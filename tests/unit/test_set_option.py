"""``--set KEY=VALUE``: every verb that reads a recipe takes another value for one of its keys."""

import json
from pathlib import Path

import click
import pytest
import yaml
from pipeline_kit import small_recipe

from manyeyes.cli import main
from manyeyes.cli.program import program
from manyeyes.cli.verbs import VERBS

SET = ["--set", "sft.steps=3", "--set", "sft.learning_rate=2e-3"]


@pytest.fixture
def recipe(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_recipe(tmp_path)
    return "recipe.yaml"


def takes_a_recipe(verb):
    command = program.get_command(click.Context(program), verb)
    return any(one.human_readable_name.startswith("RECIPE") for one in command.params)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if takes_a_recipe(verb)])
def test_every_verb_that_reads_a_recipe_has_it(verb):
    command = program.get_command(click.Context(program), verb)
    (option,) = (one for one in command.params if "--set" in one.opts)
    assert option.multiple


MISTAKES = {
    "sft.stesp=3": "--set sft.stesp=3: sft.stesp: unknown key",
    "sft.steps=0": "--set sft.steps=0: sft.steps: input should be greater than or equal to 1, got 0",
    "sft.steps": "--set sft.steps: write KEY=VALUE, like sft.steps=10.",
}


@pytest.mark.parametrize("verb", ["check", "show", "plan", "explain", "run", "keys", "prepare"])
@pytest.mark.parametrize("word", MISTAKES)
def test_a_wrong_one_is_told_by_its_words(verb, word, recipe, capsys):
    out = ["--out", "out"] if verb in ("keys", "prepare") else []
    assert main([verb, recipe, "--set", word, *out]) == 2
    assert capsys.readouterr().err.startswith(MISTAKES[word])
    assert not Path("out").exists()


def test_what_is_found_in_a_value_that_was_set_names_it(recipe, capsys):
    assert main(["check", recipe, "--set", "model.encoders.0.weights=zoo:no-such"]) == 2
    assert capsys.readouterr().err.startswith("--set model.encoders.0.weights=zoo:no-such: ")


def test_only_the_stage_that_sees_it_gets_another_key(recipe):
    assert main(["keys", recipe, "--out", "plain"]) == 0
    assert main(["keys", recipe, "--out", "other", *SET]) == 0
    names = sorted(path.name for path in Path("plain").iterdir())
    changed = [
        name for name in names if Path("plain", name).read_text() != Path("other", name).read_text()
    ]
    assert changed == ["sft.json"]


def test_the_pipeline_of_dvc_gives_every_stage_what_was_set(recipe):
    assert main(["dvc", recipe, *SET]) == 0
    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    for name, stage in stages.items():
        verb = f"manyeyes {name} recipe.yaml --set sft.steps=3 --set sft.learning_rate=2e-3 "
        assert stage["cmd"].startswith(verb)


@pytest.mark.parametrize("word", ["name=a${b}", "name=a\nb"])
def test_what_dvc_would_take_for_a_template_is_refused(word, recipe, monkeypatch, capsys):
    monkeypatch.setattr("manyeyes.cli.loading.load_recipe", lambda *_: None)
    monkeypatch.setattr("manyeyes.cli.loading.load_checked", lambda *_, **__: None)
    assert main(["dvc", recipe, "--set", word]) == 2
    assert capsys.readouterr().err == (
        f"DVC cannot use {word!r}: write it into the recipe's file.\n"
    )


def test_show_prints_what_was_set_and_that_it_was(recipe, capsys):
    assert main(["show", recipe, "--json", *SET]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["recipe"]["sft"]["steps"] == 3
    assert shown["sources"]["sft.steps"] == "--set sft.steps=3"
