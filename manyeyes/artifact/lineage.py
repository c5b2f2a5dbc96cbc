"""Lineage: the stages that a result descends from, with what they made of time and loss.

Every result brings one record per stage above it, and that stage's curves: the report draws the
whole pipeline, and the registry tells what a model was made from, without asking the orchestrator
or the tracker. It lies under ``measurements/`` and is no part of the content digest.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, JsonValue

from manyeyes.artifact.files import CURVES_FILE, HISTORY
from manyeyes.artifact.manifest import Manifest, PartName, atomic_write_text, read_manifest
from manyeyes.errors import UserError
from manyeyes.runtime.plain_files import read_plain_text
from manyeyes.steps import Task


class Ancestor(BaseModel):
    """One stage that a result descends from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: PartName
    name: PartName
    """The expert's name for ``prealign``, otherwise the stage's."""
    digest: str
    fingerprint: str
    recipe_slice: str
    parents: dict[str, str]
    revision: str
    libraries: dict[str, str]
    seconds: float
    details: dict[str, JsonValue]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the stage found worth telling a person."""
        notes = self.details.get("notes")
        return tuple(map(str, notes)) if isinstance(notes, list) else ()

    @property
    def task(self) -> Task:
        """What of the pipeline it is."""
        return Task.named(self.stage, self.name)


def inherit(inputs: Mapping[str, Path], out: Path) -> None:
    """Copy the parents' histories into ``out`` and add the parents themselves."""
    folder = out / HISTORY
    folder.mkdir(parents=True, exist_ok=True)
    for path in inputs.values():
        for source in sorted((path / HISTORY).glob("*")):
            shutil.copyfile(source, folder / source.name)
        manifest = read_manifest(path)
        ancestor = _ancestor(manifest)
        name = manifest.task.slug
        atomic_write_text(folder / f"{name}.json", ancestor.model_dump_json(indent=2) + "\n")
        if (path / CURVES_FILE).is_file():
            shutil.copyfile(path / CURVES_FILE, folder / f"{name}.metrics.jsonl")


def read_history(artifact: Path) -> tuple[Ancestor, ...]:
    """Return the stages an artifact descends from, by label.

    Raises:
        UserError: a file of the history is none.
    """
    return tuple(map(_read_ancestor, sorted((artifact / HISTORY).glob("*.json"))))


def _read_ancestor(path: Path) -> Ancestor:
    try:
        return Ancestor.model_validate_json(read_plain_text(path))
    except (OSError, ValueError):
        raise UserError(
            f"{path} does not describe a stage: fetch the artifact again or run its stage again."
        ) from None


def curve_file(artifact: Path, ancestor: Ancestor) -> Path | None:
    """Return the curves of an ancestor that trained."""
    path = artifact / HISTORY / f"{ancestor.task.slug}.metrics.jsonl"
    return path if path.is_file() else None


def _ancestor(manifest: Manifest) -> Ancestor:
    seconds = manifest.details.get("seconds")
    return Ancestor(
        stage=manifest.stage,
        name=manifest.name,
        digest=manifest.digest,
        fingerprint=manifest.fingerprint,
        recipe_slice=manifest.recipe_slice,
        parents=manifest.parents,
        revision=manifest.revision,
        libraries=manifest.libraries,
        seconds=float(seconds) if isinstance(seconds, int | float) else 0.0,
        details=manifest.details,
    )
