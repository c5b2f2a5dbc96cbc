"""Sends the spool to MLflow, now or later, as often as one likes.

Only ``MlflowClient`` with explicit run ids is used, never the fluent stack, which adopts
``MLFLOW_RUN_ID`` by itself and loses parents (mlflow issue 15713). What was sent is remembered per
store beside each record (``sent.json``), and every run carries its key as a tag by which it is
found again when that memory is lost. Curves are remembered by their last step, not by a file
offset: a resumed stage rewrites the rows after its checkpoint with equal values.

A store that does not answer costs seconds and a note; the records stay for the next time.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import Field, ValidationError

from manyeyes.artifact import atomic_write_text
from manyeyes.home import home
from manyeyes.track import curves
from manyeyes.track.records import (
    METRICS_FILE,
    PIPELINE_FILE,
    RECORD_FILE,
    SYSTEM_FILE,
    DatasetInput,
    RunRecord,
    Status,
    Stored,
    read_record,
)
from manyeyes.track.spool import SPOOL, UNNAMED, spool_directory
from manyeyes.track.store import (
    Store,
    experiment_id,
    locate,
    locked,
    open_store,
    probe,
    reason,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput as MlflowInput

Item = TypeVar("Item")
SENT_FILE = "sent.json"
WORST_FIRST: tuple[Status, ...] = ("RUNNING", "FAILED", "KILLED", "FINISHED")
KEY_TAG = "manyeyes.key"
PARENT_TAG = "mlflow.parentRunId"
METRICS_PER_BATCH = 1000
PARAMS_PER_BATCH = 100
MAX_PARAM = 6000
MAX_TAG = 5000
MAX_DIGEST = 36


class Sent(Stored):
    """What one store has of one record."""

    experiment: str = ""
    run: str = ""
    description: str = ""
    """Digest of the tags, params, inputs and scores that were sent."""
    steps: dict[str, int] = Field(default_factory=dict)
    """Last step sent of each curve file."""
    closing: str = ""
    """Status, attempt and end that were sent last."""


class SentBook(Stored):
    """``sent.json``: what each store has, by the store's key."""

    stores: dict[str, Sent] = Field(default_factory=dict)


@dataclass
class SyncReport:
    """What a sync did.

    Attributes:
        runs: Runs of which something was sent, by title.
        num_metrics: Metric values sent.
        waiting: Records that could not be sent and wait for the next time.
        notes: What went wrong, one sentence each.
    """

    runs: list[str] = field(default_factory=list)
    num_metrics: int = 0
    waiting: int = 0
    notes: list[str] = field(default_factory=list)


def sync(pipeline: str | None = None) -> SyncReport:
    """Send what the spool holds and the store does not have.

    Args:
        pipeline: Only this pipeline run; all of them by default.

    Returns:
        What was sent, and what waits and why; MLflow's failures are notes, never exceptions.
    """
    report = SyncReport()
    store = locate()
    folders = [spool_directory(pipeline)] if pipeline else sorted(home().glob(f"runs/*/{SPOOL}"))
    pending = [folder for folder in folders if _is_pending(folder, store)]
    if not pending:
        return report
    try:
        probe(store)
        client = open_store(store)
        experiment = experiment_id(client, store)
    except Exception as error:  # tracking may be down in any way; training must not notice
        report.waiting = sum(len(_records(folder)) for folder in pending)
        report.notes.append(_failure(store, error))
        return report
    for folder in pending:
        with locked(folder / "sync.lock"):
            _Sender(client, store, experiment, report).send_pipeline(folder)
    return report


def run_of(fingerprint: str) -> str | None:
    """Return the id of the run that recorded a stage, sending its pipeline run first if need be.

    None when the stage was recorded elsewhere, or could not be sent.
    """
    store = locate()
    for path in sorted(home().glob(f"runs/*/{SPOOL}/*-{fingerprint[:12]}/{RECORD_FILE}")):
        record = read_record(path)
        if record is not None and record.tags.get("fingerprint") == fingerprint:
            sync(record.pipeline)
            sent = _read_book(path.parent).stores.get(store.key)
            return sent.run if sent else None
    return None


