"""What launching asks of the store: inputs by fingerprint, and whether there is a result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from manyeyes.artifact.manifest import is_finished, read_manifest
from manyeyes.errors import ManyeyesError
from manyeyes.pipeline.fingerprint import Paths
from manyeyes.runtime.home import INPUTS, home
from manyeyes.runtime.locks import held
from manyeyes.store import open_store
from manyeyes.store.pointer import read_pointer


def has_result(key: str) -> bool:
    """Say whether the store has the result of a fingerprint, whole."""
    return open_store().lookup(key) is not None


def fingerprints_of(inputs: Paths) -> dict[str, tuple[str, ...]]:
    """Return role to the fingerprints of its artifacts."""
    return {
        role: tuple(_fingerprint_of(path) for path in as_sequence(given))
        for role, given in inputs.items()
    }


def _fingerprint_of(path: Path) -> str:
    """Read it from the artifact, or from the pointer that stands for it."""
    pointer = read_pointer(path)
    return pointer.fingerprint if pointer else read_manifest(path).fingerprint


def as_sequence(given: Path | Sequence[Path]) -> Sequence[Path]:
    """Return the paths of a role."""
    return [given] if isinstance(given, Path) else given


def fetch_input(fingerprint: str) -> Path:
    """Bring an input from the store, once for all processes of a node.

    Raises:
        ManyeyesError: the store does not have it.
    """
    target = home() / INPUTS / fingerprint[:32]
    with held(home() / "locks" / f"input-{fingerprint[:32]}.lock"):
        if not is_finished(target) and open_store().fetch(fingerprint, target) is None:
            raise ManyeyesError(
                f"The store has no whole artifact under the fingerprint {fingerprint[:12]}, which "
                "this stage reads; check that this pod and the launching step use the same store."
            )
    return target
