"""What ``manyeyes run`` does: every stage that is not cached, then it tells of the results."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from manyeyes.cli import gate
from manyeyes.cli.loading import load_checked
from manyeyes.cli.output import print_json, print_table
from manyeyes.kubeflow.pipelines.run_recipe import RunResults, run_recipe
from manyeyes.pipeline.fingerprint import run_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue


def run_and_tell(
    path: Path, out: Path | None, overrides: Sequence[str] = (), *, as_json: bool
) -> int:
    """Run a recipe from data to registered model, or say that nothing is to be done.

    Args:
        path: of the recipe.
        out: folder for the results; ``runs/NAME`` without one.
        overrides: ``KEY=VALUE``, as ``--set`` takes them; recorded with the run.
        as_json: print the result as JSON.

    Returns:
        the exit code: 3 where the gate did not say yes.
    """
    recipe = load_checked(path, overrides=overrides)
    results = run_recipe(recipe, path=path, overrides=overrides, out=out, quiet=as_json)
    if as_json:
        print_json(_as_json(results))
    else:
        _print_summary(results)
    return gate.exit_code(results.registered)


def _as_json(results: RunResults) -> JsonValue:
    """Return what a program wants to know of a run."""
    return {
        "recipe": results.recipe.name,
        "run": run_key(results.recipe),
        "nothing_to_do": results.nothing_to_do,
        "out": str(results.out),
        "scores": results.scores.flat(),
        "registered": dict(results.registered),
        "report": str(results.report),
    }


def _print_summary(results: RunResults) -> None:
    recipe, scores, registered = results.recipe, results.scores, results.registered
    if results.nothing_to_do:
        print(f"{recipe.name}: nothing to do, every stage is up to date.")
    lines = {**{name: task.total for name, task in scores.tasks.items()}, "average": scores.average}
    floors = {name: (task.floor.value, task.floor.headroom) for name, task in scores.tasks.items()}
    floors["average"] = (scores.floor, scores.headroom)
    rows = [
        (
            name,
            scores.tasks[name].metric if name in scores.tasks else "",
            f"{line.score.value:.1f}",
            f"{line.blind.value:.1f}" if line.blind else "",
            f"{floors[name][0]:.1f}",
            gate.percent(floors[name][1]),
            f"{line.count}",
            f"{scores.tasks[name].answered.num_empty}" if name in scores.tasks else "",
        )
        for name, line in lines.items()
    ]
    columns = (
        "task", "metric", "score", "blank image", "floor", "headroom", "questions", "empty",
    )  # fmt: skip
    print_table(f"{recipe.name} on the {scores.split} split", columns, rows)
    aliases = registered.get("aliases")
    names = ", ".join(str(alias) for alias in aliases) if isinstance(aliases, list) else ""
    print(f"Registered models:/{registered['name']}/{registered['version']} as {names}.")
    print(gate.words(registered))
    print("\nLook further:")
    print(f"  report     {results.report}")
    print(f"  talk       manyeyes chat {results.checkpoint} --image FILE")
    print(f"  lineage    manyeyes lineage models:/{registered['name']}/{registered['version']}")
    print(f"  MLflow     {_mlflow_command()}")


def _mlflow_command() -> str:
    from manyeyes.tracking.store import locate

    return f"mlflow ui --backend-store-uri {shlex.quote(locate().uri)}"
