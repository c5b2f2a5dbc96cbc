"""What the spool holds: one record per pipeline run and one per stage run, as JSON on disk.

A record says everything MLflow is to know about a run except its curves, which stay in the
``metrics.jsonl`` the stage writes anyway and in ``system.jsonl`` beside the record. The identity of
a run is its ``key`` (pipeline, stage, expert, fingerprint): a stage that is killed and resumed has
the same key and therefore continues the same MLflow run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from manyeyes.steps import Task

if TYPE_CHECKING:
    from pathlib import Path

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

RECORD_FILE = "record.json"
PIPELINE_FILE = "pipeline.json"
SYSTEM_FILE = "system.jsonl"
METRICS_FILE = "metrics.jsonl"


class Stored(BaseModel):
    """Base of what is written to disk: immutable, and what it does not know it refuses."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DatasetInput(Stored):
    """A dataset that went into a run."""

    name: str
    digest: str
    """Content digest, whole; MLflow's field takes 36 characters, the rest goes into a tag."""
    source: str
    """Path or URI of the data."""
    context: str = "training"


class Process(Stored):
    """The process that writes a record, told apart from a later one with the same number."""

    pid: int
    created: float

    @classmethod
    def current(cls) -> Process:
        """Describe this process."""
        return cls(pid=os.getpid(), created=psutil.Process().create_time())

    def alive(self) -> bool:
        """Whether that very process still runs on this machine."""
        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.created) < 1.0)
        except psutil.Error:
            return False


class RunRecord(Stored):
    """One run: a stage, or with ``stage`` empty the pipeline run above them."""

    format: Literal[1] = 1
    key: str
    name: str
    pipeline: str
    stage: str = ""
    expert: str = ""
    tags: dict[str, str] = {}
    params: dict[str, str] = {}
    datasets: tuple[DatasetInput, ...] = ()
    scores: dict[str, float] = {}
    """Final numbers of the run, as opposed to its curves."""
    metrics_file: str = ""
    status: Status
    attempts: int = 1
    process: Process
    started: float
    """Seconds since 1970, of the first attempt."""
    ended: float | None = None
    adopted_run: str = ""
    """A run that someone else (KFP) made for this work and will close."""
    adopted_experiment: str = ""


@dataclass(frozen=True)
class StageRun:
    """What a stage says about itself when it starts.

    Attributes:
        pipeline: Name of the pipeline run; its stages become children of one parent.
        stage: Name of the stage.
        fingerprint: Digest of code, recipe slice and inputs; a resumed stage has the same one.
        expert: The encoder that ``prealign`` trains, else empty.
        tags: Recipe slice digest, code revision, DVC digests and the like.
        params: The stage's recipe section as nested plain data; flattened for MLflow.
        datasets: What the stage reads.
        metrics_file: Where the stage writes its curves: JSON rows with ``step`` and numbers.
    """

    pipeline: str
    stage: str
    fingerprint: str
    expert: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, object] = field(default_factory=dict)
    datasets: tuple[DatasetInput, ...] = ()
    metrics_file: Path | None = None

    @property
    def folder(self) -> str:
        """Name of the record's folder under the pipeline run's."""
        return f"{Task(self.stage, self.expert).slug}-{self.fingerprint[:12]}"

    @property
    def key(self) -> str:
        """Identity of the run."""
        return f"{self.pipeline}/{self.stage}/{self.expert}/{self.fingerprint}"

    @property
    def title(self) -> str:
        """What the MLflow page calls the run."""
        return f"{self.stage} {self.expert}".strip()


def flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Turn nested plain data into dotted keys and text; lists become JSON."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{key}."))
        elif isinstance(value, str):
            flat[key] = value
        else:
            flat[key] = json.dumps(value, sort_keys=True, default=str)
    return flat


def read_record(path: Path) -> RunRecord | None:
    """Read a record; None when the file is missing or is not one."""
    try:
        return RunRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
