"""``manyeyes prepare|validate|prealign|pretrain|sft|eval|register``: one stage."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

from manyeyes import steps
from manyeyes.cli import gate
from manyeyes.cli.check import load_checked
from manyeyes.cli.output import no_greetings, print_json
from manyeyes.config.recipe import Recipe
from manyeyes.config.recipe.slices import slice_json
from manyeyes.errors import UserError
from manyeyes.pipeline.preflight import CHECKS
from manyeyes.runtime import ranks
from manyeyes.runtime.home import RUN, WHOLE_RECIPE, run_directory, run_name

BEFORE_TRAINING = ("names", "parts", "lengths", "end tokens", "patterns", "weights")
"""Checks before a training stage; its data are looked at by the stage itself."""


def run(arguments: argparse.Namespace) -> int:
    """Run one stage of a recipe."""
    step = steps.step(arguments.verb)
    recipe = _load(arguments.recipe, step)
    os.environ.setdefault(RUN, recipe.name)
    os.environ.setdefault(WHOLE_RECIPE, recipe.model_dump_json(by_alias=True, exclude_none=True))
    expert: str | None = getattr(arguments, "expert", None)
    text = slice_json(recipe, step.name, expert)
    inputs: dict[str, Path | list[Path]] = {
        needed.role: getattr(arguments, needed.role) for needed in step.inputs
    }
    _check_experts(recipe, step, inputs)
    if ranks.rank():
        from manyeyes.pipeline.following import follow_stage

        with no_greetings():
            follow_stage(step.name, text, inputs=inputs, expert=expert)
        return 0
    from manyeyes.pipeline.runner import run_stage

    with no_greetings():
        manifest = run_stage(step.name, text, inputs=inputs, out=arguments.out, expert=expert)
    label = f"{step.name}-{expert}" if expert else step.name
    state = _state(label)
    if arguments.json:
        print_json(
            {
                "stage": step.name,
                "expert": expert,
                "state": state,
                "out": str(arguments.out),
                "digest": manifest.digest,
                "fingerprint": manifest.fingerprint,
                "details": manifest.details,
            }
        )
    else:
        print(f"{label}: {state}, {manifest.kind} {manifest.digest[:12]} in {arguments.out}")
        if step.name == "register":
            print(gate.words(manifest.details))
    if step.name != "register" or arguments.keep_candidate:
        return 0
    return gate.exit_code(manifest.details)


def _load(path: Path, step: steps.Step) -> Recipe:
    """Load the recipe; before a training all that can be told is looked at, once for all ranks.

    The dataset is an input of the stage, wherever ``data/NAME`` may lie by now.
    """
    if step.writes != "checkpoint" or ranks.rank():
        return load_checked(path)
    checks = [check for check in CHECKS if check.name in BEFORE_TRAINING]
    return load_checked(path, checks, [step.name])


def _state(label: str) -> str:
    import json

    record = json.loads((run_directory(run_name()) / "stages" / f"{label}.json").read_text())
    return str(record["state"])


def _check_experts(
    recipe: Recipe, step: steps.Step, inputs: Mapping[str, Path | list[Path]]
) -> None:
    """Refuse to leave out the experts that the recipe pre-aligns, or to bring some it does not."""
    for needed in step.inputs:
        names = list(recipe.prealign.experts)
        if needed.many and bool(inputs[needed.role]) != bool(names):
            wanted = (
                f"the {needed.source} checkpoints of {', '.join(names)}" if names else "nothing"
            )
            raise UserError(
                f"Stage {step.name} of recipe {recipe.name} needs {wanted} as --{needed.role}."
            )
