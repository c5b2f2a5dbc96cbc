"""What the stage runner calls: one object around the work of a stage.

It turns the runner's facts (slice, fingerprint, parents' digests, finished manifest) into a record
of the spool.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from manyeyes.artifact import provenance
from manyeyes.artifact.files import CURVES_FILE
from manyeyes.config.recipe.slices import slice_digest
from manyeyes.runtime.home import run_name
from manyeyes.tracking.records import DatasetInput, StageRun
from manyeyes.tracking.spool import Recording, recording

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pydantic import JsonValue

    from manyeyes.artifact.manifest import Manifest
    from manyeyes.steps import Task


class StageRecord:
    """The record of one stage that is being made."""

    def __init__(self, recorder: Recording) -> None:
        self.recorder = recorder

    @staticmethod
    def describe(
        task: Task, recipe_slice: str, fingerprint: str, work: Path | None = None
    ) -> StageRun:
        """Say what is recorded of a stage when it starts.

        Args:
            task: The stage, and the expert that it trains.
            recipe_slice: Canonical JSON of what the stage sees of the recipe.
            fingerprint: Digest of code, slice and inputs.
            work: The stage's work directory; with it the curves of a failed stage are kept too.
        """
        return StageRun(
            pipeline=run_name(),
            stage=task.stage,
            expert=task.expert or "",
            fingerprint=fingerprint,
            tags={"recipe_slice": slice_digest(recipe_slice), "revision": provenance.revision()},
            params=json.loads(recipe_slice),
            metrics_file=work / CURVES_FILE if work else None,
        )

    @classmethod
    @contextlib.contextmanager
    def open(cls, run: StageRun) -> Iterator[StageRecord]:
        """Record a stage until the block ends, and how it ended."""
        with recording(run) as recorder:
            yield cls(recorder)

    def parents(self, manifests: Mapping[str, Manifest]) -> None:
        """Record the inputs by role and content digest; the dataset under its own name."""
        digests = {role: manifest.digest for role, manifest in manifests.items()}
        self.recorder.add_tags({f"parent.{role}": digest for role, digest in digests.items()})
        for role, manifest in manifests.items():
            self.recorder.add_dataset(dataset_input(role, manifest.digest, manifest.details))

    def finish(self, work: Path, manifest: Manifest) -> None:
        """Record the finished artifact: its digest and where its curves are."""
        self.recorder.add_tags({"digest": manifest.digest, "kind": manifest.kind})
        if (work / CURVES_FILE).is_file():
            self.recorder.set_metrics_file(work / CURVES_FILE)
        self.recorder.add_scores(_numbers(manifest.details))


def dataset_input(role: str, digest: str, details: Mapping[str, JsonValue]) -> DatasetInput:
    """Describe an input of a stage; ``details`` of a dataset's manifest say what it is called."""
    known = details.get("name") if role == "dataset" else None
    name = known if isinstance(known, str) else role
    context = "training" if role == "dataset" else "parent"
    return DatasetInput(name=name, digest=digest, source=f"sha256://{digest}", context=context)


def _numbers(values: Mapping[str, JsonValue], prefix: str = "") -> dict[str, float]:
    """Return the numbers among nested facts, under ``outer/inner`` names."""
    numbers: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            numbers.update(_numbers(value, f"{prefix}{name}/"))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[f"{prefix}{name}"] = float(value)
    return numbers
