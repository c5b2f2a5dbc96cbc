"""Where a result comes from besides its inputs: code revision and library versions."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

from pydantic import JsonValue

from manyeyes.artifact.manifest import Header
from manyeyes.steps import ArtifactKind
from manyeyes.version import __version__

REVISION = "MANYEYES_REVISION"
LIBRARIES = (
    "numpy", "pillow", "safetensors", "simplejpeg", "tokenizers", "torch", "transformers",
)  # fmt: skip


@cache
def revision() -> str:
    """Return the version control revision of the package's checkout.

    An image has no ``.git``: there the build sets ``MANYEYES_REVISION``.
    """
    given = os.environ.get(REVISION)
    if given:
        return given
    folder = Path(__file__).parents[1]
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return "unknown"
    return commit + ("+dirty" if _git(folder, "status", "--porcelain", "--", ".") else "")


def header_without_recipe(
    kind: ArtifactKind, stage: str, name: str, *, seed: int, details: dict[str, JsonValue]
) -> Header:
    """Describe what no pipeline made: it has neither a slice of a recipe nor a fingerprint."""
    return Header(
        kind=kind,
        stage=stage,
        name=name,
        recipe_slice="",
        fingerprint="",
        parents={},
        code="",
        revision=revision(),
        libraries=libraries(),
        seed=seed,
        details=details,
    )


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            # Only looking: `status` would otherwise lock and rewrite the user's index.
            ["git", "--no-optional-locks", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


@cache
def libraries() -> dict[str, str]:
    """Return the versions of the libraries whose change can change a result."""
    versions = {"manyeyes": __version__}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
