"""Sends the spool to MLflow, now or later, as often as one likes.

Only ``MlflowClient`` with explicit run ids is used, never the fluent stack, which adopts
``MLFLOW_RUN_ID`` by itself and loses parents (mlflow issue 15713). What was sent is remembered per
store beside each record (``sent.json``), and every run carries its key as a tag by which it is
found again when that memory is lost. ``owed`` says which runs have something to send. Curves are
remembered by their last step, not by a file offset: a resumed stage rewrites the rows after its
checkpoint with equal values.

A store that does not answer costs seconds and a note; the records stay for the next time.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from manyeyes.errors import ManyeyesError
from manyeyes.runtime.home import home
from manyeyes.tracking import curves, owed
from manyeyes.tracking.pipeline import ARTIFACTS, made_up
from manyeyes.tracking.records import (
    METRICS_FILE,
    PIPELINE_FILE,
    RECORD_FILE,
    SYSTEM_FILE,
    DatasetInput,
    RunRecord,
    read_record,
)
from manyeyes.tracking.sent import (
    Sent,
    artifacts_of,
    closing_of,
    description_of,
    is_sent,
    read_book,
    write_sent,
)
from manyeyes.tracking.spool import SPOOL, closed, spool_directory, stage_records
from manyeyes.tracking.store import (
    LOCK_SECONDS,
    Store,
    experiment_id,
    locate,
    locked,
    open_store,
    probe,
    reason,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput as MlflowInput

Item = TypeVar("Item")
KEY_TAG = "manyeyes.key"
PARENT_TAG = "mlflow.parentRunId"
METRICS_PER_BATCH = 1000
PARAMS_PER_BATCH = 100
MAX_NAME = 250
MAX_PARAM = 6000
MAX_TAG = 5000
MAX_DIGEST = 36


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


def sync(pipeline: str) -> SyncReport:
    """Send what the spool holds of a pipeline run and the store does not have.

    Returns:
        What was sent, and what waits and why; MLflow's failures are notes, never exceptions.
    """
    return _send_all(locate(), [pipeline])


def send_owed() -> SyncReport:
    """Send what earlier runs left unsent, whatever ended them; quick when there is nothing.

    What another process records or sends just now is its own to send.
    """
    store = locate()
    names = owed.pipelines(store)
    if not names or not os.access(home(), os.W_OK):
        return SyncReport()
    ended = [name for name in names if not _goes_on(spool_directory(name))]
    return _send_all(store, ended, lock_seconds=0.0)


def _send_all(
    store: Store, pipelines: Sequence[str], lock_seconds: float = LOCK_SECONDS
) -> SyncReport:
    report = SyncReport()
    for name in pipelines:
        owed.take(name, store)
    pending = [name for name in pipelines if _is_pending(spool_directory(name), store)]
    for name in set(pipelines) - set(pending):
        owed.settle(name, store)
    if not pending:
        return report
    try:
        probe(store)
        client = open_store(store)
        experiment = experiment_id(client, store)
    except Exception as error:  # tracking may be down in any way; training must not notice
        report.waiting = sum(len(stage_records(spool_directory(name))) for name in pending)
        report.notes.append(_failure(store, error))
        return report
    sender = _Sender(client, store, experiment, report)
    for name in pending:
        folder = spool_directory(name)
        with suppress(ManyeyesError), locked(folder / "sync.lock", lock_seconds):
            sender.send_pipeline(folder)
            if not _is_pending(folder, store):
                owed.settle(name, store)
    return report


def _goes_on(folder: Path) -> bool:
    return any(record.status == "RUNNING" for _, record in _every(folder))


def run_of(fingerprint: str) -> str | None:
    """Return the id of the run that recorded a stage, sending its pipeline run first if need be.

    None when the stage was recorded elsewhere, or could not be sent.
    """
    store = locate()
    for path in sorted(home().glob(f"runs/*/{SPOOL}/*-{fingerprint[:12]}/{RECORD_FILE}")):
        record = read_record(path)
        if record is not None and record.tags.get("fingerprint") == fingerprint:
            sync(record.pipeline)
            sent = read_book(path.parent).stores.get(store.key)
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
        stages, parent = stage_records(folder), parent_record(folder)
        try:
            parent_run = self._send(folder, parent, "") if parent else ""
            for directory, record in stages:
                self._send(directory, record, parent_run)
        except Exception as error:  # see sync: the rest waits
            self._report.waiting += sum(
                not is_sent(directory, record, self._store) for directory, record in stages
            )
            self._report.notes.append(_failure(self._store, error))

    def _send(self, directory: Path, record: RunRecord, parent: str) -> str:
        book = read_book(directory)
        sent = book.stores.get(self._store.key, Sent())
        if is_sent(directory, record, self._store):
            return sent.run
        if not self._has(sent.run):
            sent = self._find_or_create(record, parent)
            write_sent(directory, book, self._store, sent)
        description = description_of(record)
        if sent.description != description:
            self._describe(sent.run, record)
            sent = sent.model_copy(update={"description": description})
        for name, path in curve_files(directory, record):
            steps = self._send_curve(sent, name, path, record)
            sent = sent.model_copy(update={"steps": {**sent.steps, name: steps}})
            write_sent(directory, book, self._store, sent)
        sent = self._send_artifacts(directory, sent)
        self._close(sent.run, record)
        sent = sent.model_copy(update={"closing": closing_of(record)})
        write_sent(directory, book, self._store, sent)
        self._report.runs.append(record.name)
        return sent.run

    def _has(self, run: str) -> bool:
        """Whether the store still has a run: a person may have deleted it, or the store."""
        from mlflow.exceptions import MlflowException

        try:
            return bool(run) and self._client.get_run(run).info.lifecycle_stage == "active"
        except MlflowException:
            return False

    def _send_artifacts(self, directory: Path, sent: Sent) -> Sent:
        """Upload the files beside a pipeline's own record that changed since they were sent."""
        files = artifacts_of(directory)
        for name, digest in files.items():
            if sent.artifacts.get(name) != digest:
                self._client.log_artifact(sent.run, str(directory / ARTIFACTS / name))
        return sent.model_copy(update={"artifacts": files})

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
        for chunk in _chunks(_named(tags), PARAMS_PER_BATCH):
            self._client.log_batch(run, tags=[RunTag(k, v[:MAX_TAG]) for k, v in chunk])
        for chunk in _chunks(_named(record.params), PARAMS_PER_BATCH):
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


