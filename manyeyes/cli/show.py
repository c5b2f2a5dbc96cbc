"""``manyeyes show``: the resolved recipe, with shapes and parameter counts of the real model.

Behind each value of the recipe stands where it comes from: a line of its own file or of the one it
extends, or the schema's default.

The model is built on the meta device: its modules, names and shapes are the real ones, but no
weights are read and no memory is taken, so that the full recipes are shown on a laptop.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from manyeyes.cli.command import json_option, recipe_argument, set_option, verb
from manyeyes.cli.output import no_greetings, print_json, print_table

if TYPE_CHECKING:
    from pydantic import JsonValue

    from manyeyes.config.recipe import Recipe
    from manyeyes.model.vlm import VisionLanguageModel


@dataclass(frozen=True)
class TrainedStage:
    """What one stage trains."""

    stage: str
    num_parameters: int
    patterns: tuple[str, ...]
    learning_rates: dict[str, float]
    """Highest rate by the pattern that decides it."""
    global_batch: int
    steps: int | None
    epochs: float | None
    """In place of steps, which are known where the dataset is."""


@verb("show")
@recipe_argument
@set_option
@json_option
def show(path: Path, overrides: tuple[str, ...], as_json: bool) -> int:
    """Build the model of a recipe and show what it is made of."""
    from manyeyes.cli.loading import load_checked
    from manyeyes.config.recipe import resolved_recipe, sourced_yaml, sources

    resolved = resolved_recipe(path, overrides)
    recipe = load_checked(path, overrides=overrides)
    with no_greetings():
        from manyeyes.plan.stages import build_on_meta, training_stages

        last = training_stages(recipe)[-1]
        vlm = build_on_meta(last.model, last.weight_type)
        canvas = canvas_of(recipe, vlm)
        shapes = vlm.trace_shapes(canvas)
        trained = trained_stages(recipe)
    modules = vlm.describe()
    if as_json:
        print_json(
            {
                "recipe": recipe.model_dump(mode="json", by_alias=True),
                "sources": {**sources(resolved)},
                "modules": [asdict(module) for module in modules],
                "shapes": [{**asdict(shape), "shape": list(shape.shape)} for shape in shapes],
                "trained": [{**asdict(row), "patterns": list(row.patterns)} for row in trained],
                **summary(vlm, trained),
            }
        )
        return 0
    print(sourced_yaml(resolved))
    print_table(
        "modules",
        ("module", "kind", "parameters"),
        [(module.name, module.kind, f"{module.num_parameters:,}") for module in modules],
    )
    print_table(
        f"shapes of one {canvas} px image: {vlm.config.num_visual_tokens} visual tokens",
        ("where", "shape", "dtype"),
        [(shape.where, " x ".join(map(str, shape.shape)), shape.dtype) for shape in shapes],
    )
    print_table(
        "what trains",
        ("stage", "parameters", "learning rates", "batch", "steps"),
        [
            (
                row.stage,
                f"{row.num_parameters:,}",
                ", ".join(f"{name} {rate:g}" for name, rate in row.learning_rates.items()),
                f"{row.global_batch:,}",
                f"{row.epochs} epochs" if row.steps is None else f"{row.steps:,}",
            )
            for row in trained
        ],
    )
    return 0


def canvas_of(recipe: Recipe, vlm: VisionLanguageModel) -> int:
    """Return the side of the canvas: the data's, or what the sharpest expert asks for."""
    from manyeyes.config.recipe import StarterData

    if isinstance(recipe.data, StarterData):
        return recipe.data.image_size
    return max(expert.spec.image_size for expert in vlm.experts.values())


def summary(vlm: VisionLanguageModel, trained: list[TrainedStage]) -> dict[str, JsonValue]:
    """Return the numbers that others read: visual tokens, parts, stages."""
    counts = {module.name: module.num_parameters for module in vlm.describe()}
    return {
        "visual_tokens": vlm.config.num_visual_tokens,
        "encoders": [
            {
                "name": name,
                "family": expert.spec.family,
                "input_size": expert.spec.image_size,
                "native_grid": expert.spec.native_grid,
                "grid": expert.grid,
                "width": expert.spec.width,
                "parameters": counts[f"encoders.{name}"],
            }
            for name, expert in vlm.experts.items()
        ],
        "fusion": {
            "kind": str((vlm.config.fusion or {})["kind"]),
            "parameters": counts["fusion"],
        },
        "projector_parameters": counts["projector"],
        "llm_parameters": counts["llm"],
        "stages": {
            row.stage: {
                "trainable_parameters": row.num_parameters,
                "learning_rates": dict(row.learning_rates),
                "global_batch": row.global_batch,
                "steps": row.steps,
            }
            for row in trained
        },
    }


def trained_stages(recipe: Recipe) -> list[TrainedStage]:
    """Return what every training stage trains, counted on its own model."""
    from manyeyes.plan.stages import (
        build_on_meta,
        learning_rates,
        trainable_names,
        training_stages,
    )

    rows = []
    for stage in training_stages(recipe):
        model = build_on_meta(stage.model, stage.weight_type)
        names = trainable_names(model, stage.section)
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        rows.append(
            TrainedStage(
                stage=stage.name,
                num_parameters=sum(sizes[name] for name in names),
                patterns=stage.section.train,
                learning_rates=learning_rates(names, stage.section),
                global_batch=stage.section.batch.size,
                steps=stage.section.steps,
                epochs=stage.section.epochs,
            )
        )
    return rows


COMMANDS = (show,)
