"""The model registry: versions by reference, aliases, and who may be champion.

A version is a few kilobytes: the code that loads it and a reference to its checkpoint. No weights
are uploaded. Everything the registry must answer for stands in the version's tags, so it can be
read without the machine that trained it: scores, lineage, the gate's verdict and its evidence.

Aliases: ``candidate`` is the version registered last, ``champion`` the one to use, ``previous`` the
champion before. An alias in MLflow has no history and no compare-and-set, so registrations take
one lock, and a promotion leaves its history in tags. The lock reaches the processes of one machine
(of one home directory); a shared server needs one promoter at a time.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from manyeyes.track.gate import Verdict, decide
from manyeyes.track.store import Store, as_default, locate, locked, reaching
from manyeyes.track.versions import (
    CANDIDATE,
    CHAMPION,
    DIGEST,
    PREVIOUS,
    PROVENANCE,
    SCORES,
    SOURCE,
    WEIGHTS,
    Provenance,
    aliased,
    aliases_of,
    find,
    flat_scores,
    scores_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from manyeyes.recipe.sections import GateSection
    from manyeyes.track.scores import Scores
    from manyeyes.track.weights import Weights


@dataclass(frozen=True)
class Candidate:
    """A checkpoint that asks to be registered.

    Attributes:
        name: Name of the registered model.
        weights: Where its checkpoint is.
        scores: Points per task.
        provenance: What it was made from.
        run: MLflow run that trained it, if it is known (``sync.run_of``).
    """

    name: str
    weights: Weights
    scores: Scores
    provenance: Provenance
    run: str | None = None


@dataclass(frozen=True)
class Registration:
    """What a registration led to.

    Attributes:
        name: Name of the registered model.
        version: Its version.
        adopted: Whether the version was there already, with the same weights.
        aliases: The version's aliases now.
        verdict: What the gate said.
        evidence: sha256 of what the verdict rests on.
    """

    name: str
    version: int
    adopted: bool
    aliases: tuple[str, ...]
    verdict: Verdict
    evidence: str


def register(candidate: Candidate, gate: GateSection, model_code: Path) -> Registration:
    """Register a checkpoint, name it ``candidate``, and make it champion if the gate agrees.

    Args:
        candidate: The checkpoint with its scores and its provenance.
        gate: The recipe's thresholds.
        model_code: The models-from-code file that MLflow runs to load the version.

    Raises:
        ManyeyesError: the registry does not answer.
    """
    store = locate()
    with locked(_lock(store)), reaching(store) as client:
        found = find(client, candidate.name, candidate.weights.digest)
        version = found or _create(client, store, candidate, model_code)
        _set_tags(client, version, _tags(candidate))
        client.set_registered_model_alias(candidate.name, CANDIDATE, version.version)
        verdict, evidence = _judge(client, version, candidate.scores, gate)
        return Registration(
            name=candidate.name,
            version=int(version.version),
            adopted=found is not None,
            aliases=aliases_of(client, candidate.name).get(str(version.version), ()),
            verdict=verdict,
            evidence=evidence,
        )


def is_registered(name: str, version: int, digest: str) -> bool:
    """Say whether the present registry has this version of a model with these weights."""
    store = locate()
    if not store.exists:
        return False
    with reaching(store) as client:
        found = find(client, name, digest)
    return found is not None and int(found.version) == version


def _judge(
    client: MlflowClient, version: ModelVersion, scores: Scores, gate: GateSection
) -> tuple[Verdict, str]:
    """Ask the gate, write down what it said, and move the aliases if it agrees."""
    champion = aliased(client, version.name, CHAMPION)
    if champion is not None and champion.version == version.version:
        verdict = Verdict(True, (f"version {version.version} is the champion already",))
        return verdict, champion.tags.get("evidence", "")
    before = scores_of(champion) if champion else None
    verdict = decide(scores, before, gate)
    evidence = _evidence(scores, before, gate, verdict)
    tags = {
        "gate": "passed" if verdict.passed else "refused",
        "gate_reasons": "; ".join(verdict.reasons),
    }
    _set_tags(client, version, {**tags, "gate_evidence": evidence})
    if verdict.passed:
        _promote(client, version, champion, evidence)
    return verdict, hashlib.sha256(evidence.encode()).hexdigest()


def _promote(
    client: MlflowClient, version: ModelVersion, champion: ModelVersion | None, evidence: str
) -> None:
    """Make ``version`` champion. Tags first and the champion last: a kill leaves the old one."""
    tags = {
        "promoted_from": champion.version if champion else "none",
        "promoted_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "evidence": hashlib.sha256(evidence.encode()).hexdigest(),
    }
    _set_tags(client, version, {key: str(value) for key, value in tags.items()})
    if champion is not None:
        client.set_registered_model_alias(version.name, PREVIOUS, champion.version)
    client.set_registered_model_alias(version.name, CHAMPION, version.version)


def _evidence(scores: Scores, before: Scores | None, gate: GateSection, verdict: Verdict) -> str:
    """Return canonical JSON of all that a verdict rests on."""
    facts = {
        "candidate": scores.model_dump(mode="json"),
        "champion": before.model_dump(mode="json") if before else None,
        "gate": gate.model_dump(mode="json"),
        "passed": verdict.passed,
        "reasons": list(verdict.reasons),
    }
    return json.dumps(facts, sort_keys=True, separators=(",", ":"))


def _create(
    client: MlflowClient, store: Store, candidate: Candidate, model_code: Path
) -> ModelVersion:
    """Create a version; all its tags come with it, so that it is never found half described."""
    from mlflow.exceptions import MlflowException

    from manyeyes.track.package import log_loader

    try:
        client.create_registered_model(candidate.name)
    except MlflowException:
        client.get_registered_model(candidate.name)  # it exists; anything else fails here again
    model = log_loader(client, store, candidate.name, candidate.weights, model_code)
    if candidate.run:
        _log_scores(client, candidate.run, model.model_id, candidate.scores)
    with as_default(store):
        return client.create_model_version(
            candidate.name,
            source=model.artifact_location,
            run_id=candidate.run,
            tags=_tags(candidate),
            model_id=model.model_id,
        )


def _log_scores(client: MlflowClient, run: str, model_id: str, scores: Scores) -> None:
    """Tie the scores to the MLflow model, whose page compares versions by them."""
    from mlflow.entities import Metric

    now = int(datetime.now(UTC).timestamp() * 1000)
    values = flat_scores(scores).items()
    metrics = [Metric(f"score/{k}", v, now, 0, model_id=model_id, run_id=run) for k, v in values]
    client.log_batch(run, metrics=metrics)


def _tags(candidate: Candidate) -> dict[str, str]:
    """Return everything a version says about itself; single values too, to search by."""
    facts, scores = candidate.provenance, candidate.scores
    single = {
        "recipe": facts.recipe,
        "recipe_digest": facts.recipe_digest,
        "revision": facts.revision,
        **{f"data.{role}": digest for role, digest in facts.data.items()},
        **{f"expert.{name}": digest for name, digest in facts.experts.items()},
        **{f"score.{name}": f"{value:.4f}" for name, value in flat_scores(scores).items()},
    }
    return {
        DIGEST: candidate.weights.digest,
        SOURCE: candidate.weights.source,
        WEIGHTS: candidate.weights.model_dump_json(),
        SCORES: scores.model_dump_json(),
        PROVENANCE: facts.model_dump_json(),
        **single,
    }


def _set_tags(client: MlflowClient, version: ModelVersion, tags: Mapping[str, str]) -> None:
    """Write the tags that differ from what the version has."""
    for key, value in tags.items():
        if version.tags.get(key) != value:
            client.set_model_version_tag(version.name, version.version, key, value)


def _lock(store: Store) -> Path:
    database = store.database
    return (database.parent if database else store.home) / "registry.lock"
