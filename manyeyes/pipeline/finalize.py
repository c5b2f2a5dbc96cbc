"""The end of a pipeline run, after any outcome: send the tracking spool, write the summary.

This is the pipeline's exit handler. It reads the records the stages left in the run's folder, so it
says the same for every skin, and it runs again without harm.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, JsonValue

from manyeyes import steps
from manyeyes.artifact.files import REPORT_FILE
from manyeyes.artifact.manifest import atomic_write_text
from manyeyes.errors import Interrupted, ManyeyesError
from manyeyes.runtime.home import STAGE_RECORDS, run_directory, run_name
from manyeyes.runtime.journal import JOURNAL, read_journal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from manyeyes.tracking.pipeline import Outcome
    from manyeyes.tracking.records import Status

SUMMARY = "summary.json"
STATUS: dict[str, Status] = {
    # kfp.local says SUCCEEDED; a cluster passes on the state of the driver's execution: COMPLETE,
    # or CACHED where nothing had to be done.
    "SUCCEEDED": "FINISHED",
    "COMPLETE": "FINISHED",
    "CACHED": "FINISHED",
    "CANCELED": "KILLED",
    "CANCELLED": "KILLED",
    "CANCELING": "KILLED",
}
"""KFP's words for the end of a run, and MLflow's; all others (``FAILED``, ``RUNNING`` of a pod that
was killed) are failures."""


class StageOutcome(BaseModel):
    """How one stage of a run ended, as the runner recorded it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    expert: str | None
    state: str
    fingerprint: str
    code: dict[str, str] | str
    """Versions of the stage and of the parts it uses, by label; records of before had one digest of
    all code, and a folder of runs keeps those."""
    slice: str
    parents: dict[str, str]
    outside: dict[str, str] = {}
    """Digest of everything that lies outside of recipe and store, by label."""
    started: str
    seconds: float
    digest: str | None
    details: dict[str, JsonValue]


class Summary(BaseModel):
    """One pipeline run: its state and its stages in pipeline order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    state: str
    stages: tuple[StageOutcome, ...]
    tracking: tuple[str, ...]
    """What could not be sent to the tracking server, in words; it is sent with the next run."""


def read_outcomes(run: Path) -> tuple[StageOutcome, ...]:
    """Return the recorded stages of a run, in pipeline order."""
    order = [step.name for step in steps.STEPS]
    found = [
        StageOutcome.model_validate(json.loads(path.read_text(encoding="utf-8")))
        for path in sorted((run / STAGE_RECORDS).glob("*.json"))
    ]
    return tuple(sorted(found, key=lambda outcome: order.index(outcome.stage)))


def finalize(state: str) -> Summary:
    """Send the spool and write ``summary.json`` of the present run.

    Args:
        state: how the pipeline ended, in KFP's words (``STATUS``).
    """
    from manyeyes.tracking.pipeline import finish_pipeline, keep_artifacts
    from manyeyes.tracking.sync import sync

    outcomes = read_outcomes(run_directory())
    keep_artifacts(run_name(), _report(outcomes))
    finish_pipeline(run_name(), _status(state), _facts(outcomes))
    report = sync(run_name())
    summary = Summary(
        run=run_name(),
        state=state,
        stages=outcomes,
        tracking=tuple(report.notes),
    )
    atomic_write_text(run_directory() / SUMMARY, summary.model_dump_json(indent=2) + "\n")
    return summary


def _status(state: str) -> Status:
    """Return how the run ended in MLflow's words; a local run that was stopped failed by that."""
    journal = os.environ.get(JOURNAL)
    events = read_journal(Path(journal)) if journal else []
    if any(event.exit_code == Interrupted.exit_code for event in events):
        return "KILLED"
    return STATUS.get(state, "FAILED")


def _facts(outcomes: Sequence[StageOutcome]) -> Outcome:
    """Return what the run's own record shows: scores, dataset, and what the stages saw."""
    from manyeyes.tracking.pipeline import Outcome
    from manyeyes.tracking.stage import dataset_input

    scores: dict[str, float] = {}
    datasets = []
    recipe: dict[str, JsonValue] = {}
    for outcome in outcomes:
        if outcome.stage == "prepare" and outcome.digest:
            datasets.append(dataset_input("dataset", outcome.digest, outcome.details))
        found = outcome.details.get("scores") if outcome.stage == "eval" else None
        if isinstance(found, dict):
            scores = {f"score/{k}": v for k, v in found.items() if isinstance(v, int | float)}
        _add_slice(recipe, outcome)
    return Outcome(scores, tuple(datasets), recipe)


def _add_slice(recipe: dict[str, JsonValue], outcome: StageOutcome) -> None:
    """Put what a stage saw of the recipe back into its place there."""
    seen = json.loads(outcome.slice)
    section, expert = seen.pop("section", None), seen.pop("expert", None)
    recipe.update(seen)
    if section is None:
        return
    if expert is None:
        recipe[outcome.stage] = section
        return
    experts = recipe.setdefault(outcome.stage, {"experts": {}})
    if isinstance(experts, dict) and isinstance(found := experts["experts"], dict):
        found[expert] = section


def _report(outcomes: Sequence[StageOutcome]) -> dict[str, bytes]:
    """Return the evaluation's page as the content store has it; none where it has not."""
    from manyeyes.store import object_key, open_store

    done = [outcome.fingerprint for outcome in outcomes if outcome.stage == "eval"]
    try:
        store = open_store()
        entry = store.lookup(done[0]) if done else None
        if entry is None:
            return {}
        files = store.manifest(entry.dir_id).files
        return {REPORT_FILE: store.backend.read(object_key(files[REPORT_FILE].md5))}
    except (ManyeyesError, OSError, KeyError):
        return {}
