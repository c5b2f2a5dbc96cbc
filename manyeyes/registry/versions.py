"""What a model version says about itself: its tags, written in one place and read in two."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from pydantic import Field, ValidationError

from manyeyes.errors import UserError
from manyeyes.registry.scores import KeptScores
from manyeyes.registry.weights import Weights
from manyeyes.tracking.records import Stored

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from manyeyes.artifact.lineage import Ancestor
    from manyeyes.artifact.manifest import Manifest

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
WEIGHTS, DIGEST, SOURCE = "weights", "source_digest", "source"
SCORES, PROVENANCE = "scores", "provenance"
MODEL_ID = "mlflow_model"
"""Tag with the id of the MLflow model behind a version, which MLflow does not tell again."""
MEASURED = "measured."
"""Every measurement's tag begins so; the first one also stands in ``scores``."""
PROMOTION = ("promoted_from", "promoted_at", "evidence")
"""Tags of a version that became champion."""


class Provenance(Stored):
    """What of its lineage a model version carries; all digests are content digests."""

    recipe: str
    """Name of the recipe."""
    recipe_digest: str
    data: dict[str, str]
    """Role (``dataset``, ``validation``) to digest."""
    experts: dict[str, str]
    """Expert to the digest of its pre-aligned checkpoint."""
    revision: str
    """Code revision."""
    report: str = ""
    """Digest of the evaluation's report."""
    stages: dict[str, str] = Field(default_factory=dict)
    """Stage to the digest of what it made, for the stages not named above."""

    @classmethod
    def of(
        cls, recipe: str, checkpoint: Manifest, report: Manifest, above: Sequence[Ancestor]
    ) -> Provenance:
        """Read it off the lineage of an evaluation.

        Args:
            recipe: its name.
            checkpoint: the model.
            report: its evaluation.
            above: the stages that the report descends from.
        """
        made = {one.task.label: one.digest for one in above}
        roles = {"prepare": "dataset", "validate": "validation"}
        slices = sorted(f"{one.task.label}={one.recipe_slice}" for one in above)
        pretrained = {stage: made[stage] for stage in ("pretrain",) if stage in made}
        return cls(
            recipe=recipe,
            recipe_digest=hashlib.sha256("\n".join(slices).encode()).hexdigest(),
            data={role: made[stage] for stage, role in roles.items() if stage in made},
            experts={one.task.expert: one.digest for one in above if one.task.expert},
            revision=checkpoint.revision,
            report=report.digest,
            stages={**pretrained, checkpoint.stage: checkpoint.digest},
        )


class Measured(Stored):
    """A measurement's scores and when they were registered."""

    at: str
    """ISO 8601, UTC."""
    scores: KeptScores


def measured(version: ModelVersion) -> tuple[KeptScores, ...]:
    """Return the scores of every measurement of a version, newest first."""
    found = []
    for key, text in version.tags.items():
        if key.startswith(MEASURED):
            try:
                found.append(Measured.model_validate_json(text))
            except ValidationError:
                continue
    if found:
        return tuple(one.scores for one in sorted(found, key=lambda one: one.at, reverse=True))
    first = scores_of(version)
    return (first,) if first.tasks else ()


def find(client: MlflowClient, name: str, digest: str) -> ModelVersion | None:
    """Return the newest version of a model with these weights."""
    found = client.search_model_versions(f"name = '{name}' and tags.`{DIGEST}` = '{digest}'")
    return max(found, key=lambda version: int(version.version), default=None)


def aliased(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """Return the version an alias points at."""
    number = client.get_registered_model(name).aliases.get(alias)
    return client.get_model_version(name, str(number)) if number is not None else None


def aliases_of(client: MlflowClient, name: str) -> dict[str, tuple[str, ...]]:
    """Return version to aliases."""
    by_version: dict[str, list[str]] = {}
    for alias, version in sorted(client.get_registered_model(name).aliases.items()):
        by_version.setdefault(str(version), []).append(alias)
    return {version: tuple(aliases) for version, aliases in by_version.items()}


def weights_of(version: ModelVersion) -> Weights:
    """Return where the weights of a version are.

    Raises:
        UserError: someone else registered it.
    """
    if WEIGHTS not in version.tags or PROVENANCE not in version.tags:
        raise UserError(
            f"models:/{version.name}/{version.version} was not registered by manyeyes: "
            "it names no checkpoint and no lineage."
        )
    return Weights.model_validate_json(version.tags[WEIGHTS])


def scores_of(version: ModelVersion) -> KeptScores:
    """Return the scores of a version; none when someone else made it."""
    try:
        return KeptScores.model_validate_json(version.tags.get(SCORES, ""))
    except ValidationError:
        return KeptScores(tasks={})
