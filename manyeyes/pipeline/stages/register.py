"""``register``: the model enters the registry, and becomes champion if the gate agrees.

A gate that says no does not fail the stage: the model is registered as ``candidate``, and the
reasons stand in the result and on the model version. The command line ends with exit code 3 then.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import JsonValue

from manyeyes.artifact.files import REGISTRATION_FILE
from manyeyes.artifact.lineage import read_history
from manyeyes.artifact.manifest import atomic_write_json, read_manifest
from manyeyes.config.recipe.slices import RegisterSlice
from manyeyes.evaluation.predictions import read_predictions
from manyeyes.evaluation.score import outcomes_of, read_scores
from manyeyes.pipeline.stages import Details, StageContext
from manyeyes.registry import registry
from manyeyes.registry.scores import KeptScores, Measurement
from manyeyes.registry.versions import Provenance
from manyeyes.registry.weights import Weights
from manyeyes.tracking.store import locate
from manyeyes.tracking.sync import run_of


def register(piece: RegisterSlice, context: StageContext) -> Details:
    """Register a checkpoint with its scores and its lineage.

    Raises:
        UserError: the report's scores do not belong to its answers.
        ManyeyesError: the registry does not answer.
    """
    from manyeyes.serve.pyfunc import MODEL_CODE

    checkpoint, report = context.inputs["checkpoint"], context.inputs["report"]
    made = read_manifest(checkpoint)
    candidate = registry.Candidate(
        name=piece.section.model_name,
        weights=Weights.of(checkpoint),
        measurement=_measurement(report),
        provenance=Provenance.of(piece.name, made, read_manifest(report), read_history(report)),
        run=run_of(made.fingerprint),
    )
    registration = registry.register(candidate, piece.section.gate, MODEL_CODE)
    for reason in registration.verdict.reasons:
        context.progress.note(reason)
    details: dict[str, JsonValue] = {
        "name": registration.name,
        "version": registration.version,
        "digest": candidate.weights.digest,
        "aliases": list(registration.aliases),
        "decision": registration.verdict.decision,
        "passed": registration.verdict.passed,
        "reasons": list(registration.verdict.reasons),
        "questions_needed": registration.verdict.needed,
        "evidence": registration.evidence,
        "standing": registration.standing,
        "tracking_store": locate().key,
    }
    atomic_write_json(context.out / REGISTRATION_FILE, details)
    return details


def why_again(details: Details) -> str:
    """Say why an earlier ``register`` does not hold in the registry in use; nothing if it does.

    A model that was not promoted is judged again when the champion changed, or was measured again.

    Raises:
        ManyeyesError: the registry does not answer.
    """
    name, version, digest = (details.get(key) for key in ("name", "version", "digest"))
    if not (isinstance(name, str) and isinstance(version, int) and isinstance(digest, str)):
        return "its result does not tell what was registered"
    here = locate()
    if details.get("tracking_store") != here.key:
        return f"it was registered in another MLflow than {here.shown}"
    if not registry.is_registered(name, version, digest):
        return f"MLflow at {here.shown} no longer has version {version} of {name}"
    if details.get("passed") or details.get("standing") == registry.standing(name):
        return ""
    return f"the champion of {name} is another one, or was measured again"


def _measurement(report: Path) -> Measurement:
    """Keep of the evaluation what the registry compares."""
    scores = read_scores(report)
    metrics = {name: task.metric for name, task in scores.tasks.items()}
    outcomes = outcomes_of(read_predictions(report), metrics)
    return Measurement.of(KeptScores.of(scores, read_manifest(report)), outcomes)
