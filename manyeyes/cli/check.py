"""``manyeyes check``: are these recipes right?"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from pydantic import JsonValue

from manyeyes.cli.output import print_json
from manyeyes.errors import UserError
from manyeyes.recipe import ModelSection, Recipe, TrainSection, load_recipe
from manyeyes.zoo import PREFIX, resolve


def run(arguments: argparse.Namespace) -> int:
    """Check every recipe and report all problems of all files."""
    problems: list[str] = []
    results: list[JsonValue] = []
    for path in arguments.recipes:
        errors: list[str] = []
        try:
            errors = unknown_names(load_recipe(path), path)
        except UserError as error:
            errors = str(error).splitlines()
        problems += errors
        results.append({"recipe": str(path), "ok": not errors, "problems": list(errors)})
        if not arguments.json and not errors:
            print(f"{path}: ok")
    if arguments.json:
        print_json(results)
        return 2 if problems else 0
    if problems:
        raise UserError("\n".join(problems))
    return 0


def load_checked(path: Path) -> Recipe:
    """Load a recipe whose encoders, shipped parts, templates and metrics exist.

    Raises:
        UserError: with every problem on a line of its own.
    """
    recipe = load_recipe(path)
    problems = unknown_names(recipe, path)
    if problems:
        raise UserError("\n".join(problems))
    return recipe


def unknown_names(recipe: Recipe, path: Path) -> list[str]:
    """Name the rows of tables that do not exist; the schema knows no tables.

    Encoders, parts of the zoo, conversation templates and metrics: to add one changes no schema.
    """
    from manyeyes.data.templates import template_named
    from manyeyes.evaluate.metrics import metric_named
    from manyeyes.model.encoders.registry import find_spec

    names: list[tuple[str, str, Callable[[str], object]]] = []
    for place, model in _models(recipe).items():
        for index, encoder in enumerate(model.encoders):
            names.append((f"{place}.encoders.{index}.spec", encoder.spec, find_spec))
            names.append((f"{place}.encoders.{index}.weights", encoder.weights, _find_part))
        if model.alignment is not None:
            teacher, key = model.alignment.teacher, f"{place}.alignment.teacher"
            names.append((f"{key}.spec", teacher.spec, find_spec))
            names.append((f"{key}.weights", teacher.weights, _find_part))
        names.append((f"{place}.llm.weights", model.llm.weights, _find_part))
        names.append((f"{place}.llm.template", model.llm.template, template_named))
    for stage, section in _trainings(recipe).items():
        if section.template is not None:
            names.append((f"{stage}.template", section.template, template_named))
    for task, metric in recipe.evaluation.tasks.items():
        names.append((f"eval.tasks.{task}", metric, metric_named))
    problems = []
    for key, name, find in names:
        try:
            find(name)
        except UserError as error:
            problems.append(f"{path}: {key}: {error}")
    return problems


def _models(recipe: Recipe) -> dict[str, ModelSection]:
    """Return every model section of a recipe by its key."""
    trainings = _trainings(recipe)
    own = {f"{stage}.model": part.model for stage, part in trainings.items() if part.model}
    return {"model": recipe.model, **own}


def _trainings(recipe: Recipe) -> dict[str, TrainSection]:
    """Return every training section of a recipe by its key."""
    stages = {f"prealign.experts.{name}": part for name, part in recipe.prealign.experts.items()}
    return {**stages, "pretrain": recipe.pretrain, "sft": recipe.sft}


def _find_part(reference: str) -> None:
    from manyeyes.model.packages import PREFIX as PACKAGE_PREFIX
    from manyeyes.model.packages import find_package

    if reference.startswith(PREFIX):
        resolve(reference)
    if reference.startswith(PACKAGE_PREFIX):
        find_package(reference)