def parent_record(folder: Path) -> RunRecord | None:
    """Return the record of the pipeline run above the stages, made up from them if need be."""
    record = read_record(folder / PIPELINE_FILE)
    if record is None:
        return made_up(folder)
    after = closed(record, folder)
    if after.status == record.status:
        return after
    # It was killed, at the earliest when its last stage still wrote.
    ends = [stage.ended for _, stage in stage_records(folder) if stage.ended is not None]
    return after.model_copy(update={"ended": max([after.ended or after.started, *ends])})


def curve_files(directory: Path, record: RunRecord) -> list[tuple[str, Path]]:
    """Return the curve files of a record that exist, each with the name its progress has."""
    kept = directory / METRICS_FILE
    live = Path(record.metrics_file) if record.metrics_file else kept
    training = kept if kept.exists() and record.status == "FINISHED" else live
    files = [("training", training), ("system", directory / SYSTEM_FILE)]
    return [(name, path) for name, path in files if path.is_file()]


def _every(folder: Path) -> list[tuple[Path, RunRecord]]:
    """Return the pipeline run's own record and those of its stages, with their folders."""
    parent = parent_record(folder)
    return [*([(folder, parent)] if parent else []), *stage_records(folder)]


def _is_pending(folder: Path, store: Store) -> bool:
    return any(not is_sent(directory, record, store) for directory, record in _every(folder))


def _named(values: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return tags or params in order, under names that MLflow takes."""
    return [(curves.metric_name(key)[:MAX_NAME], value) for key, value in sorted(values.items())]


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
