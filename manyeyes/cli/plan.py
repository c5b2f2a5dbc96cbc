"""``manyeyes plan``: what a launch will need, before it is launched.

A plan that does not fit ends with code 3, as a gate that says no does: the recipe is right and the
question was answered, but the launch must not happen. What is asked wrongly ends with 2.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from manyeyes.cli.command import json_option, recipe_argument, set_option, verb
from manyeyes.cli.output import no_greetings, print_json, print_table
from manyeyes.cli.values import PATH, TEXT, FiniteNumber
from manyeyes.errors import GateRefused

if TYPE_CHECKING:
    from pydantic import JsonValue

    from manyeyes.plan.estimate import Plan, StagePlan
    from manyeyes.plan.memory import Memory, Setting

GIB = 2**30


@verb("plan")
@recipe_argument
@click.option(
    "--gpus",
    metavar="NxNAME",
    type=TEXT,
    help="the GPUs, like 32xA100-80G; without it they are listed",
)
@click.option(
    "--mfu",
    type=FiniteNumber("a share above 0 and up to 1, like 0.4", most=1.0),
    default=0.4,
    show_default=True,
    help="model FLOPs utilization (MFU) to plan with",
)
@click.option("--price", type=FiniteNumber(), help="of one GPU for an hour")
@click.option(
    "--dataset",
    metavar="DIR",
    type=PATH,
    help="finished dataset whose lengths to use (default: data/NAME)",
)
@set_option
@json_option
def plan_verb(
    path: Path,
    gpus: str | None,
    mfu: float,
    price: float | None,
    dataset: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> int:
    """Work out the plan and print it; refuse where it does not fit."""
    from manyeyes.cli.loading import load_checked

    recipe = load_checked(path, overrides=overrides)
    with no_greetings():
        from manyeyes.plan.estimate import make_plan
        from manyeyes.plan.gpus import parse_fleet

        plan = make_plan(recipe, parse_fleet(gpus), mfu=mfu, price=price, dataset=dataset)
    if as_json:
        print_json(plan_json(plan))
    else:
        _print(plan)
    if not plan.fits:
        raise GateRefused(refusal(plan))
    return 0


def refusal(plan: Plan) -> str:
    """Say which stages do not fit and what would."""
    lines = []
    for stage in plan.stages:
        if stage.fits:
            continue
        used = min(memory.total for setting, memory in stage.table if _same(setting, stage.setting))
        lines.append(
            f"{stage.name} does not fit: {stage.setting} needs {used / GIB:.1f} GiB even with "
            f"recomputation, and a {plan.fleet.name} has {plan.fleet.gpu.memory / GIB:.1f}; "
            + _advice(stage, plan)
        )
    return "\n".join(lines)


def _advice(stage: StagePlan, plan: Plan) -> str:
    if stage.fit is None:
        return "nothing up to 1,024 of them does: take larger GPUs or train less of the model."
    from manyeyes.plan.memory import memory_of

    needs = memory_of(stage.need, stage.fit).total / GIB
    return f"nearest is {stage.fit.gpus}x{plan.fleet.name} with {stage.fit} ({needs:.1f} GiB)."


def _same(one: Setting, other: Setting) -> bool:
    return (one.zero, one.offload) == (other.zero, other.offload)


def _print(plan: Plan) -> None:
    gpu = plan.fleet.gpu
    print(
        f"{plan.recipe} on {plan.fleet}: {gpu.memory / GIB:.1f} GiB and {gpu.peak_flops / 1e12:g} "
        f"TFLOP/s each, at {plan.mfu:.0%} MFU"
    )
    for source in dict.fromkeys(str(stage.lengths) for stage in plan.stages):
        names = ", ".join(s.name for s in plan.stages if str(s.lengths) == source)
        print(f"{names}: {source}")
    modules = list(dict.fromkeys(part.name for stage in plan.stages for part in stage.parts))
    print_table(
        "parameters (* trains)",
        ("stage", *(name.removeprefix("encoders.") for name in modules), "together"),
        [_parameter_row(stage, modules) for stage in plan.stages],
    )
    _print_work(plan)
    print_table(
        "GiB on a GPU by ZeRO stage (+ offload to the CPU), without / with recomputation",
        ("stage", *(_setting_name(setting) for setting, _ in _plain(plan.stages[-1]))),
        [_memory_row(stage, gpu.memory) for stage in plan.stages],
    )
    print_table(
        "of which, as the recipe has it",
        ("stage", "weights", "gradients", "state", "kept", "recomputed", "other", "main memory"),
        [_parts_row(stage) for stage in plan.stages],
    )
    cost = "" if plan.cost is None else f", {plan.cost:,.0f} at {plan.price:g} a GPU hour"
    print(f"together {plan.hours:,.1f} hours{cost}")
    for stage in plan.stages:
        if stage.fits and stage.fit is not None:
            print(f"{stage.name} fits: {stage.fit}")


def _print_work(plan: Plan) -> None:
    columns = ("stage", "visual", "TFLOP a sample", "samples", "EFLOP", "s a step", "hours")
    print_table(
        "work (a sample: with a picture / without)",
        (*columns, "state", "checkpoint"),
        [
            (
                stage.name,
                str(stage.visual_tokens),
                " / ".join(f"{flops / 1e12:.1f}" for flops in stage.flops_by_row),
                f"{stage.samples:,}",
                f"{stage.flops / 1e18:.1f}",
                f"{stage.step_seconds:.2f}",
                f"{stage.hours:.1f}",
                _gib(stage.state_bytes),
                _gib(stage.checkpoint_bytes),
            )
            for stage in plan.stages
        ],
    )


def _parameter_row(stage: StagePlan, modules: list[str]) -> tuple[str, ...]:
    parts = {part.name: part for part in stage.parts}
    cells = []
    for name in modules:
        part = parts.get(name)
        mark = "*" if part is not None and part.trainable else ""
        cells.append("" if part is None else _count(part.parameters) + mark)
    return (stage.name, *cells, _count(stage.parameters))


def _plain(stage: StagePlan) -> list[tuple[Setting, Memory]]:
    return [(setting, memory) for setting, memory in stage.table if not setting.recompute]


def _setting_name(setting: Setting) -> str:
    return f"{setting.zero}" + ("+" if setting.offload else "")


def _memory_row(stage: StagePlan, capacity: int) -> tuple[str, ...]:
    again = [memory for setting, memory in stage.table if setting.recompute]
    cells = []
    for (setting, memory), recomputed in zip(_plain(stage), again, strict=True):
        totals = " / ".join(f"{each.total / GIB:.1f}" for each in (memory, recomputed))
        no = " no" if recomputed.total > capacity else ""
        cells.append(totals + (" *" if _same(setting, stage.setting) else "") + no)
    return (stage.name, *cells)


def _parts_row(stage: StagePlan) -> tuple[str, ...]:
    own = [memory for setting, memory in stage.table if _same(setting, stage.setting)]
    memory, recomputed = own
    parts = (memory.weights, memory.gradients, memory.optimizer, memory.activations)
    rest = (recomputed.activations, memory.working + memory.reserve, memory.host)
    return (stage.name, *(f"{part / GIB:.1f}" for part in (*parts, *rest)))


def _gib(number: int) -> str:
    return f"{number / GIB:.1f} GiB" if number >= GIB else f"{number / 2**20:.0f} MiB"


def _count(number: int) -> str:
    if number >= 1e9:
        return f"{number / 1e9:.2f}B"
    return f"{number / 1e6:.1f}M" if number else "0"


def plan_json(plan: Plan) -> dict[str, JsonValue]:
    """Return the whole plan as JSON values."""
    return {
        "recipe": plan.recipe,
        "gpus": {
            "count": plan.fleet.count,
            "name": plan.fleet.name,
            "memory_bytes": plan.fleet.gpu.memory,
            "peak_flops": plan.fleet.gpu.peak_flops,
        },
        "mfu": plan.mfu,
        "price_per_gpu_hour": plan.price,
        "fits": plan.fits,
        "hours": plan.hours,
        "gpu_hours": plan.hours * plan.fleet.count,
        "cost": plan.cost,
        "stages": {stage.name: _stage_json(stage) for stage in plan.stages},
    }


def _stage_json(stage: StagePlan) -> dict[str, JsonValue]:
    return {
        "parameters": stage.parameters,
        "trainable_parameters": stage.trainable,
        "modules": [asdict(part) for part in stage.parts],
        "visual_tokens": stage.visual_tokens,
        "lengths": {
            "source": stage.lengths.source,
            "longest": stage.lengths.longest,
            "longest_on_cpu": stage.lengths.longest_on_cpu,
            "rows": [
                {**asdict(row), "flops": flops}
                for row, flops in zip(stage.lengths.rows, stage.flops_by_row, strict=True)
            ],
        },
        "samples": stage.samples,
        "steps": stage.steps,
        "flops_per_sample": stage.flops_per_sample,
        "flops": stage.flops,
        "step_seconds": stage.step_seconds,
        "hours": stage.hours,
        "state_bytes": stage.state_bytes,
        "checkpoint_bytes": stage.checkpoint_bytes,
        "setting": asdict(stage.setting),
        "fits": stage.fits,
        "nearest": None if stage.fit is None else asdict(stage.fit),
        "memory": [{**asdict(setting), **_memory_json(memory)} for setting, memory in stage.table],
    }


def _memory_json(memory: Memory) -> dict[str, JsonValue]:
    return {**asdict(memory), "total": memory.total}


COMMANDS = (plan_verb,)
