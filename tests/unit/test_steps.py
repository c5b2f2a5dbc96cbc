"""A task is a stage of a recipe, for one encoder where the stage runs once for each."""

from importlib import import_module
from pathlib import Path
from typing import get_type_hints

import pytest

from manyeyes.config.recipe import load_recipe
from manyeyes.config.recipe.slices import SLICE_TYPES, tasks_of
from manyeyes.pipeline.stages import StageContext
from manyeyes.steps import STEPS, Task

RECIPES = Path(__file__).parents[2] / "recipes"


def test_the_tasks_of_a_recipe_stand_in_the_order_of_the_pipeline():
    recipe = load_recipe(RECIPES / "tiny/eagle-x5.yaml")
    aligned = [f"prealign:{encoder.name}" for encoder in recipe.model.encoders]
    labels = [task.label for task in tasks_of(recipe)]
    assert labels == ["prepare", "validate", *aligned, "pretrain", "sft", "eval", "register"]


NAMES = [
    (Task("sft"), "sft", "sft"),
    (Task("prealign", "clip"), "prealign:clip", "prealign-clip"),
    (Task.named("sft", "sft"), "sft", "sft"),
    (Task.named("prealign", "clip"), "prealign:clip", "prealign-clip"),
]


@pytest.mark.parametrize(("task", "label", "slug"), NAMES)
def test_a_task_has_a_name_for_people_and_one_for_files(task, label, slug):
    assert (task.label, task.slug, task.step.name) == (label, slug, task.stage)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_every_stage_is_a_function_of_its_slice_and_a_context(step):
    """The runner calls the step table's function, which no type checker sees."""
    module, name = step.code.split(":")
    function = getattr(import_module(module), name)
    given = dict(get_type_hints(function))
    given.pop("return")
    assert list(given.values()) == [SLICE_TYPES[step.name], StageContext]
