"""A recipe from data to registered model on this machine, and where its results lie.

``manyeyes run`` and ``manyeyes.train`` are this function.
"""

from __future__ import annotations

import hashlib
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
from manyeyes.config.recipe import Recipe
from manyeyes.config.recipe.slices import tasks_of
from manyeyes.errors import GateRefused, ManyeyesError, UserError
from manyeyes.pipeline.explain import Explanation, check_outside, explain
from manyeyes.pipeline.fingerprint import run_key
from manyeyes.pipeline.preflight import CHECKS, require
from manyeyes.runtime.home import home
from manyeyes.runtime.locks import held
from manyeyes.runtime.watch import watching
from manyeyes.steps import ArtifactKind
from manyeyes.store import Entry, open_store
from manyeyes.tracking.pipeline import complete_pipeline, recorded_pipeline

if TYPE_CHECKING:
    from manyeyes.evaluation.score import Scores


@dataclass(frozen=True)
class RunResults:
    """What a run led to."""

    recipe: Recipe
    out: Path
    """Folder with a folder for each stage's result."""
    scores: Scores
    """Of the evaluation on the recipe's questions."""
    registered: Mapping[str, JsonValue]
    """What ``register`` said: name, version and aliases in the registry, and the gate's word."""
    nothing_to_do: bool
    """Every result was at hand already."""

    @property
    def checkpoint(self) -> Path:
        """The trained model, which ``manyeyes.load`` takes."""
        return self.out / "sft"

    @property
    def report(self) -> Path:
        """The page with scores, examples and lineage."""
        return self.out / "eval" / REPORT_FILE


def run_recipe(
    recipe: Recipe,
    *,
    path: Path | None = None,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    quiet: bool = False,
) -> RunResults:
    """Run what is not at hand, and put every result where a person looks for it.

    Args:
        recipe: one whose names exist (``preflight``).
        path: its file, which nothing may be written over, and whose lines errors name.
        overrides: ``KEY=VALUE``, what was set in place of the file's values; kept with the run.
        out: folder for the results, ``runs/NAME`` without it.
        quiet: draw no progress.

    Raises:
        UserError: the recipe, its data or the folder cannot be used.
        GateRefused: the data break the contract; the error says where the report is.
        ManyeyesError: a stage failed; the error is its own.
        Interrupted: a signal came; the same call continues.
    """
    out = out or Path("runs") / recipe.name
    answers = explain(recipe)
    done = all(answer.cached for answer in answers)
    places = [_place(answer, out) for answer in answers]
    claim_run(out, places, [path] if path else [], writable=not done)
    results = _place_results(answers, recipe, out, nothing_to_do=True) if done else None
    if results is not None:
        complete_pipeline(run_key(recipe))
        return results
    running = {answer.task.stage for answer in answers if not answer.cached}
    require(recipe, path, CHECKS, running, overrides)
    check_outside(recipe)
    try:
        _run_pipeline(recipe, overrides, quiet=quiet)
    except GateRefused as refusal:
        raise _with_report(refusal, recipe, out) from None
    results = _place_results(explain(recipe), recipe, out, nothing_to_do=False)
    if results is None:
        raise ManyeyesError(
            f"The results of {recipe.name} are not whole in the content store "
            f"{open_store().where}: run the same command again to make what is missing."
        )
    return results


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


def _place_results(
    answers: Sequence[Explanation], recipe: Recipe, out: Path, *, nothing_to_do: bool
) -> RunResults | None:
    """Put every result where a person looks for it, with a DVC pointer beside it.

    What is told of them is this run's own, read under a lock: another run may use the same folder
    or the same name.

    Returns:
        None when a result is not whole.
    """
    from manyeyes.evaluation.score import read_scores

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
        scores = read_scores(out / "eval")
    return RunResults(recipe, out, scores, registered, nothing_to_do)


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
