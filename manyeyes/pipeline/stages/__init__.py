"""The stages, as plain functions: a recipe slice and directories in, one directory out.

Every stage is a function of its typed slice and a ``StageContext``; the step table says which. It
writes into the context's ``out``, continues there what an earlier, killed attempt left, and returns
the facts for the manifest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

from pydantic import JsonValue

from manyeyes.config.recipe.slices import SLICE_TYPES, parse_slice
from manyeyes.runtime.progress import Progress
from manyeyes.steps import step

Details = dict[str, JsonValue]


@dataclass(frozen=True)
class StageContext:
    """Where a stage reads and writes, and whom it tells how far it is."""

    inputs: Mapping[str, Path]
    """Role to directory; the experts of a mixture have the roles ``expert.NAME``."""
    out: Path
    """Where the stage writes and continues."""
    progress: Progress

    @property
    def experts(self) -> dict[str, Path]:
        """The pre-aligned checkpoints by name."""
        return {
            role.removeprefix("expert."): path
            for role, path in self.inputs.items()
            if role.startswith("expert.")
        }


def ready(stage: str, recipe_slice: str, context: StageContext) -> Callable[[], Details]:
    """Return a stage's work, ready to be called, once it is clear that it can begin.

    Args:
        stage: name in the step table.
        recipe_slice: canonical JSON of the slice.
        context: what the stage is given besides.

    Raises:
        UserError: no such stage, or what it trains would be of no use to a later stage.
    """
    row = step(stage)
    if row.writes == "checkpoint":
        from manyeyes.pipeline.stages.ahead import check_ahead, recipe_ahead

        recipe = recipe_ahead()
        if recipe is not None:
            check_ahead(recipe, context.inputs)
    module, name = row.code.split(":")
    function = getattr(import_module(module), name)
    return partial(function, parse_slice(recipe_slice, SLICE_TYPES[stage]), context)


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
