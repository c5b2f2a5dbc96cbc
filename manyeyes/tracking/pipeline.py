"""The record of a pipeline run, above those of its stages.

``manyeyes run`` writes it when the run starts; where pods run the stages, the exit handler makes it
up from theirs. Beside it lie the files that MLflow keeps with the run: the recipe and the report.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from manyeyes.artifact import provenance
from manyeyes.artifact.manifest import atomic_write_bytes, atomic_write_text
from manyeyes.config.recipe import recipe_yaml
from manyeyes.errors import Interrupted
from manyeyes.tracking import owed
from manyeyes.tracking.records import (
    PIPELINE_FILE,
    DatasetInput,
    Process,
    RunRecord,
    Status,
    flatten,
    read_record,
)
from manyeyes.tracking.spool import UNNAMED, adopted_run, closed, spool_directory, stage_records

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from manyeyes.config.recipe import Recipe

RECIPE_FILE = "recipe.yaml"
ARTIFACTS = "artifacts"
"""Folder beside a pipeline's own record with the files that MLflow keeps with it."""
WORST_FIRST: tuple[Status, ...] = ("RUNNING", "FAILED", "KILLED", "FINISHED")


@contextlib.contextmanager
def recorded_pipeline(
    run: str, recipe: Recipe, tags: Mapping[str, str], overrides: Sequence[str] = ()
) -> Iterator[None]:
    """Record a pipeline run of a recipe until the block ends, and how it ended.

    Its exit handler closes the record with more than is known here; this is for a run that did not
    come so far.

    Args:
        run: Name of the run.
        recipe: What is run; MLflow keeps it as parameters and as a file.
        tags: What else there is to know.
        overrides: What ``--set`` changed in the recipe's file.
    """
    facts = {"recipe": recipe.name, "revision": provenance.revision(), **tags}
    if overrides:
        facts["overrides"] = "\n".join(overrides)
    params = recipe.model_dump(mode="json", by_alias=True)
    start_pipeline(run, run, facts, params, {RECIPE_FILE: recipe_yaml(recipe, overrides)})
    status: Status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except (Interrupted, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        leave_pipeline(run, status)


def start_pipeline(
    pipeline: str,
    name: str,
    tags: Mapping[str, str],
    params: Mapping[str, object],
    artifacts: Mapping[str, str] | None = None,
) -> None:
    """Record the start of a pipeline run, or its continuation when it was recorded before.

    A run named by ``MLFLOW_RUN_ID`` becomes the parent; the stages below it get children.

    Args:
        pipeline: Name of the pipeline run, part of its identity.
        name: What the MLflow page calls it.
        tags: Its recipe's name, code revision and the like.
        params: The recipe as nested plain data.
        artifacts: Texts that MLflow shall keep with the run, by file name.
    """
    folder = spool_directory(pipeline)
    earlier, adopted = read_record(folder / PIPELINE_FILE), adopted_run()
    record = RunRecord(
        key=f"{pipeline}//",
        name=name,
        pipeline=pipeline,
        tags=dict(tags),
        params=flatten(params),
        status="RUNNING",
        attempts=earlier.attempts + 1 if earlier else 1,
        process=Process.current(),
        started=earlier.started if earlier else time.time(),
        adopted_run=adopted.get("run", ""),
        adopted_experiment=adopted.get("experiment", ""),
    )
    keep_artifacts(pipeline, {n: text.encode() for n, text in (artifacts or {}).items()})
    _write_quietly(folder, record)


def keep_artifacts(pipeline: str, files: Mapping[str, bytes]) -> None:
    """Put files into the spool that MLflow shall keep with the pipeline's own run."""
    with contextlib.suppress(OSError):
        for name, data in files.items():
            atomic_write_bytes(spool_directory(pipeline) / ARTIFACTS / name, data)


@dataclass(frozen=True)
class Outcome:
    """What is known of a pipeline run at its end, for the record above its stages."""

    scores: Mapping[str, float] = field(default_factory=dict)
    datasets: tuple[DatasetInput, ...] = ()
    params: Mapping[str, object] = field(default_factory=dict)
    """The recipe, for a run whose start was not recorded."""


def finish_pipeline(pipeline: str, status: Status, outcome: Outcome | None = None) -> None:
    """Record the end of a pipeline run; where its start was not recorded there must be an outcome.

    A run that KFP's plugin recorded by itself has a parent already, and is left alone.
    """
    folder, known = spool_directory(pipeline), outcome or Outcome()
    record = read_record(folder / PIPELINE_FILE)
    if record is None:
        record = made_up(folder) if outcome else None
        if record is None:
            return
        record = record.model_copy(update={"params": flatten(known.params)})
    update: dict[str, object] = {"status": status, "ended": time.time()}
    if known.scores:
        update["scores"] = dict(known.scores)
    if known.datasets:
        update["datasets"] = known.datasets
    _write_quietly(folder, record.model_copy(update=update))


def leave_pipeline(pipeline: str, status: Status) -> None:
    """Close a pipeline run that this process began, if its end was not recorded."""
    record = read_record(spool_directory(pipeline) / PIPELINE_FILE)
    if record is not None and record.status == "RUNNING":
        finish_pipeline(pipeline, status)


def complete_pipeline(pipeline: str) -> None:
    """Say that a pipeline run reached its end, when its last attempt did not live to say so."""
    folder = spool_directory(pipeline)
    record = read_record(folder / PIPELINE_FILE)
    if record is None or closed(record, folder).status in ("RUNNING", "FINISHED"):
        return
    finish_pipeline(pipeline, "FINISHED")


def made_up(folder: Path) -> RunRecord | None:
    """Return the record of a pipeline run whose start was not recorded, made up from its stages.

    None when there is nothing to be above: stages run one by one without a named pipeline run, or
    runs that KFP made and already has a parent for.
    """
    stages = [record for _, record in stage_records(folder)]
    if not stages or stages[0].pipeline == UNNAMED or any(stage.adopted_run for stage in stages):
        return None
    # A stage that ran again with other code or inputs is judged by its last record.
    last = {(stage.stage, stage.expert): stage for stage in stages}
    states = [stage.status for stage in last.values()]
    worst = min(states, key=WORST_FIRST.index)
    ends = [stage.ended for stage in stages if stage.ended is not None]
    first = min(stages, key=lambda stage: stage.started)
    return RunRecord(
        key=f"{first.pipeline}//",
        name=first.pipeline,
        pipeline=first.pipeline,
        status=worst,
        process=first.process,
        started=first.started,
        ended=max(ends, default=None) if worst != "RUNNING" else None,
    )


def _write_quietly(folder: Path, record: RunRecord) -> None:
    # The sender makes a parent out of its stages when the pipeline's own record is missing.
    owed.note(record.pipeline)
    with contextlib.suppress(OSError):
        atomic_write_text(folder / PIPELINE_FILE, record.model_dump_json(indent=1))
