"""A pointer stands for an artifact that lies in the store: a directory with one small file.

Between the pods of a pipeline only pointers travel; the bytes are fetched by digest where a stage
needs them, and not at all where its result is known already. A pointer is checked against the
manifest in the store, so one that was tampered with leads nowhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from manyeyes.artifact.destination import beside, put
from manyeyes.artifact.manifest import (
    POINTER,
    Fingerprint,
    Manifest,
    Sha256,
    atomic_write_text,
    open_artifact,
    read_manifest,
)
from manyeyes.errors import UserError
from manyeyes.runtime.plain_files import read_plain_text
from manyeyes.steps import ArtifactKind
from manyeyes.store.layout import DirectoryId

if TYPE_CHECKING:
    from manyeyes.store.content import Store


class Pointer(BaseModel):
    """What a step hands to the next instead of the bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    store: str
    """``s3://bucket/prefix``."""
    dir_id: DirectoryId
    kind: ArtifactKind
    stage: str
    name: str
    digest: Sha256
    """Content digest of the artifact's manifest."""
    fingerprint: Fingerprint
    size: int
    """Bytes of the artifact's files."""


def write_pointer(store: Store, dir_id: str, manifest: Manifest, out: Path) -> Pointer:
    """Make ``out`` a directory with nothing but a pointer; UserError if it is somebody's."""
    pointer = Pointer(
        store=store.where,
        dir_id=dir_id,
        kind=manifest.kind,
        stage=manifest.stage,
        name=manifest.name,
        digest=manifest.digest,
        fingerprint=manifest.fingerprint,
        size=manifest.size,
    )
    with beside(out) as work:
        atomic_write_text(work / POINTER, pointer.model_dump_json(indent=2) + "\n")
        put(work, out)
    return pointer


def read_pointer(path: Path) -> Pointer | None:
    """Return the pointer in a directory, or in a file; None if there is none.

    Raises:
        UserError: it is not one.
    """
    file = path / POINTER if path.is_dir() else path
    try:
        return Pointer.model_validate_json(read_plain_text(file))
    except FileNotFoundError:
        return None
    except (OSError, ValidationError, UnicodeDecodeError):
        raise UserError(
            f"{file} is not a pointer into the content store; run the step that wrote it again."
        ) from None


def read_input(store: Store, path: Path) -> Manifest:
    """Return the manifest of a directory or of what a pointer points to; no file is looked at.

    Raises:
        UserError: no manifest; or the store has another artifact than the pointer says.
        DamagedObjectError: the store does not have it.
    """
    pointer = read_pointer(path) if path.is_dir() else None
    if pointer is None:
        return read_manifest(path)
    manifest = store.manifest(pointer.dir_id)
    if manifest.digest != pointer.digest:
        raise UserError(
            f"{path} points to {pointer.digest[:12]}, but the content store has "
            f"{manifest.digest[:12]} under {pointer.dir_id}; run the step that wrote it again."
        )
    return manifest


def open_input(store: Store, path: Path, kind: ArtifactKind) -> Manifest:
    """Check an input, a directory or a pointer, and return its manifest; no bytes are fetched.

    Raises:
        UserError: as ``open_artifact`` and ``read_input``.
        DamagedObjectError: the store does not have it.
    """
    if not path.is_dir() or read_pointer(path) is None:
        return open_artifact(path, kind)
    manifest = read_input(store, path)
    if manifest.kind != kind:
        raise UserError(
            f"{path} holds a {manifest.kind} (made by {manifest.stage}), but a {kind} is needed."
        )
    return manifest
