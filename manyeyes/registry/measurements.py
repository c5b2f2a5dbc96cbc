"""What a registered version was measured on: every measurement is kept, none is overwritten.

The scores stand in tags of the version, the outcome of every question in a file beside the code
that loads it, under ``measurements/`` of its MLflow model. So two models can be compared question
by question without the machine that scored the first one.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from manyeyes.artifact.manifest import atomic_write_text
from manyeyes.registry.scores import KeptScores, Measurement
from manyeyes.registry.versions import MEASURED, Measured, measured
from manyeyes.runtime.locks import temporary
from manyeyes.tracking.store import Store, as_default

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

FOLDER = "measurements"
"""Below an MLflow model's own files."""


def keep_outcomes(client: MlflowClient, model_id: str, measurement: Measurement) -> None:
    """Keep how every question went, beside the model."""
    with temporary() as folder:
        path = folder / _file_name(measurement.scores)
        atomic_write_text(path, measurement.model_dump_json() + "\n")
        client.log_model_artifact(model_id, str(path), FOLDER)


def tags_of(scores: KeptScores) -> dict[str, str]:
    """Return the tag that records a measurement."""
    record = Measured(at=datetime.now(UTC).isoformat(timespec="microseconds"), scores=scores)
    return {f"{MEASURED}{scores.digest[:16]}": record.model_dump_json()}


def is_kept(version: ModelVersion, scores: KeptScores) -> bool:
    """Say whether a version has this measurement already."""
    return f"{MEASURED}{scores.digest[:16]}" in version.tags


def measurements(store: Store, version: ModelVersion) -> tuple[Measurement, ...]:
    """Return all measurements of a version, newest first; without outcomes where none were kept."""
    return tuple(
        _with_outcomes(store, version, scores) or Measurement(scores=scores, outcomes={})
        for scores in measured(version)
    )


def _with_outcomes(store: Store, version: ModelVersion, scores: KeptScores) -> Measurement | None:
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    uri = f"{str(version.source).rstrip('/')}/{FOLDER}/{_file_name(scores)}"
    with temporary() as folder, as_default(store):
        try:
            path = Path(download_artifacts(artifact_uri=uri, dst_path=str(folder)))
            found = Measurement.model_validate_json(path.read_bytes())
        except (MlflowException, OSError, ValidationError):
            return None
    return found if found.scores == scores else None


def _file_name(scores: KeptScores) -> str:
    return f"{scores.digest}.json"
