"""What ``manyeyes run`` does: every stage that is not cached, then the results in one folder."""

from __future__ import annotations

import hashlib
import shlex
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from manyeyes.artifact.destination import claim_run, free_place
from manyeyes.artifact.files import REPORT_FILE
from manyeyes.artifact.marker import is_marked
from manyeyes.artifact.verified import just_checked, open_verified
from manyeyes.cli import gate
from manyeyes.cli.loading import load_checked, load_ready
from manyeyes.cli.output import print_json, print_table
from manyeyes.config.recipe import Recipe
from manyeyes.config.recipe.slices import tasks_of
from manyeyes.errors import GateRefused, ManyeyesError, UserError
from manyeyes.pipeline.explain import Explanation, check_outside, explain
from manyeyes.pipeline.fingerprint import run_key
from manyeyes.runtime.home import home
from manyeyes.runtime.locks import held
from manyeyes.runtime.watch import watching
from manyeyes.steps import ArtifactKind
from manyeyes.store import Entry, open_store
from manyeyes.tracking.pipeline import complete_pipeline, recorded_pipeline

if TYPE_CHECKING:
    from manyeyes.evaluate.score import Scores


def run_recipe(
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
    out = out or Path("runs") / recipe.name
    answers = explain(recipe)
    places = [_place(answer, out) for answer in answers]
    done = all(answer.cached for answer in answers)
    claim_run(out, places, [path], writable=not done)
    results = _place_results(answers, out) if done else None
    finished = results is not None
    if finished:
        complete_pipeline(run_key(recipe))
    else:
        running = {answer.task.stage for answer in answers if not answer.cached}
        load_ready(path, running, overrides)
        check_outside(recipe)
        try:
            _run_pipeline(recipe, overrides, quiet=as_json)
        except GateRefused as refusal:
            raise _with_report(refusal, recipe, out) from None
        results = _place_results(explain(recipe), out)
    if results is None:
        raise ManyeyesError(
            f"The results of {recipe.name} are not whole in the content store "
            f"{open_store().where}: run the same command again to make what is missing."
        )
    if as_json:
        print_json(_as_json(recipe, out, results, finished=finished))
    else:
        _print_summary(recipe, out, results, finished=finished)
    return gate.exit_code(results.registered)


def labels(recipe: Recipe) -> list[str]:
    """Every stage of the run, in pipeline order."""
    return [task.label for task in tasks_of(recipe)]


def _run_pipeline(recipe: Recipe, overrides: Sequence[str], *, quiet: bool) -> None:
    from manyeyes.kubeflow.pipelines.local import run_local

    run = run_key(recipe)
    progress = home() / "runs" / run / "progress.jsonl"
    progress.parent.mkdir(parents=True, exist_ok=True)
    with watching(progress, labels(recipe), quiet=quiet):
        run_local(
            recipe,
            run=run,
            progress=progress,
            recorded=lambda: recorded_pipeline(run, recipe, {}, overrides),
        )


def _with_report(refusal: GateRefused, recipe: Recipe, out: Path) -> GateRefused:
    """Bring the report of a refused validation to where the results would be, and say so."""
    found = home() / "runs" / run_key(recipe) / "validate.refused"
    if str(found) not in str(refusal) or not is_marked(found):
        return refusal
    place = free_place(out / found.name)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(found, place)
    return GateRefused(str(refusal).replace(str(found), str(place)))


@dataclass(frozen=True)
class _Results:
    """What the run led to, as it lies in the content store."""

    scores: Scores
    registered: Mapping[str, JsonValue]
    """What ``register`` said."""


def _place_results(answers: Sequence[Explanation], out: Path) -> _Results | None:
    """Put every result where a person looks for it, with a DVC pointer beside it.

    What is told of them is this run's own, read under a lock: another run may use the same folder
    or the same name.

    Returns:
        None when a result is not whole.
    """
    from manyeyes.evaluate.score import read_scores

    store = open_store()
    registered: Mapping[str, JsonValue] = {}
    with _sole_user(out):
        for answer in answers:
            target = _place(answer, out)
            entry = store.lookup(answer.fingerprint) if answer.fingerprint else None
            if entry is not None and not _is_current(target, answer.task.step.writes, entry):
                entry = store.fetch(str(answer.fingerprint), target)
                if entry is not None:
                    just_checked(target)
            if entry is None:
                return None
            store.export_pointer(entry.dir_id, target)
            registered = entry.details
        return _Results(read_scores(out / "eval"), registered)


def _place(answer: Explanation, out: Path) -> Path:
    return out / answer.task.stage / (answer.task.expert or "")


def _sole_user(out: Path) -> AbstractContextManager[None]:
    """Let one run at a time place results in a folder; a home that is read-only has no locks."""
    key = hashlib.sha256(str(out.absolute()).encode()).hexdigest()[:32]
    return held(home() / "locks" / f"results-{key}.lock", optional=True)


def _is_current(target: Path, kind: ArtifactKind, entry: Entry) -> bool:
    """Say whether a folder holds the very result; one that was damaged is fetched again.

    Its fingerprint is not enough: ``register`` leads to another result in another registry.
    """
    try:
        return open_verified(target, kind).digest == entry.digest
    except UserError:
        return False


def _as_json(recipe: Recipe, out: Path, results: _Results, *, finished: bool) -> JsonValue:
    """Return what a program wants to know of a run."""
    return {
        "recipe": recipe.name,
        "run": run_key(recipe),
        "nothing_to_do": finished,
        "out": str(out),
        "scores": results.scores.flat(),
        "registered": dict(results.registered),
        "report": str(out / "eval" / REPORT_FILE),
    }


def _print_summary(recipe: Recipe, out: Path, results: _Results, *, finished: bool) -> None:
    if finished:
        print(f"{recipe.name}: nothing to do, every stage is up to date.")
    scores, registered = results.scores, results.registered
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
    print(f"  report     {out / 'eval' / REPORT_FILE}")
    print(f"  talk       manyeyes chat {out / 'sft'} --image FILE")
    print(f"  lineage    manyeyes lineage models:/{registered['name']}/{registered['version']}")
    print(f"  MLflow     {_mlflow_command()}")


def _mlflow_command() -> str:
    from manyeyes.tracking.store import locate

    return f"mlflow ui --backend-store-uri {shlex.quote(locate().uri)}"
