"""Reads the model registry: which models there are, and what is behind one of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from manyeyes.errors import UserError, unknown
from manyeyes.registry import reference as references
from manyeyes.registry.versions import (
    DIGEST,
    PROMOTION,
    PROVENANCE,
    SOURCE,
    Provenance,
    aliases_of,
    scores_of,
    weights_of,
)
from manyeyes.tracking.store import locate, reaching

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow.entities.model_registry import ModelVersion

    from manyeyes.registry.weights import Condition, Weights


@dataclass(frozen=True)
class ModelRow:
    """One version in the list of models."""

    name: str
    version: int
    aliases: tuple[str, ...]
    source_digest: str
    source: str
    scores: dict[str, float]
    created: str
    """ISO 8601, UTC."""


@dataclass(frozen=True)
class Lineage:
    """What is behind a registered model."""

    name: str
    version: int
    aliases: tuple[str, ...]
    checkpoint: str
    """Content digest of the weights."""
    source: str
    weights: Condition
    provenance: Provenance
    promotion: dict[str, str]
    """When it became champion, after whom, on which evidence; empty if it never did."""


def list_models() -> list[ModelRow]:
    """Return every version of every model, newest first within a name; empty without a store."""
    store = locate()
    if not store.exists:
        return []
    rows: list[ModelRow] = []
    with reaching(store) as client:
        for model in client.search_registered_models():
            aliases = aliases_of(client, model.name)
            versions = client.search_model_versions(f"name = '{model.name}'")
            rows += [_row(version, aliases) for version in versions]
    return sorted(rows, key=lambda row: (row.name, -row.version))


def lineage(reference: str) -> Lineage:
    """Return what is behind ``models:/NAME@alias`` or ``models:/NAME/version``.

    Raises:
        UserError: not a reference, an unknown model, or one that manyeyes did not register.
    """
    version, aliases = _resolve(reference)
    tags = version.tags
    weights = weights_of(version)
    return Lineage(
        name=version.name,
        version=int(version.version),
        aliases=aliases.get(str(version.version), ()),
        checkpoint=weights.digest,
        source=weights.source,
        weights=weights.condition,
        provenance=Provenance.model_validate_json(tags[PROVENANCE]),
        promotion={key: tags[key] for key in PROMOTION if key in tags},
    )


def locate_weights(reference: str) -> Weights:
    """Return where the weights of a registered model are.

    Raises:
        UserError: as for ``lineage``.
    """
    return weights_of(_resolve(reference)[0])


def _resolve(reference: str) -> tuple[ModelVersion, dict[str, tuple[str, ...]]]:
    """Find the version a reference means and the aliases, or say what there is instead."""
    wanted, store = references.parse(reference), locate()
    if not store.exists:
        raise UserError(
            f"There is no model {wanted.name!r}: nothing was registered in {store.database} yet; "
            "'manyeyes run RECIPE' trains and registers one."
        )
    with reaching(store) as client:
        names = [model.name for model in client.search_registered_models()]
        if wanted.name not in names:
            raise unknown("model", wanted.name, names)
        by_version = aliases_of(client, wanted.name)
        found = client.search_model_versions(f"name = '{wanted.name}'")
    versions = {str(version.version): version for version in found}
    if not wanted.alias:
        number = wanted.version
        if number not in versions:
            raise unknown(f"version of {wanted.name}", number, versions)
        return versions[number], by_version
    numbers = {alias: number for number, aliases in by_version.items() for alias in aliases}
    if wanted.alias not in numbers:
        raise unknown(f"alias of {wanted.name}", wanted.alias, numbers)
    return versions[numbers[wanted.alias]], by_version


def _row(version: ModelVersion, aliases: Mapping[str, tuple[str, ...]]) -> ModelRow:
    created = datetime.fromtimestamp(int(version.creation_timestamp) / 1000, UTC)
    return ModelRow(
        name=version.name,
        version=int(version.version),
        aliases=aliases.get(str(version.version), ()),
        source_digest=version.tags.get(DIGEST, ""),
        source=version.tags.get(SOURCE, str(version.source)),
        scores=scores_of(version).flat(),
        created=created.isoformat(timespec="seconds"),
    )
