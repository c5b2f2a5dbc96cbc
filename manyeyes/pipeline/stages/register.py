"""``register``: the model enters the registry, and becomes champion if the gate agrees.

A gate that says no does not fail the stage: the model is registered as ``candidate``, and the
reasons stand in the result and on the model version. The command line ends with exit code 3 then.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import JsonValue

from manyeyes.artifact.manifest import atomic_write_json, read_manifest
from manyeyes.config.recipe import RegisterSection
from manyeyes.evaluate.predictions import read_predictions
from manyeyes.evaluate.score import TaskScore as EvaluatedTask
from manyeyes.evaluate.score import outcomes_of, read_scores
from manyeyes.pipeline.stages import Details
from manyeyes.pipeline.stages.history import Ancestor, read_history
from manyeyes.registry import registry
from manyeyes.registry.scores import Measurement, Scores, TaskScore
from manyeyes.registry.versions import Provenance
from manyeyes.registry.weights import Weights
from manyeyes.runtime.progress import Progress
from manyeyes.tracking.store import locate
from manyeyes.tracking.sync import run_of

REGISTRATION_FILE = "registration.json"


def register(
    name: str,
    section: RegisterSection,
    *,
    checkpoint: Path,
    report: Path,
    out: Path,
    progress: Progress,
) -> Details:
    """Register a checkpoint with its scores and its lineage.

    Raises:
        UserError: the report's scores do not belong to its answers.
        ManyeyesError: the registry does not answer.
    """
    from manyeyes.serve.pyfunc import MODEL_CODE

    candidate = registry.Candidate(
        name=section.model_name,
        weights=Weights.of(checkpoint),
        measurement=_measurement(report),
        provenance=_provenance(name, checkpoint, report),
        run=run_of(read_manifest(checkpoint).fingerprint),
    )
    registration = registry.register(candidate, section.gate, MODEL_CODE)
    for reason in registration.verdict.reasons:
        progress.note(reason)
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
    atomic_write_json(out / REGISTRATION_FILE, details)
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
    found, manifest = read_scores(report), read_manifest(report)
    scores = Scores(
        tasks={task: _task(line) for task, line in found.tasks.items()},
        split=found.conditions.split,
        limit=found.conditions.limit,
        max_new_tokens=found.conditions.max_new_tokens,
        code=manifest.code,
        dataset=manifest.parents.get("dataset", ""),
        report=manifest.digest,
    )
    metrics = {task: line.metric for task, line in found.tasks.items()}
    return Measurement.of(scores, outcomes_of(read_predictions(report), metrics))


def _task(line: EvaluatedTask) -> TaskScore:
    blind = line.total.blind
    return TaskScore(
        value=line.total.score.value,
        blind=blind.value if blind else None,
        visual=line.visual,
        floor=line.floor.value,
        constant=line.floor.constant,
        highest=line.floor.highest,
        count=line.total.count,
        num_empty=line.answered.num_empty,
        num_equal=line.answered.num_equal,
        commonest=line.answered.commonest,
        num_equal_labels=line.answered.num_equal_labels,
        metric=line.metric,
        version=line.version,
        protocol=line.protocol,
        questions=line.questions,
    )


def _provenance(name: str, checkpoint: Path, report: Path) -> Provenance:
    ancestors = read_history(report)
    manifest = read_manifest(checkpoint)
    return Provenance(
        recipe=name,
        recipe_digest=_recipe_digest(ancestors),
        data=_digests(ancestors, "prepare", "dataset")
        | _digests(ancestors, "validate", "validation"),
        experts={
            ancestor.name: ancestor.digest for ancestor in ancestors if ancestor.stage == "prealign"
        },
        revision=manifest.revision,
        report=read_manifest(report).digest,
        stages=_digests(ancestors, "pretrain", "pretrain") | {manifest.stage: manifest.digest},
    )


def _digests(ancestors: tuple[Ancestor, ...], stage: str, role: str) -> dict[str, str]:
    found = [ancestor.digest for ancestor in ancestors if ancestor.stage == stage]
    return {role: found[0]} if found else {}


def _recipe_digest(ancestors: tuple[Ancestor, ...]) -> str:
    """Return one digest over the recipe slices of all stages that led here."""
    slices = sorted(f"{ancestor.label}={ancestor.recipe_slice}" for ancestor in ancestors)
    return hashlib.sha256("\n".join(slices).encode()).hexdigest()
