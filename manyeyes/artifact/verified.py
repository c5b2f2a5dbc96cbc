"""Checks files against their digests once, and remembers that by what the disk says of them.

A checkpoint of many gigabytes is hashed when it is first opened to be served. The next time its
files are the same if size, times and inode are: any write, and any other file put in their place,
changes one of them. What is remembered lies under home; where that cannot be written, every check
reads the files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import TYPE_CHECKING

from manyeyes.artifact.manifest import (
    MANIFEST,
    FileEntry,
    Manifest,
    atomic_write_json,
    hash_file,
    iter_files,
    open_artifact,
)
from manyeyes.runtime.home import home

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from pydantic import JsonValue

    from manyeyes.steps import ArtifactKind

FOLDER = "verified"
"""Folder of the state directory: one file for each folder that was checked."""


def open_verified(directory: Path, kind: ArtifactKind) -> Manifest:
    """Open an artifact whose every byte is what its manifest says.

    Raises:
        UserError: missing, unfinished, of another kind, or damaged.
    """
    before = _looks(_files(directory))
    known = before is not None and _read(directory) == before
    manifest = open_artifact(directory, kind, verify=not known)
    if not known and before is not None:
        _remember(directory, before)
    return manifest


def just_checked(directory: Path) -> None:
    """Remember that every byte of an artifact was compared while it was written there."""
    looks = _looks(_files(directory))
    if looks is not None:
        _remember(directory, looks)


def first_damaged(name: Path, files: Mapping[Path, FileEntry]) -> Path | None:
    """Return the first file that is missing or has other bytes than it should, or None.

    Args:
        name: under which it is remembered that all of them are whole.
        files: and what they should be.
    """
    before = _looks(files)
    if before is not None and _read(name) == before:
        return None
    for path, entry in files.items():
        try:
            if path.stat().st_size != entry.size or hash_file(path).sha256 != entry.sha256:
                return path
        except OSError:
            return path
    if before is not None:
        _remember(name, before)
    return None


def _files(directory: Path) -> list[Path]:
    return [directory / MANIFEST, *iter_files(directory)] if directory.is_dir() else []


def _looks(files: Iterable[Path]) -> JsonValue:
    """Return what the disk says of files, None when one is missing.

    Taken before they are read: what is written meanwhile is then not taken for checked.
    """
    found: dict[str, JsonValue] = {}
    for path in files:
        try:
            status = path.stat()
        except OSError:
            return None
        times = [status.st_mtime_ns, status.st_ctime_ns]
        found[str(path.absolute())] = [status.st_size, *times, status.st_ino, status.st_dev]
    return found


def _read(name: Path) -> JsonValue:
    try:
        found: JsonValue = json.loads(_memory(name).read_bytes())
    except (OSError, ValueError):
        return None
    return found


def _remember(name: Path, looks: JsonValue) -> None:
    with contextlib.suppress(OSError):
        atomic_write_json(_memory(name), looks)


def _memory(name: Path) -> Path:
    key = hashlib.sha256(str(name.absolute()).encode("utf-8", "surrogateescape")).hexdigest()
    return home() / FOLDER / f"{key[:32]}.json"
