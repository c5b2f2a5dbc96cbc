"""``manyeyes run``: the whole pipeline here, through kfp.local."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue

from manyeyes import steps
from manyeyes.artifact import read_manifest
from manyeyes.cli.output import print_json, print_table
from manyeyes.cli.watch import watching
from manyeyes.explain import Explanation, explain
from manyeyes.home import home
from manyeyes.recipe import Recipe, load_recipe
from manyeyes.recipe.slices import slice_digest, slice_json
from manyeyes.store import Store


def run(arguments: argparse.Namespace) -> int:
    """Run a recipe from data to registered model, or say that nothing is to be done."""
    recipe = load_recipe(arguments.recipe)
    out: Path = arguments.out or Path("runs") / recipe.name
    answers = explain(recipe)
    finished = all(answer.cached for answer in answers) and _still_registered(answers)
    if not finished:
        _run_pipeline(recipe, quiet=arguments.json)
        answers = explain(recipe)
    _check_out(answers, out)
    summary = _summary(recipe, answers, out, finished=finished)
    if arguments.json:
        print_json(summary)
    else:
        _print_summary(recipe, out, finished=finished)
    return 0


def run_key(recipe: Recipe) -> str:
    """Name of a recipe's pipeline run: the same recipe continues the same run."""
    text = "".join(
        slice_json(recipe, step.name, expert)
        for step in steps.STEPS
        for expert in (recipe.prealign.experts if step.per_expert else [None])
    )
    return f"{recipe.name}-{slice_digest(text)[:8]}"


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
    with watching(progress, labels(recipe), quiet=quiet):
        run_local(recipe, run=run_key(recipe), progress=progress)


def _still_registered(answers: Sequence[Explanation]) -> bool:
    from manyeyes.stages.register import is_registered

    entry = Store(home() / "store").lookup(str(answers[-1].fingerprint))
    return entry is not None and is_registered(entry.details)


def _check_out(answers: Sequence[Explanation], out: Path) -> None:
    """Put every result where a person looks for it, with a DVC pointer beside it."""
    store = Store(home() / "store")
    for answer in answers:
        entry = store.lookup(str(answer.fingerprint))
        assert entry is not None
        target = out / answer.stage / answer.expert if answer.expert else out / answer.stage
        if not target.is_dir() or read_manifest(target).digest != entry.digest:
            store.checkout(entry.dir_id, target)
        store.export_pointer(entry, target)
