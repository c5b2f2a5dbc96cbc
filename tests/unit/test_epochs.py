"""A training's length in epochs: the key holds the recipe's words, the steps follow from the data."""

import json

import pytest
import torch
from pipeline_kit import TINY
from preflight_kit import GOOD, write_data, write_recipe
from training_kit import make_dataset, make_model, make_section, run

from manyeyes.cli import main
from manyeyes.config.recipe import load_recipe, parse_recipe, recipe_yaml, with_overrides
from manyeyes.config.recipe.slices import slice_json
from manyeyes.errors import UserError

TEXT = TINY.read_text(encoding="utf-8")
EPOCHS = TEXT.replace("  steps: 380", "  epochs: 2", 1)


@pytest.mark.parametrize(
    ("epochs", "number", "size", "steps"),
    [(1, 128, 32, 4), (1, 129, 32, 5), (0.5, 128, 32, 2), (2, 100, 32, 7), (0.001, 10, 32, 1)],
)
def test_epochs_are_steps_once_the_samples_are_counted(epochs, number, size, steps):
    recipe = with_overrides(EPOCHS, [f"sft.epochs={epochs}", f"sft.batch.size={size}"])
    section = recipe.sft.on_samples(number)
    assert (section.num_steps, section.epochs) == (steps, None)


def test_a_training_of_epochs_is_the_training_of_as_many_steps(tmp_path):
    dataset = make_dataset(tmp_path / "data", num=12)  # and 3 of chat: 15 samples in batches of 4
    found = {}
    for name, length in (("epochs", {"steps": None, "epochs": 0.5}), ("steps", {"steps": 2})):
        model, result = run(
            tmp_path / name,
            model=make_model(experts=("clip",)),
            dataset=dataset,
            section=make_section(**length),
        )
        found[name] = (result.steps, result.loss, dict(model.named_parameters()))
    (steps, loss, weights), (expected_steps, expected_loss, expected) = found.values()
    assert (steps, loss) == (expected_steps, expected_loss) == (2, expected_loss)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_slice_holds_the_words_of_the_recipe():
    section = json.loads(slice_json(parse_recipe(EPOCHS, "r.yaml"), "sft"))["section"]
    assert section["epochs"] == 2
    assert "steps" not in section
    assert "epochs" not in json.loads(slice_json(load_recipe(TINY), "sft"))["section"]


def test_a_recipe_of_epochs_loads_back():
    recipe = parse_recipe(EPOCHS, "r.yaml")
    assert parse_recipe(recipe_yaml(recipe), "again") == recipe


REFUSED = {
    "both": ("  steps: 380\n  epochs: 2", "steps and epochs both say how long; remove one (write null "
             "where a recipe that is extended says it)"),
    "none": ("  recompute: none", "one of the keys steps and epochs is required"),
    "nothing": ("  epochs: 0", "input should be greater than 0, got 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_there_is_one_length(case):
    lines, expected = REFUSED[case]
    with pytest.raises(UserError) as caught:
        parse_recipe(TEXT.replace("  steps: 380", lines, 1), "r.yaml")
    assert str(caught.value).endswith(expected)


def test_a_variant_may_say_epochs(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("extends: tiny/eagle-x5\nname: own\nsft: {steps: null, epochs: 3}\n")
    assert load_recipe(path).sft.epochs == 3


def test_a_plan_needs_the_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = write_recipe(tmp_path, ("  steps: 2\n", "  epochs: 3\n"))
    assert main(["plan", str(path), "--gpus", "A100-40G", "--json"]) == 2
    assert capsys.readouterr().err == (
        "How many steps epochs 3 are is known where the dataset is; write steps.\n"
    )
    write_data(tmp_path / "data/mine", *GOOD, *GOOD[:1] * 3)
    (tmp_path / "data/mine/manifest.json").write_text("{}")
    assert main(["plan", str(path), "--gpus", "A100-40G", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"]["sft"]["steps"] == 8  # 15 in twos


def test_show_says_epochs(tmp_path, capsys):
    path = write_recipe(tmp_path, ("  steps: 2\n", "  epochs: 3\n"))
    assert main(["show", str(path)]) == 0
    assert "3.0 epochs" in capsys.readouterr().out
