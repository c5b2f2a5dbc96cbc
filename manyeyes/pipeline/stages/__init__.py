"""The stages, as plain functions: directories and a recipe slice in, one directory out.

This table is the only place where a stage's name meets its function. A stage writes into ``out``,
continues there what an earlier, killed attempt left, and returns the facts for the manifest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from manyeyes.config.recipe.slices import (
    SLICE_TYPES,
    EvalSlice,
    PrepareSlice,
    RegisterSlice,
    TrainSlice,
    ValidateSlice,
    parse_slice,
)
from manyeyes.errors import unknown
from manyeyes.runtime.progress import Progress

Details = dict[str, JsonValue]
METRICS_FILE = "measurements/metrics.jsonl"
"""Curves of a stage, below its directory."""


def call(
    stage: str,
    recipe_slice: str,
    inputs: Mapping[str, Path],
    out: Path,
    progress: Progress,
) -> Details:
    """Run one stage with its typed slice.

    Args:
        stage: name in the step table.
        recipe_slice: canonical JSON of the slice.
        inputs: role to directory; the experts of a mixture have the roles ``expert.NAME``.
        out: where the stage writes and continues.
        progress: where it says how far it is.
    """
    match stage:
        case "prepare":
            from manyeyes.pipeline.stages.prepare import prepare

            prepared = parse_slice(recipe_slice, PrepareSlice)
            return prepare(prepared.seed, prepared.data, out=out, progress=progress)
        case "validate":
            from manyeyes.pipeline.stages.validate import validate

            contract = parse_slice(recipe_slice, ValidateSlice)
            return validate(contract.section, dataset=inputs["dataset"], out=out, progress=progress)
        case "prealign" | "pretrain" | "sft":
            return _train(stage, parse_slice(recipe_slice, TrainSlice), inputs, out, progress)
        case "eval":
            from manyeyes.pipeline.stages.eval import evaluate

            scored = parse_slice(recipe_slice, EvalSlice)
            return evaluate(
                scored.seed, scored.model, scored.section, inputs=inputs, out=out, progress=progress
            )
        case "register":
            from manyeyes.pipeline.stages.register import register

            registered = parse_slice(recipe_slice, RegisterSlice)
            return register(
                registered.name,
                registered.section,
                checkpoint=inputs["checkpoint"],
                report=inputs["report"],
                out=out,
                progress=progress,
            )
    raise unknown("stage", stage, SLICE_TYPES)


def _train(
    stage: str, piece: TrainSlice, inputs: Mapping[str, Path], out: Path, progress: Progress
) -> Details:
    from manyeyes.pipeline.stages.ahead import check_ahead, recipe_ahead
    from manyeyes.pipeline.stages.training import TrainingInputs

    recipe = recipe_ahead()
    if recipe is not None:
        check_ahead(recipe, inputs)
    data = TrainingInputs(inputs["dataset"], inputs["validation"])
    if stage == "prealign":
        from manyeyes.pipeline.stages.prealign import prealign

        assert piece.expert is not None
        return prealign(
            piece.seed,
            piece.model,
            piece.section,
            expert=piece.expert,
            data=data,
            out=out,
            progress=progress,
        )
    if stage == "pretrain":
        from manyeyes.pipeline.stages.pretrain import pretrain

        experts = {
            role.removeprefix("expert."): path
            for role, path in inputs.items()
            if role.startswith("expert.")
        }
        return pretrain(
            piece.seed,
            piece.model,
            piece.section,
            experts=experts,
            data=data,
            out=out,
            progress=progress,
        )
    from manyeyes.pipeline.stages.sft import sft

    return sft(
        piece.seed,
        piece.model,
        piece.section,
        checkpoint=inputs["checkpoint"],
        data=data,
        out=out,
        progress=progress,
    )


def seed_of(recipe_slice: str) -> int:
    """Return the seed of a slice; ``register`` draws nothing and has none."""
    return int(json.loads(recipe_slice).get("seed", 0))


def why_again(stage: str, details: Details) -> str:
    """Say why a finished result no longer holds; nothing if it does.

    Only ``register`` changes something outside its directory: its result holds while the registry
    it wrote to is the present one and still has the version.

    Raises:
        ManyeyesError: the registry does not answer.
    """
    if stage != "register":
        return ""
    from manyeyes.pipeline.stages import register as registering

    return registering.why_again(details)
