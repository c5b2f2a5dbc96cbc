"""The shipped recipes are short, say what they always said, and editors know their keys."""

import json
import re

import jsonschema
import pytest
from pipeline_kit import LONG, TINY
from record_slices import RECORD, ROOT, shipped, slices_of
from ruamel.yaml import YAML

from manyeyes.config.recipe import load_recipe, parse_recipe, recipe_yaml
from manyeyes.config.recipe.schema import FILE, recipe_schema, schema_text

RECIPES = shipped()
RECORDED = json.loads(RECORD.read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft7Validator(recipe_schema())


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def read(text):
    return YAML(typ="safe").load(text)


def complaints(tree):
    return [error.json_path for error in VALIDATOR.iter_errors(tree)]


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_every_slice_is_the_recorded_one(path):
    assert slices_of(path) == RECORDED[name_of(path)], (
        "the keys of its results changed; if that is meant: python tests/record_slices.py"
    )


def test_no_recorded_recipe_is_gone():
    assert sorted(RECORDED) == sorted(map(name_of, RECIPES))


def test_a_long_recipe_of_before_is_the_same_recipe():
    long, short = load_recipe(LONG), load_recipe(TINY)
    assert long == short
    assert list(long.prealign.experts) == list(short.prealign.experts)


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipe_written_out_is_the_same_recipe(path):
    recipe = load_recipe(path)
    assert parse_recipe(recipe_yaml(recipe), "again") == recipe


def test_recipes_are_short():
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in RECIPES}
    assert lines.pop(TINY) <= 110
    assert sum(lines.values()) < 2500


def test_the_shipped_schema_is_that_of_the_code():
    assert FILE.read_text(encoding="utf-8") == schema_text(), (
        "run: python -m manyeyes.config.recipe.schema"
    )


def test_the_schema_is_one():
    jsonschema.Draft7Validator.check_schema(recipe_schema())
    assert "$defs" not in json.dumps(recipe_schema())


@pytest.mark.parametrize("path", [*RECIPES, LONG], ids=name_of)
def test_an_editor_finds_no_fault_in_a_recipe(path):
    assert complaints(read(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_the_first_line_names_the_schema_to_editors(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    (place,) = re.fullmatch(r"# yaml-language-server: \$schema=(.+)", first).groups()
    assert (path.parent / place).resolve() == FILE


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_what_a_recipe_written_out_says_is_in_the_schema(path):
    assert complaints(read(recipe_yaml(load_recipe(path)))) == []


FAULTS = {
    "a misspelt key": ("  grid: 8", "  gird: 8", {"$.model"}),
    "a wrong type": ("seed: 7", "seed: seven", {"$.seed"}),
    "a misspelt key of all encoders": ("    steps: 30", "    stepz: 30", {"$.prealign.all"}),
    "a key that is missing": ("  max_new_tokens: 12\n", "", {"$.eval"}),
    "a share beyond one": ("min_gain: 0.30", "min_gain: 30", {"$.register.gate.min_gain"}),
}


@pytest.mark.parametrize("case", FAULTS)
def test_an_editor_underlines_a_fault(case):
    right, wrong, expected = FAULTS[case]
    text = TINY.read_text(encoding="utf-8")
    assert right in text
    assert set(complaints(read(text.replace(right, wrong, 1)))) == expected


def test_every_key_has_a_description_or_a_speaking_name():
    parts = recipe_schema()["definitions"]
    assert parts["TrainSection"]["properties"]["checkpoint_every"]["description"] == (
        "Steps between resumable checkpoints."
    )
    assert "default" in parts["TrainSection"]["properties"]["weight_decay"]
    assert parts["PartOfRecipe"]["required"] == ["extends", "name"]
