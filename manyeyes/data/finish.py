"""Finishing a dataset that was made outside a pipeline: its manifest, then its place."""

from __future__ import annotations

from pathlib import Path

from pydantic import JsonValue

from manyeyes import provenance
from manyeyes.artifact import Header, Manifest, write_manifest


def finish_dataset(work: Path, out: Path, *, seed: int, details: dict[str, JsonValue]) -> Manifest:
    """Write the manifest of the dataset in ``work`` and move it to ``out``.

    No recipe made it, so it has neither a slice nor a fingerprint; a recipe takes it by name.
    """
    header = Header(
        kind="dataset",
        stage="prepare",
        name="prepare",
        recipe_slice="",
        fingerprint="",
        parents={},
        code="",
        revision=provenance.revision(),
        libraries=provenance.libraries(),
        seed=seed,
        details=details,
    )
    manifest = write_manifest(work, header)
    work.replace(out)
    return manifest