class _Sender:
    """Sends the records of one pipeline run."""

    def __init__(
        self, client: MlflowClient, store: Store, experiment: str, report: SyncReport
    ) -> None:
        self._client = client
        self._store = store
        self._experiment = experiment
        self._report = report

    def send_pipeline(self, folder: Path) -> None:
        """Send the parent, then each stage as its child."""
        stages = _records(folder)
        parent = parent_record(folder, [record for _, record in stages])
        try:
            parent_run = self._send(folder, parent, "") if parent else ""
            for directory, record in stages:
                self._send(directory, record, parent_run)
        except Exception as error:  # see sync: the rest waits
            self._report.waiting += sum(
                not _is_sent(directory, record, self._store) for directory, record in stages
            )
            self._report.notes.append(_failure(self._store, error))

    def _send(self, directory: Path, record: RunRecord, parent: str) -> str:
        book = _read_book(directory)
        sent = book.stores.get(self._store.key, Sent()) if self._store.exists else Sent()
        if _is_sent(directory, record, self._store):
            return sent.run
        if not sent.run:
            sent = self._find_or_create(record, parent)
            _write_sent(directory, book, self._store, sent)
        description = _description(record)
        if sent.description != description:
            self._describe(sent.run, record)
            sent = sent.model_copy(update={"description": description})
        for name, path in curve_files(directory, record):
            steps = self._send_curve(sent, name, path, record)
            sent = sent.model_copy(update={"steps": {**sent.steps, name: steps}})
            _write_sent(directory, book, self._store, sent)
        self._close(sent.run, record)
        sent = sent.model_copy(update={"closing": _closing(record)})
        _write_sent(directory, book, self._store, sent)
        self._report.runs.append(record.name)
        return sent.run

    def _find_or_create(self, record: RunRecord, parent: str) -> Sent:
        experiment = record.adopted_experiment or self._experiment
        if record.adopted_run:
            self._client.set_tag(record.adopted_run, KEY_TAG, record.key)
            return Sent(experiment=experiment, run=record.adopted_run)
        found = self._client.search_runs(
            [experiment], filter_string=f"tags.`{KEY_TAG}` = '{record.key}'", max_results=1
        )
        if found:
            return Sent(experiment=experiment, run=str(found[0].info.run_id))
        tags = {KEY_TAG: record.key, "mlflow.source.name": "manyeyes"}
        if parent:
            tags[PARENT_TAG] = parent
        run = self._client.create_run(
            experiment, int(record.started * 1000), tags, run_name=record.name
        )
        return Sent(experiment=experiment, run=str(run.info.run_id))

    def _describe(self, run: str, record: RunRecord) -> None:
        """Send tags, params, inputs and scores; equal values sent twice change nothing."""
        from mlflow.entities import Metric, Param, RunTag

        tags = {**record.tags, "attempts": str(record.attempts)}
        for chunk in _chunks(sorted(tags.items()), PARAMS_PER_BATCH):
            self._client.log_batch(run, tags=[RunTag(k, v[:MAX_TAG]) for k, v in chunk])
        for chunk in _chunks(sorted(record.params.items()), PARAMS_PER_BATCH):
            self._client.log_batch(run, params=[Param(k, v[:MAX_PARAM]) for k, v in chunk])
        when = int((record.ended or record.started) * 1000)
        scores = [Metric(curves.metric_name(k), v, when, 0) for k, v in record.scores.items()]
        for batch in _chunks(scores, METRICS_PER_BATCH):
            self._client.log_batch(run, metrics=batch)
        if record.datasets:
            self._client.log_inputs(run, [_dataset(dataset) for dataset in record.datasets])

    def _send_curve(self, sent: Sent, name: str, path: Path, record: RunRecord) -> int:
        """Send the rows after the last step sent and return the new last step."""
        from mlflow.entities import Metric

        after = sent.steps.get(name, -1)
        points = curves.read(path, record.started, after)
        metrics = [
            Metric(point.key, point.value, int(point.time * 1000), point.step) for point in points
        ]
        for batch in _chunks(metrics, METRICS_PER_BATCH):
            self._client.log_batch(sent.run, metrics=batch)
        self._report.num_metrics += len(metrics)
        return max([after, *(point.step for point in points)])

    def _close(self, run: str, record: RunRecord) -> None:
        if record.adopted_run:
            return  # whoever made the run also ends it
        if record.status == "RUNNING":
            self._client.update_run(run, status="RUNNING")
        else:
            ended = record.ended if record.ended is not None else time.time()
            self._client.set_terminated(run, record.status, int(ended * 1000))


