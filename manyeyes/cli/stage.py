"""``manyeyes prepare|validate|prealign|pretrain|sft|eval|register``: one stage."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from manyeyes import steps
from manyeyes.cli import gate
from manyeyes.cli.command import (
    Function,
    Several,
    Verb,
    json_option,
    recipe_argument,
    set_option,
    verb,
)
from manyeyes.cli.output import no_greetings, print_json
from manyeyes.cli.values import PATH, TEXT
from manyeyes.errors import UserError
from manyeyes.runtime import ranks
from manyeyes.runtime.home import RUN, WHOLE_RECIPE, run_directory, stage_record

if TYPE_CHECKING:
    from manyeyes.config.recipe import Recipe

BEFORE_TRAINING = ("names", "parts", "lengths", "end tokens", "patterns", "weights")
"""Checks before a training stage; its data are looked at by the stage itself."""


def _verb(step: steps.Step) -> Verb:
    """Make the verb of a stage: its inputs, as the step table has them, are its options."""
    options = [recipe_argument]
    if step.per_expert:
        options.append(
            click.option(
                "--expert",
                metavar="NAME",
                type=TEXT,
                required=True,
                help="name of the encoder in the recipe",
            )
        )
    options += [_input_option(needed) for needed in step.inputs]
    options.append(
        click.option("--out", metavar="DIR", type=PATH, required=True, help="folder for the result")
    )
    if step.name == "register":
        options.append(
            click.option(
                "--keep-candidate",
                is_flag=True,
                help="exit code 0 also where the gate does not say yes: the model is registered "
                "as candidate, which is a result, too",
            )
        )
    function = partial(run_verb, step)
    for option in [json_option, set_option, *reversed(options)]:
        function = option(function)
    return verb(step.name)(function)


def _input_option(needed: steps.Input) -> Callable[[Function], Function]:
    return click.option(
        f"--{needed.role}",
        metavar="DIR",
        type=PATH,
        cls=Several if needed.many else None,
        multiple=needed.many,
        required=not needed.many,
        help=f"{needed.kind} made by {needed.source}",
    )


def run_verb(
    step: steps.Step,
    *,
    path: Path,
    out: Path,
    overrides: tuple[str, ...],
    as_json: bool,
    expert: str | None = None,
    keep_candidate: bool = False,
    **given: Path | tuple[Path, ...],
) -> int:
    """Run one stage of a recipe.

    Args:
        step: which one.
        path: of the recipe.
        out: folder for the result.
        overrides: what ``--set`` puts into the recipe.
        as_json: print the result as JSON.
        expert: of a stage that is run once per expert.
        keep_candidate: a model that the gate does not make champion is a result, too.
        given: the stage's inputs, by role.

    Returns:
        the exit code.
    """
    from manyeyes.config.recipe.slices import slice_json

    recipe = _load(path, step, overrides)
    os.environ.setdefault(RUN, recipe.name)
    os.environ.setdefault(WHOLE_RECIPE, recipe.model_dump_json(by_alias=True, exclude_none=True))
    text = slice_json(recipe, step.name, expert)
    inputs = {
        role: list(value) if isinstance(value, tuple) else value for role, value in given.items()
    }
    _check_experts(recipe, step, inputs)
    if ranks.rank():
        from manyeyes.pipeline.following import follow_stage

        with no_greetings():
            follow_stage(step.name, text, inputs=inputs, expert=expert)
        return 0
    from manyeyes.pipeline.runner import run_stage

    with no_greetings():
        manifest = run_stage(step.name, text, inputs=inputs, out=out, expert=expert)
    slug = steps.Task(step.name, expert).slug
    state = _state(slug)
    if as_json:
        print_json(
            {
                "stage": step.name,
                "expert": expert,
                "state": state,
                "out": str(out),
                "digest": manifest.digest,
                "fingerprint": manifest.fingerprint,
                "details": manifest.details,
            }
        )
    else:
        print(f"{slug}: {state}, {manifest.kind} {manifest.digest[:12]} in {out}")
    if step.name != "register":
        return 0
    if not as_json:
        print(gate.words(manifest.details))
    return 0 if keep_candidate else gate.exit_code(manifest.details)


def _load(path: Path, step: steps.Step, overrides: Sequence[str]) -> Recipe:
    """Load the recipe; before a training all that can be told is looked at, once for all ranks.

    The dataset is an input of the stage, wherever ``data/NAME`` may lie by now.
    """
    from manyeyes.cli.loading import load_checked
    from manyeyes.pipeline.preflight import CHECKS

    if step.writes != "checkpoint" or ranks.rank():
        return load_checked(path, overrides=overrides)
    checks = [check for check in CHECKS if check.name in BEFORE_TRAINING]
    return load_checked(path, checks, [step.name], overrides)


def _state(slug: str) -> str:
    import json

    record = json.loads(stage_record(run_directory(), slug).read_text())
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


COMMANDS = tuple(_verb(step) for step in steps.STEPS)
