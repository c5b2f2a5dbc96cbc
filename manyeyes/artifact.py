"""Artifacts: a directory is finished when, and only when, it holds a ``manifest.json``.

Three kinds exist: Dataset, Checkpoint, Report. The manifest is written last, by atomic rename, and
lists the size and digests of every file, so that a killed run can never be taken for a whole one
and a damaged file is noticed when the artifact is opened. sha256 guards the content; md5 is kept
beside it because it is DVC's key for the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from manyeyes.errors import UserError

MANIFEST = "manifest.json"
FORMAT = 1
NOT_CONTENT = ("measurements/", "report.html")
"""Files that tell how a run went (times, rates). They are listed and checked like all others, but
two runs that made the same weights at another speed have the same content digest."""
_ADVICE = "fetch the artifact again or run its stage again."
STATES = "state"
"""Folder of a work directory from which a killed stage continues; never a part of its result."""
TEMPORARY = ".*.tmp"
"""Pattern of the names under which files are written before they are renamed."""
ArtifactKind = Literal["dataset", "checkpoint", "report"]


class FileEntry(BaseModel):
    """Size in bytes and digests of one file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int
    sha256: str
    md5: str


class Header(BaseModel):
    """What is known of an artifact before its files are counted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ArtifactKind
    stage: str
    name: str
    """Name of the expert for ``prealign``, otherwise of the stage."""
    recipe_slice: str
    """sha256 of the canonical JSON of the recipe slice."""
    fingerprint: str
    """sha256 over code, recipe slice and parents' content: the key of every cache."""
    parents: dict[str, str]
    """Role to content digest; the experts of a mixture have the roles ``expert.NAME``."""
    code: str
    """Digest of the source files the stage depends on."""
    revision: str
    """Version control revision, ``+dirty`` when the tree had changes; ``unknown`` without one."""
    libraries: dict[str, str]
    seed: int
    details: dict[str, JsonValue] = {}


class Manifest(Header):
    """A finished artifact's description."""

    format: int
    files: dict[str, FileEntry]

    @property
    def digest(self) -> str:
        """Digest of the content alone: equal files give equal digests, whoever made them."""
        lines = [
            f"{path}\0{entry.sha256}"
            for path, entry in sorted(self.files.items())
            if not path.startswith(NOT_CONTENT)
        ]
        return hashlib.sha256("\n".join([self.kind, *lines]).encode()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files.values())


def write_manifest(directory: Path, header: Header) -> Manifest:
    """Hash every file below ``directory`` and write the manifest, last and atomically.

    What lies in ``STATES`` is left out: a stage keeps its states until its manifest stands, so that
    a kill while the files are hashed costs no training.
    """
    names = (path.relative_to(directory) for path in iter_files(directory))
    files = {
        name.as_posix(): hash_file(directory / name) for name in names if name.parts[0] != STATES
    }
    manifest = Manifest(**header.model_dump(), format=FORMAT, files=files)
    atomic_write_text(directory / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
    return manifest


def is_finished(directory: Path) -> bool:
    """Say whether a directory holds a manifest."""
    return (directory / MANIFEST).is_file()


def open_artifact(directory: Path, kind: ArtifactKind, *, verify: bool = True) -> Manifest:
    """Read an artifact's manifest and check its files.

    Args:
        directory: where the artifact lies.
        kind: what the caller needs.
        verify: compare size and sha256 of every file; sizes alone when False.

    Raises:
        UserError: missing, unfinished, of another kind, or damaged.
    """
    manifest = read_manifest(directory)
    if manifest.kind != kind:
        raise UserError(
            f"{directory} holds a {manifest.kind} (made by {manifest.stage}), "
            f"but a {kind} is needed."
        )
    for name, entry in manifest.files.items():
        _check_file(directory / name, entry, verify=verify)
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """Read a manifest without looking at the files it lists.

    Raises:
        UserError: there is no directory, no manifest, or not one of this format.
    """
    path = directory / MANIFEST
    if not directory.is_dir():
        raise UserError(f"No artifact at {directory}: there is no such directory.")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"{directory} is not a finished artifact: it has no {MANIFEST}. "
            "Run the stage that makes it again; it continues where it stopped."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UserError(f"Cannot read {path} ({reason}); {_ADVICE}") from None
    return _parse_manifest(text, path)


def _parse_manifest(text: str, path: Path) -> Manifest:
    """Read a manifest's text; one of another format is told from a damaged one.

    Raises:
        UserError: it is not a manifest of this format, or lists a file outside its directory.
    """
    try:
        found = json.loads(text)
        given = found.get("format") if isinstance(found, dict) else None
        if isinstance(given, int) and given != FORMAT:
            raise UserError(
                f"{path} has format {given}, but this manyeyes reads {FORMAT}; "
                "use the version that wrote it."
            )
        manifest = Manifest.model_validate_json(text)
    except ValueError:
        raise UserError(
            f"{path} is damaged: it is not a manifest of format {FORMAT}; {_ADVICE}"
        ) from None
    for name in manifest.files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise UserError(f"{path} was changed: it lists {name!r}, which lies outside; {_ADVICE}")
    return manifest


def _check_file(path: Path, entry: FileEntry, *, verify: bool) -> None:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise UserError(f"{path} is missing, though the manifest lists it; {_ADVICE}") from None
    if size != entry.size:
        raise UserError(f"{path} has {size} bytes, but the manifest says {entry.size}; {_ADVICE}")
    if verify and hash_file(path).sha256 != entry.sha256:
        raise UserError(f"{path} does not match the sha256 in the manifest; {_ADVICE}")


def hash_file(path: Path) -> FileEntry:
    """Return size, sha256 and md5 of a file, read once."""
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
            md5.update(block)
            size += len(block)
    return FileEntry(size=size, sha256=sha256.hexdigest(), md5=md5.hexdigest())


def iter_files(directory: Path) -> Iterator[Path]:
    """Yield the files of an artifact in a stable order, without the manifest."""
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path != directory / MANIFEST:
            yield path


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old bytes or the new ones, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def atomic_write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    atomic_write_bytes(path, text.encode())


def atomic_write_json(path: Path, value: JsonValue) -> None:
    """Write readable JSON with sorted keys atomically."""
    atomic_write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
