"""``manyeyes compile``: the KFP IR YAML of a recipe."""

from __future__ import annotations

import argparse

from manyeyes.recipe import load_recipe


def run(arguments: argparse.Namespace) -> int:
    """Write the compiled pipeline; equal recipes give equal bytes."""
    recipe = load_recipe(arguments.recipe)
    from pipelines.compile import compile_pipeline

    compile_pipeline(recipe, image=arguments.image, out=arguments.out)
    print(f"{arguments.out}: compiled {recipe.name}")
    return 0
