"""``manyeyes run``: the whole pipeline here, through kfp.local."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue

from manyeyes import steps
from manyeyes.artifact import open_artifact, read_manifest
from manyeyes.cli.check import load_checked
from manyeyes.cli.output import print_json, print_table
from manyeyes.cli.watch import watching
from manyeyes.errors import UserError
from manyeyes.explain import Explanation, explain
from manyeyes.fingerprint import run_key
from manyeyes.home import home
from manyeyes.recipe import Recipe
from manyeyes.store import open_store


def run(arguments: argparse.Namespace) -> int:
    """Run a recipe from data to registered model, or say that nothing is to be done."""
    recipe = load_checked(arguments.recipe)
    out: Path = arguments.out or Path("runs") / recipe.name
    answers = explain(recipe)
    finished = _place_results(answers, out) and _is_registered(out)
    if not finished:
        _run_pipeline(recipe, quiet=arguments.json)
        _place_results(explain(recipe), out)
    if arguments.json:
        print_json(_as_json(recipe, out, finished=finished))
    else:
        _print_summary(recipe, out, finished=finished)
    return 0


def labels(recipe: Recipe) -> list[str]:
    """Every stage of the run, in pipeline order."""
    return [
        f"{step.name}:{expert}" if expert else step.name
        for step in steps.STEPS
        for expert in (recipe.prealign.experts if step.per_expert else [None])
    ]


def _run_pipeline(recipe: Recipe, *, quiet: bool) -> None:
    from pipelines.local import run_local

    progress = home() / "runs" / run_key(recipe) / "progress.jsonl"
    progress.parent.mkdir(parents=True, exist_ok=True)
    _record_start(recipe)
    with watching(progress, labels(recipe), quiet=quiet):
        run_local(recipe, run=run_key(recipe), progress=progress)


def _record_start(recipe: Recipe) -> None:
    """Open the pipeline's own record: the parent of the stages' runs."""
    from manyeyes.provenance import revision
    from manyeyes.track.spool import start_pipeline

    run = run_key(recipe)
    params = recipe.model_dump(mode="json", by_alias=True)
    start_pipeline(run, run, {"recipe": recipe.name, "revision": revision()}, params)


def _place_results(answers: Sequence[Explanation], out: Path) -> bool:
    """Put every result where a person looks for it, with a DVC pointer beside it.

    Returns:
        Whether all results were at hand.
    """
    store = open_store()
    for answer in answers:
        if not answer.cached or answer.fingerprint is None:
            return False
        target = out / answer.stage / answer.expert if answer.expert else out / answer.stage
        entry = store.lookup(answer.fingerprint)
        if not _is_current(target, answer):
            entry = store.fetch(answer.fingerprint, target)
        if entry is None:
            return False
        store.export_pointer(entry.dir_id, target)
    return True


def _is_current(target: Path, answer: Explanation) -> bool:
    """Say whether a folder holds the whole result; one that was damaged is fetched again."""
    kind = steps.step(answer.stage).writes
    try:
        return open_artifact(target, kind, verify=False).fingerprint == answer.fingerprint
    except UserError:
        return False


def _is_registered(out: Path) -> bool:
    from manyeyes.stages.register import is_registered

    return is_registered(read_manifest(out / "register").details)


def _as_json(recipe: Recipe, out: Path, *, finished: bool) -> JsonValue:
    """Return what a program wants to know of a run."""
    from manyeyes.evaluate.score import read_scores

    return {
        "recipe": recipe.name,
        "run": run_key(recipe),
        "nothing_to_do": finished,
        "out": str(out),
        "scores": read_scores(out / "eval").flat(),
        "registered": read_manifest(out / "register").details,
        "report": str(out / "eval" / "report.html"),
    }


def _print_summary(recipe: Recipe, out: Path, *, finished: bool) -> None:
    from manyeyes.evaluate.score import read_scores

    if finished:
        print(f"{recipe.name}: nothing to do, every stage is up to date.")
    scores = read_scores(out / "eval")
    lines = {**{name: task.total for name, task in scores.tasks.items()}, "average": scores.average}
    rows = [
        (
            name,
            scores.tasks[name].metric if name in scores.tasks else "",
            f"{line.score.value:.1f}",
            f"{line.blind.value:.1f}" if line.blind else "",
            f"{line.gain.value:+.1f}" if line.gain else "",
            f"{line.count}",
        )
        for name, line in lines.items()
    ]
    columns = ("task", "metric", "score", "blank image", "gain", "questions")
    print_table(f"{recipe.name} on the {scores.split} split", columns, rows)
    registered = read_manifest(out / "register").details
    aliases = registered.get("aliases")
    names = ", ".join(str(alias) for alias in aliases) if isinstance(aliases, list) else ""
    print(f"Registered models:/{registered['name']}/{registered['version']} as {names}.")
    reasons = registered.get("reasons")
    if isinstance(reasons, list) and "champion" not in names:
        print(f"Not champion: {'; '.join(str(reason) for reason in reasons)}.")
    print("\nLook further:")
    print(f"  report     {out / 'eval' / 'report.html'}")
    print(f"  talk       manyeyes chat {out / 'sft'} --image FILE")
    print(f"  lineage    manyeyes lineage models:/{registered['name']}/{registered['version']}")
    print(f"  MLflow     {_mlflow_command()}")


def _mlflow_command() -> str:
    from manyeyes.track.store import locate

    return f"mlflow ui --backend-store-uri {locate().uri}"
