"""Finishing a dataset that was made outside a pipeline: its manifest, then its place."""

from __future__ import annotations

from pathlib import Path

from pydantic import JsonValue

from manyeyes.artifact.destination import put
from manyeyes.artifact.manifest import Manifest, write_manifest
from manyeyes.artifact.provenance import header_without_recipe


def finish_dataset(work: Path, out: Path, *, seed: int, details: dict[str, JsonValue]) -> Manifest:
    """Write the manifest of the dataset in ``work`` (``destination.beside``) and put it at ``out``.

    No recipe made it; a recipe takes it by name.
    """
    header = header_without_recipe("dataset", "prepare", "prepare", seed=seed, details=details)
    manifest = write_manifest(work, header)
    put(work, out, replace=False)
    return manifest
