"""``manyeyes show``: the resolved recipe, with shapes and parameter counts of the real model."""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from manyeyes.cli.output import no_greetings, print_json, print_table
from manyeyes.recipe import Recipe, StarterData, load_recipe, recipe_yaml

if TYPE_CHECKING:
    from manyeyes.model.vlm import VisionLanguageModel

CANVAS = 1024
"""Side of the canvas for data whose size is known only once it is read."""


def run(arguments: argparse.Namespace) -> int:
    """Build the model of a recipe and show what it is made of."""
    recipe = load_recipe(arguments.recipe)
    canvas = recipe.data.image_size if isinstance(recipe.data, StarterData) else CANVAS
    with no_greetings():
        from manyeyes.model.vlm import VisionLanguageModel

        vlm = VisionLanguageModel.from_recipe(recipe.model, seed=recipe.seed, load=False)
        shapes = vlm.trace_shapes(canvas)
        trained = _trained(recipe, vlm)
    modules = vlm.describe()
    if arguments.json:
        print_json(
            {
                "recipe": recipe.model_dump(mode="json", by_alias=True),
                "modules": [asdict(module) for module in modules],
                "shapes": [{**asdict(shape), "shape": list(shape.shape)} for shape in shapes],
                "trained": [{**asdict(row), "patterns": list(row.patterns)} for row in trained],
            }
        )
        return 0
    print(recipe_yaml(recipe))
    print_table(
        "modules",
        ("module", "kind", "parameters"),
        [(module.name, module.kind, f"{module.num_parameters:,}") for module in modules],
    )
    print_table(
        f"shapes of one {canvas} px image",
        ("where", "shape", "dtype"),
        [(shape.where, " x ".join(map(str, shape.shape)), shape.dtype) for shape in shapes],
    )
    print_table(
        "what trains",
        ("stage", "parameters", "patterns"),
        [(row.stage, f"{row.num_parameters:,}", ", ".join(row.patterns)) for row in trained],
    )
    return 0


@dataclass(frozen=True)
class Trained:
    """What one stage trains."""

    stage: str
    num_parameters: int
    patterns: tuple[str, ...]


def _trained(recipe: Recipe, vlm: VisionLanguageModel) -> list[Trained]:
    sections = {f"prealign:{name}": part for name, part in recipe.prealign.experts.items()}
    sections |= {"pretrain": recipe.pretrain, "sft": recipe.sft}
    rows = []
    for stage, section in sections.items():
        model = _single_expert(recipe, stage) if stage.startswith("prealign:") else vlm
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        count = sum(size for name, size in sizes.items() if _matches(name, section.train))
        rows.append(Trained(stage, count, section.train))
    return rows


def _single_expert(recipe: Recipe, stage: str) -> VisionLanguageModel:
    """Build what ``prealign`` trains: one expert with a projector of its own."""
    from manyeyes.model.vlm import VisionLanguageModel

    expert = stage.removeprefix("prealign:")
    return VisionLanguageModel.from_recipe(recipe.model.alone(expert), seed=recipe.seed, load=False)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
