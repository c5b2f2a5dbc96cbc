"""Every stage records to disk first; nothing here can fail a training run.

``recording`` wraps a stage. It writes the record when the stage starts, samples the machine, and
closes the record with what happened: finished, failed, or stopped by a signal. A stage that is
killed outright leaves a record that says RUNNING with a process that is gone, which the sender
reads as KILLED. MLflow is not imported: sending is ``sync``'s work, once per pipeline run, not a
matter of seconds in each of a dozen step processes.

A spool that cannot be written (disk full) is a note on the recording, never an exception.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from manyeyes.artifact.manifest import atomic_write_text
from manyeyes.errors import Interrupted
from manyeyes.runtime.home import run_directory
from manyeyes.tracking import owed
from manyeyes.tracking.owed import safe_name
from manyeyes.tracking.records import (
    METRICS_FILE,
    PIPELINE_FILE,
    RECORD_FILE,
    SYSTEM_FILE,
    DatasetInput,
    Process,
    RunRecord,
    StageRun,
    Status,
    flatten,
    read_record,
)
from manyeyes.tracking.system import SystemSampler

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SAMPLE_SECONDS = 5.0
SPOOL = "track"
"""Folder of a pipeline run's directory that holds the records for MLflow."""
UNNAMED = "unnamed"
"""The run name of stages that are run one by one; they have no parent."""


class Recording:
    """A stage's record while the stage runs.

    Attributes:
        directory: The record's folder in the spool.
        notes: What could not be recorded, in words.
    """

    def __init__(self, directory: Path, record: RunRecord) -> None:
        self.directory = directory
        self.notes: list[str] = []
        self._record = record

    @property
    def record(self) -> RunRecord:
        """The record as it is now."""
        return self._record

    def add_tags(self, tags: Mapping[str, str]) -> None:
        """Add facts that are known only after the start, such as the digest of the output."""
        self._update({"tags": {**self._record.tags, **tags}})

    def add_scores(self, scores: Mapping[str, float]) -> None:
        """Add final numbers of the run."""
        self._update({"scores": {**self._record.scores, **scores}})

    def add_dataset(self, dataset: DatasetInput) -> None:
        """Add an input that is known only after the start."""
        self._update({"datasets": (*self._record.datasets, dataset)})

    def set_metrics_file(self, path: Path) -> None:
        """Say where the curves are when that was not known at the start."""
        self._update({"metrics_file": str(path.absolute())})

    def close(self, status: Status) -> None:
        """Write the end of the run and keep its curves beside the record."""
        self._update({"status": status, "ended": time.time()})
        self._keep_curves()

    def _update(self, changes: dict[str, object]) -> None:
        self._record = self._record.model_copy(update=changes)
        self.write()

    def write(self) -> None:
        """Write the record; what goes wrong is noted."""
        try:
            atomic_write_text(self.directory / RECORD_FILE, self._record.model_dump_json(indent=1))
        except OSError as error:
            self._note(f"the record in {self.directory} was not written: {error.strerror}")

    def _keep_curves(self) -> None:
        """Copy the curves: the work folder they are in may be moved or deleted before the sync."""
        source = Path(self._record.metrics_file) if self._record.metrics_file else None
        if source is None or not source.is_file():
            return
        try:
            partial = self.directory / (METRICS_FILE + ".partial")
            shutil.copyfile(source, partial)
            partial.replace(self.directory / METRICS_FILE)
        except OSError as error:
            self._note(f"the curves {source} were not copied to the spool: {error.strerror}")

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


@contextlib.contextmanager
def recording(run: StageRun, sample_seconds: float = SAMPLE_SECONDS) -> Iterator[Recording]:
    """Record a stage from start to end; exceptions of the stage pass through.

    Args:
        run: What the stage says about itself.
        sample_seconds: Time between samples of the machine.

    Yields:
        The recording, to which scores, tags and inputs can be added.
    """
    directory = spool_directory(run.pipeline) / safe_name(run.folder)
    recorder = Recording(directory, _begin(run, directory))
    owed.note(run.pipeline)
    recorder.write()
    sampler = SystemSampler(directory / SYSTEM_FILE, sample_seconds)
    sampler.start()
    status: Status = "FAILED"
    try:
        yield recorder
        status = "FINISHED"
    except (Interrupted, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        sampler.stop()
        recorder.close(status)
        owed.note(run.pipeline)


def is_recorded(run: StageRun) -> bool:
    """Say whether the record of a stage says that it finished."""
    record = read_record(spool_directory(run.pipeline) / safe_name(run.folder) / RECORD_FILE)
    return record is not None and record.key == run.key and record.status == "FINISHED"


def _begin(run: StageRun, directory: Path) -> RunRecord:
    """Make the record of a start, continuing an earlier one of the same key."""
    earlier = read_record(directory / RECORD_FILE)
    adopted = {} if (directory.parent / PIPELINE_FILE).exists() else adopted_run()
    record = RunRecord(
        key=run.key,
        name=run.title,
        pipeline=run.pipeline,
        stage=run.stage,
        expert=run.expert,
        tags={"fingerprint": run.fingerprint, "stage": run.stage, **run.tags},
        params=flatten(run.params),
        datasets=run.datasets,
        metrics_file=str(run.metrics_file.absolute()) if run.metrics_file else "",
        status="RUNNING",
        process=Process.current(),
        started=time.time(),
        adopted_run=adopted.get("run", ""),
        adopted_experiment=adopted.get("experiment", ""),
    )
    if earlier is None or earlier.key != run.key:
        return record
    return record.model_copy(update={"started": earlier.started, "attempts": earlier.attempts + 1})


def adopted_run() -> dict[str, str]:
    """Read the run that KFP's MLflow plugin made for this task, if it did.

    MLflow's fluent API takes ``MLFLOW_RUN_ID`` for the first run it starts, drops the parent asked
    for, and deletes the variable; so it is read here and only explicit ids are used.
    """
    run = os.environ.get("MLFLOW_RUN_ID", "").strip()
    experiment = os.environ.get("MLFLOW_EXPERIMENT_ID", "").strip()
    return {"run": run, "experiment": experiment} if run else {}


def closed(record: RunRecord, directory: Path) -> RunRecord:
    """Return ``record`` as KILLED when it says RUNNING and its process is gone."""
    if record.status != "RUNNING" or record.process.alive():
        return record
    signs = (directory / name for name in (RECORD_FILE, PIPELINE_FILE, SYSTEM_FILE))
    written = [path.stat().st_mtime for path in signs if path.is_file()]
    ended = max(written, default=record.started)
    return record.model_copy(update={"status": "KILLED", "ended": ended})


def stage_records(folder: Path) -> list[tuple[Path, RunRecord]]:
    """Return the records of a pipeline run's stages with their folders, oldest first."""
    found = [(path.parent, read_record(path)) for path in folder.glob(f"*/{RECORD_FILE}")]
    known = [(directory, closed(record, directory)) for directory, record in found if record]
    return sorted(known, key=lambda pair: pair[1].started)


def spool_directory(pipeline: str) -> Path:
    """Return the folder of one pipeline run's records for MLflow."""
    return run_directory(safe_name(pipeline)) / SPOOL
