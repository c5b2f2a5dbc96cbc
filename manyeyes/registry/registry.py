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
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from manyeyes.errors import UserError
from manyeyes.registry.gate import Champion, Verdict, decide
from manyeyes.registry.measurements import is_kept, keep_outcomes, measurements, tags_of
from manyeyes.registry.versions import (
    CANDIDATE,
    CHAMPION,
    DIGEST,
    MODEL_ID,
    PREVIOUS,
    PROVENANCE,
    SCORES,
    SOURCE,
    WEIGHTS,
    Provenance,
    aliased,
    aliases_of,
    find,
    measured,
    weights_of,
)
from manyeyes.tracking.store import Store, as_default, locate, locked, reaching

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from manyeyes.config.recipe.sections import GateSection
    from manyeyes.registry.scores import KeptScores, Measurement
    from manyeyes.registry.weights import Weights


@dataclass(frozen=True)
class Candidate:
    """A checkpoint that asks to be registered.

    Attributes:
        name: Name of the registered model.
        weights: Where its checkpoint is.
        measurement: Points per task, what they were measured on, and how every question went.
        provenance: What it was made from.
        run: MLflow run that trained it, if it is known (``sync.run_of``).
    """

    name: str
    weights: Weights
    measurement: Measurement
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
        standing: What the verdict was given against; see ``standing``.
    """

    name: str
    version: int
    adopted: bool
    aliases: tuple[str, ...]
    verdict: Verdict
    evidence: str
    standing: str


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
        if found is not None:
            _measured_again(client, found, candidate)
        client.set_registered_model_alias(candidate.name, CANDIDATE, version.version)
        version = client.get_model_version(candidate.name, version.version)
        verdict, evidence = _judge(client, store, version, candidate.measurement, gate)
        return Registration(
            name=candidate.name,
            version=int(version.version),
            adopted=found is not None,
            aliases=aliases_of(client, candidate.name).get(str(version.version), ()),
            verdict=verdict,
            evidence=evidence,
            standing=_standing(client, candidate.name),
        )


def is_registered(name: str, version: int, digest: str) -> bool:
    """Say whether the present registry has this version of a model with these weights."""
    store = locate()
    if not store.exists:
        return False
    with reaching(store) as client:
        found = find(client, name, digest)
    return found is not None and int(found.version) == version


def standing(name: str) -> str:
    """Return who is champion of a model and what it was measured on, in one word.

    While it is the same, asking the gate again would give the same answer.
    """
    store = locate()
    if not store.exists:
        return ""
    with reaching(store) as client:
        return _standing(client, name)


def _standing(client: MlflowClient, name: str) -> str:
    champion = aliased(client, name, CHAMPION)
    if champion is None:
        return ""
    digests = [scores.digest for scores in measured(champion)]
    text = f"{champion.version}:{','.join(sorted(digests))}"
    return hashlib.sha256(text.encode()).hexdigest()


def _measured_again(client: MlflowClient, version: ModelVersion, candidate: Candidate) -> None:
    """Add a measurement to a version that is there; what was recorded before stays."""
    where = {SOURCE: candidate.weights.source, WEIGHTS: candidate.weights.model_dump_json()}
    _set_tags(client, version, where)
    scores = candidate.measurement.scores
    if not is_kept(version, scores):
        if model_id := version.tags.get(MODEL_ID):
            keep_outcomes(client, model_id, candidate.measurement)
        _set_tags(client, version, tags_of(scores))


def _judge(
    client: MlflowClient,
    store: Store,
    version: ModelVersion,
    measurement: Measurement,
    gate: GateSection,
) -> tuple[Verdict, str]:
    """Ask the gate, write down what it said, and move the aliases if it agrees."""
    holder = aliased(client, version.name, CHAMPION)
    champion = _champion(store, holder, version) if holder is not None else None
    verdict = decide(measurement, champion, gate)
    evidence = _evidence(measurement.scores, champion, gate, verdict)
    tags = {
        "gate": "passed" if verdict.passed else verdict.decision,
        "gate_reasons": "; ".join(verdict.reasons),
    }
    _set_tags(client, version, {**tags, "gate_evidence": evidence})
    if verdict.passed and not (champion is not None and champion.is_candidate):
        _promote(client, version, holder, evidence)
    return verdict, hashlib.sha256(evidence.encode()).hexdigest()


def _champion(store: Store, holder: ModelVersion, version: ModelVersion) -> Champion:
    """Describe the champion as the gate needs it."""
    name = f"version {holder.version}"
    if holder.version == version.version:
        return Champion(name, (), is_candidate=True)
    try:
        weights = weights_of(holder).source
    except UserError:  # someone else registered it
        weights = str(holder.source)
    return Champion(name, measurements(store, holder), weights)


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


def _evidence(
    scores: KeptScores, champion: Champion | None, gate: GateSection, verdict: Verdict
) -> str:
    """Return canonical JSON of all that a verdict rests on."""
    compared = verdict.comparison
    facts = {
        "candidate": scores.model_dump(mode="json"),
        "champion": champion.name if champion else None,
        "champion_measurements": [one.scores.digest for one in champion.measurements]
        if champion
        else [],
        "comparison": asdict(compared) if compared else None,
        "gate": gate.model_dump(mode="json"),
        "decision": verdict.decision,
        "reasons": list(verdict.reasons),
    }
    return json.dumps(facts, sort_keys=True, separators=(",", ":"))


def _create(
    client: MlflowClient, store: Store, candidate: Candidate, model_code: Path
) -> ModelVersion:
    """Create a version; all its tags come with it, so that it is never found half described."""
    from mlflow.exceptions import MlflowException

    from manyeyes.registry.package import log_loader

    try:
        client.create_registered_model(candidate.name)
    except MlflowException:
        client.get_registered_model(candidate.name)  # it exists; anything else fails here again
    model = log_loader(client, store, candidate.name, candidate.weights, model_code)
    keep_outcomes(client, model.model_id, candidate.measurement)
    if candidate.run:
        _log_scores(client, candidate.run, model.model_id, candidate.measurement.scores)
    with as_default(store):
        return client.create_model_version(
            candidate.name,
            source=model.artifact_location,
            run_id=candidate.run,
            tags={**_tags(candidate), MODEL_ID: model.model_id},
            model_id=model.model_id,
        )


def _log_scores(client: MlflowClient, run: str, model_id: str, scores: KeptScores) -> None:
    """Tie the scores to the MLflow model, whose page compares versions by them."""
    from mlflow.entities import Metric

    now = int(datetime.now(UTC).timestamp() * 1000)
    values = scores.flat().items()
    metrics = [Metric(f"score/{k}", v, now, 0, model_id=model_id, run_id=run) for k, v in values]
    client.log_batch(run, metrics=metrics)


def _tags(candidate: Candidate) -> dict[str, str]:
    """Return everything a new version says about itself; single values too, to search by."""
    facts, scores = candidate.provenance, candidate.measurement.scores
    single = {
        "recipe": facts.recipe,
        "recipe_digest": facts.recipe_digest,
        "revision": facts.revision,
        **{f"data.{role}": digest for role, digest in facts.data.items()},
        **{f"expert.{name}": digest for name, digest in facts.experts.items()},
        **{f"score.{name}": f"{value:.4f}" for name, value in scores.flat().items()},
    }
    return {
        DIGEST: candidate.weights.digest,
        SOURCE: candidate.weights.source,
        WEIGHTS: candidate.weights.model_dump_json(),
        SCORES: scores.model_dump_json(),
        **tags_of(scores),
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
