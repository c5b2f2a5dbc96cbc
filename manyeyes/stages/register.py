"""``register``: the model enters the registry, and becomes champion if the gate agrees.

A gate that says no does not fail the stage: the model is registered as ``candidate``, and the
reasons stand in the result and on the model version.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import JsonValue

from manyeyes.artifact import atomic_write_json, read_manifest
from manyeyes.evaluate.score import Scores as EvaluationScores
from manyeyes.evaluate.score import read_scores
from manyeyes.progress import Progress
from manyeyes.recipe import RegisterSection
from manyeyes.stages import Details
from manyeyes.stages.history import Ancestor, read_history
from manyeyes.track import registry
from manyeyes.track.scores import Scores, TaskScore
from manyeyes.track.store import locate
from manyeyes.track.sync import run_of
from manyeyes.track.versions import Provenance
from manyeyes.track.weights import Weights

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
        ManyeyesError: the registry does not answer.
    """
    from manyeyes.serve.pyfunc import MODEL_CODE

    candidate = registry.Candidate(
        name=section.model_name,
        weights=Weights.of(checkpoint),
        scores=_scores(read_scores(report)),
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
        "passed": registration.verdict.passed,
        "reasons": list(registration.verdict.reasons),
        "evidence": registration.evidence,
        "tracking_store": locate().key,
    }
    atomic_write_json(out / REGISTRATION_FILE, details)
    return details


def is_registered(details: Details) -> bool:
    """Say whether the registry in use still has what an earlier ``register`` put there."""
    name, version, digest = (details.get(key) for key in ("name", "version", "digest"))
    if not (isinstance(name, str) and isinstance(version, int) and isinstance(digest, str)):
        return False
    return details.get("tracking_store") == locate().key and registry.is_registered(
        name, version, digest
    )


def _scores(scores: EvaluationScores) -> Scores:
    """Keep of the evaluation what the registry compares: values and blind values."""
    tasks = {
        task: TaskScore(
            value=line.total.score.value,
            blind=line.total.blind.value if line.total.blind else None,
        )
        for task, line in scores.tasks.items()
    }
    return Scores(tasks=tasks)


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