def parent_record(folder: Path, stages: Sequence[RunRecord]) -> RunRecord | None:
    """Return the record of the pipeline run above ``stages``, made up from them if need be.

    None when there is nothing to be above: stages run one by one without a named pipeline run, or
    runs that KFP made and already has a parent for.
    """
    record = read_record(folder / PIPELINE_FILE)
    if record is not None:
        return closed(record, folder)
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


def closed(record: RunRecord, directory: Path) -> RunRecord:
    """Return ``record`` as KILLED when it says RUNNING and its process is gone."""
    if record.status != "RUNNING" or record.process.alive():
        return record
    signs = (directory / name for name in (RECORD_FILE, PIPELINE_FILE, SYSTEM_FILE))
    written = [path.stat().st_mtime for path in signs if path.is_file()]
    ended = max(written, default=record.started)
    return record.model_copy(update={"status": "KILLED", "ended": ended})


def curve_files(directory: Path, record: RunRecord) -> list[tuple[str, Path]]:
    """Return the curve files of a record that exist, each with the name its progress has."""
    kept = directory / METRICS_FILE
    live = Path(record.metrics_file) if record.metrics_file else kept
    training = kept if kept.exists() and record.status == "FINISHED" else live
    files = [("training", training), ("system", directory / SYSTEM_FILE)]
    return [(name, path) for name, path in files if path.is_file()]


def _records(folder: Path) -> list[tuple[Path, RunRecord]]:
    """Return the stages' records with their folders, oldest first."""
    found = [(path.parent, read_record(path)) for path in folder.glob(f"*/{RECORD_FILE}")]
    known = [(directory, closed(record, directory)) for directory, record in found if record]
    return sorted(known, key=lambda pair: pair[1].started)


def _is_pending(folder: Path, store: Store) -> bool:
    stages = _records(folder)
    parent = parent_record(folder, [record for _, record in stages])
    every = [*stages, *([(folder, parent)] if parent else [])]
    return any(not _is_sent(directory, record, store) for directory, record in every)


def _is_sent(directory: Path, record: RunRecord, store: Store) -> bool:
    """Whether the store has all of a record that has ended; a running one may always have more."""
    sent = _read_book(directory).stores.get(store.key)
    return (
        sent is not None
        and store.exists
        and record.status != "RUNNING"
        and sent.closing == _closing(record)
        and sent.description == _description(record)
    )


def _closing(record: RunRecord) -> str:
    return f"{record.status} {record.attempts} {record.ended}"


def _description(record: RunRecord) -> str:
    parts = record.model_dump(
        mode="json", include={"tags", "params", "datasets", "scores", "attempts"}
    )
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read_book(directory: Path) -> SentBook:
    try:
        return SentBook.model_validate_json((directory / SENT_FILE).read_bytes())
    except (OSError, ValidationError):
        return SentBook()


def _write_sent(directory: Path, book: SentBook, store: Store, sent: Sent) -> None:
    stores = {**book.stores, store.key: sent}
    atomic_write_text(directory / SENT_FILE, SentBook(stores=stores).model_dump_json(indent=1))


def _dataset(dataset: DatasetInput) -> MlflowInput:
    """Make MLflow's dataset input without reading data; its digest field takes 36 characters."""
    from mlflow import entities

    uri = dataset.source if "://" in dataset.source else Path(dataset.source).absolute().as_uri()
    entity = entities.Dataset(
        name=dataset.name,
        digest=dataset.digest[:MAX_DIGEST],
        source_type="local" if uri.startswith("file:") else uri.split(":", 1)[0],
        source=json.dumps({"uri": uri}),
    )
    tags = {"mlflow.data.context": dataset.context, "digest": dataset.digest}
    return entities.DatasetInput(entity, [entities.InputTag(k, v) for k, v in tags.items()])


def _chunks(items: Sequence[Item], size: int) -> Iterable[Sequence[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _failure(store: Store, error: Exception) -> str:
    return (
        f"MLflow at {store.shown} did not take the records ({reason(error)}); "
        "they are kept and sent later."
    )
