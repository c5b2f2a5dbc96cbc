"""The end of a pipeline run, after any outcome: send the tracking spool, write the summary.

This is the pipeline's exit handler. It reads the records the stages left in the run's folder, so it
says the same for every skin, and it runs again without harm.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, JsonValue

from manyeyes import steps
from manyeyes.artifact import atomic_write_text
from manyeyes.home import run_directory, run_name

SUMMARY = "summary.json"


class StageOutcome(BaseModel):
    """How one stage of a run ended, as the runner recorded it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    expert: str | None
    state: str
    fingerprint: str
    code: str
    slice: str
    parents: dict[str, str]
    started: str
    seconds: float
    digest: str | None
    details: dict[str, JsonValue]

    @property
    def label(self) -> str:
        """``sft``, ``prealign:clip``."""
        return f"{self.stage}:{self.expert}" if self.expert else self.stage


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
        for path in sorted((run / "stages").glob("*.json"))
    ]
    return tuple(sorted(found, key=lambda outcome: order.index(outcome.stage)))


def finalize(state: str) -> Summary:
    """Send the spool and write ``summary.json`` of the present run.

    Args:
        state: how the pipeline ended, in KFP's words: ``SUCCEEDED`` or ``FAILED``.
    """
    from manyeyes.track.spool import finish_pipeline
    from manyeyes.track.sync import sync

    succeeded = state == "SUCCEEDED"
    finish_pipeline(run_name(), "FINISHED" if succeeded else "FAILED")
    report = sync(run_name())
    summary = Summary(
        run=run_name(),
        state=state,
        stages=read_outcomes(run_directory()),
        tracking=tuple(report.notes),
    )
    atomic_write_text(run_directory() / SUMMARY, summary.model_dump_json(indent=2) + "\n")
    return summary
